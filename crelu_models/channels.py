"""Channels of a traced net: which layers read those of an activation, which gives them, and what is in the way."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from crelu_models.dropout import Dropout
from crelu_models.tracing import ancestors, called, channel_factor, label, module_of

# Of each new channel the old one that it carries, or ~k for one that is new beside the old channel k.
Layout = tuple[int, ...]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVS, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (_BatchNorm, _InstanceNorm)
# Modules that leave each element, or each channel, to itself.
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, Dropout)
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
# The same as functions and methods, by name.
ELEMENT_CALLS = frozenset({"clone", "contiguous", "dropout", "feature_dropout", "neg"})
POOL_CALLS = frozenset({
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d", "avg_pool2d", "dropout2d",
    "interpolate", "max_pool1d", "max_pool2d", "boolean_dispatch",
})  # fmt: skip
SUMS = {"add": "a sum", "sub": "a difference", "mul": "a product", "truediv": "a quotient", "div": "a quotient"}


class RefusedError(ValueError):
    """Refusal to change channels; the message says why, as the end of a sentence."""


class Edits(NamedTuple):
    """Changes of layers by their nodes: of what they read, of what they give, and of what is theirs per channel."""

    reads: dict[fx.Node, Layout]
    gives: dict[fx.Node, Layout]
    scales: dict[fx.Node, Layout]


class _Flow(NamedTuple):
    """Tensor whose channels are others: their layout, how many there were, along which dimensions they stand.

    `flat` is set where each channel was flattened to a number of features that only its reader knows.
    """

    layout: Layout
    before: int
    dims: frozenset[int]
    flat: bool = False


def count(traced: fx.GraphModule, node: fx.Node) -> int:
    """Return the channels of a node's tensor; RefusedError where they cannot be counted."""
    name = _call(node)
    module = module_of(traced, node)
    if isinstance(module, CONVS):
        return module.out_channels
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, NORMS):
        return module.num_features
    if name in ("cat", "concat"):
        return sum(count(traced, part) for part in node.all_input_nodes)
    if factor := channel_factor(module):
        return factor * count(traced, node.all_input_nodes[0])
    passes = isinstance(module, (*DROPOUTS, *POOLS)) or _is_empty(node, module)
    if node.all_input_nodes and (passes or name in {*SUMS, *ELEMENT_CALLS, *POOL_CALLS} or _is_mean(node)):
        return count(traced, node.all_input_nodes[0])
    raise RefusedError(f"how many channels {label(node)} gives is not known")


def dims(traced: fx.GraphModule, node: fx.Node) -> frozenset[int]:
    """Return the dimensions along which a node's channels stand: 1, -1 behind a linear layer, or both, of two."""
    linear = False
    for other in ancestors(node):
        module = module_of(traced, other)
        if _is_flatten(other, module) or _is_mean(other) or isinstance(module, nn.BatchNorm1d):
            return frozenset({1, -1})
        linear = linear or isinstance(module, nn.Linear)
        passes = isinstance(module, (nn.Linear, *DROPOUTS)) or channel_factor(module) or _is_empty(other, module)
        if not (passes or _call(other) in ELEMENT_CALLS):
            break
    return frozenset({-1 if linear else 1})


def producer(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the layer whose filters an activation reads, through batch norm, pools and dropout.

    RefusedError where others read them too, or where no layer gives them alone.
    """
    reader = node
    for source in ancestors(node.all_input_nodes[0]):
        module = module_of(traced, source)
        others = [user for user in source.users if user is not reader]
        if others:
            raise RefusedError(f"{label(others[0])} reads the channels of {label(source)} too")
        reader = source
        if isinstance(module, LAYERS):
            _check_layer(traced, source, module)
            return source
        if isinstance(module, (*NORMS, nn.PReLU)):
            _check_layer(traced, source, module)
        elif not isinstance(module, (*DROPOUTS, *POOLS)) and channel_factor(module) != 1:
            raise RefusedError(f"its channels come from {label(source)}, which has no filters to scale")
    raise RefusedError("no layer with filters stands in front")


def give(traced: fx.GraphModule, start: fx.Node, end: fx.Node, layout: Layout, edits: Edits) -> None:
    """Note that the layer `start` gives channels of this layout, as all up to the activation `end` then has."""
    edits.gives[start] = layout
    for node in ancestors(end.all_input_nodes[0]):
        if node is start:
            break
        if isinstance(module_of(traced, node), (*NORMS, nn.PReLU)):
            edits.scales[node] = layout


def follow(traced: fx.GraphModule, start: fx.Node, layout: Layout, before: int, edits: Edits) -> None:
    """Note what changes where the activation `start` gives channels of this layout in place of `before` channels.

    RefusedError names the layer that cannot take them.
    """
    flows = {start: _Flow(layout, before, dims(traced, start))}
    for node in traced.graph.nodes:
        if node is not start and any(part in flows for part in node.all_input_nodes):
            flow = _through(traced, node, flows, edits)
            if flow is not None:
                flows[node] = flow


def _through(traced: fx.GraphModule, node: fx.Node, flows: dict[fx.Node, _Flow], edits: Edits) -> _Flow | None:
    """Return how the channels go on behind `node`; None where a layer reads them. Notes what changes there."""
    name = _call(node)
    module = module_of(traced, node)
    flow = next(flows[part] for part in node.all_input_nodes if part in flows)
    if node.op == "output":
        raise RefusedError("its channels are the output of the net")
    if isinstance(module, LAYERS):
        _check_layer(traced, node, module)
        inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        edits.reads[node] = _features(node, flow, inputs, -1 if isinstance(module, nn.Linear) else 1)
        return None
    if isinstance(module, NORMS) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
        _check_layer(traced, node, module)
        features = module.num_features if isinstance(module, NORMS) else module.num_parameters
        layout = _features(node, flow, features, 1)
        edits.scales[node] = layout
        return _Flow(layout, features, flow.dims)
    if channel_factor(module) == 1 or isinstance(module, DROPOUTS) or name in ELEMENT_CALLS or _is_empty(node, module):
        return flow
    if (isinstance(module, POOLS) or name in POOL_CALLS) and 1 in flow.dims and not flow.flat:
        return flow
    if _is_flatten(node, module) and 1 in flow.dims:
        return flow._replace(flat=True, dims=frozenset({1, -1}))
    if _is_mean(node) and 1 in flow.dims and not flow.flat:
        return flow._replace(dims=flow.dims | {-1})
    if _is_batch_size(node):
        return None
    if name in ("cat", "concat"):
        return _joined(traced, node, flows)
    if name in SUMS:
        return _added(node, flows, SUMS[name])
    raise RefusedError(f"its channels reach {label(node)}, {_what(module)}")


def _what(module: nn.Module) -> str:
    """Return why channels cannot pass a module of no known kind."""
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.LocalResponseNorm | nn.RMSNorm):
        return "which normalises over several channels"
    return "which may mix channels"


def _joined(traced: fx.GraphModule, node: fx.Node, flows: dict[fx.Node, _Flow]) -> _Flow:
    """Return the channels of a concatenation that mixes changed and unchanged inputs."""
    parts = cast(Sequence[fx.Node], node.args[0] if node.args else node.kwargs["tensors"])
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    layout: list[int] = []
    before = 0
    ends = frozenset({1, -1})
    for part in parts:
        flow = flows.get(part)
        if flow is None:
            size = count(traced, part)
            flow = _Flow(tuple(range(size)), size, dims(traced, part))
        if flow.flat or dim not in flow.dims:
            raise RefusedError(f"{label(node)} concatenates along another dimension than that of its channels")
        layout += [before + channel if channel >= 0 else ~(before + ~channel) for channel in flow.layout]
        before += flow.before
        ends &= flow.dims
    return _Flow(tuple(layout), before, ends)


def _added(node: fx.Node, flows: dict[fx.Node, _Flow], what: str) -> _Flow:
    """Return the channels of a sum; RefusedError where a summand keeps its channels."""
    summands = [flows.get(part) for part in node.all_input_nodes]
    if any(flow is None or flow != summands[0] for flow in summands):
        raise RefusedError(f"its channels meet {what} at {label(node)}, whose other part keeps its channels")
    return cast(_Flow, summands[0])


def _features(node: fx.Node, flow: _Flow, features: int, dim: int) -> Layout:
    """Return the layout of the features that a layer takes, each channel flattened to several where it is."""
    each, rest = divmod(features, flow.before)
    if dim not in flow.dims or rest or (each > 1 and not flow.flat):
        raise RefusedError(f"its channels reach {label(node)}, which reads along another dimension")
    return tuple(
        channel * each + i if channel >= 0 else ~(~channel * each + i) for channel in flow.layout for i in range(each)
    )


def _check_layer(traced: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Raise RefusedError where a layer cannot be resized: it has groups, another forward pass, or other users."""
    name = label(node)
    if isinstance(module, CONVS) and module.groups > 1:
        raise RefusedError(f"{name} is a grouped convolution, of {module.groups} groups")
    kind = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules"))
    if getattr(type(module), "forward", None) is not getattr(kind, "forward", None):
        raise RefusedError(f"{name} is a {type(module).__name__}, whose forward pass is not that of {kind.__name__}")
    calls = [other for other in traced.graph.nodes if module_of(traced, other) is module]
    if len(calls) > 1:
        raise RefusedError(f"{name} is called {len(calls)} times with the same weights")
    for parameter in ("weight", "bias"):
        value = getattr(module, parameter, None)
        if isinstance(value, nn.UninitializedParameter):
            raise RefusedError(f"{name} has no weights before its first batch")
        if value is not None and parameter not in module._parameters:
            raise RefusedError(f"the {parameter} of {name} is computed and no parameter")
    if any(_shares(module, other) for path, other in traced.named_modules() if path != node.target):
        raise RefusedError(f"{name} shares a parameter with another layer")


def _shares(module: nn.Module, other: nn.Module) -> bool:
    """Return whether another module has one of this module's own parameters."""
    parameters: list[Tensor] = [value for value in module._parameters.values() if value is not None]
    return any(value is mine for value in other._parameters.values() for mine in parameters)


def _call(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, without the underscore of one in place."""
    name = called(node).rstrip("_")
    return {"iadd": "add", "imul": "mul", "isub": "sub"}.get(name, name)


def _is_empty(node: fx.Node, module: nn.Module) -> bool:
    """Return whether a module does nothing: an identity, or a sequence without members."""
    return node.op == "call_module" and type(module) in (nn.Identity, nn.Sequential)


def _argument(node: fx.Node, place: int, name: str, default: object) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _is_flatten(node: fx.Node, module: nn.Module) -> bool:
    """Return whether a node flattens everything from dim 1 on."""
    if isinstance(module, nn.Flatten):
        return bool((module.start_dim, module.end_dim) == (1, -1))
    name = _call(node)
    if name == "flatten":
        return bool((_argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)) == (1, -1))
    if name not in ("view", "reshape"):
        return False
    shape = list(_sizes(node))
    return len(shape) == 2 and shape[1] == -1 and isinstance(shape[0], fx.Node) and _is_batch_size(shape[0])


def _sizes(node: fx.Node) -> Iterator[object]:
    for value in node.args[1:]:
        yield from value if isinstance(value, list | tuple) else [value]


def _is_mean(node: fx.Node) -> bool:
    """Return whether a node averages over the positions of a map, and not over its channels."""
    over = _argument(node, 1, "dim", ())
    return _call(node) == "mean" and isinstance(over, list | tuple) and set(over) in ({2, 3}, {-1, -2})


def _is_batch_size(node: fx.Node) -> bool:
    """Return whether a node asks for the number of pictures, as x.size(0) or x.shape[0], or for a shape on that way."""
    if _call(node) == "size":
        return bool(_argument(node, 1, "dim", None) == 0)
    if node.target is getattr:
        return bool(node.args[1] == "shape") and all(_is_batch_size(user) for user in node.users)
    return node.target is operator.getitem and bool(node.args[1] == 0) and _is_shape(node.args[0])


def _is_shape(value: object) -> bool:
    return isinstance(value, fx.Node) and value.target is getattr and bool(value.args[1] == "shape")


def changed_in_place(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the first node that reads the input of an activation after that changed it in place; None without one."""
    if not getattr(module_of(traced, node), "inplace", False):
        return None
    order = {other: place for place, other in enumerate(traced.graph.nodes)}
    later = [user for user in node.all_input_nodes[0].users if order[user] > order[node]]
    return min(later, key=order.__getitem__, default=None)
