"""Suggestions by Optuna's samplers, its pruner over folds, its importance of dimensions, its storage for dashboards.

A suggestion is a pure function of seed, cell, number and what was observed: each has a new sampler of its own seed.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from crelu_models.spec import seed_from
from sweeps.experiment.space import Axis, Choice, Int, Value

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "gp", "grid", "random")
DIRECTIONS = ("minimize", "maximize")
P_PRUNE = 0.1
# Values from which an importance is estimated: below, it is hardly larger where a dimension decides than of noise.
ENOUGH = 20
# Of the points, the better half: the best tenth of a search are two or three, and say more of the kind of an axis.
QUANTILE = 1 / 2

Point = tuple[Value, ...]


class Sampler(NamedTuple):
    """Sampler of a search: its kind, its seed, and whether the objective is to be small or large."""

    kind: str
    seed: int
    direction: str = "minimize"


class Observation(NamedTuple):
    """A point and what is known of it: its value (None: it trains, nan: it failed), and the values at its rungs.

    `early` says that it ended before its last epoch. `excess` has by how much each limit is exceeded, below 0 where it
    is kept.
    """

    point: Point
    value: float | None
    rungs: tuple[tuple[int, float], ...] = ()
    early: bool = False
    excess: tuple[tuple[str, float], ...] = ()


@lru_cache(maxsize=65536)
def suggest(
    sampler: Sampler,
    key: str,
    axes: tuple[Axis, ...],
    number: int,
    observed: tuple[Observation, ...],
    running: tuple[Point, ...],
    first: Point | None,
) -> Point:
    """Return suggestion `number` of the study `key`, given what was observed and the points that train meanwhile.

    The first suggestion is the point `first`, where there is one. Every later suggestion is compared with it.
    """
    if sampler.kind == "grid":
        points = grid(axes)
        order = _shuffled(len(points), seed_from(sampler.seed, key))
        leading = [points.index(first)] if first in points else []
        return points[[*leading, *(index for index in order if index not in leading)][number]]
    if number == 0 and first is not None:
        return first
    study = optuna_study(sampler, key, axes, number, [*observed, *(Observation(point, None) for point in running)])
    params = study.ask(_distributions(axes)).params
    return tuple(axis.domain.rounded(params[axis.name]) for axis in axes)


def optuna_study(
    sampler: Sampler,
    key: str,
    axes: tuple[Axis, ...],
    number: int,
    observed: Iterable[Observation],
    storage: optuna.storages.BaseStorage | None = None,
    name: str | None = None,
) -> optuna.Study:
    """Return an Optuna study of what was observed."""
    optuna = _optuna()
    seed = seed_from(sampler.seed, key, number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler.kind == "tpe":
            drawing = optuna.samplers.TPESampler(seed=seed)
        elif sampler.kind == "gp":
            drawing = optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
        else:
            drawing = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(direction=sampler.direction, sampler=drawing, storage=storage, study_name=name)
    distributions = _distributions(axes)
    for observation in observed:
        study.add_trial(_frozen(observation, axes, distributions))
    return study


def _frozen(
    observation: Observation, axes: Sequence[Axis], distributions: dict[str, optuna.distributions.BaseDistribution]
) -> optuna.trial.FrozenTrial:
    """Return an observation as Optuna has it: complete, pruned (also what may not be trained), failed or running."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    if observation.value is None and not observation.rungs:
        state = states.RUNNING
    elif observation.early or observation.value is None or (math.isnan(observation.value) and observation.excess):
        state = states.PRUNED
    else:
        state = states.COMPLETE if math.isfinite(observation.value) else states.FAIL
    return optuna.trial.create_trial(
        state=state,
        params={axis.name: value for axis, value in zip(axes, observation.point, strict=True)},
        distributions=distributions,
        value=observation.value if state == states.COMPLETE else None,
        intermediate_values=dict(observation.rungs),
        constraints=dict(observation.excess) or None,
    )


@lru_cache(maxsize=65536)
def wilcoxon_prunes(values: tuple[float, ...], rival: tuple[float, ...]) -> bool:
    """Return whether Optuna's WilcoxonPruner prunes errors on the first folds, compared with those of `rival`."""
    optuna = _optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=P_PRUNE)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    mean = math.fsum(rival) / len(rival)
    state = optuna.trial.TrialState.COMPLETE
    study.add_trial(optuna.trial.create_trial(state=state, value=mean, intermediate_values=dict(enumerate(rival))))
    trial = study.ask()
    for fold, value in enumerate(values):
        trial.report(value, fold)
    return bool(trial.should_prune())


def importances(axes: Sequence[Axis], observed: Iterable[Observation], direction: str) -> dict[str, float]:
    """Return the share of each axis in what separates the better points from the rest, by Optuna's PED-ANOVA.

    Empty where too few points have a value, or more than half of those have the worst one: the better half is then all
    of them, and Optuna gives each axis the same share.
    """
    # Points that ended early have the value of their last rung: left out, hardly any would remain.
    observations = [
        Observation(each.point, each.value) for each in observed if each.value is not None and math.isfinite(each.value)
    ]
    values = sorted((each.value for each in observations if each.value is not None), reverse=direction == "maximize")
    if len(values) < ENOUGH or values[math.ceil(QUANTILE * len(values)) - 1] == values[-1]:
        return {}
    optuna = _optuna()
    study = optuna_study(Sampler("random", 0, direction), "", tuple(axes), 0, observations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=QUANTILE)
        shares: Mapping[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {axis.name: float(shares.get(axis.name, 0.0)) for axis in axes}


def write_study(
    url: str,
    name: str,
    axes: tuple[Axis, ...],
    observed: Iterable[tuple[Observation, Mapping[str, Any]]],
    sampler: Sampler,
) -> None:
    """Write a study anew to an Optuna storage for a dashboard to read, each point with its attributes."""
    optuna = _optuna()
    storage = optuna.storages.get_storage(url)
    if name in optuna.study.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    study = optuna_study(sampler, "", axes, 0, (), storage, name)
    distributions = _distributions(axes)
    for observation, attributes in observed:
        trial = _frozen(observation, axes, distributions)
        for attribute, value in attributes.items():
            trial.set_user_attr(attribute, value)
        study.add_trial(trial)


def _optuna() -> Any:
    """Return Optuna, quiet; imported with the first search, for it takes half a second."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distributions(axes: Sequence[Axis]) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, domain in axes:
        if isinstance(domain, Choice):
            distributions[name] = CategoricalDistribution(domain.options)
        elif isinstance(domain, Int):
            high = domain.values()[-1]
            distributions[name] = IntDistribution(domain.low, high, log=domain.log, step=domain.step)
        elif domain.step:
            distributions[name] = FloatDistribution(domain.low, domain.values()[-1], step=domain.step)
        else:
            distributions[name] = FloatDistribution(domain.low, domain.high, log=domain.log)
    return distributions


@lru_cache(maxsize=64)
def grid(axes: tuple[Axis, ...]) -> list[Point]:
    """Return every point of the space; none where a dimension has no steps."""
    return list(itertools.product(*(axis.domain.values() for axis in axes)))


@lru_cache(maxsize=64)
def _shuffled(count: int, key: int) -> list[int]:
    """Return 0..count-1 in an order keyed by `key`: a part of a grid is a fair sample of it."""
    return sorted(range(count), key=lambda index: seed_from(key, index))
