"""The nets of benchmarks that a GPU is asked for do not diverge at their rates."""

import argparse
import dataclasses
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import bench_sharing, bench_step
from crelu_data import load
from crelu_data.write import prepare
from sweeps.training.loop import Learner
from sweeps.training.run_trial import run_trial
from tests.support.trials import runtime_config

WIDTH = 0.125


def test_nets_of_the_benchmark_of_sharing_do_not_diverge(tmp_path: Path) -> None:
    name = "synthetic:size=32,classes=10,train=96,test=16"
    prepare(name, tmp_path / "data")
    for trial in bench_sharing.cifar(96, 2):
        recipe = dataclasses.replace(trial.recipe, batch=16, precision="fp32")
        cell = dataclasses.replace(trial.cell, net=trial.cell.net.width(WIDTH), dataset=name, recipe=recipe)
        config = runtime_config(tmp_path / "data", tmp_path / "ledger")
        result = run_trial(dataclasses.replace(trial, cell=cell), config, lambda *_: None)
        assert result is not None
        assert (result["status"], result["events"]) == ("finished", []), cell.label


@pytest.mark.parametrize("family", bench_step.FAMILIES)
def test_nets_of_the_benchmark_of_steps_do_not_diverge(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: list[Learner] = []
    step = Learner.step

    def noted(learner: Learner, images: Tensor, labels: Tensor) -> None:
        learners.append(learner)
        step(learner, images, labels)

    monkeypatch.setattr(Learner, "step", noted)
    monkeypatch.setattr(bench_step, "name", lambda stored: f"synthetic:size={stored},classes=10,train=16,test=8")
    monkeypatch.setattr(load, "open_pictures", partial(load.open_pictures, reader="threads"))
    prepare(bench_step.name(bench_step.FAMILIES[family][2]), tmp_path)
    options = argparse.Namespace(width=WIDTH, batch=4, device="cpu", precision="fp32", data=str(tmp_path))
    turns = bench_step.ours(family, options)
    for _ in islice(zip(turns["ours"](), turns["resident"](), strict=False), 4):
        pass
    assert [learner is learners[0] for learner in learners] == [True] * 8
    assert learners[0].check_finite()[3] == 8 * 4
