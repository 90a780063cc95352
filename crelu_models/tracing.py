"""Nets of any library as graphs of torch.fx in which every activation is a module with a name of its own.

Such a graph is an nn.Module that computes what the net computes, in training and in evaluation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from crelu_models.activations import AVR, Antirectifier, Both, CReLU
from crelu_models.draws import other_state, torch_state
from crelu_models.named import error_text, load_named

# Elementwise activations of torch.nn, by the names of their functions.
FUNCTIONS: dict[str, Callable[..., nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
}
ELEMENTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6,
    nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh, AVR,
)  # fmt: skip


class SigmoidInPlace(nn.Sigmoid):
    """Logistic function in place, as the method `sigmoid_`; torch.nn has no class of that kind."""

    inplace = True

    def forward(self, x: Tensor) -> Tensor:
        """Return x, changed."""
        return x.sigmoid_()


class TanhInPlace(nn.Tanh):
    """Hyperbolic tangent in place, as the method `tanh_`; torch.nn has no class of that kind."""

    inplace = True

    def forward(self, x: Tensor) -> Tensor:
        """Return x, changed."""
        return x.tanh_()


IN_PLACE: dict[str, Callable[..., nn.Module]] = {"sigmoid_": SigmoidInPlace, "tanh_": TanhInPlace}


class LastDim(nn.Module):
    """Activation along the last dimension: behind a linear layer that keeps positions, as in a transformer."""

    def __init__(self, inner: nn.Module) -> None:
        """Wrap an activation that acts along dim 1."""
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of x (n, ..., k), whose channels stand last."""
        result: Tensor = self.inner(x.movedim(-1, 1)).movedim(1, -1)
        return result


CLASSES = 10  # of a net whose activations are looked at
DOUBLING = (CReLU, Both, Antirectifier)


def channel_factor(module: nn.Module) -> int:
    """Return how many channels an activation gives for each that it reads; 0 for a module that is no activation."""
    if isinstance(module, LastDim):
        return channel_factor(module.inner)
    known = 2 if isinstance(module, DOUBLING) else int(isinstance(module, (*ELEMENTWISE, nn.PReLU)))
    return int(getattr(module, "channel_factor", known))  # an activation of the user has it from its placing


class Training(nn.Module):
    """Mode of the module that it stands in: whether that is in training, as a functional dropout asks."""

    def forward(self) -> bool:
        """Return whether the module is in training."""
        return self.training


class _Tracer(fx.Tracer):
    """Tracer that looks into a module only where it has parts."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a call of `m` is one node."""
        is_leaf = channel_factor(m) > 0 or not any(True for _ in m.children())
        return is_leaf or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module) -> fx.GraphModule:
    """Return a copy of `module` as a graph in which each call of an activation has a module and a name of its own.

    A module that is called twice is "relu" and "relu_1"; a function such as F.relu has the name of the module that
    calls it in front, "block.relu". ValueError where torch.fx cannot follow the forward pass, or where a train() of the
    user's would be lost.
    """
    module = copy.deepcopy(module)
    modes = {name: part.training for name, part in module.named_modules()}
    module.train()  # one of the user's may return nothing
    training, in_training = _graph(module), _modes(module)
    module.eval()
    evaluation, in_evaluation = _graph(module), _modes(module)
    traced = fx.GraphModule(module, training, class_name=type(module).__name__)
    _compare_modes(traced.train(), in_training)
    _compare_modes(traced.eval(), in_evaluation)
    for node in traced.graph.nodes:
        node.meta["label"] = _label(node)
    _keep_modes(traced, evaluation, module)
    _name_activations(traced)
    for name, part in traced.named_modules():
        part.training = modes.get(name, modes.get(name.rpartition(".")[0], modes[""]))
    traced.recompile()
    return traced


def label(node: fx.Node) -> str:
    """Return a node's name for people: that of its module, or of the module that calls its function."""
    name: str = node.meta.get("label", node.name)
    return name


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module:
    """Return the module that a node calls; an empty one where it calls none."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else nn.Module()


def activations(traced: fx.GraphModule) -> dict[str, fx.Node]:
    """Return the calls of activations by name, in the order of the forward pass."""
    return {str(node.target): node for node in traced.graph.nodes if channel_factor(module_of(traced, node))}


def _graph(module: nn.Module) -> fx.Graph:
    """Return the graph of a module in its present mode.

    ValueError where torch.fx cannot follow it or does not see all of it, or where it draws random numbers on its way:
    a graph has one way.
    """
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            f"{type(module).__name__} has a forward pass or a hook that was set on the object, which torch.fx does not "
            "see: write it into the forward pass of a class"
        )
    device = next(module.parameters(), torch.empty(0)).device
    before = torch_state(device), other_state()
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # the module's own code runs here
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"torch.fx cannot follow the forward pass of {type(module).__name__} ({why[0]}): it takes one without "
            "branches and loops that depend on tensors"
        ) from error
    if (torch_state(device), other_state()) != before:
        raise ValueError(
            f"{type(module).__name__} draws random numbers in Python to decide its way, and its graph would go the way "
            "of the first draw for ever: no activation can be placed in it; let a module without parts draw them, as "
            "torchvision's StochasticDepth does"
        )
    return graph


def _modes(module: nn.Module) -> dict[nn.Module, bool]:
    """Return of each part of a module whether it is in training."""
    return {part: part.training for part in module.modules()}


def _compare_modes(traced: fx.GraphModule, modes: dict[nn.Module, bool]) -> None:
    """Raise ValueError where a part is not in the mode of before: a graph has no train() and eval() of the module."""
    for name, part in traced.named_modules():
        if part.training != modes.get(part, part.training):
            raise ValueError(
                f"{type(traced).__name__} gives {name} another mode by a train() or an eval() in its code, which its "
                f"graph does not have: give {name} a class whose own train() does that"
            )


def _label(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    return _joined(_owner(node), str(name).strip("_"))


def _owner(node: fx.Node) -> str:
    """Return the path of the module in whose forward pass a function is called."""
    stack: list[tuple[str, Any]] = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _keep_modes(traced: fx.GraphModule, evaluation: fx.Graph, module: nn.Module) -> None:
    """Ask for the mode at each call that the net in evaluation makes with False in place of True.

    ValueError where the two graphs of `module` differ otherwise.
    """
    before, after = list(traced.graph.nodes), list(evaluation.nodes)
    partners: dict[object, fx.Node] = {}
    for node, other in zip(before, after, strict=False):
        values, form = _flattened(node)
        others, other_form = _flattened(other)
        if (node.op, form) != (other.op, other_form) or not _is_same_target(node, other, module):
            raise _two_nets(traced, node)
        modes = [value is True and other_value is False for value, other_value in zip(values, others, strict=True)]
        for value, other_value, mode in zip(values, others, modes, strict=True):
            same = partners[other_value] if isinstance(other_value, fx.Node) else other_value
            if not mode and (type(value) is not type(same) or value != same):
                raise _two_nets(traced, node)
        partners[other] = node
        if any(modes):
            path = _joined(_owner(node), "in_training")
            traced.add_submodule(path, Training())
            with traced.graph.inserting_before(node):
                asked = traced.graph.call_module(path)
            asked.meta["label"] = path
            _set_arguments(node, [asked if mode else value for value, mode in zip(values, modes, strict=True)])
    if len(before) != len(after):
        raise _two_nets(traced, before[-1])


def _flattened(node: fx.Node) -> tuple[list[Any], object]:
    """Return a node's arguments as a list, those within lists and slices too, and the form that they stand in."""
    values: list[Any] = []
    form = map_aggregate((node.args, node.kwargs), lambda value: values.append(value))
    return values, form


def _set_arguments(node: fx.Node, values: list[Any]) -> None:
    """Give a node the arguments of a list, in the form in which those that it has stand."""
    left = iter(values)
    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), lambda _: next(left))


def _is_same_target(node: fx.Node, other: fx.Node, module: nn.Module) -> bool:
    """Return whether two nodes call the same thing; a tensor that a forward pass makes has a name in each graph."""
    if node.target == other.target or node.op != "get_attr":
        return bool(node.target == other.target)
    registered = {*dict(module.named_parameters(remove_duplicate=False)), *dict(module.named_buffers())}
    if {node.target, other.target} & registered:  # two that start alike do not stay so
        return False
    value, other_value = (attrgetter(str(each.target))(module) for each in (node, other))
    return value.dtype == other_value.dtype and torch.equal(value, other_value)


def _two_nets(traced: fx.GraphModule, node: fx.Node) -> ValueError:
    return ValueError(
        f"{type(traced).__name__} computes something else in training than in evaluation, at {label(node)}: build it "
        "without that, e.g. without auxiliary outputs"
    )


def _name_activations(traced: fx.GraphModule) -> None:
    """Give every call of an activation a module under a name of its own."""
    for node in traced.graph.nodes:
        if _is_own_activation(activation := module_of(traced, node)):
            activation.channel_factor = 1  # type: ignore[assignment]
    used: set[str] = set()
    paths = {name for name, _ in traced.named_modules()}
    for node in traced.graph.nodes:
        module = module_of(traced, node) if node.op == "call_module" else _as_module(node)
        if not channel_factor(module):
            continue
        name = base = str(node.target) if node.op == "call_module" else label(node)
        number = 0
        while name in used or (name in paths and node.target != name):
            number += 1
            name = f"{base}_{number}"
        used.add(name)
        if node.target == name:
            continue
        # A module without parameters is copied; one with parameters stays one, under two names.
        traced.add_submodule(name, module if any(True for _ in module.parameters()) else copy.deepcopy(module))
        if node.op != "call_module":
            node.args, node.kwargs = node.args[:1] or (node.kwargs["input"],), {}
        node.op, node.target = "call_module", name
        node.meta["label"] = name


def _is_own_activation(module: nn.Module) -> bool:
    """Return whether a module of the user's own, without parts and parameters, computes each element from itself.

    It is tried on a tensor and on the same elements in another order; an identity, such as dropout, is no activation.
    """
    plain = not any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))
    if not plain or channel_factor(module) or type(module).__module__.startswith(("torch.nn.", "crelu_models.")):
        return False
    x = torch.linspace(-2, 2, 120).view(2, 3, 4, 5)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            y, mixed = (copy.deepcopy(module).eval()(values) for values in (x, x.flatten()[order].view_as(x)))
            same = y.shape == x.shape and torch.equal(y.flatten()[order], mixed.flatten())
            return bool(same) and not torch.equal(x, y)
    except Exception:  # the user's code runs here: what takes no such tensor is no activation
        return False


def _as_module(node: fx.Node) -> nn.Module:
    """Return the module of torch.nn that computes what a function or method does; an empty one where none does."""
    name = called(node)
    kind = IN_PLACE.get(name) or FUNCTIONS.get(name.removesuffix("_"))
    settings = _settings(node)
    if kind is None or settings is None:
        return nn.Module()
    if name.endswith("_") and name not in IN_PLACE:
        settings["inplace"] = True
    known = settings.keys() <= inspect.signature(kind).parameters.keys()
    return kind(**settings) if known else nn.Module()


def _settings(node: fx.Node) -> dict[str, Any] | None:
    """Return the arguments of a functional activation besides its input, by name; None where they are not plain."""
    settings: dict[str, Any] = {name: value for name, value in node.kwargs.items() if name != "input"}
    further = node.args[1:] if "input" not in node.kwargs else node.args
    if further:
        if not inspect.isfunction(node.target):
            return None
        names = list(inspect.signature(node.target).parameters)[1:]
        settings |= dict(zip(names, further, strict=False))
    plain = all(isinstance(value, bool | int | float | str) for value in settings.values())
    return settings if plain else None


def called(node: fx.Node) -> str:
    """Return the name of the method, or the function of torch or Python, that a node calls; empty for any other."""
    if node.op == "call_method":
        return str(node.target)
    package = str(getattr(node.target, "__module__", "")).partition(".")[0]
    is_known = node.op == "call_function" and package in ("torch", "_operator", "builtins")
    return getattr(node.target, "__name__", "") if is_known else ""


def ancestors(node: fx.Node) -> Iterator[fx.Node]:
    """Yield a node and, one after the other, the first inputs that lead to it."""
    yield node
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        yield node


def _needs_classes(make: Callable[..., Any]) -> bool:
    """Return whether a function asks for `num_classes`, as the factories of a page's models may."""
    try:
        parameter = inspect.signature(make).parameters.get("num_classes")
    except (TypeError, ValueError):  # some of those built in have none
        return False
    return parameter is not None and parameter.default is parameter.empty


def net_by_name(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the net that "module:name" names or makes, of CLASSES classes where it asks for `num_classes`.

    ValueError where it is none, or takes other arguments.
    """
    make = load_named(name)
    if isinstance(make, nn.Module):
        if arguments:
            raise ValueError(f"{name} is a net, and takes no arguments: leave out {', '.join(arguments)}")
        return make
    classes = {"num_classes": CLASSES} if _needs_classes(make) else {}
    try:
        net = make(**(classes | dict(arguments)))
    except Exception as error:  # the user's own code runs here
        hint = "; write its arguments as NAME=VALUE behind its name" if isinstance(error, TypeError) else ""
        raise ValueError(f"{name} cannot be called so ({error_text(error)}){hint}") from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name} makes a {type(net).__name__}, and no torch.nn.Module")
    return net
