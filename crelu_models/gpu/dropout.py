"""Dropout as kernels, alone or with the ReLU in front of it: a pass reads each tensor once. Torch draws the masks."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crelu_models.gpu.language import BLOCK, is_batch, kernel, rounded


@kernel("count", "scale")
def _dropout_forward(  # type: ignore[no-untyped-def]
    x, mask, y, count, scale,
    rectified: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write what the mask of 1s and 0s keeps of x, scaled."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    v = tl.load(x + at, at < count, 0.0).to(tl.float32)
    if rectified:
        v = tl.where(v > 0, v, tl.where(v == v, 0.0, v))  # NaN stays
    v = v * tl.load(mask + at, at < count, 0.0).to(tl.float32)
    tl.store(y + at, rounded(v * scale, y.dtype.element_ty), at < count)


@kernel("count", "scale")
def _dropout_backward(  # type: ignore[no-untyped-def]
    g, mask, x, by_x, count, scale,
    rectified: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient by x."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    v = tl.load(g + at, at < count, 0.0).to(tl.float32) * scale
    v = v * tl.load(mask + at, at < count, 0.0).to(tl.float32)
    if rectified:
        v = tl.where(tl.load(x + at, at < count, 0.0).to(tl.float32) <= 0, 0.0, v)
    tl.store(by_x + at, rounded(v, by_x.dtype.element_ty), at < count)


def _launch(kernel: Any, rectified: bool, scale: float, *tensors: Tensor) -> None:
    """Run a kernel over tensors of one layout, each in one piece."""
    count = tensors[0].numel()
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
        kernel[(triton.cdiv(count, BLOCK),)](*tensors, count, scale, rectified, BLOCK, enable_fp_fusion=False)


class _Dropped(torch.autograd.Function):
    """Dropout of x, or of its positive part, by a mask of 1s and 0s in the layout of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float, rectified: bool) -> Tensor:
        """Write what is kept into a new tensor."""
        y = torch.empty_like(x)
        _launch(_dropout_forward, rectified, scale, x, mask, y)
        ctx.scale = scale
        ctx.rectified = rectified
        ctx.save_for_backward(mask, x if rectified else None)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient by x; by torch's operations where it is derived again, or has another layout."""
        mask, x = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batch(gradient) or gradient.stride() != mask.stride():
            by_x = gradient * ctx.scale * mask
            by_x = torch.ops.aten.threshold_backward(by_x, x, 0) if ctx.rectified else by_x
            return by_x, None, None, None
        by_x = torch.empty_like(gradient)
        _launch(_dropout_backward, ctx.rectified, ctx.scale, gradient, mask, mask if x is None else x, by_x)
        return by_x, None, None, None


def dropped(x: Tensor, mask: Tensor, rate: float, rectified: bool) -> Tensor:
    """Return x, or its positive part, scaled up where the mask is 1, and 0 elsewhere."""
    y: Tensor = _Dropped.apply(x, mask, 1 / (1 - rate), rectified)
    return y


def torch_dropped(x: Tensor, mask: Tensor, rate: float, rectified: bool) -> Tensor:
    """Return the same by torch's operations."""
    return (torch.relu(x) if rectified else x) * mask * (1 / (1 - rate))
