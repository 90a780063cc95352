"""A rehearsal trains what a trial trains, and says of a cell whether it would learn."""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crelu_models.spec import Conv, Net, Pool
from crelu_models.tables import S2
from sweeps.cli.options import ExitCode, parser
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol
from sweeps.experiment.trial import Cell
from sweeps.launch import launch
from sweeps.store.ledger import Ledger
from sweeps.training.evaluate import Errors
from sweeps.training.loop import Learner
from sweeps.training.rehearsal import _Step, judge, rehearse, stand_in
from sweeps.training.run_trial import run_trial
from tests.support.trials import SMALL, runtime_config, trial_of

FAMILY = "allconv with dropout"
TEN = Errors(math.log(10), 90.0, 50.0)


# Two convs: a step takes milliseconds, and thirty of them learn four textures in part.
SHALLOW = Net("shallow", (
    Conv("conv1", 16, 5, 2, 2, bn=True), Pool("pool1", "max", 2, 2), Conv("conv2", 32, 3, 1, 1, bn=True),
    Conv("conv3", None, 1, 1, act="none"), Pool("pool2", "avg", 0),
), 32)  # fmt: skip
RECIPE = dataclasses.replace(ALLCONV, batch=25, lr=0.05, weight_decay=0.0, precision="fp32")


def cell_with(label: str, **changes: Any) -> Cell:
    """Return a small cell with another recipe."""
    return Cell(label, SHALLOW, SMALL, dataclasses.replace(RECIPE, **changes))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.cli.rehearse.cores", lambda: 1)


def options_of(data: Path, *words: str, out: Path | None = None) -> argparse.Namespace:
    place = str(out or data / "out")
    common = ("--data-dir", str(data), "--reader", "threads", "--gpus-per-trial", "0", "--output", place)
    return parser("page", "Does it?").parse_args([*words, *common, "--dataset", SMALL])


def test_first_losses_are_those_of_a_trial(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_of(FAMILY)
    trial = dataclasses.replace(trial, seed=0)
    losses: list[float] = []
    step = Learner.step

    def seen(self: Learner, images: torch.Tensor, labels: torch.Tensor) -> None:
        before = self.sums[0].item()
        step(self, images, labels)
        losses.append((self.sums[0].item() - before) / len(labels))

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", seen)
        assert run_trial(trial, runtime_config(data, tmp_path), lambda *_: None) is not None
    steps = len(losses) // 3  # of the first epoch: dropout masks of the next one count its steps anew
    result = rehearse(trial.cell, steps, runtime_config(data, tmp_path))
    assert result.losses == pytest.approx(losses[:steps], rel=1e-12)
    assert steps == 5


def test_norm_is_of_the_gradient_before_clipping(data: Path, tmp_path: Path) -> None:
    free = rehearse(cell_with("free"), 3, runtime_config(data, tmp_path))
    clipped = rehearse(cell_with("clipped", clip_norm=1e-3), 3, runtime_config(data, tmp_path))
    assert free.largest_norm > 0.1
    assert clipped.largest_norm > 0.1
    assert clipped.losses[0] == free.losses[0]
    assert clipped.losses[1] != free.losses[1]


def test_cell_that_diverges_is_named_and_exits_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = dataclasses.replace(cell_with("wild", lr=1e3), net=S2.width(0.125))
    code = launch("page", (cell_with("calm"), wild), Protocol(), options_of(data, "--rehearse", "60"))
    printed = capsys.readouterr()
    assert code == ExitCode.FAILED
    assert "1 of 2 cells would not train: wild (diverged at step" in printed.err
    rows = {line.split()[0]: line for line in printed.out.splitlines()[2:]}
    assert rows["calm"].endswith("trains")
    assert "diverged at step" in rows["wild"]


def test_cell_that_trains_exits_0_and_json_holds_its_numbers(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = launch("page", (cell_with("calm"),), Protocol(), options_of(data, "--rehearse", "60", "--json"))
    (row,) = json.loads(capsys.readouterr().out)
    assert code == ExitCode.DONE
    assert (row["label"], row["dataset"], row["steps"], row["verdict"]) == ("calm", SMALL, 60, "trains")
    assert row["last_loss"] < row["first_loss"]
    assert row["error"] < 60
    assert row["memory"] > 1 << 20
    assert row["images_per_s"] > 0
    assert not (data / "out").exists(), "a rehearsal keeps nothing"


def test_each_distinct_cell_is_rehearsed_once_by_the_flags_of_a_sweep(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = (cell_with("one"), cell_with("two", lr=0.04), cell_with("three", lr=0.02))
    flags = ("--rehearse", "2", "--json", "--only", "t*", "--set", "recipe.batch=8")
    launch("page", cells, Protocol(), options_of(data, *flags))
    assert [row["label"] for row in json.loads(capsys.readouterr().out)] == ["two", "three"]


STUDY = RateStudy("calm", (0.2, 0.1, 0.05))
RATED = (cell_with("calm"), dataclasses.replace(cell_with("other"), net=SHALLOW.crelu(1)), cell_with("own", batch=8))


def rates_rehearsed(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> dict[tuple[int, int], set[float]]:
    """Rehearse the cells of a page with a study; return the learning rates by filters behind conv1 and batch."""
    rates: dict[tuple[int, int], set[float]] = {}
    step = Learner.step

    def seen(self: Learner, images: torch.Tensor, labels: torch.Tensor) -> None:
        inputs = dict(self.model.named_parameters())["conv2.weight"].shape[1]
        rates.setdefault((inputs, self.recipe.batch), set()).add(self.recipe.lr)
        step(self, images, labels)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", seen)
        options = options_of(data, "--rehearse", "2", *words, out=out)
        assert launch("page", RATED, Protocol(rates=STUDY), options) == ExitCode.DONE
    return rates


def chosen(ledger: Ledger, status: str = "finished") -> None:
    """Let the study end, with .1 as the best of its rates."""
    for trial in STUDY.trials(RATED[0]):
        error = 10.0 if trial.rate == 0.1 else 20.0
        ledger.commit(trial.key, {"status": status, "metrics": {"best/val_top1_err": error}, "curve": []})


def test_rate_that_a_study_may_still_choose_is_named_and_the_printed_flag_rehearses_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = rates_rehearsed(data, tmp_path, monkeypatch, "--json")
    assert rates == {(16, 25): {0.05}, (32, 25): {0.05}, (16, 8): {0.05}}
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        "2 cells rehearsed at the recipe's learning rate, 0.05: the study has yet to choose one of 0.2, 0.1, 0.05; "
        "add --set recipe.lr=0.2 to rehearse that one"
    )
    words = told.partition("; add ")[2].partition(" to rehearse")[0].split()
    assert rates_rehearsed(data, tmp_path, monkeypatch, "--set", "recipe.flip=false", *words) == {
        (16, 25): {0.2}, (32, 25): {0.2}, (16, 8): {0.2},
    }  # fmt: skip
    assert not capsys.readouterr().err
    rates_rehearsed(data, tmp_path, monkeypatch, "--only", "own")
    assert not capsys.readouterr().err
    rates_rehearsed(data, tmp_path, monkeypatch, "--quiet")
    assert not capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "a rehearsal keeps nothing"


@pytest.mark.parametrize("only", ["*", "o*"])
def test_rate_that_a_study_has_chosen_is_rehearsed_with_or_without_the_baseline(
    only: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(Ledger(str(tmp_path / "ledger")))
    rates = rates_rehearsed(data, tmp_path, monkeypatch, "--only", only)
    baseline = {(16, 25): {0.1}} if only == "*" else {}
    assert rates == baseline | {(32, 25): {0.1}, (16, 8): {0.05}}
    (told,) = capsys.readouterr().err.splitlines()
    assert told == f"{'2 cells' if baseline else '1 cell'} rehearsed at the learning rate that the study chose, 0.1"


def test_baseline_that_trains_at_none_of_its_rates_is_said_before_a_rehearsal(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(Ledger(str(tmp_path / "ledger")), "diverged")
    rates = rates_rehearsed(data, tmp_path, monkeypatch)
    assert rates == {(16, 25): {0.05}, (32, 25): {0.05}, (16, 8): {0.05}}
    assert capsys.readouterr().err.startswith(
        "calm trains at none of the learning rates 0.2, 0.1, 0.05: 2 cells rehearsed at the recipe's, 0.05; add --set "
    )


def steps_of(losses: list[float], wrong: float = 90, dead: Callable[[int], bool] = lambda _: False) -> list[_Step]:
    return [_Step(loss, wrong, 1.0, dead(number), 100) for number, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        (steps_of([2.4] * 100), ("at chance", 0)),
        (steps_of([2.4] * 100, wrong=86), ("trains", 0)),  # 2000 pictures: three standard errors are 2 points
        (steps_of([2.4] * 100, wrong=89), ("at chance", 0)),
        (steps_of([2.4] * 60 + [2.2] * 40), ("trains", 0)),
        (steps_of([2.4] * 60 + [2.1, 2.5] * 20), ("at chance", 0)),
        (steps_of([2.4, 2.4, math.nan]), ("diverged", 3)),
        (steps_of([2.4, 2.4, math.inf, math.nan]), ("diverged", 3)),
        (steps_of([2.4] * 30 + [90.0] * 30), ("diverged", 31)),
        (steps_of([2.4, 60.0] + [2.3] * 58), ("at chance", 0)),  # it has come back
        (steps_of([60.0] * 60), ("at chance", 0)),  # as large as it began
        (steps_of([2.31] * 3999), ("at chance", 0)),
        (steps_of([2.31] * 4100), ("dead", 101)),  # as many as a trial waits
        (steps_of([2.31] * 4050 + [2.2] * 50), ("trains", 0)),
        (steps_of([2.4] * 60, dead=lambda number: number > 40), ("dead", 41)),
        (steps_of([2.4] * 60, dead=lambda number: number > 41), ("at chance", 0)),
        (steps_of([2.4] * 60, dead=lambda number: number <= 40), ("at chance", 0)),
    ],
)
def test_verdict_on_the_steps_of_a_training(steps: list[_Step], verdict: tuple[str, int]) -> None:
    assert judge(steps, TEN) == verdict


def test_net_that_dies_is_named(data: Path, tmp_path: Path) -> None:
    # A ReLU on the scores, which a few large steps push below zero for every picture.
    recipe = dataclasses.replace(RECIPE, lr=100.0, clip_norm=1.0)
    net = SHALLOW.final_activation("relu")
    result = rehearse(Cell("dies", net, SMALL, recipe), 60, runtime_config(data, tmp_path))
    assert (result.verdict, result.is_fault) == ("dead", True)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_error_is_a_verdict(
    error: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def short(self: Learner, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self.step_count == 3:
            raise error
        step(self, images, labels)

    monkeypatch.setattr(Learner, "step", short)
    result = rehearse(cell_with("large"), 10, runtime_config(data, tmp_path))
    assert (result.words, result.steps) == ("out of memory at step 4", 3)


def test_warm_up_counts_the_epochs_of_the_real_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    optimise = Learner.step

    def seen(self: Learner, images: torch.Tensor, labels: torch.Tensor) -> None:
        rates.append(self.recipe.learning_rate(self.epoch, self.step_count, self.steps))
        optimise(self, images, labels)

    monkeypatch.setattr(Learner, "step", seen)
    cell = dataclasses.replace(cell_with("warm", lr=1.0, warmup_epochs=1.0, batch=16), dataset="cifar10")
    rehearse(cell, 12, runtime_config(data, tmp_path), SMALL)
    # 40,000 pictures are 2,500 steps; the embedded ones have five an epoch.
    assert rates == pytest.approx([(step + 1) / 2500 for step in range(12)])


def test_stand_in_has_size_and_classes_of_the_real_data_and_is_easy_to_learn() -> None:
    assert stand_in("imagenet").startswith("synthetic:size=256,classes=1000,")
    assert stand_in("cifar100").startswith("synthetic:size=32,classes=100,")
    assert stand_in("imagenet:size=64").startswith("synthetic:size=64,classes=1000,")
    assert stand_in("cifar10").endswith(",clutter=20,contrast=30")
    assert stand_in(SMALL) == stand_in("folder:/pictures") == ""
