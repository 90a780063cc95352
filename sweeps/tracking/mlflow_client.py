"""Requests to MLflow: a client of a store, the entities that it takes, and what several rooms send by it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from sweeps.store.foreign import relative
from sweeps.store.local_uris import sqlite_file
from sweeps.tracking.bare_client import client_of
from sweeps.tracking.sqlite_store import prepare

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT: Final = "mlflow.parentRunId"
REVISION: Final = "revision"  # the tag that counts how often a run's numbers have changed
PATIENCE: Final = 8.0  # seconds in which a store answers the first question


def connected(uri: str, tell: Callable[[str], None] = lambda _: None) -> MlflowClient:
    """Return a client of a store that has answered it; raise what the store raises, within seconds.

    A SQLite file is made where there is none; `tell` gets a sentence where an unfinished one is moved aside.
    """
    file = sqlite_file(uri)
    if file is not None:
        prepare(file, tell)
    elif urlsplit(uri).scheme.partition("+")[0] in ("postgresql", "mysql"):
        _reach_database(uri)
    client = client_of(uri)
    with _environment(MLFLOW_HTTP_REQUEST_TIMEOUT=f"{PATIENCE:.0f}"):
        client.search_experiments(max_results=1)
    return client


def _reach_database(uri: str) -> None:
    """Connect to a database server once: MLflow would try for minutes."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(
        uri, poolclass=sqlalchemy.pool.NullPool, connect_args={"connect_timeout": int(PATIENCE)}
    )
    engine.connect().close()
    engine.dispose()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
            path = Path(temporary, relative(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run, temporary, folder or None)


def log_files(uri: str, run: str, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
    """Log an analysis on a run: files by artifact path, and its numbers; raises what MLflow raises."""
    client = connected(uri)
    log_folder(client, run, files)
    set_numbers(client, client.get_run(run), metrics)
