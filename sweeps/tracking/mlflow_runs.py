"""MLflow as a projection of the ledger: one run a trial, one parent run a cell, written by the driver.

Every call brings a run to what the ledger says, so that nothing is lost while the server is away and nothing is
doubled when a call is repeated: points carry the times of the trial's own history, and a point sent twice is one point.

MLflow cannot take a metric or a parameter back. A run that has one which no longer holds is deleted, and a new one
takes its place. Numbers that change are points at rising steps, since MLflow shows the last step and clocks differ.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from data.datasets import stem
from sweeps.experiment.metrics import VOTE, flags_of
from sweeps.experiment.plan import Sweep, has_failed
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.checkpoint_header import progress
from sweeps.store.foreign import relative
from sweeps.store.integrity import checked, noted_damage
from sweeps.store.ledger import Json, Ledger
from sweeps.tracking.fenced_client import fenced
from sweeps.tracking.layout import (
    LEDGER,
    NOTE,
    NOTE_LENGTH,
    REPORT,
    REPORT_RUN,
    TRAININGS,
    Owner,
    Page,
    cell_metrics,
    experiment_tags,
    params_of,
    params_of_cell,
    short_names,
    trainings_digest,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROWS: Final = 50  # epochs in one request: the server takes 1,000 points
LEADING: Final = "train/loss"  # the metric that every epoch has: its points say which epochs a run has
FINAL: Final = ("final/", "best/")  # how the names of a trial's last numbers begin
LASTING: Final = ("net/", "paper/")  # how the names of a cell's numbers begin that hold for any trainings
OF_CELL: Final = ("agg/", *FINAL, *LASTING)  # how the names of all numbers begin that are logged on a cell's run
CHOSEN: Final = ("dropout", "lr")  # parameters of a cell that a study chooses
PARENT: Final = "mlflow.parentRunId"
REVISION: Final = "revision"  # the tag that counts how often a run's numbers have changed
Row = Mapping[str, float]
# Pages of a report by cell key, from the experiment's id, the runs by cell key, and the run on which the report lies.
Pages = Callable[[str, Mapping[str, str], str], Mapping[str, Page]]


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
        self.client = fenced(connected(store.uri), ledger.guard)
        self.owner = Owner(ledger.identity, sweep.title)
        self.names = short_names([cell.label for cell in sweep.cells])
        self.experiment = self._open_experiment()
        self.runs: dict[str, str] = {}  # by trial key, or "cell:" and cell key
        self.states: dict[str, str] = {}  # by run, as this driver read or set them
        self.sent: dict[str, dict[int, float]] = {}  # LEADING by epoch, by trial key
        self.finals: dict[str, dict[str, float]] = {}  # last numbers on a trial's run, by trial key
        self.parents: dict[str, str] = {}  # the run above a trial's, by trial key
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
        """Read all runs once and take those of this ledger and sweep; of two runs for one thing, one is deleted.

        Of a trial the run with more metrics stays, of a cell the newer one: it takes the place of the other.
        """
        ranked: dict[str, list[tuple[int, int, Run]]] = {}
        for run in self._own_runs():
            tags, info = run.data.tags, run.info
            is_trial = "trial.key" in tags
            name = tags["trial.key"] if is_trial else "cell:" + tags.get("cell.key", "")
            rank = (len(run.data.metrics), -info.start_time) if is_trial else (info.start_time, 0)
            ranked.setdefault(name, []).append((*rank, run))
        last: dict[str, Run] = {}
        for name, ranks in ranked.items():
            *doubles, last[name] = [run for *_, run in sorted(ranks, key=lambda rank: (*rank[:2], rank[2].info.run_id))]
            for double in doubles:
                self.client.delete_run(double.info.run_id)
        for name, run in last.items():
            self.runs[name], self.states[run.info.run_id] = run.info.run_id, run.info.status
            if "trial.key" in run.data.tags:
                self.finals[name] = {key: value for key, value in run.data.metrics.items() if key.startswith(FINAL)}
                self.parents[name] = run.data.tags.get(PARENT, "")

    def _own_runs(self) -> list[Run]:
        """Return the runs of this ledger and sweep, those of an earlier version included.

        Such a run names no ledger. A trial's is ours where a note on the ledger names it; a cell's where all runs
        below it are ours.
        """
        owned: list[Run] = []
        unsigned: list[Run] = []
        others: set[str] = set()  # parents of runs that are not ours
        for run in _all_runs(self.client, self.experiment):
            tags = run.data.tags
            if self.owner.has(tags):
                owned.append(run)
            elif LEDGER not in tags and (tags.get("sweep"), tags.get("profile")) == (
                self.sweep.name,
                self.sweep.profile,
            ):
                unsigned.append(run)
            elif PARENT in tags:
                others.add(tags[PARENT])
        trials = [run for run in unsigned if "trial.key" in run.data.tags]
        noted = [run for run in trials if self._is_noted(run)]
        noted_ids = {run.info.run_id for run in noted}
        others |= {run.data.tags.get(PARENT, "") for run in trials if run.info.run_id not in noted_ids}
        parents = {run.data.tags.get(PARENT, "") for run in [*owned, *noted]} - others
        cells = [run for run in unsigned if run.info.run_id in parents and "cell.key" in run.data.tags]
        for run in noted:
            self._tag(run.info.run_id, self.owner.tags)
        return [*owned, *noted, *cells]

    def _is_noted(self, run: Run) -> bool:
        note = self.ledger.read_json(f"tracked/{run.data.tags['trial.key']}.json") or {}
        return run.info.run_id in (note.get("run"), note.get("sweeps", {}).get(self.sweep.title, {}).get("run"))

    def _tag(self, run: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run, tags=_run_tags(tags))

    # Trials --------------------------------------------------------------------------------------------------

    def sync_trial(self, trial: Trial, state: str) -> bool:
        """Bring a trial's run to what the ledger says, its status to `state` without a result; return if it has one."""
        key, result = trial.key, self.ledger.result(trial.key)
        if result is not None and (why := checked(self.ledger, key, result)):
            self._mark_damaged(trial, why)
            return False
        history = self._history(key, result)
        run = self.runs.get(key)
        measured = _finite(result["metrics"]) if result is not None else {}
        if run is not None and not _agree(self.finals.get(key, {}), measured):
            # Last numbers of another training cannot be taken back: this one begins a new run.
            self.client.delete_run(run)
            run = None
        if run is not None and key not in self.sent:
            # What another driver sent is asked once.
            points = self.client.get_metric_history(run, LEADING)
            self.sent[key] = {int(point.step): float(point.value) for point in points}
        if run is not None and any(self.sent[key].get(_epoch(row), row[LEADING]) != row[LEADING] for row in history):
            # Points cannot be taken back: a training that began anew, with other values, begins a new run.
            self.client.delete_run(run)
            run = None
        if run is None:
            run, self.sent[key] = self._create_trial_run(trial, _began(history, result)), {}
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

    def _mark_damaged(self, trial: Trial, why: str) -> None:
        """Say on a trial's run that a file of it is damaged, and leave its numbers and files as they are."""
        run = self.runs.get(trial.key) or self._create_trial_run(trial, None)
        self.client.set_tag(run, "error", why)
        self._set_status(run, "FAILED")

    def _history(self, key: str, result: Json | None) -> list[Row]:
        """Return the epochs of a trial as far as they are durable."""
        if result is None:
            return list((progress(self.ledger, key) or {}).get("history", []))
        content = self.ledger.read(f"trials/{key}/history.json")
        return list(json.loads(content)) if content else []

    def _create_trial_run(self, trial: Trial, began: int | None) -> str:
        cell, name = trial.cell, self._name(trial.cell)
        parent = self.runs.get(f"cell:{cell.key}") or self._create_cell_run(cell)
        tags = {PARENT: parent, "trial.key": trial.key, "phase": trial.phase, "seed": str(trial.seed)}
        self.finals[trial.key], self.parents[trial.key] = {}, parent
        return self._create(trial.key, cell, f"{name} {trial.label}", tags, params_of(trial, name), began)

    def _create_cell_run(self, cell: Cell, trials: Iterable[Trial] = ()) -> str:
        tags = {"phase": "cell", "seed": "all"}
        return self._create(f"cell:{cell.key}", cell, self._name(cell), tags, self._params_of_cell(cell, trials))

    def _name(self, cell: Cell) -> str:
        return self.names.get(cell.label, cell.label)

    def _params_of_cell(self, cell: Cell, trials: Iterable[Trial]) -> dict[str, str | int | float]:
        return params_of_cell(cell, self._name(cell), self.sweep.protocol, trials)

    def _create(
        self,
        key: str,
        cell: Cell,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str | int | float],
        began: int | None = None,
    ) -> str:
        """Create a run with its parameters and the data set that it saw; it began now, where nothing else is known."""
        kind = "synthetic" if cell.dataset.startswith("synthetic") else "real"
        of_cell = self.owner.tags | {
            "sweep": self.sweep.name,
            "profile": self.sweep.profile,
            "cell.key": cell.key,
            "cell.label": cell.label,
            "paper.table": cell.table,
            "paper.row": cell.row,
            "data.kind": kind,
        }
        created = self.client.create_run(self.experiment, start_time=began, tags=of_cell | dict(tags), run_name=name)
        run = str(created.info.run_id)
        self.runs[key] = run
        entities = self.mlflow.entities
        self.client.log_batch(run, params=_params(params))
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
        when, metrics = int(result["finished_ms"]), _finite(result["metrics"])
        news = {name: value for name, value in metrics.items() if name not in self.finals.get(trial.key, {})}
        tags = {
            "flags": ",".join(flags_of(result)),
            "data.fingerprint": str(result["fingerprint"]),
            "precision": str(result["precision"]),
            "host": str(result["hardware"].get("host", "")),
            "code": str(result["code"]),
        } | ({"resume": "exact"} if self._proved_exact(trial, result) else {})
        self.client.log_batch(run, metrics=_points(news, when, int(result["epochs"])), tags=_run_tags(tags))
        self.finals[trial.key] = {name: value for name, value in metrics.items() if name.startswith(FINAL)}
        contents = {name: self.ledger.read(f"trials/{trial.key}/{name}") for name in result["files"]}
        _log_folder(self.client, run, {name: content for name, content in contents.items() if content is not None})
        self.client.set_terminated(run, "FINISHED", end_time=when)
        self.states[run] = "FINISHED"
        note = self.ledger.read_json(f"tracked/{trial.key}.json") or {}
        latest = tracked(self.store, run, result)
        sweeps = note.get("sweeps", {}) | {self.sweep.title: latest}
        self.ledger.write_json(f"tracked/{trial.key}.json", latest | {"sweeps": sweeps})

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
        """Bring a cell's run to the averages of its trials' test errors; it is over with the last of them.

        Where they change, the report's note and vote are of other trainings: they go, until the next report.
        """
        trials = list(trials)
        damaged = noted_damage(self.ledger)
        results = self.ledger.results(trial.key for trial in trials if trial.key not in damaged)
        params = self._params_of_cell(cell, trials)
        numbers = cell_metrics((trial, results[trial.key]["metrics"]) for trial in trials if trial.key in results)
        digest = trainings_digest(results)
        stored = self.client.get_run(self.runs.get(f"cell:{cell.key}") or self._create_cell_run(cell, trials))
        metrics, tags = stored.data.metrics, stored.data.tags
        numbers |= {name: value for name, value in metrics.items() if name.startswith(LASTING)}
        if tags.get(TRAININGS) == digest and VOTE in metrics:
            numbers[VOTE] = metrics[VOTE]
        if not self.owner.has(tags) or not _holds(stored, numbers, params):
            old, stored = stored, _replace(self.client, stored, params, self.owner.tags)
            below = {key: stored.info.run_id for key, parent in self.parents.items() if parent == old.info.run_id}
            self.parents |= below
        run = self.runs[f"cell:{cell.key}"] = stored.info.run_id
        self.states.setdefault(run, stored.info.status)
        for trial in trials:
            if self.parents.get(trial.key, run) != run:
                self.client.set_tag(self.runs[trial.key], PARENT, run)
                self.parents[trial.key] = run
        known = stored.data.params
        missing = {name: value for name, value in params.items() if name not in known}
        if missing:
            self.client.log_batch(run, params=_params(missing))
        if stored.info.run_name != self._name(cell):
            self.client.update_run(run, name=self._name(cell))
        _set_numbers(self.client, stored, numbers)
        if stored.data.tags.get(TRAININGS) != digest:
            if REPORT_RUN in stored.data.tags:
                self.client.delete_tag(run, REPORT_RUN)
            self._tag(run, {NOTE: self._provisional_note(len(results), len(trials)), TRAININGS: digest})
        missing_trials = [trial for trial in trials if trial.key not in results]
        is_failed = missing_trials and all(has_failed(self.ledger.attempts(trial.key)) for trial in missing_trials)
        self._set_status(run, "FAILED" if is_failed else "RUNNING" if missing_trials else "FINISHED")

    def _provisional_note(self, done: int, planned: int) -> str:
        """Return the note of a cell that no report has seen as it is now."""
        return (
            f"{done} of the {planned} trainings planned so far are in these numbers. The row of the table and the "
            f"report follow at the end of the sweep, or by `python -m sweeps report {self.sweep.title}`."
        )


def connected(uri: str) -> MlflowClient:
    """Return a client of a store, without what MLflow and its migrations log about themselves."""
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow.MlflowClient(uri)


def _all_runs(client: MlflowClient, experiment: str, condition: str = "") -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _points(metrics: Mapping[str, float], when: int, step: int = 0) -> list[object]:
    import mlflow

    return [mlflow.entities.Metric(name, value, when, step) for name, value in metrics.items()]


def _params(params: Mapping[str, str | int | float]) -> list[object]:
    import mlflow

    return [mlflow.entities.Param(name, str(value)) for name, value in params.items()]


def _run_tags(tags: Mapping[str, str]) -> list[object]:
    import mlflow

    return [mlflow.entities.RunTag(name, value) for name, value in tags.items()]


def _set_numbers(client: MlflowClient, stored: Run, numbers: Mapping[str, float]) -> bool:
    """Log the numbers that a run does not show yet, so that it shows them; return whether there were any.

    They are points at a step beyond all others: of two points MLflow shows the one of the higher step, and only then
    the one of the later time, which may be of a clock that is ahead.
    """
    news = {name: value for name, value in numbers.items() if stored.data.metrics.get(name) != value}
    if news:
        step = int(stored.data.tags.get(REVISION, "0")) + 1
        client.set_tag(stored.info.run_id, REVISION, str(step))  # first: no other number is ever at this step
        client.log_batch(stored.info.run_id, metrics=_points(news, int(1000 * time.time()), step))
    return bool(news)


def _holds(stored: Run, numbers: Mapping[str, float], params: Mapping[str, str | int | float]) -> bool:
    """Return whether a cell's run has no number beyond these, and no other value of its parameters."""
    wanted = {name: str(value) for name, value in params.items()}
    names = {name for name in stored.data.metrics if name.startswith(OF_CELL)}
    return names <= numbers.keys() and all(
        wanted.get(name) == value for name, value in stored.data.params.items() if name in wanted or name in CHOSEN
    )


def _replace(client: MlflowClient, old: Run, params: Mapping[str, str | int | float], tags: Mapping[str, str]) -> Run:
    """Create a run in place of a cell's run, without its numbers and files, and move the runs below it there."""
    ours = (REPORT, REPORT_RUN, TRAININGS, REVISION)
    kept = {name: tag for name, tag in old.data.tags.items() if not name.startswith("mlflow.") and name not in ours}
    experiment = old.info.experiment_id
    run = client.create_run(experiment, tags=kept | dict(tags), run_name=old.info.run_name).info.run_id
    client.log_batch(run, params=_params(params))
    if old.inputs.dataset_inputs:
        client.log_inputs(run, old.inputs.dataset_inputs)
    for child in list(_all_runs(client, experiment, f"tags.`{PARENT}` = '{old.info.run_id}'")):
        client.set_tag(child.info.run_id, PARENT, run)
    client.delete_run(old.info.run_id)
    return client.get_run(run)


def _log_folder(client: MlflowClient, run: str, files: Mapping[str, bytes], folder: str = "") -> None:
    """Log files by their paths in one call, which a server answers faster than one a file."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in files.items():
            path = Path(temporary, relative(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run, temporary, folder or None)


def _epoch(row: Row) -> int:
    return int(row["epoch"])


def _measured(row: Row) -> Row:
    """Return the metrics of an epoch; infinite ones are nan, which every store takes."""
    return _finite({name: value for name, value in row.items() if name not in ("epoch", "time_ms")})


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value if math.isfinite(value) else math.nan for name, value in metrics.items()}


def _began(history: Sequence[Row], result: Json | None) -> int | None:
    """Return when a trial began, by the clock of its worker; None where nothing says."""
    if result is not None and "seconds" in result:
        return int(result["finished_ms"]) - int(1000 * float(result["seconds"]))
    return int(history[0]["time_ms"]) if history else None


def _agree(logged: Mapping[str, float], metrics: Mapping[str, float]) -> bool:
    """Return whether each number that is logged is among `metrics`, with the same value."""
    return all(str(metrics.get(name)) == str(value) for name, value in logged.items())


# Reports and analyses -----------------------------------------------------------------------------------------


class Published(NamedTuple):
    """Where a report went: the experiment's id, how many runs of cells name it, and how many of them changed."""

    experiment: str
    runs: int
    changed: int


def publish_report(uri: str, experiment: str, owner: Owner, files: Mapping[str, bytes], pages: Pages) -> Published:
    """Put a report on the run of one cell, and its notes and numbers on all cells' runs; raises what MLflow raises."""
    client = connected(uri)
    stored = client.get_experiment_by_name(experiment)
    if stored is None:
        return Published("", 0, 0)
    number = str(stored.experiment_id)
    cells = _cell_runs(client, number, owner)
    # Numbers that no longer hold go with their run, and the links of the notes are to the runs that take their place.
    drafts = pages(number, _ids(cells), "")
    if not drafts:
        return Published(number, 0, 0)
    for key, page in drafts.items():
        old = cells[key]
        if not _holds(old, page.metrics, old.data.params):
            cells[key] = _replace(client, old, old.data.params, {})
            client.update_run(cells[key].info.run_id, old.info.status)
    holder = next((key for key in drafts if REPORT in cells[key].data.tags), next(iter(drafts)))
    holding_run = cells[holder].info.run_id
    digest = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()
    changed = 0
    for key, page in pages(number, _ids(cells), holding_run).items():
        run, tags = cells[key].info.run_id, cells[key].data.tags
        wanted = {NOTE: page.note[:NOTE_LENGTH], REPORT_RUN: holding_run, TRAININGS: page.trainings}
        if key == holder and tags.get(REPORT) != digest:
            _log_folder(client, run, files, REPORT)
            wanted[REPORT] = digest
        renumbered = _set_numbers(client, cells[key], page.metrics)
        news = {name: tag for name, tag in wanted.items() if tags.get(name) != tag}
        if news:
            client.log_batch(run, tags=_run_tags(news))
        changed += bool(news or renumbered)
    return Published(number, len(drafts), changed)


def _cell_runs(client: MlflowClient, experiment: str, owner: Owner) -> dict[str, Run]:
    """Return the runs of an owner's cells by cell key."""
    runs = [run for run in _all_runs(client, experiment) if owner.has(run.data.tags) and PARENT not in run.data.tags]
    runs.sort(key=lambda run: (run.info.start_time, run.info.run_id))
    return {run.data.tags["cell.key"]: run for run in runs}


def _ids(cells: Mapping[str, Run]) -> dict[str, str]:
    return {key: run.info.run_id for key, run in cells.items()}


def log_files(uri: str, run: str, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
    """Log an analysis on a run: files by artifact path, and its numbers; raises what MLflow raises."""
    client = connected(uri)
    _log_folder(client, run, files)
    _set_numbers(client, client.get_run(run), metrics)


# Notes on the ledger ------------------------------------------------------------------------------------------


def tracked(store: Store, run: str, result: Json) -> Json:
    """Return the note that a finished trial is complete in `store`."""
    return {"uri": store.uri, "experiment": store.experiment, "run": run, "finished_ms": result["finished_ms"]}


def is_tracked(ledger: Ledger, store: Store, sweep: str, result: Json) -> bool:
    """Return whether the ledger notes that this result is complete in `store`, on a run of this sweep."""
    notes = (ledger.read_json(f"tracked/{result['key']}.json") or {}).get("sweeps", {})
    note = notes.get(sweep)
    return note is not None and note == tracked(store, str(note.get("run")), result)
