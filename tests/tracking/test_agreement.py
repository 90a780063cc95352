"""MLflow shows what the ledger says, whatever became of its store, by the sweep's command and by `reconcile`."""

import argparse
import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from crelu_models.tables import S2
from sweeps.__main__ import VERBS
from sweeps.cli import verbs
from sweeps.experiment.metrics import AVERAGE, TOP1
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.store.local_uris import sqlite_uri
from sweeps.tracking import tracker as tracker_module
from sweeps.tracking.layout import REPORT
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.run_index import Store
from sweeps.tracking.tracker import Tracker
from tests.support.sweeps import Made, make
from tests.support.tracked import START, finish, under_way

CELLS = (Cell("Baseline", S2, "synthetic", ALLCONV), Cell("CReLU", S2.crelu(1), "synthetic", ALLCONV))
SWEEP = Sweep("cifar_width", "demo", CELLS, Protocol(seeds=2))
TRIALS = [Trial(cell, seed=seed) for cell in CELLS for seed in range(2)]
ERRORS = dict(zip((trial.key for trial in TRIALS), (20.0, 30.0, 10.0, 11.0), strict=True))


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Path:
    """Return an output folder with two trials of each of two cells, which MLflow shows, and a half of it before."""
    output = tmp_path_factory.mktemp("output")
    for name in ("mlflow.db", "empty.db"):
        shutil.copy(empty, output / name)
    ledger = ledger_of(output)
    for trial in TRIALS:
        finish(ledger, trial, ERRORS[trial.key])
    ledger.write_json(f"plans/{SWEEP.title}.json", plan_to_json(plan(SWEEP, ledger, {})))
    runs = opened(output)
    for trial in TRIALS[:2]:  # the driver died before the averages of the cell
        runs.sync_trial(trial, "RUNNING")
    shutil.copy(output / "mlflow.db", output / "half.db")
    by_the_sweep(output)
    check(output)
    return output


@pytest.fixture
def output(agreeing: Path) -> Path:
    """Return the output folder with all trials on its ledger as they were before other tests; MLflow shows them."""
    ledger = ledger_of(agreeing)
    results = {trial: ledger.result(trial.key) or {} for trial in TRIALS}
    changed = [trial for trial, result in results.items() if (result.get("restarts"), result.get("epochs")) != (0, 3)]
    for trial in changed:
        finish(ledger, trial, ERRORS[trial.key])
        opened(agreeing).sync_trial(trial, "RUNNING")
    return agreeing


def ledger_of(output: Path) -> Ledger:
    return Ledger(f"{output}/ledger")


def store_of(output: Path) -> Store:
    return Store(f"sqlite:///{output}/mlflow.db", SWEEP.title, f"{output}/mlartifacts")


def opened(output: Path) -> MlflowRuns:
    return MlflowRuns(store_of(output), ledger_of(output), SWEEP)


def by_the_sweep(output: Path) -> None:
    """Do what the sweep's command does where nothing is left to train."""
    tracker = Tracker(store_of(output), ledger_of(output), SWEEP, pytest.fail)
    today = plan(SWEEP, ledger_of(output), {})
    skipped = [status.trial.key for status in today.statuses if status.state == "skipped"]
    tracker.register((status.trial for status in today.statuses), skipped)
    assert tracker.close(300.0) == 0


def by_reconcile(output: Path) -> None:
    options = argparse.Namespace(output=str(output), sweep=SWEEP.title, tracking_uri=None, experiment=None)
    assert verbs.reconcile(options) == 0


def restore(output: Path, backup: Path) -> None:
    """Bring an older content of the store back, also where MLflow has it open."""
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(output / "mlflow.db")) as target:
        source.backup(target)


def check(output: Path) -> None:
    """Compare the runs in MLflow with the ledger, one by one, by what MLflow shows alone."""
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    experiment = client.get_experiment_by_name(SWEEP.title)
    assert experiment is not None
    assert experiment.lifecycle_stage == "active"
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    of_trials = {run.data.tags["trial.key"]: run for run in runs if "trial.key" in run.data.tags}
    of_cells = {run.data.tags["cell.key"]: run for run in runs if "trial.key" not in run.data.tags}
    assert len(runs) == len(of_trials) + len(of_cells)
    results = ledger_of(output).results()
    assert of_trials.keys() == results.keys()
    assert of_cells.keys() == {cell.key for cell in CELLS}
    for key, run in of_trials.items():
        assert (run.info.status, run.info.end_time) == ("FINISHED", results[key]["finished_ms"])
        assert run.data.metrics[TOP1] == results[key]["metrics"][TOP1]
        content = ledger_of(output).read(f"trials/{key}/history.json")
        wanted = [(row["epoch"], row["train/loss"]) for row in json.loads(content or b"")]
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in points] == wanted
        assert {"lr", "dropout", "cell"} <= run.data.params.keys()
        assert run.inputs.dataset_inputs
        assert run.data.tags["mlflow.parentRunId"] == of_cells[run.data.tags["cell.key"]].info.run_id
        assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"trial.json", "tables"}
    for cell in CELLS:
        errors = [result["metrics"][TOP1] for result in results.values() if result["cell_key"] == cell.key]
        shown = of_cells[cell.key]
        assert shown.data.metrics[AVERAGE] == sum(errors) / len(errors)
        assert shown.data.metrics["agg/test_top1_err_n"] == len(errors)
        assert shown.info.status == ("FINISHED" if len(errors) == 2 else "RUNNING")


# What may become of a store: each takes an output folder whose runs are as the ledger says, and a copy of its store
# from when half of the trials were there.


def all_is_well(_output: Path, _half: Path) -> None:
    pass


def store_is_lost(output: Path, _half: Path) -> None:
    restore(output, output / "empty.db")


def an_older_backup_comes_back(output: Path, half: Path) -> None:
    restore(output, half)


def a_run_was_deleted(output: Path, _half: Path) -> None:
    runs = opened(output)
    runs.client.delete_run(runs.runs[TRIALS[1].key])


def a_cell_s_run_was_deleted(output: Path, _half: Path) -> None:
    runs = opened(output)
    runs.client.delete_run(runs.runs[f"cell:{CELLS[0].key}"])


def the_experiment_was_deleted(output: Path, _half: Path) -> None:
    runs = opened(output)
    runs.client.delete_experiment(runs.experiment)


def ghosts_of_lost_answers(output: Path, _half: Path) -> None:
    runs = opened(output)
    for name in (TRIALS[0].key, f"cell:{CELLS[1].key}"):
        stored = runs.client.get_run(runs.runs[name])
        tags = {key: tag for key, tag in stored.data.tags.items() if not key.startswith("mlflow.r")}
        runs.client.create_run(runs.experiment, tags=tags)


def a_run_was_left_open(output: Path, _half: Path) -> None:
    runs = opened(output)
    for name in (TRIALS[2].key, f"cell:{CELLS[1].key}"):
        runs.client.update_run(runs.runs[name], "RUNNING")


def a_run_has_another_s_number(output: Path, _half: Path) -> None:
    runs = opened(output)
    runs.client.log_metric(runs.runs[TRIALS[0].key], TOP1, 99.0, step=10**6)
    runs.client.log_metric(runs.runs[f"cell:{CELLS[0].key}"], AVERAGE, 99.0, step=10**6, timestamp=START * 2)


def a_note_is_missing(output: Path, _half: Path) -> None:
    ledger_of(output).delete(f"tracked/{TRIALS[3].key}.json")


def a_trial_was_trained_anew(output: Path, _half: Path) -> None:
    finish(ledger_of(output), TRIALS[0], ERRORS[TRIALS[0].key], restarts=1, finished_ms=START - 1_000_000)


def a_trial_came_to_fewer_epochs(output: Path, _half: Path) -> None:
    finish(ledger_of(output), TRIALS[0], ERRORS[TRIALS[0].key], epochs=2, finished_ms=START + 1)


def a_trial_was_forgotten(output: Path, _half: Path) -> None:
    ledger_of(output).forget(TRIALS[3].key)


def a_trial_is_of_no_plan(output: Path, _half: Path) -> None:
    ledger = ledger_of(output)
    stranger = Trial(CELLS[0], seed=77)
    finish(ledger, stranger, 5.0)
    opened(output).sync_trial(stranger, "RUNNING")
    ledger.forget(stranger.key)


def a_cell_was_taken_off_the_page(output: Path, _half: Path) -> None:
    stranger = Cell("AVR", S2.avr(1), "synthetic", ALLCONV)
    before = dataclasses.replace(SWEEP, cells=(*CELLS, stranger))
    MlflowRuns(store_of(output), ledger_of(output), before).sync_cell(stranger, [Trial(stranger)])


@pytest.mark.parametrize("bring", [by_the_sweep, by_reconcile])
@pytest.mark.parametrize(
    "becomes",
    [
        all_is_well,
        store_is_lost,
        an_older_backup_comes_back,
        a_run_was_deleted,
        a_cell_s_run_was_deleted,
        the_experiment_was_deleted,
        ghosts_of_lost_answers,
        a_run_was_left_open,
        a_run_has_another_s_number,
        a_note_is_missing,
        a_trial_was_trained_anew,
        a_trial_came_to_fewer_epochs,
        a_trial_was_forgotten,
        a_trial_is_of_no_plan,
        a_cell_was_taken_off_the_page,
    ],
)
def test_mlflow_shows_what_the_ledger_says(
    output: Path, becomes: Callable[[Path, Path], None], bring: Callable[[Path], None]
) -> None:
    becomes(output, output / "half.db")
    bring(output)
    check(output)


# While the sweep runs


@pytest.fixture
def alone(tmp_path: Path, empty: Path) -> Path:
    """Return an output folder of its own with an empty store and no result."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    ledger_of(tmp_path).write_json(f"plans/{SWEEP.title}.json", plan_to_json(plan(SWEEP, ledger_of(tmp_path), {})))
    return tmp_path


@pytest.mark.parametrize("method", ["create_run", "log_batch", "log_inputs", "set_terminated", "log_artifacts"])
def test_a_lost_answer_doubles_nothing(alone: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Each first request of a kind is obeyed, and its answer is lost."""
    lost: list[str] = []
    send = getattr(MlflowClient, method)

    def sending(self: MlflowClient, *arguments: Any, **words: Any) -> Any:
        answer = send(self, *arguments, **words)
        if len(lost) < 2:
            lost.append(method)
            raise ConnectionError("the answer is lost")
        return answer

    monkeypatch.setattr(MlflowClient, method, sending)
    monkeypatch.setattr(tracker_module, "PAUSE", 0.0)
    said: list[str] = []
    tracker = Tracker(store_of(alone), ledger_of(alone), SWEEP, said.append)
    for trial in TRIALS:
        finish(ledger_of(alone), trial, ERRORS[trial.key])
        tracker.enqueue(trial)
    tracker.register(TRIALS)
    assert tracker.close(300.0) == 0
    assert len(lost) == 2
    assert len(said) % 2 == 0  # away and back
    check(alone)


def test_a_cell_that_was_given_up_is_over(alone: Path) -> None:
    ledger = ledger_of(alone)
    first, second = TRIALS[:2]
    finish(ledger, first, 90.0)
    under_way(ledger, second, 1)
    tracker = Tracker(store_of(alone), ledger, SWEEP, pytest.fail)
    tracker.enqueue(first)
    tracker.enqueue(second)
    tracker.register([first, second], skipped=[second.key])
    assert tracker.close(300.0) == 0
    runs = opened(alone)
    states = {name: runs.index.states[runs.runs[name]] for name in (first.key, second.key, f"cell:{CELLS[0].key}")}
    assert list(states.values()) == ["FINISHED", "KILLED", "FAILED"]


def test_a_cell_whose_search_has_paused_a_trial_for_good_is_finished(alone: Path) -> None:
    ledger = ledger_of(alone)
    first, second = TRIALS[:2]
    finish(ledger, first, 20.0)
    ledger.pause(second.key, {"epoch": 1, "curve": [50.0]})
    tracker = Tracker(store_of(alone), ledger, SWEEP, pytest.fail)
    tracker.enqueue(first)
    tracker.register([first, second], paused=[second.key])
    assert tracker.close(300.0) == 0
    runs = opened(alone)
    assert runs.index.states[runs.runs[f"cell:{CELLS[0].key}"]] == "FINISHED"


def test_a_sweep_of_which_mlflow_shows_all_asks_and_sends_nothing(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_the_sweep(output)
    asked: list[str] = []
    for name in [
        name for name in dir(MlflowClient) if name.startswith(("get_", "log_", "set_", "up", "de", "se", "cr"))
    ]:
        method = getattr(MlflowClient, name)

        def call(*arguments: Any, name: str = name, method: Any = method, **words: Any) -> Any:
            asked.append(name)
            return method(*arguments, **words)

        monkeypatch.setattr(MlflowClient, name, call)
    by_the_sweep(output)
    assert sorted(asked) == ["get_experiment_by_name", "search_experiments", "search_experiments", "search_runs"]


@pytest.mark.parametrize("reported", [True, False])
def test_reconcile_sends_the_report_too_where_there_is_one(
    alone: Path, capsys: pytest.CaptureFixture[str], reported: bool
) -> None:
    make(ledger_of(alone), SWEEP, lambda _: Made({TOP1: 20.0}))
    page = alone / "reports" / SWEEP.title / "report.html"
    if reported:
        page.parent.mkdir(parents=True)
    by_reconcile(alone)
    assert page.exists() == reported
    client = opened(alone).client
    experiment = client.get_experiment_by_name(SWEEP.title)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    sent = {Path(item.path).name for run in runs for item in client.list_artifacts(run.info.run_id, REPORT)}
    assert ("report.html" in sent) == reported
    assert ("with its rows" in capsys.readouterr().out) == reported


def test_report_that_cannot_be_written_is_said_and_the_runs_are_there(
    alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("a dropout was chosen on test data")

    make(ledger_of(alone), SWEEP, lambda _: Made({TOP1: 20.0}))
    (alone / "reports" / SWEEP.title).mkdir(parents=True)
    monkeypatch.setattr("sweeps.report.build.make", refuse)
    by_reconcile(alone)
    assert capsys.readouterr().out.endswith("report     none: a dropout was chosen on test data\n")


def test_reconcile_leaves_the_runs_to_a_driver_that_trains_the_sweep(alone: Path) -> None:
    """It would delete the run that the driver has created and not yet filled."""
    by_the_sweep(alone)
    client = MlflowClient(f"sqlite:///{alone}/mlflow.db")
    runs = opened(alone)
    begun = client.create_run(runs.experiment, tags=runs.owner.tags).info.run_id
    with Lease(ledger_of(alone), SWEEP.title), pytest.raises(ValueError, match="sends MLflow what it lacks"):
        by_reconcile(alone)
    assert client.get_run(begun).info.lifecycle_stage == "active"
    by_reconcile(alone)
    assert client.get_run(begun).info.lifecycle_stage == "deleted"
    by_reconcile(alone)  # the lease was given back


@pytest.mark.parametrize(
    ("sweep", "where", "asked", "variable", "expected"),
    [
        (SWEEP.title, "mlflow.db", "", "", "mine"),
        (SWEEP.title, "mlflow.db", "", "usual", "mine"),
        (SWEEP.title, "mlflow.db", "another", "usual", "another"),
        (SWEEP.title, "other.db", "", "", SWEEP.title),
        ("of_the_same_cells", "mlflow.db", "", "usual", "usual"),
        ("of_the_same_cells", "mlflow.db", "", "", SWEEP.title),
    ],
)
def test_reconcile_sends_to_the_experiment_that_has_the_runs(
    alone: Path, monkeypatch: pytest.MonkeyPatch, sweep: str, where: str, asked: str, variable: str, expected: str
) -> None:
    experiments: list[str] = []

    def send(_plan: object, _ledger: object, _uri: str, experiment: str) -> tuple[str, int]:
        experiments.append(experiment)
        return "", 0

    note = {"uri": f"sqlite:///{alone}/{where}", "experiment": "mine", "run": "r"}
    ledger_of(alone).write_note(f"tracked/{TRIALS[0].key}.json", note | {"sweeps": {sweep: note}})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", variable)
    monkeypatch.setattr(verbs, "_send_runs", send)
    parser = argparse.ArgumentParser()
    VERBS["reconcile"][1](parser)
    options = parser.parse_args([SWEEP.title, *(["--experiment", asked] if asked else [])])
    options.output = str(alone)
    assert verbs.reconcile(options) == 0
    assert experiments == [expected]


# Stores that take no runs


def damage(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("update alembic_version set version_num = 'ffffffffffff'")


@pytest.mark.parametrize(("becomes", "reason"), [(damage, "damaged"), (newer, "another version of MLflow")])
def test_a_store_that_takes_no_runs_is_exit_4_and_a_sentence(
    alone: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    becomes: Callable[[Path], None],
    reason: str,
) -> None:
    finish(ledger_of(alone), TRIALS[0], 20.0)
    becomes(alone / "mlflow.db")
    before = (alone / "mlflow.db").read_bytes()
    options = argparse.Namespace(output=str(alone), sweep=SWEEP.title, tracking_uri=None, experiment=None)
    assert verbs.reconcile(options) == 4
    error = capsys.readouterr().err
    assert reason in error
    assert str(alone / "mlflow.db") in error
    assert "Traceback" not in error
    said: list[str] = []
    monkeypatch.setattr(tracker_module, "GRACE", 1e9)
    tracker = Tracker(store_of(alone), ledger_of(alone), SWEEP, said.append)
    tracker.register(TRIALS)
    assert tracker.close(120.0) == 1
    assert not tracker.thread.is_alive(), "a trouble that lasts is waited for"
    (sentence,) = said
    assert reason in sentence
    assert (alone / "mlflow.db").read_bytes() == before


# Folders that are moved or copied with their store


@pytest.mark.parametrize("is_copy", [True, False])
def test_the_artifacts_lie_in_the_folder_also_after_it_was_moved_or_copied(
    alone: Path, tmp_path_factory: pytest.TempPathFactory, is_copy: bool
) -> None:
    for trial in TRIALS:
        finish(ledger_of(alone), trial, ERRORS[trial.key])
    by_the_sweep(alone)
    before = sorted(path.relative_to(alone) for path in alone.rglob("mlartifacts/**/*"))
    other = tmp_path_factory.mktemp("other") / "a?b 50%"  # signs that a URI has for itself
    shutil.copytree(alone, other) if is_copy else alone.rename(other)
    assert (
        verbs.reconcile(argparse.Namespace(output=str(other), sweep=SWEEP.title, tracking_uri=None, experiment=None))
        == 0
    )
    client = MlflowClient(sqlite_uri(f"{other}/mlflow.db"))
    experiment = client.get_experiment_by_name(SWEEP.title)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 6
    for run in runs:
        if "trial.key" in run.data.tags:
            assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"trial.json", "tables"}
            assert list(other.rglob(f"mlartifacts/{run.info.run_id}/**/trial.json"))
    assert sorted(path.relative_to(alone) for path in alone.rglob("mlartifacts/**/*")) == (before if is_copy else [])
    # MLflow's own, this one, and that of the other folder, where it is still there.
    assert len(client.search_experiments()) == (3 if is_copy else 2)
    if is_copy:
        by_the_sweep(alone)
        check(alone)


def test_a_folder_of_two_names_is_one(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    finish(ledger_of(alone), TRIALS[0], 20.0)
    experiment = opened(alone).experiment
    link = tmp_path_factory.mktemp("link") / "output"
    link.symlink_to(alone)
    assert opened(link).experiment == experiment
