"""What a sweep will cost: a few real steps of each net on the hardware at hand, kept, and multiplied out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from data.datasets import DataSet
from sweeps.ledger import Ledger
from sweeps.trial import PHASES, Cell, Trial, code_fingerprint, probed

# Steps that are timed, of whose times the spread is the interval of a forecast; fewer of a net whose step takes longer
# than LONG seconds, so that large nets on a CPU are not measured for minutes.
STEPS, LONG, FEW = 7, 0.2, 3
FIXED = 0.2  # seconds of a trial besides its pictures: opening its files, checkpoints, its result


class Speed(NamedTuple):
    """Pictures per second of a net: in training (median and extremes of a few steps) and in evaluation.

    `start` is the seconds in which its worker imported what a trial needs.
    """

    train: float
    slowest: float
    fastest: float
    evaluate: float
    start: float = 0.0


class Price(NamedTuple):
    """Seconds of one training, or of many: the likely value and the ends of its interval."""

    likely: float
    least: float
    most: float


def speed_key(cell: Cell, facts: DataSet, hardware: str) -> str:
    """Return the name of a measurement: the net, batch and size on this hardware with this code."""
    recipe = cell.recipe
    what = [cell.net.to_json(), facts.crop, facts.classes, recipe.batch, recipe.optimiser, recipe.precision]
    content = json.dumps([what, hardware, code_fingerprint()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def measure(cell: Cell, classes: int, crop: int, device: str, threads: int, ranks: int = 1) -> Speed:
    """Take a few training steps and evaluations of a cell's net on random pictures; nothing is kept of them.

    Of several ranks one is measured, on its part of a batch; what they tell each other is not counted.
    """
    import torch

    from crelu_models.modules import build, initialise
    from sweeps.evaluate import BATCH, precision_of, score
    from sweeps.train import Learner, keep_memory

    keep_memory()
    place, recipe = torch.device(device), cell.recipe
    torch.set_num_threads(threads)
    model = build(cell.net, classes, crop)
    initialise(model, cell.net, recipe.init, 0)
    model = model.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = precision_of(recipe.precision, place)
    learner = Learner(model, recipe, seed=0, steps=10**9, precision=precision)
    batch = -(-recipe.batch // ranks)
    images = torch.randn(batch, 3, crop, crop, device=place).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=place) % classes
    views = [torch.randn(BATCH, 3, crop, crop, device=place).contiguous(memory_format=torch.channels_last)]

    def done() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize()

    learner.advance(images, labels)
    first = _rate(lambda: learner.advance(images, labels), done)
    steps = STEPS if first > 1 / LONG else FEW
    rates = sorted(_rate(lambda: learner.advance(images, labels), done) * recipe.batch for _ in range(steps))
    list(score(model, views, precision))
    evaluate = _rate(lambda: list(score(model, views, precision)), done) * BATCH * ranks
    return Speed(rates[steps // 2], rates[0], rates[-1], evaluate)


def _rate(work: Callable[[], Any], done: Callable[[], None]) -> float:
    done()
    began = time.perf_counter()
    work()
    done()
    return 1 / (time.perf_counter() - began)


def known(ledger: Ledger, keys: Iterable[str]) -> dict[str, Speed]:
    """Return the measurements that the ledger keeps."""
    found = {}
    for key in keys:
        value = ledger.read_json(f"speeds/{key}.json")
        if value is not None:
            found[key] = Speed(*(float(value[name]) for name in Speed._fields))
    return found


def keep(ledger: Ledger, key: str, speed: Speed) -> None:
    """Put a measurement on the ledger."""
    ledger.write_json(f"speeds/{key}.json", speed._asdict())


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


def price(trial: Trial, facts: DataSet, speed: Speed, epochs: int = 0) -> Price:
    """Return the seconds one training of so many epochs (0: all) takes at this speed."""
    learned, evaluated = pictures(trial, facts, epochs)
    fixed = evaluated / speed.evaluate + FIXED
    return Price(*(learned / rate + fixed for rate in (speed.train, speed.fastest, speed.slowest)))


def total(prices: Sequence[Price]) -> Price:
    """Return the sum of prices."""
    return Price(*(sum(column) for column in zip(*prices, strict=True))) if prices else Price(0.0, 0.0, 0.0)


def money(seconds: Price, hourly: float, share: float = 1.0) -> str:
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
