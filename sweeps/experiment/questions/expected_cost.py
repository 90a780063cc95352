"""Expected cost of a sweep until decided: the trainings that it is likely to take, by simulation of its own rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sweeps.experiment.questions.question import Question, asked_cells, needed_sizes
from sweeps.experiment.questions.rule import LEVEL, follow
from sweeps.experiment.questions.waves import Design
from sweeps.experiment.wording import count

if TYPE_CHECKING:
    from numpy.random import Generator

EFFECTS: Final = (0, 1, 2, 3)  # margins
SWEEPS: Final = 100  # simulated ones for each effect
POWER: Final = 0.8416  # the normal quantile of 80 %


class ExpectedCost(NamedTuple):
    """Mean number of trainings where the cells differ as `case` says, and the share of questions that is decided."""

    case: str
    trainings: float
    decided: float


def deviation(margin: float, questions: int, most: int) -> float:
    """Return the deviation of differences at which `most` pairs find the margin four times in five."""
    from scipy import special

    return margin * math.sqrt(most) / (float(-special.stdtrit(most - 1, LEVEL / (2 * questions))) + POWER)


def expected_costs(
    questions: Sequence[Question], design: Design, printed: Sequence[float] = (), seed: int = 0
) -> list[ExpectedCost]:
    """Return what a page's questions are likely to take, for each of EFFECTS; the same for the same seed.

    Noise is normal. Its deviation is that at which the largest number of pairs is the right one for the margin.
    `printed` has the gain of each question by published numbers, which are a case of their own.
    """
    import numpy as np

    stream = np.random.default_rng(seed)
    cases = {
        count(effect, "margin") if effect else "no difference": [effect * question.margin for question in questions]
        for effect in EFFECTS
    }
    if printed:
        cases["as printed"] = list(printed)
    return [ExpectedCost(case, *_simulated(questions, gains, design, stream)) for case, gains in cases.items()]


def _simulated(
    questions: Sequence[Question], gains: Sequence[float], design: Design, stream: Generator
) -> tuple[float, float]:
    """Return the mean number of trainings of simulated sweeps with these gains, and the share that is decided."""
    labels = asked_cells(questions)
    margins = [question.margin for question in questions]
    noise = [deviation(margin, len(questions), design.most) for margin in margins]
    trainings = decided = 0
    for _ in range(SWEEPS):
        cells = dict(zip(labels, stream.standard_normal((len(labels), design.most)) / math.sqrt(2), strict=True))
        drawn = [
            dict(enumerate((gain + sd * (cells[question.versus] - cells[question.cell])).tolist()))
            for question, gain, sd in zip(questions, gains, noise, strict=True)
        ]
        settled = [design.most] * len(drawn)
        trajectories, sizes = follow(drawn, settled, margins, design.first, design.most, design.folds)
        trainings += sum(needed_sizes(questions, sizes).values())
        decided += sum(trajectory.is_decided for trajectory in trajectories)
    return trainings / SWEEPS, decided / SWEEPS / len(questions)
