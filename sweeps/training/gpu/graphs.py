"""Graphs of a learner's calls: a call on tensors of one layout is recorded once, and then replayed by one launch.

A step of a small net is some 140 kernels, and launching them takes longer than running them. A replay computes what
the call computes, bit for bit, as long as all that changes between calls is in tensors: the inputs are copied into
those of the recording, and seeds are set before. What else a recording holds fast is named by `constants`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sweeps.training.shared_batches import OneStream, Streams

T = TypeVar("T")
Call = Callable[..., Tensor | None]

WARM_UP = 3  # calls before the recording, taken as they come: libraries choose kernels and make their workspaces
# A recording is worth its seconds where a quarter of the calls' time pays for it. Replays save a half of a step of the
# nets on CIFAR at batch 128, three quarters of VGG's, and little where a step is long anyway.
SAVED = 0.25
RECORDING_SECONDS = 0.3


class Recorder(Protocol):
    """Device that records calls: CUDA, or a test's stand-in."""

    def now(self) -> float:
        """Return the time in seconds, after all work given to the device."""

    def warm_up(self, call: Callable[[], T]) -> T:
        """Call, where a recording will be made."""

    def record(
        self, call: Callable[[], Tensor | None], generators: Sequence[torch.Generator]
    ) -> tuple[Callable[[], None], Tensor | None]:
        """Record a call without running it; return what replays it, and the tensor that holds its result."""


@dataclass
class _Recording:
    """Call on inputs of one layout: warmed up, then replayed from `inputs` to `result`."""

    constants: Hashable
    calls: int = 0
    seconds: float = 0.0
    inputs: tuple[Tensor, ...] = ()
    result: Tensor | None = None
    replay: Callable[[], None] | None = None
    pays: bool = True


def pays(calls: int, call_seconds: float, recording_seconds: float = RECORDING_SECONDS) -> bool:
    """Return whether replays of so many calls are expected to save the time of a recording."""
    return SAVED * calls * call_seconds > recording_seconds


def name_of(function: Call) -> str:
    """Return the name under which calls of a function are recorded and counted."""
    return str(getattr(function, "__name__", ""))


class Graphs:
    """Recordings of one learner's calls; `why_not` says why there are none: "" while there may be some.

    A call that cannot be recorded, as one whose course depends on numbers, is taken as it comes from then on, and with
    it all others: after an error of the device it is not known which of them may still be recorded.
    """

    def __init__(self, recorder: Recorder | None, why_not: str = "") -> None:
        """Record by `recorder`; None: nothing, for the reason `why_not`."""
        self.recorder = recorder
        self.why_not = why_not
        self.failure = ""  # of a recording
        self.replays: Counter[str] = Counter()  # by the name of the function
        self._recordings: dict[Hashable, _Recording] = {}

    def mode(self, function: Call) -> str:
        """Return how calls of a function were taken, for the record of a trial."""
        if self.replays[name_of(function)]:
            return f"graph, until {self.failure}" if self.failure else "graph"
        why_not = self.why_not or ("too few steps for a graph to pay" if self.recorder is not None else "")
        return f"eager: {why_not}" if why_not else "eager"

    def clear(self, why_not: str = "") -> None:
        """Free all recordings; with a reason, make no others."""
        self._recordings.clear()
        if why_not:
            self.recorder = None
            self.why_not = why_not

    def call(
        self,
        function: Call,
        *inputs: Tensor,
        remaining: int,
        constants: Hashable = None,
        generators: Sequence[torch.Generator] = (),
        renew: Callable[[], object] = tuple,
        optional: bool = False,
    ) -> Tensor | None:
        """Return `function(*inputs)`, replayed where that pays; `remaining` calls of this kind are to come.

        Recordings with other `constants` are freed. All recordings of a function draw from the same `generators`, whose
        seeds are set before a call. `renew()` gives the function others: one that failed may hold those it has. Where a
        function is `optional`, the error of its recording is raised, and other functions are recorded again.
        """
        recorder = self.recorder
        if recorder is None:
            return function(*inputs)
        name = name_of(function)
        key = (name, tuple((value.shape, value.stride(), value.dtype) for value in inputs))
        recording = self._recordings.get(key)
        if recording is None or recording.constants != constants:
            self._forget_others(name, constants)
            recording = self._recordings[key] = _Recording(constants)
        if recording.replay is None and recording.pays and recording.calls >= WARM_UP:
            self._record(recorder, recording, function, inputs, remaining, generators, renew, optional)
        if recording.replay is None:
            return self._warm_up(recorder, recording, function, inputs)
        for held, value in zip(recording.inputs, inputs, strict=True):
            held.copy_(value)
        recording.replay()
        self.replays[name] += 1
        return None if recording.result is None else recording.result.clone()

    def _forget_others(self, name: str, constants: Hashable) -> None:
        """Free the recordings of a function with other constants: these change by stages, and do not come back."""
        for key, recording in list(self._recordings.items()):
            if isinstance(key, tuple) and key[0] == name and recording.constants != constants:
                del self._recordings[key]

    def _warm_up(
        self, recorder: Recorder, recording: _Recording, function: Call, inputs: tuple[Tensor, ...]
    ) -> Tensor | None:
        """Take a call as it comes; those before a recording are timed, but for the first."""
        recording.calls += 1
        if recording.calls > WARM_UP or self.recorder is None:
            return function(*inputs)
        began = recorder.now()
        result = recorder.warm_up(lambda: function(*inputs))
        if recording.calls > 1:
            recording.seconds += recorder.now() - began
        return result

    def _record(
        self,
        recorder: Recorder,
        recording: _Recording,
        function: Call,
        inputs: tuple[Tensor, ...],
        remaining: int,
        generators: Sequence[torch.Generator],
        renew: Callable[[], object],
        optional: bool,
    ) -> None:
        """Record a call, where that pays and the device can."""
        recording.pays = pays(remaining, recording.seconds / (WARM_UP - 1))
        if not recording.pays:
            return
        held = tuple(value.clone(memory_format=torch.preserve_format) for value in inputs)
        try:
            recording.replay, recording.result = recorder.record(lambda: function(*held), generators)
        except Exception as error:  # whatever a net does that cannot be recorded: it can still be called
            renew()
            if optional:
                self.clear()  # they draw from the generators of before
                raise
            self.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            self.clear(self.failure)
            return
        recording.inputs = held


def open_graphs(device: torch.device, why_not: str) -> Graphs:
    """Return the graphs of a learner on `device`: none on a CPU, nor where there is a reason against them."""
    if device.type != "cuda" or why_not:
        return Graphs(None, why_not)
    from sweeps.training.gpu.cuda_graph import CudaRecorder

    return Graphs(CudaRecorder(device))


def open_streams(device: torch.device) -> Streams:
    """Return the streams for a trial or a pack on `device`."""
    if device.type != "cuda":
        return OneStream()
    from sweeps.training.gpu.cuda_graph import CudaStreams

    return CudaStreams()
