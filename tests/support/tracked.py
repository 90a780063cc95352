"""Trials that were never trained, as a tracker finds them on a ledger, and what it makes of them in MLflow."""

import json
from typing import Any

import torch

from sweeps.experiment.trial import Trial
from sweeps.store import checkpoint
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns

START = 1_790_000_000_000


def rows(epochs: int, offset: float = 0.0) -> list[dict[str, float]]:
    """Return the history of a trial; `offset` makes it that of another training."""
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
    """Write the checkpoint of a trial that trains."""
    state = {"epoch": epochs, "history": rows(epochs, restarts), "restarts": restarts}
    checkpoint.save(ledger, trial.key, epochs, 0, checkpoint.Checkpoint({"w": torch.zeros(1)}, state))


def finish(
    ledger: Ledger, trial: Trial, error: float, epochs: int = 3, restarts: int = 0, finished_ms: int = START + 9000
) -> None:
    """Write what a finished trial leaves; the test error is its only last number."""
    ledger.write(f"trials/{trial.key}/history.json", json.dumps(rows(epochs, restarts)).encode())
    ledger.write(f"trials/{trial.key}/tables/scores.parquet", b"scores")
    ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json())
    result: dict[str, Any] = {
        "key": trial.key, "cell_key": trial.cell.key, "status": "finished", "restarts": restarts, "epochs": epochs,
        "metrics": {"final/test_top1_err": error}, "finished_ms": finished_ms, "fingerprint": "abc", "code": "c",
        "precision": "fp32", "hardware": {"host": "h"}, "files": {"trial.json": "", "tables/scores.parquet": ""},
    }  # fmt: skip
    ledger.commit(trial.key, result)


def points(projection: MlflowRuns, trial: Trial, metric: str) -> list[tuple[int, float]]:
    """Return the points of a metric on a trial's run, each as step and value."""
    run = projection.runs.get(trial.key)
    return [(point.step, point.value) for point in projection.client.get_metric_history(run, metric)]


def runs(projection: MlflowRuns) -> list[Any]:
    """Return all runs of the experiment that are not deleted."""
    return list(projection.client.search_runs([projection.experiment], max_results=1000))
