"""Ledger in memory for the simulation of the queue, and what replaces clock, process table and host there.

Each call may give way to other processes, before it and after it, and may fail.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sweeps.store.lease_file import Content
from sweeps.store.ledger import Json, Ledger
from sweeps.store.process import Host
from tests.support.queue_processes import Killed, Process, Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SWITCH = 0.12  # share of calls after which, or before which, others run
LONG = 0.02  # share of these that take seconds


@dataclass
class Store:
    """Files of a simulated ledger, by folder and name, and the calls that are to fail."""

    processes: Processes
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    failing: dict[int, int] = field(default_factory=dict)  # calls to fail from now on, by process
    committed_at: dict[str, float] = field(default_factory=dict)  # of each trial's first result
    on_commit: Callable[[str], None] = lambda key: None

    def touch(self, name: str) -> None:
        """Let others run, now and then; OSError where this call is to fail."""
        processes = self.processes
        me = processes.current
        if me.killed:
            raise Killed
        draw = processes.random.random()
        if draw < SWITCH and me is not processes.main:
            processes.pause(processes.random.random() * (4.0 if draw < SWITCH * LONG else 0.05))
        if self.failing.get(me.pid, 0) > 0:
            self.failing[me.pid] -= 1
            processes.log(f"fails: {name}")
            raise OSError(5, "the simulated disk fails", name)

    def put(self, name: str, content: bytes) -> None:
        """Store a file."""
        folder, _, base = name.rpartition("/")
        self.files.setdefault(folder, {})[base] = content
        if folder == "results":
            key = base.removesuffix(".json")
            self.committed_at.setdefault(key, self.processes.now)
            self.on_commit(key)

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all below it."""
        folder, _, base = name.rpartition("/")
        self.files.get(folder, {}).pop(base, None)
        for other in [other for other in self.files if other == name or other.startswith(f"{name}/")]:
            del self.files[other]


class World:
    """Holder of the store that the present simulation writes to."""

    store: Store


@dataclass(frozen=True)
class MemoryLedger(Ledger):
    """Ledger whose files are those of the present simulation."""

    root: str = "memory"

    @property
    def local(self) -> bool:
        """Return that the simulated ledger is on a store with conditional writes, between hosts."""
        return False

    def write(self, name: str, content: bytes) -> None:
        """Write a file at once, in whole."""
        World.store.touch(name)
        self.guard()
        World.store.put(name, content)
        World.store.touch(name)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None where it is missing."""
        World.store.touch(name)
        folder, _, base = name.rpartition("/")
        return World.store.files.get(folder, {}).get(base)

    def _read_all(self, keys: Sequence[str]) -> dict[str, Json | None]:
        """Return the results of `keys`, read one by one: the simulation has threads of its own alone."""
        return {key: self.result(key) for key in keys}

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted."""
        World.store.touch(folder)
        return sorted(World.store.files.get(folder, {}))

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        World.store.touch(folder)
        first = len(folder) + 1
        below = (name[first:].partition("/")[0] for name, files in World.store.files.items()
                 if files and name.startswith(f"{folder}/"))  # fmt: skip
        return sorted(set(below))

    def delete(self, name: str) -> None:
        """Delete a file or folder."""
        World.store.touch(name)
        self.guard()
        World.store.remove(name)
        World.store.touch(name)


def open_ledger(root: str) -> MemoryLedger:
    """Return the present simulation's ledger, for code that opens it by its root."""
    return MemoryLedger(root)


class SimulatedTime:
    """Stands for the module `time`: all is read off the simulation's clock."""

    @staticmethod
    def time() -> float:
        """Return the time on the clock of the process's host."""
        processes = World.store.processes
        return 1e9 + processes.now + processes.current.skew

    @staticmethod
    def monotonic() -> float:
        """Return the seconds since the simulation began."""
        return World.store.processes.now

    @staticmethod
    def sleep(seconds: float) -> None:
        """Let others run for so long."""
        World.store.processes.pause(seconds)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


class SimulatedHost(Host):
    """Host of the present process: its clock, which is apart from those of others, and which processes live on it."""

    def now(self) -> float:
        """Return the seconds since this host was started, which differs from host to host."""
        processes = World.store.processes
        return 1e5 + processes.now + 100 * processes.current.skew

    def wall(self) -> float:
        """Return the time of day, as this host has it."""
        return SimulatedTime.time()

    def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        World.store.processes.pause(seconds)

    def this_process(self) -> dict[str, object]:
        """Return what names the present process."""
        process = World.store.processes.current
        return {"pid": process.pid, "host": process.host, "started": f"{process.pid}", **simulated_system()}

    def lives(self, process: Mapping[str, object]) -> bool | None:
        """Return whether a named process lives; None for one of another host."""
        processes = World.store.processes
        if process.get("boot") != processes.current.host:
            return None
        return any(other.pid == process["pid"] and other.alive for other in processes.everyone)


def simulated_system() -> dict[str, str]:
    """Return what names the host of the present process."""
    return {"boot": World.store.processes.current.host, "pid_namespace": ""}


class SimulatedFile:
    """File of a lease or a claim on a store with conditional writes."""

    compares = True
    creates_once = True
    overwrites = False

    def __init__(self, ledger: Ledger, name: str) -> None:
        """Prepare to read and write `name`."""
        self.ledger = ledger
        self.name = name

    def read(self) -> Content | None:
        """Return the content now, or None where there is no file."""
        World.store.touch(self.name)
        return self._now()

    def _now(self) -> Content | None:
        folder, _, base = self.name.rpartition("/")
        text = World.store.files.get(folder, {}).get(base)
        return None if text is None else Content(text, hashlib.sha256(text).hexdigest())

    def create(self, text: bytes) -> str | None:
        """Write the file where there is none."""
        World.store.touch(self.name)
        return None if self._now() is not None else self._write(text)

    def replace(self, text: bytes, tag: str) -> str | None:
        """Write over a file that has not changed."""
        World.store.touch(self.name)
        now = self._now()
        return self._write(text) if now is not None and now.tag == tag else None

    def beat(self, text: bytes, tag: str) -> str | None:
        """Write over a lease of one's own."""
        return self.replace(text, tag)

    def remove(self, tag: str) -> None:
        """Delete a lease of one's own."""
        World.store.touch(self.name)
        now = self._now()
        if now is not None and now.tag == tag:
            World.store.remove(self.name)

    def close(self) -> None:
        """Release nothing."""

    def _write(self, text: bytes) -> str:
        World.store.put(self.name, text)
        return hashlib.sha256(text).hexdigest()


class SimulatedLock:
    """Lock of a process's threads in the simulation, which the same thread may take twice."""

    def __init__(self) -> None:
        """Make a free lock."""
        self.holder: Process | None = None
        self.depth = 0

    def __enter__(self) -> None:
        """Take the lock, once its holder has given it back."""
        processes = World.store.processes
        while self.holder not in (None, processes.current):
            processes.pause(0.1)
        self.holder = processes.current
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        """Give the lock back."""
        self.depth -= 1
        if not self.depth:
            self.holder = None
