"""The charts of a report: effects, learning curves, error against parameters, dropout response, the analyses' own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from sweeps.experiment.metrics import AVERAGE, PARAMETERS, TOP1, TRAIN
from sweeps.experiment.search import Search, space
from sweeps.experiment.wording import count
from sweeps.report.effect_tables import difference_digits
from sweeps.report.render.chart import Band, Curves, Forest, Kind, Point, Responses, Scatter
from sweeps.report.render.document import MINUS, NONE, Entry, Figure, Gallery, Table, bounds, plain, signed
from sweeps.results.cell_numbers import DERIVED, ResultTable, Row, digits, named, number
from sweeps.results.contrasts import Effect
from sweeps.results.evidence import CellResults, Floats, Run, SweepResults
from sweeps.results.marks import curve_runs
from sweeps.store.ledger import Json, Ledger
from sweeps.store.tables import columns_of

LARGEST: Final = 20_000_000  # bytes of a picture that a page takes in, and makes smaller
JOBS: Final = {
    "pairing": "Pairing of filters (Figures 1 to 3)",
    "invariance": "Invariance (Figure 4)",
    "reconstruction": "Reconstruction (Figure 5, Table S1)",
    "outgoing": "Outgoing weights (Table 6)",
    "theory": "Theorems",
}


def keys(runs: Sequence[Run]) -> str:
    """Return the trial keys of runs, as the page's elements carry them."""
    return " ".join(run.key for run in runs)


def effect_gallery(group: ResultTable, effects: Sequence[Effect]) -> Gallery:
    """Return one forest chart a metric; a row's label names its reference where that is not every row's."""
    references = list(dict.fromkeys(effect.reference.label for effect in effects))
    reference = references[0]
    figures = []
    for metric in dict.fromkeys(effect.contrast.metric for effect in effects):
        name = named(metric, group.table)
        points = [_effect_point(effect, reference) for effect in effects if effect.contrast.metric == metric]
        alt = f"{group.title}, {name}: differences from {', '.join(references)}"
        figures.append(Figure(name, Forest(points), alt=alt))
    others = f", or the row named behind {MINUS}" if len(references) > 1 else ""
    unit = f"{group.metric.words} ({group.metric.better} is better)" if group.metric.is_own else "Points of error"
    caption = (
        f"{unit} less {reference}{others}, with 95 % intervals of each difference alone; filled: p < .05 after Holm."
    )
    return Gallery(group.title, tuple(figures), "medium", caption)


def _effect_point(effect: Effect, reference: str) -> Point:
    named_reference = f" {MINUS} {effect.reference.label}" if effect.reference.label != reference else ""
    label, contrast = f"{effect.row.label}{named_reference}", effect.contrast
    places = difference_digits(effect)
    interval = f" {bounds(contrast.interval, places)}" if math.isfinite(contrast.interval.low) else ""
    return Point(
        contrast.difference,
        label,
        f"{label}: {signed(contrast.difference, places)}{interval}",
        interval=contrast.interval,
        kind="ours" if effect.p < 0.05 else "open",
        trials=keys(contrast.runs),
    )


def curve_gallery(group: ResultTable) -> Gallery | None:
    """Return one panel a row with its held-out values by epoch, the first row's mean behind it."""
    runs_by_row = [(row, curve_runs(row.evidence)) for row in group.rows if row.evidence is not None]
    bands = [(row, _band(runs), runs) for row, runs in runs_by_row if runs]
    if not bands or group.table in DERIVED.values():
        return None
    # The first tenth of a curve falls from chance and would press all else to the floor.
    start = [len(band.high) // 10 for _, band, _ in bands]
    lows, highs = [band.low for _, band, _ in bands], [band.high for _, band, _ in bands]
    if group.metric.better == "higher":
        lows = [values[first:] for values, first in zip(lows, start, strict=True)]
    else:
        highs = [values[first:] for values, first in zip(highs, start, strict=True)]
    low, high = min(values.min() for values in lows), max(values.max() for values in highs)
    pad = 0.04 * (high - low or 1.0)
    first_row, first, _ = bands[0]
    short = group.metric.short if group.metric.is_own else "error"
    name = group.metric.short if group.metric.is_own else "top-1 error"
    figures = []
    for row, band, runs in bands:
        chart = Curves(band, first if band is not first else None, low - pad, high + pad, keys(runs))
        end = plain(band.mean[-1], digits(group.metric.held_out, band.mean[-1]))
        caption = f"{end} at the end, {count(len(runs), 'run')}"
        figures.append(Figure(row.label, chart, caption, f"{row.label}: held-out {short} by epoch"))
    caption = f"Held-out {name} by epoch: mean and range of a row's trainings; grey: {first_row.label}."
    return Gallery(group.title, tuple(figures), "small", caption)


def _band(runs: Sequence[Run]) -> Band:
    # A training that stopped early stays where it was.
    longest = max(len(run.curve) for run in runs)
    curves: Floats = np.stack([np.pad(run.curve, (0, longest - len(run.curve)), mode="edge") for run in runs])
    return Band(curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0))


def size_gallery(group: ResultTable) -> Gallery | None:
    """Return the errors of a table's rows against their parameters, with the paper's where the data are the same."""
    if group.table in DERIVED.values():
        return None
    metrics = [metric for metric in group.metrics if metric not in (TRAIN, PARAMETERS)]
    if AVERAGE in metrics:
        metrics = [AVERAGE, *(metric for metric in metrics if metric == TOP1)]
    figures = []
    for metric in metrics[:2]:
        points = [point for row in group.rows for point in _size_points(group, row, metric)]
        if len({point.x for point in points}) > 1:
            name = named(metric, group.table)
            chart = Scatter(points, "million parameters", group.metric.words if group.metric.is_own else "error, %")
            figures.append(Figure(name, chart, alt=f"{group.title}: {name} against parameters"))
    paper = "; hollow: the paper's error" if group.comparable else ""
    value = f"{group.metric.words} ({group.metric.better} is better)" if group.metric.is_own else "Error"
    caption = f"{value} with its 95 % interval against exact parameter counts, logarithmic{paper}."
    return Gallery(group.title, tuple(figures), "medium", caption) if figures else None


def _size_points(group: ResultTable, row: Row, metric: str) -> Iterator[Point]:
    """Yield the paper's point of a row, and ours."""
    if row.evidence is None or not math.isfinite(row.evidence.parameters):
        return
    ours, size = number(row.evidence, metric), row.evidence.parameters
    printed = group.paper(row, metric) if group.comparable else None
    if printed is not None:
        tip = f"{row.label}, paper: {printed.value:.2f} at {size:.3g}"
        yield Point(printed.value, tip=tip, x=size, kind="paper")
    if ours.known:
        mean = ours.average.mean
        tip = f"{row.label}: {mean:.{digits(metric, mean)}f} at {size:.3g}"
        yield Point(mean, row.label, tip, size, ours.interval, trials=keys(ours.runs))


def dropout_galleries(survey: SweepResults) -> list[Gallery]:
    """Return, a cell, one chart of hold-out values for each rate that its study chose."""
    search = survey.sweep.protocol.search
    if search is None:
        return []
    galleries = (_response_gallery(evidence, search) for evidence in survey.cells)
    return [gallery for gallery in galleries if gallery is not None]


def _response_gallery(evidence: CellResults, search: Search) -> Gallery | None:
    tried = [(point, point.value) for point in evidence.tried if point.value is not None and math.isfinite(point.value)]
    if not tried:
        return None
    metric = evidence.cell.metric
    values = sorted(value for _, value in tried)
    low, median, high = values[0], values[len(values) // 2], values[-1]
    # Diverged trials sit at chance: drawn at the edge, they do not press the others together.
    if metric.better == "higher":
        low = max(low, median - 3 * (high - median))
    elif metric.is_own:
        high = min(high, median + 3 * (median - low))
    else:
        high = min(high, median + 3 * (median - low) + 0.5)
    pad = 0.06 * (high - low or 1.0)
    figures = []
    for place in space(search, evidence.cell):
        points = []
        for point, value in tried:
            rate = dict(point.run.trial.dropout)[place.after]
            kind: Kind = "pick" if point is evidence.winner else "ours" if point.complete else "open"
            tip = f"{rate:g}: {metric.text(value)}"
            points.append(Point(value, "", tip, rate, kind=kind, trials=keys(point.runs)))
        chart = Responses(points, low - pad, high + pad, (place.low, place.high))
        name = metric.held_out_words if metric.is_own else "hold-out error"
        alt = f"{evidence.cell.label}: {name} by dropout after {place.after}"
        figures.append(Figure(f"after {place.after}", chart, alt=alt))
    return Gallery(evidence.cell.label, tuple(figures), "tiny")


# What the analysis jobs found ---------------------------------------------------------------------------------


def analysis_parts(ledger: Ledger, survey: SweepResults) -> list[Table | Gallery]:
    """Return the tables and pictures of the analysis jobs, of the first analysed run of each cell."""
    parts: list[Table | Gallery] = []
    for job, title in JOBS.items():
        analysed = [[run for run in evidence.runs if job in run.analyses][:1] for evidence in survey.cells]
        runs = [run for first in analysed for run in first]
        if runs:
            parts += _analysis_tables(job, runs)
            pictures = tuple(figure for run in runs for figure in _pictures(ledger, run, run.analyses[job]))
            parts += [Gallery(title, pictures, "wide")] if pictures else []
    return parts


def _analysis_tables(job: str, runs: Sequence[Run]) -> list[Table]:
    """Return a table for each kind of row: two algorithms have columns of one name that mean different things."""
    kinds: dict[tuple[str, ...], list[tuple[Run, Json]]] = {}
    for run in runs:
        for row in run.analyses[job]["rows"]:
            kind = tuple(name for name in row if not name.startswith("paper"))
            kinds.setdefault(kind, []).append((run, row))
    tables = [_analysis_table(job, rows) for rows in kinds.values()]
    return [table._replace(id=f"{table.id}-{place}" if place else table.id) for place, table in enumerate(tables)]


def _analysis_table(job: str, rows: Sequence[tuple[Run, Json]]) -> Table:
    names = list(columns_of([row for _, row in rows]))
    lines = []
    for run, row in rows:
        cell = run.trial.cell
        # The run is said once a row: said at each number, it would be most of the page.
        entries = [Entry(_word(row.get(name))) for name in names]
        lines.append((Entry(cell.label, runs=(run,), cell=cell.key), *entries))
    numeric = {name: all(isinstance(row.get(name), int | float | None) for _, row in rows) for name in names}
    align = "l" + "".join("r" if numeric[name] else "l" for name in names)
    notes = tuple(dict.fromkeys(str(note) for run, _ in rows for note in run.analyses[job].get("notes", ())))
    return Table(f"analysis-{job}", JOBS[job], ("cell", *names), align, tuple(lines), notes)


def _word(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    return f"{value:.4g}".replace("-", MINUS) if isinstance(value, float) else str(value)


def _pictures(ledger: Ledger, run: Run, summary: Json) -> Iterator[Figure]:
    for name in summary["files"]:
        content = ledger.read(f"trials/{run.key}/analysis/{summary['job']}/{name}") if name.endswith(".png") else None
        if content is not None and len(content) <= LARGEST:
            title = f"{run.trial.cell.label}: {name.removesuffix('.png').replace('_', ' ')}"
            yield Figure(title, content, run.key, title)
