"""Backup and restore of an MLflow server: its database, its users and its artifacts, in one tar file.

The database comes first, as of one moment (SQLite's own backup, or pg_dump), so that every artifact it names is among
those that follow. The last member lists the checksums of all others; a file without it is incomplete. Artifacts at a
URI stay where they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Final, TypedDict

from crelu_data.interrupts import deferred_interrupts
from crelu_data.storage import open_filesystem, sync_folder
from sweeps.store.foreign import relative
from sweeps.store.local_uris import local_path, sqlite_file

CHUNK = 16 << 20  # bytes that are copied at a time
DATABASE, USERS, ARTIFACTS, MANIFEST = "store", "users.db", "artifacts", "list.json"
BACKING_UP, RESTORING = ".backup-", ".restore-"  # how the names of the folders of unfinished work begin
IN_USE: Final = "in-use-by-mlflow-backup"  # the file in such a folder that is locked while its command runs

# MLflow's private tables. No other module of this project names them. tests/ops/test_mlflow_server.py compares them
# with MLflow's own: the columns that hold a folder of artifacts, and the one that holds a user's hashed password.
ARTIFACT_COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"))
PASSWORD_HASH = "select password_hash from users where username = ?"


class Manifest(TypedDict):
    """List of a backup's members with their checksums, and what it is a backup of."""

    kind: str
    artifacts: str
    mlflow: str
    made: float
    sums: dict[str, str]


@dataclass(frozen=True)
class StoreFiles:
    """Files of a store: its database (`sqlite`, or PostgreSQL by `uri`), its users, its folder of artifacts."""

    uri: str
    sqlite: Path | None
    users: Path
    artifacts: Path | None

    @property
    def kind(self) -> str:
        """Return the kind of database."""
        return "sqlite" if self.sqlite else "postgresql"


def store_files(store: str, artifacts: str, users: Path) -> StoreFiles:
    """Return where the parts of a store lie; artifacts at a URI have no folder."""
    sqlite = sqlite_file(store)
    uri = "postgresql://" + store.partition("://")[2]  # libpq knows no SQLAlchemy driver
    return StoreFiles(uri, sqlite, users, None if "://" in artifacts else Path(artifacts))


def password_hash(users: Path, name: str) -> str | None:
    """Return a user's hashed password from the database of users; None where there is no such user or table yet."""
    with closing(sqlite3.connect(users)) as base, suppress(sqlite3.OperationalError):
        row = base.execute(PASSWORD_HASH, (name,)).fetchone()
        return str(row[0]) if row is not None else None
    return None


# Backup -------------------------------------------------------------------------------------------------------------


def write(target: str, store: str, artifacts: str, users: Path) -> str:
    """Back up a store, which may be in use, to a file or URI; return a sentence. ValueError where there is none."""
    place = local_path(target) if target.startswith("file:///") else target
    if "://" not in place:
        with _sentences():
            return _write_file(Path(place).expanduser().absolute(), store, artifacts, users)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "backup.tar")
        with _sentences():
            sentence = _write_file(copy, store, artifacts, users)
        _send(copy, target)
    return sentence.replace(str(copy), target)


def _send(copy: Path, target: str) -> None:
    """Send a backup to a bucket, whole also after an interrupt; a second interrupt ends the process at once.

    An exception would make pyarrow complete the upload as it is, and half a backup would replace the one before. The
    upload of a process that has ended is never completed. Another name until it is whole is no way out: S3 gives
    nothing larger than 5 GB a new one.
    """

    def tell(_: str) -> None:
        print("stopping, after the backup is sent (once more to end at once; the one before stays)", file=sys.stderr)

    system, remote_path = open_filesystem(target)
    with (
        deferred_interrupts(tell=tell),
        copy.open("rb") as file,
        system.open_output_stream(remote_path) as stream,
    ):
        shutil.copyfileobj(file, stream, CHUNK)


def _write_file(path: Path, store: str, artifacts: str, users: Path) -> str:
    files = store_files(store, artifacts, users)
    with _unfinished(path.parent, BACKING_UP) as folder:
        members = {DATABASE: _dump_database(files, folder / DATABASE)}
        if users.exists():
            members[USERS] = _copy_sqlite(users, folder / USERS)
        members |= _artifact_files(files.artifacts)
        partial = folder / "backup.tar"
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w|") as tar:
                sums = {name: _add(tar, name, member) for name, member in members.items()}
                _add_manifest(tar, Manifest(kind=files.kind, artifacts=artifacts, mlflow=version("mlflow"),
                                            made=time.time(), sums=sums))  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    count = sum(name.startswith(f"{ARTIFACTS}/") for name in members)
    where = f"{count} artifacts" if files.artifacts else f"no artifacts: they stay in {artifacts}"
    whose = ", its users" if USERS in members else ""
    return f"{path}: the database{whose} and {where}, {path.stat().st_size:,} bytes"


@contextmanager
def _unfinished(parent: Path, prefix: str) -> Iterator[Path]:
    """Return a folder for work under way, which is removed at its end, after those that killed commands have left."""
    _remove_leftovers(parent, prefix)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix=prefix)))
        # The file gets its name once it is locked, so that no other command takes the folder for a leftover.
        draft = folder / f".{IN_USE}"
        file = stack.enter_context(draft.open("wb"))
        with suppress(OSError):  # a disk without locks, where leftovers stay
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.rename(folder / IN_USE)
        yield folder


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove the folders of killed commands; that of a living one is locked, and one without our file is not ours."""
    for mark in parent.glob(f"{prefix}*/{IN_USE}"):
        with suppress(OSError), mark.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent)


@contextmanager
def _sentences() -> Iterator[None]:
    """Raise SQLite's errors, of a disk that fails or is full and of a damaged file, as OSError with a sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(f"SQLite cannot read or write the database: {error}") from None


def _dump_database(files: StoreFiles, copy: Path) -> Path:
    """Write the store's database to a file."""
    if files.sqlite is None:
        _run_postgres("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={copy}", files.uri)
        return copy
    if not files.sqlite.exists():
        raise ValueError(f"there is no MLflow store in {files.sqlite} to back up")
    return _copy_sqlite(files.sqlite, copy)


def _copy_sqlite(path: Path, copy: Path) -> Path:
    """Copy a SQLite database as of one moment; it may be written to meanwhile."""
    with closing(sqlite3.connect(path, timeout=60)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def _artifact_files(folder: Path | None) -> dict[str, Path]:
    """Return the files of a folder of artifacts by their names in a backup."""
    if folder is None or not folder.is_dir():
        return {}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink()]
    for path in files:
        if path.is_symlink():
            raise ValueError(f"{path} is a link, which no artifact is: a backup would hold the file that it leads to")
    return {f"{ARTIFACTS}/{path.relative_to(folder)}": path for path in files}


class _HashingReader:
    """A file whose content is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self.file.read(size)
        self.digest.update(chunk)
        return chunk


def _add(tar: tarfile.TarFile, name: str, path: Path) -> str:
    """Add a file to the archive and return its checksum."""
    with path.open("rb") as file:
        reader = _HashingReader(file)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime = path.stat().st_size, int(path.stat().st_mtime)
        tar.addfile(entry, reader)
        return reader.digest.hexdigest()


def _add_manifest(tar: tarfile.TarFile, manifest: Manifest) -> None:
    content = json.dumps(manifest, indent=1).encode()
    entry = tarfile.TarInfo(MANIFEST)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


# Restore ------------------------------------------------------------------------------------------------------------


def restore(source: str, store: str, artifacts: str, users: Path) -> str:
    """Restore a backup to an empty place, and return a sentence.

    ValueError, with nothing written, where the place is not empty or the backup is incomplete. Experiments that name
    the old folder of artifacts name the new one afterwards. To a URI no artifacts are brought: the sentence says so.
    The database comes last: without it a restore was interrupted, and the same command ends it.
    """
    files = store_files(store, artifacts, users)
    _remove_leftovers(users.parent, RESTORING)
    if files.sqlite is not None and files.sqlite.exists():
        raise _occupied(files.sqlite)
    users.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(users.parent, RESTORING) as unpacked:
        manifest = _unpack(_fetch(source, unpacked), unpacked)
        if manifest["kind"] != files.kind:
            raise ValueError(f"{source} holds a {manifest['kind']} database: say by --store where one is to be")
        for name in (DATABASE, USERS):
            if (unpacked / name).exists():
                (unpacked / name).chmod(0o600)  # as the server makes them
        targets = ((ARTIFACTS, files.artifacts), (USERS, users), (DATABASE, files.sqlite))
        to_move = [(unpacked / name, target) for name, target in targets
                   if target is not None and not _is_restored(unpacked / name, target)]  # fmt: skip
        if files.sqlite:
            with _sentences():
                _move_artifact_folder(unpacked / DATABASE, manifest["artifacts"], artifacts)
        else:
            # In one transaction: where a table of these names exists nothing is restored.
            _run_postgres("pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges",
                          f"--dbname={files.uri}", str(unpacked / DATABASE))  # fmt: skip
        for part, target in to_move:
            if part.exists():
                _move(part, target)
        stay = files.artifacts is None and (unpacked / ARTIFACTS).exists()
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest["made"]))
    what = f" without its artifacts, which have to be in {artifacts}" if stay else ""
    return f"{source}: restored as of {when} to {store}{what}"


def _occupied(path: Path) -> ValueError:
    return ValueError(f"{path} is there already: a backup is restored to where nothing is")


def _is_restored(part: Path, target: Path) -> bool:
    """Return whether an interrupted restore has put a part in its place; ValueError where something else is there."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not part.exists() or _sums(part) != _sums(target):
        raise _occupied(target)
    return True


def _sums(path: Path) -> dict[str, str]:
    """Return the checksums of a file, or of all files below a folder, by their names there."""
    paths = [path] if path.is_file() else [each for each in path.rglob("*") if not each.is_dir()]
    return {str(each.relative_to(path)): _checksum(each) for each in paths}


def _move(part: Path, target: Path) -> None:
    """Give a part its place at once, also where that is on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = target.with_name(f".{target.name}.partial")
    if copy.is_dir():
        shutil.rmtree(copy)
    shutil.move(part, copy)
    if target.is_dir():
        target.rmdir()
    os.replace(copy, target)


def _fetch(source: str, folder: Path) -> Path:
    """Return the path of a backup on this machine; one at a URI is copied into the folder."""
    if "://" not in source:
        return Path(source).expanduser()
    system, remote_path = open_filesystem(source)
    copy = folder / "backup.tar"
    with system.open_input_stream(remote_path) as stream, copy.open("wb") as file:
        shutil.copyfileobj(stream, file, CHUNK)
    return copy


def _unpack(source: Path, folder: Path) -> Manifest:
    """Unpack a backup and check each file of it; ValueError where one is missing or damaged."""
    unpacked: set[str] = set()
    try:
        # A backup is not compressed, so it unpacks to no more than its own size.
        with tarfile.open(source, "r:") as tar:
            for entry in tar:
                _check_entry(entry, source)
                tar.extract(entry, folder, filter="data")
                unpacked.add(entry.name)
        manifest: Manifest = json.loads((folder / MANIFEST).read_bytes())
        sums = manifest["sums"]
    except _ForeignError:
        raise
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is not a whole backup: {error}") from None
    except FileNotFoundError:
        reason = "its end is missing" if source.exists() else "there is no such file"
        raise ValueError(f"{source} is not a whole backup: {reason}") from None
    if further := unpacked - sums.keys() - {MANIFEST}:
        raise ValueError(f"{source} holds {min(further)!r}, which its list does not name")
    for name, expected in sums.items():
        if name not in unpacked or not (folder / name).is_file() or _checksum(folder / name) != expected:
            raise ValueError(f"{source} is not a whole backup: {name} is damaged")
    return manifest


class _ForeignError(ValueError):
    """A backup holds what none of ours does."""


def _check_entry(entry: tarfile.TarInfo, source: Path) -> None:
    """Raise where a member is not one of ours: a whole file of the database, the users, the list or an artifact."""
    if not entry.isreg() or entry.issparse():
        raise _ForeignError(f"{source} holds {entry.name!r}, which is no plain file: no backup of ours does")
    if entry.name not in (DATABASE, USERS, MANIFEST) and not entry.name.startswith(f"{ARTIFACTS}/"):
        raise _ForeignError(f"{source} holds {entry.name!r}, which no backup of ours does")
    relative(entry.name)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_artifact_folder(database: Path, before: str, after: str) -> None:
    """Change the folder of artifacts that experiments and runs name, in MLflow's own tables."""
    with closing(sqlite3.connect(database)) as base:
        for table, column in ARTIFACT_COLUMNS:
            for scheme in ("", "file://"):
                old = f"{scheme}{before}/"
                new = f"{after}/" if "://" in after else f"{scheme}{after}/"
                base.execute(f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                             (new, len(old) + 1, len(old), old))  # fmt: skip
        base.commit()


def _run_postgres(*command: str) -> None:
    """Run a program of PostgreSQL's; ValueError with its error message."""
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed: apt-get install postgresql-client")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["failed"]
        message = next((line for line in lines if "error: " in line), lines[-1])  # the SQL statement follows it
        raise ValueError(message if command[0] in message else f"{command[0]}: {message}")
