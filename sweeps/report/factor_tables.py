"""The main effects and interactions of a grid's factors: a table, and a chart for each two factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

from sweeps.experiment.metrics import Metric
from sweeps.report.charts import keys
from sweeps.report.effect_tables import family_words, rank_chance, spread_notes
from sweeps.report.render.chart import Interaction, Line, Point
from sweeps.report.render.document import Entry, Figure, Gallery, Table, bounds, chance, plain, signed
from sweeps.report.result_tables import legend
from sweeps.results.cell_numbers import ResultTable, digits, named, number
from sweeps.results.chosen_numbers import as_shown, untested_notes, why_untested
from sweeps.results.contrasts import Contrast
from sweeps.results.factors import FactorEffect, Grid, factor_effects, grids, interaction_means, level_text
from sweeps.results.marks import MARKS, lost_marks, stale_marks

COLUMNS: Final = ("factor", "level", "less", "", "difference", "95 % interval", "t", "p (Holm)", "Wilcoxon p", "over",
                  "cells")  # fmt: skip
EFFECTS: Final = (
    "Main effects are over the settings of the other factors that have both levels. An interaction is a difference of "
    "differences: how much more the first factor changes the {} at the second one's level than at its reference."
)
SPREAD: Final = "Each value is one seed's (or fold's) difference over its cells, so n counts seeds and not trainings."


def factor_parts(tables: Sequence[ResultTable]) -> Iterator[Table | Gallery]:
    """Yield the table and the charts of each grid of a sweep."""
    for place, grid in enumerate(grids(tables)):
        effects = factor_effects(grid)
        if any(not effect.why for effect in effects):
            name = "factors" if place == 0 else f"factors-{place + 1}"
            gallery = interaction_gallery(grid)
            if gallery is not None:
                yield gallery
            yield factor_table(name, grid, effects)


def factor_table(name: str, grid: Grid, effects: Sequence[FactorEffect]) -> Table:
    """Return the effects of a grid that its cells determine, with every test of them; a note names the others."""
    known = [effect for effect in effects if not effect.why]
    shown = [as_shown(effect, grid.cells) for effect in known]
    marks = [mark for effect in shown for mark in _marks(grid, effect.contrast)]
    rows = tuple(_row(grid, effect) for effect in shown)
    tested = sum(math.isfinite(effect.contrast.p) for effect in shown)
    untested = [why_untested(effect.contrast, grid.cells) for effect in known]
    notes: tuple[str, ...] = (EFFECTS.format(_value(grid.metric)), SPREAD)
    notes += (f"{grid.metric.note}.",) if grid.metric.is_own else ()
    notes += (f"{family_words(tested, untested)}.",) if tested else ()
    notes += spread_notes([effect.contrast for effect in shown]) + untested_notes(untested)
    notes += tuple(_withheld(effects))
    notes += tuple(_left_out(grid))
    notes += tuple(legend(marks, grid.metric))
    title = f"Factors: {', '.join(grid.levels)}"
    return Table(name, _titled(title, grid), COLUMNS, "llllrrrrrlr", rows, notes).without_empty_columns()


def _withheld(effects: Sequence[FactorEffect]) -> Iterator[str]:
    """Yield a sentence for each factor with withheld effects. It names the metrics, unless all are concerned."""
    metrics: dict[tuple[str, str], dict[str, None]] = {}
    for effect in effects:
        if effect.why:
            metrics.setdefault((effect.name, effect.why), {})[named(effect.contrast.metric, "")] = None
    shown = {effect.contrast.metric for effect in effects}
    for (factors, why), names in metrics.items():
        where = f" in {' and '.join(names)}" if len(names) < len(shown) else ""
        yield f"{factors}: some{where} are withheld, {why}."


def _left_out(grid: Grid) -> Iterator[str]:
    """Yield sentences that name the cells without a result, in all metrics or in some."""
    metrics: dict[tuple[str, ...], list[str]] = {}
    for metric in grid.metrics:
        metrics.setdefault(grid.left_out(metric), []).append(named(metric, ""))
    for labels, names in metrics.items():
        what = "a result" if len(metrics) == 1 else f"a result in {' and '.join(names)}"
        if labels:
            yield f"Without {what}, and left out: {', '.join(labels)}."


def _titled(title: str, grid: Grid) -> str:
    """Return a title with the words that tell a grid from others like it."""
    return f"{title} ({grid.words})" if grid.words else title


def _value(metric: Metric) -> str:
    """Return what the factors change: error, or the metric's own name."""
    return metric.words if metric.is_own else "error"


def _places(grid: Grid, metric: str) -> int:
    """Return with how many decimals a metric of a grid is written: as many as its first cell's number has."""
    means = (number(cell, metric).average.mean for cell in grid.cells)
    return digits(metric, next(filter(math.isfinite, means), 0.0))


def _row(grid: Grid, effect: FactorEffect) -> tuple[Entry, ...]:
    contrast = effect.contrast
    places = _places(grid, contrast.metric)
    difference = signed(contrast.difference, places)
    return (
        Entry(effect.name),
        Entry(effect.level),
        Entry(effect.reference, tone="muted"),
        Entry(named(contrast.metric, ""), tone="muted"),
        Entry(difference, marks=_marks(grid, contrast), runs=contrast.runs, metric=contrast.metric),
        Entry(bounds(contrast.interval, places)),
        Entry(signed(contrast.t, 1)),
        Entry(chance(effect.p), tone="good" if effect.p < 0.05 else ""),
        Entry(rank_chance(contrast)),
        Entry(contrast.over, tone="muted"),
        Entry(str(effect.cells), tone="muted"),
    )


def _marks(grid: Grid, contrast: Contrast) -> tuple[str, ...]:
    """Return the marks of an effect: of the grid's cells that lost trainings, of its own trainings that are stale."""
    used = {mark for cell in grid.cells for mark in lost_marks(cell, contrast.metric)} | set(stale_marks(contrast.runs))
    return tuple(mark for mark in MARKS if mark in used)


def interaction_gallery(grid: Grid) -> Gallery | None:
    """Return a chart for each two factors of a grid, in its first metric; None where nothing compares."""
    if not grid.metrics:
        return None
    metric = grid.metrics[0]
    figures = [
        figure
        for first, second in itertools.combinations(grid.levels, 2)
        if (figure := _figure(grid, metric, first, second)) is not None
    ]
    direction = f" {grid.metric.better.capitalize()} is better." if grid.metric.is_own else ""
    caption = (
        f"Mean {_value(grid.metric)} by the levels of two factors, over the settings of the others that have all of "
        f"these cells.{direction} Parallel lines: no interaction. The intervals stand in the table, where the seeds "
        "are paired."
    )
    title = f"Means of {grid.metric.words}" if grid.metric.is_own else "Mean errors"
    return Gallery(_titled(title, grid), tuple(figures), "medium", caption) if figures else None


def _figure(grid: Grid, metric: str, first: str, second: str) -> Figure | None:
    means = interaction_means(grid, metric, first, second)
    if means is None:
        return None
    lines = []
    decimals = _places(grid, metric)
    for level in grid.levels[second]:
        points = [
            Point(
                means.errors[place, level],
                tip=f"{level_text(place)}, {level_text(level)}: {plain(means.errors[place, level], decimals)}",
                x=position,
                trials=keys(means.runs[place, level]),
            )
            for position, place in enumerate(grid.levels[first])
            if (place, level) in means.errors
        ]
        lines += [Line(f"{second} {level_text(level)}", points)] if points else []
    places = [level_text(level) for level in grid.levels[first]]
    title = f"{first} × {second}"
    value = grid.metric.words if grid.metric.is_own else f"{named(metric, '')} error"
    chart = Interaction(places, lines, first, value if grid.metric.is_own else f"{value}, %")
    return Figure(title, chart, alt=f"{title}: mean {value}")


def text_lines(table: Table) -> list[str]:
    """Return the rows of a factor table as lines of a terminal, without some of its columns."""
    used = [i for i, name in enumerate(table.columns) if name not in ("t", "Wilcoxon p", "cells")]
    grid = [[table.columns[i] for i in used], *([row[i].text for i in used] for row in table.rows)]
    widths = [max(len(row[place]) for row in grid) for place in range(len(used))]
    aligned = [
        "  ".join(
            word.rjust(width) if table.align[i] == "r" else word.ljust(width)
            for word, width, i in zip(row, widths, used, strict=True)
        ).rstrip()
        for row in grid
    ]
    return [table.title, *aligned]
