"""What the kernels are written in: Triton, and where its interpreter differs from a GPU, functions that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

jit: Callable[[Any], Any] = triton.jit
INTERPRETED = knobs.runtime.interpret
BLOCK = 1024  # elements of a program


def kernel(*plain: str) -> Callable[[Any], Any]:
    """Return the decorator of a kernel that is compiled once for all values of these arguments.

    Triton compiles it again, in a fifth of a second, where another argument is 1 or a multiple of 16.
    """
    decorated: Callable[[Any], Any] = triton.jit(do_not_specialize=plain)
    return decorated


if INTERPRETED:

    @jit
    def exp(v):  # type: ignore[no-untyped-def]
        """Return the exponential."""
        return tl.exp(v)

    @jit
    def expm1(v):  # type: ignore[no-untyped-def]
        """Return the exponential less 1."""
        return tl.exp(v) - 1

    @jit
    def rounded(v, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return float32 numbers rounded to the nearest bf16; the interpreter's own conversion truncates."""
        if dtype == tl.bfloat16:
            word = v.to(tl.uint32, bitcast=True)
            nearest = (word + 0x7FFF + ((word >> 16) & 1)) & 0xFFFF0000
            v = tl.where(v == v, nearest.to(tl.float32, bitcast=True), v)  # NaN stays
        return v.to(dtype)
else:
    from triton.language.extra import libdevice

    exp = libdevice.exp
    expm1 = libdevice.expm1

    @jit
    def rounded(v, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return float32 numbers rounded to the nearest of another type."""
        return v.to(dtype)


@jit
def plus(a, b):  # type: ignore[no-untyped-def]
    """Return a sum. That of Triton is for a GPU alone, where Triton was imported before its interpreter was chosen."""
    return a + b


def is_batch(gradient: Tensor) -> bool:
    """Return whether a gradient is a batch of gradients."""
    functorch = torch._C._functorch
    return bool(functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient))
