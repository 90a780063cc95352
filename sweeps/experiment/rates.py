"""Learning-rate studies: rates tried on a baseline's hold-out; the best is then that of all cells like it.

The paper tuned dropout alone and names no rate. So no net has one of its own here, and those tried are Springenberg's.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sweeps.experiment.metrics import has_diverged
from sweeps.experiment.recipe import SPRINGENBERG
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Json


@dataclass(frozen=True)
class RateStudy:
    """Study of the learning rate: one training of the baseline, with its declared dropout, at each of some rates.

    `baseline` is a glob of the baselines' labels. A baseline's rate is that of the cells with its data and recipe.
    """

    baseline: str
    rates: tuple[float, ...] = SPRINGENBERG

    def __post_init__(self) -> None:
        """Raise ValueError for a study that has nothing to choose from."""
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"a study of the learning rate has rates above 0, not {self.rates}")

    def baseline_of(self, cell: Cell, cells: Iterable[Cell]) -> Cell | None:
        """Return the one of `cells` whose rate is that of `cell`; None where there is none."""
        for other in cells:
            matches = fnmatch.fnmatchcase(other.label.lower(), self.baseline.lower())
            if matches and (other.dataset, other.recipe) == (cell.dataset, cell.recipe):
                return other
        return None

    def trials(self, baseline: Cell) -> tuple[Trial, ...]:
        """Return the trainings of the study of one baseline, in the order of its rates."""
        return tuple(Trial(baseline, "holdout", rate=rate) for rate in self.rates)


class RateChoice(NamedTuple):
    """Trials of a study and what they come to: the chosen rate (None while open), or why there is none."""

    trials: tuple[Trial, ...]
    rate: float | None
    why: str = ""


def choose(study: RateStudy, baseline: Cell, results: Mapping[str, Json], failed: Collection[str]) -> RateChoice:
    """Return the rate of the best hold-out value, of equal ones the larger; none of a training that diverged."""
    trials = study.trials(baseline)
    metric = baseline.metric
    if any(trial.key not in results and trial.key not in failed for trial in trials):
        return RateChoice(trials, None)
    errors = [
        (metric.cost(float(results[trial.key]["metrics"].get(metric.held_out, metric.cost(math.inf)))), -trial.rate)
        for trial in trials
        if trial.key in results and not has_diverged(results[trial.key])
    ]
    if not errors:
        rates = ", ".join(f"{rate:g}" for rate in study.rates)
        return RateChoice(trials, None, f"{baseline.label} trains at none of the learning rates {rates}")
    return RateChoice(trials, -min(errors)[1])
