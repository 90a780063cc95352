"""Batches of uint8 pictures from a .beton file, decoded by FFCV's loader or by a pool of threads, with equal results.

A reader only decodes. This module defines the order, the restart in the middle of an epoch, the checksums and the
clean-up, because FFCV 1.0.2 guarantees none of them; tests/data/test_load.py shows each case.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from crelu_data import beton, ffcv_patches
from crelu_data.cores import cores
from crelu_data.datasets import Ints, Sidecar, remedy
from crelu_data.decoders.both import BothReader
from crelu_data.decoders.nvjpeg import NvjpegReader
from crelu_data.decoders.threads import AHEAD, ThreadReader

READERS = ("ffcv", "threads", "nvjpeg", "both")


class Batch(NamedTuple):
    """Batch of pictures uint8 (n, 3, h, w) in channels-last memory, labels int64 (n,) and record numbers int64 (n,)."""

    images: Tensor
    labels: Tensor
    ids: Tensor


class Reader(Protocol):
    """Decoder of records in a given order, `batch` at a time, into new uint8 tensors (n, h, w, 3)."""

    @property
    def decode_seconds(self) -> float:
        """Return the processor time of decoding, of each thread."""

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order; the last tensor may be short."""

    def close(self) -> None:
        """End all threads."""


class Pictures:
    """Pictures of an open .beton file. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        index: beton.Index,
        sidecar: Sidecar,
        reader: Reader,
        device: torch.device,
        resident_bytes: int,
        decoder: str = "",
    ) -> None:
        """Combine an index, its sidecar and a reader; `open_pictures` checks them first.

        `decoder` names what decides the pixels of JPEG; empty where they are stored as they are.
        """
        self.decoder = decoder
        self.sidecar = sidecar
        self.labels: Ints = index.labels
        self._index = index
        self._reader = reader
        self._device = device
        self._fits = 3 * index.size**2 * len(index.labels) <= resident_bytes
        self._resident: Tensor | None = None
        self._stored = beton.mapped(index)
        self._checked = np.zeros(len(index.labels), bool)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resident(self) -> bool:
        """Return whether the decoded pictures stay on the device."""
        return self._fits

    @property
    def decode_seconds(self) -> float:
        """Return the processor time that each of the reader's threads has spent on decoding."""
        return self._reader.decode_seconds

    def __enter__(self) -> Pictures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the reader's threads and free the pictures."""
        self._reader.close()
        self._resident = None

    def picture(self, record: int) -> beton.Bytes:
        """Return the pixels uint8 (h, w, 3) of one picture, decoded here and now: in any process, also a forked one.

        ValueError for a record whose bytes have changed since they were written.
        """
        self._check(np.array([record]))
        stored = beton.stored_bytes(self._index, self._stored, record)
        if self._index.jpeg:
            import simplejpeg  # stored pixels do not need it

            return np.asarray(simplejpeg.decode_jpeg(stored))
        return np.array(stored).reshape(self._index.size, self._index.size, 3)

    def batches(self, indices: Ints, batch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield batches of the pictures `indices` in that order, `batch` at a time, from batch number `start` on.

        Batches own their memory; the last may be short. ValueError for an index outside the file, and while reading
        for a record whose bytes have changed since they were written.
        """
        order = np.ascontiguousarray(indices, np.int64)
        if batch < 1 or start < 0 or order.ndim != 1:
            raise ValueError(f"batch {batch} must be positive, start {start} not negative, indices one-dimensional")
        if len(order) and not 0 <= order.min() <= order.max() < len(self):
            raise ValueError(f"indices {order.min()}..{order.max()} are not all in 0..{len(self) - 1}")
        return self._batches(order[start * batch :], batch)

    def _batches(self, order: Ints, batch: int) -> Generator[Batch, None, None]:
        if self._fits and self._resident is None:
            self._resident = self._read_all()
        stream = self._gathered(order, batch) if self._resident is not None else self._decoded(order, batch)
        labels = torch.from_numpy(self.labels[order]).to(self._device)
        ids = torch.from_numpy(order).to(self._device)
        for number, pixels in enumerate(stream):
            part = slice(number * batch, (number + 1) * batch)
            yield Batch(pixels.permute(0, 3, 1, 2), labels[part], ids[part])

    def _gathered(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        assert self._resident is not None
        on_device = torch.from_numpy(order).to(self._device)
        for first in range(0, len(order), batch):
            yield self._resident.index_select(0, on_device[first : first + batch])

    def _decoded(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        stream = self._reader.read(order, batch)
        try:
            for first in range(0, len(order), batch):
                self._check(order[first : first + batch])
                yield next(stream).to(self._device, non_blocking=True)
        finally:
            stream.close()

    def _check(self, ids: Ints) -> None:
        """Compare the stored bytes of these records with their checksums, once for each record."""
        unchecked = ids[~self._checked[ids]]
        for record in beton.damaged(self._index, self._stored, unchecked):
            raise ValueError(
                f"picture {record} of {self._index.path} is damaged: its bytes have changed since they were written; "
                f"{remedy(self.sidecar, self._index.path.parent)}"
            )
        self._checked[unchecked] = True

    def _read_all(self) -> Tensor:
        size = self._index.size
        count = len(self)
        store = torch.empty((count, size, size, 3), dtype=torch.uint8, device=self._device)
        batch = max(1, (1 << 24) // (3 * size * size))
        for number, pixels in enumerate(self._decoded(np.arange(count), batch)):
            store[number * batch : number * batch + len(pixels)] = pixels
        return store


def open_pictures(
    path: Path,
    *,
    reader: str = "ffcv",
    workers: int = 0,
    device: torch.device | str = "cpu",
    resident_bytes: int = 2 << 30,
) -> Pictures:
    """Open a .beton file and the sidecar beside it.

    `reader` is "ffcv", "threads" or, on a GPU, "nvjpeg" or "both"; `workers` its threads (0: one per core). Pixels that
    fit in `resident_bytes` are read once and then served from the device's memory. ValueError where the file and its
    sidecar do not match, or where this machine lacks what `reader` names.
    """
    if reader not in READERS:
        raise ValueError(f"unknown reader {reader!r}; use one of {', '.join(READERS)}")
    sidecar, index = beton.read_pair(path)
    target = torch.device(device)
    decoder: Reader
    if reader == "nvjpeg" and index.jpeg:
        decoder = NvjpegReader(index, target, AHEAD)
    elif reader == "both" and index.jpeg:
        decoder = BothReader(index, target, workers or cores())
    else:
        kind = FFCVReader if reader == "ffcv" else ThreadReader
        decoder = kind(index, workers or cores(), target.type == "cuda")
    return Pictures(index, sidecar, decoder, target, resident_bytes, reader if index.jpeg else "")


def default_reader() -> str:
    """Return the reader "ffcv" where FFCV is installed, else "threads"."""
    return "ffcv" if importlib.util.find_spec("ffcv") else "threads"


class FFCVReader:
    """Reader on one FFCV Loader that serves all epochs (a new one would be compiled again)."""

    def __init__(self, index: beton.Index, workers: int, pin: bool) -> None:
        """Compile the decoder for up to `workers` threads, at most one per core."""
        ffcv_patches.import_ffcv()
        self._failures: list[BaseException] = []
        self._epochs: list[Any] = []
        self.decode_seconds = 0.0
        self._loader: Any = ffcv_patches.open_loader(index, workers, AHEAD, pin, self._failures, self._count)

    def _count(self, seconds: float) -> None:
        self.decode_seconds += seconds

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order; the last tensor may be short."""
        epoch = ffcv_patches.start_epoch(self._loader, order, batch)
        self._epochs.append(epoch)
        try:
            for _ in range(0, len(order), batch):
                yield torch.from_numpy(ffcv_patches.next_pixels(epoch, self._failures))
        finally:
            self._epochs.remove(epoch)
            ffcv_patches.stop_epoch(epoch)

    def close(self) -> None:
        """End all threads."""
        for epoch in self._epochs:
            ffcv_patches.stop_epoch(epoch)
