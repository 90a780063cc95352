"""CUDA graphs of a learner's calls, and the streams of a pack: all that only a GPU can run, and no decisions."""

from __future__ import annotations

import gc
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import TypeVar
from weakref import WeakSet

import torch

T = TypeVar("T")

# Streams of ours on a device, by number: of recordings, of a pack's batches, and from here on of its members.
RECORDINGS, BATCHES, MEMBERS = range(3)
# Recordings that failed and that torch left open: its allocator of pinned memory may still ask them.
LEFT_OPEN: list[torch.cuda.CUDAGraph] = []


@cache
def own_stream(device: torch.device, _number: int) -> torch.cuda.Stream:
    """Return stream `_number` of ours on a device, the same one for every trial of this process.

    Torch deals out 32 streams in turn, also to torchvision's decoder, which works in a thread of its own. New streams
    for every trial would come round to its stream, and a stream that records takes no work from others. The memory of
    a stream's freed tensors and the workspaces of its libraries serve the next trial too.
    """
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


class CudaRecorder:
    """Recorder of one learner's calls on a CUDA device, all of them on one stream and in one pool of memory.

    cuBLAS has a workspace per stream, so graphs that are replayed side by side must be recorded on different streams.
    """

    def __init__(self, device: torch.device) -> None:
        """Record for `device`: on its current stream, or on one of ours where that is the default, which cannot."""
        current = torch.cuda.current_stream(device)
        is_default = current == torch.cuda.default_stream(device)
        self.device = device
        self.stream = own_stream(device, RECORDINGS) if is_default else current
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
        pool = torch.cuda.graph_pool_handle() if other is None else other.pool()
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        caller = torch.cuda.current_stream(self.device)
        recording = torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local")
        try:
            # In torch 2.11 a recording that fails stays on its stream.
            with torch.cuda.stream(caller), collector_paused(), recording:
                result = call()
        except BaseException:
            self._undo(graph, pool)
            raise
        self.graphs.add(graph)
        return graph.replay, result

    def _undo(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """End a recording that failed where torch has not: its allocator would free no tensor of two streams again.

        The device's own generator would draw no more.
        """
        device = self.stream.device_index
        with suppress(RuntimeError):  # torch has ended it
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
            LEFT_OPEN.append(graph)
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


class CudaStreams:
    """Streams of a trial or a pack on one GPU: members' work runs side by side, and batches are made on another stream.

    A batch is copied to the GPU and augmented there while the step before it is taken. Its memory is used again when
    all members have done with it; `AHEAD` batches of each source may be under way.
    """

    AHEAD = 4

    def __init__(self) -> None:
        """Open the stream of the batches, behind all work given so far."""
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.batches = own_stream(self.device, BATCHES)
        self.batches.wait_stream(torch.cuda.current_stream())
        self.members = 0
        # By source, of its last batch and of those before.
        self.readers: defaultdict[object, set[torch.cuda.Stream]] = defaultdict(set)
        self.under_way: defaultdict[object, deque[list[torch.cuda.Event]]] = defaultdict(deque)

    def member(self) -> AbstractContextManager[object]:
        """Return a context, to be entered again and again, whose work has a stream of its own."""
        stream = own_stream(self.device, MEMBERS + self.members)
        self.members += 1
        stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(stream)

    def make(self, source: object, batch: Callable[[], T]) -> T:
        """Return a batch made on the stream of the batches; wait where too many of its source are under way."""
        under_way = self.under_way[source]
        under_way.append([reader.record_event() for reader in self.readers.pop(source, ())])
        while len(under_way) > self.AHEAD:
            for event in under_way.popleft():
                event.synchronize()
        with torch.cuda.stream(self.batches):
            return batch()

    def give(self, source: object, batch: object) -> None:
        """Let the current stream go on once a batch is made, and keep the batch's memory until it has read it."""
        reader = torch.cuda.current_stream()
        reader.wait_stream(self.batches)
        self.readers[source].add(reader)
        for tensor in tensors_of(batch):
            if tensor.is_cuda:
                tensor.record_stream(reader)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no garbage inside the block: it may hold a graph, and to free one ends a recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def tensors_of(batch: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in a batch: a tensor, or tuples of batches."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, tuple):
        for part in batch:
            yield from tensors_of(part)
