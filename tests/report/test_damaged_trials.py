"""A trial with a damaged file is told as that, and counts nowhere; all others stand, here and in a capsule."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sweeps.cifar_vgg import CELLS
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import current_plan, without_damaged
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report import build, terminal
from sweeps.results.analyses import SCHEMA
from sweeps.results.evidence import READ, SweepResults, read_sweep
from sweeps.store.integrity import noted_damage
from sweeps.store.ledger import Ledger, checksum
from tests.support.sweeps import Made, make, scores

TITLE = "cifar_vgg"
SWEEP = Sweep(TITLE, "paper", CELLS[:1], Protocol(ablation=False, single=True, seeds=2, folds=3, search=Search(2)))


def outcome(trial: Trial) -> Made:
    if trial.phase == "holdout":
        return Made({})
    wrong = np.arange(20 + 2 * trial.fold)
    return Made({TOP1: len(wrong) / 2}, scores=scores(np.arange(200) % 10, wrong, 10))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output folder with a finished sweep whose results have the digests of their files."""
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, SWEEP, outcome)
    for key, result in ledger.results().items():
        digests = {name: ledger.sha256(f"trials/{key}/{name}") for name in result["files"]}
        ledger.commit(key, result | {"files": digests})
    return tmp_path


def change(ledger: Ledger, name: str, new: Callable[[bytes], bytes]) -> None:
    content = ledger.read(name)
    assert content is not None
    Path(ledger.path(name)).write_bytes(new(content))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def options(output: Path, **overrides: str | None) -> argparse.Namespace:
    asked = {"sweep": None, "check": None, "capsule": None, "to": None, "tracking_uri": None}
    return argparse.Namespace(**asked | overrides, output=str(output), open=False, watch=False)


def of_phase(results: SweepResults, phase: str) -> str:
    return next(run.key for run in results.runs if run.trial.phase == phase)


@pytest.mark.parametrize(
    ("phase", "name", "new"),
    [
        ("fold", "tables/scores.parquet", flipped),
        ("match", "tables/scores.parquet", lambda _: b"PAR1"),
        ("match", "history.json", flipped),
        ("holdout", "history.json", lambda content: content[:-9]),
        ("fold", "history.json", lambda _: b"[{"),
    ],
)
def test_damaged_trial_is_named_and_the_others_go_on(
    output: Path, phase: str, name: str, new: Callable[[bytes], bytes]
) -> None:
    ledger = Ledger(str(output / "ledger"))
    before = read_sweep(ledger, TITLE)
    key = of_phase(before, phase)
    change(ledger, f"trials/{key}/{name}", new)
    after = read_sweep(ledger, TITLE)
    why = f"trials/{key}/{name} is damaged"
    for old, now in zip(before.runs, after.runs, strict=True):
        if now.key == key:
            assert (now.state, now.result, now.why.startswith(why)) == ("failed", None, True)
        else:
            assert (now.key, now.state, now.metrics) == (old.key, old.state, old.metrics)
    # The study that chose the dropout is the same: the trial's value had come to it long before.
    assert [point.value for point in after.cells[0].tried] == [point.value for point in before.cells[0].tried]
    # Whoever looks next is told as well: status, the table, the report, a capsule.
    today = without_damaged(current_plan(ledger, TITLE), ledger, READ)
    assert today.count("failed") == 1
    assert today.to_do == []
    (row,) = terminal.lines(today, {}, ledger)
    assert row.done == len(before.runs) - 1
    assert build.run(options(output, to=str(output / "ours"))) == 0
    text = (output / "ours" / TITLE / "report.html").read_text()
    assert why in text
    assert ("or has a damaged file: n leaves it out" in text) is (phase in ("match", "fold"))
    build.export(argparse.Namespace(sweep=TITLE, file=str(output / "a.zip"), output=str(output)))
    build.run(options(output, capsule=str(output / "a.zip"), to=str(output / "theirs")))
    for path in (output / "ours" / TITLE).rglob("*.*"):
        assert path.read_bytes() == (output / "theirs" / path.relative_to(output / "ours")).read_bytes(), path.name


def test_damaged_trial_is_trained_anew_when_asked_and_until_then_its_study_stands(output: Path) -> None:
    ledger = Ledger(str(output / "ledger"))
    key = of_phase(read_sweep(ledger, TITLE), "holdout")
    change(ledger, f"trials/{key}/history.json", flipped)
    read_sweep(ledger, TITLE)
    assert list(noted_damage(ledger)) == [key]
    today = current_plan(ledger, TITLE)
    assert (today.count("failed"), today.to_do, list(today.damaged)) == (1, [], [key])
    ledger.forget(key)
    assert [trial.key for trial in current_plan(ledger, TITLE).to_do] == [key]
    make(ledger, SWEEP, outcome)
    assert current_plan(ledger, TITLE).count("done") == today.count("done", "failed")


def test_damaged_result_is_named_and_trained_anew(output: Path) -> None:
    ledger = Ledger(str(output / "ledger"))
    key = of_phase(read_sweep(ledger, TITLE), "fold")
    change(ledger, f"results/{key}.json", flipped)
    (status,) = (status for status in current_plan(ledger, TITLE).statuses if status.trial.key == key)
    assert (status.state, status.why) == ("new", f"results/{key}.json is damaged; it is trained anew")
    assert [
        status.why for status in current_plan(ledger, TITLE).statuses if status.trial.key != key and status.why
    ] == []
    assert read_sweep(ledger, TITLE).cells[0].vote is not None


@pytest.mark.parametrize("name", ["filters.png", "pairs.parquet", "summary.json"])
def test_damaged_file_of_an_analysis_is_named_and_the_training_stands(output: Path, name: str) -> None:
    ledger = Ledger(str(output / "ledger"))
    key = of_phase(read_sweep(ledger, TITLE), "match")
    home = f"trials/{key}/analysis/pairing"
    for file in ("filters.png", "pairs.parquet"):
        ledger.write(f"{home}/{file}", b"content")
    files = {file: ledger.sha256(f"{home}/{file}") for file in ("filters.png", "pairs.parquet")}
    summary = {
        "schema": SCHEMA,
        "job": "pairing",
        "rows": [],
        "metrics": {"pairing/mu": 1.0},
        "notes": [],
        "files": files,
    }
    ledger.write_json(f"{home}/summary.json", summary | {"check": checksum(summary)})
    assert list(next(run for run in read_sweep(ledger, TITLE).runs if run.key == key).analyses) == ["pairing"]
    change(ledger, f"{home}/{name}", lambda content: content.replace(b"1.0", b"1.5").replace(b"content", b"cOntent"))
    (run,) = (run for run in read_sweep(ledger, TITLE).runs if run.key == key)
    assert (run.state, run.analyses, "pairing/mu" in run.metrics) == ("done", {}, False)
    assert run.result is not None
    assert run.why.startswith("" if name == "summary.json" else f"{home}/{name} is damaged")
    assert build.run(options(output, to=str(output / "to"))) == 0
    if name != "summary.json":
        assert f"{home}/{name} is damaged" in (output / "to" / TITLE / "report.html").read_text()


def test_history_that_is_none_stops_no_report_of_results_without_digests(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, SWEEP, outcome)
    key = of_phase(read_sweep(ledger, TITLE), "match")
    ledger.write(f"trials/{key}/history.json", b"\x00\x01")
    assert build.run(options(tmp_path, to=str(tmp_path / "to"))) == 0
    assert f"trials/{key}/history.json is damaged: it is no list of epochs" in next(
        run.why for run in read_sweep(ledger, TITLE).runs if run.key == key
    )
    assert hashlib.sha256(b"\x00\x01").hexdigest() == ledger.sha256(f"trials/{key}/history.json")
