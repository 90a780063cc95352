"""A capsule holds all that a report is made of: from it the report is rebuilt byte by byte, and from nothing else."""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sweeps.cifar_vgg import CELLS
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report import build
from sweeps.results import capsule
from sweeps.results.analyses import SCHEMA
from sweeps.results.decisions import Predictions, read_decisions
from sweeps.results.evidence import read_sweep
from sweeps.store.ledger import Ledger
from sweeps.store.tables import parquet
from tests.support.sweeps import Made, make, scores

TITLE = "cifar_vgg"
SWEEP = Sweep(TITLE, "paper", CELLS[:2], Protocol(ablation=False, single=True, folds=3, search=Search(2)))
PNG = bytes.fromhex("89504e470d0a1a0a")


def outcome(trial: Trial) -> Made | None:
    """Return some outcome with scores where the phase tests; one training is lost."""
    if trial.phase == "fold" and trial.fold == 2 and trial.cell is CELLS[1]:
        return None
    if trial.phase == "holdout":
        return Made({})
    wrong = np.arange(20 + trial.fold)
    return Made({TOP1: len(wrong) / 2}, scores=scores(np.arange(200) % 10, wrong, 10))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small sweep, its report, an analysis, a failed trial, and its capsule."""
    folder = tmp_path_factory.mktemp("made")
    ledger = Ledger(str(folder / "ledger"))
    make(ledger, SWEEP, outcome)
    run = next(run for run in read_sweep(ledger, TITLE).runs if run.trial.phase == "match")
    summary = {
        "schema": SCHEMA, "job": "pairing",
        "rows": [{"layer": "conv1", "mu": -0.25}], "metrics": {"pairing/mu/conv1": -0.25},
        "notes": ["mu: least cosine"], "files": {"filters.png": ""},
    }  # fmt: skip
    ledger.write_json(f"trials/{run.key}/analysis/pairing/summary.json", summary)
    ledger.write(f"trials/{run.key}/analysis/pairing/filters.png", PNG)
    lost = next(run for run in read_sweep(ledger, TITLE).runs if run.result is None)
    for _ in range(3):
        ledger.add_attempt(lost.key, {"error": "RuntimeError: gone"})
    build.run(options(folder))
    build.export(argparse.Namespace(sweep=TITLE, file=str(folder / "one.zip"), output=str(folder)))
    return folder


def options(output: Path, **overrides: str | None) -> argparse.Namespace:
    """Return the options of `report` as the command line gives them."""
    return argparse.Namespace(
        **{"sweep": None, "check": None, "capsule": None, "to": None, "tracking_uri": None, "output": str(output)}
        | {"open": False, "watch": False}
        | overrides
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_report_from_a_capsule_is_byte_by_byte_the_report(made: Path, tmp_path: Path) -> None:
    moved = shutil.copy(made / "one.zip", tmp_path / "moved.zip")
    assert build.run(options(tmp_path / "nothing here", capsule=str(moved), to=str(tmp_path / "out"))) == 0
    ours, theirs = files(tmp_path / "out" / TITLE), files(made / "reports" / TITLE)
    assert ours == theirs
    text = ours["report.html"].decode()
    assert "data:image/png;base64," in text
    assert "RuntimeError: gone" in text
    assert "report.tex" in ours


def test_capsule_carries_the_report_and_no_weights(made: Path) -> None:
    with zipfile.ZipFile(made / "one.zip") as archive:
        names = archive.namelist()
        page = archive.read("report/report.html")
    assert page == (made / "reports" / TITLE / "report.html").read_bytes()
    assert "requirements.lock" in names
    assert not [name for name in names if "safetensors" in name or "scores" in name]


def test_equal_sweeps_make_equal_capsules(made: Path, tmp_path: Path) -> None:
    build.export(argparse.Namespace(sweep=TITLE, file=str(tmp_path / "two.zip"), output=str(made)))
    assert (tmp_path / "two.zip").read_bytes() == (made / "one.zip").read_bytes()


def test_decisions_are_what_the_scores_decide(made: Path) -> None:
    ledger = Ledger(str(made / "ledger"))
    with capsule.opened(made / "one.zip") as opened:
        original, packed = read_sweep(ledger, TITLE), read_sweep(opened, TITLE)
        assert len(original.cells) == len(packed.cells) == 2
        for mine, theirs in zip(original.cells, packed.cells, strict=True):
            assert mine.vote is not None
            assert theirs.vote is not None
            assert mine.vote.classes == theirs.vote.classes == 10
            for method in ("mean_softmax", "mean_logit", "majority"):
                assert np.array_equal(mine.vote.chosen[method], theirs.vote.chosen[method])
        run = next(run for run in packed.runs if run.trial.phase == "fold")
        assert run.decisions is not None
        table = pq.read_table(ledger.path(f"trials/{run.key}/tables/scores.parquet")).to_pydict()
        naive = [max(range(10), key=row.__getitem__) for row in table["centre"]]
        assert run.decisions.chosen["centre"].tolist() == naive


def test_capsule_is_read_without_torch_ray_optuna_or_a_server(made: Path, tmp_path: Path) -> None:
    code = (
        "import argparse, sys\nfrom sweeps.report import build\n"
        f"build.run(argparse.Namespace(sweep=None, check=None, capsule={str(made / 'one.zip')!r}, "
        f"open=False, watch=False, to={str(tmp_path)!r}, output='nowhere'))\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'ffcv'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run((sys.executable, "-c", code), check=True, capture_output=True)
    assert (tmp_path / TITLE / "report.tex").exists()


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], resign: bool = False) -> Path:
    """Write a capsule anew with other contents; `resign` brings its manifest up to them."""
    with zipfile.ZipFile(source) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    if resign:
        manifest = json.loads(contents["capsule.json"])
        digests = {n: hashlib.sha256(c).hexdigest() for n, c in contents.items() if n != "capsule.json"}
        contents["capsule.json"] = json.dumps(manifest | {"files": digests}).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("change", "resign", "word"),
    [
        (lambda c: c.update({"requirements.lock": b"other"}), False, "damaged: requirements.lock"),
        (lambda c: c.pop("requirements.lock"), False, "has lost requirements.lock"),
        (lambda c: c.pop("capsule.json"), False, "no capsule.json"),
        (lambda c: c.update({"capsule.json": b"[1]"}), False, "no capsule.json"),
        (lambda c: c.update({"capsule.json": b'{"schema": 9, "files": {}}'}), False, "schema 9"),
        (lambda c: c.update({"../../evil.txt": b"x"}), True, "which no capsule holds"),
        (lambda c: c.update({"/evil.txt": b"x"}), True, "which no capsule holds"),
        (lambda c: c.update({"..\\evil.txt": b"x"}), True, "which no capsule holds"),
        (lambda c: c.update({"trials/ab/analysis/../../evil.txt": b"x"}), True, "which no capsule holds"),
        (lambda c: c.update({"trials/ab/weights.safetensors": b"x"}), True, "which no capsule holds"),
        (lambda c: c.update({"plans/\x1b[2J.json": b"x"}), True, r"names 'plans/\\x1b\[2J.json'"),
        (lambda c: c.update({".ssh/authorized_keys": b"x"}), True, "which no capsule holds"),
    ],
)
def test_damaged_and_hostile_capsules_are_refused(
    made: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], resign: bool, word: str
) -> None:
    path = rewritten(made / "one.zip", tmp_path / "bad.zip", change, resign)
    with pytest.raises(ValueError, match=word):
        build.run(options(tmp_path, capsule=str(path)))
    assert not (tmp_path / "reports").exists()
    assert not list(tmp_path.parent.glob("evil.txt"))


def test_capsule_whose_digests_fit_but_which_no_sweep_writes_is_refused(made: Path, tmp_path: Path) -> None:
    def change(contents: dict[str, bytes]) -> None:
        manifest = json.loads(contents["capsule.json"])
        contents["capsule.json"] = json.dumps(manifest | {"studies": "none"}).encode()

    path = rewritten(made / "one.zip", tmp_path / "odd.zip", change)
    with pytest.raises(ValueError, match=r"odd\.zip holds what no sweep writes \(AttributeError"):
        build.run(options(tmp_path, capsule=str(path), to=str(tmp_path / "to")))


@pytest.mark.parametrize("key", ["x" * 300, "../../results/0123", "ABCDEF0123456789abcd"])
def test_capsule_that_names_a_trial_by_no_key_is_refused(made: Path, tmp_path: Path, key: str) -> None:
    def change(contents: dict[str, bytes]) -> None:
        manifest = json.loads(contents["capsule.json"])
        manifest["standings"][0][0] = key
        contents["capsule.json"] = json.dumps(manifest).encode()

    path = rewritten(made / "one.zip", tmp_path / "odd.zip", change)
    with pytest.raises(ValueError, match="is no trial's key"):
        build.run(options(tmp_path, capsule=str(path), to=str(tmp_path / "to")))


def test_capsule_with_a_damaged_place_is_refused(made: Path, tmp_path: Path) -> None:
    content = bytearray((made / "one.zip").read_bytes())
    with zipfile.ZipFile(made / "one.zip") as archive:
        at = archive.getinfo("requirements.lock").header_offset
    content[at + 60 : at + 90] = b"\xff" * 30  # of what is compressed there
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.zip is damaged: requirements\.lock cannot be read"):
        build.run(options(tmp_path, capsule=str(tmp_path / "bad.zip")))


def test_capsule_of_a_later_zip_is_refused(made: Path, tmp_path: Path) -> None:
    content = bytearray((made / "one.zip").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 84  # the version that is needed to read the last file
    (tmp_path / "late.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"late\.zip is no capsule: zip file version 8\.4"):
        build.run(options(tmp_path, capsule=str(tmp_path / "late.zip")))


@pytest.mark.parametrize("name", ["requirements.lock", "trials/ab/history.json", "capsule.json"])
def test_capsule_unpacks_to_a_few_times_its_size_or_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(capsule, "FLOOR", 1 << 20)
    large = b" " * (12 << 20)
    with zipfile.ZipFile(made / "one.zip") as archive:
        manifest = json.loads(archive.read("capsule.json"))
    manifest["files"] = {name: hashlib.sha256(large).hexdigest()} if name != "capsule.json" else {}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("capsule.json", json.dumps(manifest))
        if name != "capsule.json":
            archive.writestr(name, large)
    if name == "capsule.json":
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, large + json.dumps(manifest).encode())
    assert (tmp_path / "bomb.zip").stat().st_size < 1 << 17
    with (
        pytest.raises(ValueError, match=r"bomb\.zip would unpack to more than 1 MiB"),
        capsule.opened(tmp_path / "bomb.zip"),
    ):
        pass


def test_capsule_that_holds_a_link_is_refused(made: Path, tmp_path: Path) -> None:
    path = rewritten(
        made / "one.zip", tmp_path / "link.zip", lambda c: c.update({"requirements.lock": b"/etc/passwd"}), True
    )
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "requirements.lock" else 0o100644) << 16
            archive.writestr(info, content)
    with pytest.raises(ValueError, match=r"holds requirements\.lock as a link"):
        build.run(options(tmp_path, capsule=str(path)))


def test_table_of_more_rows_than_bytes_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ids = np.arange(100)
    fine = Predictions(ids, ids % 10, 10, {"centre": ids % 10})
    ledger.write("a/decisions.parquet", capsule.decisions_table(fine))
    decisions = read_decisions(ledger, "a")
    assert decisions is not None
    assert decisions.wrong("centre") == 0
    zeros = np.zeros(1_000_000, np.int64)
    content = parquet({"id": zeros, "label": zeros, "centre": zeros}, {"schema": "decisions/1", "classes": "10"})
    assert len(content) < 100_000
    ledger.write("a/decisions.parquet", content)
    with pytest.raises(ValueError, match="says that it has 1,000,000 rows of 3 columns"):
        read_decisions(ledger, "a")
    words = {"id": ids, "label": ids, "centre": ["x" * 1000] * 100}
    ledger.write("a/decisions.parquet", parquet(words, {"schema": "decisions/1", "classes": "10"}))
    with pytest.raises(ValueError, match="columns that are no numbers"):
        read_decisions(ledger, "a")


def test_logins_in_older_notes_stay_out_of_a_capsule(made: Path, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    shutil.copytree(made / "ledger", tmp_path / "out" / "ledger")
    for name in ledger.names("tracked"):
        note = ledger.read_json(f"tracked/{name}") or {}
        login = {"uri": "http://me:secret@host:5000"}
        ledger.write_json(f"tracked/{name}", note | login | {"sweeps": {TITLE: note | login, "other": note | login}})
    build.export(argparse.Namespace(sweep=TITLE, file=str(tmp_path / "two.zip"), output=str(tmp_path / "out")))
    with zipfile.ZipFile(tmp_path / "two.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert sum(b"http://host:5000" in content for content in contents.values()) == len(ledger.names("tracked"))
    assert not [name for name, content in contents.items() if b"secret" in content]


def test_files_that_the_manifest_does_not_name_are_left_out(made: Path, tmp_path: Path) -> None:
    path = rewritten(made / "one.zip", tmp_path / "more.zip", lambda c: c.update({"results/extra.json": b"{}"}))
    with capsule.opened(path) as ledger:
        assert ledger.read("results/extra.json") is None


def _changed(name: str, **values: object) -> Callable[[dict[str, bytes]], None]:
    """Return a change of the first JSON file whose name begins so."""

    def change(contents: dict[str, bytes]) -> None:
        file = min(each for each in contents if each.startswith(name))
        value = json.loads(contents[file])
        contents[file] = json.dumps({key: v for key, v in (value | values).items() if v is not None}).encode()

    return change


@pytest.mark.parametrize("change", [
    _changed("prices/", hourly="x" * 5000), _changed("plans/", protocol=None),
    _changed("capsule.json", standings=[["x", "done", ""]]),
    lambda contents: [contents.pop(name) for name in list(contents) if name.endswith("trial.json")],
])  # fmt: skip
def test_every_refusal_names_the_capsule_in_one_line(
    made: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    def priced(contents: dict[str, bytes]) -> None:
        contents[f"prices/{TITLE}.json"] = b'{"hourly": 2, "share": 1}'
        change(contents)

    path = rewritten(made / "one.zip", tmp_path / "odd.zip", priced, resign=True)
    with pytest.raises(ValueError, match=r"odd\.zip") as refusal:
        build.run(options(tmp_path, capsule=str(path), to=str(tmp_path / "to")))
    said = str(refusal.value)
    assert "scratch-capsule-" not in said
    assert len(said.splitlines()) == 1
    assert len(said) < 300 + len(str(path))


def test_capsule_without_a_plan_is_said_to_be_none(made: Path, tmp_path: Path) -> None:
    def without(contents: dict[str, bytes]) -> None:
        del contents[f"plans/{TITLE}.json"]

    path = rewritten(made / "one.zip", tmp_path / "bare.zip", without, resign=True)
    with pytest.raises(ValueError, match=r"bare\.zip is no capsule: it has the plan of no sweep"):
        build.run(options(tmp_path, capsule=str(path)))
    with pytest.raises(ValueError, match=r"one\.zip.* 'mine'"):
        build.run(options(tmp_path, capsule=str(made / "one.zip"), sweep="mine"))


def test_what_is_no_zip_is_no_capsule(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK\x03\x04 but then nothing")
    with pytest.raises(ValueError, match="is no capsule"):
        build.run(options(tmp_path, capsule=str(path)))
    with pytest.raises(FileNotFoundError):
        build.run(options(tmp_path, capsule=str(tmp_path / "missing.zip")))
