"""What an MLflow server keeps, in one file and back again: its database, its users, its artifacts.

The database comes first and is whole in itself (SQLite's own backup, or pg_dump), so that whatever it tells of is
among the artifacts that follow; the last member lists them all with their checksums, and without it a file is not
whole. Artifacts on S3 stay where they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

from data.storage import open_filesystem

PART = 16 << 20  # bytes of a copy at a time
DUMP, USERS, ARTIFACTS, LIST = "store", "users.db", "artifacts", "list.json"


class _Read:
    """A file that keeps count and checksum of what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        part = self.file.read(size)
        self.digest.update(part)
        return part


class StoreFiles(NamedTuple):
    """Where a store's parts lie here: the SQLite file (None: PostgreSQL, by `uri`), users, a folder of artifacts."""

    uri: str
    sqlite: Path | None
    users: Path
    artifacts: Path | None


def _kept(store: str, artifacts: str, users: Path) -> StoreFiles:
    sqlite = Path(store.removeprefix("sqlite:///")) if store.startswith("sqlite") else None
    uri = "postgresql://" + store.partition("://")[2]  # libpq knows no SQLAlchemy driver
    return StoreFiles(uri, sqlite, users, None if "://" in artifacts else Path(artifacts))


def write(target: str, store: str, artifacts: str, users: Path) -> str:
    """Back up a store, which may be in use, to a file or URI; return a sentence. ValueError where there is none."""
    if "://" in target:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, "kept.tar")
            told = write(str(local), store, artifacts, users)
            system, there = open_filesystem(target)
            with local.open("rb") as file, system.open_output_stream(there) as stream:
                shutil.copyfileobj(file, stream, PART)
        return told.replace(str(local), target)
    kept, path = _kept(store, artifacts, users), Path(target).expanduser().absolute()
    partial = path.with_name(f".{path.name}.partial")
    sums: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".backup-") as folder:
        copies = {DUMP: _dumped(kept, Path(folder, DUMP))}
        if kept.users.exists():
            copies[USERS] = _copied(kept.users, Path(folder, USERS))
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                with tarfile.open(fileobj=file, mode="w|") as tar:
                    for name, copy in copies.items():
                        sums[name] = _add(tar, name, copy)
                    for name in _files(kept.artifacts):
                        sums[f"{ARTIFACTS}/{name}"] = _add(tar, f"{ARTIFACTS}/{name}", Path(str(kept.artifacts), name))
                    notes = {"kind": "sqlite" if kept.sqlite else "postgresql", "artifacts": artifacts,
                             "mlflow": version("mlflow"), "made": time.time(), "sums": sums}  # fmt: skip
                    content = json.dumps(notes, indent=1).encode()
                    entry = tarfile.TarInfo(LIST)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    where = f"{sum(name.startswith(ARTIFACTS) for name in sums)} artifacts" if kept.artifacts else "no artifacts: " \
        f"they stay in {artifacts}"  # fmt: skip
    return f"{path}: the database{', its users' if USERS in sums else ''} and {where}, {path.stat().st_size:,} bytes"


def _files(folder: Path | None) -> list[str]:
    if folder is None or not folder.is_dir():
        return []
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _add(tar: tarfile.TarFile, name: str, path: Path) -> str:
    """Put a file into the archive and return its checksum."""
    with path.open("rb") as file:
        entry, reading = tarfile.TarInfo(name), _Read(file)
        entry.size, entry.mtime = path.stat().st_size, int(path.stat().st_mtime)
        tar.addfile(entry, reading)
        return reading.digest.hexdigest()


def _dumped(kept: StoreFiles, copy: Path) -> Path:
    """Write the store's database to a file of its own."""
    if kept.sqlite:
        if not kept.sqlite.exists():
            raise ValueError(f"there is no MLflow store in {kept.sqlite} to back up")
        return _copied(kept.sqlite, copy)
    _called("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={copy}", kept.uri)
    return copy


def _copied(path: Path, copy: Path) -> Path:
    """Copy a SQLite database as of one moment, whoever writes to it meanwhile."""
    with closing(sqlite3.connect(path, timeout=60)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def _called(*command: str) -> None:
    """Run a program of PostgreSQL's; ValueError with the last thing it said."""
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed: apt-get install postgresql-client")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["failed"]
        said = next((line for line in lines if "error: " in line), lines[-1])  # what follows is the statement
        raise ValueError(said if command[0] in said else f"{command[0]}: {said}")


def restore(source: str, store: str, artifacts: str, users: Path) -> str:
    """Bring a backup back to where nothing is yet, and return a sentence.

    ValueError where something is there, or the file is not whole; then nothing is left. An experiment that was made
    without a server names its folder of artifacts; one that was the store's own is named anew.
    """
    kept = _kept(store, artifacts, users)
    there = [path for path in (kept.sqlite, kept.users, kept.artifacts) if path is not None and path.exists()]
    there = [path for path in there if not path.is_dir() or any(path.iterdir())]
    if there:
        raise ValueError(f"{there[0]} is there already: a backup is restored to where nothing is")
    users.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=users.parent, prefix=".restore-") as folder:
        notes = _unpacked(_fetched(source, Path(folder)), Path(folder))
        if notes["kind"] != ("sqlite" if kept.sqlite else "postgresql"):
            raise ValueError(f"{source} holds a {notes['kind']} database: say by --store where one is to be")
        if kept.sqlite:
            _renamed(Path(folder, DUMP), str(notes["artifacts"]), artifacts)
        else:
            # All of it or nothing: into a database that has tables of these names it puts none.
            _called("pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges",
                    f"--dbname={kept.uri}", f"{folder}/{DUMP}")  # fmt: skip
        for name, target in ((ARTIFACTS, kept.artifacts), (USERS, kept.users), (DUMP, kept.sqlite)):
            if target is not None and Path(folder, name).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_dir():
                    target.rmdir()
                shutil.move(Path(folder, name), target)
    if kept.users.exists():
        kept.users.chmod(0o600)
    return f"{source}: restored as of {time.strftime('%Y-%m-%d %H:%M', time.localtime(notes['made']))} to {store}"


def _fetched(source: str, folder: Path) -> Path:
    """Return where a backup lies on this machine, copied from its URI where it has one."""
    if "://" not in source:
        return Path(source).expanduser()
    system, there = open_filesystem(source)
    with system.open_input_stream(there) as stream, Path(folder, "kept.tar").open("wb") as file:
        shutil.copyfileobj(stream, file, PART)
    return Path(folder, "kept.tar")


def _unpacked(source: Path, folder: Path) -> dict[str, Any]:
    """Unpack a backup and check every file of it; ValueError where it is not whole."""
    try:
        with tarfile.open(source) as tar:
            tar.extractall(folder, filter="data")
        notes = json.loads(Path(folder, LIST).read_bytes())
        sums: dict[str, str] = notes["sums"]
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is not a whole backup: {error}") from None
    except FileNotFoundError:
        why = "its end is missing" if source.exists() else "there is no such file"
        raise ValueError(f"{source} is not a whole backup: {why}") from None
    for name, said in sums.items():
        path = Path(folder, name)
        if not path.is_file() or _digest(path) != said:
            raise ValueError(f"{source} is not a whole backup: {name} is damaged")
    found: dict[str, Any] = notes
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _renamed(database: Path, before: str, after: str) -> None:
    """Let experiments and runs that name the old folder of artifacts name the new one."""
    if before == after:
        return
    with closing(sqlite3.connect(database)) as base:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            for prefix in ("", "file://"):
                old = f"{prefix}{before}/"
                base.execute(f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                             (f"{prefix}{after}/", len(old) + 1, len(old), old))  # fmt: skip
        base.commit()
