"""Decoding of JPEG on a GPU, by NVIDIA's decoder in torchvision.

Its pixels differ from those of libjpeg-turbo in the last bits, so a trial whose pictures it decodes is another trial.
It takes the encoded pictures from the host's memory, where the mapped file lies once it has been read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from crelu_data import beton
from crelu_data.datasets import Ints, split_batches

# From the bytes of JPEGs, uint8 (n,) each, to their pixels, uint8 (3, h, w) each on the device.
Decode = Callable[[list[Tensor]], list[Tensor]]


class NvjpegReader:
    """Reader that decodes batches ahead in a thread, on a stream of its own; the tensors it yields are on the GPU."""

    def __init__(self, index: beton.Index, device: torch.device, ahead: int, decode: Decode | None = None) -> None:
        """Decode `ahead` batches in advance on `device`, by nvJPEG or by another function."""
        self._index = index
        self._device = device
        self._ahead = ahead
        self._decode = decode or _nvjpeg(device)
        self._stored = beton.mapped(index)
        # Torch deals out 32 streams of a priority in turn: one of a higher priority is none that records steps.
        self._stream = torch.cuda.Stream(device, -1) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self.decode_seconds = 0.0

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order into uint8 (n, h, w, 3); the last tensor may be short."""
        return self.read_parts(split_batches(order, batch))

    def read_parts(self, parts: Sequence[Ints]) -> Generator[Tensor, None, None]:
        """Decode these records into uint8 (n, h, w, 3), a tensor for each part."""
        pending: deque[Future[tuple[Tensor, float]]] = deque()
        try:
            for number in range(len(parts) + self._ahead):
                if number < len(parts):
                    pending.append(self._pool.submit(self._pixels, parts[number]))
                if pending and number >= self._ahead:
                    pixels, seconds = pending.popleft().result()
                    self.decode_seconds += seconds
                    if pixels.is_cuda:  # its memory may not be used anew before the consumer's stream is done with it
                        pixels.record_stream(torch.cuda.current_stream(self._device))
                    yield pixels
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _pixels(self, ids: Ints) -> tuple[Tensor, float]:
        """Return the pixels of these records, and the processor seconds of this thread that they took."""
        began = time.thread_time()
        encoded = [torch.from_numpy(np.array(beton.stored_bytes(self._index, self._stored, record))) for record in ids]
        if not encoded:
            size = self._index.size
            return torch.empty((0, size, size, 3), dtype=torch.uint8, device=self._device), 0.0
        with self._on_stream():
            pixels = torch.stack(self._decode(encoded)).permute(0, 2, 3, 1).contiguous()
        if self._stream is not None:
            self._stream.synchronize()
        return pixels, time.thread_time() - began

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _nvjpeg(device: torch.device) -> Decode:
    """Return torchvision's function for this device; ValueError for one that is no GPU."""
    if device.type != "cuda":
        raise ValueError("the readers nvjpeg and both decode on a GPU: take the reader ffcv or threads")
    from torchvision.io import ImageReadMode, decode_jpeg  # takes seconds

    def decode(encoded: list[Tensor]) -> list[Tensor]:
        pictures: list[Tensor] = decode_jpeg(encoded, ImageReadMode.RGB, device=device)
        return pictures

    return decode
