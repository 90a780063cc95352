"""Who drives a sweep, and who trains a trial that several sweeps share: one at a time, taken over when it dies."""

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

from sweeps.store.ledger import Ledger

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a driver on another host counts as dead


class Busy(Exception):
    """Another driver works on this sweep."""


class Lease:
    """The right to drive a sweep, held from enter to exit and renewed by a thread; raises Busy.

    On a local ledger the kernel frees the lock of a dead owner at once. Elsewhere a process of this host is seen to be
    gone, and one of another tells by its silence.
    """

    def __init__(self, ledger: Ledger, sweep: str) -> None:
        """Prepare to take the lease of `sweep`."""
        self.ledger, self.sweep, self.name = ledger, sweep, f"leases/{sweep}.json"
        self.owner = uuid.uuid4().hex
        self.since = time.time()
        self.lock: IO[bytes] | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease, from nobody or from a dead driver."""
        if self.ledger.local:
            path = Path(self.ledger.path(self.name + ".lock"))
            path.parent.mkdir(parents=True, exist_ok=True)
            self.lock = open(path, "ab")
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.lock.close()
                raise Busy(self._whose()) from None
        else:
            if driver(self.ledger, self.sweep) is not None:
                raise Busy(self._whose())
        self._write()
        if not self.ledger.local:
            time.sleep(1.0)
            if (self.ledger.read_json(self.name) or {}).get("owner") != self.owner:
                raise Busy(self._whose())
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back."""
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()
        with suppress(OSError):  # a read-only disk: silence, or the freed lock, says it as well
            self.ledger.delete(self.name)
        if self.lock is not None:
            self.lock.close()

    def _whose(self) -> str:
        """Say who holds the lease, and for how long."""
        other = self.ledger.read_json(self.name) or {}
        minutes = max(0.0, time.time() - float(other.get("since", time.time()))) / 60
        return (
            f"another driver works on this sweep: process {other.get('pid', '?')} on {other.get('host', '?')}, "
            f"for {minutes:.0f} min. When it ends or dies, the same command takes over"
        )

    def _write(self) -> None:
        self.ledger.write_json(
            self.name,
            {
                "owner": self.owner,
                "pid": os.getpid(),
                "host": platform.node(),
                "since": self.since,
                "beat": time.time(),
            },
        )

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            try:
                self._write()
            except OSError:
                continue  # the next beat tries again


def driver(ledger: Ledger, sweep: str) -> dict[str, object] | None:
    """Return who drives `sweep` now, or None: for the status of a sweep, from any terminal."""
    other = ledger.read_json(f"leases/{sweep}.json")
    if other is None:
        return None
    if other.get("host") == platform.node():
        try:
            os.kill(int(str(other["pid"])), 0)
        except PermissionError:
            pass  # it lives, and is another user's
        except (OSError, ValueError, KeyError):
            return None
    return other if time.time() - float(other.get("beat", 0)) < SILENCE else None


def claim(ledger: Ledger, sweep: str, key: str) -> None:
    """Note that this process, the driver of `sweep`, trains a trial: the driver of another sweep waits for it."""
    ledger.write_json(f"claims/{key}.json", {"sweep": sweep, "pid": os.getpid(), "host": platform.node()})


def unclaim(ledger: Ledger, key: str) -> None:
    """Take the note of `claim` away."""
    ledger.delete(f"claims/{key}.json")


def elsewhere(ledger: Ledger, sweep: str, key: str) -> bool:
    """Return whether the living driver of another sweep than `sweep` trains the trial `key` now."""
    note = ledger.read_json(f"claims/{key}.json")
    if note is None or note.get("sweep") == sweep:
        return False
    now = driver(ledger, str(note.get("sweep")))
    return now is not None and all(now.get(name) == note.get(name) for name in ("pid", "host"))
