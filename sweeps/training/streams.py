"""Streams of a pack: how its members share a device, and how a batch comes from where it is made to each of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")

# The driver imports this module, and never pays for torch.


class Streams(Protocol):
    """How the members of a pack share a device: one after another, or each on a stream of its own."""

    def member(self) -> AbstractContextManager[object]:
        """Return a context, to be entered again and again, in which a member takes its steps."""

    def make(self, batch: Callable[[], T]) -> T:
        """Return a batch for several members."""

    def give(self, batch: object) -> None:
        """Let the member that takes its step now have a batch."""


class OneStream:
    """Device that does its work in the order in which it is given."""

    def member(self) -> AbstractContextManager[object]:
        """Return a context that changes nothing."""
        return nullcontext()

    def make(self, batch: Callable[[], T]) -> T:
        """Return a batch."""
        return batch()

    def give(self, batch: object) -> None:
        """Let the member have a batch that is there."""


def open_streams(device: str, members: int) -> Streams:
    """Return the streams for a pack on this kind of device."""
    if device != "cuda" or members < 2:
        return OneStream()
    from sweeps.training.cuda_graph import CudaStreams

    return CudaStreams()
