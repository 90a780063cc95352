"""MLflow as a projection of the ledger: one run a trial, one parent a cell, brought up to date from the driver.

The tracker knows only keys: a trial that moved is marked, and a thread brings its run to what the ledger says.
So nothing is lost when the server is away, nothing is doubled when it is told twice (timestamps come from the
trial's own history, which makes a second sending of a point the same point), and nothing here can slow a trial.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.datasets import stem
from sweeps.experiment.metrics import averages, flags_of
from sweeps.experiment.plan import Sweep, has_failed
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.checkpoint_header import progress
from sweeps.store.ledger import Json, Ledger
from sweeps.tracking.layout import Page, experiment_tags, log_folder, params_of, params_of_cell, parents, publish

ROWS = 50  # epochs in one request: the server takes 1,000 points
LEADING = "train/loss"  # the metric that every epoch has, by whose steps and values a run is known again
Pages = Callable[[str, Mapping[str, str]], Mapping[str, Page]]


@dataclass(frozen=True)
class Store:
    """Where MLflow keeps things: tracking URI, experiment, and for a new experiment the root of its artifacts."""

    uri: str
    experiment: str
    artifacts: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)


class MlflowRuns:
    """The runs of one sweep in one MLflow experiment; every call may raise what MLflow raises."""

    def __init__(self, store: Store, ledger: Ledger, sweep: Sweep) -> None:
        """Find the experiment, or make it, and every run of the sweep that is already there."""
        import mlflow

        self.mlflow, self.store, self.ledger, self.sweep = mlflow, store, ledger, sweep
        self.client = connected(store.uri)
        self.experiment = self._experiment()
        self.runs: dict[str, str] = {}
        self.states: dict[str, str] = {}  # of runs, as this driver found or left them
        self.sent: dict[str, dict[int, float]] = {}
        self._find()

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.store.experiment)
        if found is None:
            artifacts = self.store.artifacts or None
            try:
                return str(self.client.create_experiment(self.store.experiment, artifacts, experiment_tags()))
            except self.mlflow.exceptions.MlflowException:  # another driver made it in the same moment
                found = self.client.get_experiment_by_name(self.store.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        for name, value in experiment_tags().items():
            if name not in found.tags:
                self.client.set_experiment_tag(found.experiment_id, name, value)
        return str(found.experiment_id)

    def _find(self) -> None:
        """Read all runs of this experiment once; of two runs of one trial the longer stays, the other is deleted."""
        token: str | None = None
        found: dict[str, list[tuple[int, int, str]]] = {}
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                name = tags.get("trial.key") or ("cell:" + tags["cell.key"] if "cell.key" in tags else "")
                if name:
                    rank = (len(run.data.metrics), -run.info.start_time, run.info.run_id)
                    self.states[run.info.run_id] = run.info.status
                    found.setdefault(name, []).append(rank)
            token = page.token
            if not token:
                break
        for name, ranks in found.items():
            *doubles, kept = sorted(ranks)
            self.runs[name] = kept[2]
            for double in doubles:
                self.client.delete_run(double[2])

    def run_of(self, key: str) -> str | None:
        """Return the run of a trial key, if there is one."""
        return self.runs.get(key)

    def sync_trial(self, trial: Trial, state: str) -> bool:
        """Bring the run of `trial` to the ledger's word and return whether that is a result; without, it is `state`."""
        key, result = trial.key, self.ledger.result(trial.key)
        history = self._history(key, result)
        run = self.runs.get(key)
        if run is not None and key not in self.sent:
            # What another driver sent is not known here; the run is asked once.
            points = self.client.get_metric_history(run, LEADING)
            self.sent[key] = {int(point.step): float(point.value) for point in points}
        if run is not None and any(self.sent[key].get(_step(row), row[LEADING]) != row[LEADING] for row in history):
            # Points cannot be taken back: a training that began anew, with other values, begins a new run.
            self.client.delete_run(run)
            run = None
        if run is None:
            run = self._create(trial)
        self._send(key, run, history)
        if result is not None:
            self._finish(trial, run, result)
            return True
        tries = self.ledger.attempts(key)
        if has_failed(tries):
            self.client.set_tag(run, "error", str(tries[-1].get("error", ""))[:4000])
            state = "FAILED"
        self._status(run, state)
        return False

    def _history(self, key: str, result: Json | None) -> list[dict[str, float]]:
        """Return the epochs of a trial as far as they are durable."""
        if result is None:
            return list((progress(self.ledger, key) or {}).get("history", []))
        content = self.ledger.read(f"trials/{key}/history.json")
        return list(json.loads(content)) if content else []

    def _create(self, trial: Trial) -> str:
        parent = self.runs.get(f"cell:{trial.cell.key}") or self._create_parent(trial.cell)
        cell = trial.cell
        tags = self._tags(cell) | {
            "mlflow.parentRunId": parent,
            "trial.key": trial.key,
            "phase": trial.phase,
            "seed": str(trial.seed),
        }
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"{cell.label} {trial.label}")
        self.runs[trial.key], self.sent[trial.key] = run.info.run_id, {}
        self._describe(run.info.run_id, cell, params_of(trial))
        return str(run.info.run_id)

    def _describe(self, run: str, cell: Cell, params: Mapping[str, Any]) -> None:
        """Log what a run was set to, and the data set it saw."""
        entity = self.mlflow.entities
        self.client.log_batch(run, params=[entity.Param(name, str(value)) for name, value in params.items()])
        digest = self.store.digests.get(cell.dataset, "")[:36] or "unknown"
        data = entity.Dataset(stem(cell.dataset)[:500], digest, "local", json.dumps({"uri": cell.dataset}))
        context = entity.InputTag("mlflow.data.context", "training")
        self.client.log_inputs(run, [entity.DatasetInput(data, [context])])

    def _create_parent(self, cell: Cell) -> str:
        run = self.client.create_run(self.experiment, tags=self._tags(cell), run_name=cell.label)
        self.runs[f"cell:{cell.key}"] = run.info.run_id
        self._describe(run.info.run_id, cell, params_of_cell(cell))
        return str(run.info.run_id)

    def _tags(self, cell: Cell) -> dict[str, str]:
        return {
            "sweep": self.sweep.name,
            "profile": self.sweep.profile,
            "cell.key": cell.key,
            "cell.label": cell.label,
            "paper.table": cell.table,
            "paper.row": cell.row,
            "data.kind": "synthetic" if cell.dataset.startswith("synthetic") else "real",
        }

    def _send(self, key: str, run: str, history: Sequence[Mapping[str, float]]) -> None:
        """Log the epochs that are not on the run yet, whole rows at a time."""
        metric, rows = self.mlflow.entities.Metric, [row for row in history if _step(row) not in self.sent[key]]
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            points = [
                metric(name, value if math.isfinite(value) else math.nan, int(row["time_ms"]), _step(row))
                for row in part
                for name, value in row.items()
                if name not in ("epoch", "time_ms")
            ]
            self.client.log_batch(run, metrics=points)
            self.sent[key] |= {_step(row): row[LEADING] for row in part}

    def _finish(self, trial: Trial, run: str, result: Json) -> None:
        """Log final metrics and files, once; close the run; note on the ledger that it is whole."""
        metric, when = self.mlflow.entities.Metric, int(result["finished_ms"])
        there = self.client.get_run(run).data.metrics
        news = {name: value for name, value in result["metrics"].items() if there.get(name) != value}
        points = [metric(name, value, when, int(result["epochs"])) for name, value in news.items()]
        tag = self.mlflow.entities.RunTag
        flags = ",".join(flags_of(result))
        tags = {
            "flags": flags,
            "data.fingerprint": str(result["fingerprint"]),
            "precision": str(result["precision"]),
            "host": str(result["hardware"].get("host", "")),
            "code": str(result["code"]),
        }
        if self._exact(trial, result):
            tags["resume"] = "exact"
        self.client.log_batch(run, metrics=points, tags=[tag(name, value) for name, value in tags.items()])
        files = {name: self.ledger.read(f"trials/{trial.key}/{name}") for name in result["files"]}
        log_folder(self.client, run, {name: content for name, content in files.items() if content is not None})
        self.client.set_terminated(run, "FINISHED", end_time=when)
        self.states[run] = "FINISHED"
        self.ledger.write_json(f"tracked/{trial.key}.json", tracked(self.store, run, result))

    def _exact(self, trial: Trial, result: Json) -> bool:
        """Return whether `verify-resume` has proved this cell, with this code, on such a device."""
        proof, hardware = self.ledger.read_json(f"verified/{trial.cell.key}.json") or {}, result["hardware"]
        proved = proof.get("code") == result["code"] and proof.get("device") == hardware.get("device")
        return proved and "kernels" not in hardware

    def _status(self, run: str, state: str) -> None:
        # A new run is a running one. The server is not asked again: that would double what an epoch costs it.
        if self.states.get(run, "RUNNING") != state:
            if state in ("FAILED", "KILLED", "FINISHED"):
                self.client.set_terminated(run, state)
            else:
                self.client.update_run(run, state)
            self.states[run] = state

    def sync_cell(self, cell: Cell, trials: Iterable[Trial], over: bool) -> None:
        """Bring the parent run of `cell` to the averages of its tested trials."""
        run = self.runs.get(f"cell:{cell.key}") or self._create_parent(cell)
        phases = {trial.key: trial.phase for trial in trials}
        results = self.ledger.results(phases)
        when = max((int(result["finished_ms"]) for result in results.values()), default=0)
        metrics = [(phases[key], result["metrics"]) for key, result in results.items()]
        points = [self.mlflow.entities.Metric(name, value, when, 0) for name, value in averages(metrics).items()]
        if points:
            self.client.log_batch(run, metrics=points)
        self._status(run, "FINISHED" if over else "RUNNING")


def connected(uri: str) -> Any:
    """Return a client of a store; what MLflow and its migrations tell of themselves is left out."""
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow.MlflowClient(uri)


def publish_report(uri: str, experiment: str, files: Mapping[str, bytes], pages: Pages) -> tuple[str, int, int]:
    """Put a report on the runs of an experiment's cells; raises what MLflow raises.

    `pages` makes the notes of the cells from the experiment's id and the runs by cell key. Return the id, how many
    runs carry the report, and on how many of them that is new.
    """
    client = connected(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return "", 0, 0
    runs = parents(client, found.experiment_id)
    made = pages(found.experiment_id, runs)
    digest = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()
    news = [publish(client, runs[key], files, digest, page) for key, page in made.items() if key in runs]
    return str(found.experiment_id), len(news), sum(news)


def log_files(uri: str, run: str, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
    """Log what an analysis found on a run: files by artifact path, and numbers; raises what MLflow raises.

    Points carry the run's own end as their time, so that the same numbers logged again are the same points.
    """
    import mlflow

    client = connected(uri)
    when = client.get_run(run).info.end_time or 0
    log_folder(client, run, files)
    points = [mlflow.entities.Metric(name, value, when, 0) for name, value in metrics.items()]
    if points:
        client.log_batch(run, metrics=points)


def _step(row: Mapping[str, float]) -> int:
    return int(row["epoch"])


def tracked(store: Store, run: str, result: Json) -> Json:
    """Return the note that a finished trial is whole in `store`."""
    return {"uri": store.uri, "experiment": store.experiment, "run": run, "finished_ms": result["finished_ms"]}


def is_tracked(ledger: Ledger, store: Store, result: Json) -> bool:
    """Return whether the ledger notes that this result is whole in `store`."""
    note = ledger.read_json(f"tracked/{result['key']}.json")
    return note is not None and note == tracked(store, str(note.get("run")), result)
