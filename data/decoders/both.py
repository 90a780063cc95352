"""Decoding of JPEG by a GPU's decoder and by the cores at once, where a net learns faster than either decodes.

The number of a picture's record alone decides which of them decodes it, on any machine.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crelu_data import beton
from crelu_data.datasets import Ints, split_batches
from crelu_data.decoders.nvjpeg import Decode, NvjpegReader
from crelu_data.decoders.threads import AHEAD, ThreadReader

# A GPU decodes BY_GPU of EVERY pictures: an H200's decoder alone made 19,400 a second, 16 cores alone 14,300.
EVERY, BY_GPU = 12, 7


class BothReader:
    """Reader whose pictures come from `NvjpegReader` and `ThreadReader`; the tensors it yields are on the device."""

    def __init__(self, index: beton.Index, device: torch.device, workers: int, decode: Decode | None = None) -> None:
        """Decode on `device`, by nvJPEG or by another function, and in `workers` threads."""
        self._device = device
        self._gpu = NvjpegReader(index, device, AHEAD, decode)
        self._threads = ThreadReader(index, workers, device.type == "cuda")

    @property
    def decode_seconds(self) -> float:
        """Return the processor time of the threads, or of the GPU's thread where that has spent more."""
        return max(self._gpu.decode_seconds, self._threads.decode_seconds)

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order into uint8 (n, h, w, 3); the last tensor may be short."""
        if not len(order):
            return
        batches = split_batches(order, batch)
        on_gpu = self._gpu.read_parts([ids[by_gpu(ids)] for ids in batches])
        in_threads = self._threads.read_parts([ids[~by_gpu(ids)] for ids in batches])
        # Both parts of a batch lie one behind the other; these are the pictures' places there. Each copy makes the host
        # wait for the GPU, so there is one for all batches.
        places = np.concatenate([np.argsort(np.argsort(~by_gpu(ids), kind="stable")) for ids in batches])
        from_parts = torch.split(torch.from_numpy(places).to(self._device), batch)
        try:
            for first, second, where in zip(on_gpu, in_threads, from_parts, strict=True):
                yield torch.cat([first, second.to(self._device, non_blocking=True)]).index_select(0, where)
        finally:
            on_gpu.close()
            in_threads.close()

    def close(self) -> None:
        """End all threads."""
        self._gpu.close()
        self._threads.close()


def by_gpu(ids: Ints) -> NDArray[np.bool_]:
    """Return which of these records a GPU decodes."""
    return ids % EVERY < BY_GPU
