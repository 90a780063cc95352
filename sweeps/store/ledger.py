"""Ledger: what is planned, done and failed, and how far each trial is, as files on shared storage.

    plans/SWEEP.json               what was declared when the sweep last started
    leases/SWEEP.json              who drives it now
    claims/KEY.json                the sweep whose driver trains a trial now
    results/KEY.json               the commit point of a trial: written last, atomically
    attempts/KEY/0001.json         each failed attempt, with its error
    checkpoints/KEY/00007-00000123.safetensors   the last two states of a running trial
    trials/KEY/                    trial.json, history.json, weights.safetensors, tables/scores.parquet, hang.txt
    trials/KEY/files/              what a training function of the user's has put into run.folder
    packs/NAME.json                the members that have left a pack that still runs
    packs/NAME.hang                the stack of a pack that hung, and the member whose step it was
    forecasts/SWEEP-TIME.json      the time that a session was forecast to take, and the time it took
    prices/SWEEP.json              the price of an hour of a GPU, where given, and a trial's share of a GPU
    tracked/KEY.json               what the tracker last brought to MLflow, for each sweep that has the trial
    ledger.json                    the name of this ledger, by which a shared MLflow server tells its runs from others'
    place.json                     where this ledger lies, by which a copy of the folder is known

This is the state of record. Tune's own directory is disposable; Optuna's studies and MLflow's runs are rebuilt from it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from crelu_data.interrupts import deferred_interrupts
from crelu_data.storage import check_mounted, full_disk_named, make_folder, open_filesystem, sync_folder
from sweeps.store.foreign import TASK_FILES, TRIAL_FILES, is_trial_file, known_trial_files, printable_json, relative

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs

Json = dict[str, Any]
T = TypeVar("T")
IDENTITY = "ledger.json"  # the file with the name of a ledger
PLACE = "place.json"  # the file with the place of a ledger, by which a copy is known
SETTLE = 1.0  # seconds in which two processes that name a ledger at once see who wrote last


# A disk that is full, fails or has gone: it may come back, and what is in memory is not lost meanwhile.
PASSING = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT,
    errno.EHOSTDOWN, errno.EREMOTEIO,
})  # fmt: skip
# The same of a bucket: pyarrow's errors of one have words and no number.
AWAY = re.compile(
    r"AWS Error (?:NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    r"|UNKNOWN \(HTTP status (?:429|5\d\d)\))"
)


def is_away(error: OSError) -> bool:
    """Return whether an error may pass: a disk is full or away, or a bucket does not answer."""
    return error.errno in PASSING or (error.errno is None and AWAY.search(str(error)) is not None)


def with_room(write: Callable[[], T], stop: Callable[[], bool]) -> T | None:
    """Return the result of `write()`, repeated while the store is full or away; None where `stop()` ends the wait."""
    while True:
        try:
            return write()
        except OSError as error:
            if not is_away(error):
                raise
        if stop():
            return None
        time.sleep(1.0)


def checksum(value: Mapping[str, Any]) -> str:
    """Return the checksum of a result, without which a flipped bit would be a wrong number in a table."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _named(name: str) -> bytes:
    """Return the file of a ledger's name."""
    twice = _named_twice(name)
    return (json.dumps(twice | {"check": checksum(twice)}) + "\n").encode()


def _named_twice(name: str) -> dict[str, str]:
    """Return what the file of a ledger's name says."""
    return {"id": name, "again": name}


def _store_of(root: str) -> tuple[str, str, str]:
    """Return what names the store of a place: scheme, bucket and options of a URI, nothing for a path."""
    parts = urlsplit(root) if "://" in root else SplitResult("", "", "", "", "")
    return parts.scheme, parts.netloc, parts.query


def unguarded() -> None:
    """Let every write pass."""


@dataclass(frozen=True)
class Ledger:
    """Files of one output folder; `root` is a local path or a URI that pyarrow.fs knows (s3://...).

    `guard` is called directly before each write and may raise: a driver whose sweep another one drives writes no more.
    """

    root: str
    guard: Callable[[], None] = field(default=unguarded, compare=False, repr=False)

    @classmethod
    def in_output(cls, output: str) -> Ledger:
        """Return the ledger of an output folder or URI; a local path may be relative, or begin with ~."""
        root = output.rstrip("/") if "://" in output else os.path.abspath(os.path.expanduser(output))
        return cls(f"{root}/ledger")

    @property
    def output(self) -> str:
        """Return the output folder or URI that this ledger lies in."""
        return self.root.removesuffix("/ledger")

    @property
    def _arrow(self) -> Any:
        """Return pyarrow.fs, imported with the first file: a sweep can be declared and explained without."""
        from pyarrow import fs

        return fs

    @cached_property
    def _opened(self) -> tuple[arrow_fs.FileSystem, str]:
        return open_filesystem(self.root)

    @cached_property
    def _damaged(self) -> set[str]:
        """Return the damaged files that have been named: each is named once."""
        return set()

    @property
    def local(self) -> bool:
        """Return whether the ledger is on a file system of this host."""
        return isinstance(self._opened[0], self._arrow.LocalFileSystem)

    @cached_property
    def identity(self) -> str:
        """Return the name of this ledger, a UUID that is written once; a folder that is moved takes it along.

        A copy of the folder gets a name of its own, where it can be told from its original by the place that a second
        file notes.
        """
        name = self._known_identity()
        known = self.read_json(PLACE) or {}
        place = self._place()
        if not name:
            self._write_once(IDENTITY, _named(uuid.uuid4().hex))
            name = self._known_identity()
        elif self._is_copy(name, known, place):
            name = uuid.uuid4().hex
            self.write(IDENTITY, _named(name))
        if known != place:
            self.write_note(PLACE, place)
        return name

    def _known_identity(self) -> str:
        """Return the ledger's name in its file; where one bit of that is wrong, its second copy or its checksum."""
        identity = self.read_json(IDENTITY)
        if identity is not None and identity.get("id"):
            return str(identity["id"])
        content = self.read(IDENTITY) or b""
        copies: list[str] = [copy.decode() for copy in re.findall(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", content)]
        for copy in copies:
            if copies.count(copy) > 1 or checksum(_named_twice(copy)).encode() in content:
                return copy
        return ""

    def _place(self) -> Json:
        """Return where this ledger lies: its path or URI and, on a disk, the host and the number of its folder."""
        if not self.local:
            return {"root": self.root}
        folder = Path(self.path(""))
        folder.mkdir(parents=True, exist_ok=True)
        return {"root": self.root, "host": os.uname().nodename, "inode": folder.stat().st_ino}

    def _is_copy(self, name: str, known: Json, place: Json) -> bool:
        """Return whether this ledger, of a `known` place and now at another, is a copy of one of the same name.

        The same path, or the same folder of a disk, is no copy. On another host nobody can tell; a copy harms less
        under a name of its own than two folders under one. A place on another store is not asked: somebody else may
        have written it, and a store gets the user's login.
        """
        root = known.get("root", place["root"])  # an earlier version wrote no place
        if root == place["root"] or ("inode" in place and known.get("inode") == place["inode"]):
            return False
        if self.local and known.get("host") != place["host"]:
            return True
        if _store_of(str(root)) != _store_of(self.root):
            return False
        try:
            return Ledger(str(root))._known_identity() == name
        except (OSError, ValueError):
            return False

    def path(self, name: str) -> str:
        """Return the full path of `name` on the ledger's file system.

        ValueError where the name leads out of the ledger, by itself or by a link: nothing here makes a link, and one
        that somebody else has put there could name any file of this host.
        """
        root = self._opened[1]
        if not name:
            return root
        path = f"{root}/{relative(name)}"
        if self.local:
            parts = name.split("/")
            for depth in range(1, len(parts) + 1):
                part = f"{root}/{'/'.join(parts[:depth])}"
                if os.path.islink(part):
                    raise ValueError(f"{part} is a link, which no ledger holds: put what it points to in its place")
        return path

    def check_links(self) -> None:
        """Raise ValueError where one of the ledger's own folders or files is a link."""
        root = self._opened[1]
        if self.local and os.path.isdir(root):
            for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
                self.path(entry.name)

    # Bytes

    def write(self, name: str, content: bytes) -> None:
        """Write `content` under `name`. A reader sees all of it or nothing. OSError where that fails."""
        system = self._opened[0]
        path = self.path(name)
        if not self.local:
            self.guard()
            with system.open_output_stream(path) as stream:
                stream.write(content)
            return
        check_mounted(Path(self._opened[1]))
        with full_disk_named(self._opened[1]):
            self._write_local(Path(path), content)

    def _write_local(self, target: Path, content: bytes) -> None:
        """Write a file of a local disk by another name first, and last through a loss of power."""
        make_folder(target.parent)
        # Named after process and thread: two writers of one file never share a temporary one.
        partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            # Where somebody has put a link in the place of the temporary file, nothing is written through it.
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666), "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            self.guard()
            os.replace(partial, target)
            sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)

    def _write_once(self, name: str, content: bytes) -> None:
        """Write a file that two processes may want to create at once; the first of them wins, elsewhere the last."""
        if not self.local:
            self.write(name, content)
            time.sleep(SETTLE)
            return
        target = Path(self.path(name))
        draft = f".{name}.{os.getpid()}.{threading.get_ident()}.draft"
        self.write(draft, content)
        self.guard()
        try:
            os.link(self.path(draft), target)
        except FileExistsError:
            if self.read_json(name) is None:  # a damaged one
                self.write(name, content)
        except OSError:  # a file system without links
            self.write(name, content)
        finally:
            self.delete(draft)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of `name`, or None where there is no such file."""
        try:
            with self._opened[0].open_input_stream(self.path(name)) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of `name`, or None where there is no such file."""
        total = hashlib.sha256()
        try:
            with self._opened[0].open_input_stream(self.path(name)) as stream:
                while chunk := stream.read(1 << 20):
                    total.update(chunk)
        except FileNotFoundError:
            return None
        return total.hexdigest()

    def head(self, name: str, size: int, start: int = 0) -> bytes:
        """Return up to `size` bytes of `name` from `start`."""
        with self._opened[0].open_input_file(self.path(name)) as stream:
            content: bytes = stream.read_at(size, start)
            return content

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in `folder`, sorted, without hidden and half-written ones."""
        return [name for name in self._listed(folder, self._arrow.FileType.File) if not name.startswith(".")]

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in `folder`, sorted."""
        return self._listed(folder, self._arrow.FileType.Directory)

    def _listed(self, folder: str, kind: object) -> list[str]:
        selector = self._arrow.FileSelector(self.path(folder), allow_not_found=True)
        entries = self._opened[0].get_file_info(selector)
        return sorted(entry.base_name for entry in entries if entry.type == kind)

    def delete(self, name: str) -> None:
        """Delete the file or folder `name`, where it exists."""
        system = self._opened[0]
        path = self.path(name)
        kind = system.get_file_info(path).type
        self.guard()
        with suppress(FileNotFoundError):  # another process was faster
            if kind == self._arrow.FileType.Directory:
                system.delete_dir(path)
            elif kind == self._arrow.FileType.File:
                system.delete_file(path)

    def read_json(self, name: str) -> Json | None:
        """Return the JSON object in `name`, its texts printable; None where the file is missing or damaged.

        A file that holds a checksum is damaged where that does not match.
        """
        content, value = self._raw_json(name)
        if value is not None and "check" in value and value.pop("check") != checksum(value):
            value = None
        if value is None and content and name not in self._damaged:
            self._damaged.add(name)
            logging.getLogger(__name__).warning("%s is damaged and is not read", self.path(name))
        return value if value is None else printable_json(content, value)

    def read_checked(self, name: str) -> Json | None:
        """Return the JSON object in `name` without its checksum; None where it does not match, or there is none."""
        content, value = self._raw_json(name)
        if value is None or value.pop("check", None) != checksum(value):
            return None
        return printable_json(content, value)

    def _raw_json(self, name: str) -> tuple[bytes, Json | None]:
        """Return the bytes of `name` and the JSON object in them, as somebody wrote it."""
        content = self.read(name) or b""
        try:
            # In UTF-16 a control character would pass `printable_json`.
            value = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):
            return content, None
        return content, value if isinstance(value, dict) else None

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object under `name`, atomically."""
        self.write(name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=True) + "\n").encode())

    def write_note(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object with its checksum under `name`, atomically: `read_json` finds out a flipped bit."""
        plain = json.loads(json.dumps(value, allow_nan=True))
        self.write_json(name, {**plain, "check": checksum(plain)})

    # Trials

    def result(self, key: str) -> Json | None:
        """Return the committed result of trial `key`.

        None where it is missing, a bit of it has changed, or it names files that no trial has.
        """
        result = self.read_checked(f"results/{key}.json")
        return result if result is not None and known_trial_files(result.get("files", {})) else None

    def results(self, keys: Iterable[str] | None = None) -> dict[str, Json]:
        """Return the results of `keys` (all, where None) that are committed."""
        return self.read_results(keys)[0]

    def read_results(self, keys: Iterable[str] | None = None) -> tuple[dict[str, Json], frozenset[str]]:
        """Return the results of `keys` (all, where None), and the keys of those that are there and damaged."""
        committed = {name.removesuffix(".json") for name in self.names("results") if name.endswith(".json")}
        wanted = sorted(committed if keys is None else committed.intersection(keys))
        read = {key: self.result(key) for key in wanted} if self.local else self._read_all(wanted)
        intact = {key: value for key, value in read.items() if value is not None}
        return intact, frozenset(read.keys() - intact.keys())

    def _read_all(self, keys: Sequence[str]) -> dict[str, Json | None]:
        """Return the results of `keys`, read side by side: each is a request."""
        with deferred_interrupts() as check, ThreadPoolExecutor(32) as pool:

            def read(key: str) -> Json | None:
                check()
                return self.result(key)

            return dict(zip(keys, pool.map(read, keys), strict=True))

    def commit(self, key: str, result: Mapping[str, Any]) -> Json:
        """Write the result of trial `key`, which is done from then on, and delete its checkpoints; return the result.

        It gets the sizes of the trial's files as they lie there, by which a lost one is known unread.
        """
        sized = {**result, "sizes": self.file_sizes([key])[key]} if result.get("files") else dict(result)
        self.write_json(f"results/{key}.json", {**sized, "check": checksum(sized)})
        self.delete(f"checkpoints/{key}")
        self.delete(f"paused/{key}.json")
        return sized

    def pause(self, key: str, record: Mapping[str, Any]) -> None:
        """Note that trial `key` has paused: its epoch, and its errors by epoch."""
        self.write_note(f"paused/{key}.json", record)

    def paused_at(self, key: str) -> Json | None:
        """Return the record of trial `key` where it has paused, None where it has not, or the record is damaged."""
        record = self.read_checked(f"paused/{key}.json")
        return record if record is not None and len(record.get("curve", ())) == record.get("epoch") else None

    def paused(self) -> dict[str, Json]:
        """Return the records of all trials that have paused and have no result, by key."""
        keys = [name.removesuffix(".json") for name in self.names("paused")]
        return {key: record for key in keys if (record := self.paused_at(key)) is not None}

    def file_sizes(self, keys: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return the bytes of each file that lies in the folders of these trials, by key and name; no file is read."""
        sizes: dict[str, dict[str, int]] = {key: {} for key in keys}
        if not self.local:
            self._list_sizes(sizes)
            return sizes
        root = self._opened[1]
        for key, files in sizes.items():
            folder = f"{root}/trials/{key}"
            for name in (*TRIAL_FILES, *_task_files(folder)):
                with suppress(OSError):
                    files[name] = os.lstat(f"{folder}/{name}").st_size
        return sizes

    def _list_sizes(self, sizes: Mapping[str, dict[str, int]]) -> None:
        """Fill in the sizes of files on object storage: of one trial, or of several by one listing of all."""
        folder = self.path(f"trials/{next(iter(sizes))}" if len(sizes) == 1 else "trials")
        selector = self._arrow.FileSelector(folder, allow_not_found=True, recursive=True)
        start = len(self.path("trials")) + 1
        for entry in self._opened[0].get_file_info(selector) if sizes else ():
            key, _, name = entry.path[start:].partition("/")
            if key in sizes and is_trial_file(name) and entry.type == self._arrow.FileType.File:
                sizes[key][name] = entry.size

    def attempts(self, key: str) -> list[Json]:
        """Return the failed attempts of trial `key`, oldest first."""
        read = (self.read_json(f"attempts/{key}/{name}") for name in self.names(f"attempts/{key}"))
        return [attempt for attempt in read if attempt is not None]

    def failed(self) -> dict[str, list[Json]]:
        """Return the failed attempts of every trial that has any, by key."""
        return {key: tries for key in self.folders("attempts") if (tries := self.attempts(key))}

    def add_attempt(self, key: str, attempt: Mapping[str, Any]) -> None:
        """Record one more failed attempt of trial `key`."""
        number = len(self.names(f"attempts/{key}")) + 1
        self.write_note(f"attempts/{key}/{number:04d}.json", attempt)

    def tracked(self, key: str, sweep: str) -> Json:
        """Return the note of a trial's run in MLflow: that of `sweep`, else the last one; empty where there is none."""
        note = self.read_json(f"tracked/{key}.json") or {}
        of_sweep = note.get("sweeps", {}).get(sweep)
        return dict(of_sweep or note)

    def forget(self, key: str) -> None:
        """Delete all files of trial `key`, so that it runs anew."""
        for folder in ("results", "tracked", "claims", "damaged", "paused"):
            self.delete(f"{folder}/{key}.json")
        for folder in ("attempts", "checkpoints", "trials"):
            self.delete(f"{folder}/{key}")


def _task_files(folder: str) -> Iterator[str]:
    """Yield the names of the files that a training function has put into a trial's folder on a disk."""
    for above, _, files in os.walk(f"{folder}/{TASK_FILES}"):
        names = (os.path.relpath(f"{above}/{file}", folder) for file in files)
        yield from filter(is_trial_file, names)


def failed_attempt(error: BaseException, final: bool) -> Json:
    """Return the record of a failed attempt; a final one is not repeated unless someone asks for it."""
    return {
        "error": f"{type(error).__name__}: {error}",
        "trace": "".join(traceback.format_exception(error)),
        "final": final,
        "time": time.time(),
        "host": os.uname().nodename,
    }
