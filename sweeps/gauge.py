"""Measurements taken by the workers of a cluster before a sweep: how fast nets learn, and pictures are read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from sweeps import tasks
from sweeps.place import Place
from sweeps.price import Speed, measure
from sweeps.session import Resources
from sweeps.sharing import Maker, measure_maker
from sweeps.trial import Cell


def measure_speeds(cells: Mapping[str, tuple[Cell, int, int]], place: Place, resources: Resources) -> dict[str, Speed]:
    """Return the speed of each cell (with classes and crop), measured by as many workers at once as trials will run."""
    began = time.time()
    items = [(key, cell, classes, crop, place) for key, (cell, classes, crop) in cells.items()]
    found, ready = {}, []
    for (key, *_), measured in tasks.each(_measure, items, cpus=resources.cpus, gpus=resources.gpus):
        # What cannot be measured is not priced; if it cannot be trained, its trial will say so.
        if not isinstance(measured, str):
            found[key], since = measured
            ready.append(since)
    # The first of all was ready when its worker had been started and had imported what it needs.
    start = max(0.0, min(ready, default=began) - began)
    return {key: speed._replace(start=start) for key, speed in found.items()}


def _measure(item: tuple[str, Cell, int, int, Place]) -> tuple[Speed, float]:
    import torch  # noqa: F401 - part of a worker's start, not of the measurement

    _, cell, classes, crop, place = item
    since = time.time()
    return measure(cell, classes, crop, place.device, place.threads, place.ranks), since


def measure_makers(names: Iterable[str], place: Place, resources: Resources) -> dict[str, Maker]:
    """Return how fast one worker makes training views of each of these data sets; those that fail are left out."""
    items = [(name, place) for name in names]
    makers = tasks.each(measure_maker, items, cpus=resources.cpus, gpus=resources.gpus)
    # Trials of damaged data will say so; no pack is formed for them.
    found = {name: maker for (name, _), maker in makers if not isinstance(maker, str)}
    return {name: maker._replace(memory=maker.memory * (resources.gpus or 1.0)) for name, maker in found.items()}
