"""Interrupts of a sweep: the first signal stops it in good order, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from data.interrupts import SIGNALS
from sweeps.cli.options import ExitCode

if TYPE_CHECKING:
    from sweeps.execution.session import DriverState


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while a library starts; then raise KeyboardInterrupt. A second signal ends at once.

    Raised inside the library's code, the exception may be caught there, or leave a lock taken for good.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def catch(number: int, _: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            os._exit(ExitCode.INTERRUPTED)

    previous = {number: signal.signal(number, catch) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if caught:
            raise KeyboardInterrupt from None  # even if the library did not start: the user has ended it first


class GracefulInterrupt:
    """Context in which the first SIGINT or SIGTERM lets trials save their state, and the second ends the process."""

    def __init__(self, state: DriverState, log: Callable[[str], None]) -> None:
        """Prepare to catch the signals for a driver; `log` shows one sentence."""
        self.state = state
        self.log = log
        self.previous: dict[signal.Signals, Any] = {}
        self.caught = 0

    def __enter__(self) -> GracefulInterrupt:
        """Install the handlers. Only the main thread can: in others nothing is installed."""
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Put the previous handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _catch(self, _number: int, _frame: FrameType | None) -> None:
        self.caught += 1
        if self.caught > 1:
            os._exit(ExitCode.INTERRUPTED)
        self.log("stopping: running trials save their state (once more to end at once); the same command resumes")
        self.state.stop()
