"""A flipped bit in any file of a finished trial is named, noted, and forgotten once the file is whole again."""

import hashlib
import json
from pathlib import Path

import pytest

from sweeps.store.integrity import checked, damage, lost_files, noted_damage
from sweeps.store.ledger import Json, Ledger

FILES = {
    "trial.json": b'{"phase": "fold"}',
    "history.json": b'[{"epoch": 1.0, "train/loss": 2.0}]',
    "weights.safetensors": bytes(range(256)) * 40,
    "tables/scores.parquet": b"PAR1" + b"x" * 5000,
    "files/plots/what is new.png": b"PNG" * 500,
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path))


def finished(ledger: Ledger, key: str, digests: bool = True) -> Json:
    """Write the files of a finished trial, and return its result."""
    for name, content in FILES.items():
        ledger.write(f"trials/{key}/{name}", content)
    files = {name: hashlib.sha256(content).hexdigest() if digests else "" for name, content in FILES.items()}
    ledger.commit(key, {"key": key, "files": files})
    return ledger.result(key) or {}


def flip(ledger: Ledger, name: str, bit: int) -> None:
    path = Path(ledger.path(name))
    content = bytearray(path.read_bytes())
    place = bit % (8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_named_and_no_other_trial(ledger: Ledger, name: str) -> None:
    result, other = finished(ledger, "a"), finished(ledger, "b")
    assert damage(ledger, "a", result) == ""
    for bit in range(0, 8 * len(FILES[name]), 8 * len(FILES[name]) // 50 or 1):
        flip(ledger, f"trials/a/{name}", bit)
        assert (
            damage(ledger, "a", result)
            == f"trials/a/{name} is damaged: its SHA-256 is not the one in the trial's result"
        )
        flip(ledger, f"trials/a/{name}", bit)
    assert damage(ledger, "a", result) == damage(ledger, "b", other) == ""


def test_only_the_files_that_are_read_are_looked_at(ledger: Ledger) -> None:
    result = finished(ledger, "a")
    flip(ledger, "trials/a/weights.safetensors", 1000)
    assert damage(ledger, "a", result, ["history.json", "tables/scores.parquet"]) == ""
    assert damage(ledger, "a", result, ["weights.safetensors"]).startswith("trials/a/weights.safetensors is damaged")


def test_missing_file_is_named(ledger: Ledger) -> None:
    result = finished(ledger, "a")
    ledger.delete("trials/a/tables/scores.parquet")
    assert damage(ledger, "a", result) == "trials/a/tables/scores.parquet is missing"


@pytest.mark.parametrize("content", [b"", b"[{", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_results_without_digests_are_read_and_a_history_that_is_none_is_named(ledger: Ledger, content: bytes) -> None:
    result = finished(ledger, "a", digests=False)
    flip(ledger, "trials/a/weights.safetensors", 5)
    ledger.delete("trials/a/tables/scores.parquet")
    assert damage(ledger, "a", result) == ""
    ledger.write("trials/a/history.json", content)
    assert damage(ledger, "a", result) == "trials/a/history.json is damaged: it is no list of epochs"


def test_damage_is_noted_until_the_file_is_whole_or_the_trial_is_forgotten(ledger: Ledger) -> None:
    result = finished(ledger, "a")
    assert (checked(ledger, "a", result), noted_damage(ledger), ledger.names("damaged")) == ("", {}, [])
    flip(ledger, "trials/a/weights.safetensors", 77)
    why = checked(ledger, "a", result)
    assert "trials/a/weights.safetensors is damaged" in why
    assert noted_damage(ledger) == {"a": why}
    flip(ledger, "trials/a/weights.safetensors", 77)  # as from a backup
    assert noted_damage(ledger) == {}
    assert ledger.names("damaged") == []
    flip(ledger, "trials/a/weights.safetensors", 77)
    checked(ledger, "a", result)
    ledger.forget("a")
    assert (noted_damage(ledger), ledger.names("damaged")) == ({}, [])


def test_damage_of_a_file_whose_name_reads_like_the_note_stays_noted(ledger: Ledger) -> None:
    result = finished(ledger, "a")
    flip(ledger, "trials/a/files/plots/what is new.png", 5)
    why = checked(ledger, "a", result)
    assert why.startswith("trials/a/files/plots/what is new.png is damaged")
    assert noted_damage(ledger) == {"a": why}


def test_damage_on_a_disk_that_is_read_only_is_told_all_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = finished(ledger, "a")
    flip(ledger, "trials/a/trial.json", 9)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Ledger, "write", refuse)
    assert "trial.json is damaged" in checked(ledger, "a", result)


def test_note_that_somebody_else_wrote_names_no_other_file(ledger: Ledger) -> None:
    finished(ledger, "a")
    ledger.write("damaged/a.json", json.dumps({"why": "trials/a/../../../etc/passwd is damaged"}).encode())
    assert noted_damage(ledger) == {}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", ["nothing", "half", "more"])
def test_file_of_another_size_is_known_unread(
    ledger: Ledger, name: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {key: finished(ledger, key) for key in ("a", "b")}
    path = Path(ledger.path(f"trials/a/{name}"))
    if left == "nothing":
        path.unlink()
    else:
        path.write_bytes(FILES[name][: len(FILES[name]) // 2] if left == "half" else FILES[name] + b"x")
    monkeypatch.setattr(Ledger, "read", lambda *_: pytest.fail("a file is read"))
    monkeypatch.setattr(Ledger, "sha256", lambda *_: pytest.fail("a file is read"))
    why = "is missing" if left == "nothing" else "is damaged: its size is"
    assert list(lost_files(ledger, results)) == ["a"]
    assert lost_files(ledger, results)["a"].startswith(f"trials/a/{name} {why}")


def test_results_of_earlier_versions_need_their_files_to_be_there(ledger: Ledger) -> None:
    result = {name: value for name, value in finished(ledger, "a").items() if name != "sizes"}
    undigested = finished(ledger, "b", digests=False) | {"sizes": {}}
    ledger.write("trials/a/trial.json", b"half")
    ledger.delete("trials/b/trial.json")
    assert lost_files(ledger, {"a": result, "b": undigested}) == {}
    ledger.delete("trials/a/trial.json")
    assert lost_files(ledger, {"a": result}) == {"a": "trials/a/trial.json is missing"}


@pytest.mark.parametrize("sizes", [None, [], "x", {"trial.json": "x"}, {"trial.json": -1}])
def test_sizes_that_somebody_else_wrote_are_no_crash(ledger: Ledger, sizes: object) -> None:
    lost_files(ledger, {"a": finished(ledger, "a") | {"sizes": sizes}})


def test_sizes_on_object_storage_are_listed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {key: finished(ledger, key) for key in ("a", "b", "c")}
    ledger.write("trials/b/analysis/job/summary.json", b"{}")
    sizes = ledger.file_sizes(results)
    monkeypatch.setattr(Ledger, "local", False)
    assert ledger.file_sizes(results) == sizes == {key: {n: len(c) for n, c in FILES.items()} for key in results}
    assert ledger.file_sizes(["b"]) == {"b": sizes["b"]}
    assert ledger.file_sizes([]) == {}
