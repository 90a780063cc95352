"""A trial that was killed anywhere ends bit for bit as if it had not been: weights, curves, scores."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from crelu_models import activations
from crelu_models.tables import S2
from sweeps.experiment.metrics import flags_of
from sweeps.experiment.trial import Trial
from sweeps.store import checkpoint
from sweeps.store.checkpoint import Cadence
from sweeps.store.ledger import Ledger
from sweeps.training.loop import DivergedError, Learner
from sweeps.training.run_trial import reset_process, run_trial, trial_steps
from sweeps.training.runtime import Kernels, RuntimeConfig, device_in_words, hardware
from sweeps.training.shared_batches import PackContext, drain
from tests.support.trials import (
    FAMILIES,
    Hashes,
    Killed,
    StepClock,
    artifact_hashes,
    modern_trial,
    runtime_config,
    trial_of,
)


def killed_at(steps: list[int], trial: Trial, here: RuntimeConfig) -> list[int]:
    """Perform `trial`, killing it at each of `steps` of an attempt; return the epochs that were reported."""
    reported: list[int] = []
    for step in [*steps, 10**9]:
        seen = 0

        def kill(limit: int = step) -> bool:
            nonlocal seen
            seen += 1
            if seen == limit:
                raise Killed
            return False

        try:
            run_trial(trial, here, lambda epoch, _: reported.append(epoch), kill)
        except Killed:
            continue
    return reported


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_trial_ends_as_the_uninterrupted_one(
    family: str, workers: int, data: Path, tmp_path: Path, uninterrupted: Hashes
) -> None:
    trial = trial_of(family)
    expected = uninterrupted(trial)
    steps = random.Random(f"{family} {workers}").choices(range(2, 14), k=5)
    # Checkpoints as often as every step, so that kills inside an epoch resume inside it.
    reported = killed_at(
        steps, trial, runtime_config(data, tmp_path / "killed", workers=workers, checkpoint_minutes=0.0)
    )
    assert artifact_hashes(tmp_path / "killed", trial) == expected
    assert reported == [1, 2, 3]


def test_killed_trial_of_a_modern_recipe_ends_as_the_uninterrupted_one(
    data: Path, tmp_path: Path, uninterrupted: Hashes
) -> None:
    killed_at([4, 9, 3], modern_trial(), runtime_config(data, tmp_path / "killed", checkpoint_minutes=0.0))
    assert artifact_hashes(tmp_path / "killed", modern_trial()) == uninterrupted(modern_trial())


def test_kill_between_checkpoints_repeats_the_epoch_exactly(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    trial = trial_of("allconv with dropout")
    killed_at([3, 8, 5], trial, runtime_config(data, tmp_path / "killed"))
    assert artifact_hashes(tmp_path / "killed", trial) == uninterrupted(trial)


def test_stopped_trial_saves_where_it_is_and_goes_on_there(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    trial = trial_of("All-CNN-B")
    here = runtime_config(data, tmp_path / "stopped")
    assert run_trial(trial, here, lambda *_: None, lambda: True) is None
    names = Ledger(here.ledger).names(f"checkpoints/{trial.key}")
    assert names == ["00000-00000001.safetensors"]
    assert run_trial(trial, here, lambda *_: None) is not None
    assert artifact_hashes(tmp_path / "stopped", trial) == uninterrupted(trial)


def test_training_begun_by_other_code_is_begun_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Hashes
) -> None:
    trial = trial_of("allconv with dropout")
    here = runtime_config(data, tmp_path / "changed")
    with monkeypatch.context() as older:
        older.setattr("sweeps.training.trainer.code_fingerprint", lambda net: "older")
        assert run_trial(trial, here, lambda *_: None, iter([False] * 9 + [True]).__next__) is None
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    assert any("the code has changed since epoch 1" in event for event in result["events"])
    assert artifact_hashes(tmp_path / "changed", trial) == uninterrupted(trial)


def stopped_in(precision: str, trial: Trial, here: RuntimeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train to the middle of the second epoch on a device of this precision."""
    with monkeypatch.context() as device:
        device.setattr("sweeps.training.trainer.precision_of", lambda *_: precision)
        assert run_trial(trial, here, lambda *_: None, iter([False] * 9 + [True]).__next__) is None


@pytest.mark.parametrize(
    ("first", "second", "recorded"),
    [("bf16", "fp32", "bf16, fp32"), ("fp32", "bf16", "fp32"), ("bf16", "bf16", "bf16")],
)
def test_a_resumed_training_keeps_its_precision_or_says_that_it_cannot(
    first: str, second: str, recorded: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    step = Learner.step

    def noted(learner: Learner, images: Tensor, labels: Tensor) -> None:
        computed.append(learner.precision)
        step(learner, images, labels)

    trial = trial_of("allconv with dropout")
    here = runtime_config(data, tmp_path)
    stopped_in(first, trial, here, monkeypatch)
    monkeypatch.setattr("sweeps.training.trainer.precision_of", lambda *_: second)
    monkeypatch.setattr(Learner, "step", noted)
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    assert set(computed) == {recorded.rpartition(", ")[2]}
    assert result["precision"] == recorded
    said = [event for event in result["events"] if "goes on in fp32, since" in event]
    assert flags_of(result) == (["resume=approximate"] if said else [])
    assert len(said) == (recorded == "bf16, fp32")
    assert all("after epoch 1 " in event for event in said)


def test_a_training_that_begins_anew_is_of_one_precision(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> None:
        raise DivergedError("the training loss is not a number in epoch 2")

    base = trial_of("allconv with dropout")
    recipe = dataclasses.replace(base.recipe, restarts=1)
    trial = dataclasses.replace(base, cell=dataclasses.replace(base.cell, recipe=recipe))
    here = runtime_config(data, tmp_path)
    stopped_in("bf16", trial, dataclasses.replace(here, ranks=2), monkeypatch)
    monkeypatch.setattr("sweeps.training.trainer.precision_of", lambda *_: "fp32")
    monkeypatch.setattr(Learner, "step", diverge)
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    assert (result["restarts"], result["precision"]) == (1, "fp32")
    assert "before" not in result["hardware"]


def test_a_checkpoint_without_a_precision_goes_on_in_that_of_the_device(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of("allconv with dropout")
    here = runtime_config(data, tmp_path)
    ledger = Ledger(here.ledger)
    stopped_in("bf16", trial, dataclasses.replace(here, ranks=2), monkeypatch)
    saved, _ = checkpoint.load(ledger, trial.key)
    assert saved is not None
    for name in ("precisions", "devices", "decoders"):
        del saved.state[name]
    checkpoint.save(ledger, trial.key, saved.state["epoch"], saved.state["step"], saved)
    monkeypatch.setattr("sweeps.training.trainer.precision_of", lambda *_: "fp32")
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    assert (result["precision"], result["events"]) == ("fp32", [])


def test_a_training_that_goes_on_with_other_ranks_says_so(data: Path, tmp_path: Path) -> None:
    trial = trial_of("allconv with dropout")
    here = runtime_config(data, tmp_path)
    shared = dataclasses.replace(here, ranks=2)
    assert run_trial(trial, shared, lambda *_: None, iter([False] * 9 + [True]).__next__) is None
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    said = "resume=approximate: after epoch 1 the training goes on with a CPU, and no longer with a CPU (2 ranks)"
    assert result["events"] == [said]
    assert (result["hardware"]["before"], flags_of(result)) == ("a CPU (2 ranks)", ["resume=approximate"])


@pytest.mark.parametrize(("family", "recorded"), [("All-CNN-B by Adam", "ffcv, threads"), ("allconv with dropout", "")])
def test_a_training_whose_jpeg_comes_from_another_decoder_says_so(
    family: str, recorded: str, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ffcv")
    trial = trial_of(family)
    here = runtime_config(data, tmp_path)
    by_ffcv = dataclasses.replace(here, reader="ffcv")
    assert run_trial(trial, by_ffcv, lambda *_: None, iter([False] * 5 + [True]).__next__) is None
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    said = "resume=approximate: after epoch 1 the training goes on with JPEG decoded by threads, and no longer by ffcv"
    assert result["events"] == ([said] if recorded else [])
    assert flags_of(result) == (["resume=approximate"] if recorded else [])
    assert result["hardware"].get("decoder", "") == recorded


def test_a_gpu_is_named_by_its_model_and_kernels_and_all_cpus_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    fastest = RuntimeConfig("", "", kernels="fastest")
    assert device_in_words(gpu, RuntimeConfig("", "")) == "NVIDIA L4"
    assert device_in_words(gpu, dataclasses.replace(fastest, ranks=2)) == "NVIDIA L4 (2 ranks, fastest kernels)"
    assert device_in_words(gpu, RuntimeConfig("", "", gpus=2)) == "NVIDIA L4 (2 GPUs)"
    assert device_in_words(cpu, fastest) == device_in_words(cpu, RuntimeConfig("", "", threads=4)) == "a CPU"


def test_devices_of_before_are_named_once_each() -> None:
    before = ("NVIDIA L4", "NVIDIA A10G", "NVIDIA L4")
    assert hardware(torch.device("cpu"), RuntimeConfig("", ""), before=before)["before"] == "NVIDIA L4; NVIDIA A10G"


def test_numbers_of_ranks_and_gpus_are_recorded_where_there_are_several() -> None:
    alone = hardware(torch.device("cpu"), RuntimeConfig("", ""))
    several = hardware(torch.device("cpu"), RuntimeConfig("", "", ranks=2, gpus=3))
    assert several == alone | {"ranks": "2", "gpus": "3"}


def test_readers_of_raw_pictures_train_the_same_net(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    pytest.importorskip("ffcv")
    trial = trial_of("allconv with dropout")
    run_trial(trial, runtime_config(data, tmp_path, reader="ffcv"), lambda *_: None)
    assert artifact_hashes(tmp_path, trial) == uninterrupted(trial)


def test_finished_trial_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    trial = trial_of("allconv with dropout")
    epochs = []
    here = runtime_config(data, tmp_path)
    first = run_trial(trial, here, lambda epoch, _: epochs.append(epoch))
    again = run_trial(trial, here, lambda epoch, _: epochs.append(epoch))
    assert again == first
    assert epochs == [1, 2, 3]


def test_damaged_checkpoint_is_passed_over_and_told(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    trial = trial_of("allconv with dropout")
    here = runtime_config(data, tmp_path / "killed", checkpoint_minutes=0.0)
    killed = iter(range(1, 100))

    def kill() -> bool:
        if next(killed) == 9:
            raise Killed
        return False

    with pytest.raises(Killed):
        run_trial(trial, here, lambda *_: None, kill)
    newest = Path(
        Ledger(here.ledger).path(f"checkpoints/{trial.key}"), Ledger(here.ledger).names(f"checkpoints/{trial.key}")[-1]
    )
    newest.write_bytes(newest.read_bytes()[:-7])
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    assert any("damaged" in event for event in result["events"])
    assert artifact_hashes(tmp_path / "killed", trial) == uninterrupted(trial)


def test_data_of_another_fingerprint_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    trial = trial_of("allconv with dropout")
    with pytest.raises(ValueError, match="not those the sweep was planned with"):
        run_trial(trial, runtime_config(data, tmp_path, fingerprint="other"), lambda *_: None)


@pytest.mark.parametrize(("lr", "word"), [(1e6, "not a number"), (0.05, "dead")])
def test_training_that_fails_starts_anew_three_times_and_is_marked(
    lr: float, word: str, data: Path, tmp_path: Path
) -> None:
    base = trial_of("allconv with dropout")
    recipe = dataclasses.replace(base.cell.recipe, lr=lr, init="torch" if word == "dead" else "he_fan_in")
    net = S2.width(0.125).final_activation("relu") if word == "dead" else base.cell.net
    if word == "dead":
        recipe = dataclasses.replace(recipe, init="normal_0.01", lr=50.0, clip_norm=1e-9)
    trial = Trial(dataclasses.replace(base.cell, net=net, recipe=recipe))
    result = run_trial(trial, runtime_config(data, tmp_path), lambda *_: None)
    assert result is not None
    assert result["restarts"] == 3
    assert result["status"] == "diverged"
    assert any(word in event for event in result["events"])
    assert result["metrics"]["final/test_top1_err"] == 75.0


def test_seconds_count_all_work_that_was_saved_or_tried(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StepClock(monkeypatch)

    def seconds(trial: Trial, here: RuntimeConfig, stop: Callable[[], bool] = lambda: False) -> float | None:
        """Train by a clock that counts steps, to the seconds of the result, if there is one."""
        result = drain(trial_steps(trial, here, lambda *_: None, stop, PackContext(clock=clock)))
        return None if result is None else float(result["seconds"])

    def kill() -> bool:
        if clock.taken % 2 == 0:
            raise Killed
        return False

    base = trial_of("allconv with dropout")
    trial, lost = (
        dataclasses.replace(base, cell=dataclasses.replace(base.cell, recipe=recipe))
        for recipe in (dataclasses.replace(base.recipe, epochs=1), dataclasses.replace(base.recipe, lr=1e6, restarts=1))
    )
    steps = trial.recipe.steps(80)  # the rest is held out
    assert seconds(trial, runtime_config(data, tmp_path / "undisturbed")) == clock.taken == steps
    here = runtime_config(data, tmp_path / "left")
    while (left := seconds(trial, here, lambda: clock.taken % 2 == 0)) is None:
        pass
    assert (left, clock.taken) == (steps, 2 * steps)
    here = runtime_config(data, tmp_path / "killed", checkpoint_minutes=0.0)
    for _ in range(2):  # the step before a kill is taken again
        with pytest.raises(Killed):
            seconds(trial, here, kill)
    assert seconds(trial, here) == steps
    assert clock.taken == 3 * steps + 2
    assert seconds(lost, runtime_config(data, tmp_path / "lost")) == 2 * steps


def test_search_trial_that_diverges_has_the_error_of_chance(data: Path, tmp_path: Path) -> None:
    base = trial_of("allconv with dropout", "holdout")
    recipe = dataclasses.replace(base.cell.recipe, lr=1e6)
    trial = dataclasses.replace(base, cell=dataclasses.replace(base.cell, recipe=recipe))
    result = run_trial(trial, runtime_config(data, tmp_path), lambda *_: None)
    assert result is not None
    assert (result["status"], result["epochs"]) == ("diverged", 0)
    assert result["metrics"]["best/val_top1_err"] == 75.0
    assert not any("test" in name for name in result["metrics"])


def test_search_trial_never_opens_the_test_set(data: Path, tmp_path: Path) -> None:
    alone = tmp_path / "data"
    alone.mkdir()
    for path in data.glob("synthetic-*-train.*"):
        (alone / path.name).symlink_to(path)
    for path in data.glob("synthetic-*-test.json"):
        (alone / path.name).symlink_to(path)
    trial = trial_of("allconv with dropout", "holdout")
    result = run_trial(trial, runtime_config(alone, tmp_path / "ledger"), lambda *_: None)
    assert result is not None
    assert not any("test" in name for name in result["metrics"])
    assert len(result["curve"]) == 3


def test_second_phase_stops_at_the_training_loss_of_the_first(data: Path, tmp_path: Path) -> None:
    first = trial_of("VGG with batch norm", "holdout")
    here = runtime_config(data, tmp_path)
    reference = run_trial(first, here, lambda *_: None)
    assert reference is not None
    second = Trial(first.cell, "match", seed=1003, match="train_loss", reference=first.key)
    matched = run_trial(second, here, lambda *_: None)
    assert matched is not None
    history = json.loads(Path(Ledger(here.ledger).path(f"trials/{second.key}/history.json")).read_text())
    below = [row["probe/loss"] <= reference["metrics"]["best/probe_loss"] for row in history]
    assert not any(below[:-1])
    assert matched["ending"] == ("matched" if below[-1] else "schedule")
    assert "final/train_top1_err" in matched["metrics"]


def test_pruned_trial_ends_where_it_is_above_the_bar(data: Path, tmp_path: Path) -> None:
    trial = dataclasses.replace(trial_of("allconv with dropout", "holdout"), pruning_thresholds=(1000.0, -1.0, 1000.0))
    result = run_trial(trial, runtime_config(data, tmp_path), lambda *_: None)
    assert result is not None
    assert (result["status"], result["epochs"]) == ("pruned", 2)


@pytest.mark.parametrize(("sparing", "saved"), [(0.0, [1, 2, 3]), (1e9, [1, 3])])
def test_epochs_that_are_short_beside_a_checkpoint_share_one_and_all_are_reported(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparing: float, saved: list[int]
) -> None:
    saved_epochs: list[int] = []
    told: list[tuple[int, int]] = []  # epochs as reported, with how many checkpoints there were by then
    save = checkpoint.save

    def keep(ledger: Ledger, key: str, epoch: int, *rest: Any) -> None:
        save(ledger, key, epoch, *rest)
        saved_epochs.append(epoch)

    monkeypatch.setattr(checkpoint, "SAVING_INTERVAL", sparing)
    monkeypatch.setattr(checkpoint, "save", keep)
    trial = trial_of("allconv with dropout")
    run_trial(trial, runtime_config(data, tmp_path), lambda epoch, row: told.append((epoch, saved_epochs[-1])))
    assert saved_epochs == saved
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert all(epoch <= last for epoch, last in told)


def test_kernels_are_deterministic_unless_the_fastest_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "takes_kernels", True)
    seen = []
    for kernels in get_args(Kernels):
        reset_process(RuntimeConfig("", "", kernels=kernels))
        cudnn = torch.backends.cudnn
        seen.append((kernels, cudnn.deterministic, cudnn.benchmark, activations.takes_kernels))
    expected = [("torch", True, False, False), ("fastest", False, True, True), ("exact", True, False, True)]
    assert sorted(seen) == sorted(expected)
    assert RuntimeConfig("", "").kernels == "exact"


def test_a_trial_that_pauses_at_each_rung_ends_as_the_uninterrupted_one(
    data: Path, tmp_path: Path, uninterrupted: Hashes
) -> None:
    trial = trial_of("allconv with dropout", "holdout")
    ledger = Ledger(str(tmp_path / "paused"))
    for epoch in (1, 2):
        here = runtime_config(data, tmp_path / "paused", pause_at=epoch)
        assert killed_at([2], trial, here) == [epoch]  # killed once on the way
        record = ledger.paused_at(trial.key)
        assert record is not None
        assert (record["epoch"], len(record["curve"])) == (epoch, epoch)
        # A second worker that is sent to the same rung, or an earlier one, trains nothing.
        assert run_trial(trial, here, lambda *_: pytest.fail("an epoch is trained again")) is None
        assert ledger.result(trial.key) is None
    assert killed_at([], trial, runtime_config(data, tmp_path / "paused")) == [3]
    assert artifact_hashes(tmp_path / "paused", trial) == uninterrupted(trial)
    assert ledger.paused() == {}


def test_a_pause_is_saved_also_where_saving_takes_long(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cadence, "epoch_is_due", lambda _: False)
    trial = trial_of("allconv with dropout", "holdout")
    assert killed_at([], trial, runtime_config(data, tmp_path, pause_at=1)) == [1]
    assert Ledger(str(tmp_path)).paused()[trial.key]["epoch"] == 1
    assert killed_at([], trial, runtime_config(data, tmp_path)) == [2, 3]
