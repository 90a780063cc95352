"""What a worker does with a trial: perform it, watch over it, and put what goes wrong on the ledger. No Ray."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import IO

from sweeps.ledger import Json, Ledger
from sweeps.sets import Place
from sweeps.trial import trial_from_json

STOP_POLL = {True: 0.5, False: 5.0}  # seconds between two looks for a stop, on a local ledger or not

Report = Callable[[int, dict[str, float]], None]


def work(config: Json, report: Report) -> None:
    """Perform the trial in the queue's `config`; failures go to the ledger, and those that may pass are raised too."""
    trial, place = trial_from_json(json.loads(config["trial"])), Place(**config["place"])
    ledger = Ledger(place.ledger)
    stop = stop_watch(ledger, config["stop"])
    try:
        with HangWatch(ledger, trial.key, place.hang_seconds) as watch:
            # Torch is imported here, in the worker alone: the driver never pays for it.
            module, _, name = config["work"].partition(":")
            getattr(importlib.import_module(module), name)(trial, place, report, watch.over(stop))
    except ValueError as error:
        ledger.add_attempt(trial.key, attempt(error, final=True))
    except Exception as error:
        ledger.add_attempt(trial.key, attempt(error, final=False))
        raise


class HangWatch:
    """Ends this process, with a stack on the ledger, when a trial takes no step for so many seconds.

    Tune then starts the trial again elsewhere, from its checkpoint; the next try records the hang as a failed one.
    """

    def __init__(self, ledger: Ledger, key: str, seconds: float) -> None:
        """Record a hang of the try before, if there was one."""
        self.seconds, self.armed = seconds, 0.0
        name = f"trials/{key}/hang.txt"
        trace = (ledger.read(name) or b"").decode(errors="replace") if ledger.local else ""
        if trace:
            lost = {"error": f"Hang: no step for {seconds:.0f} s", "trace": trace, "final": False, "time": time.time()}
            ledger.add_attempt(key, lost)
        if ledger.local:
            ledger.write(name, b"")
            self.file: IO[bytes] = open(ledger.path(name), "wb")  # noqa: SIM115 - the dump needs it open
        else:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> HangWatch:
        """Begin to watch."""
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        faulthandler.cancel_dump_traceback_later()
        self.file.close()

    def over(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return `stop`, which a trial asks after each step, as the sign of life too."""

        def alive() -> bool:
            if time.monotonic() - self.armed > min(10.0, self.seconds / 10):
                self._arm()
            return stop()

        return alive

    def _arm(self) -> None:
        self.armed = time.monotonic()
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)


def attempt(error: BaseException, final: bool) -> Json:
    """Return the record of a failed try; a final one is not tried again unless someone asks."""
    lines = "".join(traceback.format_exception(error))
    host = os.uname().nodename
    return {
        "error": f"{type(error).__name__}: {error}",
        "trace": lines,
        "final": final,
        "time": time.time(),
        "host": host,
    }


def stop_watch(ledger: Ledger, mark: str) -> Callable[[], bool]:
    """Return a function that says whether the driver asked this session to stop, looking only now and then."""
    folder, name = os.path.split(mark)
    looked, seen, every = time.monotonic(), False, STOP_POLL[ledger.local]

    def stop() -> bool:
        nonlocal looked, seen
        if not seen and time.monotonic() - looked > every:
            looked, seen = time.monotonic(), name in ledger.names(folder)
        return seen

    return stop
