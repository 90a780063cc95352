"""What the first workers measure before they train: how fast nets learn, and how fast pictures are read.

It goes through the queue in shares, ahead of the trials: who measures has started, and imported, what its first trial
needs anyway, and a cluster that has no machine yet starts one for it as it would for a trial.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.availability import fetch_dataset
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger

if TYPE_CHECKING:
    from sweeps.training.runtime import RuntimeConfig

import json
import time
from dataclasses import field
from functools import partial

from sweeps.execution.price import Speed, measure
from sweeps.execution.watchdog import Notify, stop_signal
from sweeps.experiment.trial import trial_from_json
from sweeps.store.ledger import Json
from sweeps.training.runtime import RuntimeConfig


class Maker(NamedTuple):
    """What a worker found of a data set: training views made a second, and the bytes of memory it may fill."""

    pictures_per_s: float
    memory: float


Found = Callable[[dict[str, Speed], dict[str, Maker]], None]


@dataclass
class Gauge:
    """What is to be measured: nets, each by a trial of it with classes and crop, and data sets.

    `found` is called once with all that was, when nobody measures any more. With `first` no trial starts before that.
    What cannot be measured is left out: its trial will say what is wrong with it.
    """

    nets: Mapping[str, tuple[Trial, int, int]]
    data: Sequence[str]
    found: Found
    workers: int
    first: bool = False
    share: float = 1.0  # of a GPU, that a worker has
    running: set[str] = field(default_factory=set)
    speeds: dict[str, Speed] = field(default_factory=dict)
    makers: dict[str, Maker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Deal what there is among the workers, the largest nets first."""
        largest = sorted(self.nets, key=lambda key: -self._work(key))
        items: list[tuple[str, Any]] = [("data", name) for name in self.data]
        items += [("nets", [key, json.dumps(self.nets[key][0].to_json()), *self.nets[key][1:]]) for key in largest]
        workers = max(1, min(self.workers, len(items)))
        dealt = [items[worker::workers] for worker in range(workers)] if items else []
        self.waiting = [{kind: [item for sort, item in share if sort == kind] for kind in ("nets", "data")}
                        for share in dealt]  # fmt: skip
        self.starts: list[float] = []

    def _work(self, key: str) -> int:
        trial, classes, crop = self.nets[key]
        return trial.cell.net.macs(classes, crop)

    def hand(self, name: str) -> Json | None:
        """Return the next share, for Tune's trial of this name; None: all are handed out."""
        if not self.waiting:
            return None
        self.running.add(name)
        return self.waiting.pop(0)

    def hear(self, measured: Json) -> None:
        """Take in what a worker has found."""
        self.starts.append(float(measured["start"]))
        self.speeds |= {key: Speed(*speed)._replace(start=self.starts[-1]) for key, speed in measured["nets"].items()}
        for name, (rate, memory) in measured["data"].items():
            self.makers[name] = Maker(rate, memory * self.share)

    def leave(self, name: str) -> bool:
        """See a worker off; return whether it measured."""
        if name not in self.running:
            return False
        self.running.remove(name)
        self._end()
        return True

    def abandon(self) -> None:
        """Expect nothing more of those that measure: their Tuner is gone."""
        if self.running:
            self.running.clear()
            self._end()

    def _end(self) -> None:
        if not self.running and not self.waiting:
            self.first = False
            self.found(self.speeds, self.makers)


def take(config: Json, tell: Notify) -> None:
    """Measure a share, on a worker; tell {"measured": ...} of it."""
    began = time.perf_counter()
    import torch

    import sweeps.execution.rank_processes  # noqa: F401 - what a trial needs is a worker's start, whoever measures or trains first

    place, share, start = RuntimeConfig(**config["place"]), config["measure"], time.perf_counter() - began
    stop = stop_signal(Ledger(place.ledger), config["stop"])
    found: Json = {"start": start, "nets": {}, "data": {}}
    for key, text, classes, crop in share["nets"]:
        if not stop():
            cell = trial_from_json(json.loads(text)).cell
            work = partial(measure, cell, classes, crop, place.device, place.threads, place.ranks)
            _note(found["nets"], key, work)
    for name in share["data"]:
        if not stop():
            _note(found["data"], name, partial(measure_maker, (name, place)))
    if place.device == "cuda":
        torch.cuda.empty_cache()  # the memory is that of the trials, of other workers too
    tell({"measured": found})


def _note(found: Json, name: str, work: Callable[[], Sequence[float]]) -> None:
    try:
        found[name] = list(work())
    except Exception as error:
        # Its trial will meet this too, and have it on the ledger.
        print(f"not measured: {name}: {error!r}")


SECONDS = 1.5  # of decoding, after the decoder has been compiled


def measure_maker(item: tuple[str, RuntimeConfig]) -> Maker:
    """Return how fast a worker makes training views of a data set, by its name, that does not stay on the device."""
    import numpy as np
    import torch

    from data.augment import training_view
    from data.datasets import beton_path, dataset, order
    from data.load import open_pictures

    name, place = item
    fetch_dataset(name, place.data_dir, place.data_source)
    facts, device = dataset(name, Path(place.data_dir)), torch.device(place.device)
    torch.set_num_threads(place.threads)
    path = beton_path(name, "train", Path(place.data_dir))
    with open_pictures(path, reader=place.reader, workers=place.workers, device=device, resident_bytes=0) as pictures:
        sidecar = pictures.sidecar
        indices, made, began = order(0, 0, np.arange(len(pictures), dtype=np.int64)), 0, 0.0
        for number, batch in enumerate(pictures.batches(indices, 64)):
            training_view(
                batch.images, batch.ids, seed=0, epoch=0, crop=facts.crop, flip=True, shift=0, lighting=0.0,
                mean=sidecar.mean, std=sidecar.std, eigenvalues=sidecar.eigenvalues, eigenvectors=sidecar.eigenvectors,
            )  # fmt: skip
            # The first batches were decoded ahead while the decoder was compiled.
            if number == 4:
                began = time.perf_counter()
            elif number > 4:
                made += len(batch.labels)
                if time.perf_counter() - began > SECONDS:
                    break
    cuda = device.type == "cuda"
    memory = 0.8 * torch.cuda.get_device_properties(device).total_memory if cuda else float("inf")
    return Maker(made / (time.perf_counter() - began) if made else float("inf"), memory)


def known(ledger: Ledger, names: Iterable[str], hardware: str) -> dict[str, Maker]:
    """Return the measurements of data sets that the ledger keeps."""
    found = ((name, ledger.read_json(_file(name, hardware))) for name in names)
    return {name: Maker(**value) for name, value in found if value is not None}


def keep(ledger: Ledger, makers: Mapping[str, Maker], hardware: str) -> None:
    """Put measurements on the ledger."""
    for name, maker in makers.items():
        ledger.write_json(_file(name, hardware), maker._asdict())


def _file(name: str, hardware: str) -> str:
    return f"makers/{hashlib.sha256(f'{name} {hardware}'.encode()).hexdigest()[:20]}.json"
