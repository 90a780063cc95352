"""A watch over a worker: ends it when a trial hangs, and tells it when the driver asks it to stop."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO

from sweeps.store.ledger import Json, Ledger

STOP_POLL = {True: 0.5, False: 5.0}  # seconds between two looks for a stop, on a local ledger or not

KEY_BYTES = 24  # bytes of the line that names a trial in a trace

Notify = Callable[[Json], None]


class Watchdog:
    """Ends this process, with a stack on the ledger, when a trial takes no step for so many seconds.

    Tune then starts the trial again elsewhere, from its checkpoint; the next try records the hang as a failed one.
    The file begins with the key of the trial that is to blame, in a line of fixed length.
    """

    def __init__(self, ledger: Ledger, keys: Sequence[str], seconds: float) -> None:
        """Record a hang of the try before, if there was one."""
        self.seconds, self.armed = seconds, 0.0
        for key in keys if ledger.local else ():
            content = (ledger.read(f"trials/{key}/hang.txt") or b"").decode(errors="replace")
            blamed, trace = content[:KEY_BYTES].strip(), content[KEY_BYTES:]
            if trace:
                what = f"Hang: no step for {seconds:.0f} s"
                ledger.add_attempt(blamed, {"error": what, "trace": trace, "final": False, "time": time.time()})
                ledger.delete(f"trials/{key}/hang.txt")
        if ledger.local and keys:
            name = f"trials/{keys[0]}/hang.txt"
            ledger.write(name, b"")
            self.file: IO[bytes] = open(ledger.path(name), "wb")  # noqa: SIM115 - the dump needs it open
        else:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.write(_line(keys[0] if keys else ""))
        self.file.flush()

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self._arm()
        return self

    def set_current(self, key: str) -> None:
        """Note whose turn it is, which is a sign of life too."""
        os.pwrite(self.file.fileno(), _line(key), 0)
        self._live()

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        faulthandler.cancel_dump_traceback_later()
        self.file.close()

    def wrap(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return `stop`, which a trial asks after each step, as the sign of life too."""

        def alive() -> bool:
            self._live()
            return stop()

        return alive

    def _live(self) -> None:
        if time.monotonic() - self.armed > min(10.0, self.seconds / 10):
            self._arm()

    def _arm(self) -> None:
        self.armed = time.monotonic()
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)


def _line(key: str) -> bytes:
    """Return a key as a line of fixed length."""
    return f"{key:<{KEY_BYTES - 1}}\n".encode()


def stop_signal(ledger: Ledger, mark: str) -> Callable[[], bool]:
    """Return a function that says whether the driver asked this session to stop, looking only now and then."""
    folder, name = os.path.split(mark)
    looked, seen, every = time.monotonic(), False, STOP_POLL[ledger.local]

    def stop() -> bool:
        nonlocal looked, seen
        if not seen and time.monotonic() - looked > every:
            looked, seen = time.monotonic(), name in ledger.names(folder)
        return seen

    return stop
