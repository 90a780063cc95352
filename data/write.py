"""From originals to a .beton file and its sidecar, whole or not at all; and back again to verify them."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data import beton
from data.datasets import (
    RAW_UP_TO,
    SPLITS,
    Colour,
    Sidecar,
    beton_path,
    canonical,
    cores,
    read_sidecar,
    stem,
    write_sidecar,
)
from data.sources import Picture, Source, sources, subset
from data.storage import exclusive_lock

if TYPE_CHECKING:
    from data.ffcv_patches import Writer

Progress = Callable[[str, int, int], None]  # what is being done, done, total

WRITERS = ("ffcv", "native")
_CHUNK = 100  # pictures a process takes at a time
_MEASURE_ALL, _MEASURE = 60_000, 20_000  # pictures behind the colour statistics: all, or that many of more


class _Way(NamedTuple):
    """How pictures are written."""

    writer: str
    quality: int
    workers: int


class _Colours(NamedTuple):
    """Colour statistics of a file as its sidecar names them."""

    mean: Colour
    std: Colour
    eigenvalues: Colour
    eigenvectors: tuple[Colour, ...]
    measured: int


def prepare(
    name: str,
    where: Path,
    *,
    origin: Path | None = None,
    size: int | None = None,
    quality: int | None = None,
    seed: int | None = None,
    workers: int = 0,
    writer: str = "",
    fresh: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Sidecar]:
    """Write the splits of a data set that are not in `where` yet, and return all sidecars by split.

    `origin` is where the originals lie (default: $IMAGENET_DIR for ImageNet, `where` or a download for CIFAR),
    `size` the stored side of a folder's pictures, `quality` of JPEG (default 90; sides up to 64 are stored as
    pixels), `seed` that of a folder's split (default 0), `writer` "ffcv" (default where installed) or "native".
    `fresh` writes again what is there. One unreadable picture in a thousand, and one in any split, is left out
    and logged; more are a ValueError, as is anything that is missing or does not fit.
    """
    writer = writer or ("ffcv" if importlib.util.find_spec("ffcv") else "native")
    if writer not in WRITERS or not 1 <= (quality or 90) <= 100 or not 16 <= (size or 256) <= 4096:
        raise ValueError(f"writer {writer!r}: {', '.join(WRITERS)}; quality {quality}: 1..100; size {size}: 16..4096")
    asked = {"size": size, "quality": quality, "seed": seed}
    if not fresh and _complete(found := _there(name, where, asked)):
        return found
    where.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(where / f".{stem(name)}.lock"):
        found = {} if fresh else _there(name, where, asked)
        if _complete(found):  # by another process, while this one waited
            return found
        way = _Way(writer, quality or 90, workers or cores())
        for split, source in sources(name, origin, where, size, seed or 0).items():
            if split not in found:
                found[split] = _prepared(name, split, source, beton_path(name, split, where), way, progress)
        return found


def _complete(found: dict[str, Sidecar]) -> bool:
    return "train" in found and len(found) > 1


def _there(name: str, where: Path, asked: dict[str, int | None]) -> dict[str, Sidecar]:
    """Return the sidecars of the splits that are whole.

    ValueError for a file that is not its sidecar's, or was written with other options than those asked for.
    """
    found = {}
    for split in SPLITS:
        path = beton_path(name, split, where)
        if path.exists() and path.with_suffix(".json").exists():
            found[split] = read_sidecar(path.with_suffix(".json"))
            beton.check_pair(found[split], beton.read_index(path))
            for option, value in asked.items():
                other = getattr(found[split], option)
                if value not in (None, other) and not (option == "quality" and found[split].mode == "raw"):
                    raise ValueError(f"{name} is there with {option} {other}, not {value}; --fresh writes it again")
    return found


def _prepared(name: str, split: str, source: Source, path: Path, way: _Way, progress: Progress) -> Sidecar:
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        kept = _written(unfinished, source, split, way, progress)
        index = beton.seal(unfinished)
        colours = _colours(index, way.workers, lambda done, total: progress(f"measuring {split}", done, total))
        skipped = len(source.labels) - len(kept.labels)
        sidecar = _described(index, canonical(name), split, kept, way, colours, skipped)
        # The sidecar first: ended in between, the pair does not match and says so, and nothing passes for whole.
        write_sidecar(path.with_suffix(".json"), sidecar)
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        unfinished.unlink(missing_ok=True)
    return sidecar


def _described(
    index: beton.Index, name: str, split: str, source: Source, way: _Way, colours: _Colours, skipped: int
) -> Sidecar:
    return Sidecar(
        name=name,
        split=split,
        classes=len(source.class_names),
        class_names=source.class_names,
        count=len(index.labels),
        size=index.size,
        mode="jpeg" if index.jpeg else "raw",
        quality=way.quality if index.jpeg else 0,
        seed=source.seed,
        mean=colours.mean,
        std=colours.std,
        eigenvalues=colours.eigenvalues,
        eigenvectors=colours.eigenvectors,
        label_counts=tuple(np.bincount(index.labels, minlength=len(source.class_names)).tolist()),
        measured=colours.measured,
        skipped=skipped,
        writer=way.writer,
        fingerprint=beton.fingerprint(index),
        index=index.digest,
        file_bytes=index.path.stat().st_size,
    )


def _colours(index: beton.Index, workers: int, report: Callable[[int, int], None]) -> _Colours:
    """Measure the stored colours, in 0..1.

    Sums of whole numbers below 2**53 are exact in float64, so neither threads nor batches change a digit.
    """
    from data.load import ThreadReader  # imports torch: seconds that a set already there need not take

    count = len(index.labels)
    taken = np.arange(count) if count <= _MEASURE_ALL else np.linspace(0, count - 1, _MEASURE).astype(np.int64)
    first, second, pixels = np.zeros(3), np.zeros((3, 3)), 0
    reader = ThreadReader(index, workers, pin=False)
    try:
        for pictures in reader.read(taken, max(1, (1 << 21) // index.size**2)):
            colours = pictures.numpy().reshape(-1, 3).astype(np.float64)
            first += colours.sum(0)
            second += colours.T @ colours
            pixels += len(colours)
            report(pixels // index.size**2, len(taken))
    finally:
        reader.close()
    mean = first / pixels / 255
    covariance = second / pixels / 255**2 - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    vectors = vectors * np.where(vectors.sum(0) < 0, -1, 1)  # eigh leaves the signs open
    std = np.sqrt(covariance.diagonal().clip(1e-6))  # a set of one colour can be normalised too
    return _Colours(_three(mean), _three(std), _three(values), tuple(_three(row) for row in vectors), len(taken))


def _three(row: np.ndarray[Any, np.dtype[np.float64]]) -> Colour:
    return float(row[0]), float(row[1]), float(row[2])


# Writing


class _Samples:
    """The records in FFCV's order of fields. An unreadable picture gives a blank with the label -1, no exception:
    one would end the process that reads, and FFCV would wait for it for ever.
    """

    def __init__(self, source: Source, allowed: int) -> None:
        self._source = source
        self._allowed = allowed
        self._failed = 0

    def __len__(self) -> int:
        return len(self._source.labels)

    def __getitem__(self, record: int) -> tuple[Picture, int, int]:
        source = self._source
        if self._failed <= self._allowed:
            try:
                return np.ascontiguousarray(source.picture(record)), int(source.labels[record]), 0
            except Exception:  # whatever a decoder raises on anyone's files
                self._failed += 1
        return np.zeros((source.size, source.size, 3), np.uint8), -1, 0


def _written(path: Path, source: Source, split: str, way: _Way, progress: Progress) -> Source:
    """Write all readable pictures and return the source of just those."""
    count = len(source.labels)
    allowed = max(1, count // 1000)
    write = _write_ffcv if way.writer == "ffcv" else _write_native
    write(path, _Samples(source, allowed), source.size, way, lambda done: progress(f"writing {split}", done, count))
    failed = np.flatnonzero(beton.read_index(path).labels < 0)
    if not len(failed):
        return source
    named = "; ".join(f"{source.name_of(int(record))} ({_reason(source, int(record))})" for record in failed[:5])
    if len(failed) > allowed or len(failed) == count:
        many = f"{len(failed)} or more" if len(failed) > allowed else str(len(failed))
        raise ValueError(f"{many} of {count} pictures are unreadable, at most {allowed} may be left out: {named}")
    logging.getLogger("data").warning("%s: left out %d unreadable of %d: %s", split, len(failed), count, named)
    return _written(path, subset(source, np.setdiff1d(np.arange(count), failed)), split, way, progress)


def _reason(source: Source, record: int) -> str:
    try:
        source.picture(record)
    except Exception as error:
        return str(error) or type(error).__name__
    return "readable at a second look"


def _write_native(path: Path, samples: _Samples, size: int, way: _Way, report: Callable[[int], None]) -> None:
    jpeg = size > RAW_UP_TO

    def encoded(record: int) -> tuple[bytes, int]:
        picture, label, _ = samples[record]
        return _jpeg(picture, way.quality) if jpeg else picture.tobytes(), label

    def all_encoded(pool: ThreadPoolExecutor) -> Iterator[tuple[bytes, int]]:
        for first in range(0, len(samples), _CHUNK):
            yield from pool.map(encoded, range(first, min(first + _CHUNK, len(samples))))
            report(min(first + _CHUNK, len(samples)))

    with ThreadPoolExecutor(way.workers) as pool:
        beton.write(path, len(samples), all_encoded(pool), size, jpeg)


def _jpeg(picture: Picture, quality: int) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _write_ffcv(path: Path, samples: _Samples, size: int, way: _Way, report: Callable[[int], None]) -> None:
    """Write with FFCV's own worker in processes that this module watches."""
    from data import ffcv_patches  # imports torch

    ffcv_patches.import_ffcv()
    workers = min(way.workers, -(-len(samples) // _CHUNK))
    with ffcv_patches.open_writer(path, len(samples), size, way.quality) as writer:
        writer.finalize(_run_writers(writer, samples, workers, report))


def _run_writers(writer: Writer, samples: _Samples, workers: int, report: Callable[[int], None]) -> list[Any]:
    """Run FFCV's job in processes and return their allocations; OSError as soon as one of them dies."""
    todo: Any = multiprocessing.Queue()
    results: Any = multiprocessing.Queue()
    done: Any = multiprocessing.Value("Q", 0)
    for first in range(0, len(samples), _CHUNK):
        todo.put([(record, record) for record in range(first, min(first + _CHUNK, len(samples)))])
    for _ in range(workers):
        todo.put(None)
    arguments = (writer.job, todo, *writer.tables, done, results, samples)
    crew = [multiprocessing.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    parts: list[list[Any]] = []
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # fork beside torch's threads
            for process in crew:
                process.start()
        while len(parts) < workers:
            report(done.value)
            with suppress(Empty):
                parts.append(results.get(timeout=0.2))
                continue
            for status in (process.exitcode for process in crew if process.exitcode):
                raise OSError(status - 100 if status > 100 else 0, f"a writing process ended ({_exit_reason(status)})")
        for process in crew:
            process.join()
    finally:
        for process in crew:
            if process.is_alive():
                process.terminate()
                process.join()
        todo.cancel_join_thread()
    report(len(samples))
    return [allocation for part in parts for allocation in part]


def _work(job: Callable[..., None], *arguments: Any) -> None:
    """Run FFCV's job in a process of its own; Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        job(*arguments)
    except OSError as error:
        sys.exit(100 + (error.errno or 0))


def _exit_reason(status: int) -> str:
    if status < 0:
        return f"by signal {signal.Signals(-status).name}"
    return os.strerror(status - 100) if status > 100 else "its traceback is above"


# Reading back


def verify(path: Path, workers: int = 0, progress: Progress = lambda what, done, total: None) -> Sidecar:
    """Read a file back: tables, labels, every checksum, the fingerprint, every picture decoded; return its sidecar.

    ValueError names what is wrong.
    """
    from data.load import ThreadReader

    sidecar, index = read_sidecar(path.with_suffix(".json")), beton.read_index(path)
    beton.check_pair(sidecar, index)
    count = len(index.labels)
    stored, broken = beton.mapped(index), []
    for first in range(0, count, 10_000):
        broken += beton.damaged(index, stored, range(first, min(first + 10_000, count)))
        progress("comparing checksums", min(first + 10_000, count), count)
    if broken:
        some = ", ".join(map(str, broken[:10]))
        raise ValueError(f"{len(broken)} of {count} pictures of {path} are damaged: {some}; --fresh writes it again")
    if beton.fingerprint(index) != sidecar.fingerprint:
        raise ValueError(f"{path} does not have the fingerprint {sidecar.fingerprint} of its sidecar")
    reader = ThreadReader(index, workers or cores(), pin=False)
    try:
        for number, _ in enumerate(reader.read(np.arange(count), _CHUNK)):
            progress("decoding", min((number + 1) * _CHUNK, count), count)
    except ValueError as error:
        raise ValueError(f"a picture of {path} cannot be decoded: {error}") from None
    finally:
        reader.close()
    return sidecar
