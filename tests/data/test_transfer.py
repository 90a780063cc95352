"""Prepared files travel whole or not at all, once a machine, whoever is killed on the way."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_data import transfer
from crelu_data.__main__ import main
from crelu_data.datasets import beton_path, read_sidecar
from crelu_data.storage import exclusive_lock, open_filesystem
from crelu_data.transfer import TransferError, check_source, pull, push
from crelu_data.write import prepare
from sweeps.execution.failures import FAULTS, PASSING
from tests.support.pictures import picture_folder

NAME = "synthetic:train=60,test=20"
OTHER = "synthetic:train=50,test=10,seed=1"
SPLITS = ("train", "test")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for name in (NAME, OTHER):
        prepare(name, folder, writer="native")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """Return a folder on shared storage that holds both sets."""
    return Path(shutil.copytree(prepared, tmp_path / "shared"))


def files(where: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in where.iterdir() if path.suffix in (".beton", ".json")}


def left(where: Path) -> list[str]:
    """Return what lies in a data folder besides whole files and locks."""
    return sorted(name for name in os.listdir(where) if not name.endswith((".beton", ".json", ".lock")))


def test_up_to_s3_and_down_again_is_the_same_once(prepared: Path, bucket: str, tmp_path: Path) -> None:
    assert set(push(prepared, bucket).values()) == {True}
    assert set(push(prepared, bucket).values()) == {False}
    assert set(pull(bucket, tmp_path / "node").values()) == {True}
    assert files(tmp_path / "node") == files(prepared)
    assert left(tmp_path / "node") == []
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "node").iterdir()}
    assert set(pull(bucket, tmp_path / "node").values()) == {False}
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "node").iterdir()}


def test_commands_say_what_came_and_what_was_there(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared"
    node = ["--data-dir", str(tmp_path / "node")]
    assert main(["push", str(shared), NAME, "--data-dir", str(prepared)]) == 0
    assert main(["pull", f"file://{shared}", *node]) == 0
    assert capsys.readouterr().out.count("pulled, its fingerprint is correct") == 2
    assert main(["pull", str(shared), *node]) == 0
    assert capsys.readouterr().out.count("already there") == 2
    assert main(["verify", NAME, *node]) == 0


def test_only_the_named_set_comes(folder: Path, tmp_path: Path) -> None:
    pulled = pull(str(folder), tmp_path / "node", [NAME])
    assert set(pulled) == {beton_path(NAME, split, tmp_path / "node") for split in SPLITS}
    with pytest.raises(ValueError, match="no prepared files of cifar10; found synthetic"):
        pull(str(folder), tmp_path / "node", ["cifar10"])
    with pytest.raises(ValueError, match="found none at all"):
        pull(str(tmp_path / "nothing"), tmp_path / "node")


def test_sidecars_alone_tell_a_driver_what_its_workers_will_find(folder: Path, tmp_path: Path) -> None:
    pull(str(folder), tmp_path / "node", pictures=False)
    assert {path.suffix for path in (tmp_path / "node").iterdir() if path.suffix != ".lock"} == {".json"}
    assert set(pull(str(folder), tmp_path / "node").values()) == {True}
    assert files(tmp_path / "node") == files(folder)


@pytest.mark.parametrize("where", [3_000, 2_097_200, -1])
def test_one_wrong_bit_is_refused_and_nothing_is_kept(folder: Path, tmp_path: Path, where: int) -> None:
    path = beton_path(NAME, "train", folder)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"does not match its sidecar \(.*\); the copy was deleted"):
        pull(str(folder), tmp_path / "node", [NAME])
    assert not beton_path(NAME, "train", tmp_path / "node").exists()
    assert not [name for name in left(tmp_path / "node") if "train=60" in name or "train60-test20-train" in name]


def test_a_file_cut_short_is_refused_before_it_is_copied(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = beton_path(NAME, "train", folder)
    os.truncate(path, path.stat().st_size - 1)
    assert main(["pull", str(folder), "--data-dir", str(tmp_path / "node")]) == 2
    assert "is incomplete; push it again" in capsys.readouterr().err
    assert not (tmp_path / "node").exists()


def test_other_pictures_are_replaced_only_where_someone_says_so(folder: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    pull(str(folder), node)
    for suffix in (".beton", ".json"):
        target, source = (beton_path(name, "train", folder).with_suffix(suffix) for name in (NAME, OTHER))
        shutil.copy(source, target)
    with pytest.raises(ValueError, match="holds other pictures"):
        pull(str(folder), node)
    with pytest.raises(ValueError, match="holds other pictures"):
        push(node, str(folder))
    pull(str(folder), node, fresh=True)
    assert files(node) == files(folder)


def test_a_damaged_file_is_not_pushed_and_a_damaged_one_here_is_pulled_anew(folder: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    pull(str(folder), node)
    path = beton_path(NAME, "train", node)
    content = path.read_bytes()
    path.write_bytes(content[:2_097_200] + b"\x01\x02\x03" + content[2_097_203:])
    with pytest.raises(ValueError, match="is damaged"):
        push(node, str(tmp_path / "up"))
    assert not list((tmp_path / "up").glob(path.stem + "*"))
    os.truncate(path, 1000)
    assert pull(str(folder), node)[path]
    assert path.read_bytes() == content


def test_a_damaged_file_costs_the_storage_nothing_also_with_fresh(folder: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    pull(str(folder), node)
    for split in SPLITS:  # other pictures under the same name; one file is damaged
        for suffix in (".beton", ".json"):
            target, source = (beton_path(name, split, node).with_suffix(suffix) for name in (NAME, OTHER))
            shutil.copy(source, target)
    path = beton_path(NAME, "train", node)
    content = path.read_bytes()
    path.write_bytes(content[:2_097_200] + b"\x01\x02\x03" + content[2_097_203:])
    before = files(folder)
    with pytest.raises(ValueError, match="is damaged"):
        push(node, str(folder), fresh=True)
    assert files(folder) == before


@pytest.mark.parametrize("suffixes", [(".beton", ".json"), (".beton",), (".json",)])
def test_a_set_that_lacks_a_split_is_neither_pulled_nor_pushed(
    suffixes: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    lacking = beton_path(NAME, "test", folder)
    for suffix in suffixes:
        lacking.with_suffix(suffix).unlink()
    for names in ((), (NAME,), (OTHER, NAME)):
        with pytest.raises(TransferError, match=f"lacks {lacking.name}: a set there is incomplete; push it again"):
            pull(str(folder), tmp_path / "node", names)
    with pytest.raises(TransferError, match=f"lacks {lacking.name}"):
        check_source(str(folder), [NAME], tmp_path)
    for names in ((), (NAME,)):
        with pytest.raises(ValueError, match=f"{lacking.name}: \\S+ -m|{lacking.stem}.json is missing"):
            push(folder, str(tmp_path / "up"), names)
    assert not (tmp_path / "node").exists()
    assert not (tmp_path / "up").exists()
    assert set(pull(str(folder), tmp_path / "node", [OTHER]).values()) == {True}


def test_each_named_set_has_to_be_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prepared files of cifar10; found synthetic"):
        pull(str(folder), tmp_path / "node", [NAME, "cifar10"])
    with pytest.raises(ValueError, match=r"no prepared files of cifar10: .*python.* -m crelu_data"):
        push(folder, str(tmp_path / "up"), [NAME, "cifar10"])
    for split in SPLITS:  # as while a set is replaced: the sidecars come last
        beton_path(NAME, split, folder).with_suffix(".json").unlink()
    with pytest.raises(TransferError, match=r"has no sidecar of synthetic.* yet"):
        pull(str(folder), tmp_path / "node", [NAME])


def test_splits_that_a_set_no_longer_has_go_with_fresh(folder: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    pull(str(folder), node)
    expected = files(folder)
    for where, copy in (
        (node, lambda: pull(str(folder), node, fresh=True)),
        (folder, lambda: push(node, str(folder), fresh=True)),
    ):
        for suffix in (".beton", ".json"):
            shutil.copy(*(beton_path(NAME, split, where).with_suffix(suffix) for split in ("test", "val")))
        copy()
        assert files(where) == expected


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Return a folder with pictures for training, validation and test."""
    for split in ("train", "val", "test"):
        picture_folder(tmp_path / "three", split, {"a": 2, "b": 2}, (16, 16))
    return tmp_path / "three"


def test_set_that_has_lost_a_split_is_whole_on_the_storage_and_elsewhere(three: Path, tmp_path: Path) -> None:
    """The pictures of the other splits are the same, so their sidecars alone say that the set has one split less."""
    name = f"folder:{three}"
    made, shared, node, head = (tmp_path / place for place in ("made", "shared", "node", "head"))
    prepare(name, made, writer="native", workers=1)
    push(made, str(shared))
    pull(str(shared), node)
    pull(str(shared), head, pictures=False)
    shutil.rmtree(three / "val")
    prepare(name, made, writer="native", workers=1, fresh=True)
    before = files(shared)
    with pytest.raises(ValueError, match=r"holds other splits \(.*val.*\) than .* \(.*\); --fresh replaces it"):
        push(made, str(shared))
    assert files(shared) == before
    assert set(push(made, str(shared), fresh=True).values()) == {True}
    assert files(shared) == files(made)
    for place, pictures in ((node, True), (head, False)):
        with pytest.raises(ValueError, match="holds other splits"):
            pull(str(shared), place, pictures=pictures)
    assert set(pull(str(shared), node, fresh=True).values()) == {True}
    assert files(node) == files(shared)
    assert set(push(made, str(shared), fresh=True).values()) == {False}
    assert set(pull(str(shared), node, fresh=True).values()) == {False}


def test_class_that_is_renamed_costs_a_sidecar_and_no_pictures(three: Path, tmp_path: Path) -> None:
    name = f"folder:{three}"
    made, shared, node, head = (tmp_path / place for place in ("made", "shared", "node", "head"))
    prepare(name, made, writer="native", workers=1)
    push(made, str(shared))
    pull(str(shared), node)
    pull(str(shared), head, pictures=False)
    for split in ("train", "val", "test"):
        (three / split / "a").rename(three / split / "another")
    prepare(name, made, writer="native", workers=1, fresh=True)
    written = {path: path.stat().st_ino for where in (shared, node) for path in where.glob("*.beton")}
    assert set(push(made, str(shared)).values()) == {True}
    own = files(node)
    pull(str(shared), node, pictures=False)
    assert files(node) == own
    assert set(pull(str(shared), node).values()) == {True}
    assert files(node) == files(shared) == files(made)
    assert written == {path: path.stat().st_ino for path in written}
    pull(str(shared), head, pictures=False)
    assert read_sidecar(beton_path(name, "val", head).with_suffix(".json")).class_names == ("another", "b")


def test_rotted_pictures_are_pulled_again_by_fresh(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = tmp_path / "node"
    pull(str(folder), node)
    path = beton_path(NAME, "train", node)
    content = path.read_bytes()
    path.write_bytes(content[:2_097_200] + bytes([content[2_097_200] ^ 1]) + content[2_097_201:])
    for pulled, intact in ((1, 3), (0, 4)):
        assert main(["pull", str(folder), "--fresh", "--data-dir", str(node)]) == 0
        said = capsys.readouterr().out
        assert (said.count("pulled, its fingerprint is correct"), said.count("already there")) == (pulled, intact)
        assert path.read_bytes() == content


HEAD = "{fingerprint} {bytes} 65536\n"


@pytest.mark.parametrize(
    ("journal", "done"),
    [
        ("", set()),
        ("\0" * 100, set()),
        ("\udcff\n", set()),
        ("another head" * 10 + "\n0\n1\n", set()),
        (HEAD[:-1], set()),
        (HEAD, set()),
        (HEAD + "0\n2\n1", {0, 2}),
        (HEAD + "\0\0\0\n\udcff\n-1\n 1\n999999\n0\n\n", {0}),
    ],
)
def test_a_damaged_journal_is_none_and_its_wrong_lines_are_passed_over(
    journal: str, done: set[int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PART", 1 << 16)
    path = beton_path(NAME, "train", folder)
    sidecar = read_sidecar(path.with_suffix(".json"))
    head = HEAD.format(fingerprint=sidecar.fingerprint, bytes=sidecar.file_bytes)
    node = tmp_path / "node"
    node.mkdir()
    partial, notes = (node / f".{path.name}.{suffix}" for suffix in ("pulling", "parts"))
    shutil.copy(path, partial)
    notes.write_bytes(journal.replace(HEAD[:-1], head[:-1]).encode("utf-8", "surrogateescape"))
    assert transfer._finished_parts(partial, notes, head, sidecar.file_bytes) == done
    assert notes.read_text() == head + "".join(f"{number}\n" for number in sorted(done))
    pull(str(folder), node, [NAME])
    assert left(node) == []


def test_a_wait_for_a_lock_ends_with_what_the_waiting_one_raises(tmp_path: Path) -> None:
    def gone() -> None:
        raise OSError("the disk has gone")

    with (
        exclusive_lock(tmp_path / "lock"),
        pytest.raises(OSError, match="has gone"),
        exclusive_lock(tmp_path / "lock", gone),
    ):
        pytest.fail("the lock of another one was taken")


def test_lack_of_room_is_told_before_anything_is_copied(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda where: usage)
    sizes = sum(path.stat().st_size for path in folder.glob("*.beton"))
    lack = f"0.005 GB free and .* needs {sizes / 1e9:.3f} GB: {(sizes - 5e6) / 1e9:.3f} GB are lacking"
    with pytest.raises(OSError, match=lack) as refused:
        pull(str(folder), tmp_path / "node")
    assert refused.value.errno == errno.ENOSPC  # another machine may have room
    assert main(["pull", str(folder), "--data-dir", str(tmp_path / "node")]) == 2
    assert f"error: {tmp_path / 'node'}: 0.005 GB free" in capsys.readouterr().err
    assert left(tmp_path / "node") == []
    assert not list((tmp_path / "node").glob("*.beton"))


def test_trouble_of_a_machine_or_a_source_is_no_fault_of_a_trial() -> None:
    assert issubclass(TransferError, PASSING)
    assert not issubclass(TransferError, FAULTS)


SLOW = """
import itertools, os, sys, time
from pathlib import Path
from crelu_data import transfer
from crelu_data.__main__ import main
transfer.PART = 1 << 16  # many small parts
QUICK, CROWD, HERE = int(sys.argv.pop(1)), int(sys.argv.pop(1)), Path(sys.argv.pop(1))
numbers = itertools.count()
def wait_until(ready):
    for _ in range(1200):
        if ready(): return
        time.sleep(0.1)
    os._exit(9)
def ask(path, *rest):
    (HERE / f"asked.{os.getpid()}").touch()
    return lock(path, *rest)
read = transfer.beton.read_index
def open_filesystem(where):
    system, base = real(where)
    class Slow:
        def __getattr__(self, name): return getattr(system, name)
        def open_input_file(self, path):
            file = system.open_input_file(path)
            class File:
                def __enter__(self): return self
                def __exit__(self, *rest): file.close()
                def read_at(self, size, start):
                    print(f"part {start}\\n", end="", flush=True)  # in one piece, whatever other threads print
                    wait_until(lambda: len([*HERE.glob("asked.*")]) >= CROWD)
                    if next(numbers) >= QUICK: wait_until(lambda: False)
                    return file.read_at(size, start)
            return File()
    return Slow(), base
lock, transfer.exclusive_lock = transfer.exclusive_lock, ask
real, transfer.open_filesystem = transfer.open_filesystem, open_filesystem
sys.exit(main(sys.argv[1:]))
"""


def pulling(folder: Path, node: Path, *, quick: int = 1_000_000, crowd: int = 1) -> subprocess.Popen[str]:
    """Start a pull whose parts after so many never come, and whose first waits for the pulls of a crowd."""
    steps = [str(quick), str(crowd), str(node.parent)]
    command = [sys.executable, "-c", SLOW, *steps, "pull", str(folder), NAME, "--data-dir", str(node)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_pull_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    with pulling(folder, node, quick=60) as first:
        assert first.stdout is not None
        asked = [first.stdout.readline() for _ in range(60)]
        first.send_signal(signal.SIGKILL)
        asked += first.stdout.readlines()
    assert not list(node.glob("*.beton"))
    with pulling(folder, node) as second:
        said, error = second.communicate(timeout=300)
    assert second.returncode == 0, error
    assert files(node) == {name: content for name, content in files(folder).items() if "train60" in name}
    again = said.count("part ")
    every = sum(-(-read_sidecar(path).file_bytes // (1 << 16)) for path in node.glob("*.json"))
    assert every - len(asked) <= again < every - 30
    assert left(node) == []


def test_processes_that_start_at_once_pull_once(folder: Path, tmp_path: Path) -> None:
    crowd = [pulling(folder, tmp_path / "node", crowd=3) for _ in range(3)]
    said = [process.communicate(timeout=300) for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0, 0], said
    pulled = [out.count("part ") for out, _ in said]
    assert sorted(map(bool, pulled)) == [False, False, True]
    assert files(tmp_path / "node") == {name: content for name, content in files(folder).items() if "train60" in name}


def test_whoever_waits_for_another_can_give_up(folder: Path, tmp_path: Path) -> None:
    def weary() -> None:
        raise InterruptedError("asked to leave")

    with pulling(folder, tmp_path / "node", quick=0) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(InterruptedError, match="asked to leave"):
            pull(str(folder), tmp_path / "node", [NAME], alive=weary)
        assert first.poll() is None, "it has waited for the other's end"
        first.kill()


def test_a_place_that_is_none_is_a_sentence() -> None:
    for where in ("gopher://x/y", "s3:///"):
        with pytest.raises(ValueError, match="a folder, or s3://BUCKET/PREFIX"):
            open_filesystem(where)


def test_names_that_no_prepared_file_has_stay_on_the_storage(folder: Path, tmp_path: Path) -> None:
    first = sorted(folder.glob("*.beton"))[0]
    for name in (".bashrc", "a b", "x;y"):
        for suffix in (".beton", ".json"):
            shutil.copy(first.with_suffix(suffix), folder / f"{name}{suffix}")
    copied = pull(str(folder), tmp_path / "node")
    assert {path.stem for path in copied} == {path.stem for path in folder.glob("synthetic*.beton")}
    (folder / f"{first.stem}.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(ValueError, match="has more than 16 MiB, which no sidecar has"):
        pull(str(folder), tmp_path / "other")
