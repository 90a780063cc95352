"""Waves of seeds or folds: what the results so far say of a page's questions, and how much more each cell needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from sweeps.experiment.metrics import Metric
from sweeps.experiment.questions.question import Question, asked_cells, needed_sizes
from sweeps.experiment.questions.rule import FIRST, Trajectory, follow, look_sizes
from sweeps.experiment.trial import SECOND_SEED, Cell, Trial
from sweeps.experiment.wording import count
from sweeps.store.ledger import Json


class Waves(NamedTuple):
    """Trajectories of a page's questions, in its order, and the seeds or folds that each cell needs now, by its key."""

    trajectories: tuple[Trajectory, ...]
    needed: Mapping[str, int]


class Design(NamedTuple):
    """Design of a sweep until decided: what a protocol says of seeds and folds, and their largest number `most`."""

    seeds: int
    single: bool
    ablation: bool
    folds: int
    most: int

    @property
    def unit(self) -> str:
        """Return what a wave adds: folds where the protocol has them, else seeds."""
        return "fold" if self.folds else "seed"

    @property
    def phase(self) -> str:
        """Return the phase of the trials that make a cell's number."""
        return "fold" if self.folds else "match" if self.single else "ablation"

    @property
    def first(self) -> int:
        """Return how many pairs the first wave has: the declared seeds, at least as many as a spread needs."""
        return FIRST if self.folds else look_sizes(self.seeds, self.most)[0]

    def check(self) -> None:
        """Raise ValueError for a largest number of pairs that no protocol reaches."""
        if self.most and not (self.folds or self.ablation or self.single):
            raise ValueError("a sweep until decided needs seeds or folds")
        if self.most and self.most < FIRST:
            raise ValueError(f"a sweep until decided has at least {count(FIRST, self.unit)} a cell, not {self.most}")
        if self.folds and self.most > self.folds:
            raise ValueError(f"a sweep until decided has at most its {count(self.folds, 'fold')}, not {self.most}")

    def is_beyond(self, trial: Trial, needed: int) -> bool:
        """Return whether a trial belongs to a wave that is not needed yet."""
        return bool(trial.folds) == bool(self.folds) and number_of(trial) >= needed


def waves(
    questions: Sequence[Question],
    cells: Sequence[Cell],
    design: Design,
    trials: Mapping[str, Sequence[Trial]],
    results: Mapping[str, Json],
    settled: Collection[str],
) -> Waves:
    """Return where each question of a sweep until decided stands; `trials` are those of the protocol, by cell key.

    A failed or skipped trial is `settled` and has no result: its pair is missing, as it is in the tables.
    """
    labelled = {cell.label: cell for cell in cells}
    parts = {
        label: _CellValues(design, labelled[label].metric, trials.get(labelled[label].key, ()), results, settled)
        for label in asked_cells(questions)
    }
    gains, reached = [], []
    for question in questions:
        ours, theirs = (parts[label] for label in question.labels)
        cost = labelled[question.cell].metric.cost
        pairs = sorted(ours.values.keys() & theirs.values.keys())
        gains.append({n: cost(theirs.values[n]) - cost(ours.values[n]) for n in pairs})
        reached.append(min(ours.settled, theirs.settled))
    margins = [question.margin for question in questions]
    trajectories, sizes = follow(gains, reached, margins, design.first, design.most, design.folds)
    needed = {labelled[label].key: size for label, size in needed_sizes(questions, sizes).items()}
    return Waves(trajectories, needed)


class _CellValues:
    """Values of one cell by the number of the seed or fold, and how many of these are settled without a gap."""

    def __init__(
        self,
        design: Design,
        metric: Metric,
        trials: Iterable[Trial],
        results: Mapping[str, Json],
        settled: Collection[str],
    ) -> None:
        self.values: dict[int, float] = {}
        over: set[int] = set()
        for trial in trials:
            result = results.get(trial.key)
            n = number_of(trial)
            if trial.phase == design.phase and (result is not None or trial.key in settled):
                over.add(n)
                if result is not None and metric.final in result["metrics"]:
                    self.values[n] = float(result["metrics"][metric.final])
            elif trial.phase == "holdout" and design.phase == "match" and result is None and trial.key in settled:
                over.add(n)  # the second phase of Single never comes
        self.settled = next(n for n in range(len(over) + 1) if n not in over)


def number_of(trial: Trial) -> int:
    """Return the number of a trial's seed or fold, by which the trials of two cells are paired."""
    return trial.fold if trial.folds else trial.seed % SECOND_SEED
