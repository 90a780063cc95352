"""What a reader has to know of a number before believing it: marks in the tables, explained below them.

A curve still falls if over its last fifth (at least four epochs) the least-squares line of the held-out error

    e = a + b t,   b < 0,   |b| > 2 se(b),   |b| (t_last - t_first) >= 0.1 points
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sweeps.experiment.metrics import PARAMETERS, VOTE, flags_of
from sweeps.experiment.search import Search, budget, space
from sweeps.results.cell_numbers import CellNumber, ResultTable
from sweeps.results.evidence import CellResults, Floats, Run

ENOUGH: Final = 5  # finished trials from which a chosen dropout is taken as chosen
FALL: Final = 0.1  # points over the last fifth of a curve
# By letter: what it is called, and the sentence below the table.
MARKS: Final = {
    "d": ("diverged", "a training diverged, after all its restarts: it counts with the error of chance"),
    "r": ("restarted", "a training diverged or died and was begun anew with another seed"),
    "u": ("under-trained", "the held-out error was still falling in the last fifth of most of its curves"),
    "1": (
        "one training",
        "n = 1, so the spread between trainings is not known",
    ),
    "e": ("dropout at an edge", "the search chose a rate at the end of its range, so a better one may lie outside"),
    "f": ("few search trials", f"dropout was chosen from fewer than {ENOUGH} trials that finished"),
    "i": ("incomplete", "some of its trainings have no result yet"),
    "x": ("stale", "the data or the code have changed since it was trained"),
    "s": ("embedded pictures", "trained on embedded pictures: no verdict, the paper's numbers are of other data"),
    "o": ("other data", "trained on other data than the paper's: no verdict"),
}


def marks(group: ResultTable, evidence: CellResults | None, ours: CellNumber, search: Search | None) -> tuple[str, ...]:
    """Return the marks of one number: some are of its own runs, some of all that its cell did."""
    if evidence is None or not ours.known:
        return ()
    if ours.metric == PARAMETERS:
        return _data_marks(group, evidence)
    phases = {run.trial.phase for run in ours.runs}
    flags = {flag.partition(":")[0] for run in ours.runs if run.result for flag in flags_of(run.result)}
    found = {
        "d": "diverged" in flags,
        "r": "restarted" in flags,
        "u": under_trained(evidence),
        "1": ours.average.n == 1 and ours.metric != VOTE,
        "e": search is not None and at_edge(evidence, search),
        "f": search is not None and few_trials(evidence, search),
        "i": any(run.result is None for run in evidence.runs if run.trial.phase in phases),
        "x": any(run.state == "stale" for run in ours.runs),
    }
    return (*(mark for mark, there in found.items() if there), *_data_marks(group, evidence))


def _data_marks(group: ResultTable, evidence: CellResults) -> tuple[str, ...]:
    if not group.table or group.comparable:
        return ()
    return ("s",) if evidence.synthetic else ("o",)


def under_trained(evidence: CellResults) -> bool:
    """Tell whether most of a cell's curves still fall; for Single they are those of its first phase."""
    curves = [run.curve for run in curve_runs(evidence)]
    return bool(curves) and 2 * sum(map(still_falling, curves)) > len(curves)


def curve_runs(evidence: CellResults) -> tuple[Run, ...]:
    """Return the runs whose held-out curves stand for a cell: those of its tested networks, else first phases."""
    tested = tuple(run for run in evidence.done("ablation", "fold") if len(run.curve))
    if tested:
        return tested
    references = {run.trial.reference for run in evidence.done("match")}
    first = [run for run in evidence.runs if run.key in references and len(run.curve)]
    winner = evidence.winner
    return tuple(first or ([winner.run] if winner is not None and len(winner.run.curve) else []))


def still_falling(curve: Floats) -> bool:
    """Tell whether the last fifth of a curve of errors (n,) falls; too short a curve tells nothing."""
    tail = curve[-max(4, math.ceil(len(curve) / 5)) :]
    if len(tail) < 4:
        return False
    t = np.arange(len(tail)) - (len(tail) - 1) / 2
    slope = float(t @ tail / (t @ t))
    residual = tail - tail.mean() - slope * t
    se = math.sqrt(float(residual @ residual) / (len(tail) - 2) / float(t @ t))
    return slope < 0 and -slope > 2 * se and -slope * (len(tail) - 1) >= FALL


def at_edge(evidence: CellResults, search: Search) -> bool:
    """Tell whether the chosen dropout lies where its range ends; that no rate is below 0 is no end of a range."""
    winner = evidence.winner
    if winner is None:
        return False
    rates = dict(winner.run.trial.dropout)
    return any(
        rates.get(one.after) == one.high or (one.low > 0 and rates.get(one.after) == one.low)
        for one in space(search, evidence.cell)
    )


def few_trials(evidence: CellResults, search: Search) -> bool:
    """Tell whether too few trials finished to choose by, unless they are all there are on the grid."""
    if not evidence.tried:
        return False
    whole = sum(tried.complete for tried in evidence.tried)
    points = math.prod(round((one.high - one.low) / one.step) + 1 for one in space(search, evidence.cell))
    exhausted = search.sampler == "grid" and whole == points == budget(search, evidence.cell)
    return whole < ENOUGH and not exhausted
