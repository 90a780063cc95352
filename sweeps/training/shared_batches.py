"""Batches that trials side by side share: each is read, decoded and augmented once, for the first that asks for it.

A trial yields its position before each batch. A caller that advances several trials, always those furthest behind,
makes them share batches; a trial that runs alone computes the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

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


class Streams(Protocol):
    """Streams of a device: members of a pack run one after another, or each on its own, and batches are made on one."""

    def member(self) -> AbstractContextManager[object]:
        """Return a context, to be entered again and again, in which a member takes its steps."""

    def make(self, source: object, batch: Callable[[], T]) -> T:
        """Return a batch from a source of batches, for one member or several."""

    def give(self, source: object, batch: object) -> None:
        """Let the member that takes its step now have a batch of a source."""


class OneStream:
    """Device that does its work in the order in which it is given."""

    def member(self) -> AbstractContextManager[object]:
        """Return a context that changes nothing."""
        return nullcontext()

    def make(self, source: object, batch: Callable[[], T]) -> T:  # noqa: ARG002
        """Return a batch."""
        return batch()

    def give(self, source: object, batch: object) -> None:
        """Let the member have a batch that is there."""


class BatchStream:
    """Iterator over batches, its position, and the batch it gave last.

    Trials that ask for the same batch in turn all get the one made for the first of them. A request for any other
    batch moves the iterator there.
    """

    def __init__(self, streams: Streams | None = None) -> None:
        """Begin with nothing open; `streams` bring a batch from where it is made to whoever takes it."""
        self._streams = streams or OneStream()
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
            self._last = self._streams.make(self, partial(next, self._batches))
            self._at = (name, number)
        batch: T = self._last
        self._streams.give(self, batch)
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
    """Context of a trial in a pack: shared batches, and a clock that counts its part of the time.

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
    pictures = (trial.cell.dataset, trial.phase, trial.seed, trial.fold, trial.folds, trial.cell.decoder)
    views = (recipe.flip, recipe.shift, recipe.lighting)
    drawn = (recipe.resized_crop, recipe.rand_augment, recipe.rand_magnitude)
    return *pictures, recipe.batch, recipe.epochs, recipe.drop_last, *views, *drawn, recipe.mixup, side
