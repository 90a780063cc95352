"""Activations of the paper and of related work, by kind in the table KINDS; all act along the channels, dim 1."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from crelu_models.spec import ALIASES

_where_positive = torch.ops.aten.threshold_backward  # ReLU's gradient: g where y > 0, else 0
# On the CPU a tensor is processed in parts of PART bytes, so that a part and its results fit in the caches.
PART = 2 << 20
# A tensor of less than SMALL bytes takes plain torch operations: a custom autograd function costs 30 us a call.
SMALL = 1 << 20
# Above LEAST elements the compiled loop on one thread is faster than those.
LEAST = 1 << 15
# Triton's kernels run on a CPU too, slowly, to be tested there.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Whether a GPU takes kernels of ours where they are exact and fast; else all is left to torch's operations.
takes_kernels = True
# In this range of elements torch uses one thread for a half and several for both; waking them costs more than it saves.
HALVES = range((1 << 14) + 1, (1 << 15) + 1)


@cache
def _loops() -> Any:
    """Return the module of compiled loops; None without Numba."""
    try:
        from crelu_models import kernels
    except ImportError:
        return None
    return kernels


@cache
def _kernels() -> Any:
    """Return the module that says which kernels a GPU takes; None where Triton is not installed or does not load."""
    try:
        from crelu_models.gpu import choice
    except Exception:  # Triton looks for a compiler and for drivers
        return None
    return choice


def kernels_for(x: Tensor, *others: Tensor) -> Any:
    """Return the module that says which kernels a GPU takes; None where none can be used for these tensors."""
    if not takes_kernels or type(x) is not Tensor or not (x.is_cuda or INTERPRETED) or torch.compiler.is_compiling():
        return None
    forward_mode = forward_ad._current_level >= 0
    return None if forward_mode or any(map(_mapped, (x, *others))) else _kernels()


def _fused(x: Tensor, kind: str) -> Tensor | None:
    """Return the activation of x by a GPU's kernel; None where there is none for it."""
    module = kernels_for(x)
    if module is None:
        return None
    form = layout(x)
    if not module.accepts(x, kind, form):
        return None
    y: Tensor = module.apply(x, kind, form)
    return y


def _compiled(x: Tensor, dim: int, least: int = 0) -> int:
    """Return the number of rows in which the compiled loops take x; 0 where they do not, or up to `least` elements."""
    if x.device.type != "cpu" or x.numel() <= least or torch.get_num_threads() > 1:
        return 0
    form = layout(x)
    if torch.compiler.is_compiling() or _mapped(x) or not x.is_contiguous(memory_format=form):
        return 0
    # A row is contiguous in memory: all channels of one position, or all positions of all channels of one picture.
    if form == torch.channels_last and dim != 1:
        return 0
    rows = x.numel() // x.shape[1] if form == torch.channels_last else math.prod(x.shape[:dim])
    return rows if rows and _loops() is not None and _loops().accepts(x, rows) else 0


class _CReLU(torch.autograd.Function):
    """CReLU, cat[max(x, 0), max(-x, 0)], that saves only its output, which the next conv saves anyway."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        """Write both phases into one new tensor, channels last where x is."""
        form = layout(x)
        y = _empty(x, dim, 2 * x.shape[dim], form)
        rows = _compiled(x, dim)
        if rows and _loops().write_crelu(x, y, rows):
            return y
        for part, result in _parts(x, y):
            if form == torch.channels_last:
                # The phases of one position are short: operations on both at once are up to 5 times faster.
                torch.cat([part, part.neg()], dim, out=result).relu_()
            else:
                up, down = result.chunk(2, dim)
                torch.clamp_min(part, 0, out=up)
                torch.neg(part, out=down).clamp_min_(0)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        """Save the output: its phases show where x was above and below zero."""
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient by x: g of the positive phase where x > 0, -g of the negative where x < 0, 0 at 0."""
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled() or _mapped(gradient):
            # A second derivative or a vmap forbids writing in place.
            up, down = _where_positive(gradient, y, 0).chunk(2, ctx.dim)
            return up - down, None
        return _gradient(gradient, y, ctx.dim), None

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int, None], x: Tensor, dim: int) -> tuple[Tensor, int]:
        """Move the mapped dimension to the front."""
        return _CReLU.apply(x.movedim(in_dims[0], 0), dim + 1), 0


def _gradient(gradient: Tensor, y: Tensor, dim: int) -> Tensor:
    """Return the gradient by x, from the gradient by y = CReLU(x), in a new tensor, channels last where y is."""
    form = layout(y)
    by_x = _empty(y, dim, y.shape[dim] // 2, form)
    rows = _compiled(y, dim)
    if rows and _loops().accepts(by_x, rows):
        gradient = gradient.contiguous(memory_format=form)
        if _loops().write_gradient(gradient, y, by_x, rows):
            return by_x
    for part, by_y, output in _parts(by_x, gradient, y):
        if form == torch.channels_last:
            torch.sub(*_where_positive(by_y, output, 0).chunk(2, dim), out=part)
        else:
            up, down = by_y.chunk(2, dim)
            positive, negative = output.chunk(2, dim)
            _where_positive.grad_input(up, positive, 0, grad_input=part)
            part.sub_(_where_positive(down, negative, 0))
    return by_x


def crelu(x: Tensor) -> Tensor:
    """Return cat[max(x, 0), max(-x, 0)] for x (n, k, ...): (n, 2k, ...), the positive phase first.

    Value and gradient equal this definition bit for bit; the gradient at 0 is 0. It saves only its output for the
    backward pass (around 100 KB also both phases) and preserves channels last. Shang et al. 2016, Definition 2.1.
    """
    fused = _fused(x, "crelu")
    if fused is not None:
        return fused
    small = x.device.type == "cpu" and x.numel() * x.element_size() < SMALL
    # A tensor of one channel has both layouts at once, and cat would choose the plain one.
    if torch.compiler.is_compiling() or (small and x.shape[1] != 1 and not _compiled(x, 1, LEAST)):
        if not torch.compiler.is_compiling() and x.numel() in HALVES and torch.get_num_threads() > 1:
            return torch.cat([x.relu(), x.neg().relu_()], 1)
        return torch.cat([x, x.neg()], 1).relu_()
    y: Tensor = _CReLU.apply(x, 1)
    return y


class CReLU(nn.Module):
    """Concatenated ReLU: (n, k, ...) to (n, 2k, ...)."""

    kind = "crelu"

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive and the negative phase of x."""
        return crelu(x)


class AVR(nn.Module):
    """Absolute value rectification: |x|, with gradient 0 at 0."""

    kind = "avr"

    def forward(self, x: Tensor) -> Tensor:
        """Return |x|, of the shape of x."""
        fused = _fused(x, self.kind)
        return x.abs() if fused is None else fused


class Both(nn.Module):
    """Both phases of another activation f, cat[f(x), f(-x)]: (n, k, ...) to (n, 2k, ...)."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        """Wrap the activation f, by whose `kind` a GPU's kernels know both phases."""
        super().__init__()
        self.inner = inner
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x) and f(-x), side by side."""
        fused = _fused(x, self.kind)
        if fused is not None:
            return fused
        return torch.cat([self.inner(x), self.inner(-x)], 1)


class Antirectifier(nn.Module):
    """CReLU of x minus its mean over the channels (Keras' example; the next conv replaces its learned mixing)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return both phases of the centred x: (n, k, ...) to (n, 2k, ...)."""
        return crelu(x - x.mean(1, keepdim=True))


# Constructors by kind, given the number of channels. One line per kind: `sources` reads only those that a net uses.
KINDS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "crelu": lambda _: CReLU(),
    "avr": lambda _: AVR(),
    "none": lambda _: nn.Identity(),
    "leaky_100": lambda _: nn.LeakyReLU(1 / 100),
    "leaky_3": lambda _: nn.LeakyReLU(1 / 3),
    "leaky_5.5": lambda _: nn.LeakyReLU(1 / 5.5),
    "prelu": lambda channels: nn.PReLU(channels, init=0.25),
    "elu": lambda _: nn.ELU(),
    "gelu": lambda _: nn.GELU(),
    "silu": lambda _: nn.SiLU(),
    "crelu_leaky": lambda _: Both(nn.LeakyReLU(1 / 100), "crelu_leaky"),
    "concat_elu": lambda _: Both(nn.ELU(), "concat_elu"),
    "antirectifier": lambda _: Antirectifier(),
}


def activation(name: str, channels: int) -> nn.Module:
    """Return the activation `name` for `channels` inputs; ValueError for a name not in KINDS."""
    kind = KINDS.get(ALIASES.get(name, name))
    if kind is None:
        raise ValueError(f"unknown activation {name!r}; use one of {', '.join([*KINDS, *ALIASES])}")
    return kind(channels)


def _mapped(x: Tensor) -> bool:
    """Return whether x is a batch under vmap, or under autograd.grad(is_grads_batched=True)."""
    functorch = torch._C._functorch
    return bool(functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x))


def layout(x: Tensor) -> torch.memory_format:
    """Return the layout of x: channels last, or plain."""
    last = x.dim() == 4 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _empty(x: Tensor, dim: int, channels: int, form: torch.memory_format) -> Tensor:
    """Return a new tensor like x, but with `channels` along `dim` and in the layout `form`."""
    shape = (*x.shape[:dim], channels, *x.shape[dim + 1 :])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)


def _parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts that fit in the cache: some pictures of x and the same of the others; on a GPU all at once."""
    if x.device.type != "cpu":
        return iter([(x, *others)])
    count = max(1, -(-x.numel() * x.element_size() // PART))
    return zip(*(each.tensor_split(min(count, max(1, len(x)))) for each in (x, *others)), strict=True)
