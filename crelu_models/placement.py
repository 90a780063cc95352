"""CReLU and other activations in a net of any library, at places that globs name.

    net = place(torchvision.models.resnet18(), "crelu", "layer1.*.relu", width=0.5)

The layers that read such an activation are resized, and by `width` the one in front of it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from crelu_models.activations import KINDS, activation
from crelu_models.channels import (
    TRANSPOSED,
    Edits,
    Layout,
    RefusedError,
    changed_in_place,
    count,
    dims,
    follow,
    give,
    producer,
)
from crelu_models.named import error_text, load_named
from crelu_models.spec import ALIASES, CHANNEL_FACTOR
from crelu_models.tracing import FUNCTIONS, LastDim, activations, channel_factor, label, module_of, trace

SHOWN = 12  # places that an error names
PART = 1 << 20  # weights drawn at once
PROBE = 8  # channels on which an activation of the user is tried


class PlacementOption(NamedTuple):
    """Call of an activation in a net: its name, what stands there now, its channels (0: not known).

    `doubles` is empty where twice the channels can go on from there, else it says why not. `thins` is the layer whose
    filters a width scales, empty where there is none; then `keeps` says why. `shape` is that of its map, if asked for.
    """

    name: str
    activation: str
    channels: int
    doubles: str
    thins: str
    keeps: str
    shape: tuple[int, ...] = ()


class _Kind(NamedTuple):
    """Activation to be placed: its constructor, given its channels; its factor, 0 if unknown; if it needs them."""

    name: str
    make: Callable[[int], nn.Module]
    factor: int
    counts: bool


def place(module: nn.Module, kind: str, *globs: str, width: float = 1.0) -> fx.GraphModule:
    """Return a copy of `module` with the activation `kind` at every place that a glob names.

    `kind` is a name that `Net.activation` takes, an elementwise activation of torch.nn such as "mish" or "relu6", or
    "module:Class" of your own. `width` scales the filters of the layer in front of each place; a thinned layer keeps
    its first filters. The layers that read the place are resized, through batch norm, pools, dropout, flattening and
    concatenations along the channels.

    The weights of new inputs and filters are drawn out of the layer's own weights, by torch's generator, and so have
    their distribution. Batch norm treats a new channel as the one beside which it is new. Where the weights of all new
    inputs are zero, a net with CReLU in place of ReLU computes what it did before, but for the order of its sums.

    ValueError where torch.fx cannot follow the net, a glob names no place, or the channels cannot go on from one.
    """
    chosen = _kind(kind)
    if not globs:
        raise ValueError(f"say where {kind} is to stand, e.g. by the glob 'features.*'")
    if not 0 < width < math.inf:
        raise ValueError(f"a width is a finite factor above 0, such as 0.5, not {width!r}")
    traced = trace(module)
    for name, node in _named(traced, globs).items():
        try:
            _put(traced, node, chosen, width)
        except RefusedError as error:
            factor = chosen.factor or 2
            calls = activations(traced).items()
            possible = [other for other, call in calls if not _refusal(traced, call, factor, width)]
            what = kind if width == 1 else f"{kind} of width {width:g}"
            where = f"at {_listed(possible)}" if possible else "nowhere in this net"
            raise ValueError(
                f"{what} cannot stand at {name} of {type(module).__name__}: {error}; it can stand {where}"
            ) from None
    traced.graph.lint()
    traced.recompile()
    return traced


def places(module: nn.Module, size: int | None = None) -> list[PlacementOption]:
    """Return every call of an activation in a net, in the order of its forward pass, with what can stand there.

    With a `size` the net is run on a picture (1, 3, size, size). ValueError where torch.fx cannot follow the net, or it
    does not take that picture.
    """
    traced = trace(module)
    shapes = _shapes(traced, size) if size is not None else {}
    rows = []
    for name, node in activations(traced).items():
        try:
            channels = count(traced, node)
        except RefusedError:
            channels = 0
        doubles = _refusal(traced, node, 2, 1.0)
        keeps = _refusal(traced, node, channel_factor(module_of(traced, node)), 0.5)
        thins = "" if keeps else label(producer(traced, node))
        present = type(module_of(traced, node)).__name__
        rows.append(PlacementOption(name, present, channels, doubles, thins, keeps, shapes.get(node, ())))
    return rows


def _shapes(traced: fx.GraphModule, size: int) -> dict[fx.Node, tuple[int, ...]]:
    """Return the size of each activation's map, for a picture of this size; ValueError where the net takes none."""
    if size < 1:
        raise ValueError(f"a picture has a side of at least 1, not {size}")
    nodes = activations(traced)
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    hooks = [
        module_of(traced, node).register_forward_hook(
            lambda _module, _inputs, output, node=node: shapes.__setitem__(node, tuple(output.shape[2:]))
        )
        for node in nodes.values()
    ]
    meta = traced.eval().to("meta")
    try:
        with torch.no_grad():
            meta(torch.empty(1, 3, size, size, device="meta"))
    except Exception as error:  # the net's own code runs here
        raise ValueError(f"{type(traced).__name__} takes no picture of side {size}: {error_text(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _kind(kind: str) -> _Kind:
    """Return an activation by its name or its "module:Class"; ValueError for a name that is none."""
    name = ALIASES.get(kind, kind)
    if name in KINDS:
        return _Kind(kind, lambda channels: activation(name, channels), CHANNEL_FACTOR[name], name == "prelu")
    if kind in FUNCTIONS:
        return _Kind(kind, lambda _: FUNCTIONS[kind](), 1, False)
    if ":" not in kind:
        known = ", ".join(dict.fromkeys([*KINDS, *ALIASES, *FUNCTIONS]))
        raise ValueError(f"unknown activation {kind!r}; use one of {known}, or module:Class of your own")
    make = load_named(kind)
    parameters = inspect.signature(make).parameters.values()
    collects = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each for each in parameters if each.default is each.empty and each.kind not in collects]
    if len(needed) > 1:
        raise ValueError(f"{kind} takes no argument, or the number of channels, not {', '.join(map(str, needed))}")
    return _Kind(kind, make if needed else lambda _: make(), 0, bool(needed))


def _named(traced: fx.GraphModule, globs: Sequence[str]) -> dict[str, fx.Node]:
    """Return the places that the globs name, by name; ValueError where one names none."""
    known = activations(traced)
    nodes: dict[str, fx.Node] = {}
    for glob in globs:
        named = {name: node for name, node in known.items() if fnmatchcase(name, glob)}
        if not named:
            choices = _listed([*known]) or "none"
            raise ValueError(f"no activation of {type(traced).__name__} is named {glob!r}; there are {choices}")
        nodes |= named
    order = {node: number for number, node in enumerate(traced.graph.nodes)}
    return dict(sorted(nodes.items(), key=lambda item: order[item[1]]))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _refusal(traced: fx.GraphModule, node: fx.Node, factor: int, width: float) -> str:
    """Return why an activation of this factor cannot stand at a place; empty where it can."""
    try:
        _plan(traced, node, factor, width)
    except RefusedError as error:
        return str(error)
    return ""


def _plan(traced: fx.GraphModule, node: fx.Node, factor: int, width: float) -> Edits:
    """Return the changes of layers that an activation of this factor and this width need; RefusedError for none."""
    edits = Edits({}, {}, {})
    reader = changed_in_place(traced, node)
    if reader is not None:
        raise RefusedError(
            f"it changes its input in place, and {label(reader)} reads that: build it with inplace=False"
        )
    present = channel_factor(module_of(traced, node))
    if factor == present and width == 1:
        return edits
    inputs = count(traced, node.all_input_nodes[0])
    filters: Layout = tuple(range(inputs))
    if width != 1:
        start = producer(traced, node)
        scaled = int(inputs * width + 0.5)
        if scaled < 1:
            raise RefusedError(f"it leaves no filter of the {inputs} at {label(start)}")
        filters = tuple(number if number < inputs else ~(number % inputs) for number in range(scaled))
        give(traced, start, node, filters, edits)
    layout = tuple(
        _phase(channel, inputs, phase, phase < present) for phase in range(factor) for channel in filters
    )  # fmt: skip
    follow(traced, node, layout, present * inputs, edits)
    return edits


def _phase(channel: int, inputs: int, phase: int, old: bool) -> int:
    """Return the entry of a layout for a phase of a channel: that of the old activation, or new beside the channel."""
    if channel < 0:
        return ~(~channel + phase * inputs) if old else channel
    return channel + phase * inputs if old else ~channel


def _put(traced: fx.GraphModule, node: fx.Node, kind: _Kind, width: float) -> None:
    """Place an activation and resize the layers around it; RefusedError, with nothing changed, where it cannot."""
    inputs = count(traced, node.all_input_nodes[0]) if kind.counts or width != 1 else PROBE
    channels = max(1, int(inputs * width + 0.5))
    module = kind.make(channels)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{kind.name} makes a {type(module).__name__}, and no torch.nn.Module")
    along = dims(traced, node)
    factor = kind.factor or _tried(module, kind.name, channels, 1 in along)
    edits = _plan(traced, node, factor, width)
    if 1 not in along and (factor > 1 or kind.counts or not kind.factor):
        module = LastDim(module)
    weights = next(traced.parameters(), torch.empty(0))
    module = module.to(weights.device, weights.dtype).train(module_of(traced, node).training)
    module.channel_factor = factor  # type: ignore[assignment]
    for other, layout in edits.gives.items():
        _give(module_of(traced, other), layout)
    for other, layout in edits.scales.items():
        _scale(module_of(traced, other), layout)
    for other, layout in edits.reads.items():
        _read(module_of(traced, other), layout)
    traced.set_submodule(str(node.target), module)


def _tried(module: nn.Module, name: str, channels: int, maps: bool) -> int:
    """Return how many channels an activation of the user gives for each; ValueError where that is no whole number."""
    x = torch.randn((2, channels, 3, 3) if maps else (2, channels), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            shape = module(x).shape
    except Exception as error:  # the user's code runs here
        raise ValueError(f"{name} fails on a tensor of shape {tuple(x.shape)}: {error}") from error
    factor, rest = divmod(shape[1] if len(shape) > 1 else 0, channels)
    if rest or not factor or (shape[0], *shape[2:]) != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"{name} gives {tuple(shape)} for a tensor of shape {tuple(x.shape)}; an activation keeps all but dim 1, "
            "and gives there the same number of channels or a multiple"
        )
    return factor


# Layers of another size.


def _give(layer: nn.Module, layout: Layout) -> None:
    """Give a layer the filters of a layout."""
    assert isinstance(layer.weight, Tensor)
    layer.weight = _resized(layer.weight, 1 if isinstance(layer, TRANSPOSED) else 0, layout)
    if isinstance(layer.bias, Tensor):
        layer.bias = _resized(layer.bias, 0, layout)
    _count(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(layout))


def _read(layer: nn.Module, layout: Layout) -> None:
    """Let a layer read the channels of a layout."""
    assert isinstance(layer.weight, Tensor)
    layer.weight = _resized(layer.weight, 0 if isinstance(layer, TRANSPOSED) else 1, layout)
    _count(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(layout))


def _scale(layer: nn.Module, layout: Layout) -> None:
    """Give a norm, or a PReLU, the numbers per channel of a layout: a new channel has those of the one beside it."""
    index = torch.tensor([channel if channel >= 0 else ~channel for channel in layout])
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.dim():
            rows = value.detach().index_select(0, index.to(value.device))
            setattr(layer, name, nn.Parameter(rows, value.requires_grad) if isinstance(value, nn.Parameter) else rows)
    _count(layer, "num_parameters" if isinstance(layer, nn.PReLU) else "num_features", len(layout))


def _count(layer: nn.Module, name: str, number: int) -> None:
    setattr(layer, name, number)


def _resized(weight: Tensor, dim: int, layout: Layout) -> nn.Parameter:
    """Return weights along `dim` by a layout: the old ones, and for what is new draws out of all of them."""
    index = torch.tensor([max(channel, 0) for channel in layout], device=weight.device)
    rows = weight.detach().index_select(dim, index)
    new = torch.tensor([number for number, channel in enumerate(layout) if channel < 0], dtype=torch.long)
    if len(new):
        drawn = rows.index_select(dim, new.to(rows.device))
        known = weight.detach().flatten()
        for part in torch.split(drawn.view(-1), PART):
            part.copy_(known[torch.randint(len(known), part.shape).to(part.device)])
        rows.index_copy_(dim, new.to(rows.device), drawn)
    return nn.Parameter(rows, weight.requires_grad)
