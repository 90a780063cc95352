"""The ledger: whole files or none, results as the commit point, tries counted, nothing lost."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crelu_models.command_line import sentence
from sweeps.store import checkpoint
from sweeps.store.checkpoint import Checkpoint
from sweeps.store.checkpoint_header import progress
from sweeps.store.lease import Lease, LeaseHeldError, driver
from sweeps.store.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger"))


def test_ledger_of_an_output_is_one_wherever_a_command_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Ledger.in_output("outputs/../out") == Ledger(f"{tmp_path}/out/ledger")
    assert Ledger.in_output("~/out") == Ledger(f"{tmp_path}/home/out/ledger")
    assert Ledger.in_output("s3://bucket/~a/../out/") == Ledger("s3://bucket/~a/../out/ledger")


def test_result_is_read_as_written(ledger: Ledger) -> None:
    assert ledger.result("k") is None
    ledger.commit("k", {"key": "k", "metrics": {"a": 1.5}})
    assert ledger.result("k") == {"key": "k", "metrics": {"a": 1.5}}
    assert ledger.results() == {"k": {"key": "k", "metrics": {"a": 1.5}}}
    assert ledger.results(["other"]) == {}


def test_torn_result_is_no_result(ledger: Ledger) -> None:
    ledger.commit("k", {"key": "k"})
    path = Path(ledger.path("results/k.json"))
    path.write_bytes(path.read_bytes()[:-4])
    assert ledger.result("k") is None
    assert ledger.results() == {}


def test_result_with_one_changed_digit_is_no_result(ledger: Ledger) -> None:
    ledger.commit("k", {"key": "k", "metrics": {"final/test_top1_err": 9.17}})
    path = Path(ledger.path("results/k.json"))
    path.write_text(path.read_text().replace("9.17", "9.07"))
    assert json.loads(path.read_text())["metrics"] == {"final/test_top1_err": 9.07}
    assert ledger.result("k") is None


def test_commit_takes_the_checkpoints_away(ledger: Ledger) -> None:
    ledger.write("checkpoints/k/00001-00000000.safetensors", b"x")
    ledger.commit("k", {"key": "k"})
    assert ledger.names("checkpoints/k") == []


def test_failing_write_leaves_the_old_file_and_no_half_one(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.write("a/b.json", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        ledger.write("a/b.json", b"new")
    advice = "No space left on device; make room there, then the same command goes on"
    assert sentence(caught.value) == f"{ledger.root}: {advice}"
    assert ledger.read("a/b.json") == b"old"
    assert os.listdir(ledger.path("a")) == ["b.json"]


def test_file_and_then_its_name_are_on_the_disk_before_a_write_returns(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note(number: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new)))
    ledger.write("a/b.json", b"new")
    # The ledger's folder and the one in it are new: their names are made to last in the folders above them.
    assert calls == ["folder", "folder", "file", "replace", "folder"]
    calls.clear()
    ledger.write("a/b.json", b"newer")
    assert calls == ["file", "replace", "folder"]


def test_results_are_those_of_the_keys_asked_for(ledger: Ledger) -> None:
    for key in "abc":
        ledger.commit(key, {"key": key})
    assert ledger.results(["c", "a", "missing"]) == {"a": {"key": "a"}, "c": {"key": "c"}}
    assert list(ledger.results()) == ["a", "b", "c"]


def test_half_written_files_are_not_named(ledger: Ledger) -> None:
    ledger.write("a/b.json", b"")
    Path(ledger.path("a/.c.json.1.2.part")).write_bytes(b"")
    assert ledger.names("a") == ["b.json"]


def test_tries_are_kept_in_order(ledger: Ledger) -> None:
    for error in ("first", "second"):
        ledger.add_attempt("k", {"error": error})
    assert [attempt["error"] for attempt in ledger.attempts("k")] == ["first", "second"]
    assert list(ledger.failed()) == ["k"]
    ledger.forget("k")
    assert ledger.failed() == {}


def state(value: float) -> Checkpoint:
    tensors = {"model/w": torch.full((3, 2), value), "sums": torch.zeros(4, dtype=torch.float64)}
    return Checkpoint(tensors, {"epoch": int(value), "history": [{"epoch": value}]})


def test_checkpoint_is_read_as_written_and_two_are_kept(ledger: Ledger) -> None:
    for epoch in (1, 2, 3):
        checkpoint.save(ledger, "k", epoch, 0, state(epoch))
    saved, damaged = checkpoint.load(ledger, "k")
    assert damaged == []
    assert saved is not None
    assert torch.equal(saved.tensors["model/w"], torch.full((3, 2), 3.0))
    assert saved.state["history"] == [{"epoch": 3.0}]
    assert len(ledger.names("checkpoints/k")) == 2
    assert progress(ledger, "k") == saved.state


@pytest.mark.parametrize("where", [0, 9, 60, -1])
def test_one_wrong_byte_falls_back_to_the_checkpoint_before(ledger: Ledger, where: int) -> None:
    for epoch in (1, 2):
        checkpoint.save(ledger, "k", epoch, 0, state(epoch))
    newest = ledger.names("checkpoints/k")[-1]
    path = Path(ledger.path(f"checkpoints/k/{newest}"))
    content = bytearray(path.read_bytes())
    content[where] ^= 0x11
    path.write_bytes(content)
    saved, damaged = checkpoint.load(ledger, "k")
    assert damaged == [newest]
    assert saved is not None
    assert saved.state["epoch"] == 1


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_checkpoint_is_passed_over(ledger: Ledger, content: bytes) -> None:
    ledger.write("checkpoints/k/00009-00000000.safetensors", content)
    assert checkpoint.load(ledger, "k") == (None, ["00009-00000000.safetensors"])
    assert progress(ledger, "k") is None


def test_digest_changes_with_every_part() -> None:
    base = {"a": torch.zeros(2, 3)}
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).double()}, {"a": -base["a"]}]
    digests = {checkpoint.digest(value) for value in [base, *others]}
    assert len(digests) == 5  # -0.0 is another bit pattern than 0.0
    assert checkpoint.digest(base, "x") not in digests


def test_second_driver_is_told_who_the_first_is(ledger: Ledger) -> None:
    with Lease(ledger, "s"):
        assert (driver(ledger, "s") or {}).get("pid") == os.getpid()
        with pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on"), Lease(ledger, "s"):
            pass
        with Lease(ledger, "another"):
            pass
    assert driver(ledger, "s") is None
    with Lease(ledger, "s"):
        pass


def test_lease_of_a_killed_driver_is_taken_over(ledger: Ledger) -> None:
    code = (
        "import sys, time\nfrom sweeps.store.lease import Lease\nfrom sweeps.store.ledger import Ledger\n"
        "with Lease(Ledger(sys.argv[1]), 's'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, ledger.root], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LeaseHeldError), Lease(ledger, "s"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with Lease(ledger, "s"):
        assert json.loads((ledger.read("leases/s.json") or b"").decode())["pid"] == os.getpid()


WRITE_MANY = """
import json, sys
from sweeps.store.ledger import Ledger
for _ in range(50):
    Ledger(sys.argv[1]).write("results/k.json", json.dumps({"key": sys.argv[2] * 2000}).encode())
"""


def test_reader_never_sees_half_a_file(ledger: Ledger) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITE_MANY, ledger.root, value]) for value in "ab"]
    seen = set()
    writing = True
    while writing:
        writing = any(writer.poll() is None for writer in writers)
        content = ledger.read("results/k.json")
        if content is not None:
            seen.add(json.loads(content)["key"])
        time.sleep(0.001)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen <= {"a" * 2000, "b" * 2000}
    assert seen


NOTES: dict[str, dict[str, object]] = {
    "plans/s.json": {"cells": [{"label": "Baseline", "rate": 0.1}], "seeds": 3},
    "claims/k.json": {"sweep": "s", "pid": 7},
    "prices/s.json": {"hourly": 2.5, "share": 0.5},
    "tracked/k.json": {"run": "0" * 32, "sweeps": {"s": {"uri": "sqlite:///x"}}, 7: None},  # type: ignore[dict-item]
    "attempts/k/0001.json": {"error": "ValueError: é", "final": True, "time": 1e9},
}


@pytest.mark.parametrize("name", NOTES)
def test_a_flipped_bit_in_a_note_is_found_or_changes_nothing(ledger: Ledger, name: str) -> None:
    ledger.write_note(name, NOTES[name])
    written = ledger.read_json(name)
    assert written == json.loads(json.dumps(NOTES[name]))
    content = ledger.read(name) or b""
    draw = random.Random(0)
    unseen = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        Path(ledger.path(name)).write_bytes(flipped)
        note = ledger.read_json(name)
        if note is not None and (written or {}).items() <= note.items():
            unseen += 1  # a space, or the name of the checksum
        else:
            assert note is None
    assert unseen < 60


def test_a_damaged_note_is_named_once(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    for name in NOTES:
        assert ledger.read_json(name) is None  # there is none
        ledger.write_note(name, NOTES[name])
        ledger.read_json(name)
        assert caplog.messages == []
        Path(ledger.path(name)).write_text((ledger.read(name) or b"").decode().replace('"check": "', '"check": "0'))
        assert [ledger.read_json(name), ledger.read_json(name)] == [None, None]
        assert caplog.messages == [f"{ledger.root}/{name} is damaged and is not read"]
        caplog.clear()


def test_a_note_without_a_checksum_is_read_as_it_is(ledger: Ledger) -> None:
    ledger.write_json("plans/s.json", {"cells": []})
    assert ledger.read_json("plans/s.json") == {"cells": []}


def test_a_ledger_keeps_its_name_when_a_bit_of_it_is_flipped(tmp_path: Path) -> None:
    name = Ledger(str(tmp_path)).identity
    content = (tmp_path / "ledger.json").read_bytes()
    for place in range(len(content)):
        for bit in (0, 5):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (tmp_path / "ledger.json").write_bytes(flipped)
            assert Ledger(str(tmp_path)).identity == name
    (tmp_path / "ledger.json").write_text('{"id": "of an earlier version"}')
    assert Ledger(str(tmp_path)).identity == "of an earlier version"


def test_of_two_who_write_once_the_first_stays_unless_it_is_damaged(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    for content in (b'{"id": "first"}', b'{"id": "second"}'):
        ledger._write_once("ledger.json", content)
    assert ledger.read_json("ledger.json") == {"id": "first"}
    ledger.write("ledger.json", b'{"torn')
    ledger._write_once("ledger.json", b'{"id": "third"}')
    assert ledger.read_json("ledger.json") == {"id": "third"}
    assert ledger.names("") == ["ledger.json"]


@pytest.mark.parametrize("change", ["moved", "mounted elsewhere", "restored", "other host, same path", "older version"])
def test_a_ledger_that_is_no_copy_keeps_its_name(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "one"
    name = Ledger(str(folder)).identity
    if change == "moved":
        folder = folder.rename(tmp_path / "two")
    elif change == "mounted elsewhere":
        (tmp_path / "two").symlink_to(folder)
        folder = tmp_path / "two"
    elif change == "restored":
        shutil.copytree(folder, tmp_path / "backup")
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "backup", folder)
    else:
        place = Ledger(str(folder)).read_json("place.json") or {}
        (folder / "place.json").unlink()
        if change.startswith("other"):
            (folder / "place.json").write_text(json.dumps(place | {"host": "another", "inode": 0}))
        else:
            (folder / "ledger.json").write_text(json.dumps({"id": name}))
    assert Ledger(str(folder)).identity == name
    assert Ledger(str(folder)).identity == name


@pytest.mark.parametrize("root", ["s3://b/l?endpoint_override=evil", "s3://other/l?region=r", "/etc"])
def test_a_place_on_another_store_is_not_asked(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    ours = Ledger("s3://b/l?region=r")
    asked: list[str] = []
    monkeypatch.setattr(Ledger, "local", False)
    monkeypatch.setattr(Ledger, "_known_identity", lambda self: asked.append(self.root))
    assert not ours._is_copy("name", {"root": root}, {"root": ours.root})
    assert asked == []
    ours._is_copy("name", {"root": "s3://b/before?region=r"}, {"root": ours.root})
    assert asked == ["s3://b/before?region=r"]


@pytest.mark.parametrize("change", ["beside the original", "on another host", "of an older version"])
def test_a_copied_ledger_gets_a_name_of_its_own(tmp_path: Path, change: str) -> None:
    original = Ledger(str(tmp_path / "one"))
    if change == "of an older version":
        original.write_json("ledger.json", {"id": "old"})
    name = original.identity
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = Ledger(str(tmp_path / "two"))
    if change == "on another host":
        copy.write_json("place.json", (copy.read_json("place.json") or {}) | {"host": "h", "root": "/gone"})
    assert copy.identity != name
    assert Ledger(copy.root).identity == copy.identity
    assert Ledger(original.root).identity == name
