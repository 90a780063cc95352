"""Cells' runs in MLflow: the averages of their trials, the report, and its notes.

MLflow cannot take a metric or a parameter back. A run that has one which no longer holds is deleted, and a new one
takes its place. Numbers that change are points at rising steps, since MLflow shows the last step and clocks differ.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sweeps.experiment.metrics import VOTE
from sweeps.experiment.plan import has_failed
from sweeps.experiment.study import study
from sweeps.experiment.trial import Cell, Trial
from sweeps.experiment.wording import count
from sweeps.store.integrity import noted_damage
from sweeps.tracking.layout import (
    COLOUR,
    NOTE,
    NOTE_LENGTH,
    RENAMED,
    REPORT,
    REPORT_RUN,
    TRAININGS,
    Owner,
    Page,
    cell_metrics,
    params_of_cell,
    trainings_digest,
)
from sweeps.tracking.mlflow_client import (
    PARENT,
    REVISION,
    all_runs,
    connected,
    log_folder,
    param_entities,
    run_tags,
    set_numbers,
)
from sweeps.tracking.run_index import FINAL, RunIndex
from sweeps.tracking.verb_words import report_words

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LASTING: Final = ("net/", "paper/")  # how the names of a cell's numbers begin that hold for any trainings
OF_CELL: Final = ("agg/", *FINAL, *LASTING)  # how the names of all numbers begin that are logged on a cell's run
CHOSEN: Final = ("dropout", *RENAMED.values())  # parameters of a cell that a study may choose
SEARCHED: Final = ("recipe.", "model.", "net.")  # how the names of all others that it may choose begin
# Pages of a report by cell key, from the experiment's id, the runs by cell key, and the run on which the report lies.
Pages = Callable[[str, Mapping[str, str], str], Mapping[str, Page]]


class CellRuns:
    """The runs of a sweep's cells; every call may raise what MLflow raises."""

    def __init__(self, index: RunIndex) -> None:
        """Take the runs from an index, which the cells share with their trials."""
        self.index = index

    def sync(
        self, cell: Cell, trials: Iterable[Trial], skipped: Collection[str] = (), paused: Collection[str] = ()
    ) -> None:
        """Bring a cell's run to the averages of its trials' test errors; it is over with the last that is not skipped.

        Where they change, the report's note and vote are of other trainings: they go, until the next report. Those that
        were `paused` for good by their search are neither waited for nor a failure.
        """
        trials = list(trials)
        damaged = noted_damage(self.index.ledger)
        results = self.index.ledger.results(trial.key for trial in trials if trial.key not in damaged)
        params = self._params_of_cell(cell, trials)
        measured = ((trial, results[trial.key]["metrics"]) for trial in trials if trial.key in results)
        numbers = cell_metrics(measured, self._winner(cell, trials))
        digest = trainings_digest(results)
        known_run = self.index.runs.get(f"cell:{cell.key}") or self.create(cell, trials)
        stored = self.index.stored.pop(known_run, None) or self.index.client.get_run(known_run)
        metrics, tags = stored.data.metrics, stored.data.tags
        numbers |= {name: value for name, value in metrics.items() if name.startswith(LASTING)}
        if tags.get(TRAININGS) == digest and VOTE in metrics:
            numbers[VOTE] = metrics[VOTE]
        # Numbers that differ though they are of the same trainings are somebody else's, at steps that are not known.
        is_foreign = tags.get(TRAININGS) == digest and any(metrics.get(name, n) != n for name, n in numbers.items())
        if is_foreign or not self.index.owner.has(tags) or not _holds(stored, numbers, params):
            old = stored
            stored = _replace(self.index.client, stored, params, self.index.owner.tags)
            below = {key: stored.info.run_id for key, parent in self.index.parents.items() if parent == old.info.run_id}
            self.index.parents |= below
        run = self.index.runs[f"cell:{cell.key}"] = stored.info.run_id
        self.index.states.setdefault(run, stored.info.status)
        for trial in trials:
            if self.index.parents.get(trial.key, run) != run:
                self.index.client.set_tag(self.index.runs[trial.key], PARENT, run)
                self.index.parents[trial.key] = run
        known = stored.data.params
        missing = {name: value for name, value in params.items() if name not in known}
        if missing:
            self.index.client.log_batch(run, params=param_entities(missing))
        self.index.rename(run, cell, self.index.name_of(cell), stored.info.run_name, stored.data.tags)
        set_numbers(self.index.client, stored, numbers)
        if stored.data.tags.get(TRAININGS) != digest:
            if REPORT_RUN in stored.data.tags:
                self.index.client.delete_tag(run, REPORT_RUN)
            self.index.tag(run, {NOTE: self._provisional_note(len(results), len(trials)), TRAININGS: digest})
        missing_trials = [trial for trial in trials if trial.key not in results and trial.key not in paused]
        is_failed = missing_trials and all(
            trial.key in skipped or trial.key in damaged or has_failed(self.index.ledger.attempts(trial.key))
            for trial in missing_trials
        )
        self.index.set_status(run, "FAILED" if is_failed else "RUNNING" if missing_trials else "FINISHED")

    def _winner(self, cell: Cell, trials: Sequence[Trial]) -> Collection[str] | None:
        """Return the keys of the trials that a cell's search has chosen so far; None where the sweep has no search."""
        search = self.index.sweep.protocol.search
        if search is None:
            return None
        ledger = self.index.ledger
        # Of damaged trials too: what was chosen by them stands.
        results = ledger.results(trial.key for trial in trials)
        failed = {key for key, attempts in ledger.failed().items() if has_failed(attempts)}
        rate = next((trial.rate for trial in trials if trial.chosen), 0.0)
        winner = study(search, cell, results, failed, rate, ledger.paused()).winner
        return [trial.key for trial in winner.trials] if winner is not None else []

    def create(self, cell: Cell, trials: Iterable[Trial] = ()) -> str:
        """Create the run of a cell; return its id."""
        tags = {"phase": "cell", "seed": "all"}
        return self.index.create(
            f"cell:{cell.key}", cell, self.index.name_of(cell), tags, self._params_of_cell(cell, trials)
        )

    def _params_of_cell(self, cell: Cell, trials: Iterable[Trial]) -> dict[str, str | int | float]:
        name = self.index.name_of(cell)
        protocol = self.index.sweep.protocol
        return params_of_cell(cell, name, protocol, trials, self.index.varied, self.index.words)

    def _provisional_note(self, done: int, planned: int) -> str:
        """Return the note of a cell that no report has seen as it is now."""
        words = report_words(self.index.sweep.title, self.index.ledger.output, self.index.store.uri)
        return (
            f"In these numbers: {done} of {count(planned, 'training')} planned so far. The row of the table and the "
            f"report follow at the end of the sweep, or by `{shlex.join(['python', '-m', 'sweeps', *words])}`."
        )


def _holds(stored: Run, numbers: Mapping[str, float], params: Mapping[str, str | int | float]) -> bool:
    """Return whether a cell's run has no number beyond these, and no other value of its parameters."""
    wanted = {name: str(value) for name, value in params.items()}
    names = {name for name in stored.data.metrics if name.startswith(OF_CELL)}
    return names <= numbers.keys() and all(
        wanted.get(name) == value
        for name, value in stored.data.params.items()
        if name in wanted or name in CHOSEN or name.startswith(SEARCHED)
    )


def _replace(client: MlflowClient, old: Run, params: Mapping[str, str | int | float], tags: Mapping[str, str]) -> Run:
    """Create a run in place of a cell's run, without its numbers and files, and move the runs below it there."""
    ours = (REPORT, REPORT_RUN, TRAININGS, REVISION)
    kept = {name: tag for name, tag in old.data.tags.items() if name == COLOUR or not name.startswith("mlflow.")}
    old_tags = {name: tag for name, tag in kept.items() if name not in ours}
    experiment = old.info.experiment_id
    run = client.create_run(experiment, tags=old_tags | dict(tags), run_name=old.info.run_name).info.run_id
    client.log_batch(run, params=param_entities(params))
    if old.inputs.dataset_inputs:
        client.log_inputs(run, old.inputs.dataset_inputs)
    for child in list(all_runs(client, experiment, f"tags.`{PARENT}` = '{old.info.run_id}'")):
        client.set_tag(child.info.run_id, PARENT, run)
    client.delete_run(old.info.run_id)
    return client.get_run(run)


# Reports ------------------------------------------------------------------------------------------------------------


class Published(NamedTuple):
    """Publication of a report: the experiment's id, how many runs of cells name it, and how many of them changed."""

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
        run = cells[key].info.run_id
        tags = cells[key].data.tags
        wanted = {NOTE: page.note[:NOTE_LENGTH], REPORT_RUN: holding_run, TRAININGS: page.trainings}
        if key == holder and tags.get(REPORT) != digest:
            log_folder(client, run, files, REPORT)
            wanted[REPORT] = digest
        renumbered = set_numbers(client, cells[key], page.metrics)
        news = {name: tag for name, tag in wanted.items() if tags.get(name) != tag}
        if news:
            client.log_batch(run, tags=run_tags(news))
        changed += bool(news or renumbered)
    return Published(number, len(drafts), changed)


def _cell_runs(client: MlflowClient, experiment: str, owner: Owner) -> dict[str, Run]:
    """Return the runs of an owner's cells by cell key."""
    runs = [run for run in all_runs(client, experiment) if owner.has(run.data.tags) and PARENT not in run.data.tags]
    runs.sort(key=lambda run: (run.info.start_time, run.info.run_id))
    return {run.data.tags["cell.key"]: run for run in runs}


def _ids(cells: Mapping[str, Run]) -> dict[str, str]:
    return {key: run.info.run_id for key, run in cells.items()}
