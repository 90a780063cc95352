"""Decoding of JPEG on the cores, by libjpeg-turbo with its exact DCT, and copying of stored pixels."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from crelu_data import beton
from crelu_data.datasets import Ints, split_batches

AHEAD = 3  # batches decoded in advance


class ThreadReader:
    """Reader on a pool of threads: decodes with libjpeg-turbo (exact DCT), or copies stored pixels."""

    def __init__(self, index: beton.Index, workers: int, pin: bool) -> None:
        """Start a pool of `workers` threads; `pin` allocates tensors in page-locked memory."""
        self._index = index
        self._workers = workers
        self._pin = pin
        self._stored = beton.mapped(index)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self.decode_seconds = 0.0

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order; the last tensor may be short."""
        return self.read_parts(split_batches(order, batch))

    def read_parts(self, parts: Sequence[Ints]) -> Generator[Tensor, None, None]:
        """Decode these records, a tensor for each part."""
        pending: deque[tuple[Tensor, list[Future[float]]]] = deque()
        try:
            for number in range(len(parts) + AHEAD):
                if number < len(parts):
                    pending.append(self._begin(parts[number]))
                if pending and number >= AHEAD:
                    pixels, shares = pending.popleft()
                    self.decode_seconds += sum(share.result() for share in shares) / self._workers
                    yield pixels
        finally:
            for share in (share for _, shares in pending for share in shares):
                share.cancel()

    def close(self) -> None:
        """End all threads."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, ids: Ints) -> tuple[Tensor, list[Future[float]]]:
        size = self._index.size
        pixels = torch.empty((len(ids), size, size, 3), dtype=torch.uint8, pin_memory=self._pin)
        decode = self._decode if self._index.jpeg else self._copy
        shares = zip(np.array_split(ids, self._workers), np.array_split(pixels.numpy(), self._workers), strict=True)
        return pixels, [self._pool.submit(_timed, decode, part, out) for part, out in shares if len(part)]

    def _decode(self, ids: Ints, out: beton.Bytes) -> None:
        import simplejpeg  # stored pixels do not need it

        for record, picture in zip(ids, out, strict=True):
            simplejpeg.decode_jpeg(beton.stored_bytes(self._index, self._stored, record), buffer=picture)

    def _copy(self, ids: Ints, out: beton.Bytes) -> None:
        windows = np.lib.stride_tricks.sliding_window_view(self._stored, out[0].size)
        out.reshape(len(out), -1)[:] = windows[self._index.pointers[ids]]


def _timed(decode: Callable[[Ints, beton.Bytes], None], ids: Ints, out: beton.Bytes) -> float:
    """Decode, and return the processor time of this thread that it took."""
    began = time.thread_time()
    decode(ids, out)
    return time.thread_time() - began
