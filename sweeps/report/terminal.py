"""The table a sweep ends with: a row a cell, our averages beside the paper's printed numbers."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sweeps.experiment.plan import Plan, TrialStatus
from sweeps.experiment.trial import Cell
from sweeps.results.paper import AVERAGE, COLUMNS, TOP1, VOTE, Printed, printed
from sweeps.store.ledger import Json, Ledger

HEADINGS = {
    "final/test_top1_err": "top-1",
    "final/test_top5_err": "top-5",
    "final/test_top1_err_10crop": "top-1†",
    "final/test_top5_err_10crop": "top-5†",
    "final/train_top1_err": "train",
    "agg/test_top1_err_mean": "average",
    "agg/test_top1_err_vote": "vote",
}


class Number(NamedTuple):
    """An average in percent over `n` trials, its standard error (nan for one), and the paper's number, if printed."""

    mean: float
    se: float
    n: int
    paper: Printed | None

    def __str__(self) -> str:
        if not self.n:
            return "-"
        return f"{self.mean:.2f}" + (f" ±{self.se:.2f}" if math.isfinite(self.se) else "")


class TableRow(NamedTuple):
    """One row of the table."""

    label: str
    parameters: int
    numbers: dict[str, Number]
    flags: tuple[str, ...]
    done: int
    planned: int


def lines(plan: Plan, classes: Mapping[str, int], ledger: Ledger) -> list[TableRow]:
    """Return the rows of the table: a cell's tested trials averaged, with marks; `classes` by data set."""
    found = []
    for cell in plan.sweep.cells:
        standings = plan.of(cell)
        protocol = plan.sweep.protocol
        own = (TOP1,) * (protocol.ablation or protocol.single) + (AVERAGE, VOTE) * (protocol.folds > 0)
        metrics = COLUMNS.get(cell.table, own or (TOP1,))
        numbers = {metric: _number(cell, metric, standings, ledger) for metric in metrics if metric in HEADINGS}
        done = sum(standing.result is not None for standing in standings)
        count = cell.net.parameters(classes[cell.dataset])
        found.append(TableRow(cell.label, count, numbers, _flags(standings), done, len(standings)))
    return found


def _number(cell: Cell, metric: str, standings: Sequence[TrialStatus], ledger: Ledger) -> Number:
    """Return one entry: Single's over its second phases, Average and Vote over folds, Table 4's over its trainings."""
    phases = ("fold",) if metric in (AVERAGE, VOTE) else ("ablation", "match")
    taken = [s for s in standings if s.result is not None and s.trial.phase in phases]
    paper = printed(cell.table, _paper_data(cell), cell.row, metric) if cell.table else None
    if metric == VOTE:
        value = _vote([standing.trial.key for standing in taken], ledger)
        return Number(value, math.nan, len(taken) if math.isfinite(value) else 0, paper)
    name = TOP1 if metric == AVERAGE else metric
    values = [s.result["metrics"][name] for s in taken if s.result is not None and name in s.result["metrics"]]
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Number(statistics.fmean(values) if values else math.nan, se, len(values), paper)


def _vote(keys: Sequence[str], ledger: Ledger) -> float:
    """Return the error in percent of the mean softmax over the folds' networks, nan where there are none."""
    import numpy as np
    import pyarrow.parquet as pq

    from sweeps.results.statistics import vote

    scores, labels = [], None
    for key in keys:
        content = ledger.read(f"trials/{key}/tables/scores.parquet")
        if content is not None:
            table = pq.read_table(io.BytesIO(content), columns=["label", "centre"])
            labels = table["label"].to_numpy()
            flat = table["centre"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            scores.append(flat.reshape(len(labels), -1))
    if labels is None:
        return math.nan
    return float(100 * (vote(np.stack(scores).astype(np.float64)) != labels).mean())


def _paper_data(cell: Cell) -> str:
    """Return the paper's data set for a cell, whatever a demo trained on in its place."""
    if cell.table in ("4", "5"):
        return "imagenet"
    return cell.dataset if cell.dataset in ("cifar10", "cifar100") else cell.label.rpartition(" ")[2]


def _flags(standings: Sequence[TrialStatus]) -> tuple[str, ...]:
    flags = set()
    for standing in standings:
        result = standing.result
        if standing.state in ("failed", "stale"):
            flags.add(standing.state)
        if result is not None and result["status"] == "diverged":
            flags.add("diverged")
        if result is not None and result["restarts"]:
            flags.add(f"restarted {result['restarts']}x")
    return tuple(sorted(flags))


def text(plan: Plan, found: Sequence[TableRow], width: int, colour: bool) -> str:
    """Return the table for a terminal of `width` characters; the paper's numbers are grey beside other data."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    foreign = not all(cell.dataset in ("imagenet", "cifar10", "cifar100") for cell in plan.sweep.cells)
    table = Table(box=None, pad_edge=False, title=plan.sweep.title, title_justify="left")
    table.add_column("cell", no_wrap=True)
    table.add_column("params", justify="right", no_wrap=True)
    metrics = list(dict.fromkeys(metric for line in found for metric in line.numbers))
    for metric in metrics:
        table.add_column(HEADINGS[metric], justify="right", no_wrap=True)
        table.add_column("paper", justify="right", style="bright_black" if foreign else "cyan", no_wrap=True)
    table.add_column("marks")
    for line in found:
        cells = [line.label, f"{line.parameters / 1e6:.2f}M"]
        for metric in metrics:
            number = line.numbers.get(metric)
            cells += [str(number) if number else "", str(number.paper or "") if number else ""]
        marks = [*line.flags, *([f"{line.done}/{line.planned}"] if line.done < line.planned else [])]
        table.add_row(*cells, Text(", ".join(marks), style="yellow"))
    sink = io.StringIO()
    Console(file=sink, width=max(width, 40), force_terminal=colour, no_color=not colour, highlight=False).print(table)
    notes = "errors in percent, lower is better"
    if any(metric.endswith("_10crop") for metric in metrics):
        notes += "; † ten crops"
    if foreign:
        notes += "\nother pictures than the paper's: its numbers stand beside ours, and nothing follows from that"
    return f"{sink.getvalue().rstrip()}\n{notes}\n"


def as_json(plan: Plan, found: Sequence[TableRow]) -> Json:
    """Return the table as JSON."""
    return {
        "sweep": plan.sweep.name,
        "profile": plan.sweep.profile,
        "cells": [
            {
                "label": line.label,
                "parameters": line.parameters,
                "done": line.done,
                "planned": line.planned,
                "flags": list(line.flags),
                "numbers": {
                    metric: {
                        "mean": _finite(number.mean),
                        "se": _finite(number.se),
                        "n": number.n,
                        "paper": number.paper.value if number.paper else None,
                    }
                    for metric, number in line.numbers.items()
                },
            }
            for line in found
        ],
        "trials": {state: plan.count(state) for state in ("new", "running", "done", "stale", "failed")},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_results(plan: Plan, ledger: Ledger, name: str) -> str:
    """Write one row a finished trial (what it was, its numbers, where its files are) as Parquet; return the path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for standing in plan.statuses:
        trial, result = standing.trial, standing.result
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
            | {metric: float(value) for metric, value in result["metrics"].items()}
        )
    columns = dict.fromkeys(column for row in rows for column in row)
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"schema": "results/1"}), sink, compression="zstd")
    ledger.write(f"results-{name}.parquet", sink.getvalue())
    return ledger.path(f"results-{name}.parquet")
