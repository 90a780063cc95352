"""Main effects and interactions of a grid's factors, from paired seeds.

Within a seed (or fold) s the error y of the cell of each combination of levels is, for the effect of factor A,

    y[a, rest, s] = block[rest, s] + effect[a] + noise          effect[first level] = 0

so that only cells that differ in A alone are compared; for an interaction of A and B

    y[a, b, rest, s] = block[a, rest, s] + block'[b, rest, s] + effect[a, b] + noise

Least squares gives the effect in seed s as a weighted sum of its cells, the weights w adding up to 0. In a complete
grid this is the difference of means over the other factors, or the difference of such differences. An effect that the
cells do not determine is withheld. The test is the paired one of any two cells, over d[s] = sum of w y[s]: as many
degrees of freedom as seeds, less one. A residual that is pooled over cells would have more, and would reject too often
where the cells' spreads differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from sweeps.experiment.metrics import HELD_OUT, PARAMETERS, TRAIN, VOTE
from sweeps.experiment.trial import Level
from sweeps.results.cell_numbers import DERIVED, ResultTable, is_always_zero, runs_of
from sweeps.results.contrasts import Basis, Contrast
from sweeps.results.evidence import CellResults, Floats, Run
from sweeps.results.statistics import holm, paired

NEGLIGIBLE: Final = 1e-9  # of a weight, and of the part of an effect that the cells do not determine
UNTESTED: Final = (TRAIN, PARAMETERS, VOTE, HELD_OUT)  # metrics that say nothing of test errors, or are not paired

Combination = Mapping[str, Level]
# What an effect is of: level and reference, by factor; one factor for a main effect, two for an interaction.
Target = Mapping[str, tuple[Level, Level]]


class FactorEffect(NamedTuple):
    """A main effect, or an interaction, in one metric; `p` is adjusted after Holm over the grid's effects.

    `cells` counts the cells that it is made of. Where it is withheld, `why` says why.
    """

    target: Target
    contrast: Contrast
    cells: int = 0
    why: str = ""
    p: float = math.nan

    @property
    def name(self) -> str:
        """Return the factors' names: act, or act × width."""
        return " × ".join(self.target)

    @property
    def level(self) -> str:
        """Return the levels that are compared with the reference."""
        return ", ".join(level_text(level) for level, _ in self.target.values())

    @property
    def reference(self) -> str:
        """Return the levels that they are compared with."""
        return ", ".join(level_text(reference) for _, reference in self.target.values())


class Grid(NamedTuple):
    """Cells with the same factors: the levels of each factor that varies, in order, and the cells with results."""

    levels: Mapping[str, tuple[Level, ...]]
    cells: tuple[CellResults, ...]
    left_out: tuple[str, ...]  # labels of cells without a result
    metrics: tuple[str, ...]

    @property
    def combinations(self) -> list[Combination]:
        """Return the levels of each cell."""
        return [dict(cell.cell.factors) for cell in self.cells]


def level_text(level: Level) -> str:
    """Return a level as it is printed: 0.5, or crelu."""
    return f"{level:g}" if isinstance(level, float) else str(level)


def grids(tables: Sequence[ResultTable]) -> list[Grid]:
    """Return the grids among the cells of a sweep's tables, those without a factor that varies left out."""
    members: dict[tuple[str, ...], dict[str, CellResults]] = {}
    metrics: dict[tuple[str, ...], dict[str, None]] = {}
    for table in tables:
        for row in table.rows if table.table not in DERIVED.values() else ():
            if row.results is not None and row.results.cell.factors:
                names = tuple(sorted(name for name, _ in row.results.cell.factors))
                members.setdefault(names, {})[row.key] = row.results
                metrics.setdefault(names, {}).update(dict.fromkeys(table.metrics))
    declared = []
    for names, cells in members.items():
        tested = tuple(cell for cell in cells.values() if cell.tested)
        left_out = tuple(cell.cell.label for cell in cells.values() if not cell.tested)
        levels = varying([dict(cell.cell.factors) for cell in tested])
        if levels:
            declared.append(Grid(levels, tested, left_out, tuple(m for m in metrics[names] if m not in UNTESTED)))
    return declared


def varying(combinations: Sequence[Combination]) -> dict[str, tuple[Level, ...]]:
    """Return the levels of each factor that has more than one, in the order in which they occur."""
    names = list(combinations[0]) if combinations else []
    levels = {name: tuple(dict.fromkeys(combination[name] for combination in combinations)) for name in names}
    return {name: values for name, values in levels.items() if len(values) > 1}


def factor_effects(grid: Grid) -> list[FactorEffect]:
    """Return every main effect, then every interaction of two factors, in each metric of a grid."""
    effects = []
    for metric in grid.metrics:
        cells = [cell for cell in grid.cells if runs_of(cell, metric) and not is_always_zero(cell, metric)]
        values = [runs_of(cell, metric) for cell in cells]
        combinations = [dict(cell.cell.factors) for cell in cells]
        effects += [_effect(metric, combinations, values, target) for target in targets(varying(combinations))]
    adjusted = holm([effect.contrast.p for effect in effects])
    return [effect._replace(p=float(p)) for effect, p in zip(effects, adjusted, strict=True)]


def targets(levels: Mapping[str, Sequence[Level]]) -> Iterable[Target]:
    """Yield each level against its factor's first one, then each pair of such levels of two factors."""
    for name, (first, *others) in levels.items():
        yield from ({name: (level, first)} for level in others)
    for factor, other in itertools.combinations(levels, 2):
        for level, second in itertools.product(levels[factor][1:], levels[other][1:]):
            yield {factor: (level, levels[factor][0]), other: (second, levels[other][0])}


def weights(combinations: Sequence[Combination], target: Target) -> Floats | None:
    """Return the weight of each cell in an effect; None where the cells do not determine it."""
    names = list(combinations[0])
    columns: list[list[float]] = []
    for name in target:  # the blocks: a column for each setting of all factors but this one
        settings = [tuple(cell[other] for other in names if other != name) for cell in combinations]
        columns += [[float(setting == block) for setting in settings] for block in dict.fromkeys(settings)]
    levels = varying(combinations)
    products = list(itertools.product(*(levels.get(name, (None,))[1:] for name in target)))
    wanted = tuple(level for level, _ in target.values())
    if wanted not in products:
        return None
    columns += [
        [float(all(cell[name] == level for name, level in zip(target, product, strict=True))) for cell in combinations]
        for product in products
    ]
    design = np.array(columns).T
    place = len(columns) - len(products) + products.index(wanted)
    row = np.linalg.pinv(design, rcond=1e-10)[place]
    is_determined = np.abs(row @ design - np.eye(len(columns))[place]).max() < NEGLIGIBLE
    return np.where(np.abs(row) > NEGLIGIBLE, row, 0.0) if is_determined else None


def _effect(
    metric: str,
    combinations: Sequence[Combination],
    values: Sequence[Mapping[tuple[int, int], tuple[Run, float]]],
    target: Target,
) -> FactorEffect:
    unknown = Contrast(metric, math.nan, "not run")
    weight = weights(combinations, target)
    if weight is None:
        return FactorEffect(target, unknown, why="the cells of the grid do not determine it")
    used = [(float(w), cell) for w, cell in zip(weight, values, strict=True) if w]
    pairs = sorted(set.intersection(*(set(cell) for _, cell in used)))
    if not pairs:
        return FactorEffect(target, unknown, len(used), "no seed has all of its cells")
    # To 9 digits: what is equal in all seeds is equal here as well, though its sum may not be.
    sums = [round(sum(w * cell[pair][1] for w, cell in used), 9) for pair in pairs]
    runs = tuple({run.key: run for pair in pairs for _, cell in used for run in [cell[pair][0]]}.values())
    folds = runs[0].trial.folds if runs[0].trial.phase == "fold" else 0
    return FactorEffect(target, paired_contrast(metric, sums, runs, folds), len(used))


def paired_contrast(metric: str, sums: Sequence[float], runs: tuple[Run, ...] = (), folds: int = 0) -> Contrast:
    """Test whether an effect, one value a seed or fold, is 0."""
    if len(sums) == 1:
        return Contrast(metric, sums[0], "one training", n=1, runs=runs, folds=folds)
    basis: Basis = "folds" if folds else "seeds"
    difference, plain, test, rank_p = paired(sums, np.zeros(len(sums)), 1 / folds if folds else None)
    return Contrast(
        metric, difference, basis, test.interval, test.t, test.p, plain.p, rank_p, len(sums),
        sd=float(np.std(sums, ddof=1)), runs=runs, folds=folds,
    )  # fmt: skip


class Means(NamedTuple):
    """Mean errors of two factors' levels, by levels of the first and the second; nan where no cell has both.

    They are over the settings of the other factors that have all of these cells, so that the means compare.
    """

    first: str
    second: str
    errors: Mapping[tuple[Level, Level], float]
    runs: Mapping[tuple[Level, Level], tuple[Run, ...]]


def interaction_means(grid: Grid, metric: str, first: str, second: str) -> Means | None:
    """Return the means of two factors of a grid, None where no setting of the others has all of their cells."""
    settings: dict[tuple[Level, ...], dict[tuple[Level, Level], list[tuple[Run, float]]]] = {}
    for cell, levels in zip(grid.cells, grid.combinations, strict=True):
        if values := list(runs_of(cell, metric).values()):
            others = tuple(level for name, level in levels.items() if name not in (first, second))
            settings.setdefault(others, {})[levels[first], levels[second]] = values
    places = {place for setting in settings.values() for place in setting}
    complete = [setting for setting in settings.values() if setting.keys() == places]
    if not complete or len(places) < 2:
        return None
    errors = {
        place: float(np.mean([np.mean([error for _, error in setting[place]]) for setting in complete]))
        for place in places
    }
    runs = {place: tuple(run for setting in complete for run, _ in setting[place]) for place in places}
    return Means(first, second, errors, runs)
