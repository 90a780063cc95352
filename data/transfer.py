"""Prepared files from shared storage to a machine's own disk, once a machine, and the way up: pull and push.

A file counts by its sidecar: on the storage the sidecar is written last, here a file gets its name when every picture
of it has been read back. Between the two lie a hidden copy and the list of its parts, from which a killed pull goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data import beton
from data.datasets import SPLITS, Sidecar, read_sidecar, sidecar_of, stem, write_sidecar
from data.storage import exclusive_lock, open_filesystem

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs

Progress = Callable[[str, int, int], None]  # what is being done, done, total

PART = 16 << 20  # bytes a thread reads at a time
THREADS, FILES = 8, 4  # parts and files at a time


class Offer(NamedTuple):
    """A file on the storage: its name without suffix, its path there, and what its sidecar tells of it."""

    name: str
    path: str
    sidecar: Sidecar


def pull(
    source: str,
    where: Path,
    names: Iterable[str] = (),
    *,
    fresh: bool = False,
    pictures: bool = True,
    progress: Progress = lambda what, done, total: None,
    alive: Callable[[], object] = lambda: None,
) -> dict[Path, bool]:
    """Copy the prepared files of data sets (all, where none is named) from `source` to `where`; say which were new.

    What is there and right is left alone, and what another process pulls is waited for. `fresh` replaces files that
    hold other pictures; without `pictures` only sidecars come. `alive` is called at every step and may raise to give
    up. ValueError where there is nothing to pull, no room for it, or a file is not what its sidecar tells of: of that
    nothing is kept.
    """
    system, base = open_filesystem(source)
    offers = _list_remote(system, base, source, tuple(names))
    found = {where / f"{offer.name}.beton": not _there(offer, where, source, fresh) for offer in offers}
    if not any(found.values()):
        return found
    where.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for name in sorted({offer.name.rpartition("-")[0] for offer in offers}):  # the lock of data.write.prepare
            locks.enter_context(exclusive_lock(where / f".{name}.lock", alive))
        lacking = [offer for offer in offers if not _there(offer, where, source, fresh)]
        found = {path: path.stem in {offer.name for offer in lacking} for path in found}
        if pictures:
            _room(lacking, where, source)
            _download_all(system, lacking, where, source, progress, alive)
        else:
            for offer in lacking:
                write_sidecar(where / f"{offer.name}.json", offer.sidecar)
    return found


def _list_remote(system: arrow_fs.FileSystem, base: str, source: str, names: Sequence[str]) -> list[Offer]:
    """Return the whole files on the storage, of these data sets; ValueError where there are none."""
    from pyarrow import fs

    infos = system.get_file_info(fs.FileSelector(base, allow_not_found=True))
    sizes = {info.base_name: info.size for info in infos if info.type == fs.FileType.File}
    there = sorted(Path(name).stem for name in sizes if name.endswith(".beton") and f"{name[:-6]}.json" in sizes)
    wanted = [f"{stem(name)}-{split}" for name in names for split in SPLITS]
    chosen = [name for name in there if name in wanted] if wanted else there
    if not chosen:
        asked = f" of {' '.join(names)}" if wanted else ""
        raise ValueError(f"{source} holds no prepared files{asked}; found {', '.join(there) or 'none at all'}. "
                         f"python -m data push {source} puts some there")  # fmt: skip
    offers = []
    for name in chosen:
        with system.open_input_stream(f"{base}/{name}.json") as stream:
            sidecar = sidecar_of(stream.read(), f"{source}/{name}.json")
        if sizes[f"{name}.beton"] != sidecar.file_bytes:
            raise ValueError(f"{source}/{name}.beton has {sizes[f'{name}.beton']:,} bytes, its sidecar tells of "
                             f"{sidecar.file_bytes:,}: it is not whole; push it again")  # fmt: skip
        offers.append(Offer(name, f"{base}/{name}.beton", sidecar))
    return offers


def _there(offer: Offer, where: Path, source: str, fresh: bool) -> bool:
    """Return whether the offered pictures are here and whole; ValueError for whole other ones, unless `fresh`."""
    path = where / f"{offer.name}.beton"
    try:
        sidecar = read_sidecar(path.with_suffix(".json"))
        beton.check_pair(sidecar, beton.read_index(path))
    except ValueError:
        return False
    if sidecar.fingerprint == offer.sidecar.fingerprint:
        return True
    if not fresh:
        raise ValueError(f"{path} holds other pictures ({sidecar.fingerprint[:12]}) than {source} "
                         f"({offer.sidecar.fingerprint[:12]}); --fresh replaces it")  # fmt: skip
    return False


def _room(lacking: Sequence[Offer], where: Path, source: str) -> None:
    """Raise ValueError where the disk has no room for what is lacking."""
    begun = [_partial(where, offer) for offer in lacking]
    needed = sum(offer.sidecar.file_bytes for offer in lacking)
    needed -= sum(path.stat().st_blocks * 512 for path in begun if path.exists())
    free = shutil.disk_usage(where).free
    if needed > free:
        raise ValueError(f"{where} has {free / 1e9:.3f} GB free and {source} needs {needed / 1e9:.3f} GB: "
                         f"{(needed - free) / 1e9:.3f} GB are lacking")  # fmt: skip


def _partial(where: Path, offer: Offer) -> Path:
    return where / f".{offer.name}.beton.pulling"


def _download_all(
    system: arrow_fs.FileSystem,
    lacking: Sequence[Offer],
    where: Path,
    source: str,
    progress: Progress,
    alive: Callable[[], object],
) -> None:
    """Copy files side by side, each in parts side by side; after an error no further part is begun."""
    with ThreadPoolExecutor(FILES) as files, ThreadPoolExecutor(THREADS) as parts:
        copies = [files.submit(_download, system, offer, where, source, parts, progress, alive) for offer in lacking]
        try:
            for copy in copies:
                copy.result()
        except BaseException:
            files.shutdown(wait=False, cancel_futures=True)
            parts.shutdown(wait=False, cancel_futures=True)
            raise


def _download(
    system: arrow_fs.FileSystem,
    offer: Offer,
    where: Path,
    source: str,
    pool: ThreadPoolExecutor,
    progress: Progress,
    alive: Callable[[], object],
) -> None:
    """Copy one file, check it, and give it its name."""
    path, partial, total = where / f"{offer.name}.beton", _partial(where, offer), offer.sidecar.file_bytes
    noted = partial.with_suffix(".parts")
    head = f"{offer.sidecar.fingerprint} {total} {PART}\n"
    done = _done(partial, noted, head, total)
    with system.open_input_file(offer.path) as origin, partial.open("r+b") as copy, noted.open("ab", 0) as notes:

        def bring(number: int) -> int:
            alive()
            start = number * PART
            content = origin.read_at(min(PART, total - start), start)
            if len(content) != min(PART, total - start):
                raise OSError(f"{source}/{offer.name}.beton ended at byte {start + len(content)} of {total}")
            written = 0
            while written < len(content):
                written += os.pwrite(copy.fileno(), content[written:], start + written)
            notes.write(f"{number}\n".encode())
            return len(content)

        brought = sum(min(PART, total - number * PART) for number in done)
        coming = [pool.submit(bring, number) for number in range(-(-total // PART)) if number not in done]
        try:
            for part in coming:
                brought += part.result()
                progress(f"MiB of {offer.name}", brought >> 20, total >> 20)
        finally:  # the files are not closed under a part that is being written
            wait([part for part in coming if not part.cancel() and not part.cancelled()])
        os.fsync(copy.fileno())
    try:
        index = beton.read_index(partial)
        beton.check_pair(offer.sidecar, index)
        if beton.fingerprint(index, alive) != offer.sidecar.fingerprint:
            raise ValueError("its pictures have another fingerprint")
    except ValueError as error:
        partial.unlink()
        noted.unlink()
        why = str(error).replace(str(partial), "it").partition(";")[0]
        raise ValueError(f"{source}/{offer.name}.beton is not the file its sidecar tells of ({why}); "
                         "nothing of it was kept") from None  # fmt: skip
    # The sidecar first: ended in between, the pair does not match and says so, and nothing passes for whole.
    write_sidecar(path.with_suffix(".json"), offer.sidecar)
    os.replace(partial, path)
    noted.unlink()


def _done(partial: Path, noted: Path, head: str, total: int) -> set[int]:
    """Return the parts that a pull before this one brought; begin a new copy where there was none of this file."""
    if partial.exists() and noted.exists() and partial.stat().st_size == total:
        first, *numbers = noted.read_text().splitlines(keepends=True)
        if first == head:
            return {int(number) for number in numbers if number.endswith("\n")}
    noted.write_text(head)
    with partial.open("wb") as copy:
        copy.truncate(total)
    return set()


def push(
    where: Path,
    target: str,
    names: Sequence[str] = (),
    *,
    fresh: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, bool]:
    """Copy the prepared files of data sets (all, where none is named) from `where` to `target`; say which were new.

    ValueError where there is none, one is damaged, or other pictures are there and `fresh` does not say to replace
    them.
    """
    system, base = open_filesystem(target)
    wanted = [where / f"{stem(name)}-{split}.beton" for name in names for split in SPLITS]
    paths = [path for path in (wanted or sorted(where.glob("*.beton"))) if path.exists()]
    if not paths:
        asked = f" of {' '.join(names)}" if wanted else ""
        raise ValueError(f"{where} holds no prepared files{asked}: python -m data prepare NAME --data-dir {where}")
    with ThreadPoolExecutor(FILES) as pool:
        news = pool.map(lambda path: _sent(system, base, path, target, fresh, progress), paths)
        return {f"{target.rstrip('/')}/{path.name}": new for path, new in zip(paths, news, strict=True)}


def _sent(system: arrow_fs.FileSystem, base: str, path: Path, target: str, fresh: bool, progress: Progress) -> bool:
    """Copy a file and then its sidecar to the storage; return whether it was not there."""
    from pyarrow import fs

    sidecar, index = read_sidecar(path.with_suffix(".json")), beton.read_index(path)
    beton.check_pair(sidecar, index)
    beton_there, sidecar_there = system.get_file_info([f"{base}/{path.name}", f"{base}/{path.stem}.json"])
    if sidecar_there.type == fs.FileType.File:
        with system.open_input_stream(sidecar_there.path) as stream:
            other = sidecar_of(stream.read(), f"{target}/{path.stem}.json")
        if other.fingerprint == sidecar.fingerprint and beton_there.size == sidecar.file_bytes:
            return False
        if other.fingerprint != sidecar.fingerprint and not fresh:
            raise ValueError(f"{target}/{path.name} holds other pictures than {path}; --fresh replaces it")
        system.delete_file(sidecar_there.path)
    if beton.fingerprint(index) != sidecar.fingerprint:
        raise ValueError(f"{path} is damaged: python -m data prepare {sidecar.name} --fresh writes it again")
    if not isinstance(system, fs.S3FileSystem):
        system.create_dir(base, recursive=True)
    with path.open("rb") as file:
        parts = iter(lambda: file.read(PART), b"")
        _write(system, f"{base}/{path.name}", _with_progress(parts, path.stem, sidecar.file_bytes, progress))
    _write(system, f"{base}/{path.stem}.json", [path.with_suffix(".json").read_bytes()])
    return True


def _with_progress(parts: Iterable[bytes], name: str, total: int, progress: Progress) -> Iterable[bytes]:
    """Pass parts on, telling how far they are."""
    sent = 0
    for part in parts:
        yield part
        sent += len(part)
        progress(f"MiB of {name}", sent >> 20, total >> 20)


def _write(system: Any, path: str, parts: Iterable[bytes]) -> None:
    """Write a file whole or not at all: objects of a store are so by nature, files are by their renaming."""
    from pyarrow import fs

    folder, _, name = path.rpartition("/")
    target = path if isinstance(system, fs.S3FileSystem) else f"{folder}/.{name}.{os.getpid()}.partial"
    with system.open_output_stream(target) as stream:
        for part in chain(parts):
            stream.write(part)
    if target != path:
        system.move(target, path)
