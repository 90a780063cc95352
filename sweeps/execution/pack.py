"""Training of several trials side by side in one process: each batch is made once, and every member learns from it.

A member computes what it would compute alone, bit for bit: weights, dropout and order are keyed by the trial, and
members share only the pictures. On a GPU each has a stream of its own, so that their kernels run side by side. So a
pack has no state of its own. Each member has its own checkpoints, can go on alone or in another pack, and leaves when
it fails, diverges, is pruned or has finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch

from sweeps.execution.failures import record_failure
from sweeps.execution.messages import Notify, left
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json, Ledger, with_room
from sweeps.training.gpu.graphs import open_streams
from sweeps.training.run_trial import device_failed, out_of_memory, trial_steps
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import BatchStream, PackContext, Position, Steps, stream_key

START = Position(-1, 0, 0)  # of a member before its first step: behind all others
NO_PAUSES: Mapping[str, int] = MappingProxyType({})


def perform_pack(
    trials: Sequence[Trial],
    runtime: RuntimeConfig,
    notify: Notify,
    stop: Callable[[], bool] = lambda: False,
    alive: Callable[[str], None] = lambda _: None,
    pauses: Mapping[str, int] = NO_PAUSES,
) -> None:
    """Train `trials` side by side, each from its last checkpoint, until each has its result or has left.

    `notify` gets a message for each epoch and for each member that leaves: with its result, with a failed attempt on
    the ledger, paused at its epoch in `pauses`, or with its state saved for another worker. `alive(key)` is called
    before each step. An error of the device itself is raised, since no member can go on; any other error ends only the
    member that raised it.
    """
    pack = _Pack(trials, runtime, notify, stop, alive, pauses)
    try:
        pack.run()
    finally:
        pack.close()


@dataclass
class _Member:
    """A trial under way and the batch it needs next."""

    trial: Trial
    steps: Steps[Json | None]
    stream: AbstractContextManager[object]
    position: Position = START


class _Pack:
    """Members that still train, the batch streams they share, and a clock that splits the time between them."""

    def __init__(
        self,
        trials: Sequence[Trial],
        runtime: RuntimeConfig,
        notify: Notify,
        stop: Callable[[], bool],
        alive: Callable[[str], None],
        pauses: Mapping[str, int],
    ) -> None:
        self.ledger = Ledger(runtime.ledger)
        self.notify = notify
        self.stop = stop
        self.alive = alive
        self.member_seconds = 0.0
        self.last_reading = time.monotonic()
        device_streams = open_streams(torch.device(runtime.device))
        self.streams = {stream_key(trial): BatchStream(device_streams) for trial in trials}
        self.leaving: set[str] = set()
        self.members = [
            _Member(
                trial,
                self._steps(trial, replace(runtime, pause_at=pauses.get(trial.key, 0))),
                device_streams.member(),
            )
            for trial in trials
        ]

    def _steps(self, trial: Trial, runtime: RuntimeConfig) -> Steps[Json | None]:
        """Return the steps of a trial, none of them taken yet."""

        def report(epoch: int, row: dict[str, float]) -> None:
            self.notify({"key": trial.key, "epoch": epoch, "row": row})

        def stop() -> bool:
            return trial.key in self.leaving or self.stop()

        context = PackContext(self.streams[stream_key(trial)], self.clock, lambda: len(self.members) > 1)
        return trial_steps(trial, runtime, report, stop, context)

    def clock(self) -> float:
        """Return the seconds of one member: of the time so far, an equal part of what it shared with others."""
        now = time.monotonic()
        self.member_seconds += (now - self.last_reading) / max(1, len(self.members))
        self.last_reading = now
        return self.member_seconds

    def run(self) -> None:
        """Let the members that are furthest behind take the next step, until none is left.

        Members at the same position share its batch. One that resumes from an earlier position catches up first.
        """
        while self.members:
            furthest_behind = min(member.position for member in self.members)
            for member in [member for member in self.members if member.position == furthest_behind]:
                self._step(member)

    def _step(self, member: _Member) -> None:
        """Let a member take its step; it leaves where it has ended or failed."""
        self.alive(member.trial.key)
        before = member.position
        fits = 0
        try:
            with member.stream:
                member.position = next(member.steps)
            # A diverged member goes back to the start with another seed. It leaves, since the others would wait for it.
            if member.position >= before or len(self.members) == 1:
                return
        except StopIteration:
            pass
        except (Exception, SystemExit) as error:
            if out_of_memory(error) and len(self.members) > 1:
                fits = len(self.members) // 2
            else:
                with_room(partial(record_failure, self.ledger, member.trial.key, error), self.stop)
                if device_failed(error):
                    raise
        self._remove(member, fits)

    def _remove(self, member: _Member, fits: int) -> None:
        """Remove a member; where memory ran out (`fits`), ask as many others to leave until so many are left."""
        self.clock()
        member.steps.close()
        self.members.remove(member)
        if fits:
            self.leaving |= {other.trial.key for other in self.members[fits:]}
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.notify(left(member.trial.key, fits))

    def close(self) -> None:
        """Close all members and streams."""
        for member in self.members:
            member.steps.close()
        for stream in self.streams.values():
            stream.close()
