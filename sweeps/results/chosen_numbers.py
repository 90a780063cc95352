"""Differences over as many seeds or folds as the questions of a sweep chose: they are shown, and not tested.

Trainings come until a question is decided, so a difference that happens to be large ends them early. A test that takes
their number for fixed then rejects too often, and its interval covers too seldom. At the largest number nothing is left
to choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from sweeps.results.cell_numbers import UNKNOWN
from sweeps.results.claims import Compared
from sweeps.results.contrasts import Contrast, Effect
from sweeps.results.evidence import CellResults
from sweeps.results.factors import FactorEffect

WHY: Final = "the number of {}s was chosen by the questions"
Shown = TypeVar("Shown", Effect, FactorEffect, Compared)
WHERE: Final = "their decisions and intervals stand under Questions"


def why_untested(contrast: Contrast, cells: Iterable[CellResults]) -> str:
    """Return why a difference is not tested: questions chose how many pairs it has. Empty where they did not.

    `cells` are those that it may be of. A cell that no question asks for has as many trainings as are declared.
    """
    trained = {run.trial.cell.key for run in contrast.runs}
    designs = [cell.asked for cell in cells if cell.cell.key in trained]
    is_chosen = contrast.basis in ("seeds", "folds") and all(
        design is not None and contrast.unit == design.unit and contrast.n < design.most for design in designs
    )
    return WHY.format(contrast.unit) if is_chosen else ""


def sides(effect: Effect) -> list[CellResults]:
    """Return the two cells of an effect."""
    return [row.results for row in (effect.row, effect.reference) if row.results is not None]


def as_shown(effect: Shown, cells: Sequence[CellResults]) -> Shown:
    """Return a difference of some cells as it is shown: untested where questions chose how many pairs it has."""
    untested = why_untested(effect.contrast, cells)
    return effect._replace(contrast=without_tests(effect.contrast), p=math.nan) if untested else effect


def shown_effect(effect: Effect) -> Effect:
    """Return an effect of a table as it is shown."""
    return as_shown(effect, sides(effect))


def without_tests(contrast: Contrast) -> Contrast:
    """Return a difference with the number of its pairs, and without any p, t or interval."""
    nothing = math.nan
    return contrast._replace(interval=UNKNOWN, t=nothing, p=nothing, plain_p=nothing, rank_p=nothing)


def untested_notes(reasons: Iterable[str]) -> tuple[str, ...]:
    """Return what a reader has to know of a table whose differences are untested for these reasons, "" for none."""
    return tuple(f"No p and no interval where {why}; {WHERE}." for why in dict.fromkeys(filter(None, reasons)))
