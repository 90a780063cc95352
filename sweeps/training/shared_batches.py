"""Batches that trials side by side take together: each is read, decoded and augmented once, by whoever comes first.

A trial gives way before each batch and says where it stands, as a turn. Whoever lets several take their turns, the
least first, makes them share; a trial that is drained alone shares with nobody, and computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeps.experiment.trial import Trial

if TYPE_CHECKING:
    pass
import time
from collections.abc import Generator, Hashable
from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


class Position(NamedTuple):
    """Where a trial stands: the epochs behind it, what it does there, and the number of the batch it asks for."""

    epoch: int
    stage: int
    number: int


# What follows an epoch, in this order, and then the steps of the next: a trial that has come to its end is tested
# before those that go on take another step.
HELD_OUT, PROBE, TEST, LEARNED, STEP = range(5)

Steps = Generator[Position, None, T]


class BatchStream:
    """One iterator over batches, where it stands, and the batch it gave last.

    Trials that ask for the same batches, none ahead of another, all get the one that the first of them caused to be
    made. Whoever asks for any other moves the iterator there.
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
            self._at = self._last = None
            self._last = next(self._batches)
            self._at = (name, number)
        batch: T = self._last
        return batch

    def close(self) -> None:
        """Let go of the iterator and of the batch."""
        if self._batches is not None:
            self._batches.close()
        self._at = self._batches = self._last = None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class PackContext:
    """What a trial has in common with those beside it: their batches, and a clock that counts its part of the time.

    `crowded()` says whether others are there whose leaving would make room.
    """

    stream: BatchStream = field(default_factory=BatchStream)
    clock: Callable[[], float] = time.monotonic
    others_present: Callable[[], bool] = _never


def stream_key(trial: Trial) -> StreamKey:
    """Return what makes two trials see the same batches: data, split, order, augmentation, length."""
    recipe = trial.cell.recipe
    what = (trial.cell.dataset, trial.phase, trial.seed, trial.fold, trial.folds)
    return *what, recipe.batch, recipe.epochs, recipe.drop_last, recipe.flip, recipe.shift, recipe.lighting


StreamKey = tuple[Any, ...]
