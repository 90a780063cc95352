"""Train several trials side by side in one process: each batch is made once, and every member takes its step on it.

A member computes what it would alone, bit for bit: weights, dropout and order are keyed by the trial, and members
share nothing but the pictures they see. So a pack is no state to be kept: each member has its own checkpoints, goes
on alone or in another pack, and leaves when it fails, diverges, is pruned or has come to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json, Ledger, failed_attempt
from sweeps.training.run_trial import out_of_memory, trial_steps
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import BatchStream, PackContext, Position, Steps, stream_key

# A member that has not begun comes before all others.
BEGINNING = Position(-1, 0, 0)


def perform_pack(
    trials: Sequence[Trial],
    place: RuntimeConfig,
    tell: Callable[[Json], None],
    stop: Callable[[], bool] = lambda: False,
    alive: Callable[[str], None] = lambda key: None,
) -> None:
    """Train `trials` side by side from where each stands until each has its result or has left.

    `tell` hears {"key", "epoch", "row"} of each epoch, and {"key", "over", "fits"} when a member is gone: with its
    result, with a failed try on the ledger, or with its state saved for another worker; `fits` is how many members
    there is memory for (0: no limit was met). `alive(key)` is called before each turn. An error of the device itself
    is raised, since no member can go on there; what else a member raises is its own.
    """
    pack = _Pack(trials, place, tell, stop, alive)
    try:
        pack.run()
    finally:
        pack.close()


@dataclass
class _Member:
    """A trial on its way, and where it stands."""

    trial: Trial
    turns: Steps[dict[str, Any] | None]
    turn: Position = BEGINNING


class _Pack:
    """The members that are still there, the streams they share, and the clock of their parts of the time."""

    def __init__(
        self,
        trials: Sequence[Trial],
        place: RuntimeConfig,
        tell: Callable[[Json], None],
        stop: Callable[[], bool],
        alive: Callable[[str], None],
    ) -> None:
        self.ledger, self.tell, self.stop, self.alive = Ledger(place.ledger), tell, stop, alive
        self.part, self.counted = 0.0, time.monotonic()
        self.streams = {stream_key(trial): BatchStream() for trial in trials}
        self.leaving: set[str] = set()
        self.members = [_Member(trial, self._turns(trial, place)) for trial in trials]

    def _turns(self, trial: Trial, place: RuntimeConfig) -> Steps[dict[str, Any] | None]:
        """Return the turns of a trial that has not begun."""

        def report(epoch: int, row: dict[str, float]) -> None:
            self.tell({"key": trial.key, "epoch": epoch, "row": row})

        company = PackContext(self.streams[stream_key(trial)], self.clock, lambda: len(self.members) > 1)
        return trial_steps(trial, place, report, lambda: trial.key in self.leaving or self.stop(), company)

    def clock(self) -> float:
        """Return the seconds of one member: while several are there, each has its equal part of the time."""
        now = time.monotonic()
        self.part += (now - self.counted) / max(1, len(self.members))
        self.counted = now
        return self.part

    def run(self) -> None:
        """Let those that are furthest behind take the next turn, until nobody is left.

        Members at one place share its batch; one that was resumed further back catches up first, on its own.
        """
        while self.members:
            least = min(member.turn for member in self.members)
            for member in [member for member in self.members if member.turn == least]:
                self._next(member)

    def _next(self, member: _Member) -> None:
        """Let a member take its turn, and see whether it stays."""
        self.alive(member.trial.key)
        before, fits = member.turn, 0
        try:
            member.turn = next(member.turns)
            # It begins anew with another seed. Here the others would have to wait for it.
            if member.turn >= before or len(self.members) == 1:
                return
        except StopIteration:
            pass
        except ValueError as error:
            self.ledger.add_attempt(member.trial.key, failed_attempt(error, final=True))
        except Exception as error:
            if out_of_memory(error) and len(self.members) > 1:
                fits = len(self.members) // 2
            else:
                self.ledger.add_attempt(member.trial.key, failed_attempt(error, final=False))
                if _of_the_device(error):
                    raise
        self._leave(member, fits)

    def _leave(self, member: _Member, fits: int) -> None:
        """See a member off; where memory has run out, it is followed by as many as leave half of them behind."""
        self.clock()
        member.turns.close()
        self.members.remove(member)
        if fits:
            self.leaving |= {other.trial.key for other in self.members[fits:]}
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.tell({"key": member.trial.key, "epoch": 0, "over": True, "fits": fits})

    def close(self) -> None:
        """Let go of everything, whatever ended the pack."""
        for member in self.members:
            member.turns.close()
        for shared in self.streams.values():
            shared.close()


def _of_the_device(error: Exception) -> bool:
    """Return whether an error has left the device unusable for this process."""
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)
