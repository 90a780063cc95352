"""Messages between the driver and its workers: what to train, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict, final


class Assignment(TypedDict):
    """Trials for one worker, as Tune hands them over: all values are JSON.

    `work` names a trainer as module:function; empty for ours. `runtime` is a RuntimeConfig,
    `stop` the file on the ledger whose presence asks the worker to leave, `pack` the name of this group of trials. A
    `probe` leaves after its next epoch, which shows whether packs pay. `pauses` are the epochs at which trials of a
    search pause, by key.
    """

    key: str
    pack: str
    trials: list[str]
    runtime: dict[str, Any]
    stop: str
    work: str
    probe: bool
    pauses: dict[str, int]


@final
class EpochMessage(TypedDict):
    """One finished epoch of a trial, with its metrics."""

    key: str
    epoch: int
    row: dict[str, float]


@final
class LeftMessage(TypedDict):
    """A member that has left its pack, done or not; `fits` members have memory (0: memory did not run out)."""

    key: str
    epoch: Literal[0]
    over: Literal[True]
    fits: int


Message = EpochMessage | LeftMessage
Notify = Callable[[Message], None]


def left(key: str, fits: int = 0) -> LeftMessage:
    """Return the message that a member has left its pack."""
    return {"key": key, "epoch": 0, "over": True, "fits": fits}
