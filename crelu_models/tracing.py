"""Nets of any library as graphs of torch.fx in which every activation is a module with a name of its own.

Such a graph is an nn.Module that computes what the net computes, in training and in evaluation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from crelu_models.activations import AVR, Antirectifier, Both, CReLU
from crelu_models.named import load_named

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
    calls it in front, "block.relu". ValueError where torch.fx cannot follow the forward pass.
    """
    module = copy.deepcopy(module)
    modes = {name: part.training for name, part in module.named_modules()}
    training, evaluation = (_graph(module.train(mode)) for mode in (True, False))
    traced = fx.GraphModule(module, training, class_name=type(module).__name__)
    for node in traced.graph.nodes:
        node.meta["label"] = _label(node)
    _keep_modes(traced, evaluation)
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
    """Return the graph of a module in its present mode; ValueError where torch.fx cannot follow it."""
    try:
        return _Tracer().trace(module)
    except Exception as error:  # the module's own code runs here
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"torch.fx cannot follow the forward pass of {type(module).__name__} ({why[0]}): it takes one without "
            "branches and loops that depend on tensors"
        ) from error


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


def _keep_modes(traced: fx.GraphModule, evaluation: fx.Graph) -> None:
    """Ask for the mode at each call that the net in evaluation makes with False in place of True.

    ValueError where the two graphs differ otherwise.
    """
    before, after = list(traced.graph.nodes), list(evaluation.nodes)
    for node, other in zip(before, after, strict=False):
        arguments, form = pytree.tree_flatten((node.args, dict(node.kwargs)))
        others, other_form = pytree.tree_flatten((other.args, dict(other.kwargs)))
        if (node.op, node.target, form) != (other.op, other.target, other_form):
            raise _two_nets(traced, node)
        modes = [pair == (True, False) for pair in zip(arguments, others, strict=True)]
        for value, other_value, mode in zip(arguments, others, modes, strict=True):
            if not mode and getattr(value, "name", value) != getattr(other_value, "name", other_value):
                raise _two_nets(traced, node)
        if any(modes):
            path = _joined(_owner(node), "in_training")
            traced.add_submodule(path, Training())
            with traced.graph.inserting_before(node):
                asked = traced.graph.call_module(path)
            asked.meta["label"] = path
            values = [asked if mode else value for value, mode in zip(arguments, modes, strict=True)]
            args, kwargs = pytree.tree_unflatten(values, form)
            node.args, node.kwargs = tuple(args), kwargs
    if len(before) != len(after):
        raise _two_nets(traced, before[-1])


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
    if node.op not in ("call_function", "call_method"):
        return nn.Module()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    kind = FUNCTIONS.get(name.removesuffix("_"))
    settings = _settings(node)
    if kind is None or settings is None:
        return nn.Module()
    if name.endswith("_"):
        settings["inplace"] = True
    return kind(**settings)


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


def net_by_name(name: str) -> nn.Module:
    """Return the net that "module:name" names or makes, of CLASSES classes where it asks for `num_classes`.

    ValueError where it is none, or needs further arguments.
    """
    make = load_named(name)
    if isinstance(make, nn.Module):
        return make
    try:
        net = make(num_classes=CLASSES) if _needs_classes(make) else make()
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called without arguments but num_classes ({error}); name a function that can"
        ) from None
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name} makes a {type(net).__name__}, and no torch.nn.Module")
    return net
