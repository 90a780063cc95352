"""Modules of a net under the paper's layer names, and its initial weights, each from its own keyed stream."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from crelu_models.activations import activation
from crelu_models.chain import Chain
from crelu_models.dropout import Dropout
from crelu_models.spec import CHANNEL_FACTOR, Conv, Drop, Linear, Net, Pool, seed_from

INITS = ("he_fan_in", "he_fan_out", "xavier", "torch", "normal_0.01", "looks_linear")
# Mean square of each output channel for an input from N(0, 1). He init divides by that of the layer's inputs, so that
# the signal keeps its size: factor sqrt(2) behind ReLU and CReLU, 1 behind AVR, where sqrt(2) would make it grow.
ENERGY = {
    "relu": 0.5,
    "crelu": 0.5,
    "avr": 1.0,
    "none": 1.0,
    "leaky_100": 0.5 * (1 + 1 / 100**2),
    "leaky_3": 0.5 * (1 + 1 / 3**2),
    "leaky_5.5": 0.5 * (1 + 1 / 5.5**2),
    "prelu": 0.5 * (1 + 0.25**2),
    "elu": 0.6449,
    "gelu": 0.4252,
    "silu": 0.3558,
    "crelu_leaky": 0.5 * (1 + 1 / 100**2),
    "concat_elu": 0.6449,
    "antirectifier": 0.5,
}
PICTURE_ENERGY = 0.5  # He et al. treat the picture as the output of a ReLU
# cifar.torch's batch norm.
BN_EPS, BN_MOMENTUM = 1e-3, 0.1


def build(net: Net, classes: int, size: int | None = None) -> nn.Sequential:
    """Return the net as modules from pictures (n, 3, size, size), by default the paper's size, to scores (n, classes).

    A conv is "conv1", with "conv1_bn" and "conv1_act" behind it; dropout is "drop_input", "drop_conv9", "drop_pool1".
    Only linear layers fix `size`; a pool over all positions takes any map. The weights are torch's defaults until
    `initialise` draws the recipe's. ValueError where `size` is too small for a layer.
    """
    layers = {layer.row.name: layer for layer in net.layers(classes, size)}
    modules: dict[str, nn.Module] = {}
    for row in net.rows:
        if isinstance(row, Drop):
            modules[f"drop_{row.after}"] = Dropout(row.rate, row.after)
        elif isinstance(row, Pool):
            modules[row.name] = _pool(row)
        else:
            layer = layers[row.name]
            inputs, filters = layer.inputs, layer.filters
            if isinstance(row, Conv):
                modules[row.name] = nn.Conv2d(inputs, filters, row.kernel, row.stride, row.pad)
            else:
                modules.setdefault("flatten", nn.Flatten())
                modules[row.name] = nn.Linear(inputs, filters)
            if row.bn:
                norm = nn.BatchNorm2d if isinstance(row, Conv) else nn.BatchNorm1d
                modules[f"{row.name}_bn"] = norm(filters, BN_EPS, BN_MOMENTUM)
            if row.act != "none":
                modules[f"{row.name}_act"] = activation(row.act, filters)
    modules.setdefault("flatten", nn.Flatten())
    return Chain(OrderedDict(modules))


def initialise(module: nn.Module, net: Net, init: str, seed: int) -> None:
    """Draw all weights of a built net; biases are 0, batch norm is the identity, PReLU has slope 0.25.

    Each layer draws on the CPU from its own stream, keyed by seed and layer name. Tensors of equal name and shape thus
    start equal in all nets and on all devices, up to the scale for their inputs. ValueError for an init not in INITS.

    he_fan_in    N(0, 1 / (fan_in * ENERGY)), 2 / fan_in behind ReLU and CReLU (He et al. 2015)
    he_fan_out   N(0, 2 / (k^2 * filters)); linear layers as torch (cifar.torch)
    xavier       U(+-sqrt(3 / fan_in)) (Caffe's)
    torch        U(+-1 / sqrt(fan_in)) (Torch7's and PyTorch's)
    normal_0.01  N(0, 0.01^2) (Krizhevsky et al. 2012)
    looks_linear he_fan_in, but [V, -V] for the two phases, so that a CReLU net starts linear (Balduzzi et al. 2017)
    """
    if init not in INITS:
        raise ValueError(f"unknown initialisation {init!r}; use one of {', '.join(INITS)}")
    parts = dict(module.named_children())
    energy, factor = PICTURE_ENERGY, 1  # of the layer's inputs
    for row in net.rows:
        if isinstance(row, Conv | Linear):
            layer, norm, act = (parts.get(row.name + suffix) for suffix in ("", "_bn", "_act"))
            assert isinstance(layer, nn.Conv2d | nn.Linear), f"the module has no layer {row.name}"
            assert layer.bias is not None
            stream = torch.Generator().manual_seed(seed_from("weights", seed, row.name))
            with torch.no_grad():
                layer.weight.copy_(_weights(layer.weight.shape, init, energy, factor, stream))
                layer.bias.zero_()
                if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                    norm.reset_parameters()
                if isinstance(act, nn.PReLU):
                    act.reset_parameters()
            energy, factor = ENERGY[row.act], CHANNEL_FACTOR[row.act]


def _pool(row: Pool) -> nn.Module:
    """Return the module of a pool row."""
    if not row.kernel:
        return nn.AdaptiveAvgPool2d(1)
    kind = nn.MaxPool2d if row.kind == "max" else nn.AvgPool2d
    return kind(row.kernel, row.stride, row.pad, ceil_mode=row.ceil)


def _weights(shape: torch.Size, init: str, energy: float, factor: int, stream: torch.Generator) -> Tensor:
    """Draw weights (filters, inputs, ...) for inputs of this mean square; `factor` 2 means two phases of each."""
    fan_in = shape[1:].numel()
    fan_out = shape[0] * shape[2:].numel()
    if init in ("xavier", "torch") or (init == "he_fan_out" and len(shape) == 2):
        bound = math.sqrt((3 if init == "xavier" else 1) / fan_in)
        return torch.empty(shape).uniform_(-bound, bound, generator=stream)
    if init == "normal_0.01":
        scale = 0.01
    elif init == "he_fan_out":
        scale = math.sqrt(2 / fan_out)
    else:
        scale = math.sqrt(1 / (energy * fan_in))
    if init == "looks_linear" and factor == 2:
        half = torch.empty((shape[0], shape[1] // 2, *shape[2:])).normal_(0, scale, generator=stream)
        return torch.cat([half, -half], 1)
    return torch.empty(shape).normal_(0, scale, generator=stream)
