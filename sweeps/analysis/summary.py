"""The table of a job over many runs: printed with a line a layer of each cell, and written as Parquet and CSV."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sweeps.results.analyses import STALE, preferred
from sweeps.store.ledger import Json, Ledger
from sweeps.store.tables import columns_of

STALE_NOTE: Final = (
    "stale: runs from before the data or the code changed; they are left out where there are current ones"
)


def table(summaries: Sequence[Json]) -> str:
    """Return the rows of these summaries as text: a table for each kind of row, the net in the first column."""
    kinds: dict[tuple[str, ...], list[Json]] = {}
    for row in averaged(summaries):
        kind = tuple(name for name in row if not name.startswith("paper") and name != "runs")
        kinds.setdefault(kind, []).append(row)
    return "\n".join(_table(rows, summaries[0]["job"]) for rows in kinds.values())


def averaged(summaries: Sequence[Json]) -> list[Json]:
    """Return the rows of each cell, averaged over its runs; words that differ and p values are left out.

    Stale runs are counted, and left out of the average where there are current ones.
    """
    cells: dict[tuple[str, str], list[Json]] = {}
    for summary in summaries:
        cells.setdefault((summary["cell"], summary["dataset"]), []).append(summary)
    several = len(cells) < len(summaries)
    any_stale = any(summary["state"] == STALE for summary in summaries)
    averages = []
    for (cell, _), found in cells.items():
        runs = preferred(found, lambda summary: str(summary["state"]))
        net = {"net": cell, "runs": len(runs)} if several else {"net": runs[0]["label"]}
        net |= {STALE: _stale_word(found)} if any_stale else {}
        # One net, asked one thing: its runs have the same rows in the same order.
        for same in zip(*(run["rows"] for run in runs), strict=True):
            averages.append(net | {name: _average(name, [row.get(name) for row in same]) for name in same[0]})
    return averages


def _stale_word(runs: Sequence[Json]) -> str | None:
    """Return how many of a cell's runs are stale, and whether they are in its average; None where none is."""
    stale = sum(run["state"] == STALE for run in runs)
    return None if not stale else "all" if stale == len(runs) else f"{stale} left out"


def _average(name: str, values: Sequence[Any]) -> Any:
    if all(value == values[0] for value in values):
        return values[0]
    # A mean of p values says nothing.
    if name.split()[-1] == "p":
        return None
    return statistics.fmean(values) if all(isinstance(value, int | float) for value in values) else None


def leave(ledger: Ledger, sweep: str, summaries: Sequence[Json]) -> str:
    """Write the rows of every run as analysis/SWEEP/JOB.csv and .parquet; return the path of the first.

    What was asked for other than the defaults has the request's name in its file's.
    """
    from sweeps.report.render.formats import comma_separated, parquet

    rows = [
        {
            "cell": summary["cell"],
            "run": summary["label"],
            "trial": summary["trial"],
            "state": summary["state"],
            "dataset": summary["dataset"],
        }
        | row
        for summary in summaries
        for row in summary["rows"]
    ]
    job, request = summaries[0]["job"], summaries[0]["request"]
    file = f"analysis/{sweep}/{job}{f'-{request}' if request else ''}"
    ledger.write(f"{file}.parquet", parquet(rows, f"analysis {job}"))
    ledger.write(f"{file}.csv", comma_separated(rows))
    return ledger.path(f"{file}.csv")


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return rows as a table as wide as it takes; the net is named where it changes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    printed = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    names = list(columns_of(rows))
    for name in names:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        printed.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    before = ""
    for row in rows:
        net = row["net"] if row["net"] != before else ""
        before = row["net"]
        printed.add_row(net, *(_text(row.get(name)) for name in names[1:]))
    sink = io.StringIO()
    Console(file=sink, width=400, no_color=True, highlight=False, markup=False, emoji=False).print(printed)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
