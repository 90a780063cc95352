"""Do the report's statistics keep their word? Simulated sweeps with known effects, through the report's own tables.

    python -m benchmarks.bench_statistics --sweeps 2000

Every sweep has the nine cells of Table 4 and as many seeds as asked; errors are drawn, nothing is trained. What is
counted is what a reader would see: p after Holm and 95 % intervals of the table of effects.

family     no cell differs: share of tables with at least one p < .05 (and what it would be without Holm)
coverage   every cell differs by a known amount: share of the intervals that hold it
power      one cell differs; as many seeds as are suggested: share of sweeps that find it, against the 80 % asked for
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.imagenet_placement import CELLS
from sweeps.results.cell_numbers import groups
from sweeps.results.contrasts import Effect, effects
from sweeps.results.evidence import CellResults, Run, SweepResults
from sweeps.results.statistics import seeds_needed

SHARED, OWN = 0.4, 0.25  # points of error that differ from seed to seed: those all cells share, and each cell's own
POWER = 0.8


def table(cells: Sequence[Cell], trials: Mapping[Cell, Sequence[Trial]], errors: NDArray[np.float64]) -> list[Effect]:
    """Return the table of effects of a sweep whose errors (cells, seeds) are given."""
    found = []
    for cell, row in zip(cells, errors, strict=True):
        runs = tuple(
            Run(trial, "done", "", {"seconds": 1.0}, {TOP1: float(error)}, np.zeros(0), None, "", {})
            for trial, error in zip(trials[cell], row, strict=True)
        )
        found.append(CellResults(cell, runs, (), None))
    sweep = Sweep("simulated", "paper", tuple(cells), Protocol(seeds=errors.shape[1]))
    survey = SweepResults("simulated", sweep, "", tuple(found), {}, {})
    first = groups(survey)[0]
    return effects(first._replace(metrics=(TOP1,)))


def simulated(shifts: Sequence[float], seeds: int, count: int, stream: np.random.Generator) -> list[list[Effect]]:
    """Return the tables of `count` sweeps whose cells differ from the first by `shifts`, in points."""
    cells = CELLS[: len(shifts)]
    trials = {cell: [Trial(cell, seed=seed) for seed in range(seeds)] for cell in cells}
    found = []
    for _ in range(count):
        errors = 40 + np.asarray(shifts)[:, None] + stream.normal(0, SHARED, seeds)
        found.append(table(cells, trials, errors + stream.normal(0, OWN, (len(cells), seeds))))
    return found


def measure(count: int, seeds: int) -> list[tuple[str, float, float, float, str]]:
    """Return each figure with its bounds and a note, in percent."""
    stream = np.random.default_rng(0)
    none = simulated([0.0] * len(CELLS), seeds, count, stream)
    family = float(np.mean([any(one.p < 0.05 for one in found) for found in none]))
    bare = float(np.mean([any(one.contrast.p < 0.05 for one in found) for found in none]))
    error = 300 * math.sqrt(0.05 * 0.95 / count)  # of the simulation itself, in points
    shifts = [0.0, *(0.2 * i - 0.8 for i in range(1, len(CELLS)))]
    held = []
    for found in simulated(shifts, seeds, count, stream):
        for one, shift in zip(found, shifts[1:], strict=True):
            held.append(one.contrast.interval.low < shift < one.contrast.interval.high)
    rows = [
        ("family-wise error, Holm", 100 * family, 0.0, 5.0 + error, f"without Holm {100 * bare:.1f}"),
        ("coverage of 95 % intervals", 100 * float(np.mean(held)), 93.0, 97.0, f"{len(held):,} intervals"),
    ]
    for shift in (0.25, 0.15):
        needed = seeds_needed(OWN * math.sqrt(2), shift, power=POWER)
        assert needed is not None
        hits = [one.p < 0.05 for one, *_ in simulated([0.0, shift], needed, count, stream)]
        found = 100 * float(np.mean(hits))
        rows.append((f"power at {shift} points", found, 100 * POWER - 5, 100 * POWER + 5, f"{needed} seeds suggested"))
    return rows


def main() -> int:
    """Print one table; exit 1 where a figure leaves its bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.sweeps, options.seeds)
    print(f"{options.sweeps} simulated sweeps of {len(CELLS)} cells and {options.seeds} seeds\n")
    print(f"{'what':<28} {'percent':>8} {'at least':>9} {'at most':>8}  note")
    for what, value, low, high, note in found:
        print(f"{what:<28} {value:>8.1f} {low:>9.1f} {high:>8.1f}  {note}")
    return int(any(not low <= value <= high for _, value, low, high, _ in found))


if __name__ == "__main__":
    sys.exit(main())
