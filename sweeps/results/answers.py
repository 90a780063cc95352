"""Answers to a page's questions: what a sweep until decided has decided, look by look, and what it has saved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from sweeps.experiment.cell_trials import BEYOND
from sweeps.experiment.metrics import Metric, Stand, lost_text
from sweeps.experiment.plan import Plan, TrialStatus
from sweeps.experiment.questions.question import Question
from sweeps.experiment.questions.registration import Change
from sweeps.experiment.questions.rule import Decision, Trajectory, decision_words, given_up_words
from sweeps.experiment.questions.waves import number_of, waves
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Trial
from sweeps.experiment.wording import count
from sweeps.results.evidence import SweepResults
from sweeps.store.ledger import Json


class Answer(NamedTuple):
    """Answer to a question, from its trajectory; of its two cells' trainings some may be `stale` or `damaged`.

    Those with a damaged file count too: by their results it was decided how many trainings there are. `lost` says of
    each cell which of them trained nothing: one that diverged counts by the error of chance, one that failed is a
    missing pair. `given_up` are the labels of the cells that were given up: no training can answer the question then.
    """

    question: Question
    trajectory: Trajectory
    stale: int = 0
    damaged: int = 0
    lost: str = ""
    given_up: tuple[str, ...] = ()

    @property
    def decision(self) -> Decision:
        """Return the decision; one that is open for ever is undecided."""
        return "undecided" if self.given_up and not self.trajectory.is_decided else self.trajectory.decision

    @property
    def words(self) -> str:
        """Return the decision for people."""
        return decision_words(self.decision, self.given_up)

    @property
    def pairs(self) -> int:
        """Return how many pairs its last look was at."""
        return self.trajectory.looks[-1].n if self.trajectory.looks else 0

    @property
    def warning(self) -> str:
        """Return in words how many of its trainings were lost, are stale or have a damaged file, empty for none."""
        stale = f"{self.stale} of its trainings {'is' if self.stale == 1 else 'are'} stale" if self.stale else ""
        verb = "has" if self.damaged == 1 else "have"
        damaged = f"{self.damaged} of its trainings {verb} a damaged file" if self.damaged else ""
        return ", ".join(filter(None, (self.lost, stale, damaged)))

    def as_json(self) -> Json:
        """Return the question, its decision, and the gain and the interval of its last look."""
        last = self.trajectory.looks[-1] if self.trajectory.looks else None
        interval = [last.low, last.high] if last is not None and math.isfinite(last.low) else None
        return dataclasses.asdict(self.question) | {
            "decision": self.decision,
            "pairs": self.pairs,
            "gain": last.gain if last is not None and math.isfinite(last.gain) else None,
            "interval": interval,
            "stale": self.stale,
            "damaged": self.damaged,
            "lost": self.lost,
            "given_up": list(self.given_up),
        }


class Answers(NamedTuple):
    """Answers to all questions of a page; `used` trainings of its cells, and those that a `fixed` design has.

    Used are those that the questions asked for and that have a result or failed; those that were skipped are not.
    `unit` is what the pairs are, `most` their largest number, `changes` what was changed after the first training.
    `metric` is what gains and margins are of.
    """

    answers: tuple[Answer, ...]
    used: int
    fixed: int
    unit: str
    most: int
    changes: tuple[Change, ...]
    metric: Metric

    @property
    def saved(self) -> str:
        """Return in a sentence what was saved, once nothing is open; to give a cell up saves nothing."""
        if any(answer.trajectory.decision == "open" for answer in self.answers):
            return ""
        units = f"{count(self.used, self.unit)} of the questions' cells in place of {self.fixed:,}"
        given_up = list(dict.fromkeys(label for answer in self.answers for label in answer.given_up))
        if given_up:
            return f"{units}; {given_up_words(given_up)}"
        return f"{units}: {1 - self.used / self.fixed:.0%} saved"

    def as_json(self) -> Json:
        """Return the answers, what they took, and what was changed after the first training."""
        return {
            "unit": self.unit,
            "largest": self.most,
            "used": self.used,
            "fixed": self.fixed,
            "changes": [change.sentence for change in self.changes],
            "answers": [answer.as_json() for answer in self.answers],
        }


def answers_of_plan(plan: Plan, changes: Collection[Change]) -> Answers | None:
    """Return the answers of a planned sweep; None for one that is not to be decided."""
    left_out = plan.searched | plan.studied
    standing = (status for status in plan.statuses if status.trial.key not in left_out)
    return _answers(plan.sweep, standing, plan.damaged, plan.given_up, changes)


def answers(results: SweepResults) -> Answers | None:
    """Return the answers of a sweep's results; None for one that is not to be decided."""
    standing = (
        TrialStatus(run.trial, run.state, run.result, run.why)
        for cell in results.cells
        for run in cell.runs
        if run.key not in cell.searched
    )
    return _answers(results.sweep, standing, results.damaged, results.given_up, results.changes)


def _answers(
    sweep: Sweep,
    standing: Iterable[TrialStatus],
    damaged: Mapping[str, Json],
    given_up: Collection[str],
    changes: Collection[Change],
) -> Answers | None:
    design = sweep.protocol.design
    if not design.most:
        return None
    trials: dict[str, list[Trial]] = {}
    results: dict[str, Json] = {}
    settled: set[str] = set()
    stale: list[str] = []  # the cells' labels, of each training that is
    unsound: list[str] = []  # and of each that has a damaged file
    phases = (design.phase, "holdout") if design.phase == "match" else (design.phase,)
    stands: dict[str, list[Stand]] = {}  # by the cells' labels, of the trainings that make their numbers
    ended: set[tuple[str, int]] = set()  # cells' keys, and the numbers of their seeds or folds that are over
    for trial, state, intact, why in standing:
        trials.setdefault(trial.cell.key, []).append(trial)
        result = damaged.get(trial.key) if intact is None else intact
        if result is not None and not why.endswith(BEYOND):
            results[trial.key] = result
            stale += [trial.cell.label] * (state == "stale" and trial.phase == design.phase)
            unsound += [trial.cell.label] * (intact is None and trial.phase == design.phase)
        elif result is not None or state in ("failed", "skipped"):
            settled.add(trial.key)
        if trial.phase in phases:
            # As the cell's row has it, but that a training with a damaged file is none that failed.
            stand = state if result is None else "done"
            stands.setdefault(trial.cell.label, []).append((trial.phase, stand, result))
            if stand == "failed" or (result is not None and trial.phase == design.phase):
                ended.add((trial.cell.key, number_of(trial)))
    decided = waves(sweep.questions, sweep.cells, design, trials, results, settled)
    rows = tuple(
        Answer(
            question,
            trajectory,
            stale=sum(map(stale.count, question.labels)),
            damaged=sum(map(unsound.count, question.labels)),
            lost=_lost_by_cell({label: stands.get(label, ()) for label in question.labels}),
            given_up=tuple(label for label in question.labels if label in given_up),
        )
        for question, trajectory in zip(sweep.questions, decided.trajectories, strict=True)
    )
    used = sum(number < decided.needed.get(cell, 0) for cell, number in ended)
    fixed = design.most * len(decided.needed)
    return Answers(rows, used, fixed, design.unit, design.most, tuple(changes), sweep.metric)


def _lost_by_cell(stands: Mapping[str, Iterable[Stand]]) -> str:
    """Return how many trainings of each cell were lost, by its label; empty for none."""
    return "; ".join(f"{label}: {lost}" for label, of_cell in stands.items() if (lost := lost_text(of_cell)))
