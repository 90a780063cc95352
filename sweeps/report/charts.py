"""The charts of a report: effects, learning curves, error against parameters, dropout response, the analyses' own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from sweeps.experiment.metrics import AVERAGE, PARAMETERS, TOP1, TRAIN
from sweeps.experiment.search import Search, space
from sweeps.report.render import svg
from sweeps.report.render.document import NONE, Entry, Figure, Gallery, Table, count, plain
from sweeps.results.cell_numbers import DERIVED, ResultTable, Row, named, number
from sweeps.results.contrasts import Effect
from sweeps.results.evidence import CellResults, Floats, Run, SweepResults
from sweeps.results.marks import curve_runs
from sweeps.store.ledger import Json, Ledger

LARGEST: Final = 2_000_000  # bytes of a picture that a page takes in
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
    """Return one forest chart a metric."""
    figures = []
    for metric in dict.fromkeys(one.contrast.metric for one in effects):
        rows = []
        for one in effects:
            found = one.contrast
            if found.metric == metric:
                decided, ends = one.p < 0.05, found.interval
                rows.append(svg.Interval(one.row.label, found.difference, ends.low, ends.high, decided,
                                             keys(found.runs)))  # fmt: skip
        name = named(metric, group.table)
        picture = svg.forest(rows, f"{group.title}, {name}: differences from {effects[0].reference.label}")
        figures.append(Figure(name, picture))
    caption = (
        f"Points of error less {effects[0].reference.label}, with 95 % intervals of each difference alone; "
        "filled: p < .05 after Holm."
    )
    return Gallery(group.title, tuple(figures), "medium", caption)


def curve_gallery(group: ResultTable) -> Gallery | None:
    """Return one panel a row with its held-out error by epoch, the first row's mean behind it."""
    there = [(row, _band(row.evidence)) for row in group.rows if row.evidence is not None]
    known = [(row, band, runs) for row, (band, runs) in there if band is not None]
    if not known or group.table in DERIVED.values():
        return None
    # The first tenth of a curve falls from chance and would press all else to the floor.
    settled = [band.high[len(band.high) // 10 :] for _, band, _ in known]
    low, high = min(min(band.low) for _, band, _ in known), max(max(part) for part in settled)
    pad = 0.04 * (high - low or 1.0)
    figures = []
    first = known[0][1]
    for row, band, runs in known:
        bands = [band] + ([] if band is first else [first._replace(base=True)])
        picture = svg.curves(bands, low - pad, high + pad, f"{row.label}: held-out error by epoch", keys(runs))
        figures.append(Figure(row.label, picture, f"{plain(band.mean[-1])} at the end, {count(len(runs), 'run')}"))
    caption = f"Held-out top-1 error by epoch: mean and range of a row's trainings; grey: {known[0][0].label}."
    return Gallery(group.title, tuple(figures), "small", caption)


def _band(evidence: CellResults) -> tuple[svg.Band | None, tuple[Run, ...]]:
    runs = curve_runs(evidence)
    if not runs:
        return None, ()
    # A training that stopped early stays where it was.
    longest = max(len(run.curve) for run in runs)
    stacked: Floats = np.stack([np.pad(run.curve, (0, longest - len(run.curve)), mode="edge") for run in runs])
    mean, low, high = (list(map(float, x)) for x in (stacked.mean(axis=0), stacked.min(axis=0), stacked.max(axis=0)))
    return svg.Band(mean, low, high), runs


def size_gallery(group: ResultTable) -> Gallery | None:
    """Return the errors of a table's rows against their parameters, with the paper's where the data are the same."""
    if group.table in DERIVED.values():
        return None
    metrics = [metric for metric in group.metrics if metric not in (TRAIN, PARAMETERS)]
    if AVERAGE in metrics:
        metrics = [AVERAGE, *(metric for metric in metrics if metric == TOP1)]
    figures = []
    for metric in metrics[:2]:
        points = [point for row in group.rows for point in _points(group, row, metric)]
        if len({point.x for point in points}) > 1:
            title = f"{group.title}: {named(metric, group.table)} against parameters"
            picture = svg.scatter(points, "million parameters", "error, %", title, logarithmic=True)
            figures.append(Figure(named(metric, group.table), picture))
    paper = "; hollow: the paper's error" if group.comparable else ""
    caption = f"Error with its 95 % interval against exact parameter counts, logarithmic{paper}."
    return Gallery(group.title, tuple(figures), "medium", caption) if figures else None


def _points(group: ResultTable, row: Row, metric: str) -> list[svg.Point]:
    ours = number(row.evidence, metric)
    if row.evidence is None or not math.isfinite(row.evidence.parameters):
        return []
    found, size = [], row.evidence.parameters
    printed = group.paper(row, metric) if group.comparable else None
    if printed is not None:
        found.append(svg.Point(f"{row.label}, paper", size, printed.value, kind="paper"))
    if ours.there:
        low, high = ours.interval
        found.append(svg.Point(row.label, size, ours.average.mean, low, high, "ours", keys(ours.runs)))
    return found


def dropout_galleries(survey: SweepResults) -> list[Gallery]:
    """Return, a cell, one chart of hold-out error for each rate that its study chose."""
    search = survey.sweep.protocol.search
    return [] if search is None else [
        _responses(evidence, search) for evidence in survey.cells
        if any(tried.value is not None and math.isfinite(tried.value) for tried in evidence.tried)
    ]  # fmt: skip


def _responses(evidence: CellResults, search: Search) -> Gallery:
    known = [tried for tried in evidence.tried if tried.value is not None and math.isfinite(tried.value)]
    values = sorted(tried.value or 0.0 for tried in known)
    # Diverged trials sit at chance: drawn at the top edge, they do not press the others together.
    low, high = values[0], min(values[-1], values[len(values) // 2] + 3 * (values[len(values) // 2] - values[0]) + 0.5)
    pad, winner = 0.06 * (high - low or 1.0), evidence.winner
    figures = []
    for place in space(search, evidence.cell):
        points = []
        for tried in known:
            rate, value = dict(tried.run.trial.dropout)[place.after], tried.value or 0.0
            kind = "pick" if tried is winner else "ours" if tried.whole else "open"
            keys = " ".join(run.key for run in tried.runs)
            points.append(svg.Point(f"{rate:g}: {value:.2f}", rate, value, kind=kind, runs=keys))
        title = f"{evidence.cell.label}: hold-out error by dropout after {place.after}"
        picture = svg.response(points, low - pad, high + pad, (place.low, place.high), title)
        figures.append(Figure(f"after {place.after}", picture))
    return Gallery(evidence.cell.label, tuple(figures), "tiny")


# What the analysis jobs found ---------------------------------------------------------------------------------


def analysis_parts(ledger: Ledger, survey: SweepResults) -> list[Table | Gallery]:
    """Return the tables and pictures of the analysis jobs, of the first analysed run of each cell."""
    found: list[Table | Gallery] = []
    for job in JOBS:
        shown = [
            (evidence, run, run.analyses[job])
            for evidence in survey.cells
            for run in [run for run in evidence.runs if job in run.analyses][:1]
        ]
        if shown:
            found.append(_analysis_table(job, shown))
            pictures = tuple(figure for _, run, summary in shown for figure in _pictures(ledger, run, summary))
            if pictures:
                found.append(Gallery(JOBS[job], pictures, "wide"))
    return found


def _analysis_table(job: str, shown: Sequence[tuple[CellResults, Run, Json]]) -> Table:
    rows = [(evidence, run, row) for evidence, run, summary in shown for row in summary["rows"]]
    names = list(dict.fromkeys(name for *_, row in rows for name in row))
    lines = []
    for evidence, run, row in rows:
        places = [Entry(_word(row.get(name)), runs=(run,), cell=evidence.cell.key) for name in names]
        lines.append((Entry(evidence.cell.label, cell=evidence.cell.key), *places))
    numeric = {name: all(isinstance(row.get(name), int | float | None) for *_, row in rows) for name in names}
    align = "l" + "".join("r" if numeric[name] else "l" for name in names)
    notes = tuple(dict.fromkeys(str(note) for *_, summary in shown for note in summary.get("notes", ())))
    return Table(f"analysis-{job}", JOBS[job], ("cell", *names), align, tuple(lines), notes)


def _word(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def _pictures(ledger: Ledger, run: Run, summary: Mapping[str, Any]) -> list[Figure]:
    figures = []
    for name in summary["files"]:
        content = ledger.read(f"trials/{run.key}/analysis/{summary['job']}/{name}") if name.endswith(".png") else None
        if content is not None and len(content) <= LARGEST:
            title = f"{run.trial.cell.label}: {name.removesuffix('.png').replace('_', ' ')}"
            figures.append(Figure(title, "", run.key, content))
    return figures
