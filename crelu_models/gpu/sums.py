"""Sums of a map's rows for each channel, as of a bias's gradient, in the order in which torch adds them on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crelu_models.gpu.language import BLOCK, jit, kernel, plus, rounded

THREADS = 512  # of a block of torch's sum, over the numbers that a thread takes at once
WARP = 32
LEAST_ROWS, MOST_ROWS = 16, 256  # of a thread
TILES = 8  # of a part, where the order may be any
AT_ONCE = 8  # parts that a thread reads before it adds the first
COLUMNS = 32  # of a program that adds the parts


class Order(NamedTuple):
    """Order of a sum of rows: row r is added in thread r % high of part r // high % parts.

    A thread has four sums; its rows go to the first, the second, the third, the fourth, and to the first again. The
    four are added. One half of a part's threads is added to the other half, until one is left. Part p is then added in
    thread p % high, and these threads are halved in the same way.
    """

    high: int
    parts: int

    @property
    def step(self) -> int:
        """Return the rows between two of a thread."""
        return self.high * self.parts

    @property
    def halvings(self) -> int:
        """Return how often the threads of a part are halved."""
        return self.high.bit_length() - 1


def torch_order(rows: int, channels: int, processors: int, threads: int) -> Order | None:
    """Return torch's order, on a GPU of so many processors with so many threads each; None where all is one part.

    It is that of torch's kernel (2.11 to 2.15), for rows whose channels lie side by side in memory.
    """
    together = next(count for count in (4, 2, 1) if channels % count == 0)
    columns = channels // together
    wide = min(1 << (columns.bit_length() - 1), WARP)
    high = THREADS // together // wide
    of_a_thread, blocks = -(-rows // high), -(-columns // wide)
    at_once = processors * (threads // (wide * high))
    if of_a_thread < MOST_ROWS or blocks > at_once:
        return None
    parts = max(-(-of_a_thread // MOST_ROWS), min(-(-at_once // blocks), -(-of_a_thread // LEAST_ROWS)))
    return Order(high, parts) if parts > 1 else None


def any_order(rows: int, channels: int) -> Order:
    """Return an order in which each program takes some tiles of rows."""
    high = BLOCK // _wide(channels, 1)
    return Order(high, -(-rows // (high * TILES)))


def tile(order: Order, channels: int) -> tuple[int, int]:
    """Return the height and the width of the tiles that a part is read in."""
    return order.high, _wide(channels, order.high)


@jit
def halved(total, high: tl.constexpr, wide: tl.constexpr, halvings: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the sum of all threads' sums: a half of them is added to the other half, until one is left."""
    for n in tl.static_range(halvings):
        total = tl.reduce(tl.reshape(total, [2, high >> (n + 1), wide]), 0, plus)
    return total


@kernel("parts", "width")
def _add_parts(  # type: ignore[no-untyped-def]
    sums, result, parts, width,
    high: tl.constexpr, wide: tl.constexpr, halvings: tl.constexpr, together: tl.constexpr,
):  # fmt: skip
    """Add the sums of all parts for some columns; `together` rows of them are read before they are added."""
    column = tl.program_id(0) * wide + tl.arange(0, wide)[None, :]
    total = tl.full([high, wide], 0.0, tl.float32)
    for begin in range(0, parts, high * together):
        read = ()
        for n in tl.static_range(together):
            part = begin + n * high + tl.arange(0, high)[:, None]
            one = tl.load(sums + part * width + column, (part < parts) & (column < width), 0.0)
            read = read + (one,)  # type: ignore[assignment]
        for n in tl.static_range(together):
            total += read[n]
    total = halved(total, high, wide, halvings)
    tl.store(result + column, rounded(total, result.dtype.element_ty), column < width)


def add_parts(sums: Tensor, order: Order, dtype: torch.dtype) -> Tensor:
    """Return the sum of the parts' sums (parts, channels), rounded to a type."""
    channels = sums.shape[1]
    result = torch.empty(channels, dtype=dtype, device=sums.device)
    with torch.cuda.device_of(sums):  # type: ignore[no-untyped-call]
        _add_parts[(triton.cdiv(channels, COLUMNS),)](
            sums, result, order.parts, channels, order.high, COLUMNS, order.halvings, AT_ONCE, enable_fp_fusion=False
        )
    return result


def _wide(channels: int, high: int) -> int:
    """Return the width of a tile of so many rows."""
    return int(min(BLOCK // high, triton.next_power_of_2(channels)))
