"""Loops of CReLU and of its gradient for one CPU thread, compiled by Numba, that read each tensor once.

A float is a sign and a magnitude, so CReLU is a mask on its bits: eight bytes at once, four bf16 or two fp32. NaN alone
differs between mask and arithmetic; a loop reports it, and the caller then discards the output and uses torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types
from torch import Tensor

WORD = 8  # bytes


def _lanes(bits: int, infinity: int) -> tuple[int, int, int]:
    """Return the masks of a word of floats with `bits` bits, where `infinity` has this bit pattern.

    They are: the sign bits of all lanes; the number that, added to a magnitude, sets the sign bit for NaN alone; the
    position of the sign bit in a lane.
    """
    ones = sum(1 << bits * lane for lane in range(8 * WORD // bits))
    return ones << bits - 1, ones * ((1 << bits - 1) - 1 - infinity), bits - 1


FLOATS = {
    torch.bfloat16: _lanes(16, 0x7F80),
    torch.float16: _lanes(16, 0x7C00),
    torch.float32: _lanes(32, 0x7F800000),
}


def accepts(x: Tensor, rows: int) -> bool:
    """Return whether the loops can process x, contiguous on the CPU: a known float type, and rows of full words."""
    return x.dtype in FLOATS and x.numel() * x.element_size() % (WORD * rows) == 0


def write_crelu(x: Tensor, y: Tensor, rows: int) -> bool:
    """Write [max(x, 0), max(-x, 0)] of each row of x into y; return False where x holds NaN."""
    return _call(_crelu, (x, y), rows, _words(x) // rows)


def write_gradient(gradient: Tensor, y: Tensor, by_x: Tensor, rows: int) -> bool:
    """Write the gradient by x into `by_x`, from the gradient by y = CReLU(x); return False where one holds NaN."""
    return _call(_crelu_gradient, (gradient, y, by_x), rows, _words(by_x) // rows)


def _words(x: Tensor) -> int:
    return x.numel() * x.element_size() // WORD


def _call(kernel: Callable[..., int], tensors: tuple[Tensor, ...], *counts: int) -> bool:
    return kernel(*(tensor.data_ptr() for tensor in tensors), *counts, *FLOATS[tensors[0].dtype]) == 0


# Compiled code. `place` is the position of the sign bit in a lane. For a word `signs` of sign bits,
# signs | (signs - (signs >> place)) has all bits of the lanes whose sign bit is set.

ZERO = np.uint64(0)


def _compiled(pointers: int) -> Callable[[Any], Callable[..., int]]:
    """Return a decorator for a loop over this many tensors; its further arguments are rows, width and masks."""
    parameters = [types.CPointer(types.uint64)] * pointers + [types.int64] * 2 + [types.uint64] * 3
    passed = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 2 + [ctypes.c_uint64] * 3

    def compile_loop(loop: Any) -> Callable[..., int]:
        try:
            code = numba.cfunc(types.uint64(*parameters), cache=True)(loop)
        except (RuntimeError, OSError):  # the cache has no writable folder, or the disk is full
            code = numba.cfunc(types.uint64(*parameters))(loop)
        call: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_uint64, *passed)(code.address)
        call.code = code  # type: ignore[attr-defined] # the machine code must live as long as the call
        return call

    return compile_loop


@_compiled(2)
def _crelu(x, y, rows, width, sign, over, place):  # type: ignore[no-untyped-def]
    """Write [max(x, 0), max(-x, 0)] of rows of `width` words, zeros with their signs; return 0 without NaN."""
    inputs = carray(x, (rows, width))
    outputs = carray(y, (rows, 2 * width))
    nan = ZERO
    magnitude = ~sign
    for row in range(rows):
        for word in range(width):
            value = inputs[row, word]
            size = value & magnitude
            nonzero = (size + magnitude) & sign
            below = nonzero & value
            above = nonzero & ~value
            outputs[row, word] = value & ~(below | (below - (below >> place)))
            outputs[row, width + word] = (value ^ sign) & ~(above | (above - (above >> place)))
            nan |= size + over
    return nan & sign


@_compiled(3)
def _crelu_gradient(gradient, y, by_x, rows, width, sign, over, place):  # type: ignore[no-untyped-def]
    """Write the gradient by x of y = CReLU(x), and return 0 without NaN.

    It is dy_positive where y_positive > 0, minus dy_negative where y_negative > 0.
    """
    by_y = carray(gradient, (rows, 2 * width))
    value = carray(y, (rows, 2 * width))
    result = carray(by_x, (rows, width))
    nan = ZERO
    magnitude = ~sign
    for row in range(rows):
        for word in range(width):
            up = by_y[row, word]
            down = by_y[row, width + word]
            above = ((value[row, word] & magnitude) + magnitude) & sign
            below = ((value[row, width + word] & magnitude) + magnitude) & sign
            size = down & magnitude
            # 0 - down: the other sign, but +0 for zero of either sign.
            negated = size | ((size + magnitude) & sign & ~down)
            result[row, word] = (up & (above | (above - (above >> place)))) | (
                negated & (below | (below - (below >> place)))
            )
            nan |= (above & below) | (size + over) | ((up & magnitude) + over)
    return nan & sign
