"""Grids of cells: every combination of the levels of named factors, each cell with its levels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable

from sweeps.experiment.trial import Cell, Level


def grid(
    function: Callable[..., Cell],
    /,
    *,
    where: Callable[..., bool] | None = None,
    **levels: Iterable[Level],
) -> tuple[Cell, ...]:
    """Return the cell that `function` makes of each combination of levels, the last factor changing fastest.

    Each keyword but `where` is a factor with its levels, words or numbers; both functions take them by name. `where`
    leaves out the combinations for which it is false. The first level of a factor is the one that the others are
    compared with. A cell's key does not depend on its factors.
    """
    factors = {name: _levels(name, values) for name, values in levels.items()}
    if not factors:
        raise ValueError("grid needs a factor, such as act=('relu', 'crelu')")
    combinations = [
        dict(zip(factors, combination, strict=True)) for combination in itertools.product(*factors.values())
    ]
    chosen = [combination for combination in combinations if where is None or where(**combination)]
    if not chosen:
        raise ValueError(f"where leaves none of the {len(combinations)} combinations of {', '.join(factors)}")
    cells = []
    for combination in chosen:
        cell = function(**combination)
        if not isinstance(cell, Cell):
            raise ValueError(f"the function of a grid returns a Cell, not {type(cell).__name__}")
        cells.append(dataclasses.replace(cell, factors=tuple(combination.items())))
    return tuple(cells)


def _levels(name: str, values: Iterable[Level]) -> tuple[Level, ...]:
    """Return the levels of a factor; ValueError for a single word, none, one twice, or what is no word or number."""
    if isinstance(values, str):
        raise ValueError(f"the levels of {name} are several, such as {name}=({values!r}, ...), not one word")
    levels = tuple(values)
    for level in levels:
        if not isinstance(level, str | int | float) or (isinstance(level, float) and not math.isfinite(level)):
            raise ValueError(f"a level of {name} is a word or a number, the key of a dictionary say, not {level!r}")
    if len({isinstance(level, str) for level in levels}) > 1:
        raise ValueError(f"the levels of {name} are words or numbers, not both: {levels}")
    if len(set(levels)) < max(1, len(levels)):
        problem = "has a level twice" if levels else "has no levels"
        raise ValueError(f"the factor {name} {problem}: {levels}")
    return levels
