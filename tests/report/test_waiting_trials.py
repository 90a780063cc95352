"""Trials that follow once others have ended are counted in every view, and a cell that was given up is not complete."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.cifar_width import CELLS
from sweeps.cli.notify import notice
from sweeps.cli.options import ExitCode
from sweeps.cli.status import status
from sweeps.cli.summary import _print_states
from sweeps.experiment.metrics import HELD_OUT, TOP1, TRAIN
from sweeps.experiment.plan import Plan, current_plan
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import SECOND_SEED, Trial
from sweeps.report import index_page, terminal
from sweeps.report.contents import document
from sweeps.report.tidy import tidy
from sweeps.results import capsule
from sweeps.results.cell_numbers import groups, number
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.marks import marks
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, make, only, unsearched

BASELINE, CRELU = (only(CELLS, "cifar10")[place] for place in (0, 3))
SINGLE = unsearched("waits", (BASELINE, CRELU), Protocol(seeds=5, ablation=False, single=True))
RATES = Sweep("waits", "paper", (BASELINE, CRELU), Protocol(ablation=False, folds=10, rates=RateStudy("Baseline *")))
GIVEN_UP = unsearched("waits", (BASELINE, CRELU), Protocol(seeds=10))


def errs(trial: Trial) -> Made:
    error = 9 + 0.1 * (trial.seed % SECOND_SEED)
    return Made({TOP1: error, TRAIN: error / 9} if trial.phase != "holdout" else {})


def of_two_seeds(trial: Trial) -> Made | None:
    """Return the outcome of a trial of CReLU, or of the baseline's first two seeds."""
    return errs(trial) if trial.cell is CRELU or trial.seed % SECOND_SEED < 2 else None


def of_first_rates(trial: Trial) -> Made | None:
    return errs(trial) if trial.rate in (0.25, 0.1, 0.05) else None


def of_diverging(trial: Trial) -> Made | None:
    if trial.cell is BASELINE:
        return errs(trial)
    return Made({TOP1: 90.0}, curve=[], status="diverged", ending="diverged") if trial.seed < 2 else None


def made(folder: Path, sweep: Sweep, outcome: Any) -> tuple[Ledger, Plan, SweepResults]:
    ledger = Ledger.in_output(str(folder))
    make(ledger, sweep, outcome)
    return ledger, current_plan(ledger, "waits"), read_sweep(ledger, "waits")


def states(folder: Path, capsys: pytest.CaptureFixture[str], as_json: bool = True) -> Any:
    status(argparse.Namespace(output=str(folder), sweep=None, watch=False, json=as_json))
    shown = capsys.readouterr().out
    return json.loads(shown)["waits"]["cells"] if as_json else shown.splitlines()


def test_number_whose_second_phases_wait_for_their_first_is_marked_as_incomplete(tmp_path: Path) -> None:
    ledger, today, results = made(tmp_path, SINGLE, of_two_seeds)
    assert [len(today.pending_of(cell)) for cell in SINGLE.cells] == [3, 0]
    assert [dict(cell.pending) for cell in results.cells] == [{"match": 3}, {}]
    marked = {(line["row"], line["metric"]): line["marks"] for line in tidy(results)["numbers"] if line["n"]}
    assert {marked["Baseline", metric] == ["incomplete"] for metric in (TOP1, TRAIN)} == {True}
    assert {marked["CReLU", metric] == [] for metric in (TOP1, TRAIN)} == {True}
    baseline, crelu = terminal.lines(today, {}, ledger)
    assert (baseline.done, baseline.planned, crelu.done, crelu.planned) == (4, 10, 10, 10)


def test_number_that_another_phase_will_make_is_incomplete_and_a_held_out_one_is_not(tmp_path: Path) -> None:
    sweep = dataclasses.replace(SINGLE, protocol=Protocol(seeds=2, single=True))
    for name, outcome in {
        "first phases to do": lambda trial: errs(trial) if trial.phase == "ablation" else None,
        "second phases to do": lambda trial: errs(trial) if trial.phase != "match" else None,
    }.items():
        _, _, results = made(tmp_path / name, sweep, outcome)
        (table,), cell = groups(results), results.cells[0]
        assert [run.trial.phase for run in number(cell, TOP1).runs] == ["ablation"] * 2
        assert "i" in marks(table, cell, number(cell, TOP1), None), name
        assert number(cell, HELD_OUT).known
        assert "i" not in marks(table, cell, number(cell, HELD_OUT), None), name


@pytest.mark.parametrize(("state", "is_marked"), [("new", True), ("running", True), ("paused", False)])
def test_trial_that_its_search_has_paused_is_not_waited_for(tmp_path: Path, state: str, is_marked: bool) -> None:
    search = Search(3)
    sweep = Sweep("waits", "paper", (CRELU,), Protocol(ablation=False, search=search))
    _, _, results = made(tmp_path, sweep, lambda trial: errs(trial))
    (cell,), (table,) = results.cells, groups(results)
    assert cell.winner is not None
    lost = next(run.key for run in cell.runs if run.key != cell.winner.run.key)
    changed = tuple(run._replace(state=state, result=None) if run.key == lost else run for run in cell.runs)
    cell = dataclasses.replace(cell, runs=changed)
    assert ("i" in marks(table, cell, number(cell, HELD_OUT), search)) == is_marked
    assert dataclasses.replace(results, cells=(cell,)).to_do == is_marked


def test_trials_that_wait_for_a_rate_are_counted_alike_in_every_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, today, results = made(tmp_path, RATES, of_first_rates)
    assert (today.total, len(today.to_do), len(today.pending)) == (24, 1, 20)
    assert (results.to_do, results.pending) == (21, 20)
    report = document(ledger, results)
    assert report.tiles[-2].sub == "0 failed, 21 to do"
    shown = index_page.index_document([index_page.Reported(results, report)], None)
    assert [entry.text for entry in shown.tables["sweeps"].rows[0]][1:3] == ["21 to do", "3 of 24"]
    assert [cell["pending"] for cell in states(tmp_path, capsys)] == [10, 10]
    follow = f"20 trials to follow when others have ended: 10 of {BASELINE.label}, 10 of {CRELU.label}"
    assert follow in states(tmp_path, capsys, as_json=False)
    assert terminal.as_json(today, terminal.lines(today, {}, ledger))["trials"] == {
        "new": 1, "running": 0, "paused": 0, "done": 3, "stale": 0, "failed": 0, "skipped": 0, "pending": 20
    }  # fmt: skip
    _print_states(today)
    assert capsys.readouterr().out.splitlines()[0] == "3 of 24 trials are done."
    posted = notice("waits", ExitCode.INTERRUPTED, today)
    assert posted["trials"] == 24
    assert "3 of 24 trials done" in posted["text"]


def test_cell_that_was_given_up_is_not_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, today, results = made(tmp_path, GIVEN_UP, of_diverging)
    assert results.given_up == today.given_up == {CRELU.label: "the first 2 trainings of this cell diverged"}
    assert results.to_do == 0
    reported = index_page.Reported(results, document(ledger, results))
    assert not index_page.is_complete(reported)
    assert index_page.state(reported).text == "1 cell given up"
    assert index_page.state(reported._replace(driver={"pid": 1})).sub == "1 cell given up"
    shown = index_page.index_document([reported], None)
    assert shown.tiles[0].value == "0 of 1"
    assert shown.tables["sweeps"].rows[0][2].text == "12 of 20"
    assert not any("to follow" in line for line in states(tmp_path, capsys, as_json=False))


@pytest.mark.parametrize(
    ("sweep", "outcome"), [(SINGLE, of_two_seeds), (RATES, of_first_rates), (GIVEN_UP, of_diverging)]
)
def test_capsule_says_what_follows_and_what_was_given_up(tmp_path: Path, sweep: Sweep, outcome: Any) -> None:
    ledger, _, results = made(tmp_path, sweep, outcome)
    capsule.write(ledger, results, {}, tmp_path / "waits.zip")
    with capsule.opened(tmp_path / "waits.zip") as copy:
        packed = read_sweep(copy, "waits")
    assert [cell.pending for cell in packed.cells] == [cell.pending for cell in results.cells]
    assert (packed.to_do, packed.given_up) == (results.to_do, results.given_up)
