"""Main effects and interactions of a grid's factors, from paired seeds.

Within a seed (or fold) the effect of a level is the mean difference between the two cells that differ in this factor
alone, over the settings of the other factors that have both: no assumption on the others is made, and no cell of a
third level has a part in it. An interaction is the mean difference of two such differences, over the settings that have
all four cells. An effect that no setting has all cells of is withheld. The test is the paired one of any two cells,
over one value a seed: as many degrees of freedom as seeds, less one. A residual that is pooled over cells would have
more, and would reject too often where the cells' spreads differ.

Cells of different data sets are in different grids: an effect of pictures is no effect of a factor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from sweeps.experiment.metrics import HELD_OUT, PARAMETERS, PERCENT, TRAIN, VOTE, Metric
from sweeps.experiment.trial import Level
from sweeps.results.cell_numbers import DERIVED, ResultTable, folds_of, is_always_zero, pictures, runs_of
from sweeps.results.contrasts import Basis, Contrast
from sweeps.results.evidence import CellResults, Floats, Run
from sweeps.results.statistics import holm, paired

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
    """Cells of one data set with the same factors, no two of them with equal levels, with and without results.

    `levels` are those of each factor that varies, in the order in which the page declares them. `words` tell it apart
    where a sweep has several such grids. `metric` is what the cells are compared by.
    """

    levels: Mapping[str, tuple[Level, ...]]
    cells: tuple[CellResults, ...]
    metrics: tuple[str, ...]
    dataset: str = ""
    words: str = ""
    metric: Metric = PERCENT

    @property
    def combinations(self) -> list[Combination]:
        """Return the levels of each cell."""
        return [dict(cell.cell.factors) for cell in self.cells]

    def left_out(self, metric: str) -> tuple[str, ...]:
        """Return the labels of the cells without a result in a metric. Its effects are made without them."""
        return tuple(cell.cell.label for cell in self.cells if not runs_of(cell, metric))


def level_text(level: Level) -> str:
    """Return a level as it is printed: 0.5, or crelu."""
    return f"{level:g}" if isinstance(level, float) else str(level)


Member = tuple[ResultTable, CellResults]  # a cell of a grid, and the table that it stands in


def grids(tables: Sequence[ResultTable]) -> list[Grid]:
    """Return the grids among the cells of a sweep's tables, those without a factor that varies left out."""
    members: dict[tuple[tuple[str, ...], str], list[Member]] = {}
    for table in tables:
        for row in table.rows if table.table not in DERIVED.values() else ():
            if row.results is not None and row.results.cell.factors:
                names = tuple(sorted(name for name, _ in row.results.cell.factors))
                members.setdefault((names, row.results.cell.dataset), []).append((table, row.results))
    parts = [(names, part) for (names, _), cells in members.items() for part in separate(cells)]
    declared = []
    for names, part in parts:
        peers = [peer for others, peer in parts if others == names]
        grid = _grid(part, _words(part, peers) if len(peers) > 1 else "")
        if grid.levels:
            declared.append(grid)
    return declared


def separate(members: Sequence[Member]) -> list[list[Member]]:
    """Return the cells of a data set in parts, such that no two cells of a part have equal levels.

    They are one part where all differ: a recipe may be a factor, though each recipe has a table of its own. Else each
    table is one, and a table whose cells repeat is parted where the next cell repeats one before it.
    """
    if _differ(members):
        return [list(members)]
    by_table: dict[str, list[Member]] = {}
    for table, cell in members:
        by_table.setdefault(table.id, []).append((table, cell))
    parts: list[list[Member]] = []
    for of_table in by_table.values():
        parts.append([])
        for member in of_table:
            if not _differ([*parts[-1], member]):
                parts.append([])
            parts[-1].append(member)
    return parts


def _differ(members: Sequence[Member]) -> bool:
    """Return whether no two cells have equal levels."""
    return len({frozenset(cell.cell.factors) for _, cell in members}) == len(members)


def _grid(members: Sequence[Member], words: str) -> Grid:
    cells = tuple(cell for _, cell in members)
    metrics = dict.fromkeys(metric for table, _ in members for metric in table.metrics if metric not in UNTESTED)
    levels = varying([dict(cell.cell.factors) for cell in cells])
    (table, cell), *_ = members
    return Grid(levels, cells, tuple(metrics), cell.cell.dataset, words, table.metric)


def _words(part: Sequence[Member], peers: Sequence[Sequence[Member]]) -> str:
    """Return the words by which a grid is told from its peers: its pictures, else its table, else its cells."""
    names = [_names(peer) for peer in peers]
    unique = (name for name, *others in zip(_names(part), *names, strict=True) if others.count(name) == 1)
    return next(unique, _names(part)[-1])


def _names(part: Sequence[Member]) -> tuple[str, str, str]:
    (table, first), *_, (_, last) = [*part, part[-1]]
    cells = f"{first.cell.label} to {last.cell.label}"
    return pictures(first.cell.dataset), table.title, cells


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
        if not cells:
            continue
        values = [runs_of(cell, metric) for cell in cells]
        combinations = [dict(cell.cell.factors) for cell in cells]
        effects += [_effect(metric, combinations, values, target) for target in targets(grid.levels)]
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
    """Return the weight of each cell in an effect; None where no setting of the other factors has all of its cells."""
    settings: dict[tuple[Level, ...], dict[int, int]] = {}  # the signs of an effect's cells, by their places
    for place, cell in enumerate(combinations):
        if all(cell[name] in pair for name, pair in target.items()):
            others = tuple(level for name, level in cell.items() if name not in target)
            sign = math.prod(1 if cell[name] == level else -1 for name, (level, _) in target.items())
            settings.setdefault(others, {})[place] = sign
    complete = [signs for signs in settings.values() if len(signs) == 2 ** len(target)]
    row = np.zeros(len(combinations))
    for signs in complete:
        row[list(signs)] = np.array([*signs.values()]) / len(complete)
    return row if complete else None


def _effect(
    metric: str,
    combinations: Sequence[Combination],
    values: Sequence[Mapping[tuple[int, int], tuple[Run, float]]],
    target: Target,
) -> FactorEffect:
    unknown = Contrast(metric, math.nan, "not run")
    weight = weights(combinations, target)
    if weight is None:
        return FactorEffect(target, unknown, why="no setting of the other factors has all of its cells")
    used = [(float(w), cell) for w, cell in zip(weight, values, strict=True) if w]
    pairs = sorted(set.intersection(*(set(cell) for _, cell in used)))
    if not pairs:
        return FactorEffect(target, unknown, len(used), "no seed has all of its cells")
    # To 12 digits of the largest value: what is equal in all seeds is equal here as well, though its sum may not be.
    largest = max(abs(cell[pair][1]) for pair in pairs for _, cell in used)
    places = 11 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 9
    sums = [round(sum(w * cell[pair][1] for w, cell in used), places) for pair in pairs]
    runs = tuple({run.key: run for pair in pairs for _, cell in used for run in [cell[pair][0]]}.values())
    return FactorEffect(target, paired_contrast(metric, sums, runs, folds_of(runs)), len(used))


def paired_contrast(metric: str, sums: Sequence[float], runs: tuple[Run, ...] = (), folds: int = 0) -> Contrast:
    """Test whether an effect, one value a seed or fold, is 0."""
    if len(sums) == 1:
        return Contrast(metric, sums[0], "one training", n=1, runs=runs, folds=folds)
    basis: Basis = "folds" if folds else "seeds"
    tested = paired(sums, np.zeros(len(sums)), 1 / folds if folds else None)
    test = tested.corrected
    return Contrast(
        metric, tested.difference, basis, test.interval, test.t, test.p, tested.plain.p, tested.signed_rank_p,
        len(sums), sd=tested.sd, runs=runs, folds=folds,
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
