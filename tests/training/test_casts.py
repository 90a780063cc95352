"""Weights cast all at once give the bits of those that autocast casts one by one."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from crelu_models.modules import build, initialise
from crelu_models.tables import S2, S4
from sweeps.experiment.recipe import ALLCONV, VGG
from sweeps.training.gpu.casts import CastNet
from sweeps.training.gpu.graphs import Graphs
from sweeps.training.loop import Learner
from tests.support.op_recorder import OpRecorder

NETS = {"CReLU": (S2.crelu(1, 2, 3).width(0.0625), ALLCONV), "batch norm": (S4.width(0.0625), VGG)}


class Counts(TorchDispatchMode):
    """Numbers of operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made[func.name()] += 1
        return func(*args, **(kwargs or {}))


def make_learner(name: str, graphs: Graphs) -> Learner:
    net, recipe = NETS[name]
    model = build(net, 10)
    initialise(model, net, recipe.init, 0)
    recipe = dataclasses.replace(recipe, lr=1e-3, batch=8, precision="bf16")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Learner(model, recipe, seed=3, steps=90, precision="bf16", graphs=graphs)


def batch() -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 32, 32, generator=drawn), torch.randint(10, (8,), generator=drawn)


@pytest.mark.parametrize("name", NETS)
def test_casts_all_at_once_have_the_bits_of_casts_one_by_one(name: str) -> None:
    one_by_one, at_once = make_learner(name, Graphs(None)), make_learner(name, Graphs(OpRecorder()))
    casts = []
    for learner in (one_by_one, at_once):
        for _ in range(2):
            learner.step(*batch())
        with Counts() as counts:
            learner.step(*batch())
        casts.append(counts.made["aten::_to_copy"])
        for _ in range(2):
            learner.step(*batch())
    ours, theirs = at_once.tensors(), one_by_one.tensors()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert at_once.graphs.replays
    weights = sum(len(list(layer.parameters())) for layer in at_once.model if isinstance(layer, nn.Conv2d | nn.Linear))
    assert casts[0] >= 2 * weights
    assert casts[1] < 6  # of the pictures, the scores, and others that are not of weights


def test_gradients_have_the_layout_of_their_weights() -> None:
    """The norm of all gradients adds them up in their order in memory."""
    learner = make_learner("CReLU", Graphs(OpRecorder()))
    learner.step(*batch())
    gradients = [value.grad for value in learner.model.parameters() if value.grad is not None]
    assert [value.stride() for value in gradients] == [value.stride() for value in learner.model.parameters()]


def test_only_nets_of_ours_and_weights_that_learn_are_cast() -> None:
    model = build(NETS["batch norm"][0], 10)
    model.conv1.bias.requires_grad_(False)
    copies = CastNet(model, torch.bfloat16).copies
    assert "conv1.weight" in copies
    assert "conv1.bias" not in copies
    assert not any("bn" in name for name in copies)
    assert {value.dtype for value in copies.values()} == {torch.bfloat16}
    assert CastNet(model, None).copies == {}
    assert CastNet(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.bfloat16).copies == {}


@pytest.mark.parametrize("name", NETS)
def test_all_casts_take_one_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU copies lists by one kernel where all strides are equal, also those of sides of length 1."""
    learner = make_learner(name, Graphs(OpRecorder()))
    lists: list[int] = []
    copy = torch._foreach_copy_

    def seen(to: list[Tensor], of: list[Tensor]) -> None:
        assert [value.stride() for value in to] == [value.stride() for value in of]
        assert len({value.dtype for value in to}) == len({value.dtype for value in of}) == 1
        lists.append(len(to))
        copy(to, of)

    monkeypatch.setattr(torch, "_foreach_copy_", seen)
    learner.step(*batch())
    weights = sum(len(list(layer.parameters())) for layer in learner.model if isinstance(layer, nn.Conv2d | nn.Linear))
    assert lists == [weights, weights]
