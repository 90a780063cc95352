"""The hours of training are one sum in every view, with those of paused trials and of results that are damaged."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from sweeps.cli.status import status
from sweeps.experiment.cell_trials import sweep_trials
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import current_plan, plan, plan_to_json
from sweeps.experiment.search import Search
from sweeps.experiment.space import Float
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.report import index_page
from sweeps.report.contents import document
from sweeps.report.tidy import tidy
from sweeps.results import capsule
from sweeps.results.evidence import read_sweep
from sweeps.store import checkpoint
from sweeps.store.integrity import note_damage
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, Made, finish

CELL = dataclasses.replace(BASELINE, table="", row="", recipe=dataclasses.replace(BASELINE.recipe, epochs=9))
SEARCH = Search(9, "random", space={"recipe.lr": Float(0.01, 1)}, halving=3, rung=1)
SWEEP = Sweep("hours", "paper", (CELL,), Protocol(seeds=2, search=SEARCH))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return the ledger of a halved search in which an epoch takes an hour, with the trainings that follow it."""
    ledger = Ledger.in_output(str(tmp_path))
    while trials := plan(SWEEP, ledger, {}).to_do:
        pauses = sweep_trials(SWEEP, ledger.results(), paused=ledger.paused())[CELL.key].pauses
        for trial in trials:
            epoch = pauses.get(trial.key, 9)
            curve = [50.0 - number for number in range(epoch)]
            if epoch < 9:
                ledger.pause(trial.key, {"epoch": epoch, "curve": curve, "seconds": 3600.0 * epoch})
            else:
                metrics = {} if trial.phase == "holdout" else {TOP1: 12.0 + trial.seed}
                finish(ledger, trial, Made(metrics, curve=curve, seconds=32400.0))
    ledger.write_json("plans/hours.json", plan_to_json(plan(SWEEP, ledger, {})))
    return ledger


def shown(ledger: Ledger) -> dict[str, str]:
    """Return the hours of training as each view has them."""
    results = read_sweep(ledger, "hours")
    page = document(ledger, results)
    index = index_page.index_document([index_page.Reported(results, page)], None)
    costs = page.tables["costs"].rows[-1]
    seconds = sum(line["seconds"] for line in tidy(results)["runs"] if line["seconds"] == line["seconds"])
    parts = [float(entry.text.removesuffix(" h")) for entry in (costs[2], costs[4])]
    return {
        "tile": page.tiles[-1].value, "index": index.tiles[2].value, "line": index.tables["sweeps"].rows[0][3].text,
        "costs": f"{sum(parts):.1f} h", "runs": f"{seconds / 3600:.1f} h",
    }  # fmt: skip


def test_hours_are_one_sum_with_those_of_paused_trials(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = read_sweep(ledger, "hours")
    paused = [run for run in results.runs if run.state == "paused"]
    hours = 27 + sum(run.seconds for run in paused) / 3600
    assert hours > 27 + len(paused) - 1 > 27
    assert set(shown(ledger).values()) == {f"{hours:.1f} h"}
    status(argparse.Namespace(output=str(tmp_path), sweep=None, watch=False, json=True))
    assert json.loads(capsys.readouterr().out)["hours"]["hours"] == current_plan(ledger, "hours").hours == hours
    trained = document(ledger, results).tiles[-2]
    assert trained == ("3", "trainings done", f"{len(paused)} paused, 0 failed, 0 to do")


def test_hours_of_what_is_under_way_or_damaged_count(ledger: Ledger, tmp_path: Path) -> None:
    before = current_plan(ledger, "hours").hours
    results = read_sweep(ledger, "hours")
    lost = next(run for run in results.runs if run.trial.phase == "ablation")
    ledger.write(f"trials/{lost.key}/history.json", b"torn")
    note_damage(ledger, lost.key, f"trials/{lost.key}/history.json is damaged")
    failed = [run for run in results.runs if run.state == "paused"][-1]
    ledger.add_attempt(failed.key, {"error": "no", "final": True})
    begun = [run for run in results.runs if run.trial.phase == "ablation"][-1]
    ledger.forget(begun.key)
    state = {"epoch": 2, "seconds": 7200.0, "code": cell_fingerprint(CELL)}
    checkpoint.save(ledger, begun.key, 2, 0, checkpoint.Checkpoint({}, state))
    before += 2 - 9
    today, results = current_plan(ledger, "hours"), read_sweep(ledger, "hours")
    states = {run.key: run.state for run in results.runs}
    assert [states[run.key] for run in (lost, failed, begun)] == ["failed", "failed", "running"]
    assert today.hours == results.hours == before
    capsule.write(ledger, results, {}, tmp_path / "hours.zip")
    with capsule.opened(tmp_path / "hours.zip") as copy:
        assert set(shown(copy).values()) == set(shown(ledger).values()) == {f"{before:.1f} h"}
