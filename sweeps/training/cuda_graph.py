"""CUDA graphs of a learner's calls: all that only a GPU can run. Which calls are recorded is decided in `graphs`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakSet

import torch

T = TypeVar("T")


class CudaRecorder:
    """Recorder of one learner's calls on a CUDA device, all of them on one stream and in one pool of memory.

    cuBLAS has a workspace per stream, so graphs that are replayed side by side must be recorded on different streams.
    """

    def __init__(self, device: torch.device) -> None:
        """Record for `device`: on its current stream, or on a new one where that is the default, which cannot."""
        current = torch.cuda.current_stream(device)
        is_default = current == torch.cuda.default_stream(device)
        self.device = device
        self.stream = torch.cuda.Stream(device) if is_default else current  # type: ignore[no-untyped-call]
        self.graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def now(self) -> float:
        """Return the time in seconds at which this stream has done all its work."""
        torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()

    def warm_up(self, call: Callable[[], T]) -> T:
        """Call on the recording stream, so that libraries prepare what they keep for each stream."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            result = call()
        caller.wait_stream(self.stream)
        return result

    def record(
        self, call: Callable[[], torch.Tensor | None], generators: Sequence[torch.Generator]
    ) -> tuple[Callable[[], None], torch.Tensor | None]:
        """Record a call without running it; return what replays it, and the tensor that holds its result.

        Other threads may use the device meanwhile. Each generator gives the numbers of its seed at every replay.
        """
        # Replays follow each other on one stream, so their memory may be the same. A pool ends with its last graph.
        other = next(iter(self.graphs), None)
        pool = None if other is None else other.pool()
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local"):
            result = call()
        self.graphs.add(graph)
        return graph.replay, result
