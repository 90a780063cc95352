"""What a layer of a net reads, taken during the net's own forward pass by the paper's layer names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crelu_models.spec import CHANNEL_FACTOR, Conv, Net

# Numbers that one batch may capture; with what computing on them needs, a few times as many are in memory.
CAPTURED = 2**25


def capture(model: nn.Sequential, names: Sequence[str], pictures: Tensor) -> dict[str, Tensor]:
    """Return what the modules `names` of a built net read when it sees `pictures` (n, 3, h, w).

    "conv1_act" reads the pre-activations of conv1 (n, k, h, w), batch norm included; "conv2" reads what the rows
    before it give. The pass ends at the last of them. ValueError for a module that the net has not.
    """
    places = {name: place for place, (name, _) in enumerate(model.named_children())}
    if wrong := [name for name in names if name not in places]:
        raise ValueError(f"the net has no module {wrong[0]!r}; there are {', '.join(places)}")
    assert not model.training, "analyses see a net as it is used: no dropout, batch norm at rest"
    found: dict[str, Tensor] = {}
    *before, last = sorted(names, key=places.__getitem__)
    hooks = []
    for name in before:

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            found[name] = inputs[0]

        hooks.append(model.get_submodule(name).register_forward_pre_hook(keep))
    try:
        with torch.inference_mode():
            found[last] = model[: places[last]](pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def response(pre_activation: Tensor, act: str) -> Tensor:
    """Return how strongly filters fire, at least 0: |z| where the activation keeps both phases, else max(z, 0).

    The conjunction of both phases of CReLU is |z|, what AVR gives: section 4.2 of the paper compares these.
    """
    both = act == "avr" or CHANNEL_FACTOR[act] == 2
    return pre_activation.abs() if both else pre_activation.relu()


def batch_size(net: Net, layers: Sequence[str], size: int, most: int = 250) -> int:
    """Return how many pictures of this side to take at once, so that captured `layers` keep to CAPTURED numbers."""
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
