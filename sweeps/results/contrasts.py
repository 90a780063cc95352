"""How two cells differ: paired over folds or seeds where both have them, over pictures where each is one number.

folds     paired differences, corrected after Nadeau and Bengio; the plain test and Wilcoxon's stand beside it
seeds     paired differences; as many degrees of freedom as seeds, less one
pictures  McNemar's exact test: of these very networks on other pictures, not of other trainings
exact     parameter counts, which have no spread
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from sweeps.experiment.metrics import PARAMETERS, TOP1, TOP1_TEN, TRAIN, VOTE
from sweeps.results.cell_numbers import UNKNOWN, VOTING, ResultTable, Row, number, runs_of
from sweeps.results.decisions import Predictions
from sweeps.results.evidence import CellResults, Run
from sweeps.results.statistics import Interval, McNemar, holm, mcnemar_exact, paired, seeds_needed

Basis = Literal["folds", "seeds", "pictures", "exact", "one training", "not run"]
NO_HOURS: Final[Mapping[str, float]] = {}
VIEWS: Final = {TOP1: "centre", TOP1_TEN: "ten_softmax", VOTE: VOTING}


class Contrast(NamedTuple):
    """A difference, row minus rival, with the test that decides it; p is not yet adjusted, nan where none tells.

    `plain_p` and `rank_p` are the uncorrected paired t's and Wilcoxon's; `pictures` compares two networks, or two
    votes, on the same pictures; `sd` is that of the n paired differences. `hours` is what one more training of each
    side costs, by cell and phase.
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


def contrast(
    row: CellResults | None, rival: CellResults | None, metric: str, rival_metric: str = "", scale: float = 1.0
) -> Contrast:
    """Compare a metric of two cells, or two metrics of one cell; `scale` multiplies the rival's."""
    against = rival_metric or metric
    if row is None or rival is None:
        return Contrast(metric, math.nan, "not run")
    if metric == PARAMETERS:
        return _counts(row, rival, scale)
    if metric == VOTE:
        return _votes(row, rival)
    ours, theirs = runs_of(row, metric), runs_of(rival, against)
    pairs = sorted(ours.keys() & theirs.keys())
    if not pairs:
        return Contrast(metric, math.nan, "not run")
    return _paired(metric, [ours[pair] for pair in pairs], [theirs[pair] for pair in pairs], scale,
                   seed_hours(row, metric) | seed_hours(rival, metric))  # fmt: skip


def _paired(
    metric: str,
    ours: Sequence[tuple[Run, float]],
    theirs: Sequence[tuple[Run, float]],
    scale: float,
    hours: Mapping[str, float],
) -> Contrast:
    a, b = [value for _, value in ours], [scale * value for _, value in theirs]
    runs = tuple({run.key: run for run, _ in (*ours, *theirs)}.values())
    (first, _), (second, _) = ours[0], theirs[0]
    seen = None if first is second else _mcnemar(first.decisions, second.decisions, VIEWS.get(metric, ""))
    if len(a) == 1:
        return Contrast(metric, a[0] - b[0], "one training", n=1, pictures=seen, runs=runs, hours=hours)
    folds = first.trial.folds if first.trial.phase == "fold" else 0
    found = paired(a, b, 1 / folds if folds else None)
    test, plain_p, rank_p = found.corrected, found.plain.p, found.signed_rank_p
    sd = float(np.std(np.subtract(a, b), ddof=1))
    basis: Basis = "folds" if folds else "seeds"
    # Of ten folds no one network stands for the cell; their votes are compared on pictures instead.
    shown = None if folds else seen
    return Contrast(
        metric, found.difference, basis, test.interval, test.t, test.p, plain_p, rank_p, len(a), sd, shown, runs, hours
    )


def _counts(row: CellResults, rival: CellResults, scale: float) -> Contrast:
    difference = row.parameters - scale * rival.parameters
    runs = tuple(run for evidence in (row, rival) for run in evidence.runs if run.result)
    exact = Interval(difference, difference)
    return Contrast(PARAMETERS, difference, "exact", exact, n=1, runs=runs)


def _votes(row: CellResults, rival: CellResults) -> Contrast:
    seen = _mcnemar(row.vote, rival.vote, VIEWS[VOTE])
    if seen is None:
        return Contrast(VOTE, math.nan, "not run")
    runs = (*number(row, VOTE).runs, *number(rival, VOTE).runs)
    return Contrast(VOTE, seen.difference, "pictures", seen.interval, p=seen.p, n=1, pictures=seen, runs=runs)


def _mcnemar(a: Predictions | None, b: Predictions | None, kind: str) -> McNemar | None:
    """Compare two networks on the same pictures; None where they did not see the same ones."""
    if a is None or b is None or kind not in a.chosen or kind not in b.chosen or not np.array_equal(a.ids, b.ids):
        return None
    return mcnemar_exact(a.right(kind), b.right(kind))


def seed_hours(evidence: CellResults, metric: str) -> dict[str, float]:
    """Return the hours of one more value of a metric, as its trainings have taken, under its cell and phase."""
    found = [run for run, _ in runs_of(evidence, metric).values()]
    if not found:
        return {}
    seconds = [float(run.result["seconds"]) for run in found if run.result]
    first = {run.trial.reference for run in found} - {""}
    before = [float(run.result["seconds"]) for run in evidence.runs if run.key in first and run.result]
    one = sum(seconds) / len(seconds) + (sum(before) / len(before) if before else 0.0)
    return {f"{evidence.cell.key} {found[0].trial.phase}": one / 3600}


def more_seeds(found: Contrast, family: int, margin: float = 0.0, alpha: float = 0.05) -> int | None:
    """Count the further seeds that would decide a contrast one time in 1.25; None where seeds would not.

    With one training a side the spread is not known, so 2 are asked for to learn it. In a family of m comparisons
    each is planned at alpha / m. For "within" the distance to find is that from the difference to the margin.
    """
    if found.basis == "one training":
        return 2
    if found.basis not in ("seeds", "folds") or not found.sd > 0:
        return None
    distance = margin - abs(found.difference) if margin else found.difference
    return seeds_needed(found.sd, distance, alpha / max(family, 1), have=found.n, most=1000)


class Effect(NamedTuple):
    """A row of a table against its reference, in one metric; `p` adjusted after Holm over the whole table."""

    row: Row
    reference: Row
    contrast: Contrast
    p: float


def effects(group: ResultTable) -> list[Effect]:
    """Compare every row of a table that has runs with the first one, in each error it has."""
    rows = [row for row in group.rows if row.evidence is not None and row.evidence.tested]
    found: list[tuple[Row, Contrast]] = []
    for metric in group.metrics:
        if metric not in (TRAIN, PARAMETERS):
            found += [(row, contrast(row.evidence, rows[0].evidence, metric)) for row in rows[1:]]
    found = [(row, one) for row, one in found if one.basis != "not run"]
    adjusted = holm([one.p for _, one in found])
    return [Effect(row, rows[0], one, float(p)) for (row, one), p in zip(found, adjusted, strict=True)]


def over(basis: str, n: int) -> str:
    """Return what a comparison rests on."""
    if basis in ("folds", "seeds"):
        return f"{n} {basis}"
    return {"pictures": "test pictures", "exact": "exact counts", "one training": "one training each"}.get(basis, basis)
