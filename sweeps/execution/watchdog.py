"""Watchdog of a worker: ends a process whose trial hangs. Beside it, the signal by which the driver stops workers."""

from __future__ import annotations

import faulthandler
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from sweeps.store.ledger import Ledger, is_away
from sweeps.store.leftovers import pack_stack, trial_stack

STOP_POLL = {True: 0.5, False: 5.0}  # seconds between two looks for a stop, by whether the ledger is local
KEY_BYTES = 24  # length of the first line of a trace, which names the trial


class Watchdog:
    """Timer that ends this process, with its stack on the ledger, when no step is taken for `seconds`.

    Tune then starts the trial again elsewhere, from its checkpoint, and the next process records the hang as a failed
    attempt. The first line of the stack's file is the key of the trial that hung.
    """

    def __init__(self, ledger: Ledger, keys: Sequence[str], seconds: float, pack: str = "") -> None:
        """Record the hangs of earlier processes in these trials, and open the file for the next stack.

        The file of a `pack` lies in no member's folder: one that has left the pack may train elsewhere, under a
        watchdog of its own.
        """
        self.ledger = ledger
        self.seconds = seconds
        self.armed = 0.0
        self.name = ""  # of the file on the ledger; elsewhere than on a disk there is none
        names = [trial_stack(key) for key in keys]
        if pack:
            names.insert(0, pack_stack(pack))
        for name in names if ledger.local else ():
            _record_hang(ledger, name, seconds)
        if ledger.local and keys:
            self.name = names[0]
            ledger.write(self.name, b"")
            self.file: IO[bytes] = open(ledger.path(self.name), "wb")  # noqa: SIM115 - open until the process ends
        else:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.write(_first_line(keys[0] if keys else ""))
        self.file.flush()

    def __enter__(self) -> Watchdog:
        """Start the timer."""
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the timer, and delete the file: who finds one learns where a process hung."""
        faulthandler.cancel_dump_traceback_later()
        with self.file, suppress(OSError):  # of a disk that is away: the next process of this trial deletes the file
            self._delete_without_stack()

    def _delete_without_stack(self) -> None:
        """Delete the file where it has no stack. It stays where a newer process of the trial has written it anew."""
        if not self.name:
            return
        self.file.flush()
        ours = os.fstat(self.file.fileno())
        if ours.st_size <= KEY_BYTES and os.path.samestat(ours, os.stat(self.ledger.path(self.name))):
            self.ledger.delete(self.name)

    def set_current(self, key: str) -> None:
        """Name the trial that takes the next step; this restarts the timer too."""
        os.pwrite(self.file.fileno(), _first_line(key), 0)
        self._restart()

    def wrap(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return `stop`, which a trial calls after each step, such that each call restarts the timer."""

        def alive() -> bool:
            self._restart()
            return stop()

        return alive

    def _restart(self) -> None:
        if time.monotonic() - self.armed > min(10.0, self.seconds / 10):
            self._arm()

    def _arm(self) -> None:
        self.armed = time.monotonic()
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)


def _record_hang(ledger: Ledger, name: str, seconds: float) -> None:
    """Turn the stack that a hung process has left, if any, into a failed attempt of the trial it names; delete it."""
    content = (ledger.read(name) or b"").decode(errors="replace")
    key, trace = content[:KEY_BYTES].strip(), content[KEY_BYTES:]
    if trace:
        error = f"Hang: no step for {seconds:.0f} s"
        ledger.add_attempt(key, {"error": error, "trace": trace, "final": False, "time": time.time()})
    if content:  # of a process that was killed, without a stack
        ledger.delete(name)


def _first_line(key: str) -> bytes:
    """Return a key as a line of fixed length."""
    return f"{key:<{KEY_BYTES - 1}}\n".encode()


def stop_signal(ledger: Ledger, mark: str) -> Callable[[], bool]:
    """Return a function that says whether the driver has asked its workers to stop.

    It looks at its first call, and then every STOP_POLL seconds. A ledger that is away ends no worker.
    """
    folder, name = os.path.split(mark)
    interval = STOP_POLL[ledger.local]
    last_look = -math.inf
    stopping = False

    def stop() -> bool:
        nonlocal last_look, stopping
        if not stopping and time.monotonic() - last_look > interval:
            try:
                stopping = name in ledger.names(folder)
            except OSError as error:
                if not is_away(error):
                    raise
            last_look = time.monotonic()
        return stopping

    return stop
