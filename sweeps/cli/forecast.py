"""Forecast of a sweep: what it will take, what it has taken, and what that costs."""

from __future__ import annotations

import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from crelu_data.cores import cores
from crelu_data.datasets import DataSet
from sweeps.cli.settings import Settings
from sweeps.execution.resources import TrialResources, resolve_resources
from sweeps.execution.throughput import RECENT, Throughput, Throughputs, past_epochs, sharers_of
from sweeps.experiment.model_facts import measure_together, net_facts
from sweeps.experiment.plan import Begun, Plan
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import PHASES, Trial, probed
from sweeps.experiment.wording import against_forecast, count
from sweeps.store.ledger import Json
from sweeps.training.runtime import visible_gpus

if TYPE_CHECKING:
    from sweeps.execution.session import DriverState

# Seconds of a trial besides its pictures: opening its files, checkpoints, its result. Once trials have ended they count
# as measured.
TRIAL_START = 0.2
WORKER_START = 3.0  # seconds until a worker has imported what its first trial needs
EVALUATION = 1 / 3  # of the time to learn from a picture, by operations: forward without backward


class TimeEstimate(NamedTuple):
    """Seconds of one training, or of many: the likely value and the ends of its interval."""

    likely: float
    least: float
    most: float


class Pace(NamedTuple):
    """Pace of a cell's trainings: the throughput of its epochs, and the seconds of each besides its pictures."""

    throughput: Throughput
    start: float = TRIAL_START


class Forecast:
    """Forecast for the trials of a plan, by the epochs known on this hardware: of earlier sessions and of this one."""

    def __init__(
        self, plan: Plan, settings: Settings, facts: Mapping[str, DataSet], resources: TrialResources, at_once: int
    ) -> None:
        """Read what the ledger knows of the hardware of `resources`; `at_once` trials run at the same time."""
        results = [status.result for status in plan.statuses if status.result is not None]
        shapes = {name: (fact.classes, fact.crop) for name, fact in facts.items()}
        measure_together((cell.net, *shapes[cell.dataset]) for cell in plan.sweep.trained)
        macs = {cell.key: float(net_facts(cell.net, *shapes[cell.dataset]).macs) for cell in plan.sweep.trained}
        begun = [(trial.cell.key, trial.key) for trial, _ in plan.begun]
        sharers = sharers_of(resources.gpus, min(at_once, len(plan.to_do) + len(plan.pending)))
        past = past_epochs(settings.ledger, results, resources, begun)
        self.throughputs = Throughputs(macs, past, sharers=sharers)
        self.plan = plan
        self.settings = settings
        self.facts = facts
        self.resources = resources
        self.at_once = at_once
        # A second phase of Single takes about as many epochs as its first phase did to its best.
        self.match_epochs = {str(result["key"]): int(result["metrics"].get("best/epoch", 0)) for result in results}
        self.epochs = 0  # of all trials in this session
        self.workers = 0  # the most that were seen at once
        self.running = 1  # of them now
        self.announced: dict[str, Pace] = {}  # behind the first sentence
        self.epochs_before: dict[str, int] = {}  # by trial key: epochs of earlier sessions
        self.begun = {trial.key: (trial, epochs) for trial, epochs in plan.begun}  # with the epochs behind each
        self.starts: dict[str, deque[float]] = {}  # by cell key: seconds of the latest trials besides their pictures
        self.ended: set[str] = set()  # keys of trials of this session that have ended, and that `starts` lacks
        self.times: dict[str, tuple[float, float]] = {}  # by trial key: when its first and latest epoch ended, in ms
        self.seconds_by_trial: Mapping[str, float] = {}  # of this session, from hand-out to end, as the driver fills it

    def add_epoch(self, trial: Trial, row: Mapping[str, float]) -> None:
        """Take in an epoch of this session."""
        self.epochs += 1
        self.epochs_before.setdefault(trial.key, int(row["epoch"]) - 1)
        self.begun[trial.key] = (trial, int(row["epoch"]))
        if "time_ms" in row:
            first, _ = self.times.get(trial.key, (row["time_ms"], 0.0))
            self.times[trial.key] = (first, row["time_ms"])
        self.throughputs.add(trial.cell.key, row, sharers_of(self.resources.gpus, self.running))

    def add_result(self, result: Json) -> None:
        """Take in that a trial has finished."""
        if result["key"] in self.epochs_before:
            self.ended.add(str(result["key"]))

    def paces(self) -> dict[str, Pace]:
        """Return the pace of every cell, by its own trials or by others'; empty where none is known."""
        throughputs = self.throughputs.all()
        self._add_starts(throughputs)
        starts = {key: median(seconds) for key, seconds in self.starts.items()}
        other = median(starts.values()) if starts else TRIAL_START
        return {key: Pace(throughput, starts.get(key, other)) for key, throughput in throughputs.items()}

    def _add_starts(self, throughputs: Mapping[str, Throughput]) -> None:
        """Take in what ended trials took besides their pictures, once their whole time is known."""
        firsts = list(itertools.islice(self.epochs_before, self.at_once))
        ended = [key for key in self.seconds_by_trial if key in self.ended]
        self.ended.difference_update(ended)
        for key in ended:
            trial, last = self.begun[key]
            facts, pace = self.facts[trial.cell.dataset], Pace(throughputs[trial.cell.key], 0.0)
            epochs = last - self.epochs_before[key]
            if key not in firsts:
                seconds = self.seconds_by_trial[key] - estimate(trial, facts, pace, epochs).likely
            elif epochs > 1 and key in self.times:
                # Its worker started with it, which others do not wait for: only what came after its first epoch counts.
                first, latest = self.times[key]
                known = estimate(trial, facts, pace, epochs - 1).likely - estimate(trial, facts, pace, 0).likely
                seconds = TRIAL_START + ((latest - first) / 1000 - known) * epochs / (epochs - 1)
            else:
                continue
            self.starts.setdefault(trial.cell.key, deque(maxlen=RECENT)).append(max(0.0, seconds))

    def estimates(
        self, remaining: Begun, paces: Mapping[str, Pace] | None = None, *, to_the_end: bool = False
    ) -> list[TimeEstimate]:
        """Return what each trial will take; those of cells without a pace are left out.

        `to_the_end` are trials that have come to all their epochs, also in a search that lets only the best do so.
        """
        known = self.paces() if paces is None else paces
        remaining = list(remaining)
        return [
            estimate(trial, self.facts[trial.cell.dataset], known[trial.cell.key], epochs)
            for (trial, _), epochs in zip(remaining, self._epochs_left(remaining, to_the_end), strict=True)
            if trial.cell.key in known
        ]

    def _epochs_left(self, remaining: Begun, to_the_end: bool) -> list[float]:
        """Return the epochs that each trial is still to train."""
        left = self.plan.epochs_left(remaining, self.begun.values())
        if to_the_end:
            left = [float(trial.recipe.epochs - done) for trial, done in remaining]
        return [
            matched - done if (matched := self.match_epochs.get(trial.reference)) else epochs
            for (trial, done), epochs in zip(remaining, left, strict=True)
        ]

    def seconds_left(self, remaining: Begun) -> float | None:
        """Return the seconds until all are trained by this many `slots`; None while nothing is known."""
        seconds = [trial.likely for trial in self.estimates(remaining)]
        if not seconds:
            return None
        return time_until_done(seconds, self.slots()) + WORKER_START * (not self.epochs)

    def slots(self) -> int:
        """Return how many trials train at once: as many as were seen, once all may have reported an epoch."""
        return self.workers if self.workers and self.epochs >= self.at_once else self.at_once

    def is_settled(self) -> bool:
        """Return whether this was the epoch by which each of the first trials may have reported one."""
        return self.epochs == self.at_once

    def sentence(self, remaining: Begun) -> str:
        """Return a forecast in hours, with an interval, and in money where an hour has a price; empty for none."""
        remaining = list(remaining)
        trials, seconds_left = self.estimates(remaining), self.seconds_left(remaining)
        if seconds_left is None:
            return ""
        self.announced = self.announced or self.paces()
        starts = WORKER_START * min(self.at_once, len(trials))
        seconds = total([*trials, TimeEstimate(starts, starts, starts)])
        share = self.resources.gpus or 1.0
        hours = TimeEstimate(*(share * value / 3600 for value in seconds))
        unit = "GPU-hours" if self.resources.gpus else "hours of trials"
        cost = cost_text(seconds, self.settings.price_per_gpu_hour, share)
        spread = f"{hours.least:.3g} to {hours.most:.3g}"
        return (
            f"forecast for {count(len(trials), 'trial')}: {hours.likely:.3g} {unit} ({spread}), "
            f"about {time_text(seconds_left)} with {self.slots()} at once" + (f", {cost}" if cost else "")
        )


def time_text(seconds: float) -> str:
    """Return a time in minutes and seconds, from an hour on in hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def forecast_before_start(plan: Plan, settings: Settings, facts: Mapping[str, DataSet]) -> str:
    """Return the forecast from what this machine has trained before, without a look at Ray."""
    none = "no forecast: none of these cells has been trained on this hardware yet; it comes with the first epochs"
    return _forecast_here(plan, settings, facts).sentence(plan.remaining) or none


def hours_per_training(plan: Plan, settings: Settings, labels: Collection[str], facts: Mapping[str, DataSet]) -> float:
    """Return the hours, of GPUs where trials have some, of a training of these cells; 0 where none is known.

    None is known where nothing is known of the pictures of a data set, which then has no `facts`.
    """
    if not facts.keys() >= set(plan.sweep.datasets):
        return 0.0
    forecast = _forecast_here(plan, settings, facts)
    trials = {status.trial.cell.label: status.trial for status in plan.statuses if status.trial.cell.label in labels}
    whole = forecast.estimates(((trial, 0) for trial in trials.values()), to_the_end=True)
    seconds = [estimate.likely for estimate in whole]
    return (forecast.resources.gpus or 1.0) * sum(seconds) / len(seconds) / 3600 if seconds else 0.0


def _forecast_here(plan: Plan, settings: Settings, facts: Mapping[str, DataSet]) -> Forecast:
    devices = visible_gpus()
    request = settings.resources
    cuda = request.gpus != 0 and devices > 0
    gpus = (request.gpus or max(1.0, request.ranks)) if cuda else 0.0
    resources = resolve_resources(replace(request, gpus=gpus), [], False)
    slots = devices / gpus if cuda else cores() / max(resources.cpus, 1e-9)
    at_once = request.max_concurrent or max(1, int(slots))
    return Forecast(plan, settings, facts, resources, at_once)


def compare(forecast: Forecast, seconds_by_trial: Sequence[tuple[Trial, float]], log: Callable[[str], None]) -> None:
    """Log what the finished trials took beside the first forecast for them; write both to the ledger."""
    ledger = forecast.settings.ledger
    done = [
        (trial, seconds)
        for trial, seconds in seconds_by_trial
        if trial.cell.key in forecast.announced and ledger.result(trial.key)
    ]
    if not done:
        return
    trials = ((trial, forecast.epochs_before.get(trial.key, 0)) for trial, _ in done)
    estimates = forecast.estimates(trials, forecast.announced, to_the_end=True)
    expected = total(estimates).likely + WORKER_START * min(forecast.at_once, len(done))
    actual = sum(seconds for _, seconds in done)
    off = against_forecast(actual, expected)
    log(f"{count(len(done), 'trial')}: forecast {expected:.0f} s of trials, actual {actual:.0f} s ({off})")
    value = {"forecast_s": expected, "actual_s": actual, "trials": len(done)}
    name = f"{forecast.plan.sweep.title}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    ledger.write_note(f"forecasts/{name}.json", value)


def note_price(sweep: Sweep, settings: Settings, **more: float) -> None:
    """Note the price of an hour of a GPU on the ledger, where one is given, for the report."""
    if settings.price_per_gpu_hour:
        name = f"prices/{sweep.title}.json"
        note = settings.ledger.read_json(name) or {}
        settings.ledger.write_note(name, note | {"hourly": settings.price_per_gpu_hour} | more)


def report_cost(sweep: Sweep, settings: Settings, state: DriverState, log: Callable[[str], None]) -> None:
    """Log what the session cost, failed attempts included, and note its trials' share of a GPU beside the price."""
    hourly = settings.price_per_gpu_hour
    seconds = state.hours() * 3600
    if hourly:
        log(f"this session used {seconds / 3600:.3g} hours, {cost_text(TimeEstimate(*[seconds] * 3), hourly)}")
        note_price(sweep, settings, share=state.resources.gpus or 1.0)


# Arithmetic ---------------------------------------------------------------------------------------------------------


def pictures(trial: Trial, facts: DataSet, epochs: float | None = None) -> tuple[float, float]:
    """Return how many pictures a training learns from and evaluates, over its epochs (None: all) and its final test."""
    phase = PHASES[trial.phase]
    recipe = trial.recipe
    everything, tested = facts.splits["train"], facts.splits[facts.final]
    held_out = {"holdout": facts.holdout, "fold": everything // max(trial.folds, 1), "full": 0}[phase.split]
    learned = everything - held_out
    crops = 11 if facts.crop < facts.size else 1
    final = tested * crops if phase.test else 0
    epochs = recipe.epochs if epochs is None else max(0, epochs)
    return learned * epochs, (held_out + probed(trial, learned, facts.holdout)) * epochs + final


def estimate(trial: Trial, facts: DataSet, pace: Pace, epochs: float | None = None) -> TimeEstimate:
    """Return the seconds that so many epochs (None: all) and the final test take at this pace."""
    learned, evaluated = pictures(trial, facts, epochs)
    work = learned + EVALUATION * evaluated
    rates = (pace.throughput.likely, pace.throughput.fastest, pace.throughput.slowest)
    return TimeEstimate(*(work / rate + pace.start for rate in rates))


def time_until_done(seconds: Sequence[float], slots: int) -> float:
    """Return when trainings that take so long are done: each begins, in this order, in the first slot that is free."""
    ends = [0.0] * min(slots, len(seconds))
    for length in seconds:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def total(estimates: Sequence[TimeEstimate]) -> TimeEstimate:
    """Return the sum of estimates."""
    return TimeEstimate(*(sum(column) for column in zip(*estimates, strict=True)))


def workload(plan: Plan, remaining: Begun, facts: Mapping[str, DataSet]) -> tuple[float, float]:
    """Return the pictures and the operations of a plan's trials; zeros where their data sets or nets are not known."""
    picture_count = arithmetic = 0.0
    remaining = list(remaining)
    try:
        for (trial, _), epochs in zip(remaining, plan.epochs_left(remaining, plan.begun), strict=True):
            if trial.cell.dataset not in facts:
                return 0.0, 0.0
            fact = facts[trial.cell.dataset]
            picture_count += sum(pictures(trial, fact, epochs))
            arithmetic += operations(trial, fact, epochs)
    except ValueError:
        return 0.0, 0.0
    return picture_count, arithmetic


def cost_text(seconds: TimeEstimate, hourly: float, share: float = 1.0) -> str:
    """Return the cost of trials that take `seconds`, at a price per GPU-hour and a `share` of a GPU each.

    Without GPUs an hour of trials stands for one of a GPU, as it does where a budget is counted. Empty for no price.
    """
    if not hourly:
        return ""
    likely, least, most = (hourly * share * value / 3600 for value in seconds)
    spread = f" ({least:,.2f} to {most:,.2f})" if most > least else ""
    return f"costs {likely:,.2f}{spread} at {hourly:g} an hour"


def operations(trial: Trial, facts: DataSet, epochs: float) -> float:
    """Return the floating-point operations of one training: 6 a multiply-accumulate learned from, 2 one evaluated."""
    learned, evaluated = pictures(trial, facts, epochs)
    macs = net_facts(trial.cell.net, facts.classes, facts.crop).macs
    return float(macs) * (6 * learned + 2 * evaluated)
