"""What a sweep will take, what it has taken, and what that costs: said before, compared after, kept on the ledger."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.datasets import DataSet, dataset
from sweeps.allot import allot, hardware
from sweeps.errand import Errand, stamp
from sweeps.plan import Plan
from sweeps.price import Price, Speed, keep, known, money, operations, pictures, price, speed_key, total
from sweeps.trial import Trial


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


def forecast(
    errand: Errand, found: Plan, facts: Mapping[str, DataSet], place: Any, resources: Any, at_once: int, view: Any
) -> tuple[Callable[[Trial], Price | None], float]:
    """Measure what is not measured yet, say what the sweep will take; return what prices a trial, and all starts."""
    from sweeps import gauge

    ledger, here = errand.ledger, hardware(place.device, place.threads, place.ranks)
    keys = {cell.key: speed_key(cell, facts[cell.dataset], here) for cell in errand.sweep.cells}
    speeds = known(ledger, keys.values())
    lacking = {
        keys[cell.key]: (cell, facts[cell.dataset].classes, facts[cell.dataset].crop)
        for cell in {trial.cell.key: trial.cell for trial in found.to_do}.values()
        if keys[cell.key] not in speeds
    }
    if lacking and errand.choice.profile != "smoke":
        view.say(f"measuring the speed of {len(lacking)} nets")
        for key, speed in gauge.measure_speeds(lacking, place, resources).items():
            keep(ledger, key, speed)
            speeds[key] = speed
    pricer = _pricer(found, facts, speeds, keys)
    start = max((speed.start for speed in speeds.values()), default=0.0) * min(at_once, len(found.to_do))
    sentence = _sentence(errand, found, pricer, start, resources.gpus, at_once)
    if sentence:
        view.say(sentence)
    return pricer, start


def _pricer(
    found: Plan, facts: Mapping[str, DataSet], speeds: Mapping[str, Speed], keys: Mapping[str, str]
) -> Callable[[Trial], Price | None]:
    """Return what prices a trial by measured speeds; `keys` name the measurement of a cell."""
    # A second phase whose first is done takes about as many epochs as that did to its best.
    ends = {s.trial.key: int(s.result["metrics"].get("best/epoch", 0)) for s in found.standings if s.result is not None}

    def pricer(trial: Trial) -> Price | None:
        speed = speeds.get(keys.get(trial.cell.key, ""))
        return None if speed is None else price(trial, facts[trial.cell.dataset], speed, ends.get(trial.reference, 0))

    return pricer


def _sentence(
    errand: Errand,
    found: Plan,
    pricer: Callable[[Trial], Price | None],
    start: float,
    gpus: float,
    at_once: int,
) -> str:
    """Return what is left of a sweep in hours, with an interval, and in money where an hour has a price.

    Nothing where no net of it has been measured; `gpus` is a trial's share, 0 on CPUs.
    """
    prices = [price for trial in (*found.to_do, *found.to_come) if (price := pricer(trial)) is not None]
    if not prices:
        return ""
    whole, share = total([*prices, Price(start, start, start)]), gpus or 1.0
    hours = Price(*(share * seconds / 3600 for seconds in whole))
    cost = money(whole, errand.options.price_per_gpu_hour, share)
    return (
        f"forecast for {len(prices)} trials: {hours.likely:.3g} {'GPU-hours' if gpus else 'hours of trials'} "
        f"({hours.least:.3g} to {hours.most:.3g}), {whole.likely / at_once / 60:.1f} min with {at_once} at once"
        + (f", {cost}" if cost else "")
    )


def foretold(errand: Errand, found: Plan) -> str:
    """Return the forecast from what has been measured on this machine before."""
    options, where = errand.options, errand.choice.data_dir
    cuda = options.gpus_per_trial != 0 and bool(glob.glob("/dev/nvidia[0-9]*"))
    gpus = (options.gpus_per_trial or max(1.0, options.ranks)) if cuda else 0.0
    asked = argparse.Namespace(**vars(options) | {"gpus_per_trial": gpus})
    given = allot(asked, [], False)
    here = hardware(given.device, given.threads, given.ranks)
    facts = {name: dataset(name, where) for name in errand.sweep.datasets}
    keys = {cell.key: speed_key(cell, facts[cell.dataset], here) for cell in errand.sweep.cells}
    room = len(glob.glob("/dev/nvidia[0-9]*")) / gpus if cuda else (os.cpu_count() or 1)
    at_once = options.max_concurrent or max(1, int(room if cuda else room / max(given.cpus, 1e-9)))
    pricer = _pricer(found, facts, known(errand.ledger, keys.values()), keys)
    sentence = _sentence(errand, found, pricer, 0.0, gpus, at_once)
    return sentence or "no forecast: the speed of these nets is measured when the sweep first starts on a machine"


def compare(
    errand: Errand,
    pricer: Callable[[Trial], Price | None],
    start: float,
    took: Sequence[tuple[Trial, float]],
    view: Any,
) -> None:
    """Say what the finished trials were priced at and what they took; keep both on the ledger."""
    done = [(seconds, found) for trial, seconds in took if errand.ledger.result(trial.key) and (found := pricer(trial))]
    if not done:
        return
    priced, actual = sum(found.likely for _, found in done) + start, sum(seconds for seconds, _ in done)
    off = f"{actual / priced - 1:+.0%}"
    view.say(f"{len(done)} trials: forecast {priced:.0f} s of trials, actual {actual:.0f} s ({off})")
    value = {"forecast_s": priced, "actual_s": actual, "trials": len(done)}
    errand.ledger.write_json(f"forecasts/{errand.sweep.title}-{stamp()}.json", value)


def bill(errand: Errand, session: Any, view: Any) -> None:
    """Say what the session cost, failed tries included, and note the price for the report."""
    hourly, seconds = errand.options.price_per_gpu_hour, session.hours() * 3600
    if hourly:
        view.say(f"this session used {seconds / 3600:.3g} hours, {money(Price(*[seconds] * 3), hourly)}")
        share = session.resources.gpus or 1.0
        errand.ledger.write_json(f"prices/{errand.sweep.title}.json", {"hourly": hourly, "share": share})
