"""A backup of somebody else's making writes nowhere but where it is restored to, and takes in no other file."""

import hashlib
import io
import json
import os
import signal
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeps.ops import mlflow_backup
from sweeps.ops.mlflow_backup import ARTIFACTS, DATABASE, MANIFEST, USERS


def member(
    name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, to: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.linkname = to
    entry.size = len(content)
    return entry, content


def sparse() -> tuple[tarfile.TarInfo, bytes]:
    """Return a file that says that it has a gigabyte, of which none is in the archive."""
    entry = tarfile.TarInfo(f"{ARTIFACTS}/hole")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 30),
                         "GNU.sparse.name": f"{ARTIFACTS}/hole"}  # fmt: skip
    content = b"0\n".ljust(512, b"\0")
    entry.size = len(content)
    return entry, content


def small_store(path: Path) -> bytes:
    """Return a database with the two tables that a restore changes."""
    with sqlite3.connect(path) as database:
        database.execute("create table if not exists experiments (artifact_location)")
        database.execute("create table if not exists runs (artifact_uri)")
    return path.read_bytes()


def written(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:", base: bytes | None = None) -> Path:
    """Write a backup of a small store with further members, which its list names too."""
    content = small_store(path.parent / "base.db") if base is None else base
    entries = [member(DATABASE, content), *members]
    sums = {entry.name: hashlib.sha256(content).hexdigest() for entry, content in entries}
    manifest = {"kind": "sqlite", "artifacts": "/a", "mlflow": "3", "made": 0.0, "sums": sums}
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for entry, content in [*entries, member(MANIFEST, json.dumps(manifest).encode())]:
            tar.addfile(entry, io.BytesIO(content))
    return path


def restored(source: Path, target: Path) -> str:
    return mlflow_backup.restore(
        str(source), f"sqlite:///{target}/mlflow.db", f"{target}/mlartifacts", target / "mlflow-users.db"
    )


def test_whole_backup_is_restored(tmp_path: Path) -> None:
    source = written(tmp_path / "a.tar", member(f"{ARTIFACTS}/0/model one.txt", b"weights"))
    restored(source, tmp_path / "target")
    assert (tmp_path / "target/mlartifacts/0/model one.txt").read_bytes() == b"weights"


@pytest.mark.parametrize("before", ["mlartifacts", "mlflow-users.db", "mlflow.db"])
def test_restore_that_was_killed_is_ended_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    source = written(tmp_path / "a.tar", member(USERS, b"names"), member(f"{ARTIFACTS}/0/a.txt", b"a"))
    restored(source, tmp_path / "calm")
    replace = os.replace

    def dying(path: Path, to: Path) -> None:
        if Path(to).name == before:
            raise KeyboardInterrupt
        replace(path, to)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        restored(source, tmp_path / "target")
    monkeypatch.undo()
    restored(source, tmp_path / "target")
    for name in ("mlartifacts/0/a.txt", "mlflow-users.db", "mlflow.db"):
        assert (tmp_path / "target" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    assert (tmp_path / "target/mlflow-users.db").stat().st_mode & 0o777 == 0o600


def backed_up(folder: Path) -> str:
    return mlflow_backup.write(
        str(folder / "a.tar"), f"sqlite:///{folder}/mlflow.db", str(folder / "mlartifacts"), folder / "users.db"
    )


def killed(command: Callable[[], object], call: str) -> None:
    """Run a command in a fork that is killed at a call of `os`, before anything is removed."""
    child = os.fork()
    if child == 0:
        setattr(os, call, lambda *_: os._exit(9))
        command()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def hidden(folder: Path) -> list[str]:
    """Return the names of the folders of unfinished work."""
    return sorted(path.name for path in folder.glob(".*"))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_next_backup_removes_what_a_killed_one_has_left(tmp_path: Path, call: str) -> None:
    small_store(tmp_path / "mlflow.db")
    killed(lambda: backed_up(tmp_path), call)
    assert len(hidden(tmp_path)) == 1
    backed_up(tmp_path)
    assert hidden(tmp_path) == []
    assert (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("done", [False, True])
def test_next_restore_removes_what_a_killed_one_has_left(tmp_path: Path, done: bool) -> None:
    source = written(tmp_path / "a.tar", member(USERS, b"names"))
    target = tmp_path / "target"
    killed(lambda: restored(source, target), "replace")
    left = [name for name in hidden(target) if name.startswith(mlflow_backup.RESTORING)]
    assert len(left) == 1
    if done:  # killed after the last part was in its place
        (target / "mlflow.db").touch()
        with pytest.raises(ValueError, match="is there already"):
            restored(source, target)
    else:
        restored(source, target)
        assert (target / "mlflow-users.db").read_bytes() == b"names"
    assert not (target / left[0]).exists()


def test_folder_of_a_living_backup_or_of_somebody_else_stays(tmp_path: Path) -> None:
    small_store(tmp_path / "mlflow.db")
    others = tmp_path / f"{mlflow_backup.BACKING_UP}20261128"
    others.mkdir()
    (others / "letter.txt").write_bytes(b"mine")
    empty = tmp_path / f"{mlflow_backup.BACKING_UP}abcdefgh"
    empty.mkdir()
    with mlflow_backup._unfinished(tmp_path, mlflow_backup.BACKING_UP) as living:
        (living / DATABASE).write_bytes(b"half")
        backed_up(tmp_path)
        assert (living / DATABASE).read_bytes() == b"half"
    assert hidden(tmp_path) == [others.name, empty.name]
    assert (others / "letter.txt").read_bytes() == b"mine"


class Bucket:
    """Bucket as pyarrow writes to it: what the block has sent is the object. Ctrl-C is typed at its start."""

    def __init__(self) -> None:
        self.sent = io.BytesIO()
        self.objects: dict[str, bytes] = {}

    @contextmanager
    def open_output_stream(self, path: str) -> "Iterator[Bucket]":
        try:
            yield self
        finally:
            self.objects[path] = self.sent.getvalue()

    def write(self, part: bytes) -> int:
        if not self.sent.tell():
            signal.raise_signal(signal.SIGINT)
        return self.sent.write(part)


def test_interrupt_leaves_no_part_of_a_backup_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_store(tmp_path / "mlflow.db")
    bucket = Bucket()
    monkeypatch.setattr(mlflow_backup, "open_filesystem", lambda _: (bucket, "b/a.tar"))
    monkeypatch.setattr(mlflow_backup, "CHUNK", 1000)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            mlflow_backup.write(
                "s3://b/a.tar", f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "none"), tmp_path / "users.db"
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert "once more to end at once" in capsys.readouterr().err
    (tmp_path / "sent.tar").write_bytes(bucket.objects["b/a.tar"])
    restored(tmp_path / "sent.tar", tmp_path / "target")
    assert (tmp_path / "target/mlflow.db").exists()


def test_backup_at_the_uri_of_a_file_takes_its_place_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_store(tmp_path / "mlflow.db")
    monkeypatch.setattr(mlflow_backup, "open_filesystem", lambda _: pytest.fail("the file is written in its place"))
    mlflow_backup.write(
        f"file://{tmp_path}/a%20b.tar", f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "none"), tmp_path / "users.db"
    )
    restored(tmp_path / "a b.tar", tmp_path / "target")
    assert hidden(tmp_path) == []


def test_artifacts_at_a_uri_stay_where_they_are(tmp_path: Path) -> None:
    source = written(tmp_path / "a.tar", member(f"{ARTIFACTS}/0/a.txt", b"of the backup"))
    later = tmp_path / "shared/mlflow/1/b.txt"
    later.parent.mkdir(parents=True)
    later.write_bytes(b"of a run since")
    where = later.parents[1].as_uri()
    sentence = mlflow_backup.restore(
        str(source), f"sqlite:///{tmp_path}/head/mlflow.db", where, tmp_path / "head/users.db"
    )
    assert sentence.endswith(f"mlflow.db without its artifacts, which have to be in {where}")
    assert [path for path in (tmp_path / "shared").rglob("*") if path.is_file()] == [later]
    assert (tmp_path / "head/mlflow.db").exists()


@pytest.mark.parametrize("after", ["file:///b", "s3://b/mlflow"])
def test_artifacts_of_a_folder_are_named_by_the_uri_that_they_are_at(tmp_path: Path, after: str) -> None:
    small_store(tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("insert into runs values ('/a/1'), ('file:///a/2')")
    mlflow_backup._move_artifact_folder(tmp_path / "mlflow.db", "/a", after)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select * from runs").fetchall() == [(f"{after}/1",), (f"{after}/2",)]


UNREADABLE = {
    "no database": b"no database at all, but long enough to be one" * 50,
    "damaged": b"SQLite format 3\0" + b"\xff" * 4080,
    "other tables": b"",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_error_of_sqlite_is_a_sentence_at_restore(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path / "a.tar", base=UNREADABLE[kind])
    with pytest.raises(OSError, match="SQLite cannot read or write the database: "):
        restored(source, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


@pytest.mark.parametrize("kind", ["no database", "damaged"])
def test_error_of_sqlite_is_a_sentence_at_backup(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mlflow.db").write_bytes(UNREADABLE[kind])
    with pytest.raises(OSError, match="SQLite cannot read or write the database: "):
        mlflow_backup.write(
            str(tmp_path / "a.tar"), f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "none"), tmp_path / "users.db"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


OTHERS = {
    "other content": ("mlartifacts/0/a.txt", b"b"),
    "a file more": ("mlartifacts/0/b.txt", b"a"),
    "other users": ("mlflow-users.db", b"others"),
    "a database": ("mlflow.db", b""),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_restore_touches_nothing_where_something_else_is(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path / "a.tar", member(USERS, b"names"), member(f"{ARTIFACTS}/0/a.txt", b"a"))
    name, content = OTHERS[kind]
    path = tmp_path / "target" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is there already: a backup is restored to where nothing is"):
        restored(source, tmp_path / "target")
    assert [each for each in (tmp_path / "target").rglob("*") if each.is_file()] == [path]
    assert path.read_bytes() == content


HOSTILE: dict[str, tuple[Callable[[], tuple[tarfile.TarInfo, bytes]], str]] = {
    "absolute": (lambda: member("/absolute/evil"), "which no backup of ours does"),
    "upwards": (lambda: member("../evil"), "which no backup of ours does"),
    "upwards below artifacts": (lambda: member(f"{ARTIFACTS}/../../evil"), "no name of a file below its folder"),
    "another name": (lambda: member("mlflow-users.key"), "which no backup of ours does"),
    "link": (lambda: member(f"{ARTIFACTS}/x", b"", tarfile.SYMTYPE, "/etc/passwd"), "which is no plain file"),
    "hard link": (lambda: member(f"{ARTIFACTS}/x", b"", tarfile.LNKTYPE, DATABASE), "which is no plain file"),
    "device": (lambda: member(f"{ARTIFACTS}/x", b"", tarfile.CHRTYPE), "which is no plain file"),
    "hole": (sparse, "which is no plain file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_backup_with_what_none_of_ours_holds_is_refused(tmp_path: Path, kind: str) -> None:
    make, why = HOSTILE[kind]
    source = written(tmp_path / "a.tar", make())
    with pytest.raises(ValueError, match=why):
        restored(source, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())
    assert not (tmp_path / "evil").exists()


def test_compressed_backup_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    source = written(tmp_path / "a.tar", member(f"{ARTIFACTS}/zeros", b"\0" * (1 << 20)), mode="w:gz")
    with pytest.raises(ValueError, match="is not a whole backup"):
        restored(source, tmp_path / "target")


def test_member_that_the_list_does_not_name_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "a.tar")
    with tarfile.open(source, "a") as tar:
        tar.addfile(member(f"{ARTIFACTS}/more")[0], io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="which its list does not name"):
        restored(source, tmp_path / "target")


def test_backup_takes_in_no_file_that_a_link_among_the_artifacts_leads_to(tmp_path: Path) -> None:
    artifacts = tmp_path / "mlartifacts"
    artifacts.mkdir()
    (artifacts / "model.txt").symlink_to("/etc/passwd")
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(ValueError, match=r"model\.txt is a link, which no artifact is"):
        mlflow_backup.write(
            str(tmp_path / "b.tar"), f"sqlite:///{tmp_path}/mlflow.db", str(artifacts), tmp_path / "users.db"
        )
    assert not (tmp_path / "b.tar").exists()
