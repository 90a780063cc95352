"""Dropout searches: one study per cell, derived from the ledger, asked in waves, the same on a cluster of any size.

The first suggestion of each is zero dropout. A suggestion is a pure function of search, cell, number and the values of
all earlier waves: each has a new sampler of its own seed, and a wave begins when all values of the one before are
known. So a killed sweep asks for the same points again. A point that is suggested twice is one trial, trained once.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from crelu_models.spec import seed_from
from sweeps.experiment.metrics import PERCENT, Metric
from sweeps.experiment.recipe import SPACES, Dimension
from sweeps.experiment.trial import Cell, Rates, Trial

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "gp", "grid", "random")
WARM_UP = 4  # finished trials, and epochs of a trial, before anything is pruned
FOLDS_AT_ONCE = 4  # of a suggestion: fewer pairs cannot bring Wilcoxon's p below P_PRUNE
P_PRUNE = 0.1
QUANTILE = 1 / 3  # of earlier trials' errors at an epoch: a trial above it is pruned
NO_THRESHOLD = 1000.0  # percent: no error is above it
FURTHEST = 1e300  # no value of another metric is worse

DIRECTIONS = {"lower": "minimize", "higher": "maximize"}  # Optuna's words

Result = Mapping[str, Any]
Point = tuple[float, ...]


@dataclass(frozen=True)
class Search:
    """Search for a cell's dropout: this many suggestions, in waves, by a sampler, over a space (empty: the family's).

    A suggestion is judged by its error on the hold-out, or, with `folds`, by its mean error over that many folds.
    `prune` ends a trial whose error is above the best third of earlier ones. Over folds it leaves out the remaining
    folds of a suggestion that is worse than the best one by Wilcoxon's signed-rank test (p < 0.1) on those so far.
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
    """Suggestion of a study, with its trials (one, or one per fold) and its value.

    The value is None while unknown, and nan where a trial failed; `pruned` where some of its folds were left out.
    """

    number: int
    trials: tuple[Trial, ...]
    value: float | None
    pruned: bool = False

    @property
    def trial(self) -> Trial:
        """Return the first of its trials, which differ in their fold alone."""
        return self.trials[0]


@dataclass(frozen=True)
class Study:
    """Suggestions of a cell's study so far."""

    cell: Cell
    search: Search
    suggestions: tuple[Suggestion, ...]

    @property
    def is_finished(self) -> bool:
        """Return whether the budget is used and every value is known."""
        complete = len(self.suggestions) == budget(self.search, self.cell)
        return complete and all(suggestion.value is not None for suggestion in self.suggestions)

    @property
    def winner(self) -> Suggestion | None:
        """Return the suggestion of the best hold-out value, the earlier of equal ones; None where none is known."""
        return _best(self.suggestions, self.cell.metric)


def _best(suggestions: Sequence[Suggestion], metric: Metric) -> Suggestion | None:
    """Return the earliest suggestion of the best value, of those with all their folds."""
    complete = [
        (metric.cost(s.value), s.number, s)
        for s in suggestions
        if s.value is not None and math.isfinite(s.value) and not s.pruned
    ]
    return min(complete)[2] if complete else None


def space(search: Search, cell: Cell) -> tuple[Dimension, ...]:
    """Return the dimensions of a cell's search; ValueError where its recipe's family has none."""
    family = cell.recipe.name.partition("-")[0]
    dimensions = search.space or SPACES.get(family, ())
    if not dimensions:
        raise ValueError(
            f"no dropout space for recipes called {family!r}; give Search(space=...) or one of {list(SPACES)}"
        )
    return dimensions


def budget(search: Search, cell: Cell) -> int:
    """Return how many suggestions each cell of a family gets: at most all points of a grid."""
    return min(search.trials, len(_grid(space(search, cell)))) if search.sampler == "grid" else search.trials


def study(
    search: Search, cell: Cell, results: Mapping[str, Result], failed: Collection[str], rate: float = 0.0
) -> Study:
    """Return the study of `cell` as far as `results` go: each wave follows from those before it.

    `rate` is the learning rate of its trials, 0 for the recipe's own.
    """
    suggestions: list[Suggestion] = []
    total = budget(search, cell)
    dimensions = space(search, cell)
    while len(suggestions) < total and all(suggestion.value is not None for suggestion in suggestions):
        # Of earlier waves: their points and values, the best so far, and the errors that prune.
        observed = tuple((_point(suggestion.trial), suggestion.value) for suggestion in suggestions)
        rival = _best(suggestions, cell.metric)
        earlier = [results[s.trial.key] for s in suggestions if s.trial.key in results]
        thresholds = percentile_thresholds(earlier, cell.metric) if search.prune else ()
        # One more wave.
        for number in range(len(suggestions), min(len(suggestions) + search.wave, total)):
            running = tuple(_point(suggestion.trial) for suggestion in suggestions[len(observed) :])
            rates = suggest(search, cell.key, dimensions, number, observed, running, cell.metric.better)
            if search.folds:
                suggestions.append(_over_folds(search, cell, number, rates, rival, results, failed, rate))
            else:
                trial = Trial(cell, "holdout", search.seed, rates, pruning_thresholds=thresholds, rate=rate)
                suggestions.append(Suggestion(number, (trial,), _value(trial, results, failed)))
    return Study(cell, search, tuple(suggestions))


def _over_folds(
    search: Search,
    cell: Cell,
    number: int,
    rates: Rates,
    rival: Suggestion | None,
    results: Mapping[str, Result],
    failed: Collection[str],
    rate: float,
) -> Suggestion:
    """Return a suggestion with the folds started so far: a few at once, then one by one while it may still be best.

    It is compared with `rival`, the best of earlier waves, so pruning does not depend on what else runs.
    """
    trials = tuple(
        Trial(cell, "inner", search.seed + fold, rates, fold, search.folds, rate=rate) for fold in range(search.folds)
    )
    values = [_value(trial, results, failed) for trial in trials]
    errors: tuple[float, ...] = ()
    if rival is not None and search.prune:
        errors = tuple(_value(trial, results, failed) or 0.0 for trial in rival.trials)
    for started in range(min(FOLDS_AT_ONCE, search.folds), search.folds + 1):
        known = tuple(value for value in values[:started] if value is not None)
        if len(known) < started:
            return Suggestion(number, trials[:started], None)
        mean = math.fsum(known) / started
        compare = errors and started < search.folds
        if math.isnan(mean) or (compare and wilcoxon_prunes(known, errors, cell.metric.better)):
            return Suggestion(number, trials[:started], mean, pruned=True)
    return Suggestion(number, trials, mean)


@lru_cache(maxsize=65536)
def wilcoxon_prunes(values: tuple[float, ...], rival: tuple[float, ...], better: str = "lower") -> bool:
    """Return whether Optuna's WilcoxonPruner prunes values on the first folds, compared with those of `rival`."""
    optuna = _optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=P_PRUNE)
    study = optuna.create_study(direction=DIRECTIONS[better], pruner=pruner)
    mean = math.fsum(rival) / len(rival)
    state = optuna.trial.TrialState.COMPLETE
    study.add_trial(optuna.trial.create_trial(state=state, value=mean, intermediate_values=dict(enumerate(rival))))
    trial = study.ask()
    for fold, value in enumerate(values):
        trial.report(value, fold)
    return bool(trial.should_prune())


def _value(trial: Trial, results: Mapping[str, Result], failed: Collection[str]) -> float | None:
    """Return the best hold-out value of a trial, nan where it failed, None where it is not known yet."""
    result = results.get(trial.key)
    if result is not None:
        return float(result["metrics"].get(trial.cell.metric.held_out, math.nan))
    return math.nan if trial.key in failed else None


def _point(trial: Trial) -> Point:
    return tuple(rate for _, rate in trial.dropout)


@lru_cache(maxsize=65536)
def suggest(
    search: Search,
    key: str,
    dimensions: tuple[Dimension, ...],
    number: int,
    observed: tuple[tuple[Point, float | None], ...],
    running: tuple[Point, ...],
    better: str = "lower",
) -> Rates:
    """Return suggestion `number` of the study `key`, given the values observed and the points of this wave so far.

    The first suggestion is no dropout at all, where the space has it. Every later suggestion is compared with it.
    """
    has_zero = all(dimension.low == 0 for dimension in dimensions)
    rates: Sequence[float]
    if search.sampler == "grid":
        points = _grid(dimensions)
        order = _shuffled(len(points), seed_from(search.seed, key))
        rates = points[([0, *(index for index in order if index)] if has_zero else order)[number]]
    elif number == 0 and has_zero:
        rates = [0.0] * len(dimensions)
    else:
        study = optuna_study(search, key, dimensions, number, observed, running, better)
        params = study.ask(_distributions(dimensions)).params
        rates = [params[dimension.after] for dimension in dimensions]
    return tuple((dimension.after, round(float(rate), 6)) for dimension, rate in zip(dimensions, rates, strict=True))


def optuna_study(
    search: Search,
    key: str,
    dimensions: tuple[Dimension, ...],
    number: int,
    observed: Sequence[tuple[Point, float | None]],
    running: Sequence[Point] = (),
    better: str = "lower",
    storage: optuna.storages.BaseStorage | None = None,
    name: str | None = None,
) -> optuna.Study:
    """Return an Optuna study of the points observed, complete or failed, and of those of the open wave as running."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    seed = seed_from(search.seed, key, number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "tpe":
            sampler = optuna.samplers.TPESampler(seed=seed)
        elif search.sampler == "gp":
            sampler = optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(direction=DIRECTIONS[better], sampler=sampler, storage=storage, study_name=name)
    distributions = _distributions(dimensions)
    points: list[tuple[Point, float | None]] = [*observed, *((point, None) for point in running)]
    for point, value in points:
        params = {dimension.after: rate for dimension, rate in zip(dimensions, point, strict=True)}
        state = states.RUNNING if value is None else states.COMPLETE if math.isfinite(value) else states.FAIL
        complete = value if state == states.COMPLETE else None
        study.add_trial(
            optuna.trial.create_trial(state=state, params=params, distributions=distributions, value=complete)
        )
    return study


def _optuna() -> Any:
    """Return Optuna, quiet; imported with the first search, for it takes half a second."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distributions(dimensions: Sequence[Dimension]) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import FloatDistribution

    return {
        dimension.after: FloatDistribution(dimension.low, dimension.high, step=dimension.step)
        for dimension in dimensions
    }


@lru_cache(maxsize=64)
def _grid(dimensions: tuple[Dimension, ...]) -> list[Point]:
    """Return every point of the space."""
    axes = []
    for dimension in dimensions:
        steps = round((dimension.high - dimension.low) / dimension.step)
        axes.append([round(dimension.low + step * dimension.step, 6) for step in range(steps + 1)])
    return list(itertools.product(*axes))


@lru_cache(maxsize=64)
def _shuffled(count: int, key: int) -> list[int]:
    """Return 0..count-1 in an order keyed by `key`: a part of a grid is a fair sample of it."""
    return sorted(range(count), key=lambda index: seed_from(key, index))


def percentile_thresholds(results: Sequence[Result], metric: Metric = PERCENT) -> tuple[float, ...]:
    """Return, by epoch, the hold-out value from which a trial of the next wave is pruned if its own are worse.

    It is the best third of the values that earlier, unpruned trials had at that epoch, compared with a trial's best
    so far (Optuna's PercentilePruner). It is fixed when the wave begins, so pruning does not depend on what else runs.
    """
    furthest = metric.cost(FURTHEST) if metric.is_own else NO_THRESHOLD
    curves = [result["curve"] for result in results if result.get("status") == "finished" and result.get("curve")]
    if len(curves) < WARM_UP:
        return ()
    thresholds = []
    for epoch in range(min(len(curve) for curve in curves)):
        errors = sorted((curve[epoch] for curve in curves), key=metric.cost)
        below, fraction = divmod(QUANTILE * (len(errors) - 1), 1.0)
        lower = errors[int(below)]
        upper = errors[min(int(below) + 1, len(errors) - 1)]
        threshold = round(lower + fraction * (upper - lower), 6)
        thresholds.append(threshold if epoch >= WARM_UP - 1 else furthest)
    return tuple(thresholds)


def export(studies: Sequence[Study], sweep: str, url: str) -> int:
    """Write the studies, one per cell, anew to an Optuna storage for a dashboard to read; return how many."""
    optuna = _optuna()
    storage = optuna.storages.get_storage(url)
    existing = set(optuna.study.get_all_study_names(storage))
    for study in studies:
        name = f"{sweep}/{study.cell.label}"
        if name in existing:
            optuna.delete_study(study_name=name, storage=storage)
        observed = [(_point(suggestion.trial), suggestion.value) for suggestion in study.suggestions]
        dimensions = space(study.search, study.cell)
        better = study.cell.metric.better
        optuna_study(study.search, study.cell.key, dimensions, 0, observed, (), better, storage, name)
    return len(studies)
