"""MLflow shows all of a declared sweep also after a command that asks for a part of it."""

from pathlib import Path

import mlflow
import pytest
import torch

from sweeps.cli import run
from sweeps.cli.live_view import LiveView
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import asked_part, settle
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import Plan, plan
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell
from sweeps.store import checkpoint
from sweeps.tracking.run_index import Store
from tests.support.sweeps import BASELINE, Made, finish

# Two labels that begin alike: the second is named by its place among all cells.
CELLS = (
    BASELINE,
    Cell("CReLU everywhere", BASELINE.net.crelu(1, 2), "cifar10", BASELINE.recipe),
    Cell("CReLU everywhere else", BASELINE.net.crelu(3, 4), "cifar10", BASELINE.recipe),
)
SWEEP = Sweep("part", "paper", CELLS, Protocol(seeds=2))


def test_cells_that_are_not_asked_for_are_brought_to_mlflow_under_their_names(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["--profile", "paper", "--only", "* else", "--quiet", "--output", str(tmp_path)]
    options = parser("part", "").parse_args([*words, "--tracking-uri", store.uri, "--experiment", store.experiment])
    settings = settle(CELLS, options)
    asked = asked_part(SWEEP, options)
    for trial in expand(SWEEP, {}):
        if (trial.cell, trial.seed) != (CELLS[1], 1):
            finish(settings.ledger, trial, Made({TOP1: 10.0 + trial.seed}))
    declared, today = (plan(sweep, settings.ledger, {}) for sweep in (SWEEP, asked))
    assert ([cell.label for cell in today.sweep.cells], today.to_do) == (["CReLU everywhere else"], [])
    assert run._run(declared, today, settings, {}, {})[0] == ExitCode.DONE

    client = mlflow.MlflowClient(store.uri)
    experiment = client.get_experiment_by_name(store.experiment)
    runs = client.search_runs([experiment.experiment_id])
    cells = {tracked_run.info.run_name: tracked_run for tracked_run in runs if "trial.key" not in tracked_run.data.tags}
    assert sorted(cells) == ["03 CReLU everywhere else", "Baseline", "CReLU everywhere"]
    assert len(runs) - len(cells) == 5
    shown = {name: (cell.info.status, cell.data.metrics["agg/test_top1_err_n"]) for name, cell in cells.items()}
    assert shown == {
        "Baseline": ("FINISHED", 2.0),
        "CReLU everywhere": ("RUNNING", 1.0),
        "03 CReLU everywhere else": ("FINISHED", 2.0),
    }
    assert "1 of 2 trainings planned" in cells["CReLU everywhere"].data.tags["mlflow.note.content"]


def test_trial_that_a_killed_driver_left_is_shown_where_it_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--profile", "paper", "--quiet", "--output", str(tmp_path), "--tracking-uri", store.uri]
    settings = settle(CELLS, parser("left", "").parse_args([*words, "--experiment", store.experiment]))
    first, second, *_ = expand(SWEEP, {})
    rows = [{"epoch": epoch, "val/top1_err": 50.0 - epoch} for epoch in (1, 2, 3)]
    state = {"epoch": 3, "history": rows, "code": code_fingerprint(second.cell.net)}
    checkpoint.save(settings.ledger, second.key, 3, 0, checkpoint.Checkpoint({"w": torch.zeros(1)}, state))
    shown: list[tuple[dict[str, int], dict[str, float]]] = []

    def train(*arguments: object) -> ExitCode:
        (view,) = (argument for argument in arguments if isinstance(argument, LiveView))
        shown.append((dict(view.progress.epochs), dict(view.progress.best)))
        return ExitCode.INTERRUPTED

    monkeypatch.setattr(run, "_run_trials", train)
    today = plan(SWEEP, settings.ledger, {})
    assert run._run(today, today, settings, {}, {})[0] == ExitCode.INTERRUPTED
    assert shown == [({second.key: 3}, {second.key: 47.0})]
    assert first.key not in shown[0][0]


def test_part_that_was_trained_leaves_the_plan_of_all_cells(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--profile", "paper", "--only", "Baseline", "--quiet", "--output", str(tmp_path)]
    options = parser("part", "").parse_args([*words, "--tracking-uri", store.uri, "--experiment", store.experiment])
    settings = settle(CELLS, options)
    asked = asked_part(SWEEP, options)

    def train(today: Plan, *_: object) -> ExitCode:
        for trial in today.to_do:
            finish(settings.ledger, trial, Made({TOP1: 10.0 + trial.seed}))
        return ExitCode.DONE

    monkeypatch.setattr(run, "_run_trials", train)
    before = [plan(sweep, settings.ledger, {}) for sweep in (SWEEP, asked)]
    _, declared, today = run._run(before[0], before[1], settings, {}, {})
    assert (today.count("done"), today.count("new")) == (2, 0)
    assert (declared.sweep, declared.count("done"), declared.count("new")) == (SWEEP, 2, 4)
