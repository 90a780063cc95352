"""Decisions of networks, the class that each test picture gets: from tables of scores, or from a capsule's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweeps.experiment.wording import count
from sweeps.results.statistics import votes
from sweeps.store.ledger import Ledger

VIEWS: Final = ("centre", "ten_softmax")

COLUMNS: Final = 16  # of a table of decisions or scores, at most
KEY: Final = "trial_key"  # the one column of texts, which is not read

Ints = NDArray[np.int64]


class Predictions(NamedTuple):
    """Classes (n,) that networks give each test picture, by kind of view or of vote, in order of `ids`."""

    ids: Ints
    labels: Ints
    classes: int
    chosen: Mapping[str, Ints]

    def right(self, kind: str) -> NDArray[np.bool_]:
        """Return which pictures (n,) get their own class."""
        right: NDArray[np.bool_] = self.chosen[kind] == self.labels
        return right

    def wrong(self, kind: str) -> int:
        """Count the pictures that get another class than their own."""
        return len(self.ids) - int(self.right(kind).sum())

    def error(self, kind: str) -> float:
        """Return the error in percent."""
        return 100 * self.wrong(kind) / len(self.ids)


class Scores(NamedTuple):
    """Scores (n, c) of one network by kind of view, in order of the pictures' ids."""

    ids: Ints
    labels: Ints
    views: Mapping[str, NDArray[np.floating[Any]]]

    def decide(self) -> Predictions:
        """Return the class of the highest score, of equal ones the first."""
        chosen = {view: x.argmax(axis=1).astype(np.int64) for view, x in self.views.items()}
        return Predictions(self.ids, self.labels, self.views["centre"].shape[1], chosen)


def read_decisions(ledger: Ledger, folder: str) -> Predictions | None:
    """Return the decisions in `folder`, else those of its table of scores, else None."""
    table = _table(ledger, f"{folder}/decisions.parquet", ())
    if table is None:
        scores = read_scores(ledger, folder)
        return None if scores is None else scores.decide()
    classes = int((table.schema.metadata or {})[b"classes"])
    kinds = [name for name in table.column_names if name not in ("id", "label")]
    chosen = {name: _column(table, name) for name in kinds}
    return Predictions(_column(table, "id"), _column(table, "label"), classes, chosen)


def read_scores(ledger: Ledger, folder: str) -> Scores | None:
    """Return the scores in `folder`, None where there are none."""
    table = _table(ledger, f"{folder}/scores.parquet", VIEWS)
    if table is None:
        return None
    ids, labels = _column(table, "id"), _column(table, "label")
    views = {view: _matrix(table, view) for view in VIEWS if view in table.column_names}
    if np.all(np.diff(ids) > 0):
        return Scores(ids, labels, views)
    order = np.argsort(ids, kind="stable")
    return Scores(ids[order], labels[order], {view: x[order] for view, x in views.items()})


def read_vote(
    ledger: Ledger, folder: str, members: Sequence[str], guesses: int = 0
) -> tuple[list[Predictions | None], Predictions | None]:
    """Return the decisions of the networks whose tables lie in `members`, each alone, and together by method of voting.

    `guesses` more networks have diverged: they give every class the same score. A vote in `folder` is taken as it is.
    Fewer than two networks have none, nor do networks on different pictures.
    """
    if _table(ledger, f"{folder}/decisions.parquet", ()) is not None:
        return [read_decisions(ledger, member) for member in members], read_decisions(ledger, folder)
    tables = [read_scores(ledger, member) for member in members]
    alone = [None if scores is None else scores.decide() for scores in tables]
    voters = [scores for scores in tables if scores is not None]
    if (
        not voters
        or len(voters) + guesses < 2
        or not all(np.array_equal(scores.ids, voters[0].ids) for scores in voters)
    ):
        return alone, None
    x = np.stack([scores.views["centre"] for scores in voters])
    x = np.concatenate([x, np.zeros((guesses, *x.shape[1:]), x.dtype)])
    chosen = {str(method): classes.astype(np.int64) for method, classes in votes(x).items()}
    return alone, Predictions(voters[0].ids, voters[0].labels, x.shape[2], chosen)


def _table(ledger: Ledger, name: str, views: Sequence[str]) -> Any:
    """Return id, label and `views` (all columns, where none is named) of a Parquet file; None where there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = ledger.path(name)
    if ledger.local:
        if not Path(source).is_file():
            return None
        size = Path(source).stat().st_size
    else:
        content = ledger.read(name)
        if content is None:
            return None
        source = pa.BufferReader(content)
        size = len(content)
    try:
        file = pq.ParquetFile(source)
        _check_size(file, size, ledger.path(name))
        columns = [column for column in ("id", "label", *views) if column in file.schema_arrow.names]
        return file.read(columns=columns if views else None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{ledger.path(name)} is not a whole Parquet file: {error}") from None


def _check_size(file: Any, size: int, path: str) -> None:
    """Raise ValueError for a table that is larger in memory than any of its `size` in bytes: few bytes can say much.

    A row of ours takes three bytes or more. A text repeated in every row would take any room.
    """
    import pyarrow as pa

    kinds = [kind.value_type if pa.types.is_fixed_size_list(kind) else kind for kind in file.schema_arrow.types]
    numbers = [kind for kind in kinds if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    if file.metadata.num_rows > size or len(kinds) > COLUMNS:
        raise ValueError(
            f"{path} says that it has {count(file.metadata.num_rows, 'row')} of {len(kinds)} columns in "
            f"{count(size, 'byte')}"
        )
    if len(kinds) - len(numbers) > (KEY in file.schema_arrow.names):
        raise ValueError(f"{path} has columns that are no numbers")


def _column(table: Any, name: str) -> Ints:
    return np.asarray(table.column(name).to_numpy(), np.int64)


def _matrix(table: Any, name: str) -> NDArray[np.floating[Any]]:
    """Return a column of fixed-size lists as (n, c)."""
    column = table.column(name).combine_chunks()
    flat: NDArray[np.floating[Any]] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1)
