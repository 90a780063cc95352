"""A page with two questions, and the errors that its trials come to: A beats B by three margins, and C by none."""

from scipy import special

from crelu_models.tables import S2
from sweeps.experiment.questions.question import Question
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial

A, B, C, D = (Cell(name, S2.width(1 + i / 8), "cifar10", ALLCONV) for i, name in enumerate("ABCD"))
QUESTIONS = (Question("A beats B", "A", "B", margin=0.5), Question("A beats C", "A", "C", "lower", 0.5))
SWEEP = Sweep("s", "paper", (A, B, C, D), Protocol(until=12), questions=QUESTIONS)
MEANS = {"A": 8.0, "B": 9.5, "C": 8.0, "D": 9.0}


def error_of(trial: Trial) -> float:
    """Return an error that the trial's key decides: the cell's mean and noise of deviation 0.3."""
    noise = int(trial.key[:8], 16) / 2**32
    return MEANS[trial.cell.label] + 0.3 * float(special.ndtri(0.001 + 0.998 * noise))
