"""Tables as Parquet, the one form in which columns of numbers lie on a ledger."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence


def parquet(columns: Mapping[str, object], notes: Mapping[str, str] | None = None) -> bytes:
    """Return columns of one length (sequences, NumPy or Arrow arrays) as a Parquet file, `notes` in its schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(dict(notes)) if notes else table, sink, compression="zstd")
    return sink.getvalue()


def constant(value: str, count: int) -> object:
    """Return a column of one text in every row, which takes no room."""
    import pyarrow as pa

    return pa.array([value] * count).dictionary_encode()


def columns_of(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Return rows as columns; a value that a row has not is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
