"""What a worker does with a trial or a pack: perform it, watch over it, put what goes wrong on the ledger. No Ray."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import IO

from sweeps.experiment.trial import Trial, trial_from_json
from sweeps.store.ledger import Json, Ledger
from sweeps.training.runtime import Place

STOP_POLL = {True: 0.5, False: 5.0}  # seconds between two looks for a stop, on a local ledger or not

KEY = 24  # bytes of the line that names a trial in a trace

Tell = Callable[[Json], None]


def work(config: Json, tell: Tell) -> None:
    """Perform the trials in the queue's `config`; failures go to the ledger, and those that may pass are raised too.

    `tell` hears {"key", "epoch", "row"} of each epoch; of a pack also {"key", "over"} when a member is gone.
    """
    trials, place = [trial_from_json(json.loads(text)) for text in config["trials"]], Place(**config["place"])
    ledger = Ledger(place.ledger)
    stop = stop_watch(ledger, config["stop"])
    if len(trials) > 1:
        _work_on_pack(config["pack"], trials, place, tell, stop)
        return
    (trial,) = trials

    def report(epoch: int, row: dict[str, float]) -> None:
        tell({"key": trial.key, "epoch": epoch, "row": row})

    try:
        with HangWatch(ledger, [trial.key], place.hang_seconds) as watch:
            # Torch is imported here, in the worker alone: the driver never pays for it.
            module, _, name = config["work"].partition(":")
            getattr(importlib.import_module(module), name)(trial, place, report, watch.over(stop))
    except ValueError as error:
        ledger.add_attempt(trial.key, attempt(error, final=True))
    except Exception as error:
        ledger.add_attempt(trial.key, attempt(error, final=False))
        raise


def _work_on_pack(name: str, trials: list[Trial], place: Place, tell: Tell, stop: Callable[[], bool]) -> None:
    """Perform trials side by side; a try after a dead process takes only those that had not left the one before."""
    pack = importlib.import_module("sweeps.execution.pack")
    ledger, note = Ledger(place.ledger), f"packs/{name}.json"
    left = set((ledger.read_json(note) or {}).get("left", []))

    def told(news: Json) -> None:
        if "over" in news:
            # Noted first: once the queue has heard of it, the trial may train elsewhere.
            left.add(news["key"])
            ledger.write_json(note, {"left": sorted(left)})
        tell(news)

    staying = [trial for trial in trials if trial.key not in left]
    with HangWatch(ledger, [trial.key for trial in staying], place.hang_seconds) as watch:
        # A member that the process before died of does not take the others with it again.
        suspects = [trial for trial in staying if ledger.attempts(trial.key)]
        for trial in suspects:
            told({"key": trial.key, "epoch": 0, "over": True, "fits": 0})
        pack.perform_pack(
            [trial for trial in staying if trial not in suspects], place, told, watch.over(stop), watch.blame
        )


class HangWatch:
    """Ends this process, with a stack on the ledger, when a trial takes no step for so many seconds.

    Tune then starts the trial again elsewhere, from its checkpoint; the next try records the hang as a failed one.
    The file begins with the key of the trial that is to blame, in a line of fixed length.
    """

    def __init__(self, ledger: Ledger, keys: Sequence[str], seconds: float) -> None:
        """Record a hang of the try before, if there was one."""
        self.seconds, self.armed = seconds, 0.0
        for key in keys if ledger.local else ():
            content = (ledger.read(f"trials/{key}/hang.txt") or b"").decode(errors="replace")
            blamed, trace = content[:KEY].strip(), content[KEY:]
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

    def __enter__(self) -> HangWatch:
        """Begin to watch."""
        self._arm()
        return self

    def blame(self, key: str) -> None:
        """Note whose turn it is, which is a sign of life too."""
        os.pwrite(self.file.fileno(), _line(key), 0)
        self._live()

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        faulthandler.cancel_dump_traceback_later()
        self.file.close()

    def over(self, stop: Callable[[], bool]) -> Callable[[], bool]:
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
    return f"{key:<{KEY - 1}}\n".encode()


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
