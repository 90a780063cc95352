"""A store that is moved with its output folder has each run once, also when it comes back."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.run_index import Store
from tests.support.sweeps import BASELINE
from tests.support.tracked import finish

SWEEP = Sweep("cifar_width", "demo", (BASELINE,), Protocol(seeds=2))
TRIALS = [Trial(BASELINE, seed=seed) for seed in range(2)]


def sent(folder: Path) -> MlflowRuns:
    """Bring the store of an output folder up to date with its ledger."""
    store = Store(f"sqlite:///{folder}/mlflow.db", SWEEP.title, f"{folder}/mlartifacts")
    runs = MlflowRuns(store, Ledger(str(folder / "ledger")), SWEEP)
    for trial in TRIALS:
        runs.sync_trial(trial, "KILLED")
    return runs


def shown(runs: MlflowRuns) -> Counter[str]:
    """Count the runs of each trial in all experiments that a person sees."""
    experiments = [each.experiment_id for each in runs.client.search_experiments()]
    mlflow_runs = runs.client.search_runs(experiments, max_results=1000)
    return Counter(run.data.tags["trial.key"] for run in mlflow_runs if "trial.key" in run.data.tags)


ONCE = dict.fromkeys((trial.key for trial in TRIALS), 1)


@pytest.fixture
def home(empty: Path, tmp_path: Path) -> Path:
    """Return an output folder with two finished trials and an MLflow store that has them."""
    folder = tmp_path / "home"
    for trial in TRIALS:
        finish(Ledger(str(folder / "ledger")), trial, 10.0)
    shutil.copy(empty, folder / "mlflow.db")
    sent(folder)
    return folder


def test_store_that_is_moved_and_comes_back_has_each_run_once(home: Path, tmp_path: Path) -> None:
    first = sent(home).experiment
    away = tmp_path / "away"
    shutil.move(home, away)
    assert shown(sent(away)) == ONCE
    shutil.move(away, home)
    back = sent(home)
    assert back.experiment == first
    assert shown(back) == ONCE
    shutil.move(home, away)  # and once more there: the experiment that was made for that place is taken again
    again = sent(away)
    assert shown(again) == ONCE
    assert len(again.client.search_experiments(view_type=3)) == 3  # the default one, and one for each place


def test_copy_of_a_store_keeps_the_runs_of_its_original_aside(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    runs = sent(copy)
    assert set(shown(runs).values()) == {2}
    assert shown(sent(home)) == ONCE
    shutil.rmtree(home)
    assert shown(sent(copy)) == ONCE


def test_third_copies_that_an_earlier_version_kept_go(home: Path) -> None:
    runs = sent(home)
    aside = runs.client.create_experiment("x", f"{home}/mlartifacts")
    runs.client.rename_experiment(aside, f"{SWEEP.title} of {home}, {aside}")
    foreign = runs.client.create_experiment(f"{SWEEP.title} of mine", f"{home}/mlartifacts")
    assert sent(home).experiment == runs.experiment
    assert {each.experiment_id for each in runs.client.search_experiments()} == {"0", runs.experiment, foreign}
