"""Simulated sweeps with known effects, through the report's own tables: how often its statistics keep their word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.imagenet_placement import CELLS
from sweeps.results.cell_numbers import groups
from sweeps.results.contrasts import Effect, effects
from sweeps.results.evidence import CellResults, Run, SweepResults
from sweeps.results.paper import TOP1
from sweeps.results.statistics import seeds_needed

SHARED = 0.4  # points of error that differ from seed to seed, the same for all cells
OF_A_CELL = 0.25  # and those that differ from cell to cell
POWER = 0.8


def table(cells: Sequence[Cell], trials: Mapping[Cell, Sequence[Trial]], errors: NDArray[np.float64]) -> list[Effect]:
    """Return the table of effects of a sweep with these errors (cells, seeds)."""
    results = []
    for cell, row in zip(cells, errors, strict=True):
        runs = tuple(
            Run(trial, "done", "", {"seconds": 1.0}, {TOP1: float(error)}, np.zeros(0), None, "", {})
            for trial, error in zip(trials[cell], row, strict=True)
        )
        results.append(CellResults(cell, runs, (), None))
    sweep = Sweep("simulated", "paper", tuple(cells), Protocol(seeds=errors.shape[1]))
    sweep_results = SweepResults("simulated", sweep, "", tuple(results), {}, {})
    first = groups(sweep_results)[0]
    return effects(first._replace(metrics=(TOP1,)))


def simulated(shifts: Sequence[float], seeds: int, count: int, stream: np.random.Generator) -> list[list[Effect]]:
    """Return the tables of `count` sweeps whose cells differ from the first by `shifts`, in points."""
    cells = CELLS[: len(shifts)]
    trials = {cell: [Trial(cell, seed=seed) for seed in range(seeds)] for cell in cells}
    tables = []
    for _ in range(count):
        errors = 40 + np.asarray(shifts)[:, None] + stream.normal(0, SHARED, seeds)
        tables.append(table(cells, trials, errors + stream.normal(0, OF_A_CELL, (len(cells), seeds))))
    return tables


def measure(count: int, seeds: int) -> list[tuple[str, float, float, float, str]]:
    """Return each figure with its bounds and a note, in percent."""
    stream = np.random.default_rng(0)
    none = simulated([0.0] * len(CELLS), seeds, count, stream)
    family = float(np.mean([any(effect.p < 0.05 for effect in sweep_effects) for sweep_effects in none]))
    bare = float(np.mean([any(effect.contrast.p < 0.05 for effect in sweep_effects) for sweep_effects in none]))
    error = 300 * math.sqrt(0.05 * 0.95 / count)  # of the simulation itself, in points
    shifts = [0.0, *(0.2 * i - 0.8 for i in range(1, len(CELLS)))]
    held = []
    for sweep_effects in simulated(shifts, seeds, count, stream):
        for effect, shift in zip(sweep_effects, shifts[1:], strict=True):
            held.append(effect.contrast.interval.low < shift < effect.contrast.interval.high)
    rows = [
        ("family-wise error, Holm", 100 * family, 0.0, 5.0 + error, f"without Holm {100 * bare:.1f}"),
        ("coverage of 95 % intervals", 100 * float(np.mean(held)), 93.0, 97.0, f"{len(held):,} intervals"),
    ]
    for shift in (0.25, 0.15):
        needed = seeds_needed(OF_A_CELL * math.sqrt(2), shift, power=POWER)
        assert needed is not None
        hits = [effect.p < 0.05 for effect, *_ in simulated([0.0, shift], needed, count, stream)]
        power = 100 * float(np.mean(hits))
        rows.append((f"power at {shift} points", power, 100 * POWER - 5, 100 * POWER + 5, f"{needed} seeds suggested"))
    return rows
