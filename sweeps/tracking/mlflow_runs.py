"""MLflow as a projection of the ledger: one run a trial, one parent run a cell, written by the driver.

Every call brings a run to what the ledger says, so that nothing is lost while the server is away and nothing is
doubled when a call is repeated: points carry the times of the trial's own history, and a point sent twice is one point.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from sweeps.experiment.metrics import flags_of, says_approximate
from sweeps.experiment.plan import has_failed
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.checkpoint_header import progress
from sweeps.store.git import page_source
from sweeps.store.integrity import checked, noted_damage
from sweeps.store.ledger import Json, Ledger
from sweeps.tracking.cell_runs import CellRuns
from sweeps.tracking.mlflow_client import PARENT, log_folder, metric_points, run_tags
from sweeps.tracking.model_files import with_model
from sweeps.tracking.run_index import FINAL, RunIndex, Store

ROWS: Final = 50  # epochs in one request: the server takes 1,000 points
LEADING: Final = "train/loss"  # the metric that every epoch has: its points say which epochs a run has
OF_TASK: Final = "sys/images_per_s"  # the same of a training function of the user's
Row = Mapping[str, float]


class MlflowRuns:
    """The runs of one sweep in one MLflow experiment; every call may raise what MLflow raises."""

    def __init__(
        self, store: Store, ledger: Ledger, sweep: Sweep, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Open or create the experiment, and read the runs that it has; `tell` gets a sentence for each repair."""
        self.store = store
        self.ledger = ledger
        self.sweep = sweep
        self.index = RunIndex(store, ledger, sweep, tell)
        self.client = self.index.client
        self.owner = self.index.owner
        self.experiment = self.index.experiment
        self.runs: Mapping[str, str] = self.index.runs  # by trial key, or "cell:" and cell key
        self.cells = CellRuns(self.index)
        self.sent: dict[str, dict[int, float]] = {}  # the leading metric by epoch, by trial key
        self.opened = int(1000 * time.time())
        self.source = page_source()

    def sync_cell(
        self, cell: Cell, trials: Iterable[Trial], skipped: Collection[str] = (), paused: Collection[str] = ()
    ) -> None:
        """Bring a cell's run to its trials' averages; those that are `skipped` or `paused` are not waited for."""
        self.cells.sync(cell, trials, skipped, paused)

    # What differs from the ledger -----------------------------------------------------------------------------

    def outdated(self, expected: Mapping[str, tuple[Trial, str]]) -> dict[str, tuple[Trial, str]]:
        """Return those of the `expected` trials, with their statuses, whose runs are not as the ledger says.

        The status of a trial with a result or too many failed attempts is not what is expected, but the ledger's. The
        runs are compared as they were read or sent; only an unfinished training is asked for its epochs, by its sync.
        """
        results = self.ledger.results(expected)
        damaged = noted_damage(self.ledger)
        begun = set(self.ledger.folders("checkpoints"))
        failed = {key for key, attempts in self.ledger.failed().items() if has_failed(attempts)}
        differing: dict[str, tuple[Trial, str]] = {}
        for key, (trial, state) in expected.items():
            run = self.runs.get(key)
            status = self.index.states.get(run, "RUNNING") if run is not None else ""
            if key in damaged:
                differs = status != "FAILED"
            elif key in results:
                differs = not self._is_complete(key, results[key])
            elif key in failed:
                differs = status != "FAILED"
            elif key in begun:
                differs = True
            else:
                differs = run is not None and (status != state or key in self.index.measured)
            if differs:
                differing[key] = (trial, state)
        return differing

    def _is_complete(self, key: str, result: Json) -> bool:
        """Return whether a trial's run shows this result, as far as a search shows it, and the ledger notes it."""
        run = self.runs.get(key)
        if run is None or self.index.states.get(run) != "FINISHED":
            return False
        finals = {name: value for name, value in _finite(result["metrics"]).items() if name.startswith(FINAL)}
        logged = self.index.finals.get(key, {})
        if self.index.ended.get(run) != int(result["finished_ms"]) or logged.keys() != finals.keys():
            return False
        return _agree(logged, finals) and is_tracked(self.ledger, self.store, self.sweep.title, result, run)

    def remove_strangers(self, known: Collection[str]) -> None:
        """Delete the runs of cells that the sweep no longer has, and of trials of no plan that the ledger has not.

        The averages of a cell that comes back are had again from its trials: those on the ledger keep their runs, which
        run no more.
        """
        cells = {f"cell:{cell.key}" for cell in self.sweep.everyone}
        for name in [name for name in self.runs if name.startswith("cell:") and name not in cells]:
            self._delete(name, self.runs[name])
        strangers = [key for key in self.runs if not key.startswith("cell:") and key not in known]
        results = self.ledger.results(strangers) if strangers else {}
        for key in strangers:
            if key not in results and not self.ledger.attempts(key) and progress(self.ledger, key) is None:
                self._delete(key, self.runs[key])
            elif self.index.states.get(self.runs[key]) == "RUNNING":
                self.index.set_status(self.runs[key], "KILLED")

    def rename_trials(self, trials: Iterable[Trial]) -> None:
        """Give the runs of trials the names and labels that the sweep has for them now."""
        for trial in trials:
            old_name = self.index.run_names.pop(trial.key, None)
            if old_name is not None and (run := self.runs.get(trial.key)) is not None:
                old_tags = self.index.old_tags.pop(trial.key)
                self.index.rename(run, trial.cell, self._name_of(trial), old_name, old_tags)

    def shown_cells(self, keys: Collection[str]) -> list[Cell]:
        """Return the sweep's cells that have a run, or whose key is among `keys`."""
        return [cell for cell in self.sweep.cells if f"cell:{cell.key}" in self.runs or cell.key in keys]

    def sync_trial(self, trial: Trial, state: str) -> bool:
        """Bring a trial's run to what the ledger says, its status to `state` without a result; return if it has one."""
        key = trial.key
        result = self.ledger.result(trial.key)
        if result is not None and (why := checked(self.ledger, key, result)):
            self._mark_damaged(trial, why)
            return False
        history = self._history(key, result)
        run = self.runs.get(key)
        if run is not None and key in self.index.measured and self._is_forgotten(key, result, history, state):
            self._delete(key, run)
            return False
        measured = _finite(result["metrics"]) if result is not None else {}
        if run is not None and not _agree(self.index.finals.get(key, {}), measured):
            # Last numbers of another training cannot be taken back: this one begins a new run.
            self.client.delete_run(run)
            run = None
        if run is not None and key not in self.sent:
            # What another driver sent is asked once.
            points = self.client.get_metric_history(run, leading(trial))
            self.sent[key] = {int(point.step): float(point.value) for point in points}
        if run is not None and self._shows_another(trial, history, is_over=result is not None):
            # Points cannot be taken back: a training that began anew, with other values, begins a new run.
            self.client.delete_run(run)
            run = None
        if run is None:
            run = self._create_trial_run(trial, _began(history, result), result)
            self.sent[key] = {}
        self._send(trial, run, history)
        if result is not None:
            self._finish(trial, run, result)
            return True
        attempts = self.ledger.attempts(key)
        if has_failed(attempts):
            self.client.set_tag(run, "error", str(attempts[-1].get("error", ""))[:4000])
            state = "FAILED"
        elif state != "RUNNING" and (record := self.ledger.paused_at(key)):
            state = "SCHEDULED"  # MLflow's word for a run that waits
            self.client.set_tag(run, "paused", f"after epoch {record['epoch']} of {trial.recipe.epochs}")
        self.index.set_status(run, state)
        return False

    def _mark_damaged(self, trial: Trial, why: str) -> None:
        """Say on a trial's run that a file of it is damaged, and leave its numbers and files as they are."""
        run = self.runs.get(trial.key) or self._create_trial_run(trial, None)
        self.client.set_tag(run, "error", why)
        self.index.set_status(run, "FAILED")

    def _is_forgotten(self, key: str, result: Json | None, history: Sequence[Row], state: str) -> bool:
        """Return whether the ledger has nothing of a trial any more, which does not train either."""
        is_idle = result is None and not history and state != "RUNNING"
        return is_idle and not has_failed(self.ledger.attempts(key))

    def _shows_another(self, trial: Trial, history: Sequence[Row], is_over: bool) -> bool:
        """Return whether a trial's run has epochs of another training: other values, or more than it came to."""
        sent = self.sent[trial.key]
        epochs = {_epoch(row): row[leading(trial)] for row in history}
        return any(epochs.get(epoch, value) != value for epoch, value in sent.items()) or (
            is_over and bool(epochs) and not sent.keys() <= epochs.keys()
        )

    def _name_of(self, trial: Trial) -> str:
        return f"{self.index.name_of(trial.cell)} {trial.label}"

    def _delete(self, key: str, run: str) -> None:
        """Delete the run of a trial or a cell without another in its place."""
        self.client.delete_run(run)
        del self.index.runs[key]
        self.index.measured.discard(key)
        self.sent.pop(key, None)

    def _history(self, key: str, result: Json | None) -> list[Row]:
        """Return the epochs of a trial as far as they are durable."""
        if result is None:
            return list((progress(self.ledger, key) or {}).get("history", []))
        content = self.ledger.read(f"trials/{key}/history.json")
        return list(json.loads(content)) if content else []

    def _create_trial_run(self, trial: Trial, began: int | None, result: Json | None = None) -> str:
        cell = trial.cell
        parent = self.runs.get(f"cell:{cell.key}") or self.cells.create(cell)
        tags = {PARENT: parent, "trial.key": trial.key, "phase": trial.phase, "seed": str(trial.seed)}
        # What was trained before this process began is not of its commit.
        tags |= self.source if result is None or int(result["finished_ms"]) >= self.opened else {}
        self.index.finals[trial.key] = {}
        self.index.parents[trial.key] = parent
        name = self._name_of(trial)
        return self.index.create(trial.key, cell, name, tags, self.index.params_of(trial), began)

    def _send(self, trial: Trial, run: str, history: Sequence[Row]) -> None:
        """Log the epochs that are not on the run yet, whole rows at a time."""
        key = trial.key
        rows = [row for row in history if _epoch(row) not in self.sent[key]]
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            points = (metric_points(_measured(row), int(row["time_ms"]), _epoch(row)) for row in part)
            self.client.log_batch(run, metrics=list(itertools.chain.from_iterable(points)))
            self.sent[key] |= {_epoch(row): row[leading(trial)] for row in part}

    def _finish(self, trial: Trial, run: str, result: Json) -> None:
        """Log final metrics and files once, close the run, and note on the ledger that it is complete."""
        when = int(result["finished_ms"])
        metrics = _finite(result["metrics"])
        news = {name: value for name, value in metrics.items() if name not in self.index.finals.get(trial.key, {})}
        resume = "exact" if self._proved_exact(trial, result) else str(result.get("resume", ""))
        tags = {
            "flags": ",".join(flags_of(result | {"resume": resume})),
            "data.fingerprint": str(result["fingerprint"]),
            "precision": str(result["precision"]),
            "host": str(result["hardware"].get("host", "")),
            "code": str(result["code"]),
        }
        tags |= {"resume": resume} if resume else {}
        self.client.log_batch(run, metrics=metric_points(news, when, int(result["epochs"])), tags=run_tags(tags))
        self.index.finals[trial.key] = {name: value for name, value in metrics.items() if name.startswith(FINAL)}
        contents = {name: self.ledger.read(f"trials/{trial.key}/{name}") for name in result["files"]}
        known = {name: content for name, content in contents.items() if content is not None}
        log_folder(self.client, run, with_model(trial, result, known, run))
        self.client.set_terminated(run, "FINISHED", end_time=when)
        self.index.states[run] = "FINISHED"
        self.index.ended[run] = when
        note = self.ledger.read_json(f"tracked/{trial.key}.json") or {}
        latest = tracked(self.store, run, result)
        sweeps = note.get("sweeps", {}) | {self.sweep.title: latest}
        self.ledger.write_note(f"tracked/{trial.key}.json", latest | {"sweeps": sweeps})

    def _proved_exact(self, trial: Trial, result: Json) -> bool:
        """Return whether `verify-resume` has proved this cell, by kills, with this code and device.

        The proof does not cover a training with an event that says it is approximate.
        """
        proof = self.ledger.read_json(f"verified/{trial.cell.key}.json") or {}
        hardware = result["hardware"]
        same = proof.get("code") == result["code"] and proof.get("device") == hardware.get("device")
        is_undisturbed = hardware.get("kernels") != "fastest" and not says_approximate(result.get("events", ()))
        return same and bool(proof.get("kills")) and is_undisturbed


def leading(trial: Trial) -> str:
    """Return the metric that every epoch of a trial has."""
    return OF_TASK if trial.cell.task else LEADING


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


# Notes on the ledger ------------------------------------------------------------------------------------------


def tracked(store: Store, run: str, result: Json) -> Json:
    """Return the note that a finished trial is complete in `store`."""
    return {"uri": store.uri, "experiment": store.experiment, "run": run, "finished_ms": result["finished_ms"]}


def is_tracked(ledger: Ledger, store: Store, sweep: str, result: Json, run: str = "") -> bool:
    """Return whether the ledger notes that this result is complete in `store`, on a run of this sweep, or on `run`."""
    notes = (ledger.read_json(f"tracked/{result['key']}.json") or {}).get("sweeps", {})
    note = notes.get(sweep)
    return note is not None and note == tracked(store, run or str(note.get("run")), result)
