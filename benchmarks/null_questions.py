"""How often are questions decided wrongly, and what do they cost? Sweeps until decided, through the project's own plan.

    python -m benchmarks.null_questions --sweeps 2000

A page has three questions on four cells: a cell against three others, or three pairs that share nothing. In each world,
and for each true effect in units of the margin, the test errors of many sweeps are drawn, put on the page's trials as
results, and read as plan and report read them. The margin is what the fixed number of pairs finds with a power of 80 %
at a level of 5 % / 3. The largest number of pairs is a tenth above the fixed one.

    wrong       sweeps with a wrong decision on any question at any look, in percent; the rule promises 5 at most
    covered     sweeps in which all intervals of all looks and questions cover the truth, in percent
    for, equal  questions that are decided so
    trainings   of a sweep, as a share of those of the fixed design

Exit 1 where a world that the rule is made for decides wrongly in more than 5 % and two standard errors.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crelu_models.tables import S2
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.questions.question import Question
from sweeps.experiment.questions.rule import LEVEL
from sweeps.experiment.questions.waves import Waves, waves
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol
from sweeps.experiment.trial import Cell, Trial
from sweeps.results.statistics import t_power

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Floats]  # own noise (cells, pairs) of deviation about 1
EFFECTS: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # margins by which the cell is better than its rivals
CELLS: Final = tuple(Cell(name, S2.width(1 + i / 8), "cifar10", ALLCONV) for i, name in enumerate("ABCD"))


class World(NamedTuple):
    """World of errors: how a cell's own noise is drawn, over how many pairs a fixed design would go, and folds."""

    name: str
    fixed: int
    draw: Draw
    folds: int = 0
    promised: bool = True


def normal(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw normal noise."""
    return stream.standard_normal((cells, pairs))


def heavy(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw Student's t with 3 degrees of freedom."""
    return stream.standard_t(3, (cells, pairs)) / math.sqrt(3)


def outliers(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw noise with outliers: one training in ten is five times as far off."""
    wide = stream.random((cells, pairs)) < 0.1
    return stream.standard_normal((cells, pairs)) * np.where(wide, 5.0, 1.0)


def correlated(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw correlated noise: all cells of a seed share nine tenths of it, and neighbours share the rest."""
    noise = stream.standard_normal((cells, pairs))
    return 3 * stream.standard_normal((1, pairs)) + noise + 0.5 * np.roll(noise, 1, axis=0)


def unequal(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw noise whose deviation triples from the first cell to the last."""
    return stream.standard_normal((cells, pairs)) * np.linspace(0.5, 1.5, cells)[:, None]


def over_folds(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw noise that correlates by a tenth between folds, which share training pictures."""
    shared = math.sqrt(0.1) * stream.standard_normal((cells, 1))
    return shared + math.sqrt(0.9) * stream.standard_normal((cells, pairs))


def rounded(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw noise in steps of half its deviation, as errors on a few hundred test pictures have it."""
    return np.round(2 * stream.standard_normal((cells, pairs))) / 2


def skewed(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
    """Draw noise with a long tail to one side in the first cell, and normal noise in the others."""
    noise = 0.3 * stream.standard_normal((cells, pairs))
    noise[0] += stream.exponential(1.0, pairs) - 1.0
    return noise


WORLDS: Final = (
    World("normal", 8, normal),
    World("normal, 16 pairs", 16, normal),
    World("normal, 27 pairs", 27, normal),
    World("heavy tails: t of 3", 16, heavy),
    World("outliers: 1 in 10, times 5", 16, outliers),
    World("correlated cells", 16, correlated),
    World("unequal variances", 16, unequal),
    World("few folds: 10, correlated", 9, over_folds, folds=10),
    World("rounded to half a deviation", 16, rounded),
    World("long tail of one cell alone", 16, skewed, promised=False),
)


class Line(NamedTuple):
    """Line of the table: shares in percent, and the trainings of a sweep over those of the fixed design."""

    wrong: float
    covered: float
    better: float
    equal: float
    trainings: float


def margin_of(fixed: int, sd: float, folds: int) -> float:
    """Return the difference that `fixed` pairs find with a power of 80 % at the level that three questions leave."""
    low, high = 0.0, 20 * sd
    for _ in range(50):
        middle = (low + high) / 2
        power = t_power(fixed, sd, middle, LEVEL / 3, 1 / folds if folds else None)
        low, high = (middle, high) if power < 0.8 else (low, middle)
    return high


def simulate(world: World, effect: float, sweeps: int, seed: int) -> Line:
    """Return what becomes of many sweeps of a world."""
    stream = np.random.default_rng(seed)
    most = min(world.folds, math.ceil(1.1 * world.fixed)) if world.folds else math.ceil(1.1 * world.fixed)
    # One margin for all questions: by the mean spread of the three differences.
    sample = world.draw(stream, 4, 20_000)
    sd = float(np.mean([np.std(sample[0] - sample[rival], ddof=1) for rival in (1, 2, 3)]))
    margin = margin_of(world.fixed, sd, world.folds)
    gain = effect * margin
    questions = tuple(Question(name, "A", name, margin=margin) for name in "BCD")
    protocol = Protocol(ablation=not world.folds, folds=world.folds, until=most)
    trials = {cell.key: [_trial(cell, number, world.folds) for number in range(most)] for cell in CELLS}
    wrong = covered = better = equal = used = 0
    for _ in range(sweeps):
        errors = world.draw(stream, 4, most)
        errors[0] -= gain
        results = {
            trial.key: {"metrics": {TOP1: float(error)}}
            for cell, row in zip(CELLS, errors, strict=True)
            for trial, error in zip(trials[cell.key], row, strict=True)
        }
        outcome = waves(questions, CELLS, protocol.design, trials, results, ())
        wrong += any(_is_wrong(trajectory.decision, gain, margin) for trajectory in outcome.trajectories)
        covered += all(
            look.low <= gain <= look.high for trajectory in outcome.trajectories for look in trajectory.looks
        )
        better += sum(trajectory.decision == "for" for trajectory in outcome.trajectories)
        equal += sum(trajectory.decision == "equal" for trajectory in outcome.trajectories)
        used += _trainings(outcome)
    return Line(
        100 * wrong / sweeps,
        100 * covered / sweeps,
        100 * better / sweeps / 3,
        100 * equal / sweeps / 3,
        used / sweeps / (len(CELLS) * world.fixed),
    )


def _trial(cell: Cell, number: int, folds: int) -> Trial:
    return Trial(cell, "fold", number, fold=number, folds=folds) if folds else Trial(cell, seed=number)


def _trainings(outcome: Waves) -> int:
    needed: Mapping[str, int] = outcome.needed
    return sum(needed.values())


def _is_wrong(decision: str, gain: float, margin: float) -> bool:
    """Return whether a decision says what is not so."""
    close = abs(gain) < margin * (1 - 1e-9)
    return {"for": gain <= 0, "against": gain >= 0, "equal": not close}.get(decision, False)


def main() -> int:
    """Print one table; exit 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    most = 5 + 200 * math.sqrt(0.05 * 0.95 / options.sweeps)
    broken = False
    print(f"{options.sweeps} sweeps a line; wrong at most 5 %, with the simulation's error {most:.1f}\n")
    print("| world | fixed pairs | effect / margin | wrong % | covered % | for % | equal % | trainings |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for world in WORLDS:
        lines = [simulate(world, effect, options.sweeps, options.seed) for effect in EFFECTS]
        for effect, line in zip(EFFECTS, lines, strict=True):
            broken |= world.promised and line.wrong > most
            print(
                f"| {world.name} | {world.fixed} | {effect:g} | {line.wrong:.1f} | {line.covered:.1f} | "
                f"{line.better:.1f} | {line.equal:.1f} | {line.trainings:.2f} |",
                flush=True,
            )
        print(f"| {world.name} | {world.fixed} | mean | | | | | {np.mean([line.trainings for line in lines]):.2f} |")
    print(f"\n{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
