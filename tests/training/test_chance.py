"""A net at chance: what guessing comes to, when it counts as dead, and that healthy trainings never do."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from crelu_data.write import prepare
from crelu_models.spec import Conv, Net, Pool
from sweeps.experiment.metrics import flags_of
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Json, Ledger
from sweeps.training import trainer
from sweeps.training.evaluate import Errors, beats, chance, wrong_guesses
from sweeps.training.loop import DeadError
from sweeps.training.run_trial import run_trial
from sweeps.training.trainer import Evaluation, Trainer, TrainingState, at_chance
from tests.support.trials import SMALL, runtime_config

TWO = "synthetic:size=32,classes=2,train=40,test=20"
SHALLOW = Net("shallow", (
    Conv("conv1", 16, 5, 2, 2, bn=True), Pool("pool1", "max", 2, 2), Conv("conv2", 32, 3, 1, 1, bn=True),
    Conv("conv3", None, 1, 1, act="none"), Pool("pool2", "avg", 0),
), 32)  # fmt: skip
RECIPE = dataclasses.replace(
    ALLCONV, batch=16, epochs=20, schedule_epochs=20, stages=ALLCONV.stages[:1], lr=0.05, weight_decay=0.0,
    precision="fp32",
)  # fmt: skip
STILL = 1e-9  # a learning rate by which no weight moves


def trial_with(phase: str = "ablation", dataset: str = SMALL, seed: int = 3, **changes: object) -> Trial:
    recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
    return Trial(Cell("shallow", SHALLOW, dataset, recipe), phase, seed)


def trained(trial: Trial, data: Path, folder: Path) -> Json:
    result = run_trial(trial, runtime_config(data, folder), lambda *_: None)
    assert result is not None
    return result


def test_guessing_on_unequal_classes_is_right_on_the_largest() -> None:
    assert chance((7, 7, 7, 7)) == pytest.approx(Errors(math.log(4), 75.0, 0.0))
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert chance((2, 0, 8)) == pytest.approx(Errors(entropy, 20.0, 0.0))
    assert chance((1,) * 20) == pytest.approx(Errors(math.log(20), 95.0, 75.0))


@pytest.mark.parametrize(
    ("learned", "tested", "wrong"),
    [
        ((90, 10), (50, 50), (50.0, 0.0)),
        ((10, 90), (80, 20), (80.0, 0.0)),
        ((5, 5, 1), (1, 3, 6), (90.0, 0.0)),  # of equal classes it answers the first
        ((1, 7, 7, 7, 7, 7), (5, 1, 1, 1, 1, 1), (90.0, 50.0)),
    ],
)
def test_a_guess_by_the_classes_of_training_is_counted_on_the_tested_ones(
    learned: tuple[int, ...], tested: tuple[int, ...], wrong: tuple[float, float]
) -> None:
    assert wrong_guesses(learned, tested) == pytest.approx(wrong)


def test_a_guess_on_equal_shares_errs_as_in_training() -> None:
    learned = (30, 7, 0, 7, 1, 2, 3, 50)
    assert wrong_guesses(learned, [3 * number for number in learned]) == chance(learned)[1:]


def test_an_error_beats_guessing_by_three_standard_errors() -> None:
    ten = chance((1,) * 10)
    assert not beats(81.5, 100, ten)  # of 100 pictures the standard error is 3 points
    assert beats(80.5, 100, ten)
    assert beats(89.5, 100_000, ten)


TEN = chance((1,) * 10)
GUESS = TEN.loss


@pytest.mark.parametrize(
    ("loss", "error", "held_out", "expected"),
    [
        (GUESS, 90.0, 90.0, True),
        (GUESS + 0.01, 90.3, 90.0, True),  # biases that follow the last batch's labels
        (5.0, 89.9, 90.0, True),  # worse than guessing
        (GUESS - 0.01, 90.0, 90.0, True),
        (GUESS - 0.05, 90.0, 90.0, False),
        (GUESS + 0.05, 85.0, 90.0, False),  # large dropout, or a few sure mistakes
        (GUESS + 0.05, 90.0, 80.0, False),  # larger dropout
        (GUESS - 0.5, 70.0, 90.0, False),  # batch norm whose running means lag behind
    ],
)
def test_an_epoch_at_chance_has_learned_nothing(loss: float, error: float, held_out: float, expected: bool) -> None:
    evaluation = Evaluation(Errors(2.3, held_out, 50.0), 400, False, False)
    assert at_chance(Errors(loss, error, 50.0), 4000, [evaluation], TEN) is expected


def test_one_class_of_unequal_ones_is_not_dead_while_its_loss_falls() -> None:
    rare = chance((95, 5))
    all_of_one_class = Evaluation(Errors(rare.loss, 5.0, 0.0), 400, False, True)
    assert at_chance(Errors(rare.loss, 5.0, 0.0), 4000, [all_of_one_class], rare)
    assert not at_chance(Errors(rare.loss - 0.01, 5.0, 0.0), 4000, [all_of_one_class], rare)


def test_pictures_of_one_class_alone_are_never_at_chance() -> None:
    certain = Evaluation(Errors(0.0, 0.0, 0.0), 10, False, True)
    assert not at_chance(Errors(0.0, 0.0, 0.0), 40, [certain], chance((50,)))


@pytest.mark.parametrize("phase", ["ablation", "holdout"])
def test_a_training_that_ends_at_chance_is_dead(phase: str, data: Path, tmp_path: Path) -> None:
    result = trained(trial_with(phase, lr=STILL, restarts=1), data, tmp_path)
    assert (result["ending"], result["status"], result["restarts"]) == ("dead", "diverged", 1)
    assert [event for event in result["events"] if "at chance after epoch 20" in event] == result["events"]
    assert len(result["events"]) == 2
    assert flags_of(result) == ["dead", "restarted:1"]
    error = "final/test_top1_err" if phase == "ablation" else "best/val_top1_err"
    assert result["metrics"][error] == 75.0
    assert "tables/scores.parquet" not in result["files"]


def test_a_few_steps_say_nothing(data: Path, tmp_path: Path) -> None:
    result = trained(trial_with(lr=STILL, epochs=19), data, tmp_path)  # five steps each: 95 in all
    assert (result["ending"], result["restarts"]) == ("schedule", 0)


def test_a_pruned_search_trial_is_pruned_and_not_dead(data: Path, tmp_path: Path) -> None:
    trial = dataclasses.replace(trial_with("holdout", lr=STILL), pruning_thresholds=(1000.0,) * 19 + (-1.0,))
    result = trained(trial, data, tmp_path)
    assert (result["ending"], result["restarts"], result["epochs"]) == ("pruned", 0, 20)


def test_epochs_at_chance_are_counted_until_they_are_no_slow_start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SLOW_START", 25)
    result = trained(trial_with(lr=STILL, restarts=1), data, tmp_path)
    assert result["ending"] == "dead"
    assert all("at chance after epoch 5:" in event for event in result["events"])


@pytest.mark.parametrize(
    ("losses", "dead_after"),
    [([GUESS] * 2, 2), ([GUESS, 2.0, GUESS], 0), ([2.0, GUESS, GUESS], 3), ([2.0] * 4, 0)],
)
def test_only_epochs_at_chance_in_a_row_are_counted(losses: list[float], dead_after: int) -> None:
    epochs = SimpleNamespace(
        state=TrainingState(), learner=SimpleNamespace(epoch=0), splits=SimpleNamespace(train_indices=range(4000)),
        chance=TEN, trial=trial_with(epochs=100), views=SimpleNamespace(steps=trainer.SLOW_START // 2),
    )  # fmt: skip
    evaluation = Evaluation(Errors(GUESS, 90.0, 50.0), 400, False, True)
    for epochs.learner.epoch, loss in enumerate(losses, 1):
        if epochs.learner.epoch == dead_after:
            with pytest.raises(DeadError, match="at chance after epoch"):
                Trainer._check_alive(epochs, Errors(loss, 90.0, 50.0), [evaluation])  # type: ignore[arg-type]
        else:
            Trainer._check_alive(epochs, Errors(loss, 90.0, 50.0), [evaluation])  # type: ignore[arg-type]


def test_the_count_of_epochs_at_chance_survives_a_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SLOW_START", 25)
    trial = trial_with(lr=STILL, restarts=0)
    config = runtime_config(data, tmp_path, checkpoint_minutes=0.0)
    steps = iter([False] * 17 + [True])
    assert run_trial(trial, config, lambda *_: None, lambda: next(steps)) is None
    result = run_trial(trial, config, lambda *_: None)
    assert result is not None
    assert (result["ending"], result["epochs"]) == ("dead", 5)


def test_a_net_that_dies_after_it_has_learned_begins_anew(data: Path, tmp_path: Path) -> None:
    """The rate of the second half sends every score to one class; the first half had learned."""
    stages = (*RECIPE.stages, RECIPE.stages[0]._replace(first_epoch=15, lr_factor=1e12))
    result = trained(trial_with(stages=stages, restarts=1), data, tmp_path)
    assert result["status"] == "diverged"
    assert result["restarts"] == 1


@pytest.mark.parametrize("dataset", [TWO, SMALL])
@pytest.mark.parametrize("seed", range(2))
def test_small_healthy_trainings_are_not_dead(dataset: str, seed: int, data: Path, tmp_path: Path) -> None:
    if dataset == TWO:
        prepare(TWO, data)
    trial = trial_with(dataset=dataset, seed=seed, batch=8, epochs=30 if dataset == TWO else 15)
    result = trained(trial, data, tmp_path)
    assert (result["ending"], result["restarts"]) == ("schedule", 0)
    history = json.loads(Ledger(str(tmp_path)).read(f"trials/{trial.key}/history.json") or b"")
    assert history[-1]["train/loss"] < history[0]["train/loss"]
