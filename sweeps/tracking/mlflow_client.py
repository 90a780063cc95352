"""Requests to MLflow: a client of a store, the entities that it takes, and what several rooms send by it."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT: Final = "mlflow.parentRunId"
REVISION: Final = "revision"  # the tag that counts how often a run's numbers have changed


def connected(uri: str) -> MlflowClient:
    """Return a client of a store, without what MLflow and its migrations log about themselves."""
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow.MlflowClient(uri)


def all_runs(client: MlflowClient, experiment: str, condition: str = "") -> Iterator[Run]:
    """Yield the runs of an experiment that are not deleted and meet a condition."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def metric_points(metrics: Mapping[str, float], when: int, step: int = 0) -> list[object]:
    """Return metrics as MLflow's entities; infinite values must be nan."""
    import mlflow

    return [mlflow.entities.Metric(name, value, when, step) for name, value in metrics.items()]


def param_entities(params: Mapping[str, str | int | float]) -> list[object]:
    """Return parameters as MLflow's entities."""
    import mlflow

    return [mlflow.entities.Param(name, str(value)) for name, value in params.items()]


def run_tags(tags: Mapping[str, str]) -> list[object]:
    """Return tags as MLflow's entities."""
    import mlflow

    return [mlflow.entities.RunTag(name, value) for name, value in tags.items()]


def set_numbers(client: MlflowClient, stored: Run, numbers: Mapping[str, float]) -> bool:
    """Log the numbers that a run does not show yet, so that it shows them; return whether there were any.

    They are points at a step beyond all others: of two points MLflow shows the one of the higher step, and only then
    the one of the later time, which may be of a clock that is ahead.
    """
    news = {name: value for name, value in numbers.items() if stored.data.metrics.get(name) != value}
    if news:
        step = int(stored.data.tags.get(REVISION, "0")) + 1
        client.set_tag(stored.info.run_id, REVISION, str(step))  # first: no other number is ever at this step
        client.log_batch(stored.info.run_id, metrics=metric_points(news, int(1000 * time.time()), step))
    return bool(news)


def log_folder(client: MlflowClient, run: str, files: Mapping[str, bytes], folder: str = "") -> None:
    """Log files by their paths in one call, which a server answers faster than one a file."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in files.items():
            path = Path(temporary, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run, temporary, folder or None)


def log_files(uri: str, run: str, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
    """Log an analysis on a run: files by artifact path, and its numbers; raises what MLflow raises."""
    client = connected(uri)
    log_folder(client, run, files)
    set_numbers(client, client.get_run(run), metrics)
