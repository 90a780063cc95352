"""The dropout studies: one a cell, derived from the ledger, suggested in waves, the same at any cluster size.

A suggestion is a pure function of (search, cell, number, the values of all earlier waves): a fresh sampler is
seeded for each, and a wave is told only when the one before it is whole. So a killed sweep asks again for the
points it had asked for, and a point that comes twice is one trial by its content, trained once.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from crelu_models.spec import seed_from
from sweeps.experiment.recipe import SPACES, Dimension
from sweeps.experiment.trial import Cell, Trial

SAMPLERS = ("tpe", "gp", "grid", "random")
WARM_UP = 4  # finished trials, and epochs of a trial, before anything is pruned
FOLDS_AT_ONCE = 4  # of a suggestion: fewer pairs cannot bring Wilcoxon's p below P_PRUNE
P_PRUNE = 0.1
KEPT = 1 / 3  # of earlier trials' errors at an epoch: what is above that quantile is pruned
NO_THRESHOLD = 1000.0  # percent: no error is above it
OBJECTIVE = "best/val_top1_err"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Search:
    """How dropout is chosen: so many suggestions a cell, in waves, by a sampler, over a space (empty: the family's).

    A suggestion is judged on the hold-out, or, with `folds`, by its mean over that many folds. `prune` ends a trial
    whose error is above the best third of earlier ones, or leaves out the folds of a suggestion that is worse than
    the best by Wilcoxon's signed-rank test (p < 0.1) on those it has.
    """

    trials: int = 20
    sampler: str = "tpe"
    wave: int = 4
    prune: bool = True
    seed: int = 0
    space: tuple[Dimension, ...] = ()
    folds: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a search that cannot be."""
        if self.sampler not in SAMPLERS:
            raise ValueError(f"a search's sampler is one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        if self.trials < 1 or self.wave < 1:
            raise ValueError(f"a search has at least one trial and one a wave, not {self.trials} and {self.wave}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"a search is on the hold-out (folds 0) or on two folds or more, not on {self.folds}")


class Suggestion(NamedTuple):
    """One suggestion of a study, its trials (one, or one a fold), and its value.

    The value is None while unknown, nan where a trial failed; `cut` where the rest of its folds were left out.
    """

    number: int
    trials: tuple[Trial, ...]
    value: float | None
    pruned: bool = False

    @property
    def trial(self) -> Trial:
        """Return the first of its trials, which has what all of them share."""
        return self.trials[0]


@dataclass(frozen=True)
class Study:
    """What a cell's study has asked for so far; over when all was asked and every value is known."""

    cell: Cell
    search: Search
    asked: tuple[Suggestion, ...]

    @property
    def is_finished(self) -> bool:
        """Return whether the study has used its budget."""
        return len(self.asked) == budget(self.search, self.cell) and all(a.value is not None for a in self.asked)

    @property
    def winner(self) -> Suggestion | None:
        """Return the suggestion of least hold-out error (the earlier of two), or None where none is known."""
        known = [asked for asked in self.asked if _whole(asked)]
        return min(known, key=lambda asked: (asked.value, asked.number), default=None)


def space(search: Search, cell: Cell) -> tuple[Dimension, ...]:
    """Return the dimensions of a cell's search; ValueError where its recipe's family has none."""
    family = cell.recipe.name.partition("-")[0]
    found = search.space or SPACES.get(family, ())
    if not found:
        raise ValueError(
            f"no dropout space for recipes called {family!r}; give Search(space=...) or one of {list(SPACES)}"
        )
    return found


def budget(search: Search, cell: Cell) -> int:
    """Return how many suggestions a cell gets: the same for every cell of a family; a grid no more than it has."""
    return min(search.trials, len(_grid(space(search, cell)))) if search.sampler == "grid" else search.trials


def study(search: Search, cell: Cell, results: Mapping[str, Result], failed: Collection[str]) -> Study:
    """Return the study of `cell` as far as `results` carry it: each wave follows from the ones before."""
    asked: list[Suggestion] = []
    total = budget(search, cell)
    while len(asked) < total and all(one.value is not None for one in asked):
        told = tuple((_point(one.trial), one.value) for one in asked)
        best = min(filter(_whole, asked), key=lambda one: (one.value, one.number), default=None)
        bars = percentile_thresholds([results[one.trial.key] for one in asked if one.trial.key in results])
        for number in range(len(asked), min(len(asked) + search.wave, total)):
            fresh = tuple(_point(one.trial) for one in asked[len(told) :])
            rates = suggest(search, cell.key, space(search, cell), number, told, fresh)
            if search.folds:
                asked.append(_over_folds(search, cell, number, rates, best, results, failed))
            else:
                trial = Trial(cell, "holdout", search.seed, rates, pruning_thresholds=bars if search.prune else ())
                asked.append(Suggestion(number, (trial,), _value(trial, results, failed)))
    return Study(cell, search, tuple(asked))


def _over_folds(
    search: Search,
    cell: Cell,
    number: int,
    rates: tuple[tuple[str, float], ...],
    best: Suggestion | None,
    results: Mapping[str, Result],
    failed: Collection[str],
) -> Suggestion:
    """Return a suggestion with the folds started so far: a few at once, then one by one while there is hope.

    What it is measured against, the best of earlier waves, does not depend on what else runs.
    """
    trials = tuple(Trial(cell, "inner", search.seed, rates, fold, search.folds) for fold in range(search.folds))
    values = [_value(trial, results, failed) for trial in trials]
    rival = [] if best is None or not search.prune else [_value(trial, results, failed) or 0.0 for trial in best.trials]
    for started in range(min(FOLDS_AT_ONCE, search.folds), search.folds + 1):
        known = [value for value in values[:started] if value is not None]
        if len(known) < started:
            return Suggestion(number, trials[:started], None)
        mean = math.fsum(known) / started
        if math.isnan(mean) or (rival and started < search.folds and wilcoxon_prunes(tuple(known), tuple(rival))):
            return Suggestion(number, trials[:started], mean, pruned=True)
    return Suggestion(number, trials, mean)


@lru_cache(maxsize=65536)
def wilcoxon_prunes(values: tuple[float, ...], rival: tuple[float, ...]) -> bool:
    """Return whether Optuna's WilcoxonPruner gives up these errors, on the first folds of those of `rival`."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=P_PRUNE)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    mean, steps = math.fsum(rival) / len(rival), dict(enumerate(rival))
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=mean, intermediate_values=steps))
    trial = study.ask()
    for fold, value in enumerate(values):
        trial.report(value, fold)
    return bool(trial.should_prune())


def _whole(asked: Suggestion) -> bool:
    """Return whether a suggestion has a value and all of its folds."""
    return asked.value is not None and math.isfinite(asked.value) and not asked.pruned


def _value(trial: Trial, results: Mapping[str, Result], failed: Collection[str]) -> float | None:
    result = results.get(trial.key)
    if result is not None:
        return float(result["metrics"].get(OBJECTIVE, math.nan))
    return math.nan if trial.key in failed else None


def _point(trial: Trial) -> tuple[float, ...]:
    return tuple(rate for _, rate in trial.dropout)


@lru_cache(maxsize=65536)
def suggest(
    search: Search,
    key: str,
    dimensions: tuple[Dimension, ...],
    number: int,
    told: tuple[tuple[tuple[float, ...], float | None], ...],
    fresh: tuple[tuple[float, ...], ...],
) -> tuple[tuple[str, float], ...]:
    """Return suggestion `number` of the study `key`, given the values told and the points asked in this wave."""
    if search.sampler == "grid":
        points = _grid(dimensions)
        chosen: Sequence[float] = points[_shuffled(len(points), seed_from(search.seed, key))[number]]
    else:
        study = optuna_study(search, key, dimensions, number, told, fresh)
        asked = study.ask(_distributions(dimensions))
        chosen = [asked.params[dimension.after] for dimension in dimensions]
    return tuple((dimension.after, round(float(rate), 6)) for dimension, rate in zip(dimensions, chosen, strict=True))


def optuna_study(
    search: Search,
    key: str,
    dimensions: tuple[Dimension, ...],
    number: int,
    told: Sequence[tuple[tuple[float, ...], float | None]],
    fresh: Sequence[tuple[float, ...]] = (),
    storage: Any = None,
    name: str | None = None,
) -> Any:
    """Return an Optuna study that holds what was told, and the points of the open wave as running."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = seed_from(search.seed, key, number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        samplers = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed, deterministic_objective=False),
        }
        sampler = samplers.get(search.sampler, lambda: optuna.samplers.RandomSampler(seed=seed))()
    found = optuna.create_study(direction="minimize", sampler=sampler, storage=storage, study_name=name)
    distributions = _distributions(dimensions)
    points: list[tuple[tuple[float, ...], float | None]] = [*told, *((point, None) for point in fresh)]
    for point, value in points:
        params = {dimension.after: rate for dimension, rate in zip(dimensions, point, strict=True)}
        if value is None:
            state = TrialState.RUNNING
        else:
            state = TrialState.COMPLETE if math.isfinite(value) else TrialState.FAIL
        given = value if state == TrialState.COMPLETE else None
        found.add_trial(create_trial(state=state, params=params, distributions=distributions, value=given))
    return found


def _distributions(dimensions: Sequence[Dimension]) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution

    return {
        dimension.after: FloatDistribution(dimension.low, dimension.high, step=dimension.step)
        for dimension in dimensions
    }


@lru_cache(maxsize=64)
def _grid(dimensions: tuple[Dimension, ...]) -> list[tuple[float, ...]]:
    """Return every point of the space."""
    axes = [
        [round(dimension.low + step * dimension.step, 6) for step in range(_steps(dimension) + 1)]
        for dimension in dimensions
    ]
    return list(itertools.product(*axes))


def _steps(dimension: Dimension) -> int:
    return round((dimension.high - dimension.low) / dimension.step)


@lru_cache(maxsize=64)
def _shuffled(count: int, key: int) -> list[int]:
    """Return 0..count-1 in an order keyed by `key`: a grid cut short is a fair sample of it."""
    return sorted(range(count), key=lambda index: seed_from(key, index))


def percentile_thresholds(results: Sequence[Result]) -> tuple[float, ...]:
    """Return, by epoch, the hold-out error above which a trial of the next wave is given up.

    The best third of what earlier, whole trials had at that epoch, against a trial's best so far (Optuna's
    PercentilePruner); known when the wave is asked, so that pruning does not depend on what else runs.
    """
    curves = [result["curve"] for result in results if result.get("status") == "finished" and result.get("curve")]
    if len(curves) < WARM_UP:
        return ()
    bars = []
    for epoch in range(min(len(curve) for curve in curves)):
        column = sorted(curve[epoch] for curve in curves)
        below, share = divmod(KEPT * (len(column) - 1), 1.0)
        lower, upper = column[int(below)], column[min(int(below) + 1, len(column) - 1)]
        bars.append(lower + share * (upper - lower))
    return tuple(round(bar, 6) if epoch >= WARM_UP - 1 else NO_THRESHOLD for epoch, bar in enumerate(bars))


def export(studies: Sequence[Study], sweep: str, url: str) -> int:
    """Write the studies to an Optuna storage, one a cell, anew, for a dashboard to read; return how many."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.get_storage(url)
    there = set(optuna.study.get_all_study_names(storage))
    for one in studies:
        name = f"{sweep}/{one.cell.label}"
        if name in there:
            optuna.delete_study(study_name=name, storage=storage)
        told = [(_point(asked.trial), asked.value) for asked in one.asked]
        optuna_study(one.search, one.cell.key, space(one.search, one.cell), 0, told, storage=storage, name=name)
    return len(studies)
