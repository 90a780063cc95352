"""What a sweep will cost: a few real steps of each net on the hardware at hand, kept, and multiplied out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from data.datasets import DataSet
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.trial import Cell
from sweeps.store.ledger import Ledger

# Steps that are timed, of whose times the spread is the interval of a forecast; fewer of a net whose step takes longer
# than LONG seconds, so that large nets on a CPU are not measured for minutes.
STEPS, LONG, FEW = 7, 0.2, 3


class Speed(NamedTuple):
    """Pictures per second of a net: in training (median and extremes of a few steps) and in evaluation.

    `start` is the seconds in which its worker imported what a trial needs.
    """

    train: float
    slowest: float
    fastest: float
    evaluate: float
    start: float = 0.0


def speed_key(cell: Cell, facts: DataSet, hardware: str) -> str:
    """Return the name of a measurement: the net, batch and size on this hardware with this code."""
    recipe = cell.recipe
    what = [cell.net.to_json(), facts.crop, facts.classes, recipe.batch, recipe.optimiser, recipe.precision]
    content = json.dumps([what, hardware, code_fingerprint(cell.net)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def measure(cell: Cell, classes: int, crop: int, device: str, threads: int, ranks: int = 1) -> Speed:
    """Take a few training steps and evaluations of a cell's net on random pictures; nothing is kept of them.

    Of several ranks one is measured, on its part of a batch; what they tell each other is not counted.
    """
    import torch

    from crelu_models.modules import build, initialise
    from sweeps.training.evaluate import BATCH, precision_of, score
    from sweeps.training.loop import Learner
    from sweeps.training.runtime import keep_memory

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

    learner.step(images, labels)
    first = _rate(lambda: learner.step(images, labels), done)
    steps = STEPS if first > 1 / LONG else FEW
    rates = sorted(_rate(lambda: learner.step(images, labels), done) * recipe.batch for _ in range(steps))
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
