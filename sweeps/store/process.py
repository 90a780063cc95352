"""Processes named on the ledger: kernel, PID namespace, number and start, and whether one still lives."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


@cache
def system() -> dict[str, str]:
    """Return what names this system: the boot of its kernel, and the namespace in which its process numbers count.

    Hosts may share a name, and containers of one host have process numbers of their own.
    """
    try:
        return {"boot": BOOT.read_text().strip(), "pid_namespace": os.readlink(NAMESPACE)}
    except OSError:  # no Linux
        return {"boot": platform.node(), "pid_namespace": ""}


def this_process() -> dict[str, object]:
    """Return what names this process among those of all hosts."""
    pid = os.getpid()
    return {"pid": pid, "host": platform.node(), "started": started(pid), **system()}


def started(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; "dead" for one that has ended, empty where nobody says."""
    try:
        # The name in brackets may hold anything; the state is the first word after it, the start the twentieth.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "dead" if words[0] in "ZX" else words[19]
    except (OSError, IndexError):
        return ""


class Host:
    """Host of this process: its clock, and which processes live on it."""

    def now(self) -> float:
        """Return the boot-time clock in seconds: it counts sleep, and cannot be set."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def wall(self) -> float:
        """Return the time of day, for readers: hosts do not agree on it."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def this_process(self) -> dict[str, object]:
        """Return what names this process."""
        return this_process()

    def lives(self, process: Mapping[str, object]) -> bool | None:
        """Return whether a named process lives; None for one of another kernel or namespace, which nobody here knows.

        A process that began at another time is another one with the same number.
        """
        if any(process.get(name) != value for name, value in system().items()):
            return None
        try:
            pid = int(str(process["pid"]))
            if pid <= 0:
                return False
            os.kill(pid, 0)
        except PermissionError:
            pass  # it lives, and is another user's
        except (OSError, ValueError, OverflowError, KeyError):
            return False
        began = started(pid)
        return not began or not process.get("started") or began == process["started"]
