"""Copies of prepared files between shared storage and a machine's own disk: pull and push.

A sidecar marks a complete file. On the storage it is written last; on the disk a file gets its name after all its
pictures have been compared with the sidecar. Until then a pull writes a hidden copy and a list of its parts, from which
a killed pull resumes.

`pyarrow.fs.copy_files` would lose four properties. It starts each file at byte 0, so a killed pull would not resume. It
reads a file in one stream, so eight threads would not share the one large file of a data set. It ignores `alive` and
Ctrl-C until its last file is complete. It reports no progress.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from crelu_data import beton
from crelu_data.datasets import SPLITS, Sidecar, prepare_command, read_sidecar, remedy, sidecar_of, stem, write_sidecar
from crelu_data.interrupts import deferred_interrupts
from crelu_data.sources import whole_splits
from crelu_data.storage import Progress, exclusive_lock, no_progress, open_filesystem
from crelu_models.command_line import python_command

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs

PART = 16 << 20  # bytes that a thread reads at a time
THREADS = 8  # parts at a time
FILES = 4  # files at a time
SIDECAR_BYTES = 16 << 20  # of a sidecar, at most: that of ImageNet has some thousand
NAME = re.compile(r"\w[\w.=,+@-]*")  # of a prepared file: others on the storage are somebody else's

FilePart = Literal["nothing", "sidecar", "pictures"]  # to be copied of a file: pictures with their sidecar


class TransferError(OSError):
    """Error of a copy or a source that is not whole: another attempt, or another machine, may find it so."""


class NotThereError(ValueError):
    """A storage holds nothing of a data set."""


class RemoteFile(NamedTuple):
    """File on the storage: its name without suffix, its path there, and its sidecar."""

    name: str
    path: str
    sidecar: Sidecar


class _Pull(NamedTuple):
    """Source, target folder and callbacks of a pull."""

    system: arrow_fs.FileSystem
    source: str
    where: Path
    progress: Progress
    alive: Callable[[], object]


def pull(
    source: str,
    where: Path,
    names: Iterable[str] = (),
    *,
    fresh: bool = False,
    reread: bool = False,
    pictures: bool = True,
    progress: Progress = no_progress,
    alive: Callable[[], object] = lambda: None,
) -> dict[Path, bool]:
    """Copy prepared files of data sets (default: all) from `source` to `where`; return for each whether it was copied.

    A complete file is not copied again, and a pull by another process is waited for. Of a file that differs in its
    sidecar alone, only that is copied. `fresh` replaces files with other pictures or splits, and deletes those of
    splits that a set no longer has. With `reread` the pictures here are read, and a file with damaged ones is copied
    again; without `pictures` only sidecars are copied. `alive` is called at every step and may raise to give up.
    ValueError where the source has no such set, or another one. OSError where the disk has no room, a set of the source
    lacks a split, or a copy does not match its sidecar; such a copy is deleted.
    """
    system, base = open_filesystem(source)
    remote = _list_remote(system, base, source, tuple(names), where)

    def to_come(file: RemoteFile) -> FilePart:
        part = _to_come(file, where, source, fresh, pictures)
        if reread and pictures and part != "pictures" and _is_damaged(where / f"{file.name}.beton", alive):
            return "pictures"
        return part

    if not fresh and {*map(to_come, remote)} <= {"nothing"}:
        return {where / f"{file.name}.beton": False for file in remote}
    where.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for name in sorted({_set_of(file.name) for file in remote}):  # the lock of crelu_data.write.prepare
            locks.enter_context(exclusive_lock(where / f".{name}.lock", alive))
        parts = {file.name: to_come(file) for file in remote}
        copied = {where / f"{name}.beton": part != "nothing" for name, part in parts.items()}
        if missing := [file for file in remote if parts[file.name] == "pictures"]:
            _check_room(missing, where, source)
            _download_all(missing, _Pull(system, source, where, progress, alive))
        for file in remote:
            if parts[file.name] == "sidecar":
                write_sidecar(where / f"{file.name}.json", file.sidecar)
        for name in _surplus(path.stem for path in copied) if fresh else ():
            beton.unpublish(where / f"{name}.beton")
    return copied


def check_source(source: str, names: Iterable[str], where: Path) -> None:
    """Raise ValueError where `source` lacks these data sets, or has other pictures or splits than sidecars here.

    OSError where a set there lacks a split.
    """
    system, base = open_filesystem(source)
    for file in _list_remote(system, base, source, tuple(names), where):
        _to_come(file, where, source, fresh=False, pictures=False)


def source_fingerprint(source: str, name: str, where: Path) -> str:
    """Return the fingerprint of a data set that `source` has, as crelu_data.availability.fingerprint does of one here.

    ValueError where it has no such set, OSError where a set there lacks a split.
    """
    system, base = open_filesystem(source)
    remote = _list_remote(system, base, source, (name,), where)
    contents = {file.name.rpartition("-")[2]: file.sidecar.fingerprint for file in remote}
    final = "test" if "test" in contents else "val"
    return f"{contents.get('train', '')};{contents.get(final, '')}"


def side_in(source: str, name: str, where: Path) -> int:
    """Return the stored side in pixels of a data set that `source` has, by its sidecars there.

    ValueError where it has no such set, OSError where a set there lacks a split.
    """
    system, base = open_filesystem(source)
    return _list_remote(system, base, source, (name,), where)[0].sidecar.size


def _set_of(name: str) -> str:
    """Return the data set's part of the name of a file, without suffix."""
    return name.rpartition("-")[0]


def _surplus(names: Iterable[str]) -> set[str]:
    """Return the names of the files of the other splits of whole sets, which an earlier preparation may have left."""
    whole = {*names}
    return {f"{_set_of(name)}-{split}" for name in whole for split in SPLITS} - whole


def _list_remote(
    system: arrow_fs.FileSystem, base: str, source: str, names: Sequence[str], where: Path
) -> list[RemoteFile]:
    """Return the files of these data sets on the storage.

    ValueError where it has nothing of one, TransferError where a set there is not whole.
    """
    from pyarrow import fs

    infos = system.get_file_info(fs.FileSelector(base, allow_not_found=True))
    sizes = {info.base_name: info.size for info in infos if info.type == fs.FileType.File}
    complete = sorted(Path(name).stem for name in sizes if name.endswith(".beton") and f"{name[:-6]}.json" in sizes)
    complete = [name for name in complete if NAME.fullmatch(name)]
    wanted = _stems(names)
    selected = [name for name in complete if name in wanted] if wanted else complete
    absent = [name for name in names if not any(f"{each}.beton" in sizes for each in _stems([name]))]
    if absent or not (selected or wanted):
        raise NotThereError(
            f"{source} holds no prepared files{_of(absent)}; found {', '.join(complete) or 'none at all'}. "
            f"{python_command('crelu_data', 'push', source, *absent)} copies some to it"
        )
    for name in names:
        if not any(each in complete for each in _stems([name])):
            raise TransferError(f"{source} has no sidecar of {name} yet: it is incomplete; push it again")
    files = []
    for name in selected:
        sidecar = _read_remote_sidecar(system, f"{base}/{name}.json", f"{source}/{name}.json")
        if sizes[f"{name}.beton"] != sidecar.file_bytes:
            raise TransferError(
                f"{source}/{name}.beton has {sizes[f'{name}.beton']:,} bytes, by its sidecar "
                f"{sidecar.file_bytes:,}: it is incomplete; push it again"
            )
        files.append(RemoteFile(name, f"{base}/{name}.beton", sidecar))
    if lacking := _lacking({file.name: file.sidecar for file in files}, where):
        raise TransferError(f"{source} lacks {', '.join(lacking)}: a set there is incomplete; push it again")
    return files


def _lacking(sidecars: Mapping[str, Sidecar], where: Path) -> list[str]:
    """Return the names of the files that the data sets of these ones lack to be whole."""
    sets: dict[str, dict[str, Sidecar]] = {}
    for name, sidecar in sidecars.items():
        if (split := name.rpartition("-")[2]) in SPLITS:
            sets.setdefault(_set_of(name), {})[split] = sidecar
    return [
        f"{name}-{split}.beton"
        for name, splits in sets.items()
        for split in sorted(whole_splits(next(iter(splits.values())).name, where, splits) - splits.keys())
    ]


def _stems(names: Iterable[str]) -> list[str]:
    """Return the names of the files of these data sets, without suffix."""
    return [f"{stem(name)}-{split}" for name in names for split in SPLITS]


def _of(names: Sequence[str]) -> str:
    return f" of {' '.join(names)}" if names else ""


def _read_remote_sidecar(system: arrow_fs.FileSystem, path: str, name: str) -> Sidecar:
    with system.open_input_stream(path) as stream:
        content = stream.read(SIDECAR_BYTES + 1)
    if len(content) > SIDECAR_BYTES:
        raise ValueError(f"{name} has more than {SIDECAR_BYTES >> 20} MiB, which no sidecar has")
    return sidecar_of(content, name)


def _to_come(file: RemoteFile, where: Path, source: str, fresh: bool, pictures: bool) -> FilePart:
    """Return what the disk lacks of a file; ValueError where it has other pictures or splits, unless `fresh`.

    Without `pictures` the sidecar is enough. One that has its pictures here stays then: it tells how they are stored.
    """
    path = where / f"{file.name}.beton"
    anew: FilePart = "pictures" if pictures else "sidecar"
    try:
        sidecar = beton.read_pair(path)[0] if pictures else read_sidecar(path.with_suffix(".json"))
    except ValueError:
        return anew
    if not fresh and (difference := _difference(sidecar, file.sidecar, source)):
        advice = "--fresh replaces it"
        if not pictures:
            words = ("pull", source, sidecar.name, "--fresh", "--data-dir", str(where))
            advice = f"{python_command('crelu_data', *words)} replaces it"
            if not path.exists():
                known = [where / f"{_set_of(file.name)}-{split}.json" for split in SPLITS]
                advice = f"to take those: {shlex.join(['rm', *(str(path) for path in known if path.exists())])}"
        raise ValueError(f"{path if pictures else path.with_suffix('.json')} holds {difference}; {advice}")
    if sidecar.fingerprint != file.sidecar.fingerprint:
        return anew
    if _facts(sidecar) == _facts(file.sidecar) or (not pictures and path.exists()):
        return "nothing"
    return "sidecar" if sidecar.index == file.sidecar.index else anew


def _difference(sidecar: Sidecar, other: Sidecar, place: str) -> str:
    """Return which other pictures or splits than `place` a file has, which only --fresh replaces; empty for none.

    Sidecars of an earlier preparation do not record the splits.
    """
    if sidecar.fingerprint != other.fingerprint:
        return f"other pictures ({sidecar.fingerprint[:12]}) than {place} ({other.fingerprint[:12]})"
    if sidecar.splits and other.splits and {*sidecar.splits} != {*other.splits}:
        return f"other splits ({', '.join(sidecar.splits)}) than {place} ({', '.join(other.splits)})"
    return ""


def _facts(sidecar: Sidecar) -> tuple[object, ...]:
    """Return what another preparation of the same pictures may change in a sidecar."""
    return {*sidecar.splits}, sidecar.originals, sidecar.class_names, sidecar.partial, sidecar.seed


def _is_damaged(path: Path, alive: Callable[[], object]) -> bool:
    """Read all pictures of a file and return whether their fingerprint differs from the sidecar's."""
    sidecar, index = beton.read_pair(path)
    return beton.fingerprint(index, alive) != sidecar.fingerprint


def _check_room(missing: Sequence[RemoteFile], where: Path, source: str) -> None:
    """Raise OSError (ENOSPC) where the disk has no room for the missing files."""
    partials = [_partial_path(where, file) for file in missing]
    needed = sum(file.sidecar.file_bytes for file in missing)
    needed -= sum(path.stat().st_blocks * 512 for path in partials if path.exists())
    free = shutil.disk_usage(where).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{free / 1e9:.3f} GB free and {source} needs {needed / 1e9:.3f} GB: "
            f"{(needed - free) / 1e9:.3f} GB are lacking",
            str(where),
        )


def _partial_path(where: Path, file: RemoteFile) -> Path:
    return where / f".{file.name}.beton.pulling"


def _download_all(missing: Sequence[RemoteFile], job: _Pull) -> None:
    """Copy files in parallel, and the parts of each in parallel; after an error no further part starts."""
    with deferred_interrupts() as check, ThreadPoolExecutor(FILES) as files, ThreadPoolExecutor(THREADS) as parts:

        def alive() -> None:
            check()
            job.alive()

        copies = [files.submit(_download, file, job._replace(alive=alive), parts) for file in missing]
        try:
            for copy in copies:
                copy.result()
        except BaseException:
            files.shutdown(wait=False, cancel_futures=True)
            parts.shutdown(wait=False, cancel_futures=True)
            raise


def _download(file: RemoteFile, job: _Pull, pool: ThreadPoolExecutor) -> None:
    """Copy one file, compare it with its sidecar, and give it its name."""
    partial = _partial_path(job.where, file)
    journal = partial.with_suffix(".parts")
    _copy_parts(file, job, pool, partial, journal)
    try:
        index = beton.read_index(partial)
        beton.check_pair(file.sidecar, index)
        if beton.fingerprint(index, job.alive) != file.sidecar.fingerprint:
            raise ValueError("its pictures have another fingerprint")
    except ValueError as error:
        partial.unlink()
        journal.unlink()
        reason = str(error).replace(str(partial), "it").partition(";")[0]
        raise TransferError(
            f"{job.source}/{file.name}.beton does not match its sidecar ({reason}); the copy was deleted"
        ) from None
    beton.publish(partial, job.where / f"{file.name}.beton", file.sidecar)
    journal.unlink()


def _copy_parts(file: RemoteFile, job: _Pull, pool: ThreadPoolExecutor, partial: Path, journal: Path) -> None:
    """Copy the missing parts of a file to `partial`, and note each one in `journal`."""
    total = file.sidecar.file_bytes
    done = _finished_parts(partial, journal, f"{file.sidecar.fingerprint} {total} {PART}\n", total)
    with (
        job.system.open_input_file(file.path) as origin,
        partial.open("r+b") as copy,
        journal.open("ab", 0) as notes,
    ):

        def copy_part(number: int) -> int:
            job.alive()
            start = number * PART
            content = origin.read_at(min(PART, total - start), start)
            if len(content) != min(PART, total - start):
                raise OSError(f"{job.source}/{file.name}.beton ended at byte {start + len(content)} of {total}")
            written = 0
            while written < len(content):
                written += os.pwrite(copy.fileno(), content[written:], start + written)
            notes.write(f"{number}\n".encode())
            return len(content)

        copied = sum(min(PART, total - number * PART) for number in done)
        parts = [pool.submit(copy_part, number) for number in range(-(-total // PART)) if number not in done]
        try:
            for part in parts:
                copied += part.result()
                job.progress(f"MiB of {file.name}", copied >> 20, total >> 20)
        finally:  # a part in progress still writes to the open files
            wait([part for part in parts if not part.cancel() and not part.cancelled()])
        os.fsync(copy.fileno())


def _finished_parts(partial: Path, journal: Path, head: str, total: int) -> set[int]:
    """Return the parts that an earlier pull of this file copied; without one, create an empty copy."""
    done = _noted_parts(journal, head, total) if partial.exists() and partial.stat().st_size == total else set()
    journal.write_text(head + "".join(f"{number}\n" for number in sorted(done)))
    if not done:
        with partial.open("wb") as copy:
            copy.truncate(total)
    return done


def _noted_parts(journal: Path, head: str, total: int) -> set[int]:
    """Return the parts that a journal names; a crash of the machine may have left any bytes in it."""
    content = journal.read_bytes() if journal.exists() else b""
    if not content.startswith(head.encode()):
        return set()
    lines = content[len(head) :].split(b"\n")[:-1]
    return {int(line) for line in lines if line.isdigit() and len(line) < 19} & {*range(-(-total // PART))}


def push(
    where: Path,
    target: str,
    names: Sequence[str] = (),
    *,
    fresh: bool = False,
    progress: Progress = no_progress,
) -> dict[str, bool]:
    """Copy prepared files of data sets (default: all) from `where` to `target`; return for each whether it was copied.

    Of a file that differs in its sidecar alone, only that is copied. ValueError where there is no such set, one lacks a
    split, a file is damaged, or the target has other pictures or splits and `fresh` is not set. `fresh` replaces those,
    and deletes the splits that a set no longer has.
    """
    system, base = open_filesystem(target)
    wanted = [where / f"{name}.beton" for name in _stems(names)]
    paths = [path for path in (wanted or sorted(where.glob("*.beton"))) if path.exists()]
    absent = [name for name in names if not any(where / f"{each}.beton" in paths for each in _stems([name]))]
    if absent or not paths:
        raise ValueError(
            f"{where} holds no prepared files{_of(absent)}: {prepare_command(absent[0] if absent else 'NAME', where)}"
        )
    sidecars = {path.stem: read_sidecar(path.with_suffix(".json")) for path in paths}
    if lacking := _lacking(sidecars, where):
        first = next(each for stem, each in sidecars.items() if _set_of(stem) == _set_of(Path(lacking[0]).stem))
        raise ValueError(f"{where} lacks {', '.join(lacking)}: {prepare_command(first.name, where)} adds it")
    with deferred_interrupts() as check, ThreadPoolExecutor(FILES) as pool:

        def progress_while_wanted(what: str, done: int, total: int) -> None:
            check()
            progress(what, done, total)

        # Nothing on the storage is touched before all files here are known to be intact.
        parts = list(pool.map(lambda path: _to_go(system, base, path, target, fresh, check), paths))
        missing = [path for path, part in zip(paths, parts, strict=True) if part == "pictures"]
        _delete_remote(system, [f"{base}/{path.stem}.json" for path in missing])
        list(pool.map(lambda path: _upload(system, base, path, progress_while_wanted), missing))
        for path, part in zip(paths, parts, strict=True):
            if part == "sidecar":
                _upload_sidecar(system, base, path)
        if fresh:
            names_left = sorted(_surplus(sidecars))
            _delete_remote(system, [f"{base}/{name}{suffix}" for name in names_left for suffix in (".json", ".beton")])
        return {f"{target.rstrip('/')}/{path.name}": part != "nothing" for path, part in zip(paths, parts, strict=True)}


def _delete_remote(system: arrow_fs.FileSystem, paths: Sequence[str]) -> None:
    """Delete files on the storage, where they exist, in this order."""
    from pyarrow import fs

    for info in system.get_file_info(paths):
        if info.type == fs.FileType.File:
            system.delete_file(info.path)


def _to_go(
    system: arrow_fs.FileSystem, base: str, path: Path, target: str, fresh: bool, alive: Callable[[], object]
) -> FilePart:
    """Return what the storage lacks of a file.

    ValueError where it is damaged here, or, unless `fresh`, the storage has other pictures or splits.
    """
    from pyarrow import fs

    sidecar, index = beton.read_pair(path)
    remote, remote_sidecar = system.get_file_info([f"{base}/{path.name}", f"{base}/{path.stem}.json"])
    if remote_sidecar.type == fs.FileType.File:
        other = _read_remote_sidecar(system, remote_sidecar.path, f"{target}/{path.stem}.json")
        if not fresh and (difference := _difference(other, sidecar, str(path))):
            raise ValueError(f"{target}/{path.name} holds {difference}; --fresh replaces it")
        if other.fingerprint == sidecar.fingerprint and remote.size == sidecar.file_bytes:
            if _facts(other) == _facts(sidecar):
                return "nothing"
            if other.index == sidecar.index:
                return "sidecar"
    if beton.fingerprint(index, alive) != sidecar.fingerprint:
        raise ValueError(f"{path} is damaged; {remedy(sidecar, path.parent)}")
    return "pictures"


def _upload(system: arrow_fs.FileSystem, base: str, path: Path, progress: Progress) -> None:
    """Copy a file and then its sidecar to the storage."""
    from pyarrow import fs

    if not isinstance(system, fs.S3FileSystem):
        system.create_dir(base, recursive=True)
    with path.open("rb") as file:
        parts = iter(lambda: file.read(PART), b"")
        _write(system, f"{base}/{path.name}", _with_progress(parts, path.stem, path.stat().st_size, progress))
    _upload_sidecar(system, base, path)


def _upload_sidecar(system: arrow_fs.FileSystem, base: str, path: Path) -> None:
    _write(system, f"{base}/{path.stem}.json", [path.with_suffix(".json").read_bytes()])


def _with_progress(parts: Iterable[bytes], name: str, total: int, progress: Progress) -> Iterable[bytes]:
    """Yield the parts and report how much has been sent."""
    sent = 0
    for part in parts:
        yield part
        sent += len(part)
        progress(f"MiB of {name}", sent >> 20, total >> 20)


def _write(system: arrow_fs.FileSystem, path: str, parts: Iterable[bytes]) -> None:
    """Write a file completely or not at all: an object is atomic by itself, a file by its renaming."""
    from pyarrow import fs

    folder, _, name = path.rpartition("/")
    target = path if isinstance(system, fs.S3FileSystem) else f"{folder}/.{name}.{os.getpid()}.partial"
    with system.open_output_stream(target) as stream:
        for part in parts:
            stream.write(part)
    if target != path:
        system.move(target, path)
