"""Question of a page: is one cell better than another? Declared before the first training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweeps.experiment.metrics import Metric
from sweeps.experiment.trial import Cell
from sweeps.experiment.wording import unknown_name
from sweeps.store.ledger import Json


def asked_cells(questions: Iterable[Question]) -> tuple[str, ...]:
    """Return the labels of the cells that questions compare, each once, in their order."""
    return tuple(dict.fromkeys(label for question in questions for label in question.labels))


def needed_sizes(questions: Sequence[Question], sizes: Sequence[int]) -> dict[str, int]:
    """Return by label how much each cell needs, where each question needs so much of both of its cells."""
    by_question = list(zip(questions, sizes, strict=True))
    return {
        label: max(size for question, size in by_question if label in question.labels)
        for label in asked_cells(questions)
    }


@dataclass(frozen=True)
class Question:
    """Question whether `cell` is better than the cell `versus`, in a sentence that a reader agrees to or not.

    `better` is "lower" or "higher", as the page's metric has it; empty for the metric's. A difference of at most
    `margin` is of no interest: a sweep until decided may end with "no larger than the margin".
    """

    text: str
    cell: str
    versus: str
    better: str = ""
    margin: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a question that no training could decide."""
        if not (math.isfinite(self.margin) and self.margin > 0):
            raise ValueError(f"question {self.text!r}: its margin is a number above 0, not {self.margin!r}")
        if self.better not in ("", "lower", "higher"):
            raise ValueError(f"question {self.text!r}: lower or higher is better, not {self.better!r}")
        if self.cell == self.versus:
            raise ValueError(f"question {self.text!r} compares {self.cell!r} with itself")

    @property
    def labels(self) -> tuple[str, str]:
        """Return the labels of its two cells."""
        return self.cell, self.versus

    def relabelled(self, text: str, labels: Mapping[str, str]) -> Question:
        """Return the question with another text, its cells under their new labels."""
        return dataclasses.replace(self, text=text, cell=labels[self.cell], versus=labels[self.versus])


def check_questions(name: str, questions: Sequence[Question], cells: Sequence[Cell]) -> None:
    """Raise ValueError where a question names no cell of the page, cells of other data, or the metric's worse side."""
    labelled = {cell.label: cell for cell in cells}
    for question in questions:
        for label in question.labels:
            if label not in labelled:
                raise ValueError(f"question {question.text!r}: {unknown_name('cell', label, labelled, name)}")
        ours, theirs = (labelled[label] for label in question.labels)
        if ours.dataset != theirs.dataset:
            data = f"{ours.dataset} and {theirs.dataset}"
            raise ValueError(f"question {question.text!r}: its cells have other pictures ({data})")
        check_better(question, ours.metric)


def check_better(question: Question, metric: Metric) -> None:
    """Raise ValueError where a question takes for better what the metric has as worse."""
    if question.better and question.better != metric.better:
        raise ValueError(f"question {question.text!r}: of {metric.words} {metric.better} is better")


def questions_from_json(values: Sequence[Json]) -> tuple[Question, ...]:
    """Return the questions of a plan; KeyError or TypeError for what is none."""
    return tuple(Question(**value) for value in values)
