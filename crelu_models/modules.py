"""Modules of a net under the paper's layer names; initial weights and dropout, each from its own keyed stream."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from crelu_models.activations import activation
from crelu_models.chain import Chain
from crelu_models.spec import CHANNEL_FACTOR, Conv, Drop, Linear, Net, Pool, seed_from

STEPS = 1 << 16  # resolution of a dropout rate on a CPU
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


class Dropout(nn.Module):
    """Elementwise dropout with its own random stream; surviving elements are scaled by 1 / (1 - rate).

    The stream is `generator`, created on the device of the first training batch; `seed` sets it. On one device, equal
    seeds give equal masks for tensors of equal shape and layout; rows of a batch get their rows of its mask. A CPU
    rounds the rate to the nearest 65,536th, in scaling too. In evaluation mode it is the identity.
    """

    def __init__(self, rate: float, name: str) -> None:
        """Drop elements with probability `rate`; the name of the layer in front, `name`, is part of the seeds."""
        super().__init__()
        self.rate = rate
        self.name = name
        self.generator: torch.Generator | None = None
        self.number: int | None = None  # among the layers of a net that is compiled
        self._seed = seed_from("dropout", name)
        self._first, self._batch, self._pictures = 0, 0, 0

    def seed(self, value: int, first: int = 0, batch: int = 0, pictures: int = 0) -> None:
        """Restart the stream at a 63-bit seed; the next rows are those from `first` of a batch of `batch` (0: all).

        A picture may have several rows: `pictures` counts the pictures (0: one row each).
        """
        self._seed = value
        self._first, self._batch, self._pictures = first, batch, pictures
        if self.generator is not None:
            self.generator.manual_seed(value)

    def forward(self, x: Tensor) -> Tensor:
        """Return x; in training each element is either scaled up or 0."""
        if not self.training:
            return x
        if self.number is not None and torch.compiler.is_compiling():
            mask, rate = torch.ops.crelu_models.mask(x.detach(), self.number), self._share(x.device)
        else:
            mask, rate = self.mask(x)
        # A mask of the type of x: on the CPU a product is several times faster than masked_fill.
        kept: Tensor = x * mask * (1 / (1 - rate))
        return kept

    def mask(self, x: Tensor) -> tuple[Tensor, float]:
        """Return the stream's next mask of 1s and 0s in the shape and layout of x, and the expected share of 0s."""
        if self.generator is None or self.generator.device != x.device:
            self.generator = torch.Generator(x.device)
            self.generator.manual_seed(self._seed)
        fits = bool(self._pictures) and len(x) % self._pictures == 0
        rows = len(x) // self._pictures if fits else 1  # of a picture
        mask = self._empty_mask(x, self._batch * rows)
        self._draw(mask)
        if len(mask) > len(x):
            mask = mask[self._first * rows : self._first * rows + len(x)].clone()
        return mask, self._share(x.device)

    def _draw(self, mask: Tensor) -> None:
        """Fill a mask with the stream's next 1s and 0s."""
        if mask.device.type != "cpu":
            mask.bernoulli_(1 - self.rate, generator=self.generator)
            return
        # A 64-bit word of random bits serves four elements: a tenth of the cost of four draws.
        words = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64)
        bits = words.random_(-(1 << 63), None, generator=self.generator).view(torch.int16)[: mask.numel()]
        torch.ge(bits, self._zeros - STEPS // 2, out=mask.as_strided(bits.shape, (1,)))

    @property
    def _zeros(self) -> int:
        """Return how many of all numbers of 16 bits stand for a 0 on a CPU."""
        return min(round(self.rate * STEPS), STEPS - 1)

    def _share(self, device: torch.device) -> float:
        """Return the expected share of 0s in a mask on a device."""
        return self.rate if device.type != "cpu" else self._zeros / STEPS

    @staticmethod
    def _empty_mask(x: Tensor, batch: int) -> Tensor:
        """Return an empty mask for the full batch, in the layout of x; x holds rows of that batch."""
        if batch <= len(x):
            return torch.empty_like(x)
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)

    def extra_repr(self) -> str:
        """Return the rate and the layer."""
        return f"{self.rate}, {self.name!r}"


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


def seed_dropout(
    module: nn.Module, seed: int, epoch: int, step: int, first: int = 0, batch: int = 0, pictures: int = 0
) -> None:
    """Seed every dropout layer of `module` for one training step, by these numbers and its name alone.

    The next forward pass gets the masks of the rows from `first` of a batch of `batch` rows (0: all rows), which are
    those of so many `pictures`.
    """
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.seed(seed_from("dropout", seed, epoch, step, layer.name), first, batch, pictures)


def dropout_generators(module: nn.Module) -> list[torch.Generator]:
    """Return the generators of the dropout layers that have drawn."""
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    return [layer.generator for layer in layers if layer.generator is not None]


def renew_generators(module: nn.Module) -> None:
    """Give every dropout layer that has drawn a new generator, at its seed."""
    for layer in module.modules():
        if isinstance(layer, Dropout) and layer.generator is not None:
            layer.generator = torch.Generator(layer.generator.device)
            layer.seed(layer._seed, layer._first, layer._batch)


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
