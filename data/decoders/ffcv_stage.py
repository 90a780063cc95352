"""Decoding of a batch by FFCV's C function, in loops that Numba compiles once a machine and keeps on disk.

FFCV compiles the same loops anew in every process: Numba cannot keep code that holds the address of a C function. Here
that function has a name, and the address of the name is told to the linker in each process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from ffcv import libffcv
from numba import types

from crelu_data.beton import Bytes, Index
from crelu_data.datasets import Ints

DECODE, COPY = "crelu_ffcv_imdecode", "crelu_ffcv_memcpy"
for name, function in ((DECODE, libffcv.ctypes_imdecode), (COPY, libffcv.ctypes_memcopy)):
    llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)

# Source and its bytes, its height and width, destination; height, width, top and left of a crop, numerator and
# denominator of a scale, whether to crop, whether to mirror: with 0, 0 the whole picture as it is.
_imdecode = types.ExternalFunction(
    DECODE, types.int32(types.uintp, types.uint64, types.uint32, types.uint32, types.uintp, *[types.uint32] * 8)
)
_memcpy = types.ExternalFunction(COPY, types.void(types.uintp, types.uintp, types.uint64))

Loop = Callable[..., None]


def _compiled(parallel: bool) -> Callable[[Any], Loop]:
    """Return a decorator for a loop over a batch; its machine code is kept where a folder for it can be written."""

    def compile_loop(loop: Any) -> Loop:
        options = {"nogil": True, "error_model": "numpy", "parallel": parallel}
        try:
            compiled: Loop = numba.njit(cache=True, **options)(loop)
        except (RuntimeError, OSError):  # the cache has no writable folder, or the disk is full
            compiled = numba.njit(**options)(loop)
        return compiled

    return compile_loop


@_compiled(parallel=False)
def _decode_one(address: Any, size: Any, side: Any, target: Any, jpeg: Any) -> None:
    if jpeg:
        _imdecode(address, size, side, side, target, side, side, 0, 0, 1, 1, 0, 0)
    else:
        _memcpy(address, target, size)


@_compiled(parallel=False)
def _decode_in_turn(stored: Any, pointers: Any, sizes: Any, records: Any, out: Any, jpeg: Any) -> None:
    side = out.shape[1]
    for row in range(len(records)):
        record = records[row]
        _decode_one(stored + pointers[record], sizes[record], side, out[row].ctypes.data, jpeg)


@_compiled(parallel=True)
def _decode_in_threads(stored: Any, pointers: Any, sizes: Any, records: Any, out: Any, jpeg: Any) -> None:
    side = out.shape[1]
    for row in numba.prange(len(records)):
        record = records[row]
        _decode_one(stored + pointers[record], sizes[record], side, out[row].ctypes.data, jpeg)


def decoder(index: Index, stored: Bytes, workers: int) -> Callable[[Ints, Bytes], None]:
    """Return a function that decodes these records of a mapped file into uint8 (n, size, size, 3)."""
    loop = _decode_in_threads if workers > 1 else _decode_in_turn
    address = np.uint64(stored.ctypes.data)

    def decode(records: Ints, out: Bytes) -> None:
        loop(address, index.pointers.astype(np.uint64), index.sizes.astype(np.uint64), records, out, index.jpeg)

    return decode
