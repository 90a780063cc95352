"""What a training takes of its machine stands in each row of its history, as a rate since the row before."""

import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from sweeps.training.runtime import SystemUse


def test_cores_are_counted_since_the_row_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 100.0, "cpu": 7.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["cpu"])
    use = SystemUse(torch.device("cpu"))
    shown = []
    for wall, cpu in ((10.0, 25.0), (4.0, 2.0)):
        now = {"wall": now["wall"] + wall, "cpu": now["cpu"] + cpu}
        shown.append(use.row()["sys/cpu_cores"])
    assert shown == [2.5, 0.5]


def test_memory_is_that_of_the_process_in_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([300 << 20, 5 << 20])
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=next(sizes)))
    use = SystemUse(torch.device("cpu"))
    rows = [use.row() for _ in range(2)]
    assert [row["sys/memory_mib"] for row in rows] == [300, 5]
    assert "sys/gpu_memory_mib" not in rows[0]


def test_memory_of_a_gpu_is_the_most_so_far_beside_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or (3 << 20))
    size = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: asked.append(device) or size)
    row = SystemUse(torch.device("cuda", 1)).row()
    assert (row["sys/gpu_memory_mib"], row["sys/gpu_size_mib"]) == (3, 80 << 10)
    assert asked == [torch.device("cuda", 1)] * 2
