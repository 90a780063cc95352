"""Interrupts that wait for a safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back; yield a function that raises KeyboardInterrupt where one has come.

    An interrupt that is raised within a lock of ThreadPoolExecutor may leave it locked. The pool's threads, and the end
    of the process, then wait for ever. Work that calls the function now and then is ended between two submissions; work
    that ends by itself is followed by the interrupt. Signals go to the main thread, so in any other nothing is held.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    held = [number for number in SIGNALS if callable(before[number])]
    for number in held:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield check
    finally:
        for number in held:
            signal.signal(number, before[number])
    check()
