"""Trials whose net is a model: exact after a kill, in a pack, in parts of a batch; marked where they cannot be."""

import copy
import dataclasses
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from crelu_data.datasets import dataset
from crelu_models.draws import APPROXIMATE
from crelu_models.from_factory import build_model
from crelu_models.model import Model
from sweeps.execution.pack import perform_pack
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.model_facts import seen_by
from sweeps.experiment.recipe import VGG
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.checkpoint import separate
from sweeps.store.ledger import Ledger
from sweeps.training.distributed import Ranks, _batch_norm_of_ranks
from sweeps.training.loop import Learner
from sweeps.training.run_trial import run_trial
from sweeps.training.shared_batches import TEST, stream_key
from sweeps.training.splits import open_splits
from sweeps.training.trainer import Trainer, new_learner
from tests.support.op_recorder import Waits
from tests.support.trials import LARGE, SMALL, Killed, artifact_hashes, runtime_config

USERS = "tests.support.user_models"
RECIPE = dataclasses.replace(VGG, name="mine", epochs=2, batch=32, lr=0.05, shift=0, drop_last=False, init="own")


def model_trial(model: Model, data: str = SMALL, **recipe: Any) -> Trial:
    return Trial(Cell("a", model, data, dataclasses.replace(RECIPE, **recipe)), seed=3)


def small(**arguments: Any) -> Model:
    return Model(f"{USERS}:small", **arguments)


def train(trial: Trial, data: Path, ledger: Path, kills: int = 0) -> dict[str, Any]:
    """Train a trial, killed after each of so many steps first, and return its result."""
    here = runtime_config(data, ledger, checkpoint_minutes=0.0)
    for step in range(1, kills + 1):
        seen = 0

        def kill(limit: int = step) -> bool:
            nonlocal seen
            seen += 1
            if seen > limit:
                raise Killed
            return False

        with pytest.raises(Killed):
            run_trial(trial, here, lambda *_: None, kill)
    result = run_trial(trial, here, lambda *_: None)
    assert result is not None
    return result


@pytest.mark.parametrize(
    "model",
    [
        small(rate=0.3, draws="torch"),
        Model(f"{USERS}:tied", rate=0.3),
        Model(f"{USERS}:plain", rate=0.3).avr("act"),
        small(freeze=True),
    ],
    ids=["dropout and draws", "tied weights", "placed", "frozen"],
)
def test_a_killed_model_ends_as_one_that_was_not(model: Model, data: Path, tmp_path: Path) -> None:
    trial = model_trial(model)
    result = train(trial, data, tmp_path / "whole")
    train(trial, data, tmp_path / "killed", kills=2)
    assert artifact_hashes(tmp_path / "killed", trial) == artifact_hashes(tmp_path / "whole", trial)
    assert "resume" not in result
    assert result["parameters"] == sum(value.numel() for value in build_model(model, 4, 0).parameters())


@pytest.mark.parametrize("draws", ["numpy", "python"])
def test_draws_that_no_key_reaches_are_marked(draws: str, data: Path, tmp_path: Path) -> None:
    result = train(model_trial(small(draws=draws), epochs=1), data, tmp_path)
    assert result["resume"] == "approximate"
    assert [event.partition(":")[0] for event in result["events"]] == [APPROXIMATE]


def test_draws_of_torch_are_marked_where_a_batch_is_shared(data: Path) -> None:
    facts = dataset(SMALL, data)
    images, labels = torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    for draws, parts, marked in (("torch", 2, True), ("torch", 1, False), ("", 2, False)):
        learner = new_learner(model_trial(small(draws=draws)), facts, 0, 3, torch.device("cpu"))
        learner.model.body[1] = nn.Identity()  # type: ignore[index] # batch norm would tie the parts
        learner.micro_batches = parts
        learner.step(images, labels)
        assert learner.unkeyed.startswith(APPROXIMATE) == marked


def test_members_of_a_pack_end_as_alone(data: Path, tmp_path: Path) -> None:
    trials = [model_trial(small(rate=0.3, draws="torch"), lr=lr) for lr in (0.05, 0.01)]
    for trial in trials:
        train(trial, data, tmp_path / "alone")
    perform_pack(trials, runtime_config(data, tmp_path / "pack"), lambda _: None)
    for trial in trials:
        assert artifact_hashes(tmp_path / "pack", trial) == artifact_hashes(tmp_path / "alone", trial)


def test_result_has_the_code_that_trained_it_and_the_next_trial_trains_that_of_now(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "nets_of_now.py"
    text = (
        "from torch import nn\nSIDE = 1\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(SIDE), nn.Flatten(), nn.Linear(3 * SIDE**2, num_classes))\n"
    )
    file.write_text(text)
    trial = model_trial(Model("nets_of_now:small"), epochs=1)
    code = code_fingerprint(trial.net)

    def edit(epoch: int, row: dict[str, float]) -> None:
        file.write_text(text.replace("SIDE = 1\n", "SIDE = 2  # more\n"))

    here = runtime_config(data, tmp_path / "out")
    first = run_trial(trial, here, edit)
    second = run_trial(dataclasses.replace(trial, seed=4), here, lambda *_: None)
    assert first is not None
    assert second is not None
    assert (first["code"], first["parameters"]) == (code, 3 * 4 + 4)
    assert second["parameters"] == 3 * 2**2 * 4 + 4
    assert second["code"] == code_fingerprint(trial.net) != code


def test_a_restart_draws_other_weights(data: Path) -> None:
    trial = model_trial(small())
    first, again, restarted = (
        new_learner(trial, dataset(SMALL, data), trial.restarted(times), 3, torch.device("cpu")).model.state_dict()
        for times in (0, 0, 1)
    )
    assert torch.equal(first["head.weight"], again["head.weight"])
    assert not torch.equal(first["head.weight"], restarted["head.weight"])


def shared_by_ranks(module: nn.Module) -> list[bool]:
    """Return of each batch norm whether its forward pass asks the other ranks."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return [getattr(norm.forward, "__func__", None) is _batch_norm_of_ranks for norm in norms]


def test_batch_norm_inside_a_model_is_shared_by_ranks() -> None:
    assert shared_by_ranks(Ranks(0, 2).convert_batchnorm(build_model(small(), 4, 0))) == [True]
    norms = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3)])
    names = [*norms.state_dict()]
    copied = copy.deepcopy(Ranks(0, 2).convert_batchnorm(norms))  # as a recipe that averages weights does
    assert shared_by_ranks(copied) == shared_by_ranks(norms) == [True, True, True]
    assert [*copied.state_dict()] == names
    assert copied[1].forward.__self__ is copied[1]
    loose = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    with pytest.raises(ValueError, match="ranks share batch norms that have weights"):
        Ranks(0, 2).convert_batchnorm(loose)
    assert Ranks().convert_batchnorm(loose) is loose


def test_a_batch_norm_under_two_names_is_shared_by_ranks_under_both() -> None:
    net = nn.Module()
    net.first = net.second = nn.BatchNorm2d(3)
    Ranks(0, 2).convert_batchnorm(net)
    assert net.first is net.second
    assert shared_by_ranks(net) == [True]


class Rectified(nn.BatchNorm2d):
    """Batch norm with an activation in it, as timm's BatchNormAct2d."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified map."""
        return super().forward(x).relu()


class Frozen(nn.Sequential):
    """Net that keeps its batch norms in evaluation mode, which it knows by their class."""

    def train(self, mode: bool = True) -> "Frozen":
        """Set the mode of all but batch norm."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self


def test_a_batch_norm_with_a_forward_pass_of_its_own_is_refused_on_ranks() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Rectified(3)))
    with pytest.raises(ValueError, match=re.escape("1.0: it is a Rectified, whose forward pass is not that of torch")):
        Ranks(0, 2).convert_batchnorm(net)
    with pytest.raises(ValueError, match="cannot share the model: it is a Rectified"):
        Ranks(0, 2).convert_batchnorm(Rectified(3))


def test_batch_norms_that_a_model_freezes_stay_frozen_on_ranks() -> None:
    net = Frozen(nn.BatchNorm2d(3))
    x = torch.randn(4, 3, 2, 2)
    expected = net.train()(x)
    assert torch.equal(Ranks(0, 2).convert_batchnorm(net).train()(x), expected)
    assert net[0].num_batches_tracked == 0


def test_a_batch_norm_of_ranks_does_not_make_the_host_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda gathered, local: gathered[0].copy_(local))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: None)
    x = torch.randn(4, 3, 2, 2)
    alone, shared = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    Ranks(0, 2).convert_batchnorm(shared)
    expected = alone(x)
    with Waits() as waits:
        y = shared(x)
        y.sum().backward()
    assert waits.count == 0
    assert torch.allclose(y, expected, atol=1e-6)
    assert torch.allclose(shared.running_var, alone.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "crop", "views"), [(0, 64, 11), (48, 48, 11), (72, 72, 1)])
def test_a_model_sees_pictures_of_its_side(size: int, crop: int, views: int, data: Path, tmp_path: Path) -> None:
    model = Model(f"{USERS}:small", size=size)
    assert seen_by(model, dataset(LARGE, data)).crop == crop
    result = train(model_trial(model, LARGE, epochs=1), data, tmp_path)
    assert ("final/test_top1_err_10crop" in result["metrics"]) == (views > 1)


@pytest.mark.parametrize("size", [35, 73, 224])
def test_pictures_that_are_too_small_or_far_too_large_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="stored at side 72; give it a size from 36 to 72"):
        seen_by(Model("a:b", size=size), dataset(LARGE))


def test_tied_weights_are_kept_twice() -> None:
    values = torch.arange(6.0)
    stored = separate({"a": values, "b": values, "c": values[2:]})
    assert len({value.untyped_storage().data_ptr() for value in stored.values()}) == 3
    assert np.array_equal(stored["c"].numpy(), [2, 3, 4, 5])


def test_models_of_other_sides_share_no_batch() -> None:
    trials = [model_trial(Model(f"{USERS}:small", size=size), LARGE) for size in (0, 48, 64)]
    assert len({stream_key(trial) for trial in trials}) == 3


def own_learner(data: Path, **arguments: Any) -> Learner:
    model = Model(f"{USERS}:own", **arguments)
    return new_learner(model_trial(model, precision="fp32"), dataset(SMALL, data), 0, 3, torch.device("cpu"))


def test_draws_in_evaluation_are_keyed_by_the_view(data: Path) -> None:
    learner = own_learner(data, noise=0.5)
    images = torch.randn(8, 3, 32, 32)
    scores = []
    for seed, stage, number in ((1, 0, 0), (2, 0, 0), (1, 0, 1), (1, 2, 0)):
        torch.manual_seed(seed)
        scores.append(learner.scores(images, 1, stage, number))
    assert torch.equal(scores[0], scores[1])
    assert not any(torch.equal(scores[0], other) for other in scores[2:])
    assert learner.unkeyed == ""


def test_draws_in_evaluation_that_no_key_reaches_are_marked(data: Path) -> None:
    def draw(*_: object) -> None:
        random.random()

    learner = own_learner(data)
    learner.model.register_forward_hook(draw)
    learner.scores(torch.randn(2, 3, 32, 32), 1)
    assert learner.unkeyed.startswith(APPROXIMATE)
    assert learner.unkeyed.endswith("in evaluation")


def test_dropout_that_a_model_keeps_on_in_evaluation_is_keyed(data: Path) -> None:
    learner = new_learner(model_trial(small(rate=0.5)), dataset(SMALL, data), 0, 3, torch.device("cpu"))
    drop = learner.model.drop
    drop.train = lambda mode=True: drop  # type: ignore[method-assign, assignment, union-attr]
    images = torch.randn(8, 3, 32, 32)
    first, again, other = (learner.scores(images, 1, 0, number) for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_view_has_one_number_whatever_the_number_of_ranks() -> None:
    seen: list[tuple[int, int]] = []
    view = torch.zeros(1, 3, 2, 2)
    for size in (1, 2):
        for rank in range(size):
            learner = SimpleNamespace(epoch=0, scores=lambda _view, _remaining, *place: seen.append(place))
            trainer = SimpleNamespace(trial=SimpleNamespace(recipe=RECIPE), ranks=Ranks(rank, size), learner=learner)
            for number in range(12 // size):
                Trainer.scores(trainer, view, 1, TEST, number, 3)  # type: ignore[arg-type]
    assert seen[:12] == sorted(seen[12:]) == [(TEST, number) for number in range(12)]


def test_weights_of_the_best_epoch_have_the_buffers_that_no_state_has(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.training.trainer.best_epoch", lambda history: history[0])
    trial = dataclasses.replace(model_trial(Model(f"{USERS}:own"), precision="fp32"), phase="holdout")
    train(trial, data, tmp_path, kills=1)
    steps = trial.recipe.steps(len(open_splits(trial, runtime_config(data, tmp_path)).train_indices))
    weights = safetensors.torch.load(Ledger(str(tmp_path)).read(f"trials/{trial.key}/weights.safetensors") or b"")
    assert weights["buffers/seen"] == steps
