"""Which trials share a stream of pictures, and how many of them one worker trains side by side: a pack.

Members take the same batches in the same order, so a pack decodes and augments once what its members would each do
for themselves. That pays where decoding takes a good part of a step, and nowhere else: pictures that stay on the
device are decoded once for all trials of a worker anyway. Nothing of it changes what a trial computes.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.availability import bring
from data.datasets import DataSet
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger

if TYPE_CHECKING:
    from sweeps.training.runtime import Place

MOST = 16  # members of a pack that forms itself; what is shared is a tenth of its cost by then
# Packing pays from this ratio of (time to make a picture / time to learn from it). On a CPU both take turns at the
# same cores; a GPU learns while the cores decode, and waits only for a decoder that is slower.
PAYS = {"cpu": 0.1, "cuda": 1.1}
SECONDS = 1.5  # of decoding, after the decoder has been compiled

Key = tuple[Any, ...]


def stream(trial: Trial) -> Key:
    """Return what makes two trials see the same batches: data, split, order, augmentation, length."""
    recipe = trial.cell.recipe
    what = (trial.cell.dataset, trial.phase, trial.seed, trial.fold, trial.folds)
    return *what, recipe.batch, recipe.epochs, recipe.drop_last, recipe.flip, recipe.shift, recipe.lighting


class Maker(NamedTuple):
    """What a worker found of a data set: training views made a second, and the bytes of memory it may fill."""

    pictures_per_s: float
    memory: float


@dataclass(frozen=True)
class Packs:
    """How packs form: up to `most` members, of the cells in `cells` (none: of all), within `memory` bytes.

    With `even` set no pack takes so many that another worker is left without work. Trials on data in `resident` need
    no common stream: each gathers its own pictures from the device.
    """

    most: int = 1
    cells: frozenset[str] | None = None
    even: bool = False
    resident: frozenset[str] = frozenset()
    memory: float = float("inf")

    def kind(self, trial: Trial) -> Key:
        """Return what the trials of one pack have in common."""
        own = stream(trial)
        # Folds and seeds of a resident set may train side by side; each with its own indices, never a masked stream.
        return (own[0], own[1], *own[5:]) if trial.cell.dataset in self.resident else own

    def mates(
        self,
        first: Trial,
        waiting: Sequence[Trial],
        position: Callable[[Trial], int],
        most: int,
        classes: int,
        crop: int,
    ) -> list[Trial]:
        """Return those of `waiting` to train beside `first`: of its kind, at its epoch, at most `most` with it.

        `position(trial)` is the epoch a trial stands at, negative for one that should be alone.
        """
        found: list[Trial] = []
        at, most = position(first), min(most, self.most)
        if most < 2 or at < 0 or not self._wanted(first):
            return found
        kind, (state, peak) = self.kind(first), footprint(first, classes, crop)
        for trial in waiting:
            if len(found) + 2 > most:
                break
            if self.kind(trial) == kind and self._wanted(trial) and position(trial) == at:
                more, step = footprint(trial, classes, crop)
                if state + more + max(peak, step) <= self.memory:
                    found.append(trial)
                    state, peak = state + more, max(peak, step)
        return found

    def _wanted(self, trial: Trial) -> bool:
        return self.cells is None or trial.cell.key in self.cells


def footprint(trial: Trial, classes: int, crop: int) -> tuple[int, int]:
    """Return a trial's bytes between two steps, and the further ones of a step: members take theirs one by one.

    Weights, gradients and the optimiser's buffers, and the best weights where the phase keeps them; four bytes for
    each element of each map, as the activation leaves it, as the convolution does, and its gradient.
    """
    copies = 5 if trial.cell.recipe.optimiser == "adam" else 4
    maps = sum(channels * side * side for _, channels, side in trial.net.shapes(classes, crop))
    return 4 * copies * trial.net.parameters(classes, crop), 12 * trial.cell.recipe.batch * maps


def resident(facts: DataSet, place_bytes: int) -> bool:
    """Return whether the training pictures stay on the device once they are decoded."""
    return 3 * facts.size**2 * facts.splits["train"] <= place_bytes


def measure_maker(item: tuple[str, Place]) -> Maker:
    """Return how fast a worker makes training views of a data set, by its name, that does not stay on the device."""
    import numpy as np
    import torch

    from data.augment import training_view
    from data.datasets import beton_path, dataset, order
    from data.load import open_pictures

    name, place = item
    bring(name, place.data_dir, place.data_source)
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


def shared(trials: Iterable[Trial], resident: Collection[str]) -> set[str]:
    """Return the data sets of which several trials see the same batches, and that do not stay on the device."""
    streams = Counter(stream(trial) for trial in trials if trial.cell.dataset not in resident)
    return {key[0] for key, count in streams.items() if count > 1}


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


def worthwhile(trials: Iterable[Trial], speeds: Mapping[str, float], makers: Mapping[str, Maker], device: str) -> Packs:
    """Return the packs that measurement asks for; `speeds` are pictures learned a second by cell key."""
    cells = set()
    for trial in trials:
        cell = trial.cell
        maker, learned = makers.get(cell.dataset), speeds.get(cell.key)
        if maker is not None and learned is not None and learned / maker.pictures_per_s >= PAYS[device]:
            cells.add(cell.key)
    memory = min((maker.memory for maker in makers.values()), default=float("inf"))
    return Packs(MOST if cells else 1, frozenset(cells), True, memory=memory)
