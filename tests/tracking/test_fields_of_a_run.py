"""What a run says of itself: the fields in which cells differ, their factors, and the commit of the page."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import pytest

from crelu_models.model import Model
from crelu_models.tables import S2
from sweeps.experiment.grid import grid
from sweeps.experiment.recipe import ALLCONV, Stage
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.git import page_source
from sweeps.store.ledger import Ledger
from sweeps.tracking.layout import params_of, varied_fields
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.run_index import Store
from tests.support.tracked import finish

CELLS = grid(
    lambda decay, act: Cell(
        f"{act} {decay:g}", S2.activation(act, 1), "synthetic", dataclasses.replace(ALLCONV, weight_decay=decay)
    ),
    decay=(0.001, 0.01),
    act=("relu", "crelu"),
)
SWEEP = Sweep("fields", "demo", CELLS, Protocol())


def git(folder: Path, *words: str) -> None:
    subprocess.run(("git", "-c", "user.name=a", "-c", "user.email=a@b", *words), cwd=folder, check=True)


def test_fields_in_which_cells_differ_and_their_factors_are_parameters(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[3])
    runs = MlflowRuns(store, ledger, SWEEP)
    runs.sync_trial(trial, "RUNNING")
    for key in (trial.key, f"cell:{CELLS[3].key}"):
        params = runs.client.get_run(runs.runs[key]).data.params
        assert params["recipe.weight_decay"] == "0.01"
        assert (params["factor.decay"], params["factor.act"]) == ("0.01", "crelu")
        assert not {"recipe.momentum", "recipe.lr", "recipe.epochs"} & params.keys()


def test_a_varied_schedule_is_written_as_json() -> None:
    other = dataclasses.replace(CELLS[0].recipe, stages=(Stage(1, 1.0), Stage(9, 0.5)))
    cells = (CELLS[0], dataclasses.replace(CELLS[0], recipe=other))
    assert varied_fields(cells) == ("recipe.stages",)
    assert params_of(Trial(cells[1]), "a", ("recipe.stages",))["recipe.stages"] == "[[1, 1.0, 1.0], [9, 0.5, 1.0]]"
    assert varied_fields(cells[:1]) == ()


def test_arguments_of_models_and_tasks_in_which_cells_differ_are_parameters(store: Store, ledger: Ledger) -> None:
    plain = Cell("plain", Model("nets:small", size=32, depth=2, wide=True), "synthetic", ALLCONV)
    deep = Cell("deep", Model("nets:small", size=64, depth=4, wide=True, blocks=[1, 2]), "synthetic", ALLCONV)
    own = Cell("own", S2, "synthetic", ALLCONV, task="page:train")
    shown = {}
    runs = MlflowRuns(store, ledger, Sweep("models", "demo", (plain, deep, own), Protocol()))
    for cell in (plain, deep, own):
        trial = Trial(cell)
        runs.sync_trial(trial, "RUNNING")
        of_trial, of_cell = (runs.client.get_run(runs.runs[key]).data.params for key in (trial.key, f"cell:{cell.key}"))
        shown[cell.label] = {name: of_trial[name] for name in of_trial if name == "task" or name.startswith("model.")}
        assert shown[cell.label].items() <= of_cell.items()
    assert shown == {
        "plain": {"model.depth": "2", "model.wide": "True", "model.size": "32"},
        "deep": {"model.depth": "4", "model.wide": "True", "model.blocks": "[1, 2]", "model.size": "64"},
        "own": {"task": "page:train"},
    }
    assert varied_fields((plain, dataclasses.replace(plain, label="again"))) == ()
    searched = Trial(plain, choices=(("model.depth", 3),))
    assert params_of(searched, "a", varied_fields((plain, deep)))["model.depth"] == 3


def test_a_run_has_the_commit_of_the_page_that_trained_it(
    store: Store, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "mine"
    (repository / "pages").mkdir(parents=True)
    page = repository / "pages/birds.py"
    page.write_text("cells")
    main = types.ModuleType("__main__")
    main.__file__ = str(page)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert page_source() == {"mlflow.source.type": "LOCAL", "mlflow.source.name": "birds.py"}
    git(repository, "init", "-q")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    clean = page_source()
    assert (len(clean["mlflow.source.git.commit"]), clean["git.dirty"]) == (40, "false")
    page.write_text("other cells")
    dirty = page_source()
    assert dirty == clean | {"git.dirty": "true"}
    before, now, later = (Trial(cell) for cell in CELLS[:3])
    finish(ledger, before, 20.0)  # in 2026, long ago by the clock of this process
    finish(ledger, later, 20.0, finished_ms=4_000_000_000_000)
    runs = MlflowRuns(store, ledger, SWEEP)
    for trial in (before, now, later):
        runs.sync_trial(trial, "RUNNING")
    tags = [runs.client.get_run(runs.runs[trial.key]).data.tags for trial in (before, now, later)]
    assert "git.dirty" not in tags[0]
    for known in tags[1:]:
        assert {name: known[name] for name in dirty} == dirty
