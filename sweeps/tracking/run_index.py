"""Run index: the runs of one ledger and sweep in one experiment, read once and created where they are missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crelu_data.datasets import stem
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.store.local_uris import local_path, sqlite_file
from sweeps.tracking.fenced_client import fenced
from sweeps.tracking.layout import (
    COLOUR,
    LEDGER,
    Owner,
    colours,
    experiment_tags,
    params_of,
    short_names,
    varied_fields,
    words_apart,
)
from sweeps.tracking.mlflow_client import PARENT, all_runs, connected, param_entities, run_tags

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run

FINAL: Final = ("final/", "best/")  # how the names of a trial's last numbers begin


@dataclass(frozen=True)
class Store:
    """An MLflow store: tracking URI, experiment, root of a new experiment's artifacts, data fingerprints."""

    uri: str
    experiment: str
    artifacts: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)


def labels_of(cell: Cell) -> dict[str, str]:
    """Return the tags of a run that say what its cell is called; its key stays the same where they change."""
    return {"cell.label": cell.label, "paper.table": cell.table, "paper.row": cell.row}


def lies_elsewhere(store: Store, location: str) -> bool:
    """Return whether an experiment of a store in an output folder has its artifacts in another output folder.

    That is so after the folder was moved or copied, its store with it.
    """
    file = sqlite_file(store.uri)
    ours = Path(local_path(store.artifacts))
    theirs = Path(local_path(location))
    if file is None or not store.artifacts or file.parent != ours.parent or theirs.name != ours.name or theirs == ours:
        return False
    return not (theirs.parent.exists() and os.path.samefile(theirs.parent, ours.parent))


class RunIndex:
    """Index of the runs of one sweep in one MLflow experiment; every call may raise what MLflow raises."""

    def __init__(self, store: Store, ledger: Ledger, sweep: Sweep, tell: Callable[[str], None]) -> None:
        """Open or create the experiment, and read the runs that it has; `tell` gets a sentence for each repair."""
        import mlflow

        self.mlflow = mlflow
        self.store = store
        self.ledger = ledger
        self.sweep = sweep
        self.client = fenced(connected(store.uri, tell), ledger.guard)
        self.owner = Owner(ledger.identity, sweep.title)
        self.names = short_names([cell.label for cell in sweep.cells])
        self.varied = varied_fields(sweep.cells)
        self.words = words_apart(sweep.cells, self.varied)
        self.experiment = self._open_experiment()
        self.runs: dict[str, str] = {}  # by trial key, or "cell:" and cell key
        self.states: dict[str, str] = {}  # by run, as this driver read or set them
        self.finals: dict[str, dict[str, float]] = {}  # last numbers on a trial's run, by trial key
        self.parents: dict[str, str] = {}  # the run above a trial's, by trial key
        self.ended: dict[str, int] = {}  # when a run ended, by run
        self.run_names: dict[str, str] = {}  # of trials' runs as they were read, by trial key
        self.old_tags: dict[str, dict[str, str]] = {}  # their tags
        self.measured: set[str] = set()  # keys of trials whose runs had numbers when they were read
        self.stored: dict[str, Run] = {}  # cells' runs as they were read, until something is sent to them
        self._read_runs()
        self.colours = colours((cell.key for cell in sweep.everyone), self._known_colours())

    def _known_colours(self) -> dict[str, str]:
        """Return the colours that cells have, by their keys: that of a cell's run, else of one of its trials."""
        tags = [*self.old_tags.values(), *(run.data.tags for run in self.stored.values())]
        return {known.get("cell.key", ""): known[COLOUR] for known in tags if COLOUR in known}

    def _open_experiment(self) -> str:
        name = self.store.experiment
        tags = experiment_tags(self.sweep.metric)
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None and lies_elsewhere(self.store, experiment.artifact_location):
            # Its runs would write to the folder that this one was copied from, or to one that is gone. The ledger has
            # all of them: they are sent anew.
            if experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(experiment.experiment_id)
            folder = Path(local_path(experiment.artifact_location)).parent
            self.client.rename_experiment(experiment.experiment_id, f"{name} of {folder}, {experiment.experiment_id}")
            experiment = None
        experiment = self._sort_set_aside(experiment)
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

    def _sort_set_aside(self, experiment: Experiment | None) -> Experiment | None:
        """Return the experiment, else one that was set aside while the folder was elsewhere, under its name again.

        It deletes the other experiments set aside if their folder is gone or is ours: their runs are doubles.
        MLflow keeps deleted ones until `mlflow gc`.
        """
        file = sqlite_file(self.store.uri)
        ours = Path(local_path(self.store.artifacts))
        if file is None or not self.store.artifacts or file.parent != ours.parent:
            return experiment
        everything = self.client.search_experiments(view_type=self.mlflow.entities.ViewType.ALL)
        for other in sorted(everything, key=lambda other: int(other.experiment_id)):
            known = other.experiment_id
            theirs = Path(local_path(other.artifact_location))
            if other.name != f"{self.store.experiment} of {theirs.parent}, {known}":
                continue
            if theirs == ours and experiment is None:
                if other.lifecycle_stage == "deleted":
                    self.client.restore_experiment(known)
                self.client.rename_experiment(known, self.store.experiment)
                experiment = self.client.get_experiment(known)
            elif other.lifecycle_stage != "deleted" and (theirs == ours or not theirs.parent.exists()):
                self.client.delete_experiment(known)
        return experiment

    def _read_runs(self) -> None:
        """Read all runs once and take those of this ledger and sweep; of two runs for one thing, one is deleted.

        Of a trial the run with more metrics stays, of a cell the newer one: it takes the place of the other. A run
        without parameters was never created to its end, and is deleted too.
        """
        ranked: dict[str, list[tuple[int, int, Run]]] = {}
        for run in self._own_runs():
            tags = run.data.tags
            info = run.info
            is_trial = "trial.key" in tags
            name = tags["trial.key"] if is_trial else "cell:" + tags.get("cell.key", "")
            if not run.data.params:
                self.client.delete_run(info.run_id)
                continue
            rank = (len(run.data.metrics), -info.start_time) if is_trial else (info.start_time, 0)
            ranked.setdefault(name, []).append((*rank, run))
        last: dict[str, Run] = {}
        for name, ranks in ranked.items():
            *doubles, last[name] = [run for *_, run in sorted(ranks, key=lambda rank: (*rank[:2], rank[2].info.run_id))]
            for double in doubles:
                self.client.delete_run(double.info.run_id)
        for name, run in last.items():
            self.runs[name] = run.info.run_id
            self.states[run.info.run_id] = run.info.status
            if "trial.key" in run.data.tags:
                self.finals[name] = {key: value for key, value in run.data.metrics.items() if key.startswith(FINAL)}
                self.parents[name] = run.data.tags.get(PARENT, "")
                self.ended[run.info.run_id] = run.info.end_time or 0
                self.run_names[name] = run.info.run_name
                self.old_tags[name] = dict(run.data.tags)
                self.measured |= {name} if run.data.metrics else set()
            else:
                self.stored[run.info.run_id] = run

    def _own_runs(self) -> list[Run]:
        """Return the runs of this ledger and sweep, those of an earlier version included.

        Such a run names no ledger. A trial's is ours where a note on the ledger names it; a cell's where all runs
        below it are ours.
        """
        owned: list[Run] = []
        unsigned: list[Run] = []
        others: set[str] = set()  # parents of runs that are not ours
        for run in all_runs(self.client, self.experiment):
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
            self.tag(run.info.run_id, self.owner.tags)
        return [*owned, *noted, *cells]

    def _is_noted(self, run: Run) -> bool:
        note = self.ledger.read_json(f"tracked/{run.data.tags['trial.key']}.json") or {}
        return run.info.run_id in (note.get("run"), note.get("sweeps", {}).get(self.sweep.title, {}).get("run"))

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run in one request."""
        self.client.log_batch(run, tags=run_tags(tags))

    def name_of(self, cell: Cell) -> str:
        """Return the short name of a cell."""
        return self.names.get(cell.label, cell.label)

    def params_of(self, trial: Trial) -> dict[str, str | int | float]:
        """Return the parameters of a trial's run."""
        return params_of(trial, self.name_of(trial.cell), self.varied, self.words)

    def rename(self, run: str, cell: Cell, name: str, old_name: str, old_tags: Mapping[str, str]) -> None:
        """Give a run the name and the tags that its cell has now, where they differ from its old ones.

        A colour stays: somebody may have picked it in the UI.
        """
        if old_name != name:
            self.client.update_run(run, name=name)
        tags = {tag: value for tag, value in labels_of(cell).items() if old_tags.get(tag, "") != value}
        tags |= {} if COLOUR in old_tags else self._colour_of(cell)
        if tags:
            self.tag(run, tags)

    def _colour_of(self, cell: Cell) -> dict[str, str]:
        """Return the tag of a run that gives it the colour of its cell, the same for the cell and its trials."""
        return {COLOUR: self.colours[cell.key]} if cell.key in self.colours else {}

    def create(
        self,
        key: str,
        cell: Cell,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str | int | float],
        began: int | None = None,
    ) -> str:
        """Create a run with its data set and its parameters. The parameters come last: a run with them is complete.

        It began now, where nothing else is known.
        """
        kind = "synthetic" if cell.dataset.startswith("synthetic") else "real"
        of_cell = self.owner.tags | {
            "sweep": self.sweep.name,
            "profile": self.sweep.scale,
            "cell.key": cell.key,
            **labels_of(cell),
            **self._colour_of(cell),
            "data.kind": kind,
        }
        created = self.client.create_run(self.experiment, start_time=began, tags=of_cell | dict(tags), run_name=name)
        run = str(created.info.run_id)
        self.runs[key] = run
        entities = self.mlflow.entities
        digest = self.store.digests.get(cell.dataset, "")[:36] or "unknown"
        dataset = entities.Dataset(stem(cell.dataset)[:500], digest, "local", json.dumps({"uri": cell.dataset}))
        context = entities.InputTag("mlflow.data.context", "training")
        self.client.log_inputs(run, [entities.DatasetInput(dataset, [context])])
        self.client.log_batch(run, params=param_entities(params))
        return run

    def set_status(self, run: str, state: str) -> None:
        """Set the status of a run where it has another one."""
        # A new run is a running one. The server is not asked again: that would double what an epoch costs it.
        if self.states.get(run, "RUNNING") == state:
            return
        if state in ("FAILED", "KILLED", "FINISHED"):
            self.client.set_terminated(run, state)
        else:
            self.client.update_run(run, state)
        self.states[run] = state
