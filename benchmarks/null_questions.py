"""How often are questions decided wrongly, and what do they cost? Sweeps until decided, through the project's own plan.

    python -m benchmarks.null_questions --sweeps 2000

A page has three questions on four cells: a cell against three others, or three pairs that share nothing. In each world,
and for each true effect in units of the margin, the test errors of many sweeps are drawn, put on the page's trials as
results, and read as plan and report read them. The margin is what the fixed number of pairs finds with a power of 80 %
at a level of 5 % / 3. The largest number of pairs is a tenth above the fixed one, or all folds.

A second table is of the paper's pages, with their own questions and margins. Cells differ as the paper prints them, and
by one margin for the power; noise is such that the fixed number of pairs finds each margin in four of five.

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
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crelu_models.tables import S2
from sweeps import cifar_vgg, cifar_width, imagenet_placement
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.questions.question import Question, asked_cells
from sweeps.experiment.questions.rule import LEVEL
from sweeps.experiment.questions.waves import Waves, waves
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.results.cell_numbers import printed_gains
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
    World("few folds: 10, correlated", 8, over_folds, folds=10),
    World("rounded to half a deviation", 16, rounded),
    World("long tail of one cell alone", 16, skewed, promised=False),
)


class Page(NamedTuple):
    """Page of the paper: its cells, its questions, and the gain of each as the paper prints it."""

    name: str
    cells: tuple[Cell, ...]
    questions: tuple[Question, ...]
    gains: tuple[float, ...]
    folds: int


def paper_pages() -> list[Page]:
    """Return the pages that ask something."""
    pages = []
    for module in (cifar_width, cifar_vgg, imagenet_placement):
        protocol: Protocol = getattr(module, "PROTOCOL", Protocol())
        cells, questions = tuple(module.CELLS), tuple(module.QUESTIONS)
        gains = printed_gains(Sweep("page", "paper", cells, protocol, questions=questions))
        name = module.__name__.removeprefix("sweeps.")
        pages.append(Page(name, cells, questions, tuple(gains), protocol.folds))
    return pages


def worlds_of(page: Page) -> list[World]:
    """Return the worlds of a page: its folds correlate by a tenth. The fixed design has eight pairs."""
    kinds = {"normal": normal, "heavy tails: t of 3": heavy, "outliers: 1 in 10, times 5": outliers,
             "correlated cells": correlated, "unequal variances": unequal}  # fmt: skip
    if page.folds:
        return [World(name, 8, _in_folds(draw), page.folds) for name, draw in kinds.items()]
    return [World(name, 8, draw) for name, draw in kinds.items()]


def _in_folds(draw: Draw) -> Draw:
    """Return noise of a kind that correlates by a tenth between folds."""

    def drawn(stream: np.random.Generator, cells: int, pairs: int) -> Floats:
        shared = draw(stream, cells, 1)
        return math.sqrt(0.1) * shared + math.sqrt(0.9) * draw(stream, cells, pairs)

    return drawn


class Line(NamedTuple):
    """Line of the table: shares in percent, and the trainings of a sweep over those of the fixed design."""

    wrong: float
    covered: float
    better: float
    equal: float
    trainings: float


def margin_of(fixed: int, sds: Sequence[float], folds: int) -> float:
    """Return the difference that `fixed` pairs find in four of five questions, whose differences spread by `sds`.

    The level is what so many questions leave for each.
    """
    low, high = 0.0, 20 * max(sds)
    for _ in range(50):
        middle = (low + high) / 2
        share = 1 / folds if folds else None
        power = np.mean([t_power(fixed, sd, middle, LEVEL / len(sds), share) for sd in sds])
        low, high = (middle, high) if power < 0.8 else (low, middle)
    return high


def simulate(world: World, effect: float, sweeps: int, seed: int) -> Line:
    """Return what becomes of many sweeps of a world."""
    stream = np.random.default_rng(seed)
    # One margin for all questions: by the mean spread of the three differences.
    sample = world.draw(stream, 4, 20_000)
    sd = float(np.mean([np.std(sample[0] - sample[rival], ddof=1) for rival in (1, 2, 3)]))
    margin = margin_of(world.fixed, [sd] * 3, world.folds)
    questions = tuple(Question(name, "A", name, margin=margin) for name in "BCD")
    truths = {"A": -effect * margin, "B": 0.0, "C": 0.0, "D": 0.0}
    return _play(world, CELLS, questions, truths, np.ones(4), sweeps, stream)


def simulate_page(page: Page, world: World, is_printed: bool, sweeps: int, seed: int) -> Line:
    """Return what becomes of many sweeps of a page: as the paper prints its cells, else with gains of one margin."""
    stream = np.random.default_rng(seed)
    labels = asked_cells(page.questions)
    cells = tuple(cell for cell in page.cells if cell.label in labels)
    margins = {label: question.margin for question in page.questions for label in question.labels}
    sample = world.draw(stream, len(cells), 20_000)
    rows = {cell.label: row for cell, row in zip(cells, sample, strict=True)}
    pairs = [question.labels for question in page.questions]
    found = margin_of(world.fixed, [float(np.std(rows[ours] - rows[theirs])) for ours, theirs in pairs], world.folds)
    noise = np.array([margins[cell.label] / found for cell in cells])
    truths = {cell.label: 0.0 for cell in cells}
    for question, gain in zip(page.questions, page.gains, strict=True):
        truths[question.cell] = truths[question.versus] - (gain if is_printed else question.margin)
    return _play(world, cells, page.questions, truths, noise, sweeps, stream)


def _play(
    world: World,
    cells: tuple[Cell, ...],
    questions: tuple[Question, ...],
    truths: Mapping[str, float],
    noise: Floats,
    sweeps: int,
    stream: np.random.Generator,
) -> Line:
    """Draw the errors of many sweeps, true error by label and own noise of so much, and decide their questions."""
    most = world.folds or math.ceil(1.1 * world.fixed)
    protocol = Protocol(ablation=not world.folds, folds=world.folds, until=most)
    trials = {cell.key: [_trial(cell, number, world.folds) for number in range(most)] for cell in cells}
    gains = [truths[question.versus] - truths[question.cell] for question in questions]
    level = np.array([[truths[cell.label]] for cell in cells])
    wrong = covered = better = equal = used = 0
    for _ in range(sweeps):
        errors = level + noise[:, None] * world.draw(stream, len(cells), most)
        results = {
            trial.key: {"metrics": {TOP1: float(error)}}
            for cell, row in zip(cells, errors, strict=True)
            for trial, error in zip(trials[cell.key], row, strict=True)
        }
        outcome = waves(questions, cells, protocol.design, trials, results, ())
        asked = list(zip(outcome.trajectories, gains, questions, strict=True))
        wrong += any(_is_wrong(path.decision, gain, question.margin) for path, gain, question in asked)
        covered += all(look.low <= gain <= look.high for path, gain, _ in asked for look in path.looks)
        better += sum(path.decision == "for" for path in outcome.trajectories)
        equal += sum(path.decision == "equal" for path in outcome.trajectories)
        used += _trainings(outcome)
    return Line(
        100 * wrong / sweeps,
        100 * covered / sweeps,
        100 * better / sweeps / len(questions),
        100 * equal / sweeps / len(questions),
        used / sweeps / (len(cells) * world.fixed),
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


def print_pages(sweeps: int, seed: int, most: float) -> bool:
    """Print the table of the paper's pages; return whether a promise is broken."""
    print("\n| page | world | fixed pairs | wrong % | covered % | for % | equal % | trainings | power % at margin |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    broken = False
    for page in paper_pages():
        shares = []
        for world in worlds_of(page):
            line = simulate_page(page, world, True, sweeps, seed)
            power = simulate_page(page, world, False, sweeps, seed).better
            broken |= line.wrong > most
            shares.append(line.trainings)
            print(
                f"| {page.name} | {world.name} | {world.fixed} | {line.wrong:.1f} | {line.covered:.1f} | "
                f"{line.better:.1f} | {line.equal:.1f} | {line.trainings:.2f} | {power:.1f} |",
                flush=True,
            )
        print(f"| {page.name} | mean | | | | | | {np.mean(shares):.2f} | |", flush=True)
    return broken


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
    broken |= print_pages(options.sweeps, options.seed, most)
    print(f"\n{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
