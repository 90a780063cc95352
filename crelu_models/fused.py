"""Activations with two phases, and AVR, as single kernels of a GPU, by Triton: each tensor is read or written once.

Values and gradients are those of torch's operations bit for bit, with NaN, infinities and zeros. A GPU takes a kernel
once a sample has shown that there; where a bit differs, or it does not compile, torch's operations are taken. With
TRITON_INTERPRET=1 the kernels run on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton import knobs

jit: Callable[[Any], Any] = triton.jit
INTERPRETED = knobs.runtime.interpret
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
BLOCK = 1024  # elements of a program
SLOPE = 1 / 100  # of the leaky form
DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "crelu": lambda x: torch.cat([torch.relu(x), torch.relu(-x)], 1),
    "crelu_leaky": lambda x: torch.cat([functional.leaky_relu(x, SLOPE), functional.leaky_relu(-x, SLOPE)], 1),
    "concat_elu": lambda x: torch.cat([functional.elu(x), functional.elu(-x)], 1),
    "avr": torch.abs,
}
# Kinds whose gradient is that at the input; the others save only their output, which the next conv saves anyway.
BY_INPUT = ("concat_elu", "avr")

if INTERPRETED:

    @jit
    def _exp(v):  # type: ignore[no-untyped-def]
        return tl.exp(v)

    @jit
    def _expm1(v):  # type: ignore[no-untyped-def]
        return tl.exp(v) - 1

    @jit
    def _rounded(v, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return float32 numbers rounded to the nearest bf16; the interpreter's own conversion truncates."""
        if dtype == tl.bfloat16:
            word = v.to(tl.uint32, bitcast=True)
            nearest = (word + 0x7FFF + ((word >> 16) & 1)) & 0xFFFF0000
            v = tl.where(v == v, nearest.to(tl.float32, bitcast=True), v)  # NaN stays
        return v.to(dtype)
else:
    from triton.language.extra import libdevice

    _exp = libdevice.exp
    _expm1 = libdevice.expm1

    @jit
    def _rounded(v, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return float32 numbers rounded to the nearest of another type."""
        return v.to(dtype)


@jit
def _phase(v, kind: tl.constexpr, slope: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return one phase of float32 numbers."""
    if kind == "crelu":
        result = tl.where(v > 0, v, tl.where(v == v, 0.0, v))  # NaN stays
    elif kind == "crelu_leaky":
        result = tl.where(v > 0, v, v * slope)
    else:
        # Triton's library takes what is smaller than any normal number as 0; there the function is the number itself.
        result = tl.where(v < -1e-30, _expm1(v), v)
    return result


@jit
def _by_phase(gradient, value, kind: tl.constexpr, slope: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the gradient by a phase's input, from that by the phase and its value; for ELU from its input."""
    if kind == "crelu":
        result = tl.where(value <= 0, 0.0, gradient)
    elif kind == "crelu_leaky":
        result = tl.where(value > 0, gradient, gradient * slope)
    else:
        result = tl.where(value <= 0, gradient * _exp(value), gradient)
    return result


@jit
def _forward(  # type: ignore[no-untyped-def]
    x, y, rows, width, kind: tl.constexpr, slope: tl.constexpr, high: tl.constexpr, wide: tl.constexpr
):
    """Write both phases of each row side by side, or the absolute value."""
    row = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)[:, None]
    column = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    inside = (row < rows) & (column < width)
    v = tl.load(x + row * width + column, inside, 0.0).to(tl.float32)
    if kind == "avr":
        tl.store(y + row * width + column, _rounded(tl.abs(v), y.dtype.element_ty), inside)
    else:
        up = y + row * (2 * width) + column
        tl.store(up, _rounded(_phase(v, kind, slope), y.dtype.element_ty), inside)
        tl.store(up + width, _rounded(_phase(-v, kind, slope), y.dtype.element_ty), inside)


@jit
def _backward(  # type: ignore[no-untyped-def]
    g, saved, by_x, rows, width, kind: tl.constexpr, slope: tl.constexpr, high: tl.constexpr, wide: tl.constexpr
):
    """Write the gradient by x of each row; each phase's is rounded, as torch does, before they are joined."""
    row = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)[:, None]
    column = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    inside = (row < rows) & (column < width)
    single = row * width + column
    up = row * (2 * width) + column
    if kind == "avr":
        value = tl.load(saved + single, inside, 0.0).to(tl.float32)
        sign = tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, 0.0))
        result = tl.load(g + single, inside, 0.0).to(tl.float32) * sign
    else:
        if kind == "concat_elu":
            positive = tl.load(saved + single, inside, 0.0).to(tl.float32)
            negative = -positive
        else:
            positive = tl.load(saved + up, inside, 0.0).to(tl.float32)
            negative = tl.load(saved + up + width, inside, 0.0).to(tl.float32)
        by_up = _by_phase(tl.load(g + up, inside, 0.0).to(tl.float32), positive, kind, slope)
        by_down = _by_phase(tl.load(g + up + width, inside, 0.0).to(tl.float32), negative, kind, slope)
        by_up = _rounded(by_up, by_x.dtype.element_ty).to(tl.float32)
        result = by_up - _rounded(by_down, by_x.dtype.element_ty).to(tl.float32)
    tl.store(by_x + single, _rounded(result, by_x.dtype.element_ty), inside)


def _launch(kernel: Any, x: Tensor, kind: str, form: torch.memory_format, *tensors: Tensor) -> None:
    """Run a kernel over the rows of x: what lies together in memory of one position, or of one picture."""
    width = x.shape[1] if form == torch.channels_last else x[0].numel()
    rows = x.numel() // width
    wide = min(BLOCK, triton.next_power_of_2(width))
    high = BLOCK // wide
    kernel[(triton.cdiv(rows, high), triton.cdiv(width, wide))](
        *tensors, rows, width, kind, SLOPE, high, wide, enable_fp_fusion=False
    )


class _Fused(torch.autograd.Function):
    """Activation of one kind, forward and backward by one kernel each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, form: torch.memory_format) -> Tensor:
        """Write the activation of x, in the layout `form`, into a new tensor."""
        channels = x.shape[1] if kind == "avr" else 2 * x.shape[1]
        shape = (x.shape[0], channels, *x.shape[2:])
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
        _launch(_forward, x, kind, form, x, y)
        ctx.kind = kind
        ctx.form = form
        ctx.save_for_backward(x if kind in BY_INPUT else y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient by x; by torch's operations where it is derived again, or is a batch of gradients."""
        (saved,) = ctx.saved_tensors
        functorch = torch._C._functorch
        batched = functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)
        if torch.is_grad_enabled() or batched:
            return _formula(gradient, saved, ctx.kind), None, None
        form = ctx.form
        shape = (saved.shape[0], gradient.shape[1] // (1 if ctx.kind == "avr" else 2), *saved.shape[2:])
        by_x = torch.empty(shape, dtype=saved.dtype, device=saved.device, memory_format=form)
        _launch(_backward, by_x, ctx.kind, form, gradient.contiguous(memory_format=form), saved, by_x)
        return by_x, None, None


def _formula(gradient: Tensor, saved: Tensor, kind: str) -> Tensor:
    """Return the gradient by x in torch's operations, which have derivatives of their own."""
    if kind == "avr":
        return gradient * saved.sgn()
    if kind == "concat_elu":
        phases = torch.cat([saved, -saved], 1)
        up, down = torch.where(phases <= 0, gradient * phases.exp(), gradient).chunk(2, 1)
    else:
        lower = gradient * (0.0 if kind == "crelu" else SLOPE)
        up, down = torch.where(saved > 0, gradient, lower).chunk(2, 1)
    return up - down


def accepts(x: Tensor, kind: str, form: torch.memory_format) -> bool:
    """Return whether the kernels take x: a known type, in one piece, and of a kind that was shown to be exact."""
    if x.dtype not in FLOATS or x.dim() < 2 or not x.numel() or not x.is_contiguous(memory_format=form):
        return False
    return is_exact(kind, x.dtype, x.device)


def apply(x: Tensor, kind: str, form: torch.memory_format) -> Tensor:
    """Return the activation of x, which the kernels accept in the layout `form`."""
    y: Tensor = _Fused.apply(x, kind, form)
    return y


@cache
def is_exact(kind: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels give the bits of the definition on a sample, value and gradient, in both layouts."""
    try:
        return all(
            agrees(partial(apply, kind=kind, form=form), kind, x, weight)
            for x, weight, form in samples(kind, dtype, device)
        )
    except Exception:  # the kernel does not compile here: torch's operations take its place
        return False


def samples(
    kind: str, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, torch.memory_format]]:
    """Yield inputs, gradients and their layouts: drawn ones, and zeros, infinities, NaN, small and large ones.

    The exponential of -100 is smaller than any normal number.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 24, 9, 7), generator=generator) * torch.logspace(-3, 1, 24)[:, None, None]
    weight = torch.randn((4, 24 if kind == "avr" else 48, 9, 7), generator=generator)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-7, -1e-7, 3e38, -3e38, 1e-45])
    for tensor, every in ((x, 5), (weight, 7)):
        some = tensor.view(-1)[::every]
        some.copy_(special.repeat(-(-len(some) // len(special)))[: len(some)])
    x.view(-1)[3::55] = -100.0
    for form in (torch.contiguous_format, torch.channels_last):
        placed = [value.to(device, dtype).contiguous(memory_format=form) for value in (x, weight)]
        yield placed[0], placed[1], form


def agrees(form: Callable[[Tensor], Tensor], kind: str, x: Tensor, weight: Tensor) -> bool:
    """Return whether value and gradient by a form of a kind are those of its definition, bit for bit."""
    pairs = []
    for function in (form, DEFINITIONS[kind]):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = function(leaf)
            (gradient,) = torch.autograd.grad(y, leaf, weight.clone(memory_format=torch.preserve_format))
        pairs.append((y.detach(), gradient))
    return all(torch.equal(_bits(ours), _bits(theirs)) for ours, theirs in zip(*pairs, strict=True))


def _bits(x: Tensor) -> Tensor:
    """Return the bits of x as integers, with one zero and one NaN: a CPU and a GPU give these different signs."""
    integer = torch.int16 if x.element_size() == 2 else torch.int32
    return torch.where(x.isnan(), math.nan, 0 + x).to(x.dtype).contiguous().view(integer)
