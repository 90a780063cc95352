"""Activations, with the bias in front of them, and max pooling as kernels of a GPU, by Triton: one pass over a tensor.

Values and gradients are those of torch's operations bit for bit, with NaN, infinities and zeros. A GPU takes a kernel
once a sample has shown that there, and that the kernel is faster; where a bit differs, or it does not compile, torch's
operations are taken. With TRITON_INTERPRET=1 the kernels run on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

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
# Names of kernels that are switched off, "bias" or "pool": a benchmark compares a step with and without them.
LEFT: set[str] = set()
TIMED_SHAPE = (128, 96, 32, 32)
SLEEP_CYCLES = 10_000_000  # some 5 ms, in which what is timed is launched
LARGEST_WINDOW = 3
SUMMED_TILES = 8  # of a program that sums them: fewer sums remain to be summed
DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "crelu": lambda x: torch.cat([torch.relu(x), torch.relu(-x)], 1),
    "crelu_leaky": lambda x: torch.cat([functional.leaky_relu(x, SLOPE), functional.leaky_relu(-x, SLOPE)], 1),
    "concat_elu": lambda x: torch.cat([functional.elu(x), functional.elu(-x)], 1),
    "avr": torch.abs,
}
SINGLE = ("relu", "avr")  # phase
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
    if kind == "crelu" or kind == "relu":
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
    if kind == "crelu" or kind == "relu":
        result = tl.where(value <= 0, 0.0, gradient)
    elif kind == "crelu_leaky":
        result = tl.where(value > 0, gradient, gradient * slope)
    else:
        result = tl.where(value <= 0, gradient * _exp(value), gradient)
    return result


@jit
def _input(x, bias, row, column, rows, width, map_size, biased: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the activation's input: x, plus its channel's bias rounded to the type of x as torch's sum is."""
    v = tl.load(x + row * width + column, (row < rows) & (column < width), 0.0).to(tl.float32)
    if biased:
        v += tl.load(bias + column // map_size, column < width, 0.0).to(tl.float32)
        v = _rounded(v, x.dtype.element_ty).to(tl.float32)
    return v


@jit
def _forward(  # type: ignore[no-untyped-def]
    x, bias, y, rows, width, map_size,
    kind: tl.constexpr, slope: tl.constexpr, biased: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Write both phases of each row side by side, or a single one."""
    row = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)[:, None]
    column = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    inside = (row < rows) & (column < width)
    v = _input(x, bias, row, column, rows, width, map_size, biased)
    if kind == "avr":
        tl.store(y + row * width + column, _rounded(tl.abs(v), y.dtype.element_ty), inside)
    elif kind == "relu":
        tl.store(y + row * width + column, _rounded(_phase(v, kind, slope), y.dtype.element_ty), inside)
    else:
        up = y + row * (2 * width) + column
        tl.store(up, _rounded(_phase(v, kind, slope), y.dtype.element_ty), inside)
        tl.store(up + width, _rounded(_phase(-v, kind, slope), y.dtype.element_ty), inside)


@jit
def _gradient(  # type: ignore[no-untyped-def]
    g, saved, bias, row, column, rows, width, map_size,
    kind: tl.constexpr, slope: tl.constexpr, biased: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return the gradient by x of some rows; each phase's is rounded, as torch does, before they are joined."""
    inside = (row < rows) & (column < width)
    single = row * width + column
    up = row * (2 * width) + column
    if kind == "avr":
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
        result = _rounded(by_up, dtype).to(tl.float32) - _rounded(by_down, dtype).to(tl.float32)
    return _rounded(result, dtype)


@jit
def _plus(a, b):  # type: ignore[no-untyped-def]
    """Return a sum; what Triton has in Triton's own language is not for the interpreter once it is imported."""
    return a + b


@jit
def _backward(  # type: ignore[no-untyped-def]
    g, saved, bias, by_x, sums, rows, width, map_size,
    kind: tl.constexpr, slope: tl.constexpr, biased: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
    tiles: tl.constexpr, summed: tl.constexpr,
):  # fmt: skip
    """Write the gradient by x of so many tiles of rows; where `summed`, their sum along each column too."""
    column = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    total = tl.full([high, wide], 0.0, tl.float32)
    for tile in range(tiles):
        row = (tl.program_id(0).to(tl.int64) * tiles + tile) * high + tl.arange(0, high)[:, None]
        inside = (row < rows) & (column < width)
        result = _gradient(
            g, saved, bias, row, column, rows, width, map_size, kind, slope, biased, by_x.dtype.element_ty
        )
        tl.store(by_x + row * width + column, result, inside)
        if summed:
            total += tl.where(inside, result.to(tl.float32), 0.0)
    if summed:
        columns = tl.program_id(1) * wide + tl.arange(0, wide)
        tl.store(sums + tl.program_id(0) * width + columns, tl.reduce(total, 0, _plus), columns < width)


def _tile(x: Tensor, form: torch.memory_format) -> tuple[int, int, int, int]:
    """Return the rows and the width of x, and the height and the width of a tile of them.

    A row is what lies together in memory of one position, or of one picture.
    """
    width = x.shape[1] if form == torch.channels_last else x[0].numel()
    wide = min(BLOCK, triton.next_power_of_2(width))
    return x.numel() // width, width, BLOCK // wide, wide


def _launch(
    kernel: Any,
    x: Tensor,
    bias: Tensor | None,
    kind: str,
    form: torch.memory_format,
    *tensors: Tensor,
    **constants: int,
) -> None:
    """Run a kernel over the rows of x; in each run it takes the constant `tiles` of them, by default one."""
    rows, width, high, wide = _tile(x, form)
    kernel[(triton.cdiv(rows, high * constants.get("tiles", 1)), triton.cdiv(width, wide))](
        *tensors, rows, width, width // x.shape[1], kind, SLOPE, bias is not None, high, wide, **constants,
        enable_fp_fusion=False,
    )  # fmt: skip


class _Fused(torch.autograd.Function):
    """Activation of one kind, of x or of x plus the bias of its channels; forward and backward by one kernel each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, kind: str, form: torch.memory_format, any_order: bool
    ) -> Tensor:
        """Write the activation of x, in the layout `form`, into a new tensor."""
        channels = x.shape[1] if kind in SINGLE else 2 * x.shape[1]
        shape = (x.shape[0], channels, *x.shape[2:])
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
        _launch(_forward, x, bias, kind, form, x, x if bias is None else bias, y)
        ctx.kind = kind
        ctx.form = form
        ctx.any_order = any_order
        ctx.save_for_backward(*([x, bias] if kind in BY_INPUT else [y, None]))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by x and by the bias.

        The latter is torch's sum, whose order decides its bits; in any order it is summed in the same pass.
        """
        saved, bias = ctx.saved_tensors
        by_bias: Tensor | None = None
        if torch.is_grad_enabled() or _is_batch(gradient):
            by_x = _formula(gradient, saved if bias is None else saved + _along_channels(bias, saved), ctx.kind)
        else:
            summed = ctx.any_order and ctx.needs_input_grad[1] and ctx.form == torch.channels_last
            by_x, by_bias = _by_kernel(gradient, saved, bias, ctx.kind, ctx.form, summed)
        if by_bias is None and ctx.needs_input_grad[1]:
            by_bias = by_x.sum((0, *range(2, by_x.dim())))
        return by_x, by_bias, None, None, None


def _by_kernel(
    gradient: Tensor, saved: Tensor, bias: Tensor | None, kind: str, form: torch.memory_format, summed: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient by x, and where `summed` that by the bias."""
    shape = (saved.shape[0], gradient.shape[1] // (1 if kind in SINGLE else 2), *saved.shape[2:])
    by_x = torch.empty(shape, dtype=saved.dtype, device=saved.device, memory_format=form)
    tensors = gradient.contiguous(memory_format=form), saved, saved if bias is None else bias, by_x
    if not summed:
        _launch(_backward, by_x, bias, kind, form, *tensors, by_x, tiles=1, summed=False)
        return by_x, None
    rows, width, high, _ = _tile(by_x, form)
    sums = torch.empty((triton.cdiv(rows, high * SUMMED_TILES), width), dtype=torch.float32, device=by_x.device)
    _launch(_backward, by_x, bias, kind, form, *tensors, sums, tiles=SUMMED_TILES, summed=True)
    return by_x, sums.sum(0).to(by_x.dtype)


def _is_batch(gradient: Tensor) -> bool:
    """Return whether a gradient is a batch of gradients."""
    functorch = torch._C._functorch
    return bool(functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient))


def _along_channels(bias: Tensor, x: Tensor) -> Tensor:
    """Return a bias in a shape that adds to x."""
    return bias.view(-1, *[1] * (x.dim() - 2))


def _formula(gradient: Tensor, saved: Tensor, kind: str) -> Tensor:
    """Return the gradient by x in torch's operations, which have derivatives of their own."""
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


def accepts(x: Tensor, kind: str, form: torch.memory_format) -> bool:
    """Return whether the kernels take x: a known type, in one piece, and of a kind in which they are exact and fast."""
    if x.dtype not in FLOATS or x.dim() < 2 or not x.numel() or not x.is_contiguous(memory_format=form):
        return False
    return is_exact(kind, x.dtype, x.device) and is_faster(kind, x.dtype, x.device)


def accepts_bias(kind: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels take the output of a conv without its bias, and the bias with the activation."""
    if "bias" in LEFT or kind not in DEFINITIONS or dtype not in FLOATS:
        return False
    exact = adds_bias_apart(dtype, device) and is_exact(kind, dtype, device, biased=True)
    return exact and is_faster(kind, dtype, device, biased=True)


def apply(
    x: Tensor, kind: str, form: torch.memory_format, bias: Tensor | None = None, any_order: bool = False
) -> Tensor:
    """Return the activation of x, which the kernels accept in the layout `form`, plus the bias of its channels.

    In `any_order` the gradient by the bias may be summed in another order than torch's: with other bits, always the
    same.
    """
    y: Tensor = _Fused.apply(x, bias, kind, form, any_order)
    return y


# Max pooling


class Window(NamedTuple):
    """Windows of a max pooling: their side, stride and padding, and whether a last, partial one counts."""

    side: int
    stride: int
    pad: int
    ceil: bool

    def outputs(self, size: int) -> int:
        """Return the number of windows along a side of a map; a partial one begins on the map or its first padding."""
        span = size + 2 * self.pad - self.side
        count = (-(-span // self.stride) if self.ceil else span // self.stride) + 1
        return count - (self.ceil and (count - 1) * self.stride >= size + self.pad)


@jit
def _pool_forward(  # type: ignore[no-untyped-def]
    x, y, places, rows, channels, height, width, out_height, out_width,
    side: tl.constexpr, stride: tl.constexpr, pad: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Write the largest number of each window and its place there: the first of equal ones, or the last NaN."""
    row = tl.program_id(0) * high + tl.arange(0, high)[:, None]
    channel = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    inside = (row < rows) & (channel < channels)
    picture = row // (out_height * out_width)
    top = row // out_width % out_height * stride
    left = row % out_width * stride
    # Where all are -inf, torch names the first position of the picture, which only the windows on it hold.
    first = tl.where((top <= pad) & (left <= pad), (pad - top) * side + pad - left, side * side)
    place = first + tl.full([high, wide], 0, tl.int32)
    best = tl.full([high, wide], float("-inf"), tl.float32)
    for k in tl.static_range(side * side):
        line = top + (k // side - pad)
        column = left + (k % side - pad)
        on_map = inside & (line >= 0) & (line < height) & (column >= 0) & (column < width)
        at = ((picture * height + line) * width + column).to(tl.int64) * channels + channel
        v = tl.load(x + at, on_map, float("-inf")).to(tl.float32)
        wins = (v > best) | (v != v)
        best = tl.where(wins, v, best)
        place = tl.where(wins, k, place)
    at = row.to(tl.int64) * channels + channel
    tl.store(y + at, best.to(y.dtype.element_ty), inside)
    tl.store(places + at, place.to(tl.uint8), inside)


@jit
def _pool_backward(  # type: ignore[no-untyped-def]
    g, places, by_x, rows, channels, height, width, out_height, out_width,
    side: tl.constexpr, stride: tl.constexpr, pad: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Write the gradient by x: of each position the sum over the windows that it is the largest of, rounded once."""
    row = tl.program_id(0) * high + tl.arange(0, high)[:, None]
    channel = tl.program_id(1) * wide + tl.arange(0, wide)[None, :]
    inside = (row < rows) & (channel < channels)
    picture = row // (height * width)
    line = row // width % height + pad
    column = row % width + pad
    reach: tl.constexpr = (side - 1) // stride + 1  # windows over a position, along a side
    total = tl.full([high, wide], 0.0, tl.float32)
    only = tl.full([high, wide], 0.0, tl.float32)
    windows = tl.full([high, 1], 0, tl.int32)
    for i in tl.static_range(reach * reach):
        # By ascending row and column of the windows: so torch adds them.
        top = line // stride - (reach - 1 - i // reach)
        left = column // stride - (reach - 1 - i % reach)
        down = line - top * stride
        across = column - left * stride
        there = (top >= 0) & (top < out_height) & (down < side) & (left >= 0) & (left < out_width) & (across < side)
        at = ((picture * out_height + top) * out_width + left).to(tl.int64) * channels + channel
        place = tl.load(places + at, inside & there, 255).to(tl.int32)
        largest = there & (place == down * side + across)
        # Loaded for all channels, so that a thread takes several of them at once.
        gradient = tl.load(g + at, inside & there, 0.0).to(tl.float32)
        total = tl.where(largest, total + gradient, total)
        only = tl.where(largest, gradient, only)
        windows += there.to(tl.int32)
    total = tl.where(windows == 1, only, total)  # torch adds nothing there, and so keeps the sign of a zero
    tl.store(by_x + row.to(tl.int64) * channels + channel, _rounded(total, by_x.dtype.element_ty), inside)


def _launch_pool(kernel: Any, over: Tensor, x: Tensor, y: Tensor, window: Window, *tensors: Tensor) -> None:
    """Run a kernel over the positions of `over`, which is x or y, or has the shape of one."""
    rows, channels = over.numel() // over.shape[1], over.shape[1]
    wide = min(BLOCK, triton.next_power_of_2(channels))
    high = BLOCK // wide
    sides = *x.shape[2:], *y.shape[2:]
    kernel[(triton.cdiv(rows, high), triton.cdiv(channels, wide))](
        *tensors, rows, channels, *sides, *window[:3], high, wide, enable_fp_fusion=False
    )


class _MaxPool(torch.autograd.Function):
    """Max pooling of maps with their channels last; between its passes it keeps a byte for each output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        """Write the largest number of each window."""
        shape = (*x.shape[:2], *map(window.outputs, x.shape[2:]))
        y, places = (
            torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
            for dtype in (x.dtype, torch.uint8)
        )
        _launch_pool(_pool_forward, y, x, y, window, x, y, places)
        ctx.window = window
        ctx.shape = x.shape
        ctx.save_for_backward(places)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient by x; by torch's operation where it is derived again, or is a batch of gradients."""
        (places,) = ctx.saved_tensors
        last = torch.channels_last
        by_x = torch.empty(ctx.shape, dtype=gradient.dtype, device=places.device, memory_format=last)
        if torch.is_grad_enabled() or _is_batch(gradient):
            side, stride, pad, ceil = ctx.window
            indices = _indices(places, by_x.shape[3], ctx.window)
            by_torch = torch.ops.aten.max_pool2d_with_indices_backward
            return by_torch(gradient, by_x, [side] * 2, [stride] * 2, [pad] * 2, [1, 1], ceil, indices), None
        gradient = gradient.contiguous(memory_format=last)
        _launch_pool(_pool_backward, by_x, by_x, gradient, ctx.window, gradient, places, by_x)
        return by_x, None


def _indices(places: Tensor, width: int, window: Window) -> Tensor:
    """Return the place of each window's largest number as torch has it: counted through the picture, 0 for none."""
    lines, columns = (
        (torch.arange(size, device=places.device) * window.stride - window.pad) for size in places.shape[2:]
    )
    line = lines[:, None] + places // window.side
    column = columns + places % window.side
    return torch.where(places < window.side**2, line * width + column, 0)


def accepts_pool(x: Tensor, window: Window) -> bool:
    """Return whether the kernels take a max pooling of x: maps in one piece with channels last, and small windows."""
    if "pool" in LEFT or x.dtype not in FLOATS or x.dim() != 4 or not x.numel() or window.side > LARGEST_WINDOW:
        return False
    if x.stride(1) != 1 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if min(map(window.outputs, x.shape[2:])) < 1:  # torch says that
        return False
    return pool_is_exact(window, x.dtype, x.device) and pool_is_faster(window, x.dtype, x.device)


def max_pool(x: Tensor, window: Window) -> Tensor:
    """Return the largest number of each window of x, which the kernels accept."""
    y: Tensor = _MaxPool.apply(x, window)
    return y


def torch_pool(x: Tensor, window: Window) -> Tensor:
    """Return the same by torch's operation."""
    y: Tensor = functional.max_pool2d(x, window.side, window.stride, window.pad, ceil_mode=window.ceil)
    return y


# Choice


@cache
def is_exact(kind: str, dtype: torch.dtype, device: torch.device, biased: bool = False) -> bool:
    """Return whether the kernels give the bits of the definition on a sample, value and gradient, in both layouts."""
    try:
        return all(
            agrees(partial(apply, kind=kind, form=form), kind, x, weight, bias if biased else None)
            for x, weight, bias, form in samples(kind, dtype, device)
        )
    except Exception:  # the kernel does not compile here: torch's operations take its place
        return False


@cache
def adds_bias_apart(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device's convolution rounds its result before it adds the bias, and sums the bias's gradient.

    cuDNN on a GPU rounds first, for each shape. oneDNN on a CPU adds the bias first.
    """
    drawn = torch.Generator().manual_seed(0)
    shapes = (4, 16, 9, 9), (24, 16, 3, 3), (24,), (4, 24, 9, 9)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x, weight, bias, by_y = (_last(torch.randn(shape, generator=drawn).to(device, dtype)) for shape in shapes)
        whole = with_gradients(lambda bias: functional.conv2d(x, weight, bias, padding=1), [bias], by_y)
        y = functional.conv2d(x, weight, padding=1)
    return same_bits([y + _along_channels(bias, y), by_y.sum((0, 2, 3))], whole)


@cache
def pool_is_exact(window: Window, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels of max pooling give torch's bits on samples, value and gradient."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return all(
                same_bits(*(with_gradients(partial(form, window=window), [x], by_y) for form in (max_pool, torch_pool)))
                for x, by_y in pool_samples(window, dtype, device)
            )
    except Exception:  # as above, or torch refuses such a window
        return False


def pool_samples(window: Window, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and gradients by the output: drawn ones with ties, zeros, infinities and NaN, of several sides."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((9, 7), (8, 12)):
        x = torch.randn((3, 24, height, width), generator=generator).mul(2).round().div(2)
        x[:, ::4] = torch.rand(x[:, ::4].shape, generator=generator)
        x[:, 1::4].relu_()
        x.view(-1)[::41] = math.nan
        x.view(-1)[::37] = math.inf
        if device.type != "cpu":  # a CPU gives the gradient of a window of -inf alone to its first position
            x.view(-1)[::11] = -math.inf
            x[0] = -math.inf
        shape = (3, 24, window.outputs(height), window.outputs(width))
        by_y = torch.randn(shape, generator=generator)
        by_y.view(-1)[::29] = 3e38
        yield _last(x.to(device, dtype)), _last(by_y.to(device, dtype))


@cache
def pool_is_faster(window: Window, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels of max pooling take less time than torch's, forward and backward, on one shape."""
    ours, theirs = (partial(form, window=window) for form in (max_pool, torch_pool))
    return _beats(ours, theirs, dtype, device)


@cache
def is_faster(kind: str, dtype: torch.dtype, device: torch.device, biased: bool = False) -> bool:
    """Return whether the kernels take less time than the definition, forward and backward, on one shape."""

    def theirs(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return DEFINITIONS[kind](x if bias is None else x + _along_channels(bias, x))

    def ours(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(x, kind, torch.channels_last, bias)

    return _beats(ours, theirs, dtype, device, biased)


def _beats(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    dtype: torch.dtype,
    device: torch.device,
    biased: bool = False,
) -> bool:
    """Return whether a function of a map, and of a bias, takes less time than another, forward and backward."""
    if TIMER is None:
        return True
    with torch.inference_mode(False), torch.enable_grad():
        shapes = [TIMED_SHAPE, TIMED_SHAPE[1:2]] if biased else [TIMED_SHAPE]
        try:
            leaves = [_last(torch.zeros(shape, dtype=dtype, device=device)).requires_grad_() for shape in shapes]
            weight = torch.zeros_like(theirs(*leaves))
            calls = [partial(_both_ways, form, leaves, weight) for form in (ours, theirs)]
            times = [TIMER(call, device) for call in calls]
        except torch.OutOfMemoryError:
            return False
    return times[0] < times[1]


def _both_ways(function: Callable[..., Tensor], leaves: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    """Go forward and backward; return the gradients."""
    return torch.autograd.grad(function(*leaves), leaves, weight)


def _last(x: Tensor) -> Tensor:
    """Return a map with its channels last, and any other tensor as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Return a GPU's time of five calls, without that of their launches: a graph has none."""
    with torch.cuda.device(device):
        call()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(5):
            call()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end))


# Taken by tests for a timer of their own. The interpreter's speed says nothing.
TIMER: Callable[[Callable[[], object], torch.device], float] | None = None if INTERPRETED else _milliseconds


def samples(
    kind: str, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, torch.memory_format]]:
    """Yield inputs, gradients, biases and layouts: drawn ones, and zeros, infinities, NaN, small and large ones.

    The exponential of -100 is smaller than any normal number.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 24, 9, 7), generator=generator) * torch.logspace(-3, 1, 24)[:, None, None]
    weight = torch.randn((4, 24 if kind in SINGLE else 48, 9, 7), generator=generator)
    bias = torch.randn(24, generator=generator) * torch.logspace(-5, 1, 24)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-7, -1e-7, 3e38, -3e38, 1e-45])
    for tensor, every in ((x, 5), (weight, 7)):
        some = tensor.view(-1)[::every]
        some.copy_(special.repeat(-(-len(some) // len(special)))[: len(some)])
    x.view(-1)[3::55] = -100.0
    for form in (torch.contiguous_format, torch.channels_last):
        placed = [value.to(device, dtype).contiguous(memory_format=form) for value in (x, weight)]
        yield placed[0], placed[1], bias.to(device, dtype), form


def agrees(form: Callable[..., Tensor], kind: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether value and gradients by a form of a kind are those of its definition, bit for bit."""
    with torch.inference_mode(False), torch.enable_grad():
        x, weight = (value.clone(memory_format=torch.preserve_format) for value in (x, weight))
        if bias is None:
            ours = with_gradients(form, [x], weight)
            theirs = with_gradients(DEFINITIONS[kind], [x], weight)
        else:
            ours = with_gradients(lambda x, bias: form(x, bias=bias), [x, bias.clone()], weight)
            theirs = with_gradients(DEFINITIONS[kind], [x + _along_channels(bias, x)], weight)
            theirs.append(theirs[1].sum((0, 2, 3)))
    return same_bits(ours, theirs)


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Return a function's value at some inputs, and its gradients by them from this gradient by the value."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, weight)]


def same_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Return whether tensors are equal bit for bit."""
    return all(torch.equal(_bits(a), _bits(b)) for a, b in zip(ours, theirs, strict=True))


def _bits(x: Tensor) -> Tensor:
    """Return the bits of x as integers, with one zero and one NaN: a CPU and a GPU give these different signs."""
    integer = torch.int16 if x.element_size() == 2 else torch.int32
    return torch.where(x.isnan(), math.nan, 0 + x).to(x.dtype).contiguous().view(integer)
