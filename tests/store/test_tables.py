"""Columns come back from Parquet as they went in, with the notes of their schema."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.store.tables import columns_of, constant, parquet


def test_columns_of_every_kind_come_back() -> None:
    flat = pa.array(np.arange(6, dtype=np.float32))
    columns = {
        "id": np.arange(3, dtype=np.int32),
        "name": ["a", None, "c"],
        "key": constant("k" * 20, 3),
        "scores": pa.FixedSizeListArray.from_arrays(flat, 2),
    }
    table = pq.read_table(io.BytesIO(parquet(columns, {"schema": "test/1"})))
    assert table.schema.field("id").type == pa.int32()
    assert table.schema.metadata == {b"schema": b"test/1"}
    assert table.to_pydict() == {
        "id": [0, 1, 2],
        "name": ["a", None, "c"],
        "key": ["k" * 20] * 3,
        "scores": [[0, 1], [2, 3], [4, 5]],
    }
    assert pq.read_table(io.BytesIO(parquet(columns))).schema.metadata is None


def test_rows_become_columns_in_the_order_in_which_they_appear() -> None:
    columns = columns_of([{"b": 1}, {"a": 2.5, "b": 3}])
    assert list(columns.items()) == [("b", [1, 3]), ("a", [None, 2.5])]
