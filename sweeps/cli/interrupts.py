"""Interrupts of a sweep: the first signal stops it in good order, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.execution.session import DriverState


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while a library starts, and raise KeyboardInterrupt when it has; the second ends it.

    Raised inside the library's code, the exception may be caught there, or leave a lock taken for good.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            os._exit(130)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            raise KeyboardInterrupt from None  # also where the library did not start: the user has ended it before


class GracefulInterrupt:
    """From enter to exit: the first SIGINT or SIGTERM stops the session in good order, the second ends it at once."""

    def __init__(self, session: DriverState, tell: Callable[[str], None]) -> None:
        """Prepare to catch the signals for `session`."""
        self.session, self.tell = session, tell
        self.before: dict[int, Any] = {}
        self.caught = 0

    def __enter__(self) -> GracefulInterrupt:
        """Install the handlers (in the main thread only: elsewhere there are none to install)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers of before back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught += 1
        if self.caught > 1:
            os._exit(130)
        self.tell("stopping: running trials save their state (once more to end at once); the same command resumes")
        self.session.stop()
