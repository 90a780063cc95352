"""The table a sweep ends with: a row a cell, our averages beside the paper's printed numbers."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sweeps.experiment.metrics import (
    AVERAGE,
    PERCENT,
    TOP1,
    TOP1_TEN,
    TOP5,
    TOP5_TEN,
    TRAIN,
    VOTE,
    Average,
    Metric,
    cell_average,
    decimals,
    flags_of,
    has_diverged,
    telling_metrics,
)
from sweeps.experiment.model_facts import cell_parameters
from sweeps.experiment.plan import STATES, Plan, TrialStatus
from sweeps.experiment.search import Search
from sweeps.experiment.trial import Cell
from sweeps.report.render.formats import comma_separated
from sweeps.report.result_tables import why_withheld
from sweeps.results.cell_numbers import DERIVED, ResultTable, Row, groups, number, stands_for, vote_average
from sweeps.results.decisions import read_vote
from sweeps.results.evidence import CellResults, results_of_plan
from sweeps.results.marks import MARKS, marks
from sweeps.results.paper import COLUMNS, Printed, printed
from sweeps.results.paper_cells import reduced
from sweeps.store.ledger import Json, Ledger
from sweeps.store.tables import columns_of, parquet

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS: Final = {
    TOP1: "top-1", TOP5: "top-5", TOP1_TEN: "top-1†", TOP5_TEN: "top-5†", TRAIN: "train",
    AVERAGE: "average", VOTE: "vote",
}  # fmt: skip
GREY: Final = "bright_black"
UNFLAGGED: Final = "u1=ef"  # marks of the report that no flag of a trial, and no count, says
GAP: Final = 2  # spaces between two columns
LEAST: Final = 12  # width of the marks, which wrap


class TableRow(NamedTuple):
    """One row of the table: ours and the paper's numbers by metric, flags, and how many of its trials are done.

    `lost` says what of its trials diverged, failed or were skipped. By metric, `marks` are those of the report, and
    `withheld` says why a number is not judged by the paper's. `other` says in what the trainings are not the paper's.
    """

    label: str
    parameters: int | None
    numbers: dict[str, Average]
    paper: dict[str, Printed | None]
    flags: tuple[str, ...]
    lost: str
    done: int
    planned: int
    marks: dict[str, tuple[str, ...]]
    withheld: dict[str, str]
    other: str


def lines(plan: Plan, classes: Mapping[str, int], ledger: Ledger) -> list[TableRow]:
    """Return the rows of the table; `classes` by data set, as far as they are known."""
    rows = []
    places, trouble = _places(plan, ledger)
    for cell in plan.sweep.cells:
        statuses = plan.of(cell)
        metrics = [name for name in COLUMNS.get(cell.table, _measured(plan, cell)) if name in headings(cell.metric)]
        tested = plan.tested(cell)
        numbers = {m: _vote(ledger, cell, statuses) if m == VOTE else cell_average(tested, m) for m in metrics}
        paper = {m: printed(cell.table, stands_for(cell), cell.row, m) for m in metrics}
        trained = [(status.trial, status.result) for status in statuses]
        parameters = cell_parameters(cell, classes.get(cell.dataset), trained)
        # A paused trial of a search is not waited for.
        planned = len(statuses) + len(plan.pending_of(cell)) - plan.count("paused", cell=cell)
        done = len(tested)
        place = places.get(cell.key)
        marked = {m: _marks_of(place, m, plan.sweep.protocol.search) for m in metrics}
        withheld = {m: why_withheld(place.table, place.row, m) if place is not None else trouble for m in metrics}
        other = reduced(place.results, place.table.dataset) if place is not None and place.table.table else trouble
        row = TableRow(
            cell.label, parameters, numbers, paper, flags(plan, cell), plan.lost(cell), done, planned,
            marked, withheld, other,
        )  # fmt: skip
        rows.append(row)
    return rows


class Place(NamedTuple):
    """Where a cell stands in the report: its table, its row, its results."""

    table: ResultTable
    row: Row
    results: CellResults


def _places(plan: Plan, ledger: Ledger) -> tuple[dict[str, Place], str]:
    """Return each cell's place in the report, by its key, and why there are none."""
    try:
        tables = groups(results_of_plan(plan, ledger))
    except ValueError as error:
        return {}, str(error)
    own = [(table, row) for table in tables if table.table not in DERIVED.values() for row in table.rows]
    return {row.key: Place(table, row, row.results) for table, row in own if row.results is not None}, ""


def _marks_of(place: Place | None, metric: str, search: Search | None) -> tuple[str, ...]:
    """Return what the report's marks of a number are called."""
    found = marks(place.table, place.results, number(place.results, metric), search) if place is not None else ()
    return tuple(MARKS[mark][0] for mark in found)


def headings(metric: Metric) -> Mapping[str, str]:
    """Return the headings of the columns that a table of this metric may have, by the names of its numbers."""
    return {metric.final: metric.words, metric.mean: f"{metric.words}, folds"} if metric.is_own else HEADINGS


def _measured(plan: Plan, cell: Cell) -> tuple[str, ...]:
    """Return the numbers of a cell that the paper has no table of."""
    protocol = plan.sweep.protocol
    metric = cell.metric
    single = (metric.final,) * (protocol.ablation or protocol.single)
    over_folds = (metric.mean,) if cell.task else (AVERAGE, VOTE)
    return single + over_folds * (protocol.folds > 0) or (metric.final,)


def _vote(ledger: Ledger, cell: Cell, statuses: Sequence[TrialStatus]) -> Average:
    folds = [(s.trial.key, s.result) for s in statuses if s.trial.phase == "fold" and s.result is not None]
    guesses = [has_diverged(result) for _, result in folds]
    members = [f"trials/{key}/tables" for key, _ in folds]
    voters, vote = read_vote(ledger, f"votes/{cell.key}", members, sum(guesses))
    voting = zip(folds, voters, guesses, strict=True)
    errors = [float(result["metrics"][TOP1]) for (_, result), voter, guess in voting if guess or voter is not None]
    return vote_average(vote, errors, all(guesses))


def flags(plan: Plan, cell: Cell) -> tuple[str, ...]:
    """Return the flags of the trainings behind a cell's numbers, and whether any of its trials failed or is stale."""
    statuses = plan.of(cell)
    choosing = plan.searched | plan.studied
    found = {status.state for status in statuses if status.state in ("failed", "stale")}
    found |= {
        flag
        for status in statuses
        if status.result is not None and status.trial.key not in choosing
        for flag in flags_of(status.result)
    }
    return tuple(sorted(found))


class TableColumn(NamedTuple):
    """A column of the table: its heading, its cells, the style of these, and whether they are numbers."""

    heading: str
    cells: tuple[str, ...]
    style: str = ""
    is_number: bool = True

    @property
    def width(self) -> int:
        """Return the width of the widest cell, which no line may cut."""
        from rich.cells import cell_len

        return max(map(cell_len, (self.heading, *self.cells)))


def text(plan: Plan, rows: Sequence[TableRow], width: int, colour: bool) -> str:
    """Return the table for a terminal of `width` characters; the paper's numbers are grey beside other trainings.

    Where it is wider, its columns stand below each other in several tables, each with the cells' labels.
    """
    from rich.console import Console

    width = max(width, 40)
    sink = io.StringIO()
    console = Console(
        file=sink, width=width, force_terminal=colour, no_color=not colour, highlight=False, markup=False,
        emoji=False, force_jupyter=False,
    )  # fmt: skip
    console.print(plan.sweep.title, style="italic", soft_wrap=True)
    first, *others = parts(table_columns(plan, rows), width)
    console.print(_drawn(first))
    for part in others:
        console.print()
        console.print(_drawn(part))
    below = "\n".join(textwrap.fill(line, width) for line in notes(plan, rows).splitlines())
    return f"{sink.getvalue().rstrip()}\n{below}\n"


def rich_table(plan: Plan, rows: Sequence[TableRow]) -> Table:
    """Return the table as rich draws it, however wide; the paper's numbers are grey beside other trainings."""
    return _drawn(table_columns(plan, rows), plan.sweep.title)


def _millions(counts: Sequence[int | None]) -> list[str]:
    """Return numbers of parameters in millions, with two digits of the least, and decimals alike."""
    least = min(filter(None, counts), default=1_000_000)
    decimals = max(2, 8 - len(str(least)))
    return ["-" if number is None else f"{number / 1e6:.{decimals}f}M" for number in counts]


def table_columns(plan: Plan, rows: Sequence[TableRow]) -> list[TableColumn]:
    """Return the columns of the table, the cells' labels first and their marks last."""
    measured = plan.sweep.metric
    on_paper = any(cell.table for cell in plan.sweep.cells)
    counts = [row.parameters for row in rows]
    columns = [
        TableColumn("cell", tuple(row.label for row in rows), is_number=False),
        TableColumn("params", tuple(_millions(counts))),
    ]
    for metric in dict.fromkeys(metric for row in rows for metric in row.numbers):
        ours = (_words(row.numbers[metric], measured) if metric in row.numbers else "" for row in rows)
        columns.append(TableColumn(headings(measured)[metric], tuple(ours)))
        if on_paper:
            columns.append(TableColumn("paper", tuple(_beside(row, metric) for row in rows), "cyan"))
    return [*columns, TableColumn("marks", tuple(map(_marks, rows)), "yellow", is_number=False)]


def _beside(row: TableRow, metric: str) -> str:
    """Return the paper's number beside one of ours, in brackets where it is of other trainings."""
    printed_there = str(row.paper.get(metric) or "")
    return f"({printed_there})" if printed_there and row.other else printed_there


def _marks(row: TableRow) -> str:
    """Return the marks of a row: flags, what was lost, how many are done, and what else the report marks."""
    known = [flag for flag in row.flags if not row.lost or flag not in ("diverged", "dead", "failed")]
    done = f"{row.done}/{row.planned}" if row.done < row.planned else ""
    of_report = {mark for names in row.marks.values() for mark in names}
    others = [MARKS[mark][0] for mark in UNFLAGGED if MARKS[mark][0] in of_report]
    return ", ".join(filter(None, (*known, row.lost, done, *others)))


def parts(columns: Sequence[TableColumn], width: int) -> list[list[TableColumn]]:
    """Return the columns in groups that fit into `width`, each behind the labels; no number is cut.

    A number of ours and the paper's beside it stay together. Marks may wrap, and labels that take more than half.
    """
    label, *others = columns
    room = width - min(label.width, width // 2)
    groups: list[list[TableColumn]] = [[]]
    for column in others:
        pair = [groups[-1].pop()] if column.heading == "paper" and groups[-1] else []
        least = sum(LEAST if not part.is_number else part.width for part in (*groups[-1], *pair, column))
        if groups[-1] and least + GAP * (len(groups[-1]) + len(pair) + 1) > room:
            groups.append([])
        groups[-1] += [*pair, column]
    return [[label, *group] for group in groups]


def _drawn(columns: Sequence[TableColumn], title: str = "") -> Table:
    """Return columns as a table; labels and marks wrap where there is no room for them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(column.heading, justify=justify, style=column.style, no_wrap=column.is_number, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        # The paper's number beside other trainings stands in brackets.
        in_grey = (
            column.heading == "paper" and cell.startswith("(") for column, cell in zip(columns, cells, strict=True)
        )
        table.add_row(*(Text(cell, GREY) if grey else cell for cell, grey in zip(cells, in_grey, strict=True)))
    return table


def notes(plan: Plan, rows: Sequence[TableRow]) -> str:
    """Return what stands below the table."""
    words = plan.sweep.metric.note
    if any(metric.endswith("_10crop") for line in rows for metric in line.numbers):
        words += "; † ten crops"
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.other:
            reasons.setdefault(row.other, []).append(row.label)
    if reasons:
        words += "\nin brackets: numbers of the paper that stand beside other trainings, and nothing follows from that"
    for reason, labels in reasons.items():
        words += f"\n{'all cells' if len(labels) == len(rows) > 1 else ', '.join(labels)}: {reason}"
    return words


def _words(number: Average, metric: Metric = PERCENT) -> str:
    if not number.n:
        return "-"
    places = decimals(number.mean) if metric.is_own else 2
    return f"{number.mean:z.{places}f}" + (f" ±{number.se:.{places}f}" if math.isfinite(number.se) else "")


def as_json(plan: Plan, rows: Sequence[TableRow]) -> Json:
    """Return the table as JSON."""
    return {
        "sweep": plan.sweep.name,
        "question": plan.sweep.question,
        "profile": plan.sweep.scale,
        "cells": [
            {
                "label": line.label,
                "parameters": line.parameters,
                "done": line.done,
                "planned": line.planned,
                "flags": list(line.flags),
                "lost": line.lost,
                "numbers": {
                    metric: number.as_json() | _judged(plan, line, metric) for metric, number in line.numbers.items()
                },
            }
            for line in rows
        ],
        "trials": {state: plan.count(state) for state in STATES} | {"pending": len(plan.pending)},
    }


def _judged(plan: Plan, row: TableRow, metric: str) -> Json:
    """Return a number's marks and the paper's number, which a page's own metric has none of."""
    told: Json = {"marks": list(row.marks[metric])}
    if plan.sweep.metric.is_own:
        return told
    there = row.paper[metric]
    return told | {"paper": there.value if there else None, "withheld": row.withheld[metric]}


def write_results(plan: Plan, ledger: Ledger, name: str) -> str:
    """Write one row a finished trial as Parquet, and as CSV beside it; return the path of the first."""
    rows = trial_rows(plan)
    ledger.write(f"results-{name}.csv", comma_separated(rows))
    ledger.write(f"results-{name}.parquet", parquet(columns_of(rows), {"schema": "results/1"}))
    return ledger.path(f"results-{name}.parquet")


def trial_rows(plan: Plan) -> list[Json]:
    """Return one row a finished trial: what it was, its numbers, where its files are."""
    rows: list[Json] = []
    for standing in plan.statuses:
        trial = standing.trial
        result = standing.result
        if result is None:
            continue
        rows.append(
            {
                "trial_key": trial.key,
                "cell_key": trial.cell.key,
                "cell": trial.cell.label,
                "net": trial.cell.net.name,
                "dataset": trial.cell.dataset,
                "phase": trial.phase,
                "seed": trial.seed,
                "fold": trial.fold,
                "dropout": " ".join(f"{place}={rate:g}" for place, rate in sorted(trial.net.dropouts().items())),
                "paper_table": trial.cell.table,
                "paper_row": trial.cell.row,
                "status": result["status"],
                "state": standing.state,
                "restarts": result["restarts"],
                "epochs": result["epochs"],
                "seconds": result["seconds"],
                "precision": result["precision"],
                "fingerprint": result["fingerprint"],
                "code": result["code"],
                "folder": f"trials/{trial.key}",
            }
            | {f"factor.{factor}": level for factor, level in trial.cell.factors}
            | telling_metrics(result)
        )
    return rows
