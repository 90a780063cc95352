"""Metric names, and the rule that says which trials make a cell's number.

A cell's number is over its trials of one phase, and its name says which:

    final/NAME       Single: one training a seed. Second phases where the cell has any, else ablations
    agg/NAME_mean    Average: final/NAME over the folds' networks
    agg/NAME_vote    Vote: the folds' networks together, by their scores
    any other        an analysis of weights: Single's, else the folds'
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sweeps.experiment.wording import plural
from sweeps.store.ledger import Json

TRAIN: Final = "final/train_top1_err"  # of the second phase of Single, on the pictures it learned from
TOP1: Final = "final/test_top1_err"  # one network; ImageNet: one centre crop
TOP5: Final = "final/test_top5_err"
TOP1_TEN: Final = "final/test_top1_err_10crop"  # the columns with a dagger
TOP5_TEN: Final = "final/test_top5_err_10crop"
AVERAGE: Final = "agg/test_top1_err_mean"
VOTE: Final = "agg/test_top1_err_vote"
PARAMETERS: Final = "net/parameters_millions"
HELD_OUT: Final = "best/val_top1_err"

PARTIAL: Final = "partial data"  # flag of a training on a part of a published data set

TEST_ERROR: Final = re.compile(r"final/test_top\d+_err(_10crop)?")
OVER_FOLDS: Final = re.compile(r"agg/(\w+)_(mean|vote)")

Tested = tuple[str, Mapping[str, float]]  # the phase of a finished trial, and the metrics of its result


class Average(NamedTuple):
    """Hold the mean of n values and its standard error, nan where there is none: of one value, of a vote."""

    mean: float
    se: float
    n: int

    def as_json(self) -> Json:
        """Return it as JSON, None for what is not known."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.se:.2f} (n {self.n})" if math.isfinite(self.se) else "")


def average(values: Sequence[float]) -> Average:
    """Average values; the standard error is their deviation (over n - 1) divided by sqrt(n)."""
    n = len(values)
    se = statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return Average(statistics.fmean(values) if n else math.nan, se, n)


def phase_behind(metric: str, finished: Collection[str]) -> str:
    """Return the phase whose trials make a cell's number; `finished` are the phases in which it has results."""
    if OVER_FOLDS.fullmatch(metric):
        return "fold"
    if metric == TRAIN or "match" in finished:
        return "match"
    return "ablation" if "ablation" in finished or metric.startswith("final/") else "fold"


def measured_as(metric: str) -> str:
    """Return the name under which a trial has its part of a cell's number."""
    folds = OVER_FOLDS.fullmatch(metric)
    return f"final/{folds[1]}" if folds else metric


def cell_average(trials: Sequence[Tested], metric: str) -> Average:
    """Return a number of a cell from its finished trials; n is 0 where none of them makes it."""
    phase = phase_behind(metric, {phase for phase, _ in trials})
    name = measured_as(metric)
    return average([metrics[name] for other, metrics in trials if other == phase and name in metrics])


def averages(trials: Sequence[Tested]) -> dict[str, float]:
    """Return mean, standard error and count of a cell's test errors, by MLflow's names for them.

    `agg/NAME_mean` is Average where the cell has folds, with Single as `agg/NAME_single_mean`; else it is Single.
    Losses stay on the trials' runs: each name here is a chart in the UI.
    """
    numbers: dict[str, Average] = {}
    for name in sorted({name for _, metrics in trials for name in metrics if TEST_ERROR.fullmatch(name)}):
        base = name.replace("final/", "agg/")
        folds, single = cell_average(trials, f"{base}_mean"), cell_average(trials, name)
        numbers |= {base: folds, f"{base}_single": single} if folds.n else {base: single}
    known: dict[str, float] = {}
    for base, (mean, se, n) in numbers.items():
        known |= {f"{base}_mean": mean, f"{base}_n": float(n)} if n else {}
        known |= {f"{base}_se": se} if n > 1 else {}
    return known


def error_text(trials: Sequence[Tested]) -> str:
    """Return a cell's test errors in a line: Single's, and the average over folds where it has folds."""
    single, folds = cell_average(trials, TOP1), cell_average(trials, AVERAGE)
    if not folds.n:
        return str(single) if single.n else ""
    return f"single {single}, folds {folds}" if single.n else f"folds {folds}"


def has_diverged(result: Json | None) -> bool:
    """Return whether a result is that of a training that diverged or died after all its restarts: a guess."""
    return result is not None and result.get("status") == "diverged"


def has_died(result: Json | None) -> bool:
    """Return whether a training with this result ended at chance, its loss a number to the end."""
    return has_diverged(result) and (result or {}).get("ending") == "dead"


def ending_word(result: Json) -> str:
    """Return how a training ended in a word: finished, pruned, diverged or dead."""
    return "dead" if has_died(result) else str(result["status"])


# What a trial is to its cell's numbers, by phase; search trials left out.
PARTS: Final = {"ablation": "seed", "holdout": "first phase", "match": "second phase", "fold": "fold"}
Stand = tuple[str, str, Json | None]  # of a trial: its phase, its state, its result


def lost_text(trials: Iterable[Stand]) -> str:
    """Return what of a cell's trials trained nothing: "1 of 10 folds diverged, 1 of 3 seeds died"; empty for none."""
    by_phase: dict[str, list[Stand]] = {}
    for trial in trials:
        by_phase.setdefault(trial[0], []).append(trial)
    parts = []
    for phase, part in PARTS.items():
        stands = by_phase.get(phase, [])
        lost = {
            "diverged": sum(has_diverged(result) and not has_died(result) for _, _, result in stands),
            "died": sum(has_died(result) for _, _, result in stands),
            "failed": sum(state == "failed" for _, state, _ in stands),
            "skipped": sum(state == "skipped" for _, state, _ in stands),
        }
        of = f"of {len(stands)} {plural(len(stands), part)}"
        words = [f"{number} {word}" for word, number in lost.items() if number]
        if words:
            first, *others = words
            number, _, word = first.partition(" ")
            parts.append(", ".join([f"{number} {of} {word}", *others]))
    return ", ".join(parts)


def flags_of(result: Json) -> list[str]:
    """Return what a reader must know of a result before believing it.

    Such as diverged, dead, restarted:TIMES, partial data, resume=approximate.
    """
    flags = [ending_word(result)] if has_diverged(result) else []
    flags += [PARTIAL] if result.get("partial") else []
    flags += [f"restarted:{result['restarts']}"] if result["restarts"] else []
    return flags + (["resume=approximate"] if result.get("resume") == "approximate" else [])
