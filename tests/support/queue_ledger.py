"""Ledger in memory for the simulation of the queue, and what replaces clock, process table and host there.

Each call may give way to other processes, before it and after it, and may fail.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sweeps.store.ledger import Json, Ledger
from tests.support.queue_processes import Killed, Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SWITCH = 0.12  # share of calls after which, or before which, others run
LONG = 0.02  # share of these that take seconds


@dataclass
class Store:
    """Files of a simulated ledger, by folder and name, and the calls that are to fail."""

    processes: Processes
    local: bool = True
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
        """Return whether the simulated ledger is on a file system of one host."""
        return World.store.local

    def write(self, name: str, content: bytes) -> None:
        """Write a file at once, in whole."""
        World.store.touch(name)
        World.store.put(name, content)
        World.store.touch(name)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that is not there yet; return whether it was not."""
        World.store.touch(name)
        folder, _, base = name.rpartition("/")
        if base in World.store.files.get(folder, {}):
            return False
        World.store.put(name, content)
        return True

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


class SimulatedOs:
    """Stands for the module `os`: process ids are those of the simulation."""

    @staticmethod
    def getpid() -> int:
        """Return the id of the present process."""
        return World.store.processes.current.pid

    @staticmethod
    def kill(pid: int, number: int) -> None:
        """Raise ProcessLookupError where there is no such process."""
        del number
        if not any(process.pid == pid and process.alive for process in World.store.processes.everyone):
            raise ProcessLookupError(pid)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


class SimulatedPlatform:
    """Stands for the module `platform`: the host is the simulated process's."""

    @staticmethod
    def node() -> str:
        """Return the name of the present process's host."""
        return World.store.processes.current.host
