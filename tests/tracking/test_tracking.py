"""MLflow is a projection of the ledger: complete, without doubles, right in status, whatever happened before."""

import dataclasses
import json
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from crelu_models.spec import Net
from crelu_models.tables import S2
from sweeps.experiment.plan import Protocol, Sweep
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.trial import Cell, Trial
from sweeps.store import checkpoint
from sweeps.store.ledger import Ledger
from sweeps.tracking.layout import VIEW, Page, params_of, placement
from sweeps.tracking.mlflow_runs import MlflowRuns, Store, connected, is_tracked, publish_report
from sweeps.tracking.tracker import Tracker
from tests.support.postgres import Postgres
from tests.support.waiting import until

CELLS = (Cell("Baseline", S2, "synthetic", ALLCONV, "1", "Baseline"), Cell("CReLU", S2.crelu(1), "synthetic", ALLCONV))
SWEEP = Sweep("cifar_width", "demo", CELLS, Protocol(seeds=2))
START = 1_790_000_000_000


@pytest.fixture(scope="module", autouse=True)
def _mlflow() -> Iterator[None]:
    with warnings.catch_warnings():
        # What MLflow and SQLAlchemy warn about among themselves.
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401

        yield


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one SQLite store for all tests here: making its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def store(root: Path, request: pytest.FixtureRequest) -> Store:
    return Store(f"sqlite:///{root}/mlflow.db", request.node.name, f"{root}/artifacts", {"synthetic": "abc"})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger"))


def rows(epochs: int, offset: float = 0.0) -> list[dict[str, float]]:
    return [
        {
            "epoch": float(e),
            "time_ms": float(START + 1000 * e),
            "train/loss": 2.0 / e + offset,
            "val/top1_err": 50.0 / e,
        }
        for e in range(1, epochs + 1)
    ]


def under_way(ledger: Ledger, trial: Trial, epochs: int, restarts: int = 0) -> None:
    state = {"epoch": epochs, "history": rows(epochs, restarts), "restarts": restarts}
    checkpoint.save(ledger, trial.key, epochs, 0, checkpoint.Checkpoint({"w": torch.zeros(1)}, state))


def finish(ledger: Ledger, trial: Trial, error: float, epochs: int = 3, restarts: int = 0) -> None:
    ledger.write(f"trials/{trial.key}/history.json", json.dumps(rows(epochs, restarts)).encode())
    ledger.write(f"trials/{trial.key}/tables/scores.parquet", b"scores")
    ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json())
    result: dict[str, Any] = {
        "key": trial.key, "cell_key": trial.cell.key, "status": "finished", "restarts": restarts, "epochs": epochs,
        "metrics": {"final/test_top1_err": error}, "finished_ms": START + 9000, "fingerprint": "abc", "code": "c",
        "precision": "fp32", "hardware": {"host": "h"}, "files": {"trial.json": "", "tables/scores.parquet": ""},
    }  # fmt: skip
    ledger.commit(trial.key, result)


def points(projection: MlflowRuns, trial: Trial, metric: str) -> list[tuple[int, float]]:
    run = projection.runs.get(trial.key)
    return [(point.step, point.value) for point in projection.client.get_metric_history(run, metric)]


def runs(projection: MlflowRuns) -> list[Any]:
    return list(projection.client.search_runs([projection.experiment], max_results=1000))


@pytest.mark.parametrize(
    ("proof", "hardware", "exact"),
    [
        ({"code": "c", "device": "H100"}, {"device": "H100"}, True),
        ({"code": "c", "device": "a CPU"}, {"device": "H100"}, False),
        ({"code": "older", "device": "H100"}, {"device": "H100"}, False),
        ({"code": "c", "device": "H100"}, {"device": "H100", "kernels": "fastest"}, False),
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
    kept = projection.runs.get(trial.key)
    projection.client.create_run(projection.experiment, tags={"trial.key": trial.key})
    again = MlflowRuns(store, ledger, SWEEP)
    assert again.runs.get(trial.key) == kept
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
    assert tracker.close(60.0) == 0
    assert said == []
    for trial in trials:
        result = ledger.result(trial.key)
        assert result is not None
        assert is_tracked(ledger, store, result)
        assert not is_tracked(ledger, dataclasses.replace(store, uri="sqlite:///elsewhere.db"), result)


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

    def sent() -> bool:
        projection = MlflowRuns(store, ledger, SWEEP)
        return bool(projection.runs.get(quiet.key)) and len(points(projection, quiet, "train/loss")) == 2

    until(sent, "both epochs of the quiet trial", 300)
    monkeypatch.setattr(MlflowRuns, "sync_trial", send)
    assert tracker.close(60.0) == 0


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
        assert tracker.close(30.0) == 1
    assert len(said) == 1
    assert "training goes on" in said[0]


def test_params_are_few_and_short() -> None:
    for cell in CELLS:
        params = params_of(Trial(cell, dropout=(("pool1", 0.5),)))
        assert len(params) <= 12
        assert all(len(str(value)) < 500 for value in params.values())
        assert params["dropout"] == "pool1=0.5"


@pytest.mark.parametrize(
    ("net", "words"),
    [(S2, "relu"), (S2.crelu(1, 2, 3, 4), "crelu 1-4"), (S2.crelu(1, 4, 7), "crelu 1,4,7"), (S2.avr(1, 2), "avr 1-2")],
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


def test_experiment_keeps_what_somebody_else_says_of_it(store: Store, ledger: Ledger) -> None:
    projection = MlflowRuns(store, ledger, SWEEP)
    name = f"mlflow.sharedViewState.{VIEW}"
    projection.client.set_experiment_tag(projection.experiment, name, "{}")
    projection.client.delete_experiment(projection.experiment)
    again = MlflowRuns(store, ledger, SWEEP)
    assert again.experiment == projection.experiment
    assert again.client.get_experiment(again.experiment).tags[name] == "{}"


def test_report_lies_on_the_run_of_each_cell_once(store: Store, ledger: Ledger) -> None:
    for trial in (Trial(CELLS[0]), Trial(CELLS[1])):
        finish(ledger, trial, 9.5)
        projection = MlflowRuns(store, ledger, SWEEP)
        projection.sync_trial(trial, "RUNNING")

    def pages(experiment: str, cells: Mapping[str, str]) -> dict[str, Page]:
        assert experiment == projection.experiment
        return {key: Page(f"| row of {run} |", {"net/parameters_millions": 1.25}) for key, run in cells.items()}

    files = {"report.html": b"<p>one</p>", "tables/a.tex": b"x"}
    assert publish_report(store.uri, store.experiment, files, pages) == (projection.experiment, 2, 2)
    assert publish_report(store.uri, store.experiment, files, pages) == (projection.experiment, 2, 0)
    assert publish_report(store.uri, store.experiment, files | {"report.html": b"<p>two</p>"}, pages)[2] == 2
    for cell in CELLS:
        run = projection.client.get_run(projection.runs[f"cell:{cell.key}"])
        assert run.data.tags["mlflow.note.content"] == f"| row of {run.info.run_id} |"
        assert len(projection.client.get_metric_history(run.info.run_id, "net/parameters_millions")) == 1
        assert {item.path for item in projection.client.list_artifacts(run.info.run_id, "report")} == {
            "report/report.html",
            "report/tables",
        }
        assert Path(run.info.artifact_uri, "report", "report.html").read_bytes() == b"<p>two</p>"
    assert publish_report(store.uri, "nowhere", files, pages) == ("", 0, 0)


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
