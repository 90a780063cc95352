"""MLflow is a projection of the ledger: complete, without doubles, right in status, whatever happened before."""

import dataclasses
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from crelu_models.spec import Net
from crelu_models.tables import S2
from sweeps.experiment.metrics import Metric
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.tracking.layout import VIEW, VIEW_TAG, experiment_tags, params_of, placement
from sweeps.tracking.mlflow_client import all_runs, connected
from sweeps.tracking.mlflow_runs import MlflowRuns, is_tracked
from sweeps.tracking.run_index import Store
from sweeps.tracking.tracker import Tracker
from tests.support.postgres import Postgres
from tests.support.tracked import finish, points, rows, runs, under_way
from tests.support.waiting import until

CELLS = (Cell("Baseline", S2, "synthetic", ALLCONV, "1", "Baseline"), Cell("CReLU", S2.crelu(1), "synthetic", ALLCONV))
SWEEP = Sweep("cifar_width", "demo", CELLS, Protocol(seeds=2))


@pytest.mark.parametrize(
    ("proof", "hardware", "exact"),
    [
        ({"code": "c", "device": "H100", "kills": 5}, {"device": "H100"}, True),
        ({"code": "c", "device": "a CPU", "kills": 5}, {"device": "H100"}, False),
        ({"code": "older", "device": "H100", "kills": 5}, {"device": "H100"}, False),
        ({"code": "c", "device": "H100", "kills": 5}, {"device": "H100", "kernels": "fastest"}, False),
        ({"code": "c", "device": "H100", "kills": 5}, {"device": "H100", "kernels": "torch"}, True),
        ({"code": "c", "device": "H100", "kills": 0}, {"device": "H100"}, False),  # by an earlier version
        (None, {"device": "H100"}, False),
    ],
)
def test_a_run_says_that_its_resume_is_exact_where_it_was_proved(
    store: Store, ledger: Ledger, proof: dict[str, Any] | None, hardware: dict[str, str], exact: bool
) -> None:
    trial = Trial(CELLS[0])
    if proof:
        ledger.write_json(f"verified/{trial.cell.key}.json", proof)
    finish(ledger, trial, 20.0)
    result = ledger.results()[trial.key]
    ledger.commit(trial.key, result | {"hardware": hardware})
    projection = MlflowRuns(store, ledger, SWEEP)
    projection.sync_trial(trial, "RUNNING")
    assert (projection.client.get_run(projection.runs.get(trial.key)).data.tags.get("resume") == "exact") is exact


def test_a_run_that_went_on_in_another_precision_is_not_exact_whatever_was_proved(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0])
    ledger.write_json(f"verified/{trial.cell.key}.json", {"code": "c", "device": "a CPU", "kills": 5})
    finish(ledger, trial, 20.0)
    said = "resume=approximate: after epoch 1 the training goes on in fp32"
    mixed = {"precision": "bf16, fp32", "resume": "approximate", "events": [said], "hardware": {"device": "a CPU"}}
    ledger.commit(trial.key, ledger.results()[trial.key] | mixed)
    projection = MlflowRuns(store, ledger, SWEEP)
    projection.sync_trial(trial, "RUNNING")
    tags = projection.client.get_run(projection.runs.get(trial.key)).data.tags
    assert (tags["resume"], tags["precision"]) == ("approximate", "bf16, fp32")


def test_a_function_that_does_not_say_that_it_is_exact_may_be_proved_so(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0])
    ledger.write_json(f"verified/{trial.cell.key}.json", {"code": "c", "device": "a CPU", "kills": 5})
    finish(ledger, trial, 20.0)
    said = {"resume": "approximate", "resumed": 1, "events": [], "hardware": {"device": "a CPU"}}
    ledger.commit(trial.key, ledger.results()[trial.key] | said)
    projection = MlflowRuns(store, ledger, SWEEP)
    projection.sync_trial(trial, "RUNNING")
    tags = projection.client.get_run(projection.runs[trial.key]).data.tags
    assert (tags["resume"], tags["flags"]) == ("exact", "")


@pytest.mark.parametrize(
    ("change", "flags"),
    [({}, ""), ({"partial": True}, "partial data"), ({"partial": True, "restarts": 2}, "partial data,restarted:2")],
)
def test_flags_of_a_training_are_a_tag_of_its_run(
    store: Store, ledger: Ledger, change: dict[str, object], flags: str
) -> None:
    trial = Trial(CELLS[0])
    finish(ledger, trial, 20.0)
    ledger.commit(trial.key, ledger.results()[trial.key] | change)
    projection = MlflowRuns(store, ledger, SWEEP)
    projection.sync_trial(trial, "RUNNING")
    assert projection.client.get_run(projection.runs.get(trial.key)).data.tags["flags"] == flags


def test_trial_is_one_run_under_its_cell(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0], seed=1)
    projection = MlflowRuns(store, ledger, SWEEP)
    under_way(ledger, trial, 2)
    projection.sync_trial(trial, "RUNNING")
    run = projection.client.get_run(projection.runs.get(trial.key))
    assert run.info.status == "RUNNING"
    assert points(projection, trial, "train/loss") == [(1, 2.0), (2, 1.0)]
    parent = projection.client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "Baseline"
    assert run.data.tags["paper.table"] == "1"
    assert run.data.params["dropout"] == "none"
    assert run.inputs.dataset_inputs[0].dataset.digest == "abc"
    finish(ledger, trial, 9.5)
    projection.sync_trial(trial, "RUNNING")
    run = projection.client.get_run(projection.runs.get(trial.key))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final/test_top1_err"] == 9.5
    assert points(projection, trial, "train/loss") == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    names = {item.path for item in projection.client.list_artifacts(run.info.run_id)}
    assert names == {"trial.json", "tables"}
    assert len(runs(projection)) == 2


def test_projecting_again_changes_nothing(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0])
    finish(ledger, trial, 9.5)
    for _ in range(3):  # three drivers, each of which knows nothing of what the others sent
        projection = MlflowRuns(store, ledger, SWEEP)
        projection.sync_trial(trial, "RUNNING")
    assert points(projection, trial, "train/loss") == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    assert len(points(projection, trial, "final/test_top1_err")) == 1
    assert len(runs(projection)) == 2


def test_of_two_runs_of_a_trial_the_fuller_stays(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0])
    finish(ledger, trial, 9.5)
    projection = MlflowRuns(store, ledger, SWEEP)
    projection.sync_trial(trial, "RUNNING")
    run_id = projection.runs.get(trial.key)
    projection.client.create_run(projection.experiment, tags=projection.owner.tags | {"trial.key": trial.key})
    again = MlflowRuns(store, ledger, SWEEP)
    assert again.runs.get(trial.key) == run_id
    assert len(runs(again)) == 2


def test_training_begun_anew_begins_a_new_run(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0])
    under_way(ledger, trial, 3)
    first = MlflowRuns(store, ledger, SWEEP)
    first.sync_trial(trial, "RUNNING")
    ledger.delete(f"checkpoints/{trial.key}")
    under_way(ledger, trial, 1, restarts=1)
    second = MlflowRuns(store, ledger, SWEEP)
    second.sync_trial(trial, "RUNNING")
    assert points(second, trial, "train/loss") == [(1, 3.0)]
    assert len(runs(second)) == 2


def test_epoch_trained_again_after_a_damaged_checkpoint_is_not_doubled(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0])
    under_way(ledger, trial, 3)
    MlflowRuns(store, ledger, SWEEP).sync_trial(trial, "RUNNING")
    # The same values at another time: what exact resumption from an older checkpoint gives.
    finish(ledger, trial, 9.5, epochs=4)
    path = f"trials/{trial.key}/history.json"
    later = [row | {"time_ms": row["time_ms"] + 5e5} for row in json.loads(ledger.read(path) or b"")]
    ledger.write(path, json.dumps(later).encode())
    for _ in range(2):
        projection = MlflowRuns(store, ledger, SWEEP)
        projection.sync_trial(trial, "RUNNING")
    assert [step for step, _ in points(projection, trial, "train/loss")] == [1, 2, 3, 4]
    assert len(points(projection, trial, "final/test_top1_err")) == 1
    assert len(runs(projection)) == 2


def test_statuses_follow_the_ledger(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELLS[0])
    under_way(ledger, trial, 1)
    projection = MlflowRuns(store, ledger, SWEEP)

    def status() -> str:
        return str(projection.client.get_run(projection.runs.get(trial.key)).info.status)

    for state in ("RUNNING", "KILLED", "RUNNING"):
        projection.sync_trial(trial, state)
        assert status() == state
    ledger.add_attempt(trial.key, {"error": "ValueError: no", "final": True})
    projection.sync_trial(trial, "RUNNING")
    assert status() == "FAILED"


def test_cell_carries_average_error_and_count(store: Store, ledger: Ledger) -> None:
    trials = [Trial(CELLS[0], seed=seed) for seed in (0, 1)]
    projection = MlflowRuns(store, ledger, SWEEP)
    statuses = []
    for trial, error in zip(trials, (9.0, 10.0), strict=True):
        finish(ledger, trial, error)
        projection.sync_trial(trial, "RUNNING")
        for _ in range(2):
            projection.sync_cell(CELLS[0], trials)
        statuses.append(projection.client.get_run(projection.runs[f"cell:{CELLS[0].key}"]).info.status)
    assert statuses == ["RUNNING", "FINISHED"]
    parent = projection.client.get_run(projection.runs[f"cell:{CELLS[0].key}"])
    assert parent.data.metrics["agg/test_top1_err_mean"] == 9.5
    assert parent.data.metrics["agg/test_top1_err_se"] == pytest.approx(0.5)
    assert parent.data.metrics["agg/test_top1_err_n"] == 2


def test_tracker_brings_all_marks_home(store: Store, ledger: Ledger) -> None:
    trials = [Trial(cell, seed=seed) for cell in CELLS for seed in range(2)]
    said: list[str] = []
    tracker = Tracker(store, ledger, SWEEP, said.append)
    tracker.register(trials)
    for trial in trials:
        finish(ledger, trial, 9.0)
        for _ in range(50):
            tracker.enqueue(trial)
    assert tracker.close(300.0) == 0
    assert said == []
    for trial in trials:
        result = ledger.result(trial.key)
        assert result is not None
        assert is_tracked(ledger, store, SWEEP.title, result)
        assert not is_tracked(ledger, dataclasses.replace(store, uri="sqlite:///elsewhere.db"), SWEEP.title, result)
        assert not is_tracked(ledger, store, "another sweep", result)


def test_tracker_whose_driver_has_ended_says_nothing_of_mlflow(store: Store, ledger: Ledger) -> None:
    said: list[str] = []
    with Lease(ledger, SWEEP.title) as lease:
        guarded = Ledger(ledger.root, lease.check)
    tracker = Tracker(store, guarded, SWEEP, said.append)
    tracker.enqueue(Trial(CELLS[0]))
    until(lambda: bool(said) or not tracker.thread.is_alive(), "the end of the tracker, or a word of it", 300)
    assert said == []
    assert tracker.close(1.0) == 1


def test_trial_that_moves_all_the_time_keeps_no_other_waiting(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    restless, quiet = Trial(CELLS[0]), Trial(CELLS[1])
    under_way(ledger, restless, 1)
    under_way(ledger, quiet, 2)
    send = MlflowRuns.sync_trial

    def sending(self: MlflowRuns, trial: Trial, state: str) -> bool:
        done = send(self, trial, state)
        if trial == restless:
            tracker.enqueue(restless)  # it has moved again before its news were sent
        return done

    monkeypatch.setattr(MlflowRuns, "sync_trial", sending)
    tracker = Tracker(store, ledger, SWEEP, print)
    tracker.enqueue(restless)
    tracker.enqueue(quiet)

    client = MlflowClient(store.uri)

    def sent() -> bool:
        # By MLflow alone: another MlflowRuns would take the run that the tracker is creating for one that never was
        # complete, and delete it, time and again.
        experiment = client.get_experiment_by_name(store.experiment)
        shown = all_runs(client, experiment.experiment_id) if experiment is not None else ()
        losses = [
            client.get_metric_history(run.info.run_id, "train/loss")
            for run in shown
            if run.data.tags.get("trial.key") == quiet.key
        ]
        return [len(history) for history in losses] == [2]

    until(sent, "both epochs of the quiet trial", 300)
    monkeypatch.setattr(MlflowRuns, "sync_trial", send)
    assert tracker.close(300.0) == 0


def test_an_epoch_costs_the_server_one_request(store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(CELLS[0])
    under_way(ledger, trial, 1)
    projection = MlflowRuns(store, ledger, SWEEP)
    projection.sync_trial(trial, "RUNNING")
    asked: list[str] = []
    for name in ("get_run", "log_batch", "set_tag", "update_run", "set_terminated", "get_metric_history"):
        monkeypatch.setattr(projection.client, name, _counted(getattr(projection.client, name), asked))
    for epochs in (2, 3, 3):
        under_way(ledger, trial, epochs)
        projection.sync_trial(trial, "RUNNING")
    assert asked == ["log_batch", "log_batch"]
    finish(ledger, trial, 9.5)
    assert projection.sync_trial(trial, "RUNNING")
    assert asked.count("set_terminated") == 1


def _counted(call: Any, asked: list[str]) -> Any:
    def counting(*arguments: Any, **more: Any) -> Any:
        asked.append(call.__name__)
        return call(*arguments, **more)

    return counting


def test_store_that_is_away_slows_nothing_and_is_told_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("sweeps.tracking.mlflow_client.PATIENCE", 1.0)
    monkeypatch.setattr("sweeps.tracking.tracker.GRACE", 1.0)
    said: list[str] = []
    trial = Trial(CELLS[0])
    finish(ledger, trial, 9.0)
    # A server that takes connections and answers nothing: each request costs a second.
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        tracker = Tracker(Store(f"http://127.0.0.1:{silent.getsockname()[1]}", "away"), ledger, SWEEP, said.append)
        began = time.monotonic()
        for _ in range(1000):
            tracker.enqueue(trial)
        assert time.monotonic() - began < 100
        assert tracker.close(300.0) == 1
    assert len(said) == 1
    assert "training goes on" in said[0]


def test_params_are_few_and_short() -> None:
    for cell in CELLS:
        params = params_of(Trial(cell, dropout=(("pool1", 0.5),)), cell.label)
        assert len(params) <= 12
        assert all(len(str(value)) < 500 for value in params.values())
        assert params["dropout"] == "50 % pool1"


@pytest.mark.parametrize(
    ("net", "words"),
    [(S2, "relu"), (S2.crelu(1, 2, 3, 4), "1-4 crelu"), (S2.crelu(1, 4, 7), "1,4,7 crelu"), (S2.avr(1, 2), "1-2 avr")],
)
def test_placement_fits_an_axis(net: Net, words: str) -> None:
    assert placement(net) == words


def test_folds_are_the_average_and_other_trainings_are_single(store: Store, ledger: Ledger) -> None:
    trials = [Trial(CELLS[0], "fold", fold=fold, folds=2) for fold in (0, 1)] + [Trial(CELLS[0])]
    for trial, error in zip(trials, (10.0, 12.0, 50.0), strict=True):
        finish(ledger, trial, error)
    projection = MlflowRuns(store, ledger, SWEEP)
    projection.sync_cell(CELLS[0], trials)
    metrics = projection.client.get_run(projection.runs[f"cell:{CELLS[0].key}"]).data.metrics
    assert metrics["agg/test_top1_err_mean"] == 11.0
    assert metrics["agg/test_top1_err_single_mean"] == 50.0
    assert metrics["agg/test_top1_err_n"] == 2


def test_cells_stand_beside_each_other_in_the_ui(store: Store, ledger: Ledger) -> None:
    for trial in (Trial(CELLS[0]), Trial(CELLS[1])):
        finish(ledger, trial, 9.5)
        projection = MlflowRuns(store, ledger, SWEEP)
        projection.sync_trial(trial, "RUNNING")
        projection.sync_cell(trial.cell, [trial])
    cells = [run for run in runs(projection) if "trial.key" not in run.data.tags]
    assert len({frozenset(run.data.params) for run in cells}) == 1
    assert {run.data.params["cell"] for run in cells} == {"Baseline", "CReLU"}
    assert {run.inputs.dataset_inputs[0].dataset.digest for run in cells} == {"abc"}
    tags = projection.client.get_experiment(projection.experiment).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{VIEW}"])
    shown = {name.split("`")[1] for name in view["selectedColumns"]}
    assert {name for run in cells for name in run.data.metrics if "top1_err_mean" in name} <= shown


def test_sweeps_of_other_metrics_in_one_experiment_have_views_of_their_own(store: Store, ledger: Ledger) -> None:
    own = Metric("test/f1", better="higher")
    cells = (dataclasses.replace(CELLS[1], metric=own, task="tasks:train"),)
    first = MlflowRuns(store, ledger, SWEEP)
    second = MlflowRuns(store, ledger, dataclasses.replace(SWEEP, name="other", cells=cells))
    assert first.experiment == second.experiment
    tags = first.client.get_experiment(first.experiment).tags
    assert tags.items() >= experiment_tags(SWEEP.metric).items()
    views = {tag: view for tag, view in experiment_tags(own).items() if tag.startswith(VIEW_TAG)}
    assert tags.items() >= views.items()


def test_experiment_keeps_what_somebody_else_says_of_it(store: Store, ledger: Ledger) -> None:
    projection = MlflowRuns(store, ledger, SWEEP)
    name = f"mlflow.sharedViewState.{VIEW}"
    projection.client.set_experiment_tag(projection.experiment, name, "{}")
    projection.client.delete_experiment(projection.experiment)
    again = MlflowRuns(store, ledger, SWEEP)
    assert again.experiment == projection.experiment
    assert again.client.get_experiment(again.experiment).tags[name] == "{}"


def test_postgresql_keeps_what_several_drivers_send_at_once(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    uri = postgres.database("tracking")
    ledgers = [Ledger(str(tmp_path / name)) for name in ("one", "two")]
    stores = [Store(uri, name, f"{tmp_path}/artifacts") for name in ("one", "two")]
    trials = [Trial(cell, seed=seed) for cell in CELLS for seed in range(2)]
    connected(uri).search_experiments()  # the tables are made once, as by the server
    trackers = [Tracker(store, ledger, SWEEP, print) for store, ledger in zip(stores, ledgers, strict=True)]
    for epochs in range(1, 5):
        for ledger, tracker in zip(ledgers, trackers, strict=True):
            for trial in trials:
                under_way(ledger, trial, epochs)
                tracker.enqueue(trial)
    for ledger, tracker in zip(ledgers, trackers, strict=True):
        for trial in trials:
            finish(ledger, trial, 9.5, epochs=5)
            tracker.enqueue(trial)
    assert [tracker.close(120.0) for tracker in trackers] == [0, 0]
    for store, ledger in zip(stores, ledgers, strict=True):
        projection = MlflowRuns(store, ledger, SWEEP)
        assert len(runs(projection)) == len(trials) + len(CELLS)
        for trial in trials:
            for metric in ("train/loss", "val/top1_err"):
                wanted = [(int(row["epoch"]), row[metric]) for row in rows(5)]
                assert sorted(points(projection, trial, metric)) == wanted
            assert projection.client.get_run(projection.runs.get(trial.key)).info.status == "FINISHED"
