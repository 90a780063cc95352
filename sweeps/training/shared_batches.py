"""Batches that trials side by side share: each is read, decoded and augmented once, for the first that asks for it.

A trial yields its position before each batch. A caller that advances several trials, always those furthest behind,
makes them share batches; a trial that runs alone computes the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from crelu_models.model import Model
from sweeps.experiment.trial import Trial

T = TypeVar("T")


class Position(NamedTuple):
    """Position of a trial: epochs completed, the stage that it is in, and the number of the batch it asks for."""

    epoch: int
    stage: int
    number: int


# What follows an epoch, in this order, and last the steps of the next: a trial at its end is tested before those that
# continue take another step.
HELD_OUT, PROBE, TEST, LEARNED, STEP = range(5)

Steps = Generator[Position, None, T]


def drain(steps: Steps[T]) -> T:
    """Take all steps of a trial that runs alone, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


class BatchStream:
    """Iterator over batches, its position, and the batch it gave last.

    Trials that ask for the same batch in turn all get the one made for the first of them. A request for any other
    batch moves the iterator there.
    """

    def __init__(self) -> None:
        """Begin with nothing open."""
        self._at: tuple[Hashable, int] | None = None
        self._batches: Generator[Any, None, None] | None = None
        self._last: Any = None

    def get(self, name: Hashable, number: int, batches: Callable[[int], Generator[T, None, None]]) -> T:
        """Return batch `number` of those called `name`; `batches(number)` opens them there."""
        if self._at != (name, number):
            if self._batches is None or self._at != (name, number - 1):
                self.close()
                self._batches = batches(number)
            self._at = None
            self._last = None
            self._last = next(self._batches)
            self._at = (name, number)
        batch: T = self._last
        return batch

    def close(self) -> None:
        """Close the iterator and release the batch."""
        if self._batches is not None:
            self._batches.close()
        self._at = None
        self._batches = None
        self._last = None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class PackContext:
    """What a trial shares with those beside it: their batches, and a clock that counts its part of the time.

    `others_present()` returns whether there are others that would free memory by leaving.
    """

    stream: BatchStream = field(default_factory=BatchStream)
    clock: Callable[[], float] = time.monotonic
    others_present: Callable[[], bool] = _never


StreamKey = tuple[Any, ...]


def stream_key(trial: Trial) -> StreamKey:
    """Return what decides a trial's batches: data, split, order, augmentation, length, and a model's own side."""
    recipe = trial.recipe
    side = trial.cell.net.size if isinstance(trial.cell.net, Model) else 0
    pictures = (trial.cell.dataset, trial.phase, trial.seed, trial.fold, trial.folds)
    views = (
        recipe.flip,
        recipe.shift,
        recipe.lighting,
        recipe.resized_crop,
        recipe.rand_augment,
        recipe.rand_magnitude,
    )
    return *pictures, recipe.batch, recipe.epochs, recipe.drop_last, *views, recipe.mixup, side
