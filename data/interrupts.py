"""Interrupts that are held back until a safe point."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType, TracebackType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED: Final = 130  # exit code of a command that a signal has ended
ENDED: Final = "ended at once, as asked; the same command resumes"
HOSTED: Final = threading.Event()  # set while `hosted` spares this process


def last_words(sentence: str) -> None:
    """Print a sentence before the process ends at once, and show the cursor, which a view may have hidden."""
    cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{cursor}\n{sentence}\n".encode())


def end_quietly() -> None:
    """Let an interrupt end this process without a traceback, until the command has handlers of its own."""
    sys.excepthook = explain_interrupt


def explain_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a word where an interrupt has ended the process; any other error has its traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    last_words("ended, as asked; nothing had begun")
    raise SystemExit(INTERRUPTED)


class SignalListener:
    """Thread that is told of SIGINT and SIGTERM as they come, also while the main thread waits in a library's code.

    Python runs its handlers in the main thread alone, once that is back in Python: the start of Ray on a busy machine
    takes a minute. `on_signal` is called besides the handlers, with 1 for the first signal and so on.
    """

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        """Prepare to call `on_signal`, which is never called where this is not the main thread."""
        self.on_signal = on_signal
        self.in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> SignalListener:
        """Begin to listen, in place of a listener that listens already."""
        if self.in_main_thread:
            os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not ours
            self.end, start = os.pipe()
            os.set_blocking(start, False)
            self.start, self.previous = start, signal.set_wakeup_fd(start, warn_on_full_buffer=False)
            self.thread = threading.Thread(target=self._listen, name="signals", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        if self.in_main_thread:
            signal.set_wakeup_fd(self.previous)
            os.write(self.start, b"\0")
            self.thread.join(1.0)
            os.close(self.start)
            if not self.thread.is_alive():
                os.close(self.end)

    def _listen(self) -> None:
        received = 0
        while number := os.read(self.end, 1)[0]:
            if number in SIGNALS:
                received += 1
                self.on_signal(received)


@contextmanager
def hosted(is_hosted: bool) -> Iterator[None]:
    """Spare a process that is a user's notebook or script: no second interrupt ends it inside the block."""
    if not is_hosted:
        yield
        return
    HOSTED.set()
    try:
        yield
    finally:
        HOSTED.clear()


@contextmanager
def deferred_interrupts(doing: str = "", tell: Callable[[str], None] | None = None) -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back, and hand them to their handlers at the end. A second one ends the process at once.

    `tell` gets a sentence at the first: the process stops after what it is `doing`. The second is answered too, then.
    Where the process is `hosted`, the second raises KeyboardInterrupt instead, and so does each further one.

    An interrupt that is raised within a library's code may be caught there. Within a lock of ThreadPoolExecutor it may
    leave the lock taken, and the pool's threads, and the end of the process, then wait for ever. Long work calls the
    function that is yielded between two submissions: it raises KeyboardInterrupt where the handler would have.

    Signals go to the main thread, so in any other nothing is held. A signal that the process ignores stays ignored.
    """
    received: list[int] = []
    answers = itertools.count()  # listener and handler both try; the first answers
    ending = threading.Lock()
    is_spared = HOSTED.is_set()
    is_over = False
    is_raised = False
    again = "the same call resumes" if is_spared else "the same command resumes"

    def answer(signals: int) -> None:
        if tell is None:
            return
        if signals > 1 and not is_spared:
            with ending:
                last_words(ENDED)
                os._exit(INTERRUPTED)
        if next(answers) == 0:
            tell(f"stopping, after {doing} (once more to end at once); {again}")

    def check() -> None:
        if any(handlers[number] is signal.default_int_handler for number in received):
            raise KeyboardInterrupt

    def hold(number: int, _: FrameType | None) -> None:
        received.append(number)
        answer(len(received))
        if len(received) > 1:
            if not is_spared:
                os._exit(INTERRUPTED)
            if not is_over:  # else it would leave these handlers behind
                raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {int(number): signal.getsignal(number) for number in SIGNALS} if in_main_thread else {}
    held = [number for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)]
    for number in held:
        signal.signal(number, hold)
    try:
        with SignalListener(answer) if held and tell is not None else nullcontext():
            try:
                yield check
            except KeyboardInterrupt:
                is_raised = len(received) > 1  # by `hold`; a library may have caught it, and it is raised below then
                raise
            finally:
                is_over = True
    finally:
        for number in held:
            signal.signal(number, handlers[number])
        for number in received:  # also after an error of the work: the user has ended it first
            if not (is_raised and handlers[number] is signal.default_int_handler):
                signal.raise_signal(number)
