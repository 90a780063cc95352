"""Metric of a page, names of all numbers, and the rule that says which trials make a cell's number.

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
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

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
OVER_FOLDS: Final = re.compile(r"agg/([\w.-]+)_(mean|vote)")

FEW_CLASSES: Final = 5  # a top-5 error of so few is always 0

LARGEST: Final = 1e12  # beyond any error, loss or count of a metric; sums and axes of more overflow
# How a training by a function of the user's resumes, as its result says it.
APPROXIMATELY: Final = "approximate"
SAID_EXACT: Final = "said to be exact"
LONGEST: Final = 200  # letters of a metric's name: with the words beside it MLflow takes no more than 250
DIGITS: Final = 4  # significant ones of a number that is no error in percent
SIGNIFICANT: Final = 6  # digits that a rounded number keeps at least


@dataclass(frozen=True)
class Metric:
    """Number by which a page compares its cells: test/NAME or val/NAME, and whether "lower" or "higher" is better.

    A training function returns it under this name, and reports val/NAME after each epoch. `chance` is what a training
    counts with that diverged; without it, such a training is left out of the cell's mean.
    """

    name: str = "test/top1_err"
    better: str = "lower"
    chance: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a metric that cannot be."""
        if not re.fullmatch(rf"(test|val)/[A-Za-z0-9_.-]{{1,{LONGEST}}}", self.name):
            raise ValueError(
                f"a metric is called test/NAME or val/NAME, such as test/f1, not {self.name!r}; NAME has at most "
                f"{LONGEST} of A-Z, a-z, 0-9, and of _ . and -"
            )
        if self.better not in ("lower", "higher"):
            raise ValueError(f"of a metric lower or higher is better, not {self.better!r}")
        if self.chance is not None and not math.isfinite(self.chance):
            raise ValueError(f"the chance of a metric is a finite number, not {self.chance!r}")

    @property
    def is_own(self) -> bool:
        """Return whether it is another metric than the top-1 error in percent."""
        return self != Metric()

    @property
    def short(self) -> str:
        """Return the name without its part of the data: f1."""
        return self.name.partition("/")[2]

    @property
    def words(self) -> str:
        """Return the name for people: test f1."""
        return self.name.replace("/", " ") if self.is_own else "test error %"

    @property
    def held_out_words(self) -> str:
        """Return the name of the held-out value for people: val f1."""
        return f"val {self.short}" if self.is_own else "hold-out %"

    @property
    def note(self) -> str:
        """Return the metric and its direction in words: which of higher and lower is better."""
        return f"{self.words}: {self.better} is better" if self.is_own else "errors in percent, lower is better"

    @property
    def final(self) -> str:
        """Return the name of a finished training's value: final/test_f1."""
        return final_name(self.name)

    @property
    def mean(self) -> str:
        """Return the name of the mean over folds: agg/test_f1_mean."""
        return f"{self.final.replace('final/', 'agg/')}_mean"

    @property
    def row(self) -> str:
        """Return the name of the held-out value in an epoch's row: val/f1."""
        return f"val/{self.short}"

    @property
    def held_out(self) -> str:
        """Return the name of the best held-out value of a training, by which a search chooses: best/val_f1."""
        return f"best/val_{self.short}"

    def cost(self, value: float) -> float:
        """Return a value with the sign by which less is better."""
        return -value if self.better == "higher" else value

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values, at least one."""
        return min(values, key=self.cost)

    def text(self, value: float) -> str:
        """Return a value in digits: two decimals of an error in percent, else four significant ones; no -0.0."""
        return f"{value:z.{decimals(value)}f}" if self.is_own else f"{value:z.2f}"


def final_name(name: str) -> str:
    """Return the name under which a finished training has what its function returned: final/test_f1 of test/f1."""
    return f"final/{name.replace('/', '_')}"


def decimals(value: float) -> int:
    """Return how many decimals show DIGITS significant digits of a value, at least two and at most twelve."""
    size = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return min(12, max(2, DIGITS - 1 - size))


def rounded(value: float, places: int) -> float:
    """Return a value to so many decimals, or to SIGNIFICANT digits where those decimals hold fewer."""
    if value and abs(value) < 10.0 ** (SIGNIFICANT - 1 - places):
        return float(f"{value:.{SIGNIFICANT}g}")
    return round(value, places)


PERCENT: Final = Metric()  # the top-1 error of our own training

Tested = tuple[str, Mapping[str, float]]  # the phase of a finished trial, and the metrics of its result


class Average(NamedTuple):
    """Average of n values with its standard error, nan where there is none: of one value, of a vote."""

    mean: float
    se: float
    n: int

    def as_json(self) -> Json:
        """Return it as JSON, None for what is not known."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}

    def text(self, metric: Metric = PERCENT) -> str:
        """Return it in digits, as the metric's values are written."""
        digits = decimals(self.mean) if metric.is_own else 2
        spread = f" ± {self.se:.{digits}f} (n {self.n})" if math.isfinite(self.se) else ""
        return f"{self.mean:z.{digits}f}{spread}"

    def __str__(self) -> str:
        return self.text()


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


def cell_held_out(trials: Sequence[Tested], name: str) -> Average:
    """Return the hold-out value of a cell without a search: its seeds' mean, else that of Single's first phases."""
    for phase in ("ablation", "holdout"):
        if values := [metrics[name] for other, metrics in trials if other == phase and name in metrics]:
            return average(values)
    return cell_average(trials, name)


def averages(trials: Sequence[Tested], metric: Metric = PERCENT) -> dict[str, float]:
    """Return mean, standard error and count of a cell's test errors and of its metric, by MLflow's names for them.

    `agg/NAME_mean` is Average where the cell has folds, with Single as `agg/NAME_single_mean`; else it is Single.
    Losses stay on the trials' runs: each name here is a chart in the UI.
    """
    numbers: dict[str, Average] = {}
    measured = {name for _, metrics in trials for name in metrics}
    for name in sorted(name for name in measured if name == metric.final or TEST_ERROR.fullmatch(name)):
        base = name.replace("final/", "agg/")
        folds, single = cell_average(trials, f"{base}_mean"), cell_average(trials, name)
        numbers |= {base: folds, f"{base}_single": single} if folds.n else {base: single}
    known: dict[str, float] = {}
    for base, (mean, se, n) in numbers.items():
        known |= {f"{base}_mean": mean, f"{base}_n": float(n)} if n else {}
        known |= {f"{base}_se": se} if n > 1 else {}
    return known


def error_text(trials: Sequence[Tested], metric: Metric = PERCENT) -> str:
    """Return a cell's number in a line: Single's, and the average over folds where it has folds."""
    single, folds = cell_average(trials, metric.final), cell_average(trials, metric.mean)
    if not folds.n:
        return single.text(metric) if single.n else ""
    over_folds = f"folds {folds.text(metric)}"
    return f"single {single.text(metric)}, {over_folds}" if single.n else over_folds


def has_diverged(result: Mapping[str, Any] | None) -> bool:
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
        of_all = f"of {len(stands)} {plural(len(stands), part)}"
        words = [f"{number} {word}" for word, number in lost.items() if number]
        if words:
            first, *others = words
            number, _, word = first.partition(" ")
            parts.append(", ".join([f"{number} {of_all} {word}", *others]))
    return ", ".join(parts)


def flags_of(result: Json) -> list[str]:
    """Return what a reader must know of a result before believing it.

    Such as diverged, dead, restarted:TIMES, partial data, resume=approximate; the last of a training by an own function
    only where it was resumed.
    """
    flags = [ending_word(result)] if has_diverged(result) else []
    flags += [PARTIAL] if result.get("partial") else []
    flags += [f"restarted:{result['restarts']}"] if result["restarts"] else []
    is_approximate = result.get("resume") == APPROXIMATELY and result.get("resumed", 1)
    return flags + (["resume=approximate"] if is_approximate else [])


def says_approximate(events: Iterable[object]) -> bool:
    """Return whether an event of a training says that its numbers may not be those of an undisturbed one.

    Its model drew what no key decides, or it went on in another precision, or with another device, kernels or ranks.
    """
    return any(str(event).startswith(f"resume={APPROXIMATELY}") for event in events)


def telling_metrics(result: Json) -> dict[str, float]:
    """Return the metrics of a result, without top-5 errors of so few classes that they cannot be but 0."""
    classes = result.get("pictures", {}).get("classes")
    few = isinstance(classes, int) and classes <= FEW_CLASSES
    return {name: float(value) for name, value in result["metrics"].items() if not (few and "top5_err" in name)}


def precisions(result: Json) -> list[str]:
    """Return the precisions of a training, such as bf16; after a resume in another one both, the tested one last."""
    return str(result["precision"]).split(", ")
