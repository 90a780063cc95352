"""Differences of two cells: paired over folds or seeds where both have them, else over pictures.

folds     paired differences, corrected after Nadeau and Bengio; the plain test and Wilcoxon's stand beside it
seeds     paired differences; as many degrees of freedom as seeds, less one
pictures  two votes: not tested. McNemar's exact test is shown, which speaks of these networks on other pictures, not of
          other trainings: votes that differ by the noise of training alone, .1 point, reject in 12 % of cases
exact     counts of a net, which have no spread
always 0  top-5 errors of five classes or fewer: not tested
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from crelu_models.model import Model
from sweeps.experiment.metrics import PARAMETERS, TOP1, TOP1_TEN, TRAIN, VOTE
from sweeps.results.cell_numbers import UNKNOWN, VOTING, ResultTable, Row, folds_of, is_always_zero, number, runs_of
from sweeps.results.decisions import Predictions
from sweeps.results.evidence import CellResults, Run
from sweeps.results.paper import CHANNELS
from sweeps.results.statistics import Interval, McNemar, holm, mcnemar_exact, paired, seeds_needed

Basis = Literal["folds", "seeds", "pictures", "exact", "one training", "always 0", "not run"]
UNTESTED: Final[tuple[Basis, ...]] = ("pictures", "always 0")  # shown, and no part of any family or decision
NO_HOURS: Final[Mapping[str, float]] = {}
VIEWS: Final = {TOP1: "centre", TOP1_TEN: "ten_softmax", VOTE: VOTING}


class Contrast(NamedTuple):
    """A difference, row minus rival, with the test that decides it; p is not yet adjusted, nan without a test.

    `plain_p` and `rank_p` are the uncorrected paired t's and Wilcoxon's; `pictures` compares two networks, or two
    votes, on the same pictures; `sd` is that of the n paired differences. `hours` is what one more training of each
    side costs, by cell and phase; `folds` is the size of the partition that the runs are folds of, 0 for seeds.
    `is_shared` says that a side has further trainings, which the other one lacks.
    """

    metric: str
    difference: float
    basis: Basis
    interval: Interval = UNKNOWN
    t: float = math.nan
    p: float = math.nan
    plain_p: float = math.nan
    rank_p: float = math.nan
    n: int = 0
    sd: float = math.nan
    pictures: McNemar | None = None
    runs: tuple[Run, ...] = ()
    hours: Mapping[str, float] = NO_HOURS
    folds: int = 0
    is_shared: bool = False

    @property
    def lacks_spread(self) -> bool:
        """Return whether its spread is not known: of one training a side, or of differences that are all equal."""
        return self.basis == "one training" or (self.basis in ("seeds", "folds") and self.sd == 0)

    @property
    def over(self) -> str:
        """Return in words what it rests on."""
        if self.basis in ("folds", "seeds"):
            return f"{self.n} {self.basis}"
        one = f"one shared {self.unit}" if self.is_shared else "one training each"
        words = {"pictures": "test pictures", "exact": "exact counts", "one training": one}
        return words.get(self.basis, self.basis)

    @property
    def unit(self) -> Literal["fold", "seed"]:
        """Return what one more training of each side would be."""
        return "fold" if self.folds else "seed"


def contrast(
    row: CellResults | None, rival: CellResults | None, metric: str, rival_metric: str = "", scale: float = 1.0
) -> Contrast:
    """Compare a metric of two cells, or two metrics of one cell; `scale` multiplies the rival's."""
    if row is None or rival is None:
        return Contrast(metric, math.nan, "not run")
    if metric == PARAMETERS or metric.startswith(CHANNELS):
        return _counts(metric, row, rival, scale)
    if metric == VOTE:
        return _votes(row, rival)
    if is_always_zero(row, metric) and is_always_zero(rival, metric):
        return Contrast(metric, 0.0, "always 0")
    ours, theirs = runs_of(row, metric), runs_of(rival, rival_metric or metric)
    pairs = sorted(ours.keys() & theirs.keys())
    if not pairs:
        return Contrast(metric, math.nan, "not run")
    hours = seed_hours(row, metric) | seed_hours(rival, metric)
    test = _paired(metric, [(*ours[pair], *theirs[pair]) for pair in pairs], scale, hours)
    if max(len(ours), len(theirs)) > 1:
        test = test._replace(pictures=None)  # no one of several networks stands for a cell
    return test._replace(is_shared=max(len(ours), len(theirs)) > len(pairs))


def _paired(
    metric: str, pairs: Sequence[tuple[Run, float, Run, float]], scale: float, hours: Mapping[str, float]
) -> Contrast:
    a, b = [value for _, value, _, _ in pairs], [scale * value for _, _, _, value in pairs]
    runs = tuple({run.key: run for run in [pair[0] for pair in pairs] + [pair[2] for pair in pairs]}.values())
    first, _, second, _ = pairs[0]
    folds = folds_of([first])
    if len(pairs) == 1:
        # No one fold's network stands for a cell; the folds' votes are compared on pictures instead.
        comparable = first is not second and not folds
        pictures = _mcnemar(first.decisions, second.decisions, VIEWS.get(metric, "")) if comparable else None
        return Contrast(
            metric, a[0] - b[0], "one training", n=1, pictures=pictures, runs=runs, hours=hours, folds=folds
        )  # fmt: skip
    tested = paired(a, b, 1 / folds if folds else None)
    test = tested.corrected
    return Contrast(
        metric, tested.difference, "folds" if folds else "seeds", test.interval, test.t, test.p, tested.plain.p,
        tested.signed_rank_p, len(pairs), sd=tested.sd, runs=runs, hours=hours, folds=folds,
    )  # fmt: skip


def contrast_with(row: CellResults | None, metric: str, value: float) -> Contrast:
    """Compare a metric of a cell with a number that has no spread: one of the literature, or a bound."""
    if row is None:
        return Contrast(metric, math.nan, "not run")
    if metric == PARAMETERS:
        return _exact(metric, row.parameters - value, (row,))
    pairs = [(run, error, run, value) for run, error in runs_of(row, metric).values()]
    return _paired(metric, pairs, 1.0, seed_hours(row, metric)) if pairs else Contrast(metric, math.nan, "not run")


def _counts(metric: str, row: CellResults, rival: CellResults, scale: float) -> Contrast:
    ours, theirs = row.parameters, rival.parameters
    if metric.startswith(CHANNELS):
        ours, theirs = (_channels(cell, metric.removeprefix(CHANNELS)) for cell in (row, rival))
    return _exact(metric, ours - scale * theirs, (row, rival))


def _channels(cell: CellResults, layer: str) -> float:
    """Return how many channels a layer hands to the next one, behind its activation; nan where it has no such layer."""
    net = cell.cell.net
    channels = {} if isinstance(net, Model) else {name: count for name, count, _ in net.shapes(cell.classes or 1)}
    return float(channels.get(layer, math.nan))


def _exact(metric: str, difference: float, cells: Sequence[CellResults]) -> Contrast:
    if math.isnan(difference):
        return Contrast(metric, math.nan, "not run")
    runs = tuple(run for cell in cells for run in cell.runs if run.result)
    return Contrast(metric, difference, "exact", Interval(difference, difference), n=1, runs=runs)


def has_other_folds(row: CellResults, rival: CellResults) -> bool:
    """Return whether the votes of two cells are of different folds, so that one is of more networks, or of others."""
    folds = [{(run.trial.folds, run.trial.fold) for run in number(cell, VOTE).runs} for cell in (row, rival)]
    return all(folds) and folds[0] != folds[1]


def _votes(row: CellResults, rival: CellResults) -> Contrast:
    if has_other_folds(row, rival):
        return Contrast(VOTE, math.nan, "not run")
    test = _mcnemar(row.vote, rival.vote, VIEWS[VOTE])
    if test is None:
        return Contrast(VOTE, math.nan, "not run")
    runs = (*number(row, VOTE).runs, *number(rival, VOTE).runs)
    return Contrast(VOTE, test.difference, "pictures", test.interval, n=1, pictures=test, runs=runs)


def _mcnemar(a: Predictions | None, b: Predictions | None, kind: str) -> McNemar | None:
    """Compare two networks on the same pictures; None where they did not see the same ones."""
    if a is None or b is None or kind not in a.chosen or kind not in b.chosen:
        return None
    if not (np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels)):
        return None
    return mcnemar_exact(a.right(kind), b.right(kind))


def seed_hours(cell: CellResults, metric: str) -> dict[str, float]:
    """Return the hours of one more value of a metric, as its trainings have taken, under its cell and phase."""
    runs = [run for run, _ in runs_of(cell, metric).values()]
    if not runs:
        return {}
    references = {run.trial.reference for run in runs}
    first_phases = [run for run in cell.runs if run.key in references]
    return {f"{cell.cell.key} {runs[0].trial.phase}": _mean_hours(runs) + _mean_hours(first_phases)}


def _mean_hours(runs: Sequence[Run]) -> float:
    hours = [float(run.result["seconds"]) / 3600 for run in runs if run.result]
    return sum(hours) / len(hours) if hours else 0.0


def more_trainings(contrast: Contrast, family: int, margin: float = 0.0, alpha: float = 0.05) -> int | None:
    """Count the further seeds, or folds, that would decide a contrast one time in 1.25; None where none would.

    There are no more folds than the partition has: another partition would be other trainings. With one training a
    side, or differences that are all equal, the spread is not known, and 2 are asked for to learn it. In a family of m
    comparisons each is planned at alpha / m. For "within" the distance to find is that from the difference to the
    margin.
    """
    if contrast.lacks_spread:
        left = contrast.folds - contrast.n if contrast.folds else 2
        return min(2, left) or None
    if contrast.basis not in ("seeds", "folds"):
        return None
    distance = margin - abs(contrast.difference) if margin else contrast.difference
    fraction = 1 / contrast.folds if contrast.folds else None
    level = alpha / max(family, 1)
    most = contrast.folds or 1000
    return seeds_needed(contrast.sd, distance, level, have=contrast.n, most=most, test_fraction=fraction) or None


class Effect(NamedTuple):
    """A row of a table against its reference, in one metric; `p` adjusted after Holm over the table, nan for votes."""

    row: Row
    reference: Row
    contrast: Contrast
    p: float


def effects(table: ResultTable) -> list[Effect]:
    """Compare every row of a table that has runs with its references, in each error it has."""
    pairs = compared([row for row in table.rows if _has_runs(row)])
    metrics = [metric for metric in table.metrics if metric not in (TRAIN, PARAMETERS)]
    contrasts = [(pair, contrast(pair[0].results, pair[1].results, metric)) for metric in metrics for pair in pairs]
    known = [(pair, effect) for pair, effect in contrasts if effect.basis not in ("not run", "always 0")]
    adjusted = holm([effect.p for _, effect in known])
    return [Effect(*pair, effect, float(p)) for (pair, effect), p in zip(known, adjusted, strict=True)]


def votes_apart(table: ResultTable) -> list[tuple[Row, Row]]:
    """Return the rows with a reference whose vote is of other folds, so that their votes are not compared."""
    pairs = compared([row for row in table.rows if _has_runs(row)]) if VOTE in table.metrics else []
    return [(row, other) for row, other in pairs if row.results and other.results
            and has_other_folds(row.results, other.results)]  # fmt: skip


def compared(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the rows with their references: the first row, and the one that a row's cell names; no two cells twice."""
    pairs: dict[frozenset[str], tuple[Row, Row]] = {}
    for row in (*rows[1:], *rows[:1]):
        for reference in (rows[0], row.versus):
            if reference is not None and _has_runs(reference) and reference.key != row.key:
                pairs.setdefault(frozenset((row.key, reference.key)), (row, reference))
    return list(pairs.values())


def without_runs(table: ResultTable) -> list[str]:
    """Return the labels of the cells that have no result yet, which are compared with nothing."""
    return [row.label for row in table.rows if row.results is not None and not _has_runs(row)]


def _has_runs(row: Row) -> bool:
    return row.results is not None and bool(row.results.tested)
