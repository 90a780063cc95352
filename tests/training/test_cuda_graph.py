"""What only a GPU runs, played on stand-ins of torch's streams and recordings."""

import gc
from collections import abc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sweeps.training.gpu import cuda_graph
from sweeps.training.gpu.cuda_graph import CudaRecorder, CudaStreams
from sweeps.training.shared_batches import BatchStream

GPU = torch.device("cuda")
DEFAULT = 0  # number of the stream that torch begins on


class Stream(SimpleNamespace):
    """Stream of a stand-in."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Streams:
    """Torch's streams by number, and the one that is current."""

    def __init__(self) -> None:
        self.opened = [SimpleNamespace(number=DEFAULT)]
        self.current = self.opened[0]

    def open(self, *_: object) -> SimpleNamespace:
        stream = Stream(number=len(self.opened), device_index=0, wait_stream=lambda _: None)
        self.opened.append(stream)
        return stream

    def on(self, stream: SimpleNamespace) -> "OnStream":
        return OnStream(self, stream)


class OnStream:
    """Context in which a stream is current, to be entered again and again."""

    def __init__(self, streams: Streams, stream: SimpleNamespace) -> None:
        self.streams = streams
        self.stream = stream

    def __enter__(self) -> SimpleNamespace:
        self.before, self.streams.current = self.streams.current, self.stream
        return self.stream

    def __exit__(self, *_: object) -> None:
        self.streams.current = self.before


class Generator:
    """Generator of a device that has been recorded."""

    is_recorded = True

    def clone_state(self) -> "Generator":
        clone = Generator()
        clone.is_recorded = False
        return clone

    def graphsafe_set_state(self, other: "Generator") -> None:
        self.is_recorded = other.is_recorded


class Graph:
    """Graph of a stand-in."""

    def pool(self) -> tuple[int, int]:
        return (0, 7)

    def replay(self) -> None: ...


class Device:
    """Torch's calls of a GPU as in 2.11: a recording that fails keeps its stream, and its pool stays open."""

    def __init__(self, ends_pools: bool) -> None:
        self.ends_pools = ends_pools
        self.streams = Streams()
        self.generator = Generator()
        self.pools: list[object] = []
        self.open_pools: list[object] = []
        self.released: list[object] = []

    @contextmanager
    def graph(self, _graph: object, pool: object, stream: Any, **_: object) -> Iterator[None]:
        self.pools.append(pool)
        self.open_pools.append(pool)
        before, self.streams.current = self.streams.current, stream
        try:
            yield
        except Exception as error:
            if self.ends_pools:
                self.open_pools.remove(pool)
            raise RuntimeError("operation failed due to a previous error during capture") from error
        self.open_pools.remove(pool)
        self.streams.current = before

    def end(self, _device: int, pool: object) -> None:
        if pool not in self.open_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.open_pools.remove(pool)

    def release(self, _device: int, pool: object) -> None:
        self.released.append(pool)


def device(patch: pytest.MonkeyPatch, ends_pools: bool = False) -> Device:
    stand_in = Device(ends_pools)
    streams = stand_in.streams
    for name, value in {
        "current_stream": lambda *_: streams.current,
        "default_stream": lambda *_: streams.opened[DEFAULT],
        "current_device": lambda: 0,
        "Stream": streams.open,
        "stream": streams.on,
        "graph": stand_in.graph,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: (0, len(stand_in.pools)),
        "default_generators": (stand_in.generator,),
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch._C, "_cuda_endAllocateToPool", stand_in.end, raising=False)
    patch.setattr(torch._C, "_cuda_releasePool", stand_in.release, raising=False)
    patch.setattr(cuda_graph, "LEFT_OPEN", [])
    cuda_graph.own_stream.cache_clear()
    return stand_in


@pytest.fixture(autouse=True)
def _streams_end() -> Iterator[None]:
    yield
    cuda_graph.own_stream.cache_clear()


@pytest.mark.parametrize("ends_pools", [False, True])
def test_a_recording_that_fails_leaves_stream_memory_and_generator_as_they_were(
    monkeypatch: pytest.MonkeyPatch, ends_pools: bool
) -> None:
    gpu = device(monkeypatch, ends_pools)
    recorder = CudaRecorder(GPU)

    def looks() -> None:
        assert gpu.streams.current is recorder.stream
        raise ValueError("a look at a number")

    with pytest.raises(RuntimeError, match="previous error during capture"):
        recorder.record(looks, ())
    assert gpu.streams.current.number == DEFAULT
    assert gpu.open_pools == []
    assert not gpu.generator.is_recorded
    assert len(recorder.graphs) == 0
    # A pool that torch has ended is its own to release.
    assert (len(gpu.released), len(cuda_graph.LEFT_OPEN)) == ((0, 0) if ends_pools else (1, 1))


def test_recordings_of_a_learner_share_their_memory_while_one_of_them_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = device(monkeypatch)
    recorder = CudaRecorder(GPU)
    replay, _ = recorder.record(lambda: None, ())
    recorder.record(lambda: None, ())
    assert gpu.pools[1] == Graph().pool()
    del replay
    recorder.record(lambda: None, ())
    assert gpu.pools[2] == (0, 2)
    assert gpu.generator.is_recorded
    assert gpu.streams.current.number == DEFAULT


def test_no_garbage_is_collected_while_a_step_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch)
    recorder = CudaRecorder(GPU)
    collects: list[bool] = []
    assert gc.isenabled()
    recorder.record(lambda: collects.append(gc.isenabled()), ())
    assert gc.isenabled()
    gc.disable()
    try:
        recorder.record(lambda: collects.append(gc.isenabled()), ())
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert collects == [False, False]


def test_trials_and_packs_one_after_another_take_the_same_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = device(monkeypatch).streams
    taken = []
    for _ in range(3):
        pack = CudaStreams()
        members = []
        for _ in range(2):
            with pack.member() as stream:  # type: ignore[attr-defined]
                assert CudaRecorder(GPU).stream is stream
                members.append(stream)
        taken.append([CudaRecorder(GPU).stream, pack.batches, *members])
    assert len({stream.number for stream in taken[0]}) == 4
    assert taken == [taken[0]] * 3
    assert len(streams.opened) == 1 + 4


@pytest.mark.parametrize("sources", [1, 8])
def test_a_pack_runs_as_many_batches_ahead_whether_its_members_share_them_or_not(
    sources: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device(monkeypatch)
    pack = CudaStreams()
    number = 0
    ahead: list[int] = []  # batches from that whose reader the host waits for to that which it asks for

    def record_event() -> SimpleNamespace:
        recorded = number - 1
        return SimpleNamespace(synchronize=lambda: ahead.append(number - recorded))

    def batches(first: int) -> abc.Generator[int, None, None]:
        while True:
            yield first

    members = []
    shared = [BatchStream(pack) for _ in range(sources)]
    for member in range(8):
        context = pack.member()
        with context as stream:
            stream.record_event = record_event  # type: ignore[attr-defined]
        members.append((context, shared[member % sources]))
    for number in range(10):
        for context, source in members:
            with context:
                source.get("", number, batches)
    waits = 10 - 1 - CudaStreams.AHEAD  # for each member: all batches but the last ones
    assert ahead == [CudaStreams.AHEAD + 1] * 8 * waits
