"""Interrupts of a sweep: the first signal stops it in good order, the second at once."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from crelu_data.interrupts import ENDED, SIGNALS, SignalListener, last_words
from sweeps.cli.options import ExitCode

if TYPE_CHECKING:
    from sweeps.execution.session import DriverState

PATIENCE = 0.5  # seconds after which an interrupt that has not been handled yet is answered


def end_at_interrupt(code: ExitCode) -> None:
    """Let SIGINT and SIGTERM end this process at once from here on, with `code`: all that matters is written.

    Only Ray remains to be left. An exception in the middle of that would print a traceback.
    """
    lock = threading.Lock()

    def end_process(_signals: int) -> None:
        with lock:
            last_words(ENDED if code == ExitCode.INTERRUPTED else "ended at once, as asked; all is written")
            os._exit(code)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, lambda number, _: end_process(number))
        SignalListener(end_process).__enter__()  # as long as the process


@contextmanager
def impatient_interrupts() -> Iterator[None]:
    """Say a word where an interrupt, which raises KeyboardInterrupt, is not handled soon; end at the second signal."""
    lock = threading.Lock()
    timers = list[threading.Timer]()

    def on_signal(signals: int) -> None:
        if signals > 1:
            with lock:
                last_words(ENDED)
                os._exit(ExitCode.INTERRUPTED)
        timer = threading.Timer(PATIENCE, last_words, ["stopping (once more to end at once); the same command resumes"])
        timer.daemon = True
        timers.append(timer)
        timer.start()

    try:
        with SignalListener(on_signal):
            yield
    finally:
        for timer in timers:
            timer.cancel()


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
        self.answers = itertools.count()  # listener and handler both try; the first answers
        self.listener = SignalListener(self._on_signal)
        self.lock = threading.Lock()

    def __enter__(self) -> GracefulInterrupt:
        """Install the handlers. Only the main thread can: in others nothing is installed."""
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._catch) for number in SIGNALS}
            self.listener.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Put the previous handlers back."""
        if self.previous:
            self.listener.__exit__()
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _catch(self, _number: int, _frame: FrameType | None) -> None:
        self.caught += 1
        if self.caught > 1 and self.hosted:
            raise KeyboardInterrupt
        self._on_signal(self.caught)

    def _on_signal(self, signals: int) -> None:
        """Stop the trials at the first signal, also while the main thread waits for Ray, the process at the next."""
        if signals == 1 and next(self.answers) == 0:
            again = "the same call resumes" if self.hosted else "the same command resumes"
            self.log(f"stopping: {self.saving()} (once more to end at once); {again}")
            self.state.stop()
        if signals > 1 and not self.hosted:
            with self.lock:
                last_words(ENDED)
                os._exit(ExitCode.INTERRUPTED)
