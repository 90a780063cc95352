"""Which trials share a stream of pictures, and how many of them one worker trains side by side: a pack.

Members take the same batches in the same order, so a pack decodes and augments once what its members would each do
for themselves. That pays where decoding takes a good part of a step, and nowhere else: pictures that stay on the
device are decoded once for all trials of a worker anyway. Nothing of it changes what a trial computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.datasets import DataSet
from sweeps.execution.throughput import Maker
from sweeps.experiment.trial import Trial
from sweeps.training.shared_batches import StreamKey, stream_key

if TYPE_CHECKING:
    pass

MAX_MEMBERS = 16  # members of a pack that forms itself; what is shared is a tenth of its cost by then
# Packing pays from this ratio of (time to make a picture / time to learn from it). On a CPU both take turns at the
# same cores; a GPU learns while the cores decode, and waits only for a decoder that is slower.
MIN_RATIO = {"cpu": 0.1, "cuda": 1.1}


@dataclass(frozen=True)
class PackPolicy:
    """How packs form: up to `most` members, of the cells in `cells` (none: of all), within `memory` bytes.

    With `even` set no pack takes so many that another worker is left without work. Trials on data in `resident` need
    no common stream: each gathers its own pictures from the device.
    """

    most: int = 1
    cells: frozenset[str] | None = None
    even: bool = False
    resident: frozenset[str] = frozenset()
    memory: float = float("inf")

    def kind(self, trial: Trial) -> StreamKey:
        """Return what the trials of one pack have in common."""
        own = stream_key(trial)
        # Folds and seeds of a resident set may train side by side; each with its own indices, never a masked stream.
        return (own[0], own[1], *own[5:]) if trial.cell.dataset in self.resident else own

    def members_for(
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
        kind, (state, peak) = self.kind(first), memory_estimate(first, classes, crop)
        for trial in waiting:
            if len(found) + 2 > most:
                break
            if self.kind(trial) == kind and self._wanted(trial) and position(trial) == at:
                more, step = memory_estimate(trial, classes, crop)
                if state + more + max(peak, step) <= self.memory:
                    found.append(trial)
                    state, peak = state + more, max(peak, step)
        return found

    def _wanted(self, trial: Trial) -> bool:
        return self.cells is None or trial.cell.key in self.cells


def memory_estimate(trial: Trial, classes: int, crop: int) -> tuple[int, int]:
    """Return a trial's bytes between two steps, and the further ones of a step: members take theirs one by one.

    Weights, gradients and the optimiser's buffers, and the best weights where the phase keeps them; four bytes for
    each element of each map, as the activation leaves it, as the convolution does, and its gradient.
    """
    copies = 5 if trial.cell.recipe.optimiser == "adam" else 4
    maps = sum(channels * side * side for _, channels, side in trial.net.shapes(classes, crop))
    return 4 * copies * trial.net.parameters(classes, crop), 12 * trial.cell.recipe.batch * maps


def fits_on_device(facts: DataSet, place_bytes: int) -> bool:
    """Return whether the training pictures stay on the device once they are decoded."""
    return 3 * facts.size**2 * facts.splits["train"] <= place_bytes


def shared_datasets(trials: Iterable[Trial], resident: Collection[str]) -> set[str]:
    """Return the data sets of which several trials see the same batches, and that do not stay on the device."""
    streams = Counter(stream_key(trial) for trial in trials if trial.cell.dataset not in resident)
    return {key[0] for key, count in streams.items() if count > 1}


def policy_from_throughput(
    trials: Iterable[Trial], speeds: Mapping[str, float], makers: Mapping[str, Maker], device: str
) -> PackPolicy:
    """Return the packs that measurement asks for; `speeds` are pictures learned a second by cell key."""
    cells = set()
    for trial in trials:
        cell = trial.cell
        maker, learned = makers.get(cell.dataset), speeds.get(cell.key)
        if maker is not None and learned is not None and learned / maker.pictures_per_s >= MIN_RATIO[device]:
            cells.add(cell.key)
    memory = min((maker.memory for maker in makers.values()), default=float("inf"))
    return PackPolicy(MAX_MEMBERS if cells else 1, frozenset(cells), True, memory=memory)
