"""A pack changes nothing but the cost: each member ends bit for bit as alone, whatever becomes of it or the others."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from crelu_data.datasets import Ints, dataset
from crelu_data.decoders.threads import ThreadReader
from crelu_models import activations
from sweeps.execution.pack import perform_pack
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger
from sweeps.training import trainer
from sweeps.training.gpu.graphs import Graphs
from sweeps.training.loop import Learner
from sweeps.training.run_trial import run_trial
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.splits import _cached
from tests.support.op_recorder import OpRecorder
from tests.support.trials import (
    FAMILIES,
    SMALL,
    Hashes,
    Killed,
    artifact_hashes,
    members,
    modern_trial,
    runtime_config,
    scaled_lr,
    trial_of,
)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the pictures that are read, by file; none is kept."""
    reads: Counter[str] = Counter()
    begin = ThreadReader._begin

    def counted(self: ThreadReader, ids: Ints) -> Any:
        reads[self._index.path.stem.rpartition("-")[2]] += len(ids)
        return begin(self, ids)

    monkeypatch.setattr(ThreadReader, "_begin", counted)
    return reads


def streaming(data: Path, ledger: Path, **changes: Any) -> RuntimeConfig:
    """Return a place where every picture is read from its file each time it is asked for."""
    return runtime_config(data, ledger, resident_bytes=0, **changes)


def trained_alone(trials: Sequence[Trial], here: RuntimeConfig) -> list[dict[str, str]]:
    """Return what trials leave that train one after another on a ledger that a test has prepared."""
    for trial in trials:
        run_trial(trial, here, lambda *_: None)
    return outcomes(trials, here)


def outcomes(trials: Sequence[Trial], here: RuntimeConfig) -> list[dict[str, str]]:
    return [artifact_hashes(Path(here.ledger), trial) for trial in trials]


def quiet(news: dict[str, Any]) -> None:
    """Hear nothing."""


@pytest.mark.parametrize(
    ("family", "phase"), [*((family, "ablation") for family in FAMILIES), ("allconv with dropout", "holdout")]
)
def test_member_ends_as_alone_and_pictures_are_read_once_for_all(
    family: str, phase: str, data: Path, tmp_path: Path, decoded: Counter[str], uninterrupted: Hashes
) -> None:
    trials = members(family, phase)
    expected = [uninterrupted(trial) for trial in trials]
    decoded.clear()
    run_trial(trials[0], streaming(data, tmp_path / "alone"), lambda *_: None)
    assert artifact_hashes(tmp_path / "alone", trials[0]) == expected[0]
    by_one = decoded.copy()
    reports = []
    decoded.clear()
    perform_pack(trials, streaming(data, tmp_path / "pack"), reports.append)
    assert outcomes(trials, streaming(data, tmp_path / "pack")) == expected
    assert len({hashes["history"] for hashes in expected}) == len(trials)
    assert decoded == by_one
    assert set(decoded) == ({"train", "test"} if phase == "ablation" else {"train"})
    rows = [(news["key"], news["epoch"]) for news in reports if "row" in news]
    assert sorted(rows) == sorted((trial.key, epoch) for trial in trials for epoch in (1, 2, 3))
    assert sorted(news["key"] for news in reports if "over" in news) == sorted(trial.key for trial in trials)


def test_members_of_a_modern_recipe_end_as_alone(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    trials = [scaled_lr(modern_trial(), factor) for factor in (1.0, 0.5)]
    perform_pack(trials, streaming(data, tmp_path), quiet)
    assert outcomes(trials, streaming(data, tmp_path)) == [uninterrupted(trial) for trial in trials]


def killed(trials: Sequence[Trial], here: RuntimeConfig, turns: int) -> bool:
    """Train the pack up to so many turns and return whether it was killed there."""
    count = iter(range(turns))

    def kill(key: str) -> None:
        if next(count, None) is None:
            raise Killed

    try:
        perform_pack(trials, here, quiet, alive=kill)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("family", ["VGG with batch norm", "All-CNN-B"])
def test_killed_pack_goes_on_alone_or_in_another_pack(
    family: str, data: Path, tmp_path: Path, uninterrupted: Hashes
) -> None:
    trials = members(family)
    draw = random.Random(family)
    expected = [uninterrupted(trial) for trial in trials]
    # Checkpoints at every step; killed between members, so that they stand at different steps.
    here = streaming(data, tmp_path / "killed", checkpoint_minutes=0.0)
    assert killed(trials, here, draw.randrange(4, 10))
    assert killed(trials, here, draw.randrange(4, 10))
    run_trial(trials[0], here, lambda *_: None)
    killed(trials[:0:-1], here, draw.randrange(2, 6))
    perform_pack(trials[:0:-1], here, quiet)
    assert outcomes(trials, here) == expected


def test_member_behind_catches_up_and_then_shares(
    data: Path, tmp_path: Path, decoded: Counter[str], uninterrupted: Hashes
) -> None:
    trials = members("allconv with dropout")
    expected = [uninterrupted(trial) for trial in trials]
    decoded.clear()
    run_trial(trials[0], streaming(data, tmp_path / "alone"), lambda *_: None)
    by_one = decoded["train"]
    here = streaming(data, tmp_path / "pack", checkpoint_minutes=0.0)
    assert killed(trials[:1], here, 9)
    decoded.clear()
    perform_pack(trials, here, quiet)
    assert outcomes(trials, here) == expected
    # The laggards' way is the whole way: what the first had behind it is read for them alone, and nothing twice.
    assert decoded["train"] == by_one


def test_stopped_pack_saves_every_member(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    trials = members("All-CNN-B")
    expected = [uninterrupted(trial) for trial in trials]
    here = streaming(data, tmp_path / "stopped")
    count = iter(range(10))
    perform_pack(trials, here, quiet, lambda: next(count, None) is None)
    ledger = Ledger(here.ledger)
    assert not ledger.results()
    saved = [ledger.names(f"checkpoints/{trial.key}") for trial in trials]
    assert all(names and names[-1] >= "00000-00000003" for names in saved)
    perform_pack(trials, here, quiet)
    assert outcomes(trials, here) == expected


def over(reports: list[dict[str, Any]]) -> list[str]:
    """Return the keys of the members that have gone, in order."""
    return [news["key"] for news in reports if "over" in news]


def test_diverging_member_leaves_and_ends_as_alone(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    good = members("allconv with dropout")
    wild = scaled_lr(good[0], 1e8)
    trials = [good[0], wild, good[1]]
    reports = list[dict[str, Any]]()
    expected = [uninterrupted(trial) for trial in trials]
    here = streaming(data, tmp_path / "pack")
    perform_pack(trials, here, reports.append)
    ledger = Ledger(here.ledger)
    assert over(reports)[0] == wild.key
    assert set(ledger.results()) == {trial.key for trial in good[:2]}
    assert ledger.names(f"checkpoints/{wild.key}") == ["00000-00000000.safetensors"]
    assert not ledger.attempts(wild.key)
    perform_pack([wild], here, quiet)
    assert outcomes(trials, here) == expected
    result = ledger.result(wild.key)
    assert result is not None
    assert (result["status"], result["restarts"]) == ("diverged", 3)


def test_pruned_member_leaves_and_the_others_go_on(data: Path, tmp_path: Path, uninterrupted: Hashes) -> None:
    trials = members("VGG with batch norm", "holdout")
    trials[1] = dataclasses.replace(trials[1], pruning_thresholds=(1000.0, -1.0))
    expected = [uninterrupted(trial) for trial in trials]
    reports = list[dict[str, Any]]()
    perform_pack(trials, streaming(data, tmp_path / "pack"), reports.append)
    assert outcomes(trials, streaming(data, tmp_path / "pack")) == expected
    assert over(reports)[0] == trials[1].key
    result = Ledger(str(tmp_path / "pack")).result(trials[1].key)
    assert result is not None
    assert (result["status"], result["epochs"]) == ("pruned", 2)


def test_matched_member_leaves_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    first = trial_of("VGG with batch norm", "holdout")
    trials = [Trial(first.cell, "match", seed=1003, match=match, reference=first.key) for match in ("epoch", "none")]
    for name in ("alone", "pack"):
        run_trial(first, streaming(data, tmp_path / name), lambda *_: None)
        result = Ledger(str(tmp_path / name)).result(first.key)
        assert result is not None
        Ledger(str(tmp_path / name)).commit(first.key, result | {"metrics": result["metrics"] | {"best/epoch": 1.0}})
    expected = trained_alone(trials, streaming(data, tmp_path / "alone"))
    reports = list[dict[str, Any]]()
    perform_pack(trials, streaming(data, tmp_path / "pack"), reports.append)
    assert outcomes(trials, streaming(data, tmp_path / "pack")) == expected
    assert [news["key"] for news in reports if "row" in news] == [*(t.key for t in trials), *2 * [trials[1].key]]
    assert over(reports)[0] == trials[0].key


def broken(monkeypatch: pytest.MonkeyPatch, trial: Trial, error: Callable[[], Exception], step: int = 1) -> None:
    """Let one trial's learner, known by its learning rate, raise an error in the first epoch."""
    advance = Learner.step

    def fails(self: Learner, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self.recipe.lr == trial.cell.recipe.lr and (self.epoch, self.step_count) == (0, step):
            raise error()
        advance(self, images, labels)

    monkeypatch.setattr(Learner, "step", fails)


@pytest.mark.parametrize("final", [True, False])
def test_failing_member_harms_no_other(
    final: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Hashes
) -> None:
    trials = members("All-CNN-B")
    expected = [uninterrupted(trial) for trial in trials]
    broken(monkeypatch, trials[1], lambda: ValueError("never") if final else RuntimeError("this time"))
    here = streaming(data, tmp_path / "pack")
    reports = list[dict[str, Any]]()
    perform_pack(trials, here, reports.append)
    ledger = Ledger(here.ledger)
    assert over(reports)[0] == trials[1].key
    (attempt,) = ledger.attempts(trials[1].key)
    assert attempt["final"] is final
    assert "in fails" in attempt["trace"]
    monkeypatch.undo()
    run_trial(trials[1], here, lambda *_: None)
    assert outcomes(trials, here) == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    ],
)
def test_error_of_the_device_ends_the_pack_and_is_its_causes(
    error: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = members("All-CNN-B")
    broken(monkeypatch, trials[1], lambda: error)
    here = streaming(data, tmp_path / "pack")
    with pytest.raises(type(error)):
        perform_pack(trials, here, quiet)
    assert [len(Ledger(here.ledger).attempts(trial.key)) for trial in trials] == [0, 1, 0]


def test_pack_that_does_not_fit_goes_on_smaller(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Hashes
) -> None:
    trials = [scaled_lr(trial_of("allconv with dropout"), factor) for factor in (1.0, 0.5, 2.0, 0.7)]
    expected = [uninterrupted(trial) for trial in trials]
    short = lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")  # noqa: E731
    broken(monkeypatch, trials[1], short)
    here = streaming(data, tmp_path / "pack")
    reports = list[dict[str, Any]]()
    perform_pack(trials, here, reports.append)
    ledger = Ledger(here.ledger)
    assert reports[0] == {"key": trials[1].key, "epoch": 0, "over": True, "fits": 2}
    assert set(ledger.results()) == {trials[0].key, trials[2].key}
    assert not any(ledger.attempts(trial.key) for trial in trials)
    assert ledger.names(f"checkpoints/{trials[3].key}")
    monkeypatch.undo()
    perform_pack([trials[1], trials[3]], here, quiet)
    assert outcomes(trials, here) == expected


def test_folds_of_a_resident_set_gather_their_own_pictures(
    data: Path, tmp_path: Path, decoded: Counter[str], uninterrupted: Hashes
) -> None:
    cell = trial_of("VGG with batch norm").cell
    trials = [Trial(cell, "fold", 0, fold=fold, folds=3) for fold in range(3)]
    expected = [uninterrupted(trial) for trial in trials]
    _cached.cache_clear()
    decoded.clear()
    perform_pack(trials, runtime_config(data, tmp_path / "pack"), quiet)
    assert outcomes(trials, runtime_config(data, tmp_path / "pack")) == expected
    facts = dataset(SMALL)
    assert decoded == {name: facts.splits[name] for name in ("train", "test")}


class Streams:
    """Stand-in for the streams of a GPU: it notes in whose stream a batch is made and given."""

    def __init__(self) -> None:
        self.members = 0
        self.current: list[int] = []
        self.made = 0
        self.batches: Counter[int] = Counter()

    def member(self) -> Any:
        self.members += 1
        number = self.members
        streams = self

        class Entered:
            def __enter__(self) -> None:
                streams.current.append(number)

            def __exit__(self, *_: object) -> None:
                assert streams.current.pop() == number

        return Entered()

    def make(self, _source: object, batch: Callable[[], Any]) -> Any:
        self.made += 1
        return batch()

    def give(self, _source: object, batch: object) -> None:
        assert len(self.current) == 1
        self.batches[self.current[0]] += 1


def test_members_have_streams_of_their_own_and_each_batch_is_made_once_and_given_to_all(
    data: Path, tmp_path: Path, uninterrupted: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = Streams()
    monkeypatch.setattr("sweeps.execution.pack.open_streams", lambda device: streams)
    trials = members("allconv with dropout")
    here = streaming(data, tmp_path)
    perform_pack(trials, here, quiet)
    assert outcomes(trials, here) == [uninterrupted(trial) for trial in trials]
    assert streams.batches == dict.fromkeys((1, 2, 3), streams.made)


def test_members_that_replay_end_as_alone(
    data: Path, tmp_path: Path, uninterrupted: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders: list[OpRecorder] = []

    def on_cpu(device: torch.device, why_not: str) -> Graphs:
        recorders.append(OpRecorder())
        return Graphs(recorders[-1])

    monkeypatch.setattr(trainer, "open_graphs", on_cpu)
    monkeypatch.setattr(activations, "_loops", lambda: None)  # they write to addresses, which the stand-in cannot see
    trials = members("allconv with dropout")
    perform_pack(trials, streaming(data, tmp_path), quiet)
    assert outcomes(trials, streaming(data, tmp_path)) == [uninterrupted(trial) for trial in trials]
    assert all(recorder.recorded for recorder in recorders)
    assert len(recorders) == len(trials)
