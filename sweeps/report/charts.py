"""The charts of a report: effects, learning curves, errors by parameters, responses of searches, the analyses' own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from sweeps.experiment.metrics import AVERAGE, HELD_OUT, PARAMETERS, TOP1, TRAIN
from sweeps.experiment.search import Search, goal, space
from sweeps.experiment.space import Choice, Domain, Value, value_text
from sweeps.experiment.wording import count
from sweeps.report.effect_tables import difference_digits
from sweeps.report.record_tables import held_out_name
from sweeps.report.render.chart import Band, Curves, Forest, Kind, Point, Responses, Scatter
from sweeps.report.render.document import MINUS, NONE, Entry, Figure, Gallery, Table, bounds, plain, signed
from sweeps.report.result_tables import legend
from sweeps.results.analyses import preferred
from sweeps.results.cell_numbers import DERIVED, ResultTable, Row, digits, named, number, without_spread
from sweeps.results.chosen_numbers import shown_effect, sides, untested_notes, why_untested
from sweeps.results.contrasts import Effect
from sweeps.results.evidence import CellResults, Floats, Run, SweepResults
from sweeps.results.marks import curve_runs, stale_marks
from sweeps.store.ledger import Json, Ledger
from sweeps.store.tables import columns_of

LARGEST: Final = 20_000_000  # bytes of a picture that a page takes in, and makes smaller
NAMES: Final = 24  # letters of all choices below a response
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
        of_metric = [shown_effect(effect) for effect in effects if effect.contrast.metric == metric]
        points = [_effect_point(effect, reference) for effect in of_metric]
        alt = f"{group.title}, {name}: differences from {', '.join(references)}"
        figures.append(Figure(name, Forest(points), alt=alt))
    others = f", or the row named behind {MINUS}" if len(references) > 1 else ""
    unit = f"{group.metric.words} ({group.metric.better} is better)" if group.metric.is_own else "Points of error"
    untested = [why_untested(effect.contrast, sides(effect)) for effect in effects]
    tests = "" if all(untested) else ", with 95 % intervals of each difference alone; filled: p < .05 after Holm"
    caption = " ".join((f"{unit} less {reference}{others}{tests}.", *untested_notes(untested)))
    return Gallery(group.title, tuple(figures), "medium", caption)


def _effect_point(effect: Effect, reference: str) -> Point:
    named_reference = f" {MINUS} {effect.reference.label}" if effect.reference.label != reference else ""
    label = f"{effect.row.label}{named_reference}"
    contrast = effect.contrast
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
    runs_by_row = [(row, curve_runs(row.results)) for row in group.rows if row.results is not None]
    bands = [(row, _band(runs), runs) for row, runs in runs_by_row if runs]
    if not bands or group.table in DERIVED.values():
        return None
    # The first tenth of a curve falls from chance and would press all else to the floor.
    start = [int(np.searchsorted(band.epochs, band.epochs[-1] // 10, "right")) for _, band, _ in bands]
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
    """Return mean and range of runs at each epoch that one of them measured, from where all of them have values."""
    first = max(run.epochs[0] for run in runs)
    epochs = np.array(sorted({epoch for run in runs for epoch in run.epochs if epoch >= first}), np.float64)
    # Between two of its epochs a training is on the line that joins them; one that stopped early stays where it was.
    curves: Floats = np.stack([np.interp(epochs, run.epochs, run.curve) for run in runs])
    return Band(epochs, curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0))


def size_gallery(group: ResultTable) -> Gallery | None:
    """Return the errors of a table's rows against their parameters, with the paper's where the data are the same."""
    if group.table in DERIVED.values():
        return None
    metrics = [metric for metric in group.metrics if metric not in (TRAIN, PARAMETERS)]
    if AVERAGE in metrics:
        metrics = [AVERAGE, *(metric for metric in metrics if metric == TOP1)]
    figures = []
    beyond = 0
    unknown: dict[str, None] = {}
    for metric in metrics[:2]:
        points = [point for row in group.rows for point in _size_points(group, row, metric)]
        if len({point.x for point in points}) > 1:
            name = named(metric, group.table)
            value = group.metric.words if group.metric.is_own else "error, %"
            ends = (-math.inf, math.inf) if group.metric.is_own else (0.0, 100.0)
            chart = Scatter(points, "million parameters", value, ends)
            figures.append(Figure(name, chart, alt=f"{group.title}: {name} against parameters"))
            beyond += len(chart.cut)
            unknown |= dict.fromkeys(_without_interval(group, metric))
    paper = "; hollow: the paper's error" if group.comparable else ""
    value = f"{group.metric.words} ({group.metric.better} is better)" if group.metric.is_own else "Error"
    caption = f"{value} with its 95 % interval against exact parameter counts, logarithmic{paper}."
    caption += f" Triangles at the edge: {count(beyond, 'end')} of intervals, beyond the frame." if beyond else ""
    caption += f" Without an interval: {'; '.join(unknown)}." if unknown else ""
    return Gallery(group.title, tuple(figures), "medium", caption) if figures else None


def _without_interval(group: ResultTable, metric: str) -> Iterator[str]:
    """Yield each row that has a number and no interval, with the reason."""
    for row in group.rows:
        ours = number(row.results, metric)
        why = without_spread(ours.average)
        if ours.known and why and not math.isfinite(ours.interval.low):
            yield f"{row.label} ({why})"


def _size_points(group: ResultTable, row: Row, metric: str) -> Iterator[Point]:
    """Yield the paper's point of a row, and ours."""
    if row.results is None or not math.isfinite(row.results.parameters):
        return
    ours = number(row.results, metric)
    size = row.results.parameters
    printed = group.paper(row, metric) if group.comparable else None
    if printed is not None:
        tip = f"{row.label}, paper: {printed.value:.2f} at {size:.3g}"
        yield Point(printed.value, tip=tip, x=size, kind="paper")
    if ours.known:
        mean = ours.average.mean
        places = digits(metric, mean)
        interval = f" {bounds(ours.interval, places)}" if math.isfinite(ours.interval.low) else ""
        tip = f"{row.label}: {mean:z.{places}f}{interval} at {size:.3g}"
        yield Point(mean, row.label, tip, size, ours.interval, trials=keys(ours.runs))


def response_galleries(results: SweepResults) -> list[Gallery]:
    """Return, a cell, one chart of the objective for each dimension of its study."""
    search = results.sweep.protocol.search
    if search is None:
        return []
    galleries = (_response_gallery(cell_results, search) for cell_results in results.cells)
    return [gallery for gallery in galleries if gallery is not None]


def _response_gallery(cell_results: CellResults, search: Search) -> Gallery | None:
    tried = [
        (point, point.value) for point in cell_results.tried if point.value is not None and math.isfinite(point.value)
    ]
    if not tried:
        return None
    metric = cell_results.cell.metric
    objective = goal(search, cell_results.cell).name
    values = sorted(value for _, value in tried)
    low, median, high = values[0], values[len(values) // 2], values[-1]
    room = 3 * (high - median if cell_results.larger_wins else median - low)
    # Diverged trials sit at chance: drawn at the edge, they do not press the others together. Where half of all have
    # the best value, the others are what there is to see.
    if room and cell_results.larger_wins:
        low = max(low, median - room)
    elif room:
        high = min(high, median + room + (0.5 if objective == HELD_OUT else 0.0))
    pad = 0.12 * (high - low or 1.0)
    low, high = low - pad, high + pad
    figures = []
    value_name = search.objective or held_out_name(metric, search.folds)
    value_label = f"{value_name}, %" if objective == HELD_OUT else value_name
    for axis in space(search, cell_results.cell):
        points = []
        for point, value in tried:
            chosen = dict(point.run.trial.chosen)[axis.name]
            kind: Kind = "pick" if point is cell_results.winner else "ours" if point.state == "finished" else "open"
            tip = f"{value_text(chosen)}: {plain(value, digits(objective, value))}"
            tip += f", {point.early}" if point.early else ""
            points.append(Point(value, "", tip, _place(axis.domain, chosen), kind=kind, trials=keys(point.runs)))
        title = axis.name if search.axes else f"after {axis.name}"
        chart = Responses(points, low, high, *_scale(axis.domain), value_label)
        name = axis.name if search.axes else f"dropout after {axis.name}"
        figures.append(Figure(title, chart, alt=f"{cell_results.cell.label}: {value_name} by {name}"))
    caption = _beyond([value for value in values if value < low or value > high], high, objective)
    return Gallery(cell_results.cell.label, tuple(figures), "tiny", caption)


def _beyond(values: Sequence[float], high: float, objective: str) -> str:
    """Return the sentence on values that lie beyond a frame, above `high` or below it; empty for none."""
    if not values:
        return ""
    word, farthest = ("up", max(values)) if max(values) > high else ("down", min(values))
    end = plain(farthest, digits(objective, farthest))
    return f"Triangles at the edge: {count(len(values), 'point')} beyond the frame, {word} to {end}."


def _place(domain: Domain, value: Value) -> float:
    """Return where a value stands on its axis: itself, its logarithm, or its place among the choices."""
    if isinstance(domain, Choice):
        return float(domain.options.index(value))
    return math.log10(float(value)) if domain.log else float(value)


def _scale(domain: Domain) -> tuple[tuple[float, float], tuple[tuple[float, str], ...]]:
    """Return the ends of an axis, and the places that are named where they are no round numbers."""
    if isinstance(domain, Choice):
        last = len(domain.options) - 1
        letters = NAMES // (last + 1)
        names = tuple((float(k), value_text(option)[:letters]) for k, option in enumerate(domain.options))
        return (-0.25 * last, 1.25 * last), names
    ends = (_place(domain, domain.low), _place(domain, domain.high))
    if not domain.log:
        return ends, ()
    powers = range(math.ceil(ends[0] - 1e-9), math.floor(ends[1] + 1e-9) + 1)
    places = [float(power) for power in powers] if len(powers) > 1 else list(ends)
    return ends, tuple((place, f"{10**place:.3g}") for place in places[:: -(-len(places) // 3)])


# What the analysis jobs found ---------------------------------------------------------------------------------


def analysis_parts(ledger: Ledger, results: SweepResults) -> list[Table | Gallery]:
    """Return the tables and pictures of the analysis jobs, of one run of each cell: the first that is preferred."""
    parts: list[Table | Gallery] = []
    for job, title in JOBS.items():
        analysed = [[run for run in cell_results.runs if job in run.analyses] for cell_results in results.cells]
        runs = [run for of_cell in analysed for run in preferred(of_cell, lambda run: run.state)[:1]]
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
        named_run = Entry(run.trial.label, marks=stale_marks((run,)))
        lines.append((Entry(cell.label, runs=(run,), cell=cell.key), named_run, *entries))
    numeric = {name: all(isinstance(row.get(name), int | float | None) for _, row in rows) for name in names}
    align = "ll" + "".join("r" if numeric[name] else "l" for name in names)
    notes = tuple(dict.fromkeys(str(note) for run, _ in rows for note in run.analyses[job].get("notes", ())))
    marks = legend(stale_marks(run for run, _ in rows))
    return Table(f"analysis-{job}", JOBS[job], ("cell", "run", *names), align, tuple(lines), (*notes, *marks))


def _word(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    return f"{value:.4g}".replace("-", MINUS) if isinstance(value, float) else str(value)


def _pictures(ledger: Ledger, run: Run, summary: Json) -> Iterator[Figure]:
    for name in summary["files"]:
        content = ledger.read(f"trials/{run.key}/analysis/{summary['job']}/{name}") if name.endswith(".png") else None
        if content is not None and len(content) <= LARGEST:
            stale = ", stale" * bool(stale_marks((run,)))
            title = f"{run.trial.cell.label} {run.trial.label}{stale}: {name.removesuffix('.png').replace('_', ' ')}"
            yield Figure(title, content, run.key, title)
