"""The trainer's decisions on errors that a test chooses: best weights, pruning, the end of Single's second phase."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from crelu_data.write import prepare
from sweeps.experiment.trial import Trial
from sweeps.store import checkpoint
from sweeps.store.ledger import Json, Ledger
from sweeps.training import trainer, views
from sweeps.training.distributed import ALONE
from sweeps.training.evaluate import Errors
from sweeps.training.run_trial import run_trial
from sweeps.training.shared_batches import HELD_OUT, PackContext, drain
from sweeps.training.splits import open_splits
from tests.support.op_recorder import Waits
from tests.support.trials import SMALL, runtime_config, trial_of

FAMILY = "allconv with dropout"
Choose = Callable[[list[float]], list[int]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("data")
    prepare(SMALL, where)
    return where


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Return a function that sets what the next evaluations measure, and returns how many pictures each has."""

    def choose(values: list[float]) -> list[int]:
        left: Iterator[float] = iter(values)
        counted: list[int] = []

        def chosen(total: Tensor, pictures: int) -> Errors:
            counted.append(pictures)
            value = next(left)
            return Errors(value, value, 0.0)

        monkeypatch.setattr(trainer, "errors", chosen)
        return counted

    return choose


def states(trial: Trial, ledger: Ledger, seen: dict[int, dict[str, Tensor]]) -> Callable[[int, object], None]:
    """Return a report that keeps the net's weights of each epoch, from its checkpoint."""

    def keep(epoch: int, _: object) -> None:
        saved, _damaged = checkpoint.load(ledger, trial.key)
        assert saved is not None
        assert (saved.state["epoch"], saved.state["step"]) == (epoch, 0)
        seen[epoch] = {name[6:]: value for name, value in saved.tensors.items() if name.startswith("model/")}

    return keep


@pytest.mark.parametrize(("errors", "best"), [([50.0, 10.0, 30.0], 2), ([10.0, 20.0, 30.0], 1), ([9.0, 9.0, 9.0], 3)])
@pytest.mark.parametrize("interrupted", [False, True])
def test_weights_of_the_best_epoch_are_kept_and_tested(
    errors: list[float], best: int, interrupted: bool, data: Path, tmp_path: Path, measured: Choose
) -> None:
    trial = Trial(trial_of(FAMILY).cell, "fold", 3, folds=5)
    config = runtime_config(data, tmp_path, checkpoint_minutes=0.0)
    ledger = Ledger(str(tmp_path))
    seen: dict[int, dict[str, Tensor]] = {}
    measured(errors)
    if interrupted:  # within the last epoch
        steps = iter([False] * 12 + [True])
        assert run_trial(trial, config, states(trial, ledger, seen), lambda: next(steps)) is None
    result = run_trial(trial, config, states(trial, ledger, seen))
    assert result is not None
    assert result["metrics"]["best/epoch"] == best
    weights = safetensors.torch.load(ledger.read(f"trials/{trial.key}/weights.safetensors") or b"")
    assert weights.keys() == seen[best].keys()
    assert all(torch.equal(value, seen[best][name]) for name, value in weights.items())
    others = [state for epoch, state in seen.items() if epoch != best]
    assert all(any(not torch.equal(value, other[name]) for name, value in weights.items()) for other in others)


def test_a_row_of_table_4_keeps_the_last_weights(data: Path, tmp_path: Path, measured: Choose) -> None:
    trial = trial_of(FAMILY, "ablation")
    config = runtime_config(data, tmp_path, checkpoint_minutes=0.0)
    ledger = Ledger(str(tmp_path))
    seen: dict[int, dict[str, Tensor]] = {}
    measured([1.0, 2.0, 3.0])
    run_trial(trial, config, states(trial, ledger, seen))
    weights = safetensors.torch.load(ledger.read(f"trials/{trial.key}/weights.safetensors") or b"")
    assert all(torch.equal(value, seen[3][name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("errors", "bars", "epochs"),
    [
        ([10.0, 30.0, 30.0], (1000.0, 20.0, 20.0), 3),  # its best so far is below
        ([30.0, 30.0, 10.0], (1000.0, 20.0, 20.0), 2),
        ([30.0, 20.0, 20.0], (1000.0, 20.0, 20.0), 3),  # as good as the threshold is good enough
        ([30.0, 30.0, 30.0], (1000.0,), 3),  # epochs without a threshold
    ],
)
def test_a_search_trial_is_pruned_where_its_least_error_is_above_the_threshold(
    errors: list[float], bars: tuple[float, ...], epochs: int, data: Path, tmp_path: Path, measured: Choose
) -> None:
    trial = dataclasses.replace(trial_of(FAMILY, "holdout"), pruning_thresholds=bars)
    # The hold-out and the probe are measured after each epoch.
    measured([value for error in errors for value in (error, 0.0)])
    result = run_trial(trial, runtime_config(data, tmp_path), lambda *_: None)
    assert result is not None
    assert (result["status"], result["epochs"]) == ("pruned" if epochs < 3 else "finished", epochs)
    assert result["curve"] == errors[:epochs]


REFERENCE: Json = {"metrics": {"best/epoch": 1.0, "best/probe_loss": 0.6, "best/val_loss": 0.05}}


@pytest.mark.parametrize(
    ("match", "epochs", "ending"),
    [("train_loss", 2, "matched"), ("valid_loss", 3, "schedule"), ("epoch", 1, "matched"), ("none", 3, "schedule")],
)
def test_the_second_phase_of_single_stops_where_its_rule_says(
    match: str, epochs: int, ending: str, data: Path, tmp_path: Path, measured: Choose
) -> None:
    Ledger(str(tmp_path)).commit("reference", REFERENCE)
    trial = Trial(trial_of(FAMILY).cell, "match", 3, match=match, reference="reference")
    # The probe after each epoch, and all training pictures at the end: the "train" column of Table 1.
    counted = measured([2.0, 0.5, 0.1][:epochs] + [0.25])
    result = run_trial(trial, runtime_config(data, tmp_path), lambda *_: None)
    assert result is not None
    assert (result["epochs"], result["ending"]) == (epochs, ending)
    assert result["metrics"]["final/train_loss"] == 0.25
    assert counted == [20] * epochs + [100]


@pytest.mark.parametrize("match", ["train_loss", "valid_loss", "epoch"])
def test_the_second_phase_of_a_first_that_diverged_goes_on_to_the_end(
    match: str, data: Path, tmp_path: Path, measured: Choose
) -> None:
    Ledger(str(tmp_path)).commit("reference", REFERENCE | {"status": "diverged"})
    trial = Trial(trial_of(FAMILY).cell, "match", 3, match=match, reference="reference")
    measured([0.04, 0.03, 0.02, 0.25])  # below each of the reference's losses from the first epoch on
    result = run_trial(trial, runtime_config(data, tmp_path), lambda *_: None)
    assert result is not None
    assert (result["epochs"], result["ending"]) == (3, "schedule")


def test_the_averaged_weights_are_kept_tested_and_committed(data: Path, tmp_path: Path) -> None:
    base = trial_of("VGG with batch norm")
    recipe = dataclasses.replace(base.cell.recipe, ema=0.9, optimiser="adam", lr=1e-3, dampening=0.0)
    trial = dataclasses.replace(base, cell=dataclasses.replace(base.cell, recipe=recipe))
    ledger = Ledger(str(tmp_path))
    last = {}

    def keep(epoch: int, _: object) -> None:
        saved, _damaged = checkpoint.load(ledger, trial.key)
        assert saved is not None
        last.update(saved.tensors)

    assert run_trial(trial, runtime_config(data, tmp_path, checkpoint_minutes=0.0), keep) is not None
    content = ledger.read(f"trials/{trial.key}/weights.safetensors")
    assert content is not None
    weights = safetensors.torch.load(content)
    averaged = {name[9:]: value for name, value in last.items() if name.startswith("averaged/")}
    assert len(averaged) > 10
    for name, value in weights.items():
        assert torch.equal(value, averaged.get(name, last[f"model/{name}"])), name
    assert not torch.equal(weights["conv3.weight"], last["model/conv3.weight"])


def test_the_averaged_weights_of_the_best_epoch_are_tested(data: Path, tmp_path: Path, measured: Choose) -> None:
    cell = trial_of(FAMILY).cell
    trial = Trial(dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, ema=0.9)), "fold", 3, folds=5)
    ledger = Ledger(str(tmp_path))
    averaged: dict[int, dict[str, Tensor]] = {}

    def keep(epoch: int, _: object) -> None:
        saved, _damaged = checkpoint.load(ledger, trial.key)
        assert saved is not None
        averaged[epoch] = {name[9:]: value for name, value in saved.tensors.items() if name.startswith("averaged/")}

    measured([50.0, 10.0, 30.0])
    run_trial(trial, runtime_config(data, tmp_path, checkpoint_minutes=0.0), keep)
    weights = safetensors.torch.load(ledger.read(f"trials/{trial.key}/weights.safetensors") or b"")
    assert weights.keys() == averaged[2].keys()
    assert all(torch.equal(value, averaged[2][name]) for name, value in weights.items())


def test_an_evaluation_does_not_wait_for_each_of_its_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of(FAMILY, "holdout")
    config = runtime_config(data, tmp_path)
    for module in (trainer, views):
        monkeypatch.setattr(module, "BATCH", 4)
    splits = open_splits(trial, config)
    training = trainer.Trainer(trial, config, Ledger(str(tmp_path)), splits, lambda: False, PackContext(), ALONE)
    counts = []
    for batches in (1, 2, 5):
        with Waits() as waits:
            drain(training.measure(HELD_OUT, splits.train_indices[: 4 * batches]))
        training.context.stream.close()
        counts.append(waits.count)
    assert counts[0] == counts[1] == counts[2] > 0
