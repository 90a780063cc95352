"""MLflow as a projection of the ledger: one run a trial, one parent run a cell, written by the driver.

Every call brings a run to what the ledger says, so that nothing is lost while the server is away and nothing is
doubled when a call is repeated: points carry the times of the trial's own history, and a point sent twice is one point.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from data.datasets import stem
from sweeps.experiment.metrics import averages, flags_of
from sweeps.experiment.plan import Sweep, has_failed
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.checkpoint_header import progress
from sweeps.store.ledger import Json, Ledger
from sweeps.tracking.layout import NOTE, NOTE_LENGTH, REPORT, Page, experiment_tags, params_of, params_of_cell

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROWS: Final = 50  # epochs in one request: the server takes 1,000 points
LEADING: Final = "train/loss"  # the metric that every epoch has: its points say which epochs a run has
Row = Mapping[str, float]
# Notes of a report for the cells of an experiment, from its id and the runs by cell key.
Pages = Callable[[str, Mapping[str, str]], Mapping[str, Page]]


@dataclass(frozen=True)
class Store:
    """An MLflow store: tracking URI, experiment, root of a new experiment's artifacts, data fingerprints."""

    uri: str
    experiment: str
    artifacts: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)


class MlflowRuns:
    """The runs of one sweep in one MLflow experiment; every call may raise what MLflow raises."""

    def __init__(self, store: Store, ledger: Ledger, sweep: Sweep) -> None:
        """Open or create the experiment, and read the runs that it has."""
        import mlflow

        self.mlflow, self.store, self.ledger, self.sweep = mlflow, store, ledger, sweep
        self.client = connected(store.uri)
        self.experiment = self._open_experiment()
        self.runs: dict[str, str] = {}  # by trial key, or "cell:" and cell key
        self.states: dict[str, str] = {}  # by run, as this driver read or set them
        self.sent: dict[str, dict[int, float]] = {}  # LEADING by epoch, by trial key
        self._read_runs()

    def _open_experiment(self) -> str:
        name, tags = self.store.experiment, experiment_tags()
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name, self.store.artifacts or None, tags))
            except self.mlflow.exceptions.MlflowException:  # another driver created it in the same moment
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        for tag in tags.keys() - experiment.tags.keys():
            self.client.set_experiment_tag(experiment.experiment_id, tag, tags[tag])
        return str(experiment.experiment_id)

    def _read_runs(self) -> None:
        """Read all runs once; of two runs of one trial the longer stays, the other is deleted."""
        ranked: dict[str, list[tuple[int, int, str]]] = {}
        for run in _all_runs(self.client, self.experiment):
            tags, info = run.data.tags, run.info
            name = tags.get("trial.key") or ("cell:" + tags["cell.key"] if "cell.key" in tags else "")
            if name:
                self.states[info.run_id] = info.status
                ranked.setdefault(name, []).append((len(run.data.metrics), -info.start_time, info.run_id))
        for name, ranks in ranked.items():
            *doubles, (_, _, self.runs[name]) = sorted(ranks)
            for _, _, double in doubles:
                self.client.delete_run(double)

    # Trials --------------------------------------------------------------------------------------------------

    def sync_trial(self, trial: Trial, state: str) -> bool:
        """Bring a trial's run to what the ledger says, its status to `state` without a result; return if it has one."""
        key, result = trial.key, self.ledger.result(trial.key)
        history = self._history(key, result)
        run = self.runs.get(key)
        if run is not None and key not in self.sent:
            # What another driver sent is asked once.
            points = self.client.get_metric_history(run, LEADING)
            self.sent[key] = {int(point.step): float(point.value) for point in points}
        if run is not None and any(self.sent[key].get(_epoch(row), row[LEADING]) != row[LEADING] for row in history):
            # Points cannot be taken back: a training that began anew, with other values, begins a new run.
            self.client.delete_run(run)
            run = None
        if run is None:
            run, self.sent[key] = self._create_trial_run(trial), {}
        self._send(key, run, history)
        if result is not None:
            self._finish(trial, run, result)
            return True
        attempts = self.ledger.attempts(key)
        if has_failed(attempts):
            self.client.set_tag(run, "error", str(attempts[-1].get("error", ""))[:4000])
            state = "FAILED"
        self._set_status(run, state)
        return False

    def _history(self, key: str, result: Json | None) -> list[Row]:
        """Return the epochs of a trial as far as they are durable."""
        if result is None:
            return list((progress(self.ledger, key) or {}).get("history", []))
        content = self.ledger.read(f"trials/{key}/history.json")
        return list(json.loads(content)) if content else []

    def _create_trial_run(self, trial: Trial) -> str:
        cell = trial.cell
        parent = self.runs.get(f"cell:{cell.key}") or self._create_cell_run(cell)
        tags = {"mlflow.parentRunId": parent, "trial.key": trial.key, "phase": trial.phase, "seed": str(trial.seed)}
        return self._create(trial.key, cell, f"{cell.label} {trial.label}", tags, params_of(trial))

    def _create_cell_run(self, cell: Cell) -> str:
        params = params_of_cell(cell)
        study = self.sweep.protocol.rates
        if study is not None and study.baseline_of(cell, self.sweep.cells) is not None:
            params["lr"] = "studied"  # a parameter cannot be changed: the trials have the rate that was chosen
        return self._create(f"cell:{cell.key}", cell, cell.label, {}, params)

    def _create(
        self, key: str, cell: Cell, name: str, tags: Mapping[str, str], params: Mapping[str, str | int | float]
    ) -> str:
        """Create a run with its parameters and the data set that it saw."""
        kind = "synthetic" if cell.dataset.startswith("synthetic") else "real"
        of_cell = {
            "sweep": self.sweep.name,
            "profile": self.sweep.profile,
            "cell.key": cell.key,
            "cell.label": cell.label,
            "paper.table": cell.table,
            "paper.row": cell.row,
            "data.kind": kind,
        }
        run = str(self.client.create_run(self.experiment, tags=of_cell | dict(tags), run_name=name).info.run_id)
        self.runs[key] = run
        entities = self.mlflow.entities
        self.client.log_batch(run, params=[entities.Param(param, str(value)) for param, value in params.items()])
        digest = self.store.digests.get(cell.dataset, "")[:36] or "unknown"
        dataset = entities.Dataset(stem(cell.dataset)[:500], digest, "local", json.dumps({"uri": cell.dataset}))
        context = entities.InputTag("mlflow.data.context", "training")
        self.client.log_inputs(run, [entities.DatasetInput(dataset, [context])])
        return run

    def _send(self, key: str, run: str, history: Sequence[Row]) -> None:
        """Log the epochs that are not on the run yet, whole rows at a time."""
        rows = [row for row in history if _epoch(row) not in self.sent[key]]
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            points = (_points(_measured(row), int(row["time_ms"]), _epoch(row)) for row in part)
            self.client.log_batch(run, metrics=list(itertools.chain.from_iterable(points)))
            self.sent[key] |= {_epoch(row): row[LEADING] for row in part}

    def _finish(self, trial: Trial, run: str, result: Json) -> None:
        """Log final metrics and files once, close the run, and note on the ledger that it is complete."""
        when = int(result["finished_ms"])
        logged = self.client.get_run(run).data.metrics
        news = {name: value for name, value in result["metrics"].items() if logged.get(name) != value}
        tags = {
            "flags": ",".join(flags_of(result)),
            "data.fingerprint": str(result["fingerprint"]),
            "precision": str(result["precision"]),
            "host": str(result["hardware"].get("host", "")),
            "code": str(result["code"]),
        } | ({"resume": "exact"} if self._proved_exact(trial, result) else {})
        run_tags = [self.mlflow.entities.RunTag(name, value) for name, value in tags.items()]
        self.client.log_batch(run, metrics=_points(news, when, int(result["epochs"])), tags=run_tags)
        contents = {name: self.ledger.read(f"trials/{trial.key}/{name}") for name in result["files"]}
        _log_folder(self.client, run, {name: content for name, content in contents.items() if content is not None})
        self.client.set_terminated(run, "FINISHED", end_time=when)
        self.states[run] = "FINISHED"
        self.ledger.write_json(f"tracked/{trial.key}.json", tracked(self.store, run, result))

    def _proved_exact(self, trial: Trial, result: Json) -> bool:
        """Return whether `verify-resume` has proved this cell, with this code, on such a device."""
        proof, hardware = self.ledger.read_json(f"verified/{trial.cell.key}.json") or {}, result["hardware"]
        same = proof.get("code") == result["code"] and proof.get("device") == hardware.get("device")
        return same and "kernels" not in hardware

    def _set_status(self, run: str, state: str) -> None:
        # A new run is a running one. The server is not asked again: that would double what an epoch costs it.
        if self.states.get(run, "RUNNING") == state:
            return
        if state in ("FAILED", "KILLED", "FINISHED"):
            self.client.set_terminated(run, state)
        else:
            self.client.update_run(run, state)
        self.states[run] = state

    # Cells ---------------------------------------------------------------------------------------------------

    def sync_cell(self, cell: Cell, trials: Iterable[Trial]) -> None:
        """Bring a cell's run to the averages of its trials' test errors; it is over with the last of them."""
        run = self.runs.get(f"cell:{cell.key}") or self._create_cell_run(cell)
        phases = {trial.key: trial.phase for trial in trials}
        results = self.ledger.results(phases)
        when = max((int(result["finished_ms"]) for result in results.values()), default=0)
        metrics = averages([(phases[key], result["metrics"]) for key, result in results.items()])
        self.client.log_batch(run, metrics=_points(metrics, when))
        self._set_status(run, "FINISHED" if len(results) == len(phases) else "RUNNING")


def connected(uri: str) -> MlflowClient:
    """Return a client of a store, without what MLflow and its migrations log about themselves."""
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow.MlflowClient(uri)


def _all_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _points(metrics: Mapping[str, float], when: int, step: int = 0) -> list[object]:
    import mlflow

    return [mlflow.entities.Metric(name, value, when, step) for name, value in metrics.items()]


def _log_folder(client: MlflowClient, run: str, files: Mapping[str, bytes], folder: str = "") -> None:
    """Log files by their paths in one call, which a server answers faster than one a file."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in files.items():
            path = Path(temporary, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run, temporary, folder or None)


def _epoch(row: Row) -> int:
    return int(row["epoch"])


def _measured(row: Row) -> Row:
    """Return the metrics of an epoch; infinite ones are nan, which every store takes."""
    metrics = {name: value for name, value in row.items() if name not in ("epoch", "time_ms")}
    return {name: value if math.isfinite(value) else math.nan for name, value in metrics.items()}


# Reports and analyses -----------------------------------------------------------------------------------------


def publish_report(uri: str, experiment: str, files: Mapping[str, bytes], pages: Pages) -> tuple[str, int, int]:
    """Put a report on the runs of an experiment's cells; raises what MLflow raises.

    Return the experiment's id, how many runs carry the report, and on how many of them it is new.
    """
    client = connected(uri)
    stored = client.get_experiment_by_name(experiment)
    if stored is None:
        return "", 0, 0
    runs: dict[str, str] = {}
    for run in _all_runs(client, stored.experiment_id):
        if "cell.key" in run.data.tags and "trial.key" not in run.data.tags:
            runs.setdefault(run.data.tags["cell.key"], run.info.run_id)
    digest = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()
    notes = {runs[key]: page for key, page in pages(stored.experiment_id, runs).items() if key in runs}
    news = [_publish(client, run, files, digest, page) for run, page in notes.items()]
    return str(stored.experiment_id), len(news), sum(news)


def _publish(client: MlflowClient, run: str, files: Mapping[str, bytes], digest: str, page: Page) -> bool:
    """Put a report's files, note and numbers on a run; return whether it had other ones."""
    stored, note = client.get_run(run), page.note[:NOTE_LENGTH]
    if stored.data.tags.get(REPORT) == digest and stored.data.tags.get(NOTE) == note:
        return False
    _log_folder(client, run, files, REPORT)
    news = {name: value for name, value in page.metrics.items() if stored.data.metrics.get(name) != value}
    # The run's own end is their time, so that the same number sent again is the same point.
    client.log_batch(run, metrics=_points(news, stored.info.end_time or 0))
    client.set_tag(run, NOTE, note)
    client.set_tag(run, REPORT, digest)
    return True


def log_files(uri: str, run: str, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
    """Log an analysis on a run: files by artifact path, and numbers at the run's own end; raises what MLflow raises."""
    client = connected(uri)
    _log_folder(client, run, files)
    client.log_batch(run, metrics=_points(metrics, client.get_run(run).info.end_time or 0))


# Notes on the ledger ------------------------------------------------------------------------------------------


def tracked(store: Store, run: str, result: Json) -> Json:
    """Return the note that a finished trial is complete in `store`."""
    return {"uri": store.uri, "experiment": store.experiment, "run": run, "finished_ms": result["finished_ms"]}


def is_tracked(ledger: Ledger, store: Store, result: Json) -> bool:
    """Return whether the ledger notes that this result is complete in `store`."""
    note = ledger.read_json(f"tracked/{result['key']}.json")
    return note is not None and note == tracked(store, str(note.get("run")), result)
