"""Activations, with the bias in front of them, as kernels: forward and backward by one each; and a bias alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from crelu_models.gpu.language import BLOCK, exp, expm1, is_batch, jit, kernel, rounded
from crelu_models.gpu.sums import Order, add_parts, halved, tile

SLOPE = 1 / 100  # of the leaky form
DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "crelu": lambda x: torch.cat([torch.relu(x), torch.relu(-x)], 1),
    "crelu_leaky": lambda x: torch.cat([functional.leaky_relu(x, SLOPE), functional.leaky_relu(-x, SLOPE)], 1),
    "concat_elu": lambda x: torch.cat([functional.elu(x), functional.elu(-x)], 1),
    "avr": torch.abs,
    "none": lambda x: x,
}
SINGLE = ("relu", "avr", "none")  # phase
# Kinds whose gradient is that at the input; the others save only their output, which the next conv saves anyway.
BY_INPUT = ("concat_elu", "avr")


@jit
def _phase(v, kind: tl.constexpr, slope: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return one phase of float32 numbers."""
    if kind == "crelu" or kind == "relu":
        result = tl.where(v > 0, v, tl.where(v == v, 0.0, v))  # NaN stays
    elif kind == "crelu_leaky":
        result = tl.where(v > 0, v, v * slope)
    else:
        # Triton's library takes what is smaller than any normal number as 0; there the function is the number itself.
        result = tl.where(v < -1e-30, expm1(v), v)
    return result


@jit
def _by_phase(gradient, value, kind: tl.constexpr, slope: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the gradient by a phase's input, from that by the phase and its value; for ELU from its input."""
    if kind == "crelu" or kind == "relu":
        result = tl.where(value <= 0, 0.0, gradient)
    elif kind == "crelu_leaky":
        result = tl.where(value > 0, gradient, gradient * slope)
    else:
        result = tl.where(value <= 0, gradient * exp(value), gradient)
    return result


@jit
def _input(x, bias, row, column, rows, width, map_size, biased: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the activation's input: x, plus its channel's bias rounded to the type of x as torch's sum is."""
    v = tl.load(x + row * width + column, (row < rows) & (column < width), 0.0).to(tl.float32)
    if biased:
        v += tl.load(bias + column // map_size, column < width, 0.0).to(tl.float32)
        v = rounded(v, x.dtype.element_ty).to(tl.float32)
    return v


@kernel("rows")
def _activation_forward(  # type: ignore[no-untyped-def]
    x, bias, y, rows, width, map_size,
    kind: tl.constexpr, slope: tl.constexpr, biased: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Write both phases of each row side by side, or a single one."""
    row = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)[:, None]
    column = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    inside = (row < rows) & (column < width)
    v = _input(x, bias, row, column, rows, width, map_size, biased)
    if kind == "none":
        tl.store(y + row * width + column, rounded(v, y.dtype.element_ty), inside)
    elif kind == "avr":
        tl.store(y + row * width + column, rounded(tl.abs(v), y.dtype.element_ty), inside)
    elif kind == "relu":
        tl.store(y + row * width + column, rounded(_phase(v, kind, slope), y.dtype.element_ty), inside)
    else:
        up = y + row * (2 * width) + column
        tl.store(up, rounded(_phase(v, kind, slope), y.dtype.element_ty), inside)
        tl.store(up + width, rounded(_phase(-v, kind, slope), y.dtype.element_ty), inside)


@jit
def _gradient(  # type: ignore[no-untyped-def]
    g, saved, bias, row, column, rows, width, map_size,
    kind: tl.constexpr, slope: tl.constexpr, biased: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return the gradient by x of some rows; each phase's is rounded, as torch does, before they are joined."""
    inside = (row < rows) & (column < width)
    single = row * width + column
    up = row * (2 * width) + column
    if kind == "none":
        result = tl.load(g + single, inside, 0.0).to(tl.float32)
    elif kind == "avr":
        value = _input(saved, bias, row, column, rows, width, map_size, biased)
        sign = tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, 0.0))
        result = tl.load(g + single, inside, 0.0).to(tl.float32) * sign
    elif kind == "relu":
        value = tl.load(saved + single, inside, 0.0).to(tl.float32)
        result = _by_phase(tl.load(g + single, inside, 0.0).to(tl.float32), value, kind, slope)
    else:
        if kind == "concat_elu":
            positive = _input(saved, bias, row, column, rows, width, map_size, biased)
            negative = -positive
        else:
            positive = tl.load(saved + up, inside, 0.0).to(tl.float32)
            negative = tl.load(saved + up + width, inside, 0.0).to(tl.float32)
        by_up = _by_phase(tl.load(g + up, inside, 0.0).to(tl.float32), positive, kind, slope)
        by_down = _by_phase(tl.load(g + up + width, inside, 0.0).to(tl.float32), negative, kind, slope)
        result = rounded(by_up, dtype).to(tl.float32) - rounded(by_down, dtype).to(tl.float32)
    return rounded(result, dtype)


@jit
def _written(  # type: ignore[no-untyped-def]
    g, saved, bias, by_x, row, column, rows, width, map_size,
    kind: tl.constexpr, slope: tl.constexpr, biased: tl.constexpr,
):  # fmt: skip
    """Write the gradient by x of some rows, and return it, with zeros beyond the last row."""
    inside = (row < rows) & (column < width)
    result = _gradient(g, saved, bias, row, column, rows, width, map_size, kind, slope, biased, by_x.dtype.element_ty)
    if kind != "none":  # there it is the gradient by y
        tl.store(by_x + row * width + column, result, inside)
    return tl.where(inside, result.to(tl.float32), 0.0)


@kernel("rows", "step")
def _activation_backward(  # type: ignore[no-untyped-def]
    g, saved, bias, by_x, sums, rows, width, map_size, step,
    kind: tl.constexpr, slope: tl.constexpr, biased: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
    halvings: tl.constexpr, summed: tl.constexpr,
):  # fmt: skip
    """Write the gradient by x of a tile of rows; where `summed`, of each tile a step further, with their sum."""
    column = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    row = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)[:, None]
    if summed:
        a = tl.full([high, wide], 0.0, tl.float32)
        b, c, d = a, a, a
        for begin in range(0, rows, 4 * step):
            of = begin + row
            a += _written(g, saved, bias, by_x, of, column, rows, width, map_size, kind, slope, biased)
            of += step
            b += _written(g, saved, bias, by_x, of, column, rows, width, map_size, kind, slope, biased)
            of += step
            c += _written(g, saved, bias, by_x, of, column, rows, width, map_size, kind, slope, biased)
            of += step
            d += _written(g, saved, bias, by_x, of, column, rows, width, map_size, kind, slope, biased)
        total = halved(a + b + c + d, high, wide, halvings)
        tl.store(sums + tl.program_id(0) * width + column, total, column < width)
    else:
        _written(g, saved, bias, by_x, row, column, rows, width, map_size, kind, slope, biased)


def _tile(x: Tensor, form: torch.memory_format) -> tuple[int, int, int, int]:
    """Return the rows and the width of x, and the height and the width of a tile of them.

    A row is what lies together in memory of one position, or of one picture.
    """
    width = x.shape[1] if form == torch.channels_last else x[0].numel()
    wide = min(BLOCK, triton.next_power_of_2(width))
    return x.numel() // width, width, BLOCK // wide, wide


def _launch(
    kernel: Any, x: Tensor, bias: Tensor | None, kind: str, form: torch.memory_format, *tensors: Tensor,
    order: Order | None = None, **constants: int,
) -> None:  # fmt: skip
    """Run a kernel over the rows of x, a program a tile of them; with an order, a program for each part of it."""
    rows, width, high, wide = _tile(x, form)
    programs, numbers = triton.cdiv(rows, high), [rows, width, width // x.shape[1]]
    if order is not None:
        high, wide = tile(order, width)
        programs = order.parts
    if kernel is _activation_backward:
        numbers.append(1 if order is None else order.step)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs, triton.cdiv(width, wide))](
            *tensors, *numbers, kind, SLOPE, bias is not None, high, wide, **constants, enable_fp_fusion=False
        )


class _Fused(torch.autograd.Function):
    """Activation of one kind, of x or of x plus the bias of its channels; forward and backward by one kernel each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, kind: str, form: torch.memory_format, order: Order | None
    ) -> Tensor:
        """Write the activation of x, in the layout `form`, into a new tensor."""
        channels = x.shape[1] if kind in SINGLE else 2 * x.shape[1]
        shape = (x.shape[0], channels, *x.shape[2:])
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
        _launch(_activation_forward, x, bias, kind, form, x, x if bias is None else bias, y)
        ctx.kind = kind
        ctx.form = form
        ctx.order = order
        ctx.save_for_backward(*([x, bias] if kind in BY_INPUT else [y, None]))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by x and by the bias; in a known order that is summed in this pass, else by torch."""
        saved, bias = ctx.saved_tensors
        by_bias: Tensor | None = None
        if torch.is_grad_enabled() or is_batch(gradient):
            by_x = _formula(gradient, saved if bias is None else saved + along_channels(bias, saved), ctx.kind)
        else:
            order = ctx.order if ctx.needs_input_grad[1] and gradient.is_contiguous(memory_format=ctx.form) else None
            by_x, by_bias = _by_kernel(gradient, saved, bias, ctx.kind, ctx.form, order)
            if ctx.kind in BY_INPUT:
                by_x = _laid_out_as(gradient, by_x)
        if by_bias is None and ctx.needs_input_grad[1]:
            by_bias = by_x.sum((0, *range(2, by_x.dim())))
        return by_x, by_bias, None, None, None


def _laid_out_as(gradient: Tensor, by_x: Tensor) -> Tensor:
    """Return the gradient by x in the layout of the one by y, as of torch's products; the order of sums follows it."""
    if gradient.is_contiguous():
        return by_x.contiguous()
    if gradient.dim() == 4 and gradient.is_contiguous(memory_format=torch.channels_last):
        return by_x.contiguous(memory_format=torch.channels_last)
    return by_x


def _by_kernel(
    gradient: Tensor, saved: Tensor, bias: Tensor | None, kind: str, form: torch.memory_format, order: Order | None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient by x, and in an order, for channels last, that by the bias."""
    by_x = gradient
    if kind != "none":
        shape = (saved.shape[0], gradient.shape[1] // (1 if kind in SINGLE else 2), *saved.shape[2:])
        by_x = torch.empty(shape, dtype=saved.dtype, device=saved.device, memory_format=form)
    tensors = gradient.contiguous(memory_format=form), saved, saved if bias is None else bias, by_x
    if order is not None:
        return by_x, _with_sum(by_x, bias, kind, tensors, order, by_x.dtype)
    if kind != "none":
        _launch(_activation_backward, by_x, bias, kind, form, *tensors, by_x, halvings=0, summed=False)
    return by_x, None


def _with_sum(
    by_x: Tensor, bias: Tensor | None, kind: str, tensors: Sequence[Tensor], order: Order, dtype: torch.dtype
) -> Tensor:
    """Write the gradient by x, with its channels last; return the sum of its rows, rounded to a type."""
    sums = torch.empty((order.parts, by_x.shape[1]), dtype=torch.float32, device=by_x.device)
    constants = {"halvings": order.halvings, "summed": True}
    _launch(_activation_backward, by_x, bias, kind, torch.channels_last, *tensors, sums, order=order, **constants)
    return add_parts(sums, order, dtype)


def sum_of_rows(x: Tensor, order: Order, dtype: torch.dtype) -> Tensor:
    """Return the sum of a map for each channel, in an order."""
    return _with_sum(x, None, "none", [x] * 4, order, dtype)


def along_channels(bias: Tensor, x: Tensor) -> Tensor:
    """Return a bias in a shape that adds to x."""
    return bias.view(-1, *[1] * (x.dim() - 2))


def _formula(gradient: Tensor, saved: Tensor, kind: str) -> Tensor:
    """Return the gradient by x in torch's operations, which have derivatives of their own."""
    if kind == "none":
        return gradient
    if kind == "relu":
        by_x: Tensor = torch.ops.aten.threshold_backward(gradient, saved, 0)
        return by_x
    if kind == "avr":
        return gradient * saved.sgn()
    if kind == "concat_elu":
        phases = torch.cat([saved, -saved], 1)
        up, down = torch.where(phases <= 0, gradient * phases.exp(), gradient).chunk(2, 1)
    else:
        lower = gradient * (0.0 if kind == "crelu" else SLOPE)
        up, down = torch.where(saved > 0, gradient, lower).chunk(2, 1)
    return up - down


def apply(
    x: Tensor, kind: str, form: torch.memory_format, bias: Tensor | None = None, order: Order | None = None
) -> Tensor:
    """Return the activation of x, which the kernels accept in the layout `form`, plus the bias of its channels.

    The gradient by the bias is summed by torch, or for channels last in an `order`, whose bits are always the same.
    """
    y: Tensor = _Fused.apply(x, bias, kind, form, order)
    return y
