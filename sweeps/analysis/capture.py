"""The inputs of a net's layers, captured in its forward pass by the paper's layer names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crelu_models.spec import CHANNEL_FACTOR, Conv, Net

# Numbers that one batch may capture; computing on them takes a few times their memory.
CAPTURED = 2**25


def capture(model: nn.Sequential, names: Sequence[str], pictures: Tensor) -> dict[str, Tensor]:
    """Return the inputs of the modules `names` of a built net when it sees `pictures` (n, 3, h, w).

    The input of "conv1_act" is conv1's pre-activations (n, k, h, w), batch norm included; that of "conv2" is the output
    of the rows before it. The pass ends at the last of them. ValueError for a module that the net lacks.
    """
    places = {name: place for place, (name, _) in enumerate(model.named_children())}
    if wrong := [name for name in names if name not in places]:
        raise ValueError(f"the net has no module {wrong[0]!r}; there are {', '.join(places)}")
    assert not model.training, "analyses see a net as it is used: no dropout, batch norm at rest"
    captured: dict[str, Tensor] = {}
    *before, last = sorted(names, key=places.__getitem__)
    hooks = []
    for name in before:

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            captured[name] = inputs[0]

        hooks.append(model.get_submodule(name).register_forward_pre_hook(keep))
    try:
        with torch.inference_mode():
            captured[last] = model[: places[last]](pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return captured


def response(pre_activation: Tensor, act: str) -> Tensor:
    """Return how strongly filters fire, at least 0: |z| where the activation keeps both phases, else max(z, 0).

    The conjunction of both phases of CReLU is |z|, what AVR gives: section 4.2 of the paper compares these.
    """
    both = act == "avr" or CHANNEL_FACTOR[act] == 2
    return pre_activation.abs() if both else pre_activation.relu()


def batch_size(net: Net, layers: Sequence[str], size: int, most: int = 250) -> int:
    """Return how many pictures of this side to pass at once, so that `layers` capture at most CAPTURED numbers."""
    placed = {layer.row.name: layer for layer in net.layers(1, size)}
    numbers = sum(placed[name].filters * placed[name].side ** 2 for name in layers)
    return max(1, min(most, CAPTURED // max(1, numbers)))


def hidden(net: Net) -> list[Conv]:
    """Return the convs with an activation behind them, in order."""
    return [row for row in net.rows if isinstance(row, Conv) and row.act != "none" and row.filters is not None]


def side_read(net: Net, layer: str, size: int) -> int:
    """Return the side of the map that a conv reads when pictures have side `size`."""
    side = size
    for placed in net.layers(1, size):
        if placed.row.name == layer:
            return side
        side = placed.side
    raise ValueError(f"{net.name} has no layer {layer!r}")
