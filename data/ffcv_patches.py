"""Patches of FFCV 1.0.2, gathered here: every use of its private code, each with the fault that it mends.

FFCV is pinned to this version, and tests/data/test_ffcv_patches.py fails first where another one differs.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from crelu_data.beton import FIELDS, Bytes, Index, page_size
from crelu_data.datasets import RAW_UP_TO, Ints

_PATIENCE = 1.0  # seconds between checks that FFCV's thread is alive


def import_ffcv() -> None:
    """Import FFCV in 1 s instead of 6, without its side effects on this process; ValueError if it is not installed."""
    if not importlib.util.find_spec("ffcv"):
        raise ValueError(
            "FFCV is not installed: in the project's folder pip install '.[ffcv]'; or use the reader \"threads\" and "
            "--writer native"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # distutils, pkg_resources
        import numba
        import numba.typed

        if "NUMBA_THREADING_LAYER" not in os.environ:
            # Two loaders at once abort the process under "workqueue"; "tbb" warns at every later fork.
            numba.config.THREADING_LAYER = "omp"
        typed_dict = numba.typed.Dict
        threads = torch.get_num_threads()
        # FFCV stores two numbers in a numba.typed.Dict that only Python code reads; filling it costs 4.9 s of JIT.
        numba.typed.Dict = dict
        try:
            import ffcv.fields.rgb_image
        finally:
            numba.typed.Dict = typed_dict
            # The import sets torch to one thread.
            torch.set_num_threads(threads)
    # The compiler module uses torch for set_num_threads alone, which changes the whole process from several threads.
    ffcv.pipeline.compiler.ch = SimpleNamespace(set_num_threads=lambda _: None)


# Reading


def open_loader(
    index: Index, workers: int, ahead: int, pin: bool, failures: list[BaseException], count: Callable[[float], None]
) -> Any:
    """Return a Loader for all epochs over the file, decoding `ahead` batches in advance.

    Errors go to `failures`; `count` is called with the processor seconds of each batch.
    """
    import numba
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    from crelu_data.decoders import ffcv_stage

    with _without_compiled_reader():
        loader = Loader(
            str(index.path),
            batch_size=1,
            num_workers=min(workers, numba.config.NUMBA_NUM_THREADS),  # Numba refuses more
            order=OrderOption.SEQUENTIAL,
            seed=0,  # otherwise drawn from NumPy's global state
            drop_last=False,
            batches_ahead=ahead,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": None, "crc32": None},
        )
    # FFCV maps the file by name at its first epoch; by then another file may have that name.
    loader.memory_manager.context.__enter__()
    # FFCV compiles its stage at the first epoch of each process, for seconds; ours does the same and is kept on disk.
    # An exception in a stage kills FFCV's thread, and the consumer waits for ever.
    ((_, (node,)),), outputs = loader.code
    decode = ffcv_stage.decoder(index, loader.memory_manager.context.mmap, loader.num_workers)
    loader.code = [(_guarded(_stage(decode, f"memory_{node}"), failures, count), [node])], outputs
    # FFCV decodes into a ring of buffers and overwrites batches that the consumer still holds.
    loader.graph.allocate_memory = lambda batch, _: _new_memory(loader.graph, batch, pin)
    return loader


@contextmanager
def _without_compiled_reader() -> Iterator[None]:
    """Let a Loader that is made here compile no function that finds a record's bytes: our stage has the index."""
    from ffcv.memory_managers.os_cache import OSCacheManager

    genuine = OSCacheManager.compile_reader
    OSCacheManager.compile_reader = lambda _: None
    try:
        yield
    finally:
        OSCacheManager.compile_reader = genuine


def _stage(decode: Callable[[Ints, Bytes], None], memory: str) -> Callable[..., tuple[Bytes]]:
    """Return a decoder as a stage of FFCV's: from arguments by name to the results of its operations."""

    def stage(**arguments: Any) -> tuple[Bytes]:
        out: Bytes = arguments[memory]
        decode(np.asarray(arguments["batch_indices"], np.int64), out)
        return (out,)

    return stage


def start_epoch(loader: Any, order: Ints, batch: int) -> Any:
    """Return FFCV's running thread for one epoch over the records `order`, `batch` at a time."""
    # Loader's order= takes neither an instance nor a subclass, and its len() uses the first order.
    loader.batch_size = batch
    loader.traversal_order = SimpleNamespace(sample_order=lambda _: order)
    loader.first_traversal_order = order
    return iter(loader)


def next_pixels(epoch: Any, failures: list[BaseException]) -> Bytes:
    """Return the next batch, uint8 (n, h, w, 3); RuntimeError where FFCV's thread has ended.

    FFCV's own wait has no time limit and goes on after its thread has died.
    """
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
        cause = failures.pop() if failures else None
        raise RuntimeError(f"FFCV stopped in the middle of an epoch: {cause or 'its thread died'}") from cause
    pixels: Bytes = item[1][0]
    return pixels


def stop_epoch(epoch: Any) -> None:
    """End FFCV's thread at its next batch; an abandoned thread keeps waiting, with its buffers."""
    epoch.iter_ixes = iter(())
    epoch.close()
    while epoch.is_alive():
        try:
            epoch.output_queue.get(timeout=0.01)
        except Empty:
            continue
    epoch.join()


def _guarded(
    stage: Callable[..., Any], failures: list[BaseException], count: Callable[[float], None]
) -> Callable[..., Any]:
    """Return the stage, timed, with its errors in `failures`; StopIteration is how FFCV's thread ends in order."""

    def run(**arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return stage(**arguments)
        except Exception as error:
            failures.append(error)
            raise StopIteration from error
        finally:
            count(time.thread_time() - began)

    return run


def _new_memory(graph: Any, batch: int, pin: bool) -> dict[str, dict[int, Any]]:
    """Return FFCV's table of buffers with new memory for every batch of the decoder, our only operation."""
    requests, _ = graph.collect_requirements()
    (node,) = requests["operation"]
    shape = (batch, *map(int, requests["operation"][node].shape))
    return {"operation": {node: _NewMemory(shape, pin)}, "shared": {node: None}}


class _NewMemory:
    """Row of buffers in which every access gives a new one, so that a batch owns its memory without a copy."""

    def __init__(self, shape: tuple[int, ...], pin: bool) -> None:
        self._shape = shape
        self._pin = pin

    def __getitem__(self, slot: int) -> Bytes:
        memory: Bytes = torch.empty(self._shape, dtype=torch.uint8, pin_memory=self._pin).numpy()
        return memory


# Writing


class Writer(NamedTuple):
    """FFCV's writer without its loop, which waits for ever for a dead process.

    `job` runs in each process, `tables` are its arguments, `finalize` takes the allocations of all processes.
    """

    job: Callable[..., None]
    tables: tuple[Any, ...]
    finalize: Callable[[list[Any]], None]


@contextmanager
def open_writer(path: Path, count: int, size: int, quality: int) -> Iterator[Writer]:
    """Open a writer of `count` square pictures of side `size`; JPEG of this quality above RAW_UP_TO pixels."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.writer import DatasetWriter, worker_job_indexed_dataset

    image = RGBImageField(write_mode="jpg" if size > RAW_UP_TO else "raw", jpeg_quality=quality)
    fields = dict(zip(FIELDS, (image, IntField(), IntField()), strict=True))
    writer = DatasetWriter(os.fspath(path), fields, page_size=page_size(size))
    writer.num_samples = count
    writer.prepare()
    try:
        allocator = MemoryAllocator(writer.fname, writer.data_region_start, writer.page_size)
        tables = (writer.metadata_sm, writer.metadata_type, fields, allocator)
        yield Writer(worker_job_indexed_dataset, tables, writer.finalize)
    finally:
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()
