"""Cores of this machine that a process may use: by its affinity, its control group and its job; and their use."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from crelu_data.interrupts import deferred_interrupts

T = TypeVar("T")
R = TypeVar("R")

# What SLURM says of a job's CPUs on a node, the narrowest first; "16(x2),8" stands for nodes of 16, 16 and 8.
SLURM_VARIABLES = ("SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE")
AHEAD = 4  # calls that wait for each thread, so that none is idle while the results are used


def cores(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Return how many cores this process may keep busy: at least 1, at most the machine's.

    `root` holds proc and sys.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, cgroup_cores(root), _slurm_cores(environment)]
    return max(1, min(int(limit) for limit in limits if limit is not None))


def cgroup_cores(root: Path) -> float | None:
    """Return the cores' worth of CPU time that the control groups of this process leave it; None for no limit."""
    quotas = [quota for file in _quota_files(root) if (quota := _quota(file)) is not None]
    return min(quotas, default=None)


def _quota_files(root: Path) -> Iterator[Path]:
    """Yield the files that may hold a quota: of this process's group, in version 1 or 2, and of those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the group's name may be the host's, and only the top folder be there.
        for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
            inner = str(folder).lstrip("/")
            if controllers:
                yield root / "sys/fs/cgroup/cpu" / inner / "cpu.cfs_quota_us"
                yield root / "sys/fs/cgroup/cpu,cpuacct" / inner / "cpu.cfs_quota_us"
            else:
                yield root / "sys/fs/cgroup" / inner / "cpu.max"
                yield root / "sys/fs/cgroup/unified" / inner / "cpu.max"


def _quota(file: Path) -> float | None:
    """Return a quota in cores, from cpu.max ("150000 100000") or from cpu.cfs_quota_us and its period."""
    try:
        words = file.read_text().split()
        if file.name != "cpu.max":
            words += (file.parent / "cpu.cfs_period_us").read_text().split()
        quota, period = float(words[0]), float(words[1])
    except (OSError, ValueError, IndexError):  # "max" is no number: no limit
        return None
    return quota / period if quota > 0 and period > 0 else None


def _slurm_cores(environment: Mapping[str, str]) -> int | None:
    """Return the CPUs that SLURM has given the job on this node; None outside a job."""
    for name in SLURM_VARIABLES:
        number = re.match(r"\d+", environment.get(name, ""))
        if number:
            return int(number.group())
    return None


def map_in_threads(function: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """Yield the function's value for each item, in order, from so many threads; Ctrl-C is obeyed between two items."""
    pending: deque[Future[R]] = deque()
    with deferred_interrupts() as check, ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                check()
                pending.append(pool.submit(function, item))
                if len(pending) > AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                check()
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
