"""A placed activation: the layers around it fit, old weights are kept, and what cannot be is said with the place."""

import copy
import io
import random
import re
from collections.abc import Callable, Sequence
from types import MethodType

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from crelu_models import CReLU, place, places, tracing
from crelu_models.__main__ import main
from crelu_models.placement import PlacementOption

SEED = 0


def torchvisions(name: str, **words: object) -> nn.Module:
    """Return torchvision's net; its import takes seconds, which not each process that only collects tests spends."""
    from torchvision import models

    net: nn.Module = getattr(models, name)(**words)
    return net


def resnet18() -> nn.Module:
    return torchvisions("resnet18")


def vgg() -> nn.Module:
    with torch.device("meta"):  # its two wide layers, which are replaced, would take a second to draw
        net = torchvisions("vgg11_bn", num_classes=10)
    for part in net.features.to_empty(device="cpu"):
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            part.reset_parameters()
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(nn.Linear(512 * 4, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))
    return net


def alexnet() -> nn.Module:
    with torch.device("meta"):
        net = torchvisions("alexnet", num_classes=10)
    for part in net.features.to_empty(device="cpu"):
        if isinstance(part, nn.Conv2d):
            part.reset_parameters()
    net.classifier = nn.Sequential(nn.Dropout(), nn.Linear(256 * 36, 16), nn.ReLU(True), nn.Linear(16, 10))
    return net


def densenet() -> nn.Module:
    return torchvisions("DenseNet", growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=10)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "alexnet": (alexnet, ("*",)),
    "vgg11_bn": (vgg, ("features.*", "classifier.1")),
    "squeezenet1_1": (lambda: torchvisions("squeezenet1_1", num_classes=10), ("features.*.*", "features.1")),
    "resnet18": (lambda: torchvisions("resnet18", num_classes=10), ("layer*.*.relu", "layer4.1.relu_1")),
    "densenet": (densenet, ("*",)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(SEED)
    return NETS[name][0]().double().eval()


def without_new_inputs(net: nn.Module, before: nn.Module) -> int:
    """Set to zero the weights of all inputs that the net before lacks, and return how many there are."""
    old = dict(before.named_parameters())
    count = 0
    for name, weight in net.named_parameters():
        if weight.dim() == 1 or weight.shape == old[name].shape:
            continue
        known = 0
        for column in weight.detach().unbind(1):
            if known < old[name].shape[1] and torch.equal(column, old[name].detach()[:, known]):
                known += 1
            else:
                column.zero_()
                count += 1
        assert known == old[name].shape[1], f"{name} has lost inputs"
    return count


def exact(net: nn.Module) -> None:
    """Let sums of products be exact, so that they depend on no order: weights of few bits, and outputs of few."""

    def rounded(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return torch.round(output * 2**20) / 2**20

    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            part.register_forward_hook(rounded)
            for weight in part.parameters():
                weight.data.mul_(2**10).round_().div_(2**10)


@pytest.mark.parametrize("name", NETS)
def test_with_the_new_weights_at_zero_a_net_computes_what_it_did(name: str) -> None:
    before = made(name)
    net = place(before, "crelu", *NETS[name][1])
    assert without_new_inputs(net, before) > 100
    exact(net)
    exact(before)
    side = 32 if name == "vgg11_bn" else 64
    x = torch.randint(256, (1, 3, side, side)).double() / 256
    with torch.no_grad():
        assert torch.equal(net(x), before(x))
        assert before(x).std() > 0
        assert any(isinstance(part, CReLU) for part in net.modules())
    assert not any(isinstance(part, CReLU) for part in before.modules())


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet18"])
def test_every_weight_of_a_placed_net_has_a_gradient(name: str) -> None:
    net = place(made(name), "crelu", "layer*.*.relu" if name == "resnet18" else NETS[name][1][0], width=0.5).train()
    net(torch.randn(2, 3, 64, 64, dtype=torch.double)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())


def test_half_the_filters_and_twice_the_phases_leave_the_inputs_of_the_next_layer() -> None:
    before = made("resnet18")
    net = place(before, "crelu", "layer*.*.relu", width=0.5)
    inner = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    for path in inner:
        old, new = before.get_submodule(path), net.get_submodule(path)
        assert new.conv1.out_channels == new.bn1.num_features == old.conv1.out_channels // 2
        assert new.conv2.weight.shape == old.conv2.weight.shape
        assert torch.equal(new.conv1.weight, old.conv1.weight[: new.conv1.out_channels])
    thinned = sum(before.get_submodule(f"{path}.conv1").weight.numel() // 2 for path in inner)
    thinned += sum(before.get_submodule(f"{path}.bn1").num_features for path in inner)
    count = [sum(weight.numel() for weight in each.parameters()) for each in (before, net)]
    assert count[0] - count[1] == thinned


def test_new_weights_are_drawn_out_of_those_of_the_layer() -> None:
    before = made("alexnet")
    torch.manual_seed(1)
    net = place(before, "crelu", "features.4")
    old, new = before.features[6].weight.detach(), net.get_submodule("features.6").weight.detach()
    assert torch.equal(new[:, :192], old)
    assert torch.isin(new[:, 192:], old).all()
    assert not torch.equal(new[:, 192:], old)
    assert new[:, 192:].std().item() == pytest.approx(old.std().item(), rel=0.02)
    torch.manual_seed(1)
    assert torch.equal(place(before, "crelu", "features.4").get_submodule("features.6").weight, new)


def test_a_wider_layer_has_new_filters_and_their_norm() -> None:
    torch.manual_seed(SEED)
    before = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        before[1].weight.copy_(torch.arange(4))
    net = place(before, "relu", "2", width=1.5)
    parts = dict(net.named_children())
    assert parts["0"].weight.shape == (6, 3, 1, 1)
    assert parts["1"].weight.tolist() == [0, 1, 2, 3, 0, 1]
    assert not torch.equal(parts["0"].weight[4:], parts["0"].weight[:2])
    assert torch.equal(parts["3"].weight[:, :4], before[3].weight)


def test_a_norm_behind_crelu_takes_the_numbers_of_the_channel_beside() -> None:
    before = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 5)).eval()
    with torch.no_grad():
        before[2].running_mean.copy_(torch.tensor([1.0, 2.0]))
    net = place(before, "crelu", "1")
    assert net.get_submodule("2").running_mean.tolist() == [1, 2, 1, 2]
    linear = net.get_submodule("4")
    assert torch.equal(linear.weight[:, :8], before[4].weight)  # a flattened channel stays together
    assert linear.in_features == 16


@pytest.mark.parametrize(("kind", "channels"), [("gelu", 1), ("elu", 1), ("avr", 1), ("mish", 1), ("prelu", 1),
                                                ("crelu", 2), ("crelu_leaky", 2), ("antirectifier", 2)])  # fmt: skip
def test_every_kind_of_activation_can_be_placed(kind: str, channels: int) -> None:
    net = place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1)), kind, "1")
    assert net.get_submodule("2").in_channels == 4 * channels
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 5, 6, 6)
    back = place(net, "relu", "1")
    assert back.get_submodule("2").in_channels == 4


class Squash(nn.Module):
    """An activation of a user."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x over 1 + |x|."""
        return x / (1 + x.abs())


class Slopes(nn.Module):
    """An activation of a user that has a slope a channel, and two phases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return both phases."""
        return torch.cat([x.relu() * self.slope.view(-1, *[1] * (x.dim() - 2)), (-x).relu()], 1)


class DropSome(nn.Module):
    """No activation: it does nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in training without some elements."""
        return x * (torch.rand_like(x) > 0.1) if self.training else x


class Residual(nn.Module):
    """A residual sum whose first summand is an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map."""
        return self.last(self.act(self.conv(x)) + x)  # type: ignore[no-any-return]


class Mean(nn.Module):
    """No activation: it has another shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the channels."""
        return x.mean(1)


class OneAndAHalf(nn.Module):
    """No activation: it gives each second channel twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Return 3k / 2 channels for k."""
        return torch.cat([x, x[:, ::2]], 1)


def test_own_activations_are_placed_and_are_places() -> None:
    here = __name__
    net = place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), Squash()), f"{here}:Slopes", "1")
    assert net.get_submodule("1").slope.shape == (4,)
    assert net.get_submodule("2").in_channels == 8
    assert [row.name for row in places(net)] == ["1", "3"]
    assert [row.name for row in places(nn.Sequential(DropSome(), Mean(), Squash(), nn.Flatten()))] == ["2"]
    assert place(net, f"{here}:Squash", "1").get_submodule("2").in_channels == 4
    with pytest.raises(ValueError, match=r"Mean gives \(2, 3, 3\) for a tensor of shape \(2, 8, 3, 3\); an activation"):
        place(net, f"{here}:Mean", "1")
    with pytest.raises(ValueError, match=r"OneAndAHalf gives \(2, 12, 3, 3\) for a tensor of shape \(2, 8, 3, 3\)"):
        place(net, f"{here}:OneAndAHalf", "1")


class Reuse(nn.Module):
    """One relu, called as a module, a function and a method; a functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(4, 4, 1)
        self.third = nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = self.relu(self.second(self.relu(self.first(x))))
        x = functional.leaky_relu(self.third(x), 0.3).relu_()
        x = functional.dropout(x.mean([2, 3]), 0.5, self.training)
        return self.last(x.view(x.size(0), -1))  # type: ignore[no-any-return]


def test_each_call_is_a_place_of_its_own() -> None:
    torch.manual_seed(SEED)
    before = Reuse()
    assert [(row.name, row.activation) for row in places(before)] == [
        ("relu", "ReLU"), ("relu_1", "ReLU"), ("leaky_relu", "LeakyReLU"), ("relu_2", "ReLU"),
    ]  # fmt: skip
    net = place(before, "crelu", "relu_1")
    assert (net.second.in_channels, net.third.in_channels) == (4, 8)
    assert isinstance(net.get_submodule("relu"), nn.ReLU)
    assert net.get_submodule("leaky_relu").negative_slope == 0.3
    assert place(before, "crelu", "relu_2").last.in_features == 8


def test_a_function_in_place_stays_so() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.last(functional.relu_(x) + x)  # type: ignore[no-any-return]

    (row,) = places(Late())
    assert (row.name, row.doubles[:30]) == ("relu", "it changes its input in place,")


class ByMethod(nn.Module):
    """Net of a method in place, by its name, whose input is read after it or not."""

    def __init__(self, method: str, again: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)
        self.method = method
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        """Return a map."""
        x = self.conv(x)
        y = getattr(x, self.method)()
        return self.last(y + x if self.again else y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["relu_", "sigmoid_", "tanh_"])
def test_a_method_in_place_computes_the_same_as_a_module(method: str) -> None:
    torch.manual_seed(SEED)
    x = torch.randn(2, 3, 4, 4)
    for again in (False, True):
        before = ByMethod(method, again)
        after = tracing.trace(before)
        expected, result = before(x), after(x)
        assert torch.equal(result, expected)
        for value in (expected, result):
            value.sum().backward()
        assert torch.equal(after.get_submodule("conv").weight.grad, before.conv.weight.grad)  # type: ignore[arg-type]
        (row,) = places(before)
        assert (row.name, bool(row.doubles)) == (method.strip("_"), again)
    assert place(ByMethod(method, False), "crelu", "*").last.in_channels == 8


@fx.wrap
def tanh(x: Tensor) -> Tensor:
    """Return a tensor, by a function that has the name of another one of torch."""
    return x.flip(1).tanh()


def test_a_function_of_the_user_is_not_that_of_torch_with_its_name() -> None:
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.act = nn.ReLU()
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(tanh(self.act(self.conv(x))))  # type: ignore[no-any-return]

    torch.manual_seed(SEED)
    before, x = Flipped(), torch.randn(2, 3, 4, 4)
    assert torch.equal(place(before, "relu", "act")(x), before(x))
    assert {row.name: row.doubles for row in places(before)} == {
        "act": "its channels reach tanh, which may mix channels"
    }


class Tail(nn.Module):
    """Net of one activation, with a last part of the test's own."""

    def __init__(self, tail: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU()
        self.last = nn.Conv2d(4, 4, 1)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last part makes of a map."""
        return self.tail(self.last(self.act(self.conv(x))), self.training)


@pytest.mark.parametrize(
    "tail",
    [
        lambda x, _: x[:, : x.size(1) // 2],
        lambda x, _: x + torch.arange(4.0).view(1, 4, 1, 1),
        lambda x, training: functional.dropout(x[:, 1:], 0.5, training),
    ],
    ids=["slice", "constant", "mode"],
)
def test_the_same_code_in_both_modes_is_one_graph(tail: Callable[[Tensor, bool], Tensor]) -> None:
    torch.manual_seed(SEED)
    before, x = Tail(tail), torch.randn(2, 3, 4, 4)
    net = place(before, "relu", "act")
    for mode in (True, False):
        results = []
        for each in (before.train(mode), net.train(mode)):
            torch.manual_seed(1)
            results.append(each(x))
        assert torch.equal(*results)


@pytest.mark.parametrize(
    "tail",
    [
        lambda x, training: x[:, 1 if training else 0],
        lambda x, training: x * torch.tensor(1.5 if training else 1.0),
        lambda x, training: x[:, : 2 if training else 3],
        lambda x, training: x + (x if training else x.neg()),
    ],
    ids=["index", "constant", "slice", "another"],
)
def test_other_code_in_training_than_in_evaluation_has_no_graph(tail: Callable[[Tensor, bool], Tensor]) -> None:
    with pytest.raises(ValueError, match="Tail computes something else in training than in evaluation"):
        place(Tail(tail), "relu", "act")


class TwoWeights(nn.Module):
    """Net with a weight for training and one for evaluation, which start alike."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.one, self.other = nn.Parameter(torch.ones(3, 1, 1)), nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map."""
        return self.act(x) * (self.one if self.training else self.other)


def test_two_weights_that_start_alike_are_two() -> None:
    with pytest.raises(ValueError, match="TwoWeights computes something else in training than in evaluation"):
        place(TwoWeights(), "relu", "act")


def test_a_forward_pass_that_is_set_on_the_object_is_not_passed_over() -> None:
    def doubled(net: Tail, x: Tensor) -> Tensor:
        return 2 * Tail.forward(net, x)

    patched, hooked = Tail(lambda x, _: x), Tail(lambda x, _: x)
    patched.forward = MethodType(doubled, patched)  # type: ignore[method-assign]
    hooked.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    for net in (patched, hooked):
        with pytest.raises(ValueError, match="Tail has a forward pass or a hook that was set on the object"):
            place(net, "relu", "act")
        x = torch.randn(2, 3, 4, 4)
        assert torch.equal(place(nn.Sequential(net), "relu", "0.act")(x), net(x))


class Freezing(nn.Module):
    """Net that keeps its norm in evaluation by a train() of its own, or its dropout in training by an eval()."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.act = nn.ReLU()
        self.last = nn.Conv2d(4, 4, 1)
        self.by = by

    def train(self, mode: bool = True) -> "Freezing":
        """Set the mode."""
        super().train(mode)
        if self.by == "train":
            self.norm.eval()
        return self if self.by else None  # type: ignore[return-value] # which torch does not ask for

    def eval(self) -> "Freezing":
        """Set the mode of evaluation."""
        super().eval()
        if self.by == "eval":
            self.drop.train()
        return self if self.by else None  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Return a map."""
        return self.last(self.act(self.drop(self.norm(self.conv(x)))))  # type: ignore[no-any-return]


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm that is always in evaluation."""

    def train(self, _mode: bool = True) -> "FrozenNorm":
        """Stay in evaluation."""
        super().train(False)
        return self


@pytest.mark.parametrize(("by", "part"), [("train", "norm"), ("eval", "drop")])
def test_modes_that_a_net_sets_by_its_own_code_are_not_lost(by: str, part: str) -> None:
    sentence = rf"gives {part} another mode by a train\(\) or an eval\(\) in its code"
    with pytest.raises(ValueError, match=f"Freezing {sentence}"):
        place(Freezing(by), "crelu", "act")
    assert place(Freezing(""), "crelu", "act").train().get_submodule("norm").training


def test_modes_that_a_part_sets_by_its_own_code_are_not_lost() -> None:
    with pytest.raises(ValueError, match=r"Sequential gives 0\.norm another mode"):
        place(nn.Sequential(Freezing("train")), "crelu", "0.act")


def test_a_layer_whose_class_keeps_its_mode_keeps_it_in_a_graph() -> None:
    net = place(nn.Sequential(nn.Conv2d(3, 4, 1), FrozenNorm(4), nn.ReLU(), nn.Conv2d(4, 4, 1)), "crelu", "2")
    assert not net.train().get_submodule("1").training
    assert net.get_submodule("2").training


class Dropping(nn.Module):
    """Net that leaves out its middle layer now and then, by a generator that is not its own."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(3)])
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        """Return a map."""
        x = self.act(self.layers[0](x))
        if not self.training or self.draw() < 0.5:
            x = self.layers[1](x)
        return self.layers[2](self.drop(functional.dropout(x, 0.5, self.training)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "draw",
    [random.random, lambda: float(np.random.rand()), lambda: torch.rand(1).item()],
    ids=["python", "numpy", "torch"],
)
def test_a_net_that_draws_its_way_has_no_graph(draw: Callable[[], float]) -> None:
    random.seed(0)
    for _ in range(4):  # whichever way it goes
        with pytest.raises(ValueError, match="Dropping draws random numbers in Python to decide its way"):
            place(Dropping(draw), "crelu", "act")


def test_dropout_in_a_net_draws_nothing_when_it_is_followed() -> None:
    net, before = Dropping(lambda: 0.0), torch.get_rng_state()
    assert [row.name for row in places(net)] == ["act"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_functional_dropout_follows_the_mode() -> None:
    torch.manual_seed(SEED)
    before = Reuse()
    net = place(before, "relu", "relu")
    x = torch.randn(64, 3, 2, 2)
    for mode in (True, False):
        results = []
        for each in (before.train(mode), net.train(mode)):
            torch.manual_seed(1)
            results.append(each(x))
        assert torch.equal(*results)
        assert torch.equal(net(x), net(x)) != mode


def test_a_placed_net_is_copied_pickled_and_loaded() -> None:
    torch.manual_seed(SEED)
    net = place(place(Reuse(), "crelu", "relu", width=0.5), "elu", "relu_1")
    x = torch.randn(2, 3, 4, 4)
    net.eval()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = place(place(Reuse(), "crelu", "relu", width=0.5), "elu", "relu_1").eval()
    again.load_state_dict(net.state_dict())
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False), again):
        assert torch.equal(other(x), net(x))
        assert other.train()(x).shape == (2, 2)
    assert net.to("meta")(x.to("meta")).shape == (2, 2)
    on_meta = place(Reuse().to("meta"), "prelu", "relu")
    assert all(weight.is_meta for weight in on_meta.parameters())


def test_a_linear_layer_on_positions_has_its_channels_last() -> None:
    torch.manual_seed(SEED)
    before = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    net = place(before, "crelu", "1")
    without_new_inputs(net, before)
    exact(net)
    exact(before)
    for shape in ((3, 4), (3, 5, 4)):
        x = torch.randint(256, shape).double() / 256
        assert torch.equal(net(x), before(x))


def reasons(rows: Sequence[PlacementOption]) -> dict[str, str]:
    return {row.name: row.doubles for row in rows if row.doubles}


def test_where_channels_cannot_go_on_the_reason_is_named() -> None:
    assert reasons(places(resnet18())) == {
        name: f"its channels meet a sum at {behind}, whose other part keeps its channels"
        for name, behind in [("relu", "layer1.0.add")]
        + [(f"layer{stage}.0.relu_1", f"layer{stage}.1.add") for stage in (1, 2, 3, 4)]
    }
    mobile = places(torchvisions("mobilenet_v3_small"))
    assert reasons(mobile)["features.0.2"] == "features.1.block.0.0 is a grouped convolution, of 16 groups"
    assert "meet a product at features.1.block.1.mul" in reasons(mobile)["features.1.block.0.2"]


def test_what_a_width_thins_is_named() -> None:
    rows = {row.name: row for row in places(densenet())}
    layer = "features.denseblock1.denselayer2"
    assert rows[f"{layer}.relu2"].thins == f"{layer}.conv1"
    assert (rows[f"{layer}.relu1"].thins, rows[f"{layer}.relu1"].channels) == ("", 12)
    assert rows[f"{layer}.relu1"].keeps == f"its channels come from {layer}.cat, which has no filters to scale"
    assert {row.doubles for row in rows.values()} == {""}
    row = {row.name: row for row in places(resnet18(), 64)}["layer2.0.relu"]
    assert (row.channels, row.thins, row.shape) == (128, "layer2.0.conv1", (8, 8))


class Forked(nn.Module):
    """A conv whose output an activation and another conv read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU()
        self.main = nn.Conv2d(4, 2, 1)
        self.side = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches."""
        x = self.conv(x)
        return self.main(self.act(x)) + self.side(x)  # type: ignore[no-any-return]


def test_a_layer_that_another_reads_too_is_not_thinned() -> None:
    (row,) = places(Forked())
    assert (row.thins, row.keeps) == ("", "side reads the channels of conv too")
    with pytest.raises(ValueError, match="side reads the channels of conv too"):
        place(Forked(), "relu", "act", width=0.5)
    assert place(Forked(), "crelu", "act").get_submodule("main").weight.shape == (2, 8, 1, 1)


class Tied(nn.Module):
    """A conv that is called twice, an in-place relu whose input is read later, parts along another dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()
        self.late = nn.ReLU(inplace=True)
        self.rows = nn.ReLU()
        self.more = nn.Conv2d(4, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map."""
        x = self.conv(self.act(self.conv(x)))
        y = self.out(self.late(x)) + x
        y = torch.cat([self.rows(self.more(y)), y], 2)
        return self.norm(torch.tanh(self.out(y)))  # type: ignore[no-any-return]


def test_layers_that_cannot_be_resized_are_left_alone() -> None:
    assert reasons(places(Tied())) == {
        "act": "conv is called 2 times with the same weights",
        "late": "it changes its input in place, and add reads that: build it with inplace=False",
        "rows": "cat concatenates along another dimension than that of its channels",
        "tanh": "its channels reach norm, which normalises over several channels",
    }
    assert reasons(places(Residual())) == {"act": "its channels meet a sum at add, whose other part keeps its channels"}
    conv, other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    other.weight = conv.weight
    shared = nn.Sequential(conv, nn.ReLU(), other)
    assert reasons(places(shared)) == {"1": "2 shares a parameter with another layer"}
    last = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert reasons(places(last)) == {"1": "its channels are the output of the net"}
    flat = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(5, 5))
    assert reasons(places(flat)) == {"1": "its channels reach 2, which reads along another dimension"}


class Unfollowed(nn.Module):
    """A net with a branch on a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x or -x."""
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "kind", "globs", "width", "says"),
    [
        (resnet18, "crelu", ("layer1.*.relu_1",), 1.0,
         r"crelu cannot stand at layer1.0.relu_1 of ResNet: its channels meet a sum at layer1.1.add.*it can stand at "
         r"layer1.0.relu, layer1.1.relu, layer1.1.relu_1, "),
        (resnet18, "crelu", ("layer1.1.relu_1",), 0.5, r"crelu of width 0.5 cannot .* no filters to scale"),
        (resnet18, "crelu", ("layer9.*",), 1.0, r"no activation of ResNet is named 'layer9.\*'; there are"),
        (resnet18, "relux", ("*",), 1.0, "unknown activation 'relux'; use one of relu, crelu, .*module:Class"),
        (resnet18, "no_such:Thing", ("*",), 1.0, "no_such:Thing: no_such does not import"),
        (resnet18, "crelu", (), 1.0, "say where crelu is to stand"),
        (resnet18, "crelu", ("*",), 0.0, "a width is a finite factor above 0"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)), "crelu", ("1",), 0.1,
         "it leaves no filter of the 4 at 0"),
        (densenet, "crelu", ("features.denseblock1.*.relu1",), 0.5,
         "crelu of width 0.5 cannot stand at features.denseblock1.denselayer1.relu1 of DenseNet: its channels come "
         "from features.denseblock1.denselayer1.cat, which has no filters to scale; it can stand at features.relu0, "),
        (lambda: torchvisions("mobilenet_v2"), "crelu", ("*",), 1.0,
         "crelu cannot stand at features.0.2 of MobileNetV2: features.1.conv.0.0 is a grouped convolution, of 32 "
         "groups; it can stand at features.1.conv.0.2, "),
        (Tied, "crelu", ("rows",), 1.0,
         "crelu cannot stand at rows of Tied: cat concatenates along another dimension than that of its channels; it "
         "can stand nowhere in this net"),
        (Unfollowed, "crelu", ("*",), 1.0, "torch.fx cannot follow the forward pass of Unfollowed"),
        (lambda: torchvisions("googlenet", init_weights=False), "crelu", ("*",), 1.0,
         "something else in training than in"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence(
    net: Callable[[], nn.Module], kind: str, globs: tuple[str, ...], width: float, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        place(net(), kind, *globs, width=width)


def test_modes_and_devices_stay() -> None:
    before = torchvisions("resnet18", num_classes=2).train()
    before.layer1.eval()
    net = place(before, "gelu", "layer[12].*.relu")
    assert {name: part.training for name, part in net.named_modules() if name in dict(before.named_modules())} == {
        name: part.training for name, part in before.named_modules()
    }
    net.load_state_dict(before.state_dict())


def test_the_command_shows_places_and_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["crelu_models", "places", "torchvision.models:resnet18", "--size", "64"])
    assert main() == 0
    shown = capsys.readouterr().out
    assert re.search(r"layer2\.0\.relu +ReLU +128 +8x8 +yes +layer2\.0\.conv1", shown)
    assert "CReLU can stand at 12 of 17 places, at 8 of them with a width." in shown
    assert "relu: no CReLU, because its channels meet a sum at layer1.0.add" in shown
    assert "layer1.1.relu_1: no width, because its channels come from layer1.1.add" in shown


def test_a_factory_of_a_page_is_made_with_classes() -> None:
    assert tracing.net_by_name("tests.support.user_models:small", {}).head.out_features == tracing.CLASSES  # type: ignore[union-attr]
    assert tracing.net_by_name("torchvision.models:squeezenet1_1", {}).num_classes == 1000  # its own default


def test_a_net_is_made_with_the_arguments_of_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ["image_size=32", "patch_size=8", "num_layers=1", "num_heads=2", "hidden_dim=16", "mlp_dim=24"]
    words = ["torchvision.models:VisionTransformer", *shape, "--size", "32"]
    monkeypatch.setattr("sys.argv", ["crelu_models", "places", *words])
    assert main() == 0
    assert re.search(r"mlp\.1 +GELU +24 +24 +yes", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["torchvision.models:resnet"], "torchvision.models:resnet is of type module, and cannot be called"),
        (["torchvision.models:nosuch"], "torchvision.models:nosuch: torchvision.models has no"),
        (["json:loads"], "json:loads cannot be called so (TypeError: loads() missing 1 required"),
        (["torchvision.models:resnet18", "weights=NO"], "torchvision.models:resnet18 cannot be called so (KeyError"),
        (["torchvision.models:resnet18", "64"], "'64' is no argument: write NAME=VALUE, such as image_size=64"),
        (["tests.support.user_models:NET", "depth=3"], "tests.support.user_models:NET is a net, and takes no"),
        (["torchvision.models:vit_b_16", "--size", "32"], "VisionTransformer takes no picture of side 32: Assertion"),
        (["builtins:dict"], "builtins:dict makes a dict, and no torch.nn.Module"),
        (["torchvision.models:alexnet", "--size", "8"], "AlexNet takes no picture of side 8"),
    ],
)
def test_a_wrong_net_ends_the_command_with_a_sentence(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["crelu_models", "places", *words])
    assert main() == 2
    assert f"error: {says}" in capsys.readouterr().err
