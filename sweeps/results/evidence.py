"""What the trials of a sweep say, cell by cell: read from a ledger or a capsule, without torch, Ray or a server."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.datasets import dataset
from sweeps.experiment.plan import Plan, Sweep, TrialStatus, current_plan, has_failed, sweep_from_json, unknown_name
from sweeps.experiment.search import study
from sweeps.experiment.trial import PHASES, Cell, Trial, trial_from_json
from sweeps.results.decisions import Predictions, read_decisions, read_vote
from sweeps.results.provenance import provenance
from sweeps.store.ledger import Json, Ledger

# What a capsule holds and a ledger does not: the standings of its trials, frozen. Where it is, it is believed.
MANIFEST: Final = "capsule.json"

Floats = NDArray[np.float64]

# What a study asked for: the keys of its trials, its value, and whether the rest of its folds were left out.
Point = tuple[tuple[str, ...], float | None, bool]


class Run(NamedTuple):
    """One trial as it stands: its result and analyses, its held-out errors by epoch, its MLflow run."""

    trial: Trial
    state: str
    why: str
    result: Json | None
    metrics: Mapping[str, float]
    curve: Floats
    decisions: Predictions | None
    mlflow: str
    analyses: Mapping[str, Json]

    @property
    def key(self) -> str:
        """Return the trial's key."""
        return self.trial.key

    @property
    def pair(self) -> tuple[int, int]:
        """Return what the runs of two cells are paired by: seed and fold."""
        return self.trial.seed, self.trial.fold


class SearchPoint(NamedTuple):
    """One suggestion of a dropout study: its runs (one, or one a fold) and its value.

    The value is nan where a run failed, None while unknown; `cut` where the rest of its folds were left out.
    """

    runs: tuple[Run, ...]
    value: float | None
    pruned_early: bool = False

    @property
    def run(self) -> Run:
        """Return the first of its runs, which has the dropout that all of them share."""
        return self.runs[0]

    @property
    def whole(self) -> bool:
        """Return whether it trained to its end: neither pruned nor diverged nor failed."""
        finished = (run.result is not None and run.result["status"] == "finished" for run in self.runs)
        return not self.pruned_early and self.value is not None and all(finished)

    @property
    def pruned(self) -> bool:
        """Return whether it was given up before its last epoch, or its last fold."""
        given_up = any(run.result is not None and run.result["status"] == "pruned" for run in self.runs)
        return given_up or (self.pruned_early and self.value is not None and math.isfinite(self.value))


@dataclass(frozen=True)
class CellResults:
    """The runs of one cell by phase, the study that chose its dropout, and what its folds' networks vote."""

    cell: Cell
    runs: tuple[Run, ...]
    tried: tuple[SearchPoint, ...]
    vote: Predictions | None

    def done(self, *phases: str) -> tuple[Run, ...]:
        """Return the runs of these phases that have a result, search trials left out."""
        searched = {run.key for tried in self.tried for run in tried.runs}
        return tuple(r for r in self.runs if r.result and r.trial.phase in phases and r.key not in searched)

    @property
    def tested(self) -> tuple[Run, ...]:
        """Return the runs with a result that opened the test set."""
        return tuple(run for run in self.runs if run.result and PHASES[run.trial.phase].test)

    @property
    def winner(self) -> SearchPoint | None:
        """Return the suggestion of least hold-out error, the earlier of two."""
        known = [tried for tried in self.tried if tried.value is not None and math.isfinite(tried.value)]
        return min(
            (tried for tried in known if not tried.pruned_early), key=lambda tried: tried.value or 0.0, default=None
        )

    @property
    def classes(self) -> int | None:
        """Return the classes of the data: those the scores have, else those the data set is known for."""
        seen = [run.decisions.classes for run in self.runs if run.decisions is not None]
        if seen:
            return seen[0]
        try:
            return dataset(self.cell.dataset).classes
        except ValueError:
            return None

    @property
    def parameters(self) -> float:
        """Return the millions of parameters of the net, nan where the classes are not known."""
        return self.cell.net.parameters(self.classes) / 1e6 if self.classes else math.nan

    @property
    def synthetic(self) -> bool:
        """Return whether the data are embedded pictures."""
        return self.cell.dataset.startswith("synthetic")


@dataclass(frozen=True)
class SweepResults:
    """All that is known of one sweep: `attempts` are failed tries by trial key, `record` is the provenance.

    `hourly` is what an hour of a trial costs, 0 where nobody said.
    """

    title: str
    sweep: Sweep
    question: str
    cells: tuple[CellResults, ...]
    attempts: Mapping[str, Sequence[Json]]
    record: Json
    hourly: float = 0.0

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return the runs of all cells."""
        return tuple(run for evidence in self.cells for run in evidence.runs)


def titles(ledger: Ledger, name: str | None = None) -> list[str]:
    """Return the sweeps that have been declared, or the one called `name`; ValueError where there is none."""
    found = [plan.removesuffix(".json") for plan in ledger.names("plans")]
    if name is not None and name not in found:
        raise ValueError(unknown_name("sweep", name, found or ["none"], f"the ledger {ledger.root}"))
    if not found:
        raise ValueError(f"no sweep has run in {ledger.root}; run one, or say where by --output")
    return found if name is None else [name]


def survey(ledger: Ledger, title: str) -> SweepResults:
    """Read all that the ledger, or a capsule's files, say of a sweep.

    ValueError for a sweep that is not there, and for a cell whose dropout was chosen on the test pictures.
    """
    titles(ledger, title)
    sweep = sweep_from_json(ledger.read_json(f"plans/{title}.json"))
    frozen = ledger.read_json(MANIFEST)
    standings, studies = _stand(ledger, current_plan(ledger, title)) if frozen is None else _thaw(ledger, frozen)
    runs = {standing.trial.key: _run(ledger, standing) for standing in standings}
    cells = tuple(_evidence(ledger, sweep, cell, runs, studies.get(cell.key, [])) for cell in sweep.cells)
    attempts = {key: tries for key, tries in ledger.failed().items() if key in runs}
    question = _question(sweep.name) if frozen is None else str(frozen["question"])
    record = provenance() if frozen is None else dict(frozen["record"])
    price = ledger.read_json(f"prices/{title}.json") or {}
    hourly = float(price.get("hourly", 0)) * float(price.get("share", 1))
    return SweepResults(title, sweep, question, cells, attempts, record, hourly)


def _stand(ledger: Ledger, now: Plan) -> tuple[Sequence[TrialStatus], dict[str, list[Point]]]:
    """Return the statuses of a sweep's trials, and by cell key what its study has asked for, in order."""
    sweep = now.sweep
    studies: dict[str, list[Point]] = {}
    if sweep.protocol.search is not None:
        results = {s.trial.key: s.result for s in now.statuses if s.result is not None}
        failed = {key for key, tries in ledger.failed().items() if has_failed(tries)}
        for cell in sweep.cells:
            asked = study(sweep.protocol.search, cell, results, failed).asked
            studies[cell.key] = [(tuple(trial.key for trial in one.trials), one.value, one.pruned) for one in asked]
    return now.statuses, studies


def _thaw(ledger: Ledger, frozen: Json) -> tuple[list[TrialStatus], dict[str, list[Point]]]:
    """Return the same from a capsule, where nothing is planned anew; ValueError for a key that is none."""
    standings = []
    for key, state, why in frozen["standings"]:
        if not re.fullmatch("[0-9a-f]{20}", key):
            raise ValueError(f"a capsule of a trial {key[:40]!r}, which is no trial's key")
        trial = trial_from_json(ledger.read_json(f"trials/{key}/trial.json"))
        standings.append(TrialStatus(trial, state, ledger.result(key), why))
    studies = {
        cell: [(tuple(keys), value, cut) for keys, value, cut in asked] for cell, asked in frozen["studies"].items()
    }
    return standings, studies


def _run(ledger: Ledger, standing: TrialStatus) -> Run:
    trial, result = standing.trial, standing.result
    note = ledger.read_json(f"tracked/{trial.key}.json") or {}
    if result is None:
        return Run(trial, standing.state, standing.why, None, {}, np.zeros(0), None, str(note.get("run", "")), {})
    analyses = _analyses(ledger, trial.key)
    metrics = {name: float(value) for name, value in result["metrics"].items()}
    for summary in analyses.values():
        metrics |= {name: float(value) for name, value in summary["metrics"].items()}
    # Those of folds are read together with their vote.
    alone = PHASES[trial.phase].test and trial.phase != "fold"
    decisions = read_decisions(ledger, f"trials/{trial.key}/tables") if alone else None
    curve = _curve(ledger, trial, result)
    mlflow = str(note.get("run", ""))
    return Run(trial, standing.state, standing.why, result, metrics, curve, decisions, mlflow, analyses)


def _analyses(ledger: Ledger, key: str) -> dict[str, Json]:
    """Return the summaries of the analysis jobs on one trial, by job."""
    jobs = ledger.folders(f"trials/{key}/analysis")
    read = {job: ledger.read_json(f"trials/{key}/analysis/{job}/summary.json") for job in jobs}
    return {job: summary for job, summary in read.items() if summary is not None}


def _curve(ledger: Ledger, trial: Trial, result: Json) -> Floats:
    """Return the held-out top-1 error in percent after each epoch; none where the phase holds nothing out."""
    if result.get("curve"):
        return np.asarray(result["curve"], np.float64)
    content = ledger.read(f"trials/{trial.key}/history.json")
    rows = json.loads(content) if content else []
    return np.asarray([row["val/top1_err"] for row in rows if "val/top1_err" in row], np.float64)


def _evidence(ledger: Ledger, sweep: Sweep, cell: Cell, runs: Mapping[str, Run], asked: Iterable[Point]) -> CellResults:
    own = tuple(run for run in runs.values() if run.trial.cell.key == cell.key)
    tried = tuple(SearchPoint(tuple(runs[key] for key in keys), value, cut) for keys, value, cut in asked)
    for run in [run for one in tried for run in one.runs]:
        if _tested(run):
            raise ValueError(
                f"the dropout of {cell.label} was chosen by trial {run.key}, which saw the test pictures; "
                "a cell whose dropout is chosen on test data has no place in a table: search on a hold-out"
            )
    folds = [run for run in own if run.trial.phase == "fold" and run.result]
    alone, together = read_vote(ledger, f"votes/{cell.key}", [f"trials/{run.key}/tables" for run in folds])
    read = {run.key: run._replace(decisions=decisions) for run, decisions in zip(folds, alone, strict=True)}
    return CellResults(cell, tuple(read.get(run.key, run) for run in own), tried, together)


def _tested(run: Run) -> bool:
    """Tell whether a trial knows anything of the test pictures."""
    files = run.result["files"] if run.result else {}
    named = any(name.startswith("final/test") for name in run.metrics)
    return PHASES[run.trial.phase].test or named or any("scores" in name for name in files)


def _question(name: str) -> str:
    """Return the question of a sweep's page, the first sentence of its docstring; empty where it has no page."""
    path = Path(__file__).resolve().parents[2] / "sweeps" / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) if path.is_file() else None
    return (text or "").partition("\n")[0]
