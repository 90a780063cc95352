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


def end_at_interrupt(code: ExitCode) -> None:
    """Let SIGINT and SIGTERM end this process at once from here on, with `code`: all that matters is written.

    What is left is to leave Ray. An exception would be raised in the middle of that, with a traceback.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        last_words(ENDED if code == ExitCode.INTERRUPTED else "ended at once, as asked; all is written")
        os._exit(code)

    for number in SIGNALS:
        signal.signal(number, leave)


class GracefulInterrupt:
    """Context in which the first SIGINT or SIGTERM lets trials save their state, and the second ends the process."""

    def __init__(
        self,
        state: DriverState,
        log: Callable[[str], None],
        hosted: bool = False,
        saving: Callable[[], str] = lambda: "running trials save their state",
    ) -> None:
        """Prepare to catch the signals for a driver; `log` shows one sentence. A `hosted` process is not ended.

        `saving` says what has to be saved now, and how long that takes.
        """
        self.state = state
        self.hosted = hosted
        self.log = log
        self.saving = saving
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
        self.log(f"stopping: {self.saving()} (once more to end at once); {again}")
        self.state.stop()
