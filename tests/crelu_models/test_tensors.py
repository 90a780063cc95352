"""Tensors of a module: what its state leaves out is saved and loaded, and the layout is that which torch gives."""

import copy

import pytest
import torch
from torch import nn

from crelu_models.modules import build
from crelu_models.tables import S5
from crelu_models.tensors import full_state, load_full_state, to_channels_last


class Counting(nn.Module):
    """Net with buffers that are no part of its state."""

    wide: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.inner = nn.Module()
        self.inner.register_buffer("seen", torch.zeros(2), persistent=False)
        self.register_buffer("wide", torch.zeros(1).expand(3), persistent=False)


def test_buffers_that_a_state_leaves_out_are_saved_and_loaded() -> None:
    net, other = Counting(), Counting()
    net.inner.seen += 3
    net.wide = torch.arange(3.0)
    net.register_buffer("late", torch.ones(1), persistent=False)  # as a forward pass may make one
    held = other.inner.seen
    load_full_state(other, full_state(net))
    net.wide += 1
    assert other.inner.seen is held
    assert held.tolist() == [3, 3]
    assert other.wide.tolist() == [0, 1, 2]
    assert other.late.tolist() == [1]
    assert torch.equal(other.head.weight, net.head.weight)
    assert {*other.state_dict()} == {*net.state_dict()} == {"head.weight", "head.bias"}
    load_full_state(other, Counting().state_dict())  # older files have none
    assert held.tolist() == [3, 3]


def test_tensors_of_another_net_are_refused() -> None:
    with pytest.raises(RuntimeError, match="bias"):
        load_full_state(nn.Linear(2, 2, bias=False), full_state(nn.Linear(2, 2)))


def test_nets_of_this_package_have_no_tensors_besides_their_state() -> None:
    net = build(S5.width(0.125), 10)
    assert {*full_state(net)} == {*net.state_dict()}


def test_channels_are_last_as_torch_puts_them_and_stay_in_five_dimensions() -> None:
    flat = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(3)])
    expected = copy.deepcopy(flat).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    volumes = nn.Conv3d(3, 4, 3)
    assert to_channels_last(nn.ModuleList([flat, volumes]), torch.device("cpu"))[0] is flat  # type: ignore[index]
    assert [value.stride() for value in flat.parameters()] == [value.stride() for value in expected.parameters()]
    assert not flat[0].weight.is_contiguous()  # type: ignore[operator]
    assert volumes.weight.is_contiguous()
