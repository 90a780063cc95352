"""Max pooling as kernels: between the passes a byte for each output says which number of its window was taken."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from crelu_models.gpu.language import BLOCK, is_batch, kernel, rounded


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


@kernel("rows", "height", "width", "out_height", "out_width")
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


@kernel("rows", "height", "width", "out_height", "out_width")
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
    tl.store(by_x + row.to(tl.int64) * channels + channel, rounded(total, by_x.dtype.element_ty), inside)


def _launch(kernel: Any, over: Tensor, x: Tensor, y: Tensor, window: Window, *tensors: Tensor) -> None:
    """Run a kernel over the positions of `over`, which is x or y, or has the shape of one."""
    rows, channels = over.numel() // over.shape[1], over.shape[1]
    wide = min(BLOCK, triton.next_power_of_2(channels))
    high = BLOCK // wide
    sides = *x.shape[2:], *y.shape[2:]
    with torch.cuda.device_of(over):  # type: ignore[no-untyped-call]
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
        _launch(_pool_forward, y, x, y, window, x, y, places)
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
        if torch.is_grad_enabled() or is_batch(gradient):
            side, stride, pad, ceil = ctx.window
            indices = _indices(places, by_x.shape[3], ctx.window)
            by_torch = torch.ops.aten.max_pool2d_with_indices_backward
            return by_torch(gradient, by_x, [side] * 2, [stride] * 2, [pad] * 2, [1, 1], ceil, indices), None
        gradient = gradient.contiguous(memory_format=last)
        _launch(_pool_backward, by_x, by_x, gradient, ctx.window, gradient, places, by_x)
        return by_x, None


def _indices(places: Tensor, width: int, window: Window) -> Tensor:
    """Return the place of each window's largest number as torch has it: counted through the picture, 0 for none."""
    lines, columns = (
        (torch.arange(size, device=places.device) * window.stride - window.pad) for size in places.shape[2:]
    )
    line = lines[:, None] + places // window.side
    column = columns + places % window.side
    return torch.where(places < window.side**2, line * width + column, 0)


def max_pool(x: Tensor, window: Window) -> Tensor:
    """Return the largest number of each window of x, which the kernels accept."""
    y: Tensor = _MaxPool.apply(x, window)
    return y


def torch_pool(x: Tensor, window: Window) -> Tensor:
    """Return the same by torch's operation."""
    y: Tensor = functional.max_pool2d(x, window.side, window.stride, window.pad, ceil_mode=window.ceil)
    return y
