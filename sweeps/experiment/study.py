"""Studies: one per cell, derived from the ledger, the same on a cluster of any size.

The first suggestion of each is the cell's own setting, or zero dropout. A suggestion is a pure function of search,
cell, number and the values of all earlier waves: each has a new sampler of its own seed, and a wave begins when all
values of the one before are known. So a killed sweep asks for the same points again. A point that is suggested twice is
one trial, trained once. With successive halving (sweeps.experiment.halving) a clock of epochs stands for the waves.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from crelu_models.model import Model
from crelu_models.spec import Net
from sweeps.experiment.halving import Bracket, rungs
from sweeps.experiment.metrics import PERCENT, Metric, has_diverged, rounded
from sweeps.experiment.sampling import (
    Observation,
    Point,
    Sampler,
    grid,
    importances,
    suggest,
    wilcoxon_prunes,
    write_study,
)
from sweeps.experiment.search import Goal, Search, budget, goal, own_point, space
from sweeps.experiment.space import (
    Choices,
    choosable,
    typed,
)
from sweeps.experiment.trial import Cell, Rates, Trial, model_key
from sweeps.store.ledger import Json

WARM_UP = 4  # finished trials, and epochs of a trial, before anything is pruned
FOLDS_AT_ONCE = 4  # of a suggestion: fewer pairs cannot bring Wilcoxon's p below sampling.P_PRUNE
QUANTILE = 1 / 3  # of earlier trials' errors at an epoch: a trial above it is pruned
NO_THRESHOLD = 1000.0  # percent: no error is above it
ASKED = 4  # suggestions for each that is trained, at most: others exceed a limit before they begin
FURTHEST = 1e300  # no value of another metric is worse

Result = Mapping[str, Any]
NOTHING: Final[Mapping[str, Json]] = MappingProxyType({})


class Suggestion(NamedTuple):
    """Suggestion of a study, with its trials (one, or one per fold) and its value.

    The value is None while unknown, and nan where a trial failed; `pruned` where some of its folds or epochs were left
    out, `diverged` where all of its trainings did. `rungs` are the values at the epochs where it paused. `excess` says
    by how much it exceeds each limit, below 0 where it keeps it. What is `refused` is not trained, for this reason.
    """

    number: int
    trials: tuple[Trial, ...]
    value: float | None
    pruned: bool = False
    rungs: tuple[tuple[int, float], ...] = ()
    excess: tuple[tuple[str, float], ...] = ()
    refused: str = ""
    diverged: bool = False

    @property
    def trial(self) -> Trial:
        """Return the first of its trials, which differ in their fold alone."""
        return self.trials[0]

    @property
    def keeps_limits(self) -> bool:
        """Return whether it exceeds no limit, as far as is known."""
        return all(more <= 0 for _, more in self.excess)

    @property
    def may_be_chosen(self) -> bool:
        """Return whether its value counts in the choice: it was trained to the end, within all limits."""
        return not self.pruned and not self.diverged and self.keeps_limits


@dataclass(frozen=True)
class Study:
    """Suggestions of a cell's study so far; `pauses` are the epochs at which trials that are to train pause, by key."""

    cell: Cell
    search: Search
    suggestions: tuple[Suggestion, ...]
    is_finished: bool
    pauses: Mapping[str, int] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()  # keys of trials that wait at a rung

    @property
    def winner(self) -> Suggestion | None:
        """Return the suggestion of the best value, the earlier of equal ones; None where no value is known."""
        return _best(goal(self.search, self.cell), self.suggestions)

    @property
    def trials(self) -> list[Trial]:
        """Return the trials of all suggestions, those left out that are refused."""
        return [trial for suggestion in self.suggestions if not suggestion.refused for trial in suggestion.trials]


def _best(aim: Goal, suggestions: Sequence[Suggestion]) -> Suggestion | None:
    """Return the earliest suggestion of the best value, of those that may be chosen."""
    within = [s for s in suggestions if s.value is not None and math.isfinite(s.value) and s.may_be_chosen]
    return min(within, key=lambda suggestion: (aim.loss(suggestion.value or 0.0), suggestion.number), default=None)


class _Known(NamedTuple):
    """Facts behind a study: results, keys of failed trials, records of paused ones, and its learning rate."""

    results: Mapping[str, Result]
    failed: Collection[str]
    paused: Mapping[str, Json]
    rate: float


def study(
    search: Search,
    cell: Cell,
    results: Mapping[str, Result],
    failed: Collection[str],
    rate: float = 0.0,
    paused: Mapping[str, Json] = NOTHING,
) -> Study:
    """Return the study of `cell` as far as the ledger goes: a pure function of it.

    `rate` is the learning rate of its trials, 0 for the recipe's own. `paused` are the records of trials at a rung.
    """
    known = _Known(results, failed, paused, rate)
    return _halved(search, cell, known) if search.halving else _in_waves(search, cell, known)


def _in_waves(search: Search, cell: Cell, known: _Known) -> Study:
    """Return the study whose waves follow each from those before it."""
    suggestions: list[Suggestion] = []
    while _may_ask(search, cell, suggestions) and all(suggestion.value is not None for suggestion in suggestions):
        # Of earlier waves: the best so far, and the errors that prune.
        observed = len(suggestions)
        rival = _best(goal(search, cell), suggestions)
        earlier = [known.results[s.trial.key] for s in suggestions if not s.refused and s.trial.key in known.results]
        prunes = search.prune and not search.objective and not search.direction
        thresholds = percentile_thresholds(earlier, cell.metric) if prunes else ()
        # One more wave.
        wave = 0
        while wave < search.wave and _may_ask(search, cell, suggestions):
            trial = _next_trial(search, cell, suggestions, observed, thresholds, known)
            number = len(suggestions)
            if why := why_refused(search, trial):
                suggestions.append(_refused(search, number, trial, why))
                continue
            wave += 1
            if search.folds:
                suggestions.append(_over_folds(search, number, trial, rival, known))
            else:
                value = _value(search, trial, known)
                excess = _excess(search, trial, known.results.get(trial.key))
                diverged = _all_diverged((trial,), known)
                suggestions.append(Suggestion(number, (trial,), value, excess=excess, diverged=diverged))
    is_over = not _may_ask(search, cell, suggestions)
    finished = is_over and all(suggestion.value is not None for suggestion in suggestions)
    return Study(cell, search, tuple(suggestions), finished)


def _may_ask(search: Search, cell: Cell, suggestions: Sequence[Suggestion]) -> bool:
    """Return whether a study asks for one more: its budget counts what is trained, and a grid ends with its points."""
    trained = sum(not suggestion.refused for suggestion in suggestions)
    most = len(grid(space(search, cell))) if search.sampler == "grid" else ASKED * search.trials
    return trained < search.trials and len(suggestions) < most


def _next_trial(
    search: Search,
    cell: Cell,
    suggestions: Sequence[Suggestion],
    observed: int,
    thresholds: tuple[float, ...],
    known: _Known,
) -> Trial:
    """Return the first trial of the next suggestion; the values of the first `observed` ones are known to it."""
    observations = [_observation(s) for s in suggestions[:observed]]
    observations += [_observation(s) for s in suggestions[observed:] if s.refused]
    running = tuple(_point(s.trial) for s in suggestions[observed:] if not s.refused)
    point = _ask(search, cell, len(suggestions), tuple(observations), running)
    return _trial_at(search, cell, point, thresholds, known.rate)


def _ask(
    search: Search, cell: Cell, number: int, observed: tuple[Observation, ...], running: tuple[Point, ...]
) -> Point:
    """Return the point of a suggestion."""
    sampler = Sampler(search.sampler, search.seed, goal(search, cell).direction)
    if search.sampler == "gp" and search.limits:
        observed = tuple(_with_limits(search, cell, observed))
    return suggest(sampler, cell.key, space(search, cell), number, observed, running, own_point(search, cell))


def _with_limits(search: Search, cell: Cell, observed: Sequence[Observation]) -> Iterator[Observation]:
    """Yield observations as Optuna's Gaussian process takes them: each with all limits, and with a value.

    It leaves out points without a value, and would ask for those beyond a limit again: they get the worst there is.
    """
    values = [each.value for each in observed if each.value is not None and math.isfinite(each.value)]
    worst = max(values, key=goal(search, cell).loss, default=0.0)
    for each in observed:
        excess = dict.fromkeys(search.limits_by_name, 0.0) | dict(each.excess)
        is_beyond = each.value is not None and math.isnan(each.value) and max(excess.values()) > 0
        yield each._replace(value=worst if is_beyond else each.value, excess=tuple(excess.items()))


def _trial_at(search: Search, cell: Cell, point: Point, thresholds: tuple[float, ...], rate: float) -> Trial:
    """Return the trial of a point; over folds, that of the first fold."""
    named = [(axis.name, value) for axis, value in zip(space(search, cell), point, strict=True)]
    rates: Rates = ()
    choices: Choices = ()
    if search.axes:
        current = choosable(cell.net, cell.recipe)
        choices = tuple((name, typed(name, value, current)) for name, value in named)
    else:
        rates = tuple((name, float(value)) for name, value in named)
    if search.folds:
        return Trial(cell, "inner", search.seed, rates, 0, search.folds, rate=rate, choices=choices)
    return Trial(cell, "holdout", search.seed, rates, pruning_thresholds=thresholds, rate=rate, choices=choices)


def why_refused(search: Search, trial: Trial) -> str:
    """Return why a trial is not trained: no recipe or net has such values, or a limit is exceeded; empty for none."""
    try:
        excess = _excess_before(search, trial)
    except ValueError as error:
        return str(error)
    return next((f"more {name} than the limit" for name, more in excess if more > 0), "")


def _refused(search: Search, number: int, trial: Trial, why: str) -> Suggestion:
    try:
        excess = _excess_before(search, trial)
    except ValueError:
        excess = ()
    return Suggestion(number, (trial,), math.nan, excess=excess, refused=why)


def _excess_before(search: Search, trial: Trial) -> tuple[tuple[str, float], ...]:
    """Return by how much a trial exceeds the limit on parameters, which is known before it is trained, or unknown."""
    net = trial.net
    _ = trial.recipe  # raises ValueError for values that no recipe can have
    most = search.limits_by_name.get("parameters")
    count = None if most is None else _parameters(search, net, trial.cell.dataset)
    return () if most is None or count is None else (("parameters", count - most),)


def _parameters(search: Search, net: Net | Model, name: str) -> int | None:
    """Return the parameters of a net on a data set; of a model as the search notes them, None where it does not."""
    classes, side = _shape(search, name)
    if not classes:
        return None
    return net.parameters(classes, side) if isinstance(net, Net) else search.noted_counts.get(model_key(net, classes))


def _shape(search: Search, name: str) -> tuple[int, int | None]:
    """Return the classes of a data set and the side of its views, from the search, else from its name.

    The classes are 0 where neither has them. The name of a folder has them only if the folder is prepared in the
    default place, so a driver notes them in the search. A plan without sides is counted at the net's own, as it was.
    """
    if known := dict(search.classes).get(name):
        return known, dict(search.sides).get(name)
    from crelu_data.datasets import dataset  # with NumPy, which a page's declaration does without

    with suppress(ValueError):
        facts = dataset(name)
        return facts.classes, facts.crop
    return 0, None


def beyond_limits(search: Search, first: Trial, result: Result) -> frozenset[str]:
    """Return the keys of a suggestion's trials where the result of the first one exceeds a limit, else none.

    None of them can be chosen: a search over folds judges a suggestion by its first fold.
    """
    is_beyond = any(more > 0 for _, more in _excess(search, first, result))
    return frozenset(trial.key for trial in _all_folds(search, first)) if is_beyond else frozenset()


def _excess(search: Search, trial: Trial, result: Result | None) -> tuple[tuple[str, float], ...]:
    """Return by how much a trial exceeds each limit, as far as is known."""
    before = _excess_before(search, trial)
    measured = {name: most for name, most in search.limits_by_name.items() if name not in dict(before)}
    result = result or {}
    return (*before, *((name, float(result[name]) - most) for name, most in measured.items() if name in result))


def _over_folds(search: Search, number: int, first: Trial, rival: Suggestion | None, known: _Known) -> Suggestion:
    """Return a suggestion with the folds started so far: a few at once, then one by one while it may still be best.

    It is compared with `rival`, the best of earlier waves, so pruning does not depend on what else runs.
    """
    trials = _all_folds(search, first)
    values = [_value(search, trial, known) for trial in trials]
    excess = _excess(search, first, known.results.get(first.key))
    loss = goal(search, first.cell).loss
    errors: tuple[float, ...] = ()
    if rival is not None and search.prune:
        errors = tuple(loss(_value(search, trial, known) or 0.0) for trial in rival.trials)
    for started in range(min(FOLDS_AT_ONCE, search.folds), search.folds + 1):
        values_known = tuple(value for value in values[:started] if value is not None)
        if len(values_known) < started:
            return Suggestion(number, trials[:started], None)
        mean = math.fsum(values_known) / started
        losses = tuple(map(loss, values_known))
        if math.isnan(mean) or (errors and started < search.folds and wilcoxon_prunes(losses, errors)):
            return Suggestion(number, trials[:started], mean, pruned=True, excess=excess)
    return Suggestion(number, trials, mean, excess=excess, diverged=_all_diverged(trials, known))


def _all_folds(search: Search, first: Trial) -> tuple[Trial, ...]:
    """Return the trials of a suggestion, one per fold: the first alone on the hold-out."""
    folds = range(1, search.folds)
    return (first, *(dataclasses.replace(first, seed=search.seed + fold, fold=fold) for fold in folds))


def _all_diverged(trials: Sequence[Trial], known: _Known) -> bool:
    """Return whether all of these trainings diverged."""
    return all(has_diverged(known.results.get(trial.key)) for trial in trials)


def _value(search: Search, trial: Trial, known: _Known) -> float | None:
    """Return the objective of a trial, nan where it failed, None where it is not known yet."""
    result = known.results.get(trial.key)
    if result is not None:
        return float(result["metrics"].get(goal(search, trial.cell).name, math.nan))
    return math.nan if trial.key in known.failed else None


def _point(trial: Trial) -> Point:
    return tuple(value for _, value in trial.chosen)


def _observation(suggestion: Suggestion) -> Observation:
    """Return what a sampler is told of a suggestion; a value over fewer folds counts as a whole one."""
    return Observation(_point(suggestion.trial), suggestion.value, excess=suggestion.excess)


# Successive halving ---------------------------------------------------------------------------------------------------


def _halved(search: Search, cell: Cell, known: _Known) -> Study:
    """Return the study whose trials pause at rungs, played on the clock of its bracket as far as values are known."""
    steps = rungs(cell.recipe.epochs, search.halving, search.rung)
    bracket = Bracket(budget(search, cell), search.wave, steps, search.halving)
    asked: list[Suggestion] = []
    arms: list[int] = []  # numbers of their suggestions
    while True:
        while (job := bracket.begin_next()) is not None:
            if job.rung == 0 and not _begin_arm(search, cell, bracket, asked, arms, known):
                bracket.drop(job)
        job = bracket.first_to_end()
        value = None if job is None else _value_at(search, asked[arms[job.arm]].trial, steps[job.rung], known)
        if job is None or value is None:
            break
        bracket.finish(job, cell.metric.cost(value))
    suggestions = list(asked)
    for arm, number in enumerate(arms):
        suggestions[number] = _standing(search, asked[number].trial, number, arm, bracket, known)
    pauses: dict[str, int] = {}
    for job in bracket.running:
        trial = asked[arms[job.arm]].trial
        if _value_at(search, trial, steps[job.rung], known) is None:
            pauses[trial.key] = max(steps[job.rung], pauses.get(trial.key, 0))
    begun = {asked[number].trial.key for number in arms}
    settled = {key for key in begun if key in known.results or key in known.failed}
    paused = frozenset(begun - settled - pauses.keys())
    return Study(cell, search, tuple(suggestions), not bracket.running, pauses, paused)


def _begin_arm(
    search: Search, cell: Cell, bracket: Bracket, asked: list[Suggestion], arms: list[int], known: _Known
) -> bool:
    """Ask for the trial of a new arm, by what the clock has shown so far; False where all that come are refused."""
    while _may_ask(search, cell, asked):
        number = len(asked)
        by_number = dict(zip(arms, range(len(arms)), strict=True))
        standing = [
            s if s.refused else _standing(search, s.trial, s.number, by_number[s.number], bracket, known) for s in asked
        ]
        observations = _as_equally_far(standing)
        observed = tuple(each for each in observations if each.value is not None)
        running = tuple(each.point for each in observations if each.value is None)
        trial = _trial_at(search, cell, _ask(search, cell, number, observed, running), (), known.rate)
        if why := why_refused(search, trial):
            asked.append(_refused(search, number, trial, why))
            continue
        asked.append(Suggestion(number, (trial,), None))
        arms.append(number)
        return True
    return False


def _as_equally_far(standing: Sequence[Suggestion]) -> list[Observation]:
    """Return what a sampler is told of arms: the value of each as if all had trained equally far.

    From the value at its last rung on, an arm gains what arms that went on have gained from there (the median). By the
    values as they are, arms that paused early would all be worse than any that went on.
    """
    reached = [dict(arm.rungs) for arm in standing]
    gains: dict[int, float] = {}
    for step, following in itertools.pairwise(sorted(set().union(*reached))):
        if both := [values[following] - values[step] for values in reached if {step, following} <= values.keys()]:
            gains[step] = statistics.median(both)
    told = []
    for arm, values in zip(standing, reached, strict=True):
        observation = _observation(arm)
        if values and (arm.value is None or math.isfinite(arm.value)):
            last = max(values)
            value = values[last] + math.fsum(gain for step, gain in gains.items() if step >= last)
            observation = observation._replace(value=value)
        told.append(observation)
    return told


def _standing(search: Search, trial: Trial, number: int, arm: int, bracket: Bracket, known: _Known) -> Suggestion:
    """Return where an arm stands by the clock: its value and rungs, and whether it has paused before the last one."""
    reached = tuple((epoch, trial.cell.metric.cost(value)) for epoch, value in bracket.rungs_of(arm))
    runs = any(job.arm == arm for job in bracket.running)
    is_complete = bool(reached) and reached[-1][0] == bracket.steps[-1]
    value = reached[-1][1] if reached and not runs else None
    finite_rungs = tuple((epoch, value) for epoch, value in reached if math.isfinite(value))
    # Its seconds are known with its result, which the clock shows at its last rung.
    excess = _excess(search, trial, known.results.get(trial.key)) if is_complete else _excess_before(search, trial)
    diverged = _all_diverged((trial,), known)
    return Suggestion(number, (trial,), value, bool(reached) and not is_complete, finite_rungs, excess, "", diverged)


def _value_at(search: Search, trial: Trial, epochs: int, known: _Known) -> float | None:
    """Return the best value of a trial up to an epoch, as far as it has trained; its last one where it has ended.

    It is nan where the trial failed, None where it is not known yet.
    """
    result = known.results.get(trial.key)
    if result is None and trial.key in known.failed:
        return math.nan
    record = result if result is not None else known.paused.get(trial.key, {})
    curve = record.get("curve", ())
    # One that diverged later too had at a rung what it had there: it may have been trained to its end by another sweep.
    if epochs < trial.recipe.epochs and len(curve) >= epochs:
        return trial.cell.metric.best(float(value) for value in curve[:epochs])
    return _value(search, trial, known)


# Pruning by a percentile ----------------------------------------------------------------------------------------------


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
        value = lower + fraction * (upper - lower)
        # Part of the keys of trials: those of errors in percent stay as they are.
        threshold = rounded(value, 6) if metric.is_own else round(value, 6)
        thresholds.append(threshold if epoch >= WARM_UP - 1 else furthest)
    return tuple(thresholds)


# For dashboards and reports -------------------------------------------------------------------------------------------


def importance(search: Search, cell: Cell, points: Sequence[tuple[Trial, float | None]]) -> dict[str, float]:
    """Return the share of each dimension in what separates a study's better points from the others; empty for one."""
    axes = space(search, cell)
    if len(axes) < 2:
        return {}
    observed = [Observation(_point(trial), value) for trial, value in points]
    return importances(axes, observed, goal(search, cell).direction)


def export(
    studies: Sequence[Study], sweep: str, url: str, results: Mapping[str, Result], paused: Mapping[str, Json] = NOTHING
) -> int:
    """Write the studies, one per cell, anew to an Optuna storage for a dashboard to read; return how many."""
    for study in studies:
        observed = [_shown(study, suggestion, results, paused) for suggestion in study.suggestions]
        axes = space(study.search, study.cell)
        sampler = Sampler("random", study.search.seed, goal(study.search, study.cell).direction)
        write_study(url, f"{sweep}/{study.cell.label}", axes, observed, sampler)
    return len(studies)


def _shown(
    study: Study, suggestion: Suggestion, results: Mapping[str, Result], paused: Mapping[str, Json]
) -> tuple[Observation, dict[str, Any]]:
    """Return a suggestion as a dashboard shows it: with its errors by epoch, and its trials and state as attributes."""
    key = suggestion.trial.key if not suggestion.refused else ""
    result = results.get(key)
    record: Mapping[str, Any] = (result if result is not None else paused.get(key)) or {}
    curve = [float(error) for error in record.get("curve", ())] if len(suggestion.trials) == 1 else []
    state = str(result["status"]) if result is not None else "failed" if suggestion.value is not None else "open"
    if key in study.paused:
        state = f"paused after epoch {record['epoch']}"
    if suggestion.refused:
        state = f"not trained: {suggestion.refused}"
    early = (suggestion.pruned or state == "pruned") and suggestion.value is not None
    by_epoch = tuple(enumerate(curve, 1))
    shown = Observation(_point(suggestion.trial), suggestion.value, by_epoch, early, suggestion.excess)
    attributes: dict[str, Any] = {"state": state}
    if not suggestion.refused:
        attributes["trials"] = [trial.key for trial in suggestion.trials]
    return shown, attributes
