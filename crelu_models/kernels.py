"""The loops of CReLU and of its gradient on one CPU thread, compiled by Numba: they go through each tensor once.

A float is a sign and a magnitude, and CReLU needs no arithmetic of it: it is a mask, taken of eight bytes at once, four
bf16 or two fp32. What a mask does not answer as arithmetic would, which is NaN, a loop tells: then what it has written
is void, and torch is to be asked.
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
    """Return for floats of so many bits, of which infinity has these: the signs in a word, what sets the place of the
    sign when added to the magnitude of NaN, and that place.
    """
    each = sum(1 << bits * lane for lane in range(8 * WORD // bits))
    return each << bits - 1, each * ((1 << bits - 1) - 1 - infinity), bits - 1


FLOATS = {
    torch.bfloat16: _lanes(16, 0x7F80),
    torch.float16: _lanes(16, 0x7C00),
    torch.float32: _lanes(32, 0x7F800000),
}


def take(x: Tensor, rows: int) -> bool:
    """Return whether the loops take x, a tensor on a CPU without gaps: floats, each of the `rows` of whole words."""
    return x.dtype in FLOATS and x.numel() * x.element_size() % (WORD * rows) == 0


def crelu(x: Tensor, y: Tensor, rows: int) -> bool:
    """Write [max(x, 0), max(-x, 0)] of each row of x; False for NaN."""
    return _call(_crelu, (x, y), rows, _words(x) // rows)


def crelu_gradient(gradient: Tensor, y: Tensor, by_x: Tensor, rows: int) -> bool:
    """Write the gradient by x, from that by y = crelu(x); False for NaN."""
    return _call(_crelu_gradient, (gradient, y, by_x), rows, _words(by_x) // rows)


def _words(x: Tensor) -> int:
    return x.numel() * x.element_size() // WORD


def _call(kernel: Callable[..., int], tensors: tuple[Tensor, ...], *counts: int) -> bool:
    return kernel(*(each.data_ptr() for each in tensors), *counts, *FLOATS[tensors[0].dtype]) == 0


# What Numba compiles. Below, `place` is that of a lane's sign, and signs - (signs >> place), with the signs, are the
# lanes that have one, whole. --------------------------------------------------------------------------------------

NOTHING = np.uint64(0)


def _compiled(pointers: int) -> Callable[[Any], Callable[..., int]]:
    """Return a decorator for a loop over so many tensors; it takes rows, their words, and the numbers of FLOATS too."""
    kinds = [types.CPointer(types.uint64)] * pointers + [types.int64] * 2 + [types.uint64] * 3
    passed = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 2 + [ctypes.c_uint64] * 3

    def compile_it(loop: Any) -> Callable[..., int]:
        try:
            made = numba.cfunc(types.uint64(*kinds), cache=True)(loop)
        except (RuntimeError, OSError):  # no folder for it can be written to, or the disk is full
            made = numba.cfunc(types.uint64(*kinds))(loop)
        call: Callable[..., int] = ctypes.CFUNCTYPE(ctypes.c_uint64, *passed)(made.address)
        call.code = made  # type: ignore[attr-defined] # which lives as long as the call
        return call

    return compile_it


@_compiled(2)
def _crelu(x, y, rows, width, sign, over, place):  # type: ignore[no-untyped-def]
    """Write [max(x, 0), max(-x, 0)] of rows of `width` words, zeros with their signs; 0 but for NaN."""
    given, made, odd, rest = carray(x, (rows, width)), carray(y, (rows, 2 * width)), NOTHING, ~sign
    for row in range(rows):
        for word in range(width):
            value = given[row, word]
            size = value & rest
            there = (size + rest) & sign
            below, above = there & value, there & ~value
            made[row, word] = value & ~(below | (below - (below >> place)))
            made[row, width + word] = (value ^ sign) & ~(above | (above - (above >> place)))
            odd |= size + over
    return odd & sign


@_compiled(3)
def _crelu_gradient(gradient, y, by_x, rows, width, sign, over, place):  # type: ignore[no-untyped-def]
    """Write the gradient by x from that by y = CReLU(x): up - down, where those are positive; 0 but for NaN."""
    given, value, made = carray(gradient, (rows, 2 * width)), carray(y, (rows, 2 * width)), carray(by_x, (rows, width))
    odd, rest = NOTHING, ~sign
    for row in range(rows):
        for word in range(width):
            up, down = given[row, word], given[row, width + word]
            above = ((value[row, word] & rest) + rest) & sign
            below = ((value[row, width + word] & rest) + rest) & sign
            size = down & rest
            # 0 - down: its sign turned, and +0 where it is a zero of either sign.
            turned = size | ((size + rest) & sign & ~down)
            made[row, word] = (up & (above | (above - (above >> place)))) | (
                turned & (below | (below - (below >> place)))
            )
            odd |= (above & below) | (size + over) | ((up & rest) + over)
    return odd & sign
