"""CReLU, absolute value rectification, and the other activations a grid may ask for; all along the channels, dim 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from crelu_models.spec import ALIASES

_where_positive = torch.ops.aten.threshold_backward  # the kernel of ReLU's own gradient: g where y > 0, else 0
# On the CPU a tensor is gone through in parts of PART bytes, which the caches hold beside what is made of them. One of
# less than SMALL bytes takes a plain form, which is faster there: a function of our own costs 30 us a call.
PART, SMALL = 2 << 20, 1 << 20
# Of more elements than these a compiled loop, for one thread, is faster even so.
LEAST = 1 << 15
# Elements of x of which torch takes each half by one thread and the whole by several; waking them costs more than this.
HALVES = range((1 << 14) + 1, (1 << 15) + 1)


@cache
def _loops() -> Any:
    """Return the compiled loops; None without Numba."""
    try:
        from crelu_models import kernels
    except ImportError:
        return None
    return kernels


def _compiled(x: Tensor, dim: int, least: int = 0) -> int:
    """Return as how many rows the compiled loops take x, where it has more than so many elements; 0: they do not."""
    if x.device.type != "cpu" or x.numel() <= least or torch.get_num_threads() > 1:
        return 0
    form = _format(x)
    if torch.compiler.is_compiling() or _mapped(x) or not x.is_contiguous(memory_format=form):
        return 0
    # In memory all channels of a place come together, or all places of a channel.
    rows = math.prod(x.shape[:dim]) if form != torch.channels_last else x.numel() // x.shape[1] if dim == 1 else 0
    return rows if rows and _loops() is not None and _loops().take(x, rows) else 0


class _CReLU(torch.autograd.Function):
    """cat[max(x, 0), max(-x, 0)] that keeps its output alone, which the next conv keeps anyway."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        """Write both halves into one new tensor, channels last where x is."""
        form = _format(x)
        y, rows = _empty(x, dim, 2 * x.shape[dim], form), _compiled(x, dim)
        if rows and _loops().crelu(x, y, rows):
            return y
        for part, made in _parts(x, y):
            if form == torch.channels_last:
                # Halves of a row of channels are short: operations on whole rows are up to 5 times faster.
                torch.cat([part, part.neg()], dim, out=made).relu_()
            else:
                up, down = made.chunk(2, dim)
                torch.clamp_min(part, 0, out=up)
                torch.neg(part, out=down).clamp_min_(0)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        """Keep the output: its halves say where x was above and below zero."""
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient by x: that of the output where x > 0, its negative where x < 0, and 0 at 0."""
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled() or _mapped(gradient):
            # To be differentiated in its turn, or mapped: nothing may be written in place.
            up, down = _where_positive(gradient, y, 0).chunk(2, ctx.dim)
            return up - down, None
        return _gradient(gradient, y, ctx.dim), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, dim: int) -> tuple[Tensor, int]:
        """Take the mapped dimension for one more in front."""
        return _CReLU.apply(x.movedim(in_dims[0], 0), dim + 1), 0


def _gradient(gradient: Tensor, y: Tensor, dim: int) -> Tensor:
    """Return the gradient by x from that by y = CReLU(x): in one new tensor, channels last where y is."""
    form = _format(y)
    by_x = _empty(y, dim, y.shape[dim] // 2, form)
    rows = _compiled(y, dim)
    if rows and _loops().take(by_x, rows):
        gradient = gradient.contiguous(memory_format=form)
        if _loops().crelu_gradient(gradient, y, by_x, rows):
            return by_x
    for part, given, made in _parts(by_x, gradient, y):
        if form == torch.channels_last:
            torch.sub(*_where_positive(given, made, 0).chunk(2, dim), out=part)
        else:
            (up, down), (positive, negative) = given.chunk(2, dim), made.chunk(2, dim)
            _where_positive.grad_input(up, positive, 0, grad_input=part)
            part.sub_(_where_positive(down, negative, 0))
    return by_x


def crelu(x: Tensor) -> Tensor:
    """Return cat[max(x, 0), max(-x, 0)] for x (n, k, ...): (n, 2k, ...), the positive phase first.

    Equal to that definition bit for bit in value and gradient, which is 0 at 0; keeps only its output for the backward
    pass (both halves beside it around 100 KB); channels last in, channels last out. Shang et al. 2016, Definition 2.1.
    """
    small = x.device.type == "cpu" and x.numel() * x.element_size() < SMALL
    # One channel is in both layouts at once, of which cat would take the plain one.
    if torch.compiler.is_compiling() or (small and x.shape[1] != 1 and not _compiled(x, 1, LEAST)):
        if not torch.compiler.is_compiling() and x.numel() in HALVES and torch.get_num_threads() > 1:
            return torch.cat([x.relu(), x.neg().relu_()], 1)
        return torch.cat([x, x.neg()], 1).relu_()
    y: Tensor = _CReLU.apply(x, 1)
    return y


class CReLU(nn.Module):
    """Concatenated ReLU: (n, k, ...) to (n, 2k, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive and the negative phase of x."""
        return crelu(x)


class AVR(nn.Module):
    """Absolute value rectification: |x|, with gradient 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Return |x|, of the shape of x."""
        return x.abs()


class Both(nn.Module):
    """cat[f(x), f(-x)] of another activation f: (n, k, ...) to (n, 2k, ...)."""

    def __init__(self, inner: nn.Module) -> None:
        """Take the activation f."""
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return f of x and f of -x."""
        return torch.cat([self.inner(x), self.inner(-x)], 1)


class Antirectifier(nn.Module):
    """CReLU of x less its mean over the channels (Keras' example, without its learned mixing: the next conv mixes)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return both phases of the centred x: (n, k, ...) to (n, 2k, ...)."""
        return crelu(x - x.mean(1, keepdim=True))


def activation(name: str, channels: int) -> nn.Module:
    """Return the activation `name` for `channels` inputs; ValueError for a name not in CHANNEL_FACTOR."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "crelu": CReLU,
        "avr": AVR,
        "none": nn.Identity,
        "leaky_100": lambda: nn.LeakyReLU(1 / 100),
        "leaky_3": lambda: nn.LeakyReLU(1 / 3),
        "leaky_5.5": lambda: nn.LeakyReLU(1 / 5.5),
        "prelu": lambda: nn.PReLU(channels, init=0.25),
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "crelu_leaky": lambda: Both(nn.LeakyReLU(1 / 100)),
        "concat_elu": lambda: Both(nn.ELU()),
        "antirectifier": Antirectifier,
    }
    kind = kinds.get(ALIASES.get(name, name))
    if kind is None:
        raise ValueError(f"no activation {name!r}; there are {', '.join([*kinds, *ALIASES])}")
    return kind()


def _mapped(x: Tensor) -> bool:
    """Return whether x stands for many: under vmap, or in autograd.grad(is_grads_batched=True)."""
    inside = torch._C._functorch
    return bool(inside.is_functorch_wrapped_tensor(x) or inside.is_legacy_batchedtensor(x))


def _format(x: Tensor) -> torch.memory_format:
    """Return the layout of x: channels last, or plain."""
    last = x.dim() == 4 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _empty(x: Tensor, dim: int, channels: int, form: torch.memory_format) -> Tensor:
    """Return a new tensor in the layout `form`, like x but for its `channels` along `dim`."""
    shape = (*x.shape[:dim], channels, *x.shape[dim + 1 :])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)


def _parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield what stays in the cache at once: a few pictures of x, and the same of the others; all of them on a GPU."""
    if x.device.type != "cpu":
        return iter([(x, *others)])
    count = max(1, -(-x.numel() * x.element_size() // PART))
    return zip(*(each.tensor_split(min(count, max(1, len(x)))) for each in (x, *others)), strict=True)
