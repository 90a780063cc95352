"""Speed of a training, and its batches' share of the time: what trials could save that take the same ones together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# Waits of a GPU that are not read yet: a step is queued at most that far ahead. So many batches of JPEG, of some 50 MB
# each, stay in page-locked memory until they are copied.
PENDING = 8


class DataTimer:
    """Timer of one epoch's batches, without a training's first one: it brings pictures in, and compiles kernels.

    On a CPU decoding and learning take turns at the same cores, so processor time counts: of the decoder's threads, and
    of this thread while it makes a batch. A GPU learns while the cores decode, so only the time counts in which it has
    no work between the end of a step and the next batch.
    """

    def __init__(
        self, device: torch.device, decode_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Time batches for `device`; `decode_seconds()` is the processor time of the decoder's threads so far.

        The speed is by `clock()`, which counts a member's part of a pack's time.
        """
        self.cuda = device.type == "cuda"
        self.decode_seconds = decode_seconds
        self.clock = clock
        self.is_warm = False
        self.start()

    def start(self) -> None:
        """Begin an epoch, or the rest of one that is resumed."""
        self.batches = 0
        self.alone = True
        self._reset()

    def _reset(self) -> None:
        self.uncounted = self.batches
        self.counted_since = self.clock()
        self.seconds = 0.0
        self.waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.decoded = self.decode_seconds()
        self.began = self._now()

    def fetch(self, get: Callable[[], T], shared: bool) -> T:
        """Return the next batch from `get`; `shared` says that other trials take the same one."""
        if self.batches == 1 and not self.is_warm:
            self.is_warm = True
            self._reset()  # the first batch and its step say nothing of the others
        self.batches += 1
        self.alone = self.alone and not shared
        if self.cuda:
            step_end = _event()
            batch = get()
            self.waits.append((step_end, _event()))
            self._read_waits(PENDING)
            return batch
        began = self._now()
        batch = get()
        self.seconds += self._now() - began
        return batch

    def speed(self) -> float:
        """Return the batches a second since `start`."""
        return (self.batches - self.uncounted) / max(self.clock() - self.counted_since, 1e-9)

    def share(self) -> float | None:
        """Return the batches' share of the time since `start`, in [0, 1); None where others took the same batches."""
        self._read_waits(0)
        total, batches = self._now() - self.began, self.seconds
        if not self.cuda:
            decoding = self.decode_seconds() - self.decoded
            total, batches = total + decoding, batches + decoding
        return min(batches / max(total, 1e-9), 0.999) if self.alone else None

    def _now(self) -> float:
        return time.perf_counter() if self.cuda else time.thread_time()

    def _read_waits(self, pending: int) -> None:
        while len(self.waits) > pending:
            step_end, batch_end = self.waits.pop(0)
            batch_end.synchronize()
            self.seconds += step_end.elapsed_time(batch_end) / 1000


def _event() -> torch.cuda.Event:
    """Return an event after all work that the GPU has so far."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
