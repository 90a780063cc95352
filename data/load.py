"""Batches of uint8 pictures from a .beton file: by FFCV's loader or by a pool of threads, to the same contract.

Both readers only decode. Order, restart in the middle of an epoch, ownership of the memory, checksums and
clean-up are settled here, because FFCV 1.0.2 leaves each of them open (tests/test_load.py shows how).
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from data import beton
from data.datasets import Ints, Sidecar, cores, read_sidecar

READERS = ("ffcv", "threads")
_AHEAD = 3  # batches decoded before they are asked for
_PATIENCE = 1.0  # seconds between looks at FFCV's thread


class Batch(NamedTuple):
    """Pictures uint8 (n, 3, h, w) in channels-last memory, labels int64 (n,), record numbers int64 (n,)."""

    images: Tensor
    labels: Tensor
    ids: Tensor


class Reader(Protocol):
    """Decodes records in a given order, `batch` at a time, into new uint8 tensors (n, h, w, 3) on the host."""

    decode_seconds: float  # processor time of decoding, of each thread

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order; the last tensor may be short."""

    def close(self) -> None:
        """End all threads."""


class Pictures:
    """An open .beton file. Close it, or use it in a `with` statement."""

    def __init__(
        self, index: beton.Index, sidecar: Sidecar, reader: Reader, device: torch.device, resident_bytes: int
    ) -> None:
        """Join an index, its sidecar and a reader; `open_pictures` does so with all checks."""
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
        """End the reader's threads and let go of the pictures."""
        self._reader.close()
        self._resident = None

    def batches(self, indices: Ints, batch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the pictures `indices` in exactly that order, `batch` at a time, from batch number `start` on.

        Batches own their memory; the last may be short. ValueError for an index outside the file, and, while
        reading, for a record whose bytes have changed since they were written.
        """
        order = np.ascontiguousarray(indices, np.int64)
        if batch < 1 or start < 0 or order.ndim != 1:
            raise ValueError(f"batch {batch} must be positive, start {start} not negative, indices a row")
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
        """Compare the stored bytes with their checksums, once for each record."""
        fresh = ids[~self._checked[ids]]
        for record in beton.damaged(self._index, self._stored, fresh):
            raise ValueError(
                f"picture {record} of {self._index.path} is damaged: its bytes are not those that were written; "
                f"python -m data prepare {self.sidecar.name} --fresh"
            )
        self._checked[fresh] = True

    def _read_all(self) -> Tensor:
        size, count = self._index.size, len(self)
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

    `reader` is "ffcv" or "threads", `workers` its threads (0: one a core). A set whose pixels fit in
    `resident_bytes` is read once and then served from the device's memory. ValueError where the file and its
    sidecar do not belong together, or FFCV is asked for and not installed.
    """
    if reader not in READERS:
        raise ValueError(f"no reader {reader!r}; one of {', '.join(READERS)}")
    sidecar, index = read_sidecar(path.with_suffix(".json")), beton.read_index(path)
    beton.check_pair(sidecar, index)
    place = torch.device(device)
    make = FFCVReader if reader == "ffcv" else ThreadReader
    return Pictures(index, sidecar, make(index, workers or cores(), place.type == "cuda"), place, resident_bytes)


def default_reader() -> str:
    """Return "ffcv" where it is installed, else "threads"."""
    return "ffcv" if importlib.util.find_spec("ffcv") else "threads"


class ThreadReader:
    """Decodes with libjpeg-turbo (exact DCT) in a pool of threads, or copies stored pixels."""

    def __init__(self, index: beton.Index, workers: int, pin: bool) -> None:
        """Start a pool of `workers` threads; `pin` places tensors in page-locked memory."""
        self._index = index
        self._workers = workers
        self._pin = pin
        self._stored = beton.mapped(index)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self.decode_seconds = 0.0

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order; the last tensor may be short."""
        begun: deque[tuple[Tensor, list[Future[float]]]] = deque()
        try:
            for first in range(0, len(order) + _AHEAD * batch, batch):
                if first < len(order):
                    begun.append(self._begin(order[first : first + batch]))
                if begun and first >= _AHEAD * batch:
                    pixels, parts = begun.popleft()
                    self.decode_seconds += sum(part.result() for part in parts) / self._workers
                    yield pixels
        finally:
            for part in (part for _, parts in begun for part in parts):
                part.cancel()

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
        import simplejpeg  # not needed for stored pixels

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


class FFCVReader:
    """Decodes with one FFCV Loader that is kept for all epochs (a new one would be compiled again)."""

    def __init__(self, index: beton.Index, workers: int, pin: bool) -> None:
        """Compile the decoder for up to `workers` threads; more than the cores would be refused by Numba."""
        if not importlib.util.find_spec("ffcv"):
            raise ValueError('FFCV is not installed: pip install "crelu-sweeps[ffcv]", or use the reader "threads"')
        import_ffcv()
        import numba
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption

        self._pin = pin
        self._failures: list[BaseException] = []
        self._running: list[Any] = []
        self.decode_seconds = 0.0
        self._loader: Any = Loader(
            str(index.path),
            batch_size=1,
            num_workers=min(workers, numba.config.NUMBA_NUM_THREADS),
            order=OrderOption.SEQUENTIAL,
            seed=0,  # otherwise drawn from NumPy's global state
            drop_last=False,
            batches_ahead=_AHEAD,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": None, "crc32": None},
        )
        stages, outputs = self._loader.code
        self._loader.code = [(self._guarded(stage), names) for stage, names in stages], outputs
        # FFCV maps the file at its first epoch, by name; by then another may stand there.
        self._loader.memory_manager.context.__enter__()
        # FFCV decodes into a ring of buffers, so that a batch changes under whoever keeps it.
        self._loader.graph.allocate_memory = self._allocated

    def read(self, order: Ints, batch: int) -> Generator[Tensor, None, None]:
        """Decode the records in order; the last tensor may be short."""
        # Loader's order= takes neither an instance nor a subclass, and its len() looks at the first order.
        self._loader.batch_size = batch
        self._loader.traversal_order = SimpleNamespace(sample_order=lambda epoch: order)
        self._loader.first_traversal_order = order
        epoch = iter(self._loader)
        self._running.append(epoch)
        try:
            for _ in range(0, len(order), batch):
                yield torch.from_numpy(self._next(epoch))
        finally:
            self._running.remove(epoch)
            _stop(epoch)

    def close(self) -> None:
        """End all threads."""
        for epoch in self._running:
            _stop(epoch)

    def _allocated(self, batch: int, slots: int) -> dict[str, dict[int, Any]]:
        """Stand in for FFCV's allocation: the decoder, our one operation, gets new memory for every batch."""
        requests, _ = self._loader.graph.collect_requirements()
        (node,) = requests["operation"]
        shape = (batch, *map(int, requests["operation"][node].shape))
        return {"operation": {node: _NewMemory(shape, self._pin)}, "shared": {node: None}}

    def _guarded(self, stage: Callable[..., Any]) -> Callable[..., Any]:
        """Keep an error of FFCV's thread for the consumer; StopIteration makes that thread end in good order."""

        def run(**arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return stage(**arguments)
            except Exception as error:
                self._failures.append(error)
                raise StopIteration from error
            finally:
                self.decode_seconds += time.thread_time() - began

        return run

    def _next(self, epoch: Any) -> beton.Bytes:
        """Take the next batch; FFCV's own wait has no time limit and outlives a dead thread."""
        item = None
        while True:
            alive = epoch.is_alive()
            try:
                item = epoch.output_queue.get(timeout=_PATIENCE if alive else 0)
                break
            except Empty:
                if not alive:
                    break
        if item is None:
            cause = self._failures.pop() if self._failures else None
            raise RuntimeError(f"FFCV stopped in the middle of an epoch: {cause or 'its thread died'}") from cause
        pixels: beton.Bytes = item[1][0]
        return pixels


class _NewMemory:
    """Looks like FFCV's row of buffers, but every look gives a new one: a batch owns its memory without a copy."""

    def __init__(self, shape: tuple[int, ...], pin: bool) -> None:
        self._shape = shape
        self._pin = pin

    def __getitem__(self, slot: int) -> beton.Bytes:
        memory: beton.Bytes = torch.empty(self._shape, dtype=torch.uint8, pin_memory=self._pin).numpy()
        return memory


def _stop(epoch: Any) -> None:
    """End FFCV's thread at its next batch; left alone it would wait for ever with its buffers."""
    epoch.iter_ixes = iter(())
    epoch.close()
    while epoch.is_alive():
        try:
            epoch.output_queue.get(timeout=0.01)
        except Empty:
            continue
    epoch.join()


def import_ffcv() -> None:
    """Import FFCV in 1 s instead of 6, without its side effects on this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # distutils, pkg_resources
        import numba
        import numba.typed

        if "NUMBA_THREADING_LAYER" not in os.environ:
            # Two loaders at once abort the process under "workqueue"; "tbb" warns at every later fork.
            numba.config.THREADING_LAYER = "omp"
        # FFCV keeps two numbers in a numba.typed.Dict that only Python code reads; filling it costs 4.9 s of JIT.
        genuine, threads = numba.typed.Dict, torch.get_num_threads()
        numba.typed.Dict = dict
        try:
            import ffcv.fields.rgb_image
        finally:
            numba.typed.Dict = genuine
            # Importing it takes torch's threads away, all but one.
            torch.set_num_threads(threads)
    # The one use of torch in that module is set_num_threads, for the whole process, from several threads.
    ffcv.pipeline.compiler.ch = SimpleNamespace(set_num_threads=lambda count: None)
