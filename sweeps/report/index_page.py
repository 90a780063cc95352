"""Index of the reports of an output: a line for each sweep and each of its tables, the grade, and links."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from sweeps.experiment.metrics import PARAMETERS, TRAIN
from sweeps.experiment.wording import count, plural
from sweeps.report.render.document import NONE, Document, Entry, Section, Table, Tile, duration, plain
from sweeps.results.cell_numbers import DERIVED, CellNumber, ResultTable, digits, groups, named, number
from sweeps.results.evidence import SweepResults, hours_of
from sweeps.results.grade import Graded
from sweeps.store.ledger import Json

PAGE = "index.html"
RESULTS = (
    "Of each table the best cell by its first column with a number, training errors left out; the report has all "
    "cells, tests and verdicts."
)


class Reported(NamedTuple):
    """One sweep whose report has been written: its results, the report, and who drives it now, if anyone does."""

    results: SweepResults
    report: Document
    driver: Json | None = None

    @property
    def page(self) -> str:
        """Return the address of its page, as the index links it."""
        return f"{quote(self.results.title)}/report.html"

    def trainings(self, *states: str) -> int:
        """Return how many of its trainings are in these states."""
        return sum(run.state in states for run in self.results.runs)


def index_document(sweeps: Sequence[Reported], graded: Graded | None) -> Document:
    """Return the index of the sweeps of an output; `graded` is the paper's grade, None where none of its rows ran."""
    runs = {run.key: run for sweep in sweeps for run in sweep.results.runs}.values()  # sweeps may share a trial
    done, failed = (sum(run.state in states for run in runs) for states in (("done", "stale"), ("failed",)))
    tiles = [
        Tile(
            f"{sum(is_complete(sweep) for sweep in sweeps)} of {len(sweeps)}",
            f"{plural(len(sweeps), 'sweep')} complete",
        ),
        Tile(f"{done:,}", f"{plural(done, 'training')} done", f"{failed} failed"),
        Tile(duration(hours_of(runs)), "of training"),
    ]
    if graded is not None:
        to_go = f"about {graded.hours:,.0f} GPU-hours to go"
        tiles.append(Tile(f"{graded.score:.0%}", "of the paper reproduced", to_go))
    sections = [
        Section("sweeps", "Sweeps", (), (_sweeps_table(sweeps),)),
        Section("results", "Results", (RESULTS,), (_results_table(sweeps),)),
        *([_grade(graded)] if graded is not None else []),
    ]
    question = "What all sweeps of this output have come to"
    return Document("Index of the reports", question, "", tuple(tiles), tuple(sections))


def _sweeps_table(sweeps: Sequence[Reported]) -> Table:
    rows = tuple(
        (
            Entry(sweep.results.title, link=sweep.page),
            state(sweep),
            Entry(f"{sweep.trainings('done', 'stale'):,} of {len(sweep.results.runs) + sweep.results.pending:,}"),
            Entry(duration(sweep.results.hours)),
            Entry("; ".join(_verdicts(sweep.report)) or NONE),
            Entry(sweep.results.question or NONE, tone="muted"),
        )
        for sweep in sweeps
    )
    return Table("sweeps", "Sweeps", ("", "state", "trainings", "time", "verdicts", "question"), "llrrll", rows)


def state(sweep: Reported) -> Entry:
    """Return where a sweep stands: driven now, stopped, failed or given up in part, or complete."""
    failed, given_up = sweep.trainings("failed"), len(sweep.results.given_up)
    lost = (f"{failed} failed" if failed else "", f"{count(given_up, 'cell')} given up" if given_up else "")
    failures = ", ".join(filter(None, lost))
    if sweep.driver is not None:
        return Entry("trains now", failures)
    if sweep.results.to_do:
        return Entry(f"{sweep.results.to_do:,} to do", failures)
    return Entry(failures, tone="bad") if not is_complete(sweep) else Entry("complete", tone="good")


def is_complete(sweep: Reported) -> bool:
    """Return whether no training of a sweep is left to do, none has failed, and no cell was given up."""
    return not (sweep.results.to_do or sweep.trainings("failed") or sweep.results.given_up)


def _verdicts(report: Document) -> Iterator[str]:
    """Yield the verdicts of a report as its tiles have them: all but the last two, trainings and hours."""
    for tile in report.tiles[:-2]:
        if tile.value == "withheld":
            yield f"{tile.label} withheld"
        elif not tile.value.endswith(" of 0"):
            yield f"{tile.value} {tile.label}"


def _results_table(sweeps: Sequence[Reported]) -> Table:
    rows = tuple(_result(sweep, table) for sweep in sweeps for table in _tables(sweep))
    return Table("results", "Results", ("table", "sweep", "best cell", "ours", "paper", "what"), "lllrrl", rows)


def _tables(sweep: Reported) -> Iterator[ResultTable]:
    """Yield the tables of a sweep, but those that are made of another one's rows."""
    yield from (table for table in groups(sweep.results) if table.table not in DERIVED.values())


def _result(sweep: Reported, table: ResultTable) -> tuple[Entry, ...]:
    """Return the row of one table: its best cell so far, with the paper's number of the same."""
    is_papers = table.comparable and not sweep.report.banner
    is_foreign = bool(sweep.report.banner or table.table) and not is_papers
    where = (
        Entry(table.title, link=f"{sweep.page}#{quote(table.id)}"),
        Entry(sweep.results.title, sub="not the paper's runs" if is_foreign else ""),
    )
    columns = [metric for metric in table.metrics if metric not in (TRAIN, PARAMETERS)]
    numbers = [[(row, number(row.results, metric)) for row in table.rows] for metric in columns]
    known = next((pairs for column in numbers if (pairs := [pair for pair in column if pair[1].known])), [])
    if not known:
        return (*where, Entry("none yet", tone="muted"), Entry(NONE), Entry(NONE), Entry(""))
    sign = -1 if table.metric.better == "higher" else 1
    best, ours = min(known, key=lambda pair: sign * pair[1].average.mean)
    # A number of the paper stands beside none of other pictures: only the report has the room to say so.
    printed = table.paper(best, ours.metric) if is_papers else None
    paper = NONE if printed is None else plain(printed.value, digits(ours.metric, printed.value))
    name = named(ours.metric, table.table)
    return (*where, Entry(best.label), Entry(_number(ours)), Entry(paper, tone="paper"), Entry(name))


def _number(ours: CellNumber) -> str:
    """Return a number with its standard error, where it has one, and how many trainings make it."""
    mean, se, n = ours.average
    places = digits(ours.metric, mean)
    spread = f" ± {plain(se, places)}" if math.isfinite(se) else ""
    return f"{plain(mean, places)}{spread} ({n})"


def _grade(graded: Graded) -> Section:
    """Return the section on the grade, with a line for each part of the paper."""
    rows = tuple((Entry(part.title, link="grade/grade.html"), Entry(f"{part.score:.0%}")) for part in graded.parts)
    table = Table("grade", "Grade", ("", "score"), "lr", rows)
    return Section("grade", "Grade", (f"{graded.title}: {graded.score:.0%}.",), (table,))
