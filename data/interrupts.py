"""Interrupts that wait for a safe place."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED: Final = 130  # exit code of a command that a signal has ended
ENDED: Final = "ended at once, as asked; the same command resumes"


def last_words(sentence: str) -> None:
    """Print a sentence before the process ends at once, and show the cursor, which a view may have hidden."""
    cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{cursor}\n{sentence}\n".encode())


@contextmanager
def deferred_interrupts(doing: str = "", tell: Callable[[str], None] | None = None) -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back, and hand them to their handlers at the end. A second one ends the process at once.

    `tell` gets a sentence at the first: the process stops after what it is `doing`. The second is answered too, then.

    An interrupt that is raised within a library's code may be caught there. Within a lock of ThreadPoolExecutor it may
    leave the lock taken, and the pool's threads, and the end of the process, then wait for ever. Long work calls the
    function that is yielded between two submissions: it raises KeyboardInterrupt where the handler would have.

    Signals go to the main thread, so in any other nothing is held. A signal that the process ignores stays ignored.
    """
    received: list[int] = []

    def check() -> None:
        if any(handlers[number] is signal.default_int_handler for number in received):
            raise KeyboardInterrupt

    def hold(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            if tell is not None:
                last_words(ENDED)
            os._exit(INTERRUPTED)
        if tell is not None:
            tell(f"stopping, after {doing} (once more to end at once); the same command resumes")

    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {int(number): signal.getsignal(number) for number in SIGNALS} if in_main_thread else {}
    held = [number for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)]
    for number in held:
        signal.signal(number, hold)
    try:
        yield check
    finally:
        for number in held:
            signal.signal(number, handlers[number])
        for number in received:  # also after an error of the work: the user has ended it first
            signal.raise_signal(number)
