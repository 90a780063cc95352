"""Leases: who drives a sweep, and who trains a trial that several sweeps share; a dead owner loses them."""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from sweeps.store.ledger import Json, Ledger

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a driver on another host counts as dead
SETTLE = 1.0  # seconds in which two drivers that write at once see who wrote last


class LeaseHeldError(Exception):
    """Another driver works on this sweep."""


class Lease:
    """Right to drive a sweep, held inside `with` and renewed by a thread; entering raises LeaseHeldError.

    On a local ledger the kernel frees the lock of a dead owner at once. On any other, an owner on this host is dead
    when its process is gone, and one on another host when it is silent.
    """

    def __init__(self, ledger: Ledger, sweep: str) -> None:
        """Prepare to take the lease of `sweep`."""
        self.ledger = ledger
        self.sweep = sweep
        self.name = f"leases/{sweep}.json"
        self.owner = uuid.uuid4().hex
        self.since = time.time()
        self.lock: IO[bytes] | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease, where no living driver holds it."""
        if self.ledger.local:
            path = Path(self.ledger.path(self.name + ".lock"))
            path.parent.mkdir(parents=True, exist_ok=True)
            self.lock = open(path, "ab")
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.lock.close()
                raise self._busy() from None
            self._write()
        else:
            if driver(self.ledger, self.sweep) is not None:
                raise self._busy()
            self._write()
            time.sleep(SETTLE)
            if (self.ledger.read_json(self.name) or {}).get("owner") != self.owner:
                raise self._busy()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back."""
        self.over.set()
        self.thread.join()
        with suppress(OSError):  # on a read-only disk the freed lock, or silence, says the same
            self.ledger.delete(self.name)
        if self.lock is not None:
            self.lock.close()

    def _busy(self) -> LeaseHeldError:
        """Return the error that says who holds the lease, and for how long."""
        other = self.ledger.read_json(self.name) or {}
        minutes = max(0.0, time.time() - float(other.get("since", time.time()))) / 60
        return LeaseHeldError(
            f"another driver works on this sweep: process {other.get('pid', '?')} on {other.get('host', '?')}, "
            f"for {minutes:.0f} min. When it ends or dies, the same command takes over"
        )

    def _write(self) -> None:
        """Write the lease, with the time as a sign of life."""
        sign = {"owner": self.owner, "since": self.since, "beat": time.time()}
        self.ledger.write_json(self.name, sign | _process())

    def _renew(self) -> None:
        while not self.over.wait(BEAT):
            with suppress(OSError):  # the next beat tries again
                self._write()


def _process() -> Json:
    """Return what names this process, on the ledger."""
    return {"pid": os.getpid(), "host": platform.node()}


def driver(ledger: Ledger, sweep: str) -> Json | None:
    """Return the lease of the living driver of `sweep`, or None."""
    lease = ledger.read_json(f"leases/{sweep}.json")
    if lease is None:
        return None
    if lease.get("host") == platform.node():
        try:
            os.kill(int(str(lease["pid"])), 0)
        except PermissionError:
            pass  # it lives, and is another user's
        except (OSError, ValueError, KeyError):
            return None
    return lease if time.time() - float(lease.get("beat", 0)) < SILENCE else None


def claim(ledger: Ledger, sweep: str, key: str) -> None:
    """Note that this process, the driver of `sweep`, trains a trial, so that drivers of other sweeps wait for it."""
    ledger.write_json(f"claims/{key}.json", {"sweep": sweep} | _process())


def unclaim(ledger: Ledger, key: str) -> None:
    """Delete the note of `claim`."""
    ledger.delete(f"claims/{key}.json")


def elsewhere(ledger: Ledger, sweep: str, key: str) -> bool:
    """Return whether the living driver of a sweep other than `sweep` trains trial `key` now."""
    note = ledger.read_json(f"claims/{key}.json")
    if note is None or note.get("sweep") == sweep:
        return False
    other = driver(ledger, str(note.get("sweep")))
    return other is not None and all(other.get(name) == note.get(name) for name in ("pid", "host"))
