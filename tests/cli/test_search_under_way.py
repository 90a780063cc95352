"""A search whose trials pause: it is read as of one moment, and those paused for good are waited for no more."""

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from crelu_models.tables import S2
from sweeps.cli import run, verbs
from sweeps.cli.live_layout import CellRow, RunningTrial
from sweeps.cli.live_view import LiveView
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import settle
from sweeps.experiment.cell_trials import sweep_trials
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import Plan, current_plan, plan, plan_to_json
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search
from sweeps.experiment.space import Float
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.report.loaded import load
from sweeps.results import evidence
from sweeps.results.evidence import read_sweep
from sweeps.store import checkpoint
from sweeps.store.ledger import Json, Ledger
from sweeps.tracking import mlflow_runs, tracker
from sweeps.tracking.tracker import Tracker
from tests.support.sweeps import Made, finish

EPOCHS = 9
CELL = Cell("Baseline", S2, "cifar10", dataclasses.replace(ALLCONV, epochs=EPOCHS))
SEARCH = Search(6, "random", space={"recipe.lr": Float(1e-3, 1, log=True)}, halving=3, rung=1)
SWEEP = Sweep("s", "paper", (CELL,), Protocol(search=SEARCH))


def curve_of(trial: Trial) -> list[float]:
    """Return errors by epoch that the trial's key decides."""
    first = random.Random(trial.key).uniform(20.0, 60.0)
    return [first - epoch for epoch in range(EPOCHS)]


def paused(trial: Trial, epoch: int) -> Json:
    """Return the record of a trial that has paused after an epoch."""
    return {"epoch": epoch, "curve": curve_of(trial)[:epoch], "seconds": float(epoch)}


def advance(ledger: Ledger, today: Plan) -> None:
    """Train each trial that a plan has to do until its search lets it pause, or to its end."""
    pauses = sweep_trials(SWEEP, ledger.results(), paused=ledger.paused())[CELL.key].pauses
    for trial in today.to_do:
        epoch = pauses.get(trial.key, EPOCHS)
        if epoch < EPOCHS:
            ledger.pause(trial.key, paused(trial, epoch))
        else:
            finish(ledger, trial, Made({TOP1: 12.0} if trial.phase == "ablation" else {}, curve=curve_of(trial)))


def declared(folder: Path) -> Ledger:
    """Return the ledger of an output folder in which the sweep is declared, and nothing is trained."""
    ledger = Ledger.in_output(str(folder))
    ledger.write_json(f"plans/{SWEEP.title}.json", plan_to_json(plan(SWEEP, ledger, {})))
    return ledger


@pytest.mark.parametrize("what", ["pauses", "fails"])
def test_what_pauses_or_fails_while_a_sweep_is_read_is_read_the_next_time(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = declared(tmp_path)
    before = plan(SWEEP, ledger, {})

    def overtaken(ledger: Ledger, title: str) -> Plan:
        today = current_plan(ledger, title)
        if what == "pauses":
            advance(ledger, today)
        else:
            for trial in today.to_do:
                ledger.add_attempt(trial.key, {"error": "no", "final": True})
        return today

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "current_plan", overtaken)
        (cell,) = read_sweep(ledger, SWEEP.title).cells
    assert [(point.run.key, point.value) for point in cell.tried] == [(trial.key, None) for trial in before.to_do]
    (cell,) = read_sweep(ledger, SWEEP.title).cells
    assert len(cell.tried) > len(before.to_do)
    states = [point.run.state for point in cell.tried]
    assert states.count("failed" if what == "fails" else "paused") >= 2
    assert any(point.value is not None for point in cell.tried)


def test_trial_that_ends_while_a_plan_is_made_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = declared(tmp_path)
    first = plan(SWEEP, ledger, {}).to_do[0]
    ledger.pause(first.key, paused(first, 1))
    read = Ledger.paused

    def after_its_end(ledger: Ledger) -> dict[str, Json]:
        finish(ledger, first, Made({}, curve=curve_of(first)))
        return read(ledger)

    monkeypatch.setattr(Ledger, "paused", after_its_end)
    states = {status.trial.key: status.state for status in plan(SWEEP, ledger, {}).statuses}
    assert states[first.key] == "done"


def test_trials_that_a_search_has_paused_for_good_are_waited_for_no_more(tmp_path: Path) -> None:
    ledger = declared(tmp_path)
    results = load(tmp_path)[SWEEP.title]
    waited = 0
    while (today := plan(SWEEP, ledger, {})).to_do:
        assert not results.finished
        assert today.passed_over == frozenset(), "one of them may go on"
        waited += today.count("paused")
        advance(ledger, today)
    assert waited
    assert today.passed_over == {status.trial.key for status in today.statuses if status.state == "paused"} != set()
    assert results.finished


def test_mlflow_is_told_which_trials_are_paused_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = declared(tmp_path)
    while (today := plan(SWEEP, ledger, {})).to_do:
        advance(ledger, today)
    told: list[object] = []

    def note(*arguments: object) -> None:
        told.append(arguments[-1])

    run._register(cast(Tracker, SimpleNamespace(register=note)), today)
    runs = SimpleNamespace(
        outdated=lambda _: {},
        sync_trial=lambda *_: True,
        remove_strangers=lambda _: None,
        rename_trials=lambda _: None,
        shown_cells=lambda _: [CELL],
        sync_cell=note,
    )
    monkeypatch.setattr(mlflow_runs, "MlflowRuns", lambda *_: runs)
    assert verbs._send_runs(today, ledger, "sqlite:///x.db", "x") == ("", len(today.statuses))
    assert told == [today.passed_over] * 2


def test_trial_that_waits_at_a_rung_is_shown_with_what_it_has_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = declared(tmp_path)
    first = plan(SWEEP, ledger, {}).to_do[0]
    ledger.pause(first.key, paused(first, 1))
    (error,) = curve_of(first)[:1]
    state = {"epoch": 1, "history": [{"epoch": 1, "val/top1_err": error}], "code": cell_fingerprint(CELL)}
    checkpoint.save(ledger, first.key, 1, 0, checkpoint.Checkpoint({"w": torch.zeros(1)}, state))
    shown: list[CellRow] = []

    def train(*arguments: object) -> ExitCode:
        (view,) = (argument for argument in arguments if isinstance(argument, LiveView))
        shown.extend(view.progress.rows())
        view.progress.apply("started", first, {})  # it is among the best of its rung, and goes on
        shown.extend(view.progress.rows())
        return ExitCode.INTERRUPTED

    idle = SimpleNamespace(register=lambda *_: None, waiting=lambda: 0, close=lambda *_: 0)
    monkeypatch.setattr(tracker, "Tracker", lambda *_: idle)
    monkeypatch.setattr(run, "_run_trials", train)
    words = ["--profile", "paper", "--quiet", "--output", str(tmp_path)]
    settings = settle((CELL,), parser("s", "").parse_args(words))
    today = plan(SWEEP, settings.ledger, {})
    assert {status.trial.key: status.state for status in today.statuses}[first.key] == "paused"
    assert run._run(today, today, settings, {}, {})[0] == ExitCode.INTERRUPTED
    assert [row.best for row in shown] == [f"{error:.2f}"] * 2
    assert [row.running for row in shown] == [(), (RunningTrial(first.label, 1, EPOCHS, curve=(error,)),)]
