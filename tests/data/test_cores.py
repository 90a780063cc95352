"""The cores that a process may use: fewer than the machine's by affinity, by control groups and by SLURM."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crelu_data.cores import cgroup_cores, cores, map_in_threads

NONE: dict[str, str] = {}


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Return `root` as a machine whose process is in these control groups, with these files below sys/fs/cgroup."""
    files = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000", "user/cpu.max": "400000 100000"}, 4.0),
        ("0::/user/job\n", {"user/job/cpu.max": "300000 100000", "user/cpu.max": "200000 50000"}, 3.0),
        ("0::/docker/abc\n", {"cpu.max": "50000 100000"}, 0.5),  # a container that knows the host's name of its group
        ("4:memory:/m\n3:cpu,cpuacct:/j\n", {"cpu,cpuacct/j/cpu.cfs_quota_us": "250000",
                                             "cpu,cpuacct/j/cpu.cfs_period_us": "100000"}, 2.5),
        ("3:cpuacct,cpu:/j\n", {"cpu/j/cpu.cfs_quota_us": "-1", "cpu/j/cpu.cfs_period_us": "100000"}, None),
        ("3:cpu:/far\n0::/\n", {"cpu/cpu.cfs_quota_us": "60000", "cpu/cpu.cfs_period_us": "20000"}, 3.0),
        ("3:memory:/j\n", {"cpu/cpu.cfs_quota_us": "60000", "cpu/cpu.cfs_period_us": "20000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("0::/", {}, None),
    ],
)  # fmt: skip
def test_control_groups_leave_as_much_as_the_narrowest_of_them(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float | None
) -> None:
    assert cgroup_cores(machine(tmp_path, groups, files)) == expected


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert cgroup_cores(tmp_path) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_JOB_CPUS_PER_NODE": "16(x2),8"}, 16),
        ({"SLURM_CPUS_ON_NODE": "3", "SLURM_JOB_CPUS_PER_NODE": "16(x2),8"}, 3),
        ({"SLURM_CPUS_ON_NODE": "0"}, 1),
        ({"SLURM_CPUS_ON_NODE": "none"}, 64),
        (NONE, 64),
    ],
)
def test_slurm_says_how_many_of_a_node_are_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cores(tmp_path, variables) == expected


def test_the_narrowest_limit_counts_and_at_least_a_core_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = machine(tmp_path / "a", "0::/", {"cpu.max": "350000 100000"})
    tiny = machine(tmp_path / "b", "0::/", {"cpu.max": "20000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores(tmp_path, NONE) == 8
    assert cores(quota, NONE) == 3, "no more processes than whole cores of time"
    assert cores(quota, {"SLURM_CPUS_ON_NODE": "2"}) == 2
    assert cores(tiny, NONE) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert cores(quota, NONE) == 1


def test_values_come_in_the_order_of_the_items_from_all_threads() -> None:
    """More items than may wait: the first ends after those that follow it, and two threads meet at the barrier."""
    together = threading.Barrier(2, timeout=60)
    followed = threading.Event()

    def square(number: int) -> int:
        if number < 2:
            together.wait()
        if number == 0:
            assert followed.wait(60)
        if number == 5:
            followed.set()
        return number**2

    assert list(map_in_threads(square, range(40), 2)) == [number**2 for number in range(40)]


def test_what_waits_for_a_thread_is_given_up_with_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    gate = threading.Event()

    class Pool(ThreadPoolExecutor):
        """A pool whose end waits for the call that is under way."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            gate.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    def wait(number: int) -> None:
        begun.append(number)
        if number:
            gate.wait(60)

    monkeypatch.setattr("crelu_data.cores.ThreadPoolExecutor", Pool)
    values = map_in_threads(wait, range(40), 1)
    next(values)
    values.close()
    assert begun in ([0], [0, 1])
