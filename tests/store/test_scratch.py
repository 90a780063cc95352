"""Scratch folders: what a killed process has left goes, what a living one has stays."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeps.store import scratch
from sweeps.store.scratch import make_scratch, remove_scratch

HOLD = """
from pathlib import Path
from sweeps.store.scratch import make_scratch
folder = make_scratch("held")
Path(folder, "large").write_text("x")
print(folder, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a temporary folder of the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yield a process that has a scratch folder, and the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_folder_of_a_living_process_stays_and_that_of_a_killed_one_goes(folder: Path) -> None:
    with another_process() as (process, theirs):
        ours = Path(make_scratch("ours"))
        assert sorted(folder.iterdir()) == sorted((theirs, ours))
        process.kill()
        process.wait()
        again = Path(make_scratch("ours"))
        assert sorted(folder.iterdir()) == sorted((again, ours))
    for own in (ours, again):
        remove_scratch(str(own))
    assert not list(folder.iterdir())


def test_fork_holds_the_folder_of_its_parent(folder: Path) -> None:
    ours = make_scratch("ours")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        make_scratch("child")
        os.write(writing, b"y" if Path(ours).is_dir() else b"n")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"y"
    assert Path(ours).is_dir()
    remove_scratch(ours)


def test_folders_of_others_and_links_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = folder / "victim"
    victim.mkdir()
    (folder / f"{scratch.NAME}link").symlink_to(victim)
    (folder / f"{scratch.NAME}file").write_text("x")
    remove_scratch(make_scratch("ours"))
    assert victim.is_dir()
    foreign = folder / f"{scratch.NAME}foreign"
    foreign.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(folder).st_uid + 1)
    remove_scratch(make_scratch("ours"))
    assert foreign.is_dir()


def test_folder_that_another_process_took_for_abandoned_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scratch._locked
    made: list[str] = []

    def slow(path: str) -> int | None:
        made.append(path)
        lock = real(path)
        if len(made) == 1:
            os.rmdir(path)  # before it was locked, another process had locked and deleted it
        return lock

    monkeypatch.setattr(scratch, "_locked", slow)
    with scratch.scratch("ours") as ours:
        assert ours.is_dir()
        assert [str(ours)] == made[1:]
    assert not ours.exists()


def test_disk_without_locks_keeps_what_may_be_somebody_s(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = folder / f"{scratch.NAME}old"
    abandoned.mkdir()

    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    with scratch.scratch("ours") as ours:
        assert ours.is_dir()
    assert not ours.exists()
    assert abandoned.is_dir()
