"""Writing of .beton files and sidecars from original pictures, complete or not at all; and their verification."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crelu_data import beton
from crelu_data.changes import check_unchanged
from crelu_data.cores import cores, map_in_threads
from crelu_data.datasets import (
    RAW_UP_TO,
    SPLITS,
    Colour,
    Sidecar,
    beton_path,
    canonical,
    counted,
    is_partial,
    stem,
)
from crelu_data.folders import shown
from crelu_data.originals import originals_path, write_originals
from crelu_data.pixels import Picture
from crelu_data.sources import Source, sources, subset, whole_splits
from crelu_data.storage import Progress, exclusive_lock, full_disk_named, no_progress

if TYPE_CHECKING:
    from crelu_data.ffcv_patches import Writer

WRITERS = ("ffcv", "native")
_UNREADABLE, _NOT_READ = -1, -2  # labels of pictures that could not be read, and that nobody tried to read
_GIVE_UP = 100  # unreadable pictures more than are allowed, of each process, after which no more are read
_NAMED = 5  # of them in a message
_CHUNK = 100  # pictures that a process takes at a time
_PART = 1 << 15  # pixels whose colours stay in a core's cache
_MEASURE_ALL = 60_000  # up to this count the colour statistics are those of all pictures
_MEASURE = 20_000  # of a larger set those of this many


class _Options(NamedTuple):
    """Options of writing."""

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
    partial: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Sidecar]:
    """Write the splits of a data set that `where` lacks, and return all sidecars by split.

    `origin` is the folder of the originals (default: $IMAGENET_DIR for ImageNet, `where` or a download for CIFAR),
    `size` the stored side of a folder's pictures, `quality` that of JPEG (default 90; sides up to 64 are stored as
    pixels), `seed` that of a folder's split (default 0), `writer` "ffcv" (default where installed) or "native".
    `fresh` writes existing files again. With `partial` a set under a public name may be a part of it; its sidecars say
    so. One unreadable picture in a thousand, and one in any split, is left out and logged. ValueError for more of them,
    for missing originals, for originals that have changed since, and for wrong options.
    """
    writer = writer or ("ffcv" if importlib.util.find_spec("ffcv") else "native")
    if writer not in WRITERS:
        raise ValueError(f"the writer is one of {', '.join(WRITERS)}, not {writer!r}")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"the quality is 1 to 100, not {quality}")
    if size is not None and not 16 <= size <= 4096:
        raise ValueError(f"the size is 16 to 4096 pixels, not {size}")
    if seed is not None and seed < 0:
        raise ValueError(f"the seed is 0 or more, not {seed}")
    if origin is not None:
        _check_origin(name, origin)
    requested = {"size": size, "quality": quality, "seed": seed}
    if not fresh and _is_complete(name, where, sidecars := _existing(name, where, requested, partial)):
        check_unchanged(name, where, origin)
        return sidecars
    where.mkdir(parents=True, exist_ok=True)
    with full_disk_named(where), exclusive_lock(where / f".{stem(name)}.lock"):
        sidecars = {} if fresh else _existing(name, where, requested, partial)
        if sidecars:
            check_unchanged(name, where, origin)
        if _is_complete(name, where, sidecars):  # by another process, while this one waited
            return sidecars
        for sidecar in sidecars.values():  # of a preparation that was interrupted: the rest is made like it
            size = size or sidecar.size
            seed = sidecar.seed
            quality = sidecar.quality or quality
        options = _Options(writer, quality or 90, workers or cores())
        splits = sources(name, origin, where, size, seed or 0, partial)
        missing = {split: source for split, source in splits.items() if split not in sidecars}
        finished = _prepare_splits(name, missing, tuple(splits), where, options, progress, together=fresh)
        for split in SPLITS:
            if fresh and split not in splits:  # of an earlier preparation, when there were originals of it
                beton.unpublish(beton_path(name, split, where))
        return sidecars | finished


def _check_origin(name: str, origin: Path) -> None:
    """Raise ValueError where a folder of originals is none, or where a set takes no such folder."""
    if name.partition(":")[0] in ("folder", "synthetic"):
        why = "its pictures are drawn" if name.startswith("synthetic") else "its name says where the pictures are"
        raise ValueError(f"--source {origin}: {shown(name)} takes none, since {why}; leave it out")
    if not origin.is_dir():
        raise ValueError(f"--source {origin} is no folder: name the one with the originals of {shown(name)}")


def _is_complete(name: str, where: Path, sidecars: dict[str, Sidecar]) -> bool:
    return bool(sidecars) and whole_splits(name, where, sidecars) <= sidecars.keys()


def _existing(name: str, where: Path, requested: dict[str, int | None], partial: bool) -> dict[str, Sidecar]:
    """Return the sidecars of the complete splits.

    ValueError for a file that does not match its sidecar, or was written with other options than those requested, and
    for a part of a published set unless `partial`.
    """
    sidecars = {}
    for split in SPLITS:
        path = beton_path(name, split, where)
        if path.exists() and path.with_suffix(".json").exists():
            sidecar, _ = beton.read_pair(path)
            sidecars[split] = sidecar
            for option, value in requested.items():
                other = getattr(sidecar, option)
                if value not in (None, other) and not (option == "quality" and sidecar.mode == "raw"):
                    raise ValueError(f"{name} exists with {option} {other}, not {value}; --fresh writes it again")
            if is_partial(sidecar) and not partial:
                raise ValueError(
                    f"{path} is a part of {name}: {counted(sidecar.count, 'picture')} "
                    f"in {counted(sidecar.classes, 'class', 'classes')}; "
                    "--fresh writes the whole, --partial takes the part"
                )
    return sidecars


def _prepare_splits(
    name: str,
    missing: Mapping[str, Source],
    splits: tuple[str, ...],
    where: Path,
    options: _Options,
    progress: Progress,
    *,
    together: bool,
) -> dict[str, Sidecar]:
    """Write the missing ones of all `splits` and give each its name once it is finished, or all `together`.

    Return their sidecars.

    Where one is refused, the others go too: pictures that were refused are mended, and then are not those of a split
    that stayed. What had these names before stays where all come together.
    """
    finished: dict[str, Sidecar] = {}
    published: list[str] = []
    try:
        for split, source in missing.items():
            made = _prepare_split(name, split, source, beton_path(name, split, where), options, progress)
            finished[split] = replace(made, splits=splits)
            if not together:
                _publish(name, split, source, where, finished[split])
                published.append(split)
        for split in finished:
            if split not in published:
                _publish(name, split, missing[split], where, finished[split])
    except ValueError:
        for split in published:
            beton.unpublish(beton_path(name, split, where))
        if published:
            originals_path(name, where).unlink(missing_ok=True)
        raise
    finally:
        for split in finished:
            _partial(beton_path(name, split, where)).unlink(missing_ok=True)
    return finished


def _publish(name: str, split: str, source: Source, where: Path, sidecar: Sidecar) -> None:
    """Write the list of a finished split's originals, and give the split its name."""
    if source.originals is not None:
        write_originals(originals_path(name, where), source.originals)
    path = beton_path(name, split, where)
    beton.publish(_partial(path), path, sidecar)


def _partial(path: Path) -> Path:
    """Return the path of a split until it has its name."""
    return path.with_name(f".{path.name}.partial")


def _prepare_split(name: str, split: str, source: Source, path: Path, options: _Options, progress: Progress) -> Sidecar:
    """Write one split without its name, measure its colours, and return its sidecar."""
    partial = _partial(path)
    try:
        readable = _write_readable(partial, source, split, options, progress)
        index = beton.seal(partial, options.workers)
        colours, fingerprint = _measure(index, split, options, progress)
        skipped = len(source.labels) - len(readable.labels)
        return _describe(index, canonical(name), split, readable, options, colours, skipped, fingerprint)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _measure(index: beton.Index, split: str, options: _Options, progress: Progress) -> tuple[_Colours, str]:
    """Return colour statistics and fingerprint of a file: one thread hashes all pictures while the others measure."""
    left = threading.Event()

    def alive() -> None:
        if left.is_set():
            raise InterruptedError("the preparation has ended")

    with ThreadPoolExecutor(1) as pool:
        fingerprint = pool.submit(beton.fingerprint, index, alive)
        try:
            colours = _colours(index, options.workers, lambda done, total: progress(f"measuring {split}", done, total))
            return colours, fingerprint.result()
        finally:
            left.set()


def _describe(
    index: beton.Index,
    name: str,
    split: str,
    source: Source,
    options: _Options,
    colours: _Colours,
    skipped: int,
    fingerprint: str,
) -> Sidecar:
    return Sidecar(
        name=name,
        split=split,
        classes=len(source.class_names),
        class_names=source.class_names,
        count=len(index.labels),
        size=index.size,
        mode="jpeg" if index.jpeg else "raw",
        quality=options.quality if index.jpeg else 0,
        seed=source.seed,
        mean=colours.mean,
        std=colours.std,
        eigenvalues=colours.eigenvalues,
        eigenvectors=colours.eigenvectors,
        label_counts=tuple(np.bincount(index.labels, minlength=len(source.class_names)).tolist()),
        measured=colours.measured,
        skipped=skipped,
        writer=options.writer,
        fingerprint=fingerprint,
        index=index.digest,
        file_bytes=index.path.stat().st_size,
        originals=source.originals.digest if source.originals is not None else "",
        partial=source.partial,
    )


def _colours(index: beton.Index, workers: int, report: Callable[[int, int], None]) -> _Colours:
    """Return statistics of the stored colours, in 0..1.

    Sums of integers below 2**53 are exact in float64, so neither threads nor batches change a digit.
    """
    from crelu_data.decoders.threads import (
        ThreadReader,  # imports torch, which takes seconds and only this function needs
    )

    count = len(index.labels)
    records = np.arange(count) if count <= _MEASURE_ALL else np.linspace(0, count - 1, _MEASURE).astype(np.int64)
    first, second = np.zeros(3), np.zeros((3, 3))  # moments
    pixels = 0
    reader = ThreadReader(index, workers, pin=False)
    batches = reader.read(records, max(1, (1 << 21) // index.size**2))
    try:
        for count, sums, products in map_in_threads(_moments, (batch.numpy() for batch in batches), workers):
            first += sums
            second += products
            pixels += count
            report(pixels // index.size**2, len(records))
    finally:
        batches.close()
        reader.close()
    mean = first / pixels / 255
    covariance = second / pixels / 255**2 - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    values = values[::-1].clip(0)
    vectors = vectors[:, ::-1]
    vectors = vectors * np.where(vectors.sum(0) < 0, -1, 1)  # the signs of eigh are arbitrary
    std = np.sqrt(covariance.diagonal().clip(1e-6))  # so that a set of one colour can be normalised
    return _Colours(_three(mean), _three(std), _three(values), tuple(_three(row) for row in vectors), len(records))


def _moments(pictures: Picture) -> tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the number of pixels of uint8 (n, h, w, 3), the sums of their colours (3,), and of products (3, 3)."""
    colours = pictures.reshape(-1, 3)
    first, second = np.zeros(3), np.zeros((3, 3))
    for start in range(0, len(colours), _PART):
        part = colours[start : start + _PART].T.astype(np.float64, order="C")
        first += part.sum(1)
        second += np.einsum("ip,jp->ij", part, part)  # four times as fast as a product of such narrow matrices
    return len(colours), first, second


def _three(row: np.ndarray[Any, np.dtype[np.float64]]) -> Colour:
    return float(row[0]), float(row[1]), float(row[2])


# Writing


class _Samples:
    """Records in FFCV's order of fields: picture, label, checksum (0 until the file is sealed).

    An unreadable picture gives a blank one with the label _UNREADABLE: an exception would end the process that reads.
    After many more than are `allowed` the rest is not read, and is labelled so.
    """

    def __init__(self, source: Source, allowed: int) -> None:
        self._source = source
        self._allowed = allowed
        self._failed = 0

    def __len__(self) -> int:
        return len(self._source.labels)

    def __getitem__(self, record: int) -> tuple[Picture, int, int]:
        source = self._source
        blank = np.zeros((source.size, source.size, 3), np.uint8)
        if self._failed > self._allowed + _GIVE_UP:
            return blank, _NOT_READ, 0
        try:
            return np.ascontiguousarray(source.picture(record)), int(source.labels[record]), 0
        except Exception:  # a decoder may raise anything
            self._failed += 1
            return blank, _UNREADABLE, 0


def _write_readable(
    path: Path, source: Source, split: str, options: _Options, progress: Progress, attempts: int = 3
) -> Source:
    """Write all readable pictures and return their source."""
    count = len(source.labels)
    allowed = max(1, count // 1000)
    write = _write_ffcv if options.writer == "ffcv" else _write_native
    write(path, _Samples(source, allowed), source.size, options, lambda done: progress(f"writing {split}", done, count))
    labels = beton.read_index(path).labels
    if labels.min() >= 0:
        return source
    reasons = {int(record): _reason(source, int(record)) for record in np.flatnonzero(labels == _UNREADABLE)}
    failed = {record: reason for record, reason in reasons.items() if reason}
    if not failed and attempts <= 1:
        raise OSError(f"{len(reasons)} of {count} pictures cannot be read each time: {source.name_of(min(reasons))}")
    if failed:
        examples = "; ".join(f"{shown(source.name_of(each))} ({failed[each]})" for each in sorted(failed)[:_NAMED])
        if len(failed) > allowed or len(failed) == count:
            amount = f"at least {len(failed)}" if labels.min() == _NOT_READ else f"{len(failed)}"
            raise ValueError(f"{amount} of {count} unreadable: {examples}. At most {allowed} may be left out")
        logging.getLogger("crelu_data").warning(
            "%s: left out %d unreadable of %d: %s", split, len(failed), count, examples
        )
        source = subset(source, np.setdiff1d(np.arange(count), [*failed]))
    return _write_readable(path, source, split, options, progress, attempts - 1)


def _reason(source: Source, record: int) -> str:
    """Return why a picture is unreadable, empty where it can be read now."""
    try:
        source.picture(record)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _write_native(path: Path, samples: _Samples, size: int, options: _Options, report: Callable[[int], None]) -> None:
    """Write without FFCV, in threads."""
    jpeg = size > RAW_UP_TO

    def encode(record: int) -> tuple[bytes, int]:
        picture, label, _ = samples[record]
        return _jpeg(picture, options.quality) if jpeg else picture.tobytes(), label

    def encode_all() -> Generator[tuple[bytes, int], None, None]:
        encoded = map_in_threads(encode, range(len(samples)), options.workers)
        for done, (content, label) in enumerate(encoded, 1):
            yield content, label
            if done % _CHUNK == 0 or done == len(samples):
                report(done)

    with closing(encode_all()) as pictures:
        beton.write(path, len(samples), pictures, size, jpeg)


def _jpeg(picture: Picture, quality: int) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _write_ffcv(path: Path, samples: _Samples, size: int, options: _Options, report: Callable[[int], None]) -> None:
    """Write with FFCV's own worker in processes that this module watches."""
    from crelu_data import ffcv_patches  # imports torch

    ffcv_patches.import_ffcv()
    workers = min(options.workers, -(-len(samples) // _CHUNK))
    with ffcv_patches.open_writer(path, len(samples), size, options.quality) as writer:
        writer.finalize(_run_writers(writer, samples, workers, report))


def _run_writers(writer: Writer, samples: _Samples, workers: int, report: Callable[[int], None]) -> list[Any]:
    """Run FFCV's job in processes and return their allocations; OSError as soon as one of them dies."""
    chunks: Any = multiprocessing.Queue()
    results: Any = multiprocessing.Queue()
    done: Any = multiprocessing.Value("Q", 0)
    for first in range(0, len(samples), _CHUNK):
        chunks.put([(record, record) for record in range(first, min(first + _CHUNK, len(samples)))])
    for _ in range(workers):
        chunks.put(None)
    arguments = (writer.job, chunks, *writer.tables, done, results, samples)
    processes = [multiprocessing.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    parts: list[list[Any]] = []
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # fork beside torch's threads
            for process in processes:
                process.start()
        while len(parts) < workers:
            report(done.value)
            with suppress(Empty):
                parts.append(results.get(timeout=0.2))
                continue
            for status in (process.exitcode for process in processes if process.exitcode):
                raise OSError(status - 100 if status > 100 else 0, f"a writing process ended ({_exit_reason(status)})")
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
        chunks.cancel_join_thread()
    report(len(samples))
    return [allocation for part in parts for allocation in part]


def _work(job: Callable[..., None], *arguments: Any) -> None:
    """Run FFCV's job in this process; the parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        job(*arguments)
    except OSError as error:
        sys.exit(100 + (error.errno or 0))


def _exit_reason(status: int) -> str:
    """Return why a process ended, from its exit status."""
    if status < 0:
        return f"by signal {signal.Signals(-status).name}"
    return os.strerror(status - 100) if status > 100 else "its traceback is above"


# Reading back


def verify(path: Path, workers: int = 0, progress: Progress = no_progress) -> Sidecar:
    """Check a file completely and return its sidecar: tables, labels, checksums, fingerprint, decoding of all pictures.

    ValueError names the first fault.
    """
    from crelu_data.decoders.threads import ThreadReader

    sidecar, index = beton.read_pair(path)
    count = len(index.labels)
    stored = beton.mapped(index)
    broken: list[int] = []
    for first in range(0, count, 10_000):
        broken += beton.damaged(index, stored, range(first, min(first + 10_000, count)))
        progress("comparing checksums", min(first + 10_000, count), count)
    if broken:
        examples = ", ".join(map(str, broken[:10]))
        raise ValueError(
            f"{len(broken)} of {counted(count, 'picture')} of {path} {'is' if len(broken) == 1 else 'are'} damaged: "
            f"{examples}; --fresh writes it again"
        )
    if beton.fingerprint(index) != sidecar.fingerprint:
        raise ValueError(f"{path} does not have its sidecar's fingerprint {sidecar.fingerprint}")
    reader = ThreadReader(index, workers or cores(), pin=False)
    try:
        for number, _ in enumerate(reader.read(np.arange(count), _CHUNK)):
            progress("decoding", min((number + 1) * _CHUNK, count), count)
    except ValueError as error:
        raise ValueError(f"a picture of {path} cannot be decoded: {error}") from None
    finally:
        reader.close()
    return sidecar
