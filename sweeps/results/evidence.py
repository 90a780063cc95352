"""The results of a sweep, cell by cell: read from a ledger or a capsule, without torch, Ray or a server."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crelu_data.datasets import dataset
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.metrics import LARGEST, PARAMETERS, has_diverged, lost_text, phase_behind
from sweeps.experiment.model_facts import cell_parameters
from sweeps.experiment.plan import Plan, TrialStatus, current_plan, declared_sweep, trained_seconds, without_damaged
from sweeps.experiment.questions.question import asked_cells
from sweeps.experiment.questions.registration import Change, changes_of
from sweeps.experiment.questions.waves import Design
from sweeps.experiment.search import goal
from sweeps.experiment.space import DROPOUT
from sweeps.experiment.study import study
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import PHASES, Cell, Trial, trial_from_json
from sweeps.experiment.wording import count, question_of, unknown_name
from sweeps.results.analyses import damaged_analysis, default_summaries
from sweeps.results.decisions import Predictions, read_decisions, read_vote
from sweeps.results.provenance import provenance, shares
from sweeps.store.foreign import SWEEP_TITLE
from sweeps.store.ledger import Json, Ledger

SCORES: Final = "tables/scores.parquet"
READ: Final = ("history.json", SCORES)  # the files of a trial that a report reads
# What a capsule has and a ledger has not: the statuses of its trials, frozen. Where it lies, it is believed.
MANIFEST: Final = "capsule.json"
LEFT: Final = ("new", "running")  # the states of trials that are to be trained
POINT_STATES: Final = ("finished", "paused", "pruned", "over limit", "diverged", "failed", "skipped", "open")

Floats = NDArray[np.float64]

# A suggestion of a study: the keys of its trials, its value, and whether it is passed over in the choice.
Suggested = tuple[tuple[str, ...], float | None, bool]


class Run(NamedTuple):
    """One trial with its status, result and analyses, its held-out values by epoch, and its MLflow run.

    `seconds` are those that it was trained, as far as a result, a damaged one too, a checkpoint or a pause notes them.
    `epochs` are those of the curve's values, counted from 1: an own training function may leave some out.
    """

    trial: Trial
    state: str
    why: str
    result: Json | None
    metrics: Mapping[str, float]
    curve: Floats
    decisions: Predictions | None
    mlflow: str
    analyses: Mapping[str, Json]
    seconds: float = 0.0
    epochs: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Return the trial's key."""
        return self.trial.key

    @property
    def gpus(self) -> float:
        """Return how many GPUs it had, or what share of one, by its result; 1 without a GPU, 0 without a result."""
        if self.result is None:
            return 0.0
        hardware = self.result.get("hardware", {})
        ranks = float(hardware.get("ranks", 1)) if "memory" in hardware else 1.0  # on CPUs they share none
        return float(hardware.get("gpu_share", 1)) * max(ranks, float(hardware.get("gpus", 1)))

    @property
    def pair(self) -> tuple[int, int]:
        """Return seed and fold, by which the runs of two cells are paired."""
        return self.trial.seed, self.trial.fold


def hours_of(runs: Iterable[Run]) -> float:
    """Return the hours that runs were trained."""
    return sum(run.seconds for run in runs) / 3600


class SearchPoint(NamedTuple):
    """One suggestion of a study: its runs (one, or one a fold) and its value.

    The value is nan where a run failed, None while unknown; `passed_over` where the rest of its folds or epochs were
    left out, it exceeds a limit of the search, or all of it diverged: it cannot be chosen. `over_limit` where it was
    found to exceed one once it was trained.
    """

    runs: tuple[Run, ...]
    value: float | None
    passed_over: bool = False
    over_limit: bool = False

    @property
    def run(self) -> Run:
        """Return the first of its runs, which has the setting that all of them share."""
        return self.runs[0]

    @property
    def scored(self) -> bool:
        """Return whether it has a value."""
        return self.value is not None and math.isfinite(self.value)

    @property
    def state(self) -> str:
        """Return where it stands, as one of POINT_STATES: finished only if all of it was trained to the end."""
        states = {run.state for run in self.runs}
        if states.intersection(LEFT):
            return "open"
        if "failed" in states:
            return "failed"
        if any(has_diverged(run.result) for run in self.runs):
            return "diverged"
        if "skipped" in states:
            return "skipped"
        if "paused" in states:
            return "paused"
        if self.value is None:
            return "open"
        is_pruned = any(run.result is not None and run.result["status"] == "pruned" for run in self.runs)
        if is_pruned or len(self.runs) < self.run.trial.folds:
            return "pruned"
        if self.over_limit:
            return "over limit"
        return "pruned" if self.passed_over and self.scored else "finished"

    @property
    def early(self) -> str:
        """Return where it ended before all of it was trained, with the value that it had there; empty where it did not.

        It is paused or pruned after an epoch, or pruned after some of its folds.
        """
        run, state = self.run, self.state
        if not self.scored or state not in ("paused", "pruned"):
            return ""
        if state == "paused":
            return f"paused {run.why}"
        if len(self.runs) < run.trial.folds:
            return f"pruned after {len(self.runs)} of {count(run.trial.folds, 'fold')}"
        epochs = (run.result or {}).get("epochs", 0)
        return f"pruned after epoch {epochs} of {run.trial.recipe.epochs}"


@dataclass(frozen=True)
class CellResults:
    """The runs of one cell, the suggestions of its study, and the vote of its folds' networks.

    `rates` are the keys of the trials by which it chose the learning rate of the cells like it, if it did. With
    `larger_wins` its search looks for the largest value. `pending` counts by phase the trials that follow once others
    have ended, as the plan does: no run stands for them. `asked` is the sweep's design where one of its questions is
    about the cell: until they are decided, the questions choose how many trainings it has. `given_up` says why it was
    given up before all of its trials.
    """

    cell: Cell
    runs: tuple[Run, ...]
    tried: tuple[SearchPoint, ...]
    vote: Predictions | None
    rates: tuple[str, ...] = ()
    larger_wins: bool = False
    pending: Mapping[str, int] = field(default_factory=dict)
    asked: Design | None = None
    given_up: str = ""

    def done(self, *phases: str) -> tuple[Run, ...]:
        """Return the runs of these phases that have a result, search trials left out."""
        searched = self.searched
        return tuple(r for r in self.runs if r.result and r.trial.phase in phases and r.key not in searched)

    @property
    def searched(self) -> frozenset[str]:
        """Return the keys of its search trials, and of its study of the learning rate."""
        return frozenset(run.key for point in self.tried for run in point.runs) | frozenset(self.rates)

    @property
    def first_phases(self) -> frozenset[str]:
        """Return the keys of the first phases of Single that a second one goes on from, search trials among them."""
        return frozenset(run.trial.reference for run in self.runs if run.trial.phase == "match")

    @property
    def tested(self) -> tuple[Run, ...]:
        """Return the runs with a result that opened the test set."""
        return tuple(run for run in self.runs if run.result and PHASES[run.trial.phase].test)

    @property
    def winner(self) -> SearchPoint | None:
        """Return the suggestion of the best value, of equal ones the first; None where none may be chosen."""
        scored = [point for point in self.tried if point.scored and not point.passed_over]
        sign = -1 if self.larger_wins else 1
        return min(scored, key=lambda point: sign * (point.value or 0.0), default=None)

    @property
    def tried_once(self) -> tuple[SearchPoint, ...]:
        """Return the suggestions of its study, of those that are one trial the one that went furthest."""
        by_trial: dict[str, SearchPoint] = {}
        for point in sorted(self.tried, key=lambda point: -POINT_STATES.index(point.state)):
            by_trial[point.run.key] = point
        return tuple(by_trial.values())

    @property
    def searched_dropout(self) -> bool:
        """Return whether a search chose between rates of dropout, alone or among other things."""
        trials = [point.run.trial for point in self.tried]
        return any(trial.dropout or any(name.startswith(DROPOUT) for name, _ in trial.choices) for trial in trials)

    def behind(self, metric: str) -> tuple[Run, ...]:
        """Return the runs behind a number of the cell, failed ones too; for Single also the first phases."""
        searched = self.searched
        runs = [run for run in self.runs if run.key not in searched and run.trial.phase != "inner"]
        phases = {run.trial.phase for run in runs}
        phase = phase_behind(metric, phases | ({"match"} if "holdout" in phases else set()))
        return tuple(run for run in runs if run.trial.phase in ((phase, "holdout") if phase == "match" else (phase,)))

    def lost(self, metric: str) -> str:
        """Return what of the trials behind a number diverged, failed or were skipped; empty for none."""
        if metric == PARAMETERS:
            return ""
        return lost_text((run.trial.phase, run.state, run.result) for run in self.behind(metric))

    @property
    def classes(self) -> int | None:
        """Return the number of classes: of the scores, else of the data set, None where neither is known."""
        for run in self.runs:
            if run.decisions is not None:
                return run.decisions.classes
        try:
            return dataset(self.cell.dataset).classes
        except (ValueError, OSError):
            return None

    @property
    def parameters(self) -> float:
        """Return the millions of parameters of the net that was tested, nan where they are not known."""
        trained = [(run.trial, run.result) for run in self.runs]
        parameters = cell_parameters(self.cell, self.classes or None, trained)
        return math.nan if parameters is None else parameters / 1e6

    @property
    def synthetic(self) -> bool:
        """Return whether the data are embedded pictures."""
        return self.cell.dataset.startswith("synthetic")


@dataclass(frozen=True)
class SweepResults:
    """The results of one sweep: `attempts` are failed tries by trial key, `record` is the provenance.

    `hourly` is the price of an hour of a GPU, 0 where none was given, and `share` what the last session gave a trial of
    one, for trials without a result. `changes` are those of its questions after the
    first training. `damaged` has the results of trials that count as failed because a file of theirs is damaged: what
    was chosen and decided by them stands. `given_up` says why cells were given up before all of their trials, by label.
    """

    title: str
    sweep: Sweep
    question: str
    cells: tuple[CellResults, ...]
    attempts: Mapping[str, Sequence[Json]]
    record: Json
    hourly: float = 0.0
    changes: tuple[Change, ...] = ()
    damaged: Mapping[str, Json] = field(default_factory=dict)
    given_up: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0

    @property
    def pending(self) -> int:
        """Return how many trials follow once others have ended."""
        return sum(sum(cell.pending.values()) for cell in self.cells)

    @property
    def to_do(self) -> int:
        """Return how many trials are to be trained, those that follow too; a paused one of a search is not."""
        return sum(run.state in LEFT for run in self.runs) + self.pending

    @property
    def hours(self) -> float:
        """Return the hours that all runs were trained."""
        return hours_of(self.runs)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return the runs of all cells."""
        return tuple(run for cell in self.cells for run in cell.runs)


def titles(ledger: Ledger, name: str | None = None) -> list[str]:
    """Return the sweeps that have been declared, or the one called `name`; ValueError where there is none."""
    plans = [plan.removesuffix(".json") for plan in ledger.names("plans") if plan.endswith(".json")]
    declared = [title for title in plans if SWEEP_TITLE.fullmatch(title)]
    if name is not None and name not in declared:
        raise ValueError(unknown_name("sweep", name, declared, f"the ledger {ledger.root}"))
    if not declared:
        raise ValueError(f"no sweep has run in {ledger.root}; run one, or say where by --output")
    return declared if name is None else [name]


def readable_titles(ledger: Ledger, name: str | None = None) -> tuple[list[str], list[str]]:
    """Return the sweeps whose plans can be read, and a sentence for each of the others.

    ValueError where that is the one called `name`, or none can be read.
    """
    readable: list[str] = []
    left_out: list[str] = []
    for title in titles(ledger, name):
        try:
            declared_sweep(ledger, title)
            readable.append(title)
        except ValueError as error:
            left_out.append(str(error))
    if not readable:
        raise ValueError("; ".join(left_out))
    return readable, [f"left out: {why}" for why in left_out]


def read_sweep(ledger: Ledger, title: str) -> SweepResults:
    """Read the results of a sweep from a ledger, or from a capsule's files.

    ValueError for a sweep that is not there, and for a cell whose dropout was chosen on the test pictures.
    """
    titles(ledger, title)
    manifest = ledger.read_json(MANIFEST)
    if manifest is None:
        plan = without_damaged(current_plan(ledger, title), ledger, READ)
        sweep = plan.sweep
        statuses = plan.statuses
        studies = _studies(plan)
        question = sweep.question or _question(sweep.name)
        trained = [status.trial.cell for status in plan.statuses if status.result is not None]
        record = provenance() | {"code": "; ".join(shares(map(cell_fingerprint, trained)))}
        damaged = plan.damaged
        pending = _pending(plan)
        given_up = plan.given_up
        unfinished = plan.unfinished
    else:
        sweep = declared_sweep(ledger, title)[0]
        statuses, studies = _frozen(ledger, manifest)
        question = str(manifest["question"])
        record = dict(manifest["record"])
        # An older capsule has none of these.
        damaged = dict(manifest.get("damaged", {}))
        pending = {cell: Counter(phases) for cell, phases in manifest.get("pending", {}).items()}
        given_up = dict(manifest.get("given_up", {}))
        begun = {key: {"seconds": float(seconds)} for key, seconds in manifest.get("begun", {}).items()}
        unfinished = {**ledger.paused(), **begun}
    runs = _runs(ledger, title, statuses, damaged, unfinished)
    cells = _cells(ledger, sweep, runs, studies, pending, given_up)
    attempts = {key: tries for key, tries in ledger.failed().items() if key in runs}
    price = ledger.read_json(f"prices/{title}.json") or {}
    hourly, share = float(price.get("hourly", 0)), float(price.get("share", 1))
    changes = changes_of(ledger, title)
    damaged = {key: result for key, result in damaged.items() if key in runs}
    return SweepResults(title, sweep, question, cells, attempts, record, hourly, changes, damaged, given_up, share)


def results_of_plan(plan: Plan, ledger: Ledger) -> SweepResults:
    """Return the results of the cells of a plan as it is, without the record of where they come from.

    ValueError where `read_sweep` has one.
    """
    title = plan.sweep.title
    runs = _runs(ledger, title, plan.statuses, plan.damaged, plan.unfinished)
    cells = _cells(ledger, plan.sweep, runs, _studies(plan), _pending(plan), plan.given_up)
    return SweepResults(title, plan.sweep, plan.sweep.question, cells, {}, {}, given_up=plan.given_up)


def _runs(
    ledger: Ledger,
    title: str,
    statuses: Sequence[TrialStatus],
    damaged: Mapping[str, Json],
    unfinished: Mapping[str, Json],
) -> dict[str, Run]:
    """Return by key what the trials have come to."""
    return {
        status.trial.key: _run(ledger, title, status, trained_seconds(status, damaged, unfinished))
        for status in statuses
    }


def _pending(plan: Plan) -> dict[str, Mapping[str, int]]:
    """Return by cell key how many trials of each phase follow once others have ended."""
    return {cell.key: Counter(trial.phase for trial in plan.pending_of(cell)) for cell in plan.sweep.cells}


def _cells(
    ledger: Ledger,
    sweep: Sweep,
    runs: Mapping[str, Run],
    studies: Mapping[str, Sequence[Suggested]],
    pending: Mapping[str, Mapping[str, int]],
    given_up: Mapping[str, str],
) -> tuple[CellResults, ...]:
    design, asked = sweep.protocol.design, asked_cells(sweep.questions)
    search = sweep.protocol.search
    limits = {} if search is None else search.limits_by_name
    return tuple(
        dataclasses.replace(
            _cell_results(ledger, cell, runs, studies.get(cell.key, ()), limits),
            rates=_rate_keys(sweep, cell),
            larger_wins=_larger_wins(sweep, cell),
            pending=pending.get(cell.key, {}),
            asked=design if cell.label in asked else None,
            given_up=given_up.get(cell.label, ""),
        )
        for cell in sweep.cells
    )


def _larger_wins(sweep: Sweep, cell: Cell) -> bool:
    search = sweep.protocol.search
    return search is not None and goal(search, cell).direction == "maximize"


def _rate_keys(sweep: Sweep, cell: Cell) -> tuple[str, ...]:
    """Return the keys of the trials of a baseline's study of the learning rate; none for any other cell."""
    study = sweep.protocol.rates
    if study is None or sweep.baselines.get(cell.key) != cell:
        return ()
    return tuple(trial.key for trial in study.trials(cell))


def _studies(plan: Plan) -> dict[str, list[Suggested]]:
    """Return by cell key what its study has suggested, in order, as the ledger was for the plan: it has the trials."""
    search = plan.sweep.protocol.search
    if search is None:
        return {}
    results = {status.trial.key: status.result for status in plan.statuses if status.result is not None}
    results |= plan.damaged
    return {
        cell.key: [
            (
                tuple(t.key for t in suggestion.trials),
                suggestion.value,
                not suggestion.may_be_chosen,
            )
            for suggestion in study(
                search, cell, results, plan.failed, plan.rates.get(cell.key) or 0.0, plan.paused
            ).suggestions
            if not suggestion.refused
        ]
        for cell in plan.sweep.cells
        if plan.rates.get(cell.key, 0.0) is not None  # else its search waits for the learning rate
    }


def _frozen(ledger: Ledger, manifest: Json) -> tuple[tuple[TrialStatus, ...], dict[str, list[Suggested]]]:
    """Return statuses and studies from a capsule, where nothing is planned anew; ValueError for a bad key."""
    statuses = []
    for key, state, why in manifest["standings"]:
        if not re.fullmatch("[0-9a-f]{20}", key):
            raise ValueError(f"a capsule of a trial {key[:40]!r}, which is no trial's key")
        trial = trial_from_json(ledger.read_json(f"trials/{key}/trial.json"))
        statuses.append(TrialStatus(trial, state, ledger.result(key), why))
    studies = {
        cell: [(tuple(keys), value, passed_over) for keys, value, passed_over in suggestions]
        for cell, suggestions in manifest["studies"].items()
    }
    return tuple(statuses), studies


def _run(ledger: Ledger, title: str, status: TrialStatus, seconds: float) -> Run:
    trial, state, result, why = status
    mlflow = str(ledger.tracked(trial.key, title).get("run", ""))
    if result is None:
        return Run(trial, state, why, None, {}, np.zeros(0), None, mlflow, {}, seconds)
    analyses = default_summaries(ledger, trial.key)
    why = why or damaged_analysis(ledger, trial.key)
    measured = [result["metrics"], *(summary["metrics"] for summary in analyses.values())]
    metrics = {name: float(value) for metrics in measured for name, value in metrics.items()}
    # The decisions of folds are read together with their vote.
    alone = PHASES[trial.phase].test and trial.phase != "fold"
    decisions = read_decisions(ledger, f"trials/{trial.key}/tables") if alone else None
    epochs, curve = _curve(ledger, trial, result)
    for value in (*metrics.values(), *curve):
        if math.isfinite(value) and abs(value) > LARGEST:
            raise ValueError(f"trial {trial.key} has a metric of {value:g}, which nothing here measures")
    return Run(trial, state, why, result, metrics, curve, decisions, mlflow, analyses, seconds, epochs)


def _curve(ledger: Ledger, trial: Trial, result: Json) -> tuple[tuple[int, ...], Floats]:
    """Return the epochs after which the cell's metric was measured on held-out pictures, and its values.

    Both are empty for a phase that holds none out. The curve in a result has a value of each epoch; a training by an
    own function may have measured only some of them.
    """
    errors = result.get("curve")
    if errors:
        return tuple(range(1, len(errors) + 1)), np.asarray(errors, np.float64)
    rows = json.loads(ledger.read(f"trials/{trial.key}/history.json") or b"[]")
    name = trial.cell.metric.row
    measured = [row for row in rows if name in row]
    epochs = tuple(int(row["epoch"]) for row in measured)
    return epochs, np.asarray([row[name] for row in measured], np.float64)


def _cell_results(
    ledger: Ledger, cell: Cell, runs: Mapping[str, Run], suggestions: Iterable[Suggested], limits: Mapping[str, float]
) -> CellResults:
    points = tuple(
        SearchPoint(
            tuple(runs[key] for key in keys), value, passed_over, passed_over and _exceeds(runs[keys[0]], limits)
        )
        for keys, value, passed_over in suggestions
    )
    for run in [run for point in points for run in point.runs]:
        if _knows_test_set(run):
            raise ValueError(
                f"the dropout of {cell.label} was chosen by trial {run.key}, which saw the test pictures; "
                "a cell whose dropout is chosen on test data has no place in a table: search on a hold-out"
            )
    of_cell = {key: run for key, run in runs.items() if run.trial.cell.key == cell.key}
    folds = [run for run in of_cell.values() if run.trial.phase == "fold" and run.result]
    guesses = sum(has_diverged(run.result) for run in folds)
    alone, together = read_vote(ledger, f"votes/{cell.key}", [f"trials/{run.key}/tables" for run in folds], guesses)
    of_cell |= {run.key: run._replace(decisions=decisions) for run, decisions in zip(folds, alone, strict=True)}
    return CellResults(cell, tuple(of_cell.values()), points, together)


def _exceeds(run: Run, limits: Mapping[str, float]) -> bool:
    """Return whether a training was found to exceed a limit of its search."""
    measured = {"seconds": run.seconds, "parameters": float((run.result or {}).get("parameters", 0))}
    return any(measured[name] > most for name, most in limits.items())


def _knows_test_set(run: Run) -> bool:
    files = run.result["files"] if run.result else {}
    measured = any(name.startswith("final/test") for name in run.metrics)
    return PHASES[run.trial.phase].test or measured or SCORES in files


def _question(name: str) -> str:
    """Return the question of a page of ours, for a plan that was written without it; empty where there is no page."""
    path = Path(__file__).resolve().parents[2] / "sweeps" / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) if path.is_file() else None
    return question_of(text)
