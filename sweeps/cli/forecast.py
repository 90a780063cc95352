"""What a sweep will take, what it has taken, and what that costs: said before, compared after, kept on the ledger."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.datasets import DataSet, dataset
from sweeps.cli.settings import Errand, stamp
from sweeps.execution.price import Speed, keep, known, speed_key
from sweeps.execution.resources import hardware_key, resolve_resources
from sweeps.experiment.plan import Plan
from sweeps.experiment.trial import PHASES, Trial, probed


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
        self, errand: Errand, found: Plan, facts: Mapping[str, DataSet], here: str, gpus: float, at_once: int
    ) -> None:
        """Look up what the ledger knows of the hardware `here`; `gpus` is a trial's share, 0 on CPUs."""
        self.errand, self.plan, self.facts, self.here = errand, found, facts, here
        self.gpus, self.at_once, self.started = gpus, at_once, 0
        self.keys = {cell.key: speed_key(cell, facts[cell.dataset], here) for cell in errand.sweep.cells}
        self.speeds = known(errand.ledger, self.keys.values())
        # A second phase whose first is done takes about as many epochs as that did to its best.
        results = {s.trial.key: s.result for s in found.statuses if s.result is not None}
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
            keep(self.errand.ledger, key, speed)
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
        cost = cost_text(whole, self.errand.options.price_per_gpu_hour, share)
        return (
            f"forecast for {len(prices)} trials: {hours.likely:.3g} {'GPU-hours' if self.gpus else 'hours of trials'} "
            f"({hours.least:.3g} to {hours.most:.3g}), {whole.likely / self.at_once / 60:.1f} min with {self.at_once} "
            f"at once" + (f", {cost}" if cost else "")
        )


def foretold(errand: Errand, found: Plan) -> str:
    """Return the forecast from what has been measured on this machine before."""
    options, where = errand.options, errand.choice.data_dir
    cuda = options.gpus_per_trial != 0 and bool(glob.glob("/dev/nvidia[0-9]*"))
    gpus = (options.gpus_per_trial or max(1.0, options.ranks)) if cuda else 0.0
    asked = argparse.Namespace(**vars(options) | {"gpus_per_trial": gpus})
    given = resolve_resources(asked, [], False)
    here = hardware_key(given.device, given.threads, given.ranks)
    facts = {name: dataset(name, where) for name in errand.sweep.datasets}
    room = len(glob.glob("/dev/nvidia[0-9]*")) / gpus if cuda else (os.cpu_count() or 1)
    at_once = options.max_concurrent or max(1, int(room if cuda else room / max(given.cpus, 1e-9)))
    sentence = Forecast(errand, found, facts, here, gpus, at_once).sentence()
    return sentence or "no forecast: the speed of these nets is measured when the sweep first starts on a machine"


def compare(forecast: Forecast, took: Sequence[tuple[Trial, float]], view: Any) -> None:
    """Say what the finished trials were priced at and what they took; keep both on the ledger."""
    errand, ledger = forecast.errand, forecast.errand.ledger
    done = [
        (seconds, found) for trial, seconds in took if ledger.result(trial.key) and (found := forecast.price(trial))
    ]
    if not done:
        return
    priced, actual = sum(found.likely for _, found in done) + forecast.start(), sum(seconds for seconds, _ in done)
    off = f"{actual / priced - 1:+.0%}"
    view.log(f"{len(done)} trials: forecast {priced:.0f} s of trials, actual {actual:.0f} s ({off})")
    value = {"forecast_s": priced, "actual_s": actual, "trials": len(done)}
    ledger.write_json(f"forecasts/{errand.sweep.title}-{stamp()}.json", value)


def report_cost(errand: Errand, session: Any, view: Any) -> None:
    """Say what the session cost, failed tries included, and note the price for the report."""
    hourly, seconds = errand.options.price_per_gpu_hour, session.hours() * 3600
    if hourly:
        view.log(f"this session used {seconds / 3600:.3g} hours, {cost_text(TimeEstimate(*[seconds] * 3), hourly)}")
        share = session.resources.gpus or 1.0
        errand.ledger.write_json(f"prices/{errand.sweep.title}.json", {"hourly": hourly, "share": share})


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
