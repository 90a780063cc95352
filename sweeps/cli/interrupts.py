"""Interrupts of a sweep: the first signal stops it in good order, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from crelu_data.interrupts import ENDED, SIGNALS, last_words
from sweeps.cli.options import ExitCode

if TYPE_CHECKING:
    from sweeps.execution.session import DriverState


class GracefulInterrupt:
    """Context in which the first SIGINT or SIGTERM lets trials save their state, and the second ends the process."""

    def __init__(self, state: DriverState, log: Callable[[str], None], hosted: bool = False) -> None:
        """Prepare to catch the signals for a driver; `log` shows one sentence. A `hosted` process is not ended."""
        self.state = state
        self.hosted = hosted
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
        if self.caught > 1 and self.hosted:
            raise KeyboardInterrupt
        if self.caught > 1:
            last_words(ENDED)
            os._exit(ExitCode.INTERRUPTED)
        again = "the same call resumes" if self.hosted else "the same command resumes"
        self.log(f"stopping: running trials save their state (once more to end at once); {again}")
        self.state.stop()
