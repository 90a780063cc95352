"""Resources of a trial, as its ranks share them, or as the one process of a training function has them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from crelu_models import S2
from sweeps.execution.resources import TrialResources
from sweeps.execution.worker import _train_one
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.trial import Cell, Trial
from sweeps.training import runtime
from sweeps.training.runtime import RuntimeConfig, visible_gpus


@pytest.mark.parametrize(
    ("cpus", "ranks", "threads"), [(1.0, 1, 1), (4.0, 1, 4), (4.0, 2, 2), (7.0, 2, 3), (2.0, 3, 1), (0.5, 1, 1)]
)
def test_ranks_share_the_cpus_of_a_trial(cpus: float, ranks: int, threads: int) -> None:
    assert TrialResources(cpus=cpus, ranks=ranks).threads == threads


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 2), ("cpu", 1)])
def test_a_training_function_has_in_one_process_what_all_ranks_have(device: str, gpus: int, tmp_path: Path) -> None:
    runtimes: list[RuntimeConfig] = []

    def train(trial: Trial, runtime: RuntimeConfig, *_: Any) -> None:
        runtimes.append(runtime)

    shared = RuntimeConfig(str(tmp_path), "", device=device, ranks=2, workers=3, threads=4)
    ours = Cell("ours", S2, "cifar10", ALLCONV)
    for cell in (ours, dataclasses.replace(ours, task="tests.support.own_tasks:scores")):
        _train_one(Trial(cell), train, shared, lambda _: None, lambda: False, False)
    assert runtimes == [shared, dataclasses.replace(shared, ranks=1, gpus=gpus, workers=6, threads=8)]


@pytest.mark.parametrize(
    ("chosen", "count"),
    [(None, 2), ("0", 1), ("1,0", 2), ("0,1,2", 2), (" 1 , GPU-8f", 2), ("MIG-2d", 1), ("", 0), ("-1", 0),
     ("0,-1,1", 1), ("NoDevFiles", 0)],
)  # fmt: skip
def test_gpus_are_those_that_cuda_takes_of_its_variable(
    chosen: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.glob, "glob", lambda _: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.delenv(runtime.VISIBLE, raising=False)
    if chosen is not None:
        monkeypatch.setenv(runtime.VISIBLE, chosen)
    assert visible_gpus() == count
