"""Leases: who drives a sweep, and who trains a trial that several sweeps share; a dead or silent owner loses them.

A driver gives a sign of life, a beat, every few seconds. Another host takes it for dead once its beat has not changed
for a minute, as its own clock counts it: two hosts' clocks are never compared. A driver that slept meanwhile finds out
before its next write, and stops.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from sweeps.store.foreign import SWEEP_TITLE, printable_json
from sweeps.store.lease_file import Content, LeaseFile, StoreFile, lease_file
from sweeps.store.ledger import Json, Ledger, checksum
from sweeps.store.process import Host, system, this_process

BEAT: Final = 5.0  # seconds between two signs of life
SILENCE: Final = 60.0  # seconds without one after which a driver on another host counts as dead
FENCE: Final = 30.0  # seconds after its last sign of life in which a driver writes without giving one first
SETTLE: Final = 5.0  # seconds in which two drivers that write at once see who wrote last
LOOK: Final = 1.0  # seconds between two looks at the lease of another driver
ANSWERS: Final = 5  # late answers of the store in a row, after which a write fails
GLANCE: Final = 3 * BEAT  # seconds for which a command looks whether another host's driver lives
HERE: Final = Host()


class LeaseHeldError(Exception):
    """Another driver works on this sweep."""


class LeaseLostError(Exception):
    """Another driver has taken over this sweep: this one has no more to write."""


class Watch:
    """Watch over a file's tag: the seconds for which it has not changed, as far as somebody looked."""

    def __init__(self, host: Host) -> None:
        """Prepare to look, by the clock of `host`."""
        self.host = host
        self.tag = ""
        self.looked = 0.0
        self.silent = 0.0
        self.changes = -1  # the first tag is no change

    def look(self, tag: str) -> float:
        """Take in the tag as it is now, and return for how many seconds it has been so.

        A watcher that slept has seen nothing meanwhile: between two looks no more than two beats count.
        """
        now = self.host.now()
        if tag == self.tag:
            self.silent += min(max(0.0, now - self.looked), 2 * BEAT)
        else:
            self.tag = tag
            self.silent = 0.0
            self.changes += 1
        self.looked = now
        return self.silent


class Lease:
    """Right to drive a sweep, held inside `with` and renewed by a thread; entering raises LeaseHeldError.

    Where the disk has file locks, the kernel frees the lock of a dead owner of this host at once. Without them, on S3
    and between hosts, the beats decide. `check` raises LeaseLostError where another driver has taken over; it belongs
    before every write of the driver.
    """

    def __init__(
        self,
        ledger: Ledger,
        sweep: str,
        tell: Callable[[str], None] = lambda _: None,
        on_lost: Callable[[str], None] = lambda _: None,
        host: Host = HERE,
    ) -> None:
        """Prepare to take the lease of `sweep`; `tell` gets a sentence on a wait, `on_lost` the reason of a loss."""
        self.ledger = ledger
        self.sweep = sweep
        self.tell = tell
        self.on_lost = on_lost
        self.file: LeaseFile = lease_file(ledger, f"leases/{sweep}.json")
        self.host = host
        self.owner = uuid.uuid4().hex
        self.since = host.wall()
        self.began = 0.0  # by the clock, as are the times below
        self.renewed = 0.0
        self.tag = ""
        self.lost = ""  # why this driver has lost the lease
        self.lock: int | None = None  # the open file that has the kernel's lock
        self.turn: AbstractContextManager[object] = threading.RLock()  # also for a signal's handler that writes
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._renew_until_over, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease, where no living driver holds it."""
        try:
            self.take_lock()
            self.take()
        except BaseException:
            self._free_lock()
            raise
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back."""
        self.over.set()
        self.thread.join()
        with suppress(OSError):  # on a read-only disk the freed lock, or silence, says the same
            self.file.remove(self.tag)
        self._free_lock()

    # Taking it

    def take_lock(self) -> None:
        """Take the kernel's lock, where the disk has locks; LeaseHeldError where another process has it."""
        if not self.ledger.local:
            return
        path = Path(self.ledger.path(f"leases/{self.sweep}.json.lock"))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._busy(_parsed(self.file.read())) from None
        except OSError as error:  # ENOSYS, ENOLCK, EOPNOTSUPP: the beats decide alone
            self._free_lock()
            self.tell(f"{path.parent} has no file locks ({error.strerror}): drivers know each other by their beats")

    def take(self) -> None:
        """Write the lease where no living driver has it; LeaseHeldError otherwise.

        The beats decide even where we have the kernel's lock: the locks of some network disks are those of one host.
        """
        watch = Watch(self.host)
        said = False
        self.began = self.host.now()
        while True:
            now = self.file.read()
            if now is None:
                tag = self._written(lambda: self.file.create(self._sign()))
                settled = self.file.creates_once
            else:
                other = _parsed(now)
                silent = watch.look(now.tag)
                alive = self._alive(other)
                if alive or (alive is None and watch.changes):
                    raise self._busy(other)
                if alive is None and silent < SILENCE:
                    if not said:
                        said = True
                        self.tell(
                            f"the lease of {owner_text(other)} is still there; this command takes over if that gives "
                            f"no sign of life within {SILENCE:.0f} s"
                        )
                    self.host.sleep(LOOK)
                    continue
                tag = self._written(lambda known=now.tag: self.file.replace(self._sign(), known))  # type: ignore[misc]
                settled = self.file.compares or (alive is False and self.lock is not None)
            if tag is not None and not settled:
                self.host.sleep(SETTLE)
                tag = self._own_tag()
            if tag is not None:
                self.tag = tag
                return
            later = self.file.read()
            if later is not None:  # another one was faster
                raise self._busy(_parsed(later))

    def _alive(self, other: Json) -> bool | None:
        """Return whether the owner of a lease lives; None for one of another host, whose beats must be watched."""
        alive = self.host.lives(other)
        if not alive:
            return alive
        # Processes of one host share its clock.
        return self.host.now() - _number(other, "clock") < SILENCE

    def _written(self, write: Callable[[], str | None]) -> str | None:
        """Return the tag that `write` gives the lease; a refusal may follow an own write whose answer was lost."""
        self.renewed = self.host.now()
        return write() or self._own_tag()

    def _own_tag(self) -> str | None:
        """Return the tag of the file where it is this driver's, else None."""
        now = self.file.read()
        return now.tag if now is not None and _parsed(now).get("owner") == self.owner else None

    def _busy(self, other: Json) -> LeaseHeldError:
        """Return the error that says who holds the lease, and for how long."""
        if not other:
            return LeaseHeldError("another driver works on this sweep; its lease cannot be read")
        minutes = _number(other, "held") / 60
        return LeaseHeldError(
            f"another driver works on this sweep: {owner_text(other)}, for {minutes:.0f} min. "
            "When it ends or dies, the same command takes over"
        )

    def _sign(self) -> bytes:
        """Return the lease's content, a new one at each call."""
        now = self.host.now()
        sign = {
            "owner": self.owner,
            "since": self.since,
            "beat": self.host.wall(),  # for readers; no program compares it
            "held": now - self.began,
            "clock": now,
            "locked": self.lock is not None,
        }
        return _encoded(sign | self.host.this_process())

    def _free_lock(self) -> None:
        lock, self.lock = self.lock, None
        if lock is not None:
            os.close(lock)

    # Keeping it

    def check(self) -> None:
        """Raise LeaseLostError where another driver has taken over, OSError where the store does not say so.

        After a silence of half the time in which a driver counts as dead, the next beat comes first: the write that
        follows has the other half. The clock is read again after each answer, since the process may sleep before it.
        """
        with self.turn:
            for _ in range(ANSWERS):
                if self.over.is_set():  # a thread that still writes is refused, and the process ends as it would
                    raise LeaseLostError("this driver has ended and given its lease back")
                if self.lost:
                    raise LeaseLostError(self.lost)
                if self.host.now() - self.renewed >= FENCE:
                    self.renew()
                else:
                    now = self.file.read()
                    if now is None or _parsed(now).get("owner") != self.owner:
                        self._lose_or_mend(now)
                if self.host.now() - self.renewed < FENCE:
                    return
            raise OSError(errno.ETIMEDOUT, f"{self.ledger.root} takes longer than {FENCE:.0f} s to answer")

    def renew(self) -> None:
        """Give a sign of life; LeaseLostError where another driver has taken over."""
        with self.turn:
            if self.lost:
                raise LeaseLostError(self.lost)
            began = self.host.now()
            tag = self.file.beat(self._sign(), self.tag)
            overwrites = self.file.overwrites
            for _ in range(ANSWERS):
                if tag is not None:
                    break
                now = self.file.read()
                if now is None or _parsed(now).get("owner") != self.owner:
                    self._lose_or_mend(now)
                    return
                # The answer to an earlier beat was lost; the next one goes on from there.
                self.tag = now.tag
                tag = self.file.beat(self._sign(), self.tag)
                if tag is None:
                    # The folder came back as a copy, whose file is not the one that is open here.
                    tag = self.file.replace(self._sign(), self.tag)
                    overwrites = not self.file.compares
            if tag is None:
                raise OSError(errno.EAGAIN, f"{self.ledger.root} takes no sign of life of this driver")
            self.tag = tag
            self.renewed = began
            if overwrites and self.host.now() - began >= FENCE:
                # Somebody may have taken over between the two halves of this beat, which then covers their lease.
                self._lose("a sign of life took too long on a store without conditional writes")

    def _lose_or_mend(self, now: Content | None) -> None:
        """Note that the lease is lost and raise LeaseLostError; one that cannot be read is written anew."""
        began = self.host.now()
        # After a longer silence the damaged one may be that of another driver.
        if now is not None and not _parsed(now) and began - self.renewed < FENCE:
            tag = self.file.replace(self._sign(), now.tag)
            if tag is not None:
                self.tag = tag
                self.renewed = began
                return
            now = self.file.read()
        if now is None:
            self._lose("the lease of this sweep is gone: another driver may have taken over and ended")
        self._lose(f"another driver has taken over this sweep: {owner_text(_parsed(now))}")

    def _lose(self, why: str) -> NoReturn:
        """Note that the lease is lost, and raise LeaseLostError."""
        silent = self.host.now() - self.renewed
        self.lost = f"{why}. This one gave no sign of life for {silent:.0f} s and stops without writing any more"
        self.on_lost(self.lost)
        raise LeaseLostError(self.lost)

    def _renew_until_over(self) -> None:
        while not self.over.wait(BEAT):
            try:
                self.renew()
            except LeaseLostError:
                return
            except OSError:  # the next beat tries again
                continue


def _encoded(lease: Json) -> bytes:
    """Return a lease or a claim as a file's content, with a checksum."""
    return (json.dumps(lease | {"check": checksum(lease)}, indent=1, sort_keys=True) + "\n").encode()


def _parsed(content: Content | None) -> Json:
    """Return the lease in a file, its texts printable; empty where it cannot be read."""
    try:
        value = json.loads(content.text.decode("utf-8")) if content is not None else {}
    except (ValueError, RecursionError):
        return {}
    if content is None or not isinstance(value, dict) or value.pop("check", checksum(value)) != checksum(value):
        return {}
    return printable_json(content.text, value)


def _number(lease: Json, name: str) -> float:
    """Return a number of a lease, 0 where it has none of that name."""
    value = lease.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def owner_text(lease: Json) -> str:
    """Return the words for the owner of a lease."""
    return f"process {lease.get('pid', '?')} on {lease.get('host', '?')}"


class Drivers:
    """Drivers of the sweeps of a ledger, as one process sees them: it remembers the beats that it has seen."""

    def __init__(self, ledger: Ledger, host: Host = HERE) -> None:
        """Prepare to look at the leases of `ledger`."""
        self.ledger = ledger
        self.host = host
        self.watches: dict[str, Watch] = {}

    def look(self, sweep: str, silence: float = SILENCE) -> Json | None:
        """Return the lease of the driver of `sweep`, or None.

        One of another host is alive until its beat has not changed for `silence` seconds.
        """
        now = StoreFile(self.ledger, f"leases/{sweep}.json").read()
        if now is None:
            self.watches.pop(sweep, None)
            return None
        lease = _parsed(now)
        silent = self.watches.setdefault(sweep, Watch(self.host)).look(now.tag)
        alive = self.host.lives(lease)
        if alive is None:
            alive = silent < silence
        elif alive and not lease.get("locked"):  # the kernel keeps others out for as long as a lock's owner lives
            alive = self.host.now() - _number(lease, "clock") < SILENCE
        return lease if alive else None

    def now(self, sweeps: Iterable[str], silence: float = GLANCE) -> dict[str, Json | None]:
        """Return the leases of the living drivers of sweeps; one of another host has to beat within `silence`."""
        wanted = list(sweeps)
        while True:
            leases = {sweep: self.look(sweep, silence) for sweep in wanted}
            if not any(lease is not None and self._is_unseen(sweep, lease) for sweep, lease in leases.items()):
                return leases
            self.host.sleep(LOOK)

    def _is_unseen(self, sweep: str, lease: Json) -> bool:
        """Return whether a lease is of another host, and no beat of it was seen so far."""
        return self.host.lives(lease) is None and self.watches[sweep].changes < 1


def driver(ledger: Ledger, sweep: str) -> Json | None:
    """Return the lease of the living driver of `sweep`, or None."""
    return Drivers(ledger).now([sweep])[sweep]


def claim(drivers: Drivers, sweep: str, key: str) -> bool:
    """Note that this process, the driver of `sweep`, trains a trial, so that drivers of other sweeps wait for it.

    Return False, with nothing noted, where the living driver of another sweep trains it. Of two that claim at once, one
    is refused on a disk and on a store with conditional writes.
    """
    drivers.ledger.guard()
    file = lease_file(drivers.ledger, f"claims/{key}.json")
    mine: Json = {"sweep": sweep} | this_process()
    text = _encoded(mine)
    now = file.read()
    note = _parsed(now)
    if note and note.get("sweep") != sweep and _drives(drivers, note):
        return False
    try:
        tag = file.create(text) if now is None else file.replace(text, now.tag)
        # A refusal may follow an own write whose answer was lost.
        return tag is not None or _parsed(file.read()) == mine
    finally:
        file.close()


def unclaim(drivers: Drivers, sweep: str, key: str) -> None:
    """Delete the note of `claim`, unless the driver of another sweep has taken the trial over."""
    name = f"claims/{key}.json"
    if (drivers.ledger.read_json(name) or {}).get("sweep", sweep) == sweep:
        drivers.ledger.delete(name)


def trained_elsewhere(drivers: Drivers, sweep: str, keys: Collection[str]) -> dict[str, str]:
    """Return, by the keys of trials, the other sweeps whose living drivers train them now.

    A driver of another host counts as dead once it has given no sign of life for SILENCE seconds.
    """
    ledger = drivers.ledger
    claimed = {name.removesuffix(".json") for name in ledger.names("claims")}
    notes = {key: ledger.read_json(f"claims/{key}.json") or {} for key in sorted(claimed.intersection(keys))}
    sweeps = {key: str(note.get("sweep")) for key, note in notes.items()}
    others = {other for other in sweeps.values() if other != sweep and SWEEP_TITLE.fullmatch(other)}
    leases = drivers.now(sorted(others), SILENCE)
    return {key: sweeps[key] for key, note in notes.items() if _is_of(leases.get(sweeps[key]), note)}


def _drives(drivers: Drivers, note: Json) -> bool:
    """Return whether the process that a claim names drives its sweep now."""
    try:
        other = drivers.look(str(note.get("sweep")))
    except ValueError:  # no name of a sweep
        return False
    return _is_of(other, note)


def _is_of(lease: Json | None, note: Json) -> bool:
    """Return whether a lease is that of the process that a claim names."""
    return lease is not None and all(lease.get(name) == note.get(name) for name in ("pid", "started", *system()))
