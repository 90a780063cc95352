"""Marks of a number, which a reader has to know before believing it: letters in the tables, explained below them.

A curve still falls if over its last fifth (at least four values) the least-squares line of the held-out error

    e = a + b t,   b < 0,   |b| > 2 se(b),   |b| (t_last - t_first) >= 0.1 points

Of another metric it is the value with the sign by which less is better, and the fall a hundredth of the curve's range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from sweeps.experiment.metrics import (
    PARAMETERS,
    PARTIAL,
    PERCENT,
    VOTE,
    Metric,
    flags_of,
    has_diverged,
    phase_behind,
)
from sweeps.experiment.search import Search, budget, space
from sweeps.experiment.space import Choice
from sweeps.results.cell_numbers import CellNumber, ResultTable, without_spread
from sweeps.results.evidence import LEFT, CellResults, Floats, Run

ENOUGH: Final = 5  # finished or paused trials from which a chosen setting is taken as chosen
FALL: Final = 0.1  # points over the last fifth of a curve
FALL_SHARE: Final = 0.01  # of a curve's range, where its unit is not known
# `still_falling` in words, of what falls and by how much at least.
FALLS: Final = (
    "{} in the last fifth of the epochs, four at least: by {} or more along the straight line through them, whose "
    "slope is more than twice its standard error"
)
# By letter: what it is called, and the sentence below the table.
MARKS: Final = {
    "d": ("diverged", "a training diverged or died, after all its restarts: it counts with the error of chance"),
    "m": ("missing", "a training failed at all its attempts, or has a damaged file: n leaves it out"),
    "c": ("cut short", "given up before all of its trainings; the failures or its search name the reason"),
    "r": ("restarted", "a training diverged or died and was begun anew with another seed"),
    "u": ("under-trained", FALLS.format("the held-out error of most of its curves fell", f"{FALL:g} points")),
    "1": (
        "one training",
        "n = 1, so the spread between trainings is not known",
    ),
    "=": ("equal trainings", "all of its trainings have the same number, so their spread is not known: no interval"),
    "e": ("search at an edge", "the search chose a value at the end of its range, so a better one may lie outside"),
    "f": (
        "few search trials",
        f"the search chose from fewer than {ENOUGH} trials that finished or paused within its limits",
    ),
    "i": ("incomplete", "some of its trainings have no result yet"),
    "x": ("stale", "the data or the code have changed since it was trained"),
    "p": ("partial data", "trained on a part of the published data set, or on other files by its name: no verdict"),
    "a": (
        "approximate resume",
        "it drew randomness that no key decides, or was resumed with another device, precision, kernels or ranks, or "
        "by a training function that does not say run.exact(): undisturbed, its numbers may differ",
    ),
    "s": ("embedded pictures", "trained on embedded pictures: no verdict, the paper's numbers are of other data"),
    "o": ("other data", "trained on other data than the paper's: no verdict"),
}


def marks(table: ResultTable, cell: CellResults | None, ours: CellNumber, search: Search | None) -> tuple[str, ...]:
    """Return the marks of one number: of its own runs, of its cell's search and curves, of its data."""
    if cell is None:
        return ()
    if not ours.known:
        return tuple(mark for mark in lost_marks(cell, ours.metric) if mark != "d" or cell.cell.metric.is_own)
    of_data = () if not table.table or table.comparable else ("s",) if cell.synthetic else ("o",)
    if ours.metric == PARAMETERS:
        return of_data
    flags = {flag.partition(":")[0] for run in ours.runs if run.result for flag in flags_of(run.result)}
    apply = {
        **{mark: mark in lost_marks(cell, ours.metric) for mark in "dmc"},
        "r": "restarted" in flags,
        "u": under_trained(cell),
        "1": ours.average.n == 1 and ours.metric != VOTE,
        "=": ours.average.n > 1 and ours.metric != VOTE and bool(without_spread(ours.average)),
        "e": search is not None and at_edge(cell, search),
        "f": search is not None and few_trials(cell, search),
        "i": is_incomplete(cell, ours),
        "x": bool(stale_marks(ours.runs)),
        "p": PARTIAL in flags,
        "a": "resume=approximate" in flags,
    }
    return (*(mark for mark, applies in apply.items() if applies), *of_data)


def explanation(mark: str, metric: Metric = PERCENT) -> str:
    """Return the sentence that explains a mark below a table of this metric."""
    if metric.is_own and mark == "d":
        counts = "has no number, and n leaves it out" if metric.chance is None else f"counts with {metric.chance:g}"
        return f"a training diverged, after all its restarts: it {counts}"
    if metric.is_own and mark == "u":
        least = f"{100 * FALL_SHARE:g} % of the curve's range"
        return FALLS.format(f"the held-out {metric.short} of most of its curves got better", least)
    if metric.is_own and mark == "a":
        return (
            "a training was resumed from a checkpoint, with another device, kernels or ranks, or by a function that "
            "does not say (run.exact()) that it then ends with the same numbers"
        )
    return MARKS[mark][1]


def lost_marks(cell: CellResults, metric: str) -> tuple[str, ...]:
    """Return the marks of trials behind a number that diverged (d), failed (m) or were skipped (c).

    A cell that was given up before any of them is cut short too: its search, or its learning rate, came to nothing.
    """
    if metric == PARAMETERS:
        return ()
    chooses = metric == cell.cell.metric.held_out
    runs = cell.winner.runs if chooses and cell.winner is not None else cell.behind(metric)
    apply = {
        "d": any(has_diverged(run.result) for run in runs),
        "m": any(run.state == "failed" for run in runs),
        "c": any(run.state == "skipped" for run in runs) or bool(cell.given_up and not runs),
    }
    return tuple(mark for mark, applies in apply.items() if applies)


def stale_marks(runs: Iterable[Run]) -> tuple[str, ...]:
    """Return the mark of a number with a training that is stale, none where all are current."""
    return ("x",) if any(run.state == "stale" for run in runs) else ()


def is_incomplete(cell: CellResults, ours: CellNumber) -> bool:
    """Return whether a training behind a number is still to be trained, be it one that follows once others ended.

    Until its second phases are there, Single is the number of an ablation, which is not the one that it will be.
    """
    phases = {run.trial.phase for run in ours.runs}
    if ours.metric != cell.cell.metric.held_out:
        phases.add(phase_behind(ours.metric, {run.trial.phase for run in cell.runs} | set(cell.pending)))
    is_left = any(run.state in LEFT for run in cell.runs if run.trial.phase in phases)
    return is_left or any(cell.pending.get(phase) for phase in phases)


def under_trained(cell: CellResults) -> bool:
    """Return whether most of a cell's curves still fall; for Single they are those of its first phase."""
    metric = cell.cell.metric
    sign = -1 if metric.better == "higher" else 1
    runs = curve_runs(cell)
    least = [FALL_SHARE * float(np.ptp(run.curve)) if metric.is_own else FALL for run in runs]
    falls = [still_falling(sign * run.curve, fall, run.epochs) for run, fall in zip(runs, least, strict=True)]
    return bool(falls) and 2 * sum(falls) > len(falls)


def curve_runs(cell: CellResults) -> tuple[Run, ...]:
    """Return the runs whose held-out curves stand for a cell: its tested networks, first phases, or search winner."""
    references = {run.trial.reference for run in cell.done("match")}
    first_phases = [run for run in cell.runs if run.key in references]
    for runs in (cell.done("ablation", "fold"), first_phases, [cell.winner.run] if cell.winner is not None else []):
        if curves := tuple(run for run in runs if len(run.curve)):
            return curves
    return ()


def still_falling(curve: Floats, least: float = FALL, epochs: Sequence[int] = ()) -> bool:
    """Return whether the last fifth of a curve (n,) falls by `least`; not of a curve of less than four values.

    The values are those of `epochs`, of each epoch where none are given.
    """
    if len(curve) < 4:
        return False
    at = np.asarray(epochs or range(1, len(curve) + 1), np.float64)
    count = max(4, int((at > at[-1] - math.ceil(at[-1] / 5)).sum()))
    tail = curve[-count:]
    t = at[-count:] - at[-count:].mean()
    slope = float(t @ tail / (t @ t))
    residual = tail - tail.mean() - slope * t
    se = math.sqrt(float(residual @ residual) / (len(tail) - 2) / float(t @ t))
    return slope < 0 and -slope > 2 * se and -slope * float(t[-1] - t[0]) >= least


def at_edge(cell: CellResults, search: Search) -> bool:
    """Return whether a chosen number lies where its range ends; 0 is no end of a range."""
    chosen = dict(cell.winner.run.trial.chosen) if cell.winner is not None else {}
    ranges = [axis for axis in space(search, cell.cell) if not isinstance(axis.domain, Choice)]
    return any(chosen.get(axis.name, 0.0) in axis.domain.ends() and chosen.get(axis.name, 0.0) != 0 for axis in ranges)


def few_trials(cell: CellResults, search: Search) -> bool:
    """Return whether too few search trials finished to choose by, unless they are the whole grid."""
    finished = sum(point.state in ("finished", "paused") for point in cell.tried_once)
    points = math.prod(len(axis.domain.values()) for axis in space(search, cell.cell))
    exhausted = search.sampler == "grid" and finished == points == budget(search, cell.cell)
    return bool(cell.tried) and finished < ENOUGH and not exhausted
