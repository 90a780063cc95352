"""What a sweep will take, what it has taken, and what that costs: said before, compared after, kept on the ledger."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.datasets import DataSet, dataset
from sweeps.cli.settings import Settings
from sweeps.execution.price import Speed, keep, known, speed_key
from sweeps.execution.resources import hardware_key, resolve_resources
from sweeps.experiment.plan import Plan, Sweep
from sweeps.experiment.trial import PHASES, Trial, probed

if TYPE_CHECKING:
    from sweeps.cli.live_view import LiveView
    from sweeps.execution.session import DriverState


def workload(trials: Iterable[Trial], where: Path) -> tuple[float, float]:
    """Return the pictures and the operations of trials; zeros where a folder of theirs is not prepared yet."""
    seen = arithmetic = 0.0
    try:
        for trial in trials:
            facts = dataset(trial.cell.dataset, where)
            seen += sum(pictures(trial, facts))
            arithmetic += operations(trial, facts)
    except ValueError:
        return 0.0, 0.0
    return seen, arithmetic


class Forecast:
    """What the trials of a plan will take by the measured speeds of their nets: those known, and those learned yet."""

    def __init__(
        self, plan: Plan, settings: Settings, facts: Mapping[str, DataSet], hardware: str, gpus: float, at_once: int
    ) -> None:
        """Look up what the ledger knows of this `hardware`; `gpus` is a trial's share, 0 on CPUs."""
        self.plan, self.settings, self.facts, self.hardware = plan, settings, facts, hardware
        self.gpus, self.at_once, self.started = gpus, at_once, 0
        self.keys = {cell.key: speed_key(cell, facts[cell.dataset], hardware) for cell in plan.sweep.cells}
        self.speeds = known(settings.ledger, self.keys.values())
        # A second phase whose first is done takes about as many epochs as that did to its best.
        results = {s.trial.key: s.result for s in plan.statuses if s.result is not None}
        self.ends = {key: int(result["metrics"].get("best/epoch", 0)) for key, result in results.items()}

    def lacking(self) -> dict[str, tuple[Trial, int, int]]:
        """Return for each net to measure a trial of it, with classes and crop."""
        first: dict[str, Trial] = {}
        for trial in self.plan.to_do:
            first.setdefault(trial.cell.key, trial)
        nets = {self.keys[key]: trial for key, trial in first.items() if self.keys[key] not in self.speeds}
        facts = {key: self.facts[trial.cell.dataset] for key, trial in nets.items()}
        return {key: (trial, facts[key].classes, facts[key].crop) for key, trial in nets.items()}

    def learn(self, speeds: Mapping[str, Speed], started: int) -> None:
        """Take in what was measured by so many workers, which have started by that, and keep it."""
        self.started = started
        for key, speed in speeds.items():
            keep(self.settings.ledger, key, speed)
        self.speeds = {**self.speeds, **speeds}

    def rates(self) -> dict[str, float]:
        """Return the pictures a second that each cell's net learns from, as far as they are measured."""
        return {cell: self.speeds[key].train for cell, key in self.keys.items() if key in self.speeds}

    def price(self, trial: Trial) -> TimeEstimate | None:
        """Return what a trial takes; None where its net is not measured."""
        speed = self.speeds.get(self.keys.get(trial.cell.key, ""))
        if speed is None:
            return None
        return estimate(trial, self.facts[trial.cell.dataset], speed, self.ends.get(trial.reference, 0))

    def start(self) -> float:
        """Return the seconds that all workers that are still to start take to import what a trial needs."""
        slowest = max((speed.start for speed in self.speeds.values()), default=0.0)
        return slowest * max(0, min(self.at_once, len(self.plan.to_do)) - self.started)

    def sentence(self, start: float = 0.0) -> str:
        """Return what is left of the sweep in hours, with an interval, and in money where an hour has a price.

        Nothing where no net of it has been measured; `start` are seconds to add.
        """
        trials = (*self.plan.to_do, *self.plan.pending)
        prices = [found for trial in trials if (found := self.price(trial)) is not None]
        if not prices:
            return ""
        whole, share = total([*prices, TimeEstimate(start, start, start)]), self.gpus or 1.0
        hours = TimeEstimate(*(share * seconds / 3600 for seconds in whole))
        cost = cost_text(whole, self.settings.price_per_gpu_hour, share)
        return (
            f"forecast for {len(prices)} trials: {hours.likely:.3g} {'GPU-hours' if self.gpus else 'hours of trials'} "
            f"({hours.least:.3g} to {hours.most:.3g}), {whole.likely / self.at_once / 60:.1f} min with {self.at_once} "
            f"at once" + (f", {cost}" if cost else "")
        )


def forecast_before_start(plan: Plan, settings: Settings) -> str:
    """Return the forecast from what has been measured on this machine before."""
    devices = len(glob.glob("/dev/nvidia[0-9]*"))
    request = settings.resources
    cuda = request.gpus != 0 and devices > 0
    gpus = (request.gpus or max(1.0, request.ranks)) if cuda else 0.0
    resources = resolve_resources(replace(request, gpus=gpus), [], False)
    hardware = hardware_key(resources.device, resources.threads, resources.ranks)
    facts = {name: dataset(name, settings.data_dir) for name in plan.sweep.datasets}
    slots = devices / gpus if cuda else (os.cpu_count() or 1) / max(resources.cpus, 1e-9)
    at_once = request.max_concurrent or max(1, int(slots))
    sentence = Forecast(plan, settings, facts, hardware, gpus, at_once).sentence()
    return sentence or "no forecast: the speed of these nets is measured when the sweep first starts on a machine"


def compare(forecast: Forecast, seconds_by_trial: Sequence[tuple[Trial, float]], view: LiveView) -> None:
    """Log what the finished trials were priced at and what they took; keep both on the ledger."""
    ledger = forecast.settings.ledger
    done = [
        (seconds, estimated)
        for trial, seconds in seconds_by_trial
        if ledger.result(trial.key) and (estimated := forecast.price(trial))
    ]
    if not done:
        return
    expected = sum(estimated.likely for _, estimated in done) + forecast.start()
    actual = sum(seconds for seconds, _ in done)
    off = f"{actual / expected - 1:+.0%}"
    view.log(f"{len(done)} trials: forecast {expected:.0f} s of trials, actual {actual:.0f} s ({off})")
    value = {"forecast_s": expected, "actual_s": actual, "trials": len(done)}
    name = f"{forecast.plan.sweep.title}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    ledger.write_json(f"forecasts/{name}.json", value)


def report_cost(sweep: Sweep, settings: Settings, state: DriverState, view: LiveView) -> None:
    """Log what the session cost, failed tries included, and note the price for the report."""
    hourly, seconds = settings.price_per_gpu_hour, state.hours() * 3600
    if hourly:
        view.log(f"this session used {seconds / 3600:.3g} hours, {cost_text(TimeEstimate(*[seconds] * 3), hourly)}")
        share = state.resources.gpus or 1.0
        settings.ledger.write_json(f"prices/{sweep.title}.json", {"hourly": hourly, "share": share})


FIXED = 0.2  # seconds of a trial besides its pictures: opening its files, checkpoints, its result


class TimeEstimate(NamedTuple):
    """Seconds of one training, or of many: the likely value and the ends of its interval."""

    likely: float
    least: float
    most: float


def pictures(trial: Trial, facts: DataSet, epochs: int = 0) -> tuple[int, int]:
    """Return how many pictures a training learns from and evaluates, over its epochs (0: all) and its final test."""
    phase, recipe = PHASES[trial.phase], trial.cell.recipe
    everything, tested = facts.splits["train"], facts.splits[facts.final]
    held_out = {"holdout": facts.holdout, "fold": everything // max(trial.folds, 1), "full": 0}[phase.split]
    learned = everything - held_out
    crops = 11 if facts.crop < facts.size else 1
    final = tested * crops if phase.test else 0
    epochs = epochs or recipe.epochs
    return learned * epochs, (held_out + probed(trial, learned, facts.holdout)) * epochs + final


def estimate(trial: Trial, facts: DataSet, speed: Speed, epochs: int = 0) -> TimeEstimate:
    """Return the seconds one training of so many epochs (0: all) takes at this speed."""
    learned, evaluated = pictures(trial, facts, epochs)
    fixed = evaluated / speed.evaluate + FIXED
    return TimeEstimate(*(learned / rate + fixed for rate in (speed.train, speed.fastest, speed.slowest)))


def total(prices: Sequence[TimeEstimate]) -> TimeEstimate:
    """Return the sum of prices."""
    return (
        TimeEstimate(*(sum(column) for column in zip(*prices, strict=True))) if prices else TimeEstimate(0.0, 0.0, 0.0)
    )


def cost_text(seconds: TimeEstimate, hourly: float, share: float = 1.0) -> str:
    """Return what trials that take so long cost, at so much an hour of a GPU of which each has a `share`.

    Without GPUs an hour of trials stands for one of a GPU, as it does where a budget is counted. Empty for no price.
    """
    if not hourly:
        return ""
    likely, least, most = (hourly * share * value / 3600 for value in seconds)
    spread = f" ({least:,.2f} to {most:,.2f})" if most > least else ""
    return f"costs {likely:,.2f}{spread} at {hourly:g} an hour"


def operations(trial: Trial, facts: DataSet) -> float:
    """Return the floating-point operations of one training: 6 a multiply-accumulate learned from, 2 one evaluated."""
    learned, evaluated = pictures(trial, facts)
    macs = trial.cell.net.macs(facts.classes, facts.crop)
    return float(macs) * (6 * learned + 2 * evaluated)
