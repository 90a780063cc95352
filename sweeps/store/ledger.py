"""The state of record: what is planned, done, failed, and how far each trial is, as files on shared storage.

    plans/SWEEP.json               what was declared when the sweep last started
    leases/SWEEP.json              who drives it now
    claims/KEY.json                the sweep whose driver trains it now
    results/KEY.json               the commit point of a trial: written last, atomically
    attempts/KEY/0001.json         each failed try, with its error
    checkpoints/KEY/00007-00000123.safetensors   the last two states of a running trial
    trials/KEY/                    trial.json, history.json, weights.safetensors, tables/scores.parquet, log.txt
    packs/NAME.json                who has left a pack that still runs
    forecasts/SWEEP-TIME.json      what a session was forecast to take, and what it took
    prices/SWEEP.json              what an hour of a GPU costs, where someone said so, and a trial's share of one
    tracked/KEY.json               what the tracker last brought to MLflow

Tune's own directory is disposable; Optuna's studies and MLflow's runs are rebuilt from these files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.storage import open_filesystem

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs

Json = dict[str, Any]
T = TypeVar("T")


def with_room(write: Callable[[], T], stop: Callable[[], bool]) -> T | None:
    """Return what `write` returns, waiting for room while the disk is full; None where `stop()` ends the wait."""
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        if stop():
            return None
        time.sleep(1.0)


def _check(result: Mapping[str, Any]) -> str:
    """Return the checksum of a result: a flipped bit of an error would otherwise be a wrong number in a table."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Ledger:
    """The files of one output folder; `root` is a local path or a URI that pyarrow.fs knows (s3://...)."""

    root: str

    @classmethod
    def in_output(cls, output: str) -> Ledger:
        """Return the ledger of an output folder or URI; a local path may be relative, or begin with ~."""
        root = output.rstrip("/") if "://" in output else os.path.abspath(os.path.expanduser(output))
        return cls(f"{root}/ledger")

    @property
    def _arrow(self) -> Any:
        """Return pyarrow.fs, imported with the first file: what only declares and explains a sweep needs none."""
        from pyarrow import fs

        return fs

    @cached_property
    def _place(self) -> tuple[arrow_fs.FileSystem, str]:
        return open_filesystem(self.root)

    @property
    def local(self) -> bool:
        """Return whether the ledger lies on a file system of this host."""
        return isinstance(self._place[0], self._arrow.LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the full path of `name` on the ledger's file system."""
        return f"{self._place[1]}/{name}"

    # Bytes ---------------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Write `content` under `name` so that a reader sees all of it or none; OSError where that fails."""
        system, path = self._place[0], self.path(name)
        if not self.local:
            with system.open_output_stream(path) as stream:
                stream.write(content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # One name per process and thread: two writers of one file never share a temporary.
        torn = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            with open(torn, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(torn, target)
        finally:
            torn.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of `name`, or None where there is no such file."""
        try:
            with self._place[0].open_input_stream(self.path(name)) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def head(self, name: str, size: int, start: int = 0) -> bytes:
        """Return up to `size` bytes of `name` from `start`."""
        with self._place[0].open_input_file(self.path(name)) as stream:
            content: bytes = stream.read_at(size, start)
            return content

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in `folder`, sorted; hidden and half-written ones are not shown."""
        selector = self._arrow.FileSelector(self.path(folder), allow_not_found=True)
        found = self._place[0].get_file_info(selector)
        files = (info.base_name for info in found if info.type == self._arrow.FileType.File)
        return sorted(name for name in files if not name.startswith("."))

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in `folder`, sorted."""
        selector = self._arrow.FileSelector(self.path(folder), allow_not_found=True)
        found = self._place[0].get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == self._arrow.FileType.Directory)

    def delete(self, name: str) -> None:
        """Delete the file or folder `name`, if it is there."""
        system, path = self._place[0], self.path(name)
        kind = system.get_file_info(path).type
        if kind == self._arrow.FileType.Directory:
            system.delete_dir(path)
        elif kind == self._arrow.FileType.File:
            system.delete_file(path)

    def read_json(self, name: str) -> Json | None:
        """Return the JSON object in `name`; None where there is none or it is not whole."""
        content = self.read(name)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object under `name`, atomically."""
        self.write(name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=True) + "\n").encode())

    # Trials --------------------------------------------------------------------------------------------------

    def result(self, key: str) -> Json | None:
        """Return the committed result of trial `key`; None where there is none, or a bit of it has changed."""
        result = self.read_json(f"results/{key}.json")
        return result if result is not None and result.pop("check", None) == _check(result) else None

    def results(self, keys: Iterable[str] | None = None) -> dict[str, Json]:
        """Return the results of `keys` (all, where None) that are committed."""
        there = {name.removesuffix(".json") for name in self.names("results") if name.endswith(".json")}
        wanted = sorted(there if keys is None else there.intersection(keys))
        if self.local:
            read = {key: self.result(key) for key in wanted}
        else:
            with ThreadPoolExecutor(32) as pool:
                read = dict(zip(wanted, pool.map(self.result, wanted), strict=True))
        return {key: value for key, value in read.items() if value is not None}

    def commit(self, key: str, result: Mapping[str, Any]) -> None:
        """Write the result of trial `key`: from here on it is done. Its checkpoints go."""
        self.write_json(f"results/{key}.json", {**result, "check": _check(result)})
        self.delete(f"checkpoints/{key}")

    def attempts(self, key: str) -> list[Json]:
        """Return the failed tries of trial `key`, oldest first."""
        read = (self.read_json(f"attempts/{key}/{name}") for name in self.names(f"attempts/{key}"))
        return [attempt for attempt in read if attempt is not None]

    def failed(self) -> dict[str, list[Json]]:
        """Return the trials that have failed tries, with those tries."""
        return {key: tries for key in self.folders("attempts") if (tries := self.attempts(key))}

    def add_attempt(self, key: str, attempt: Mapping[str, Any]) -> None:
        """Record one more failed try of trial `key`."""
        number = len(self.names(f"attempts/{key}")) + 1
        self.write_json(f"attempts/{key}/{number:04d}.json", attempt)

    def forget(self, key: str) -> None:
        """Take away everything known of trial `key`, so that it runs anew."""
        for name in (f"results/{key}.json", f"tracked/{key}.json", f"claims/{key}.json"):
            self.delete(name)
        for folder in ("attempts", "checkpoints", "trials"):
            self.delete(f"{folder}/{key}")


def failed_attempt(error: BaseException, final: bool) -> Json:
    """Return the record of a failed try; a final one is not tried again unless someone asks."""
    lines = "".join(traceback.format_exception(error))
    host = os.uname().nodename
    return {
        "error": f"{type(error).__name__}: {error}",
        "trace": lines,
        "final": final,
        "time": time.time(),
        "host": host,
    }
