"""Which rows make a table, and the number in each of its places: ours with its spread, the paper's, the verdict.

A number of a table is, for a cell with the runs of one phase,

    single   the mean over seeds of one training each, ± its standard error; one seed: Wilson's interval instead
    average  the mean over the folds' networks, ± its standard error, as the paper gives it
    vote     the error of the folds' networks together (mean softmax), with Wilson's interval
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sweeps.experiment.metrics import (
    AVERAGE,
    HELD_OUT,
    PARAMETERS,
    TOP1,
    TOP1_TEN,
    TOP5,
    TOP5_TEN,
    TRAIN,
    VOTE,
    Average,
    average,
    measured_as,
    phase_behind,
)
from sweeps.experiment.plan import Protocol
from sweeps.experiment.trial import PHASES, Cell
from sweeps.results import paper
from sweeps.results.decisions import Predictions
from sweeps.results.evidence import CellResults, Run, SweepResults
from sweeps.results.paper import Printed
from sweeps.results.statistics import (
    TOLERANCE,
    Interval,
    Order,
    Verdict,
    order,
    t_interval,
    verdict,
    wilson,
)

NAMES: Final = {
    TRAIN: "train error",
    TOP1: "top-1",
    TOP5: "top-5",
    TOP1_TEN: "top-1, ten crops",
    TOP5_TEN: "top-5, ten crops",
    AVERAGE: "average",
    VOTE: "vote",
    PARAMETERS: "parameters (M)",
    HELD_OUT: "hold-out error",
}
SLUGS: Final = {
    TRAIN: "train",
    TOP1: "top1",
    TOP5: "top5",
    TOP1_TEN: "top1-ten",
    TOP5_TEN: "top5-ten",
    AVERAGE: "average",
    VOTE: "vote",
    PARAMETERS: "parameters",
    HELD_OUT: "hold-out",
}
# The tables of errors; the rows of Tables 6 and S1 are layers.
TABLES: Final = ("1", "2", "3", "4", "5")
# Tables 3 and 5 are made of the rows of Tables 2 and 4, and of the literature's.
DERIVED: Final = {"2": "3", "4": "5"}
# The row of Table 2 behind "VGG + CReLU", by data set: the paper's choice, not ours by test error.
CHOSEN: Final = {"cifar10": "CReLU (1,3)", "cifar100": "CReLU (1,3,5)"}
VOTING: Final = "mean_softmax"  # the paper's way to vote
UNKNOWN: Final = Interval(math.nan, math.nan)
SETS: Final = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


def named(metric: str, table: str) -> str:
    """Return what a metric is called: one network's test error is "single" in Tables 1 to 3."""
    return "single" if metric == TOP1 and table in ("1", "2", "3") else NAMES.get(metric, metric)


class CellNumber(NamedTuple):
    """One number of ours: `runs` are those it is made of, `values` theirs (one for a vote), errors in percent."""

    metric: str
    average: Average
    interval: Interval
    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def there(self) -> bool:
        """Return whether anything is known."""
        return math.isfinite(self.average.mean)


class Row(NamedTuple):
    """One row of a table: how it is called, the row of the paper it stands for, its cell (None: the literature's)."""

    label: str
    printed: str
    evidence: CellResults | None

    @property
    def key(self) -> str:
        """Return the key of its cell, empty where it has none."""
        return self.evidence.cell.key if self.evidence is not None else ""


class ResultTable(NamedTuple):
    """The rows of one table and data set; `comparable`: trained on the very data the paper's numbers are of."""

    id: str
    table: str
    dataset: str
    title: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    comparable: bool

    def paper(self, row: Row, metric: str) -> Printed | None:
        """Return what the paper prints in this place."""
        return paper.printed(self.table, self.dataset, row.printed, metric) if self.table in paper.COLUMNS else None


def stands_for(cell: Cell) -> str:
    """Return the paper's data set that a cell's is, or stands for: embedded pictures, say, for CIFAR-10."""
    known = list(dict.fromkeys(row.dataset for row in paper.ROWS if row.table == cell.table))
    named = [name for name in (cell.dataset, cell.label.rpartition(" ")[2]) if name in known]
    return [*named, *known, ""][0]


def groups(survey: SweepResults) -> list[ResultTable]:
    """Return the tables of a sweep: the paper's that its cells are rows of; one a data set and family of others."""
    members: dict[tuple[str, str, str], list[CellResults]] = {}
    for evidence in survey.cells:
        cell = evidence.cell
        kind = stands_for(cell) if cell.table in TABLES else cell.recipe.name.partition("-")[0]
        table = cell.table if cell.table in TABLES else ""
        members.setdefault((table, kind, cell.dataset), []).append(evidence)
    found: list[ResultTable] = []
    for (table, kind, name), cells in members.items():
        group = _group(table, kind, name, cells, survey.sweep.protocol)
        if group.id in {other.id for other in found}:
            group = group._replace(id=f"{group.id}-{_slug(name)}", title=f"{group.title} ({name})")
        found.append(group)
        if table in DERIVED and any(evidence.tested for evidence in cells):
            found.append(_derived(DERIVED[table], group))
    return found


def _group(table: str, own: str, name: str, cells: Sequence[CellResults], protocol: Protocol) -> ResultTable:
    rows = tuple(Row(evidence.cell.label, evidence.cell.row, evidence) for evidence in cells)
    if not table:
        title = f"{SETS.get(name, name)}, {own} recipe"
        return ResultTable(f"cells-{_slug(name)}-{_slug(own)}", "", "", title, rows, _metrics(cells, protocol), False)
    metrics = paper.COLUMNS[table] if protocol.trainings() else _metrics(cells, protocol)
    shared = len({row.dataset for row in paper.ROWS if row.table == table}) > 1
    title = f"Table {table}, {SETS[own]}"
    # Rows of Table 1 are called "CReLU half cifar10" where a sweep has both sets: the title says which.
    plain = tuple(row._replace(label=row.label.removesuffix(f" {own}")) for row in rows)
    known = f"table-{table.lower()}" + (f"-{own}" if shared else "")
    return ResultTable(known, table, own, title, plain, metrics, name == own)


def _derived(table: str, source: ResultTable) -> ResultTable:
    """Return Table 3 or 5 with the rows that `source`, Table 2 or 4, has of it."""
    by_row = {row.printed: row.evidence for row in source.rows}
    rows = []
    for row in paper.rows(table, source.dataset):
        own = CHOSEN[source.dataset] if row.label == "VGG + CReLU" else row.label
        rows.append(Row(row.label, row.label, by_row.get(own)))
    known = source.id.replace(f"table-{source.table}", f"table-{table}")
    title = source.title.replace(f"Table {source.table}", f"Table {table}")
    return ResultTable(known, table, source.dataset, title, tuple(rows), paper.COLUMNS[table], source.comparable)


def _metrics(cells: Sequence[CellResults], protocol: Protocol) -> tuple[str, ...]:
    """Return the columns for cells that the paper has no table of: what their runs measured."""
    measured = {name for evidence in cells for run in evidence.tested for name in run.metrics}
    alone = [name for name in (TOP1, TOP5, TOP1_TEN, TOP5_TEN) if name in measured] or [TOP1]
    own = alone if protocol.ablation or protocol.single else []
    folds = [AVERAGE, VOTE] if protocol.folds else []
    return (*(own or folds or [HELD_OUT]), *(folds if own else []), PARAMETERS)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")


# Numbers ------------------------------------------------------------------------------------------------------


def runs_of(evidence: CellResults, metric: str) -> dict[tuple[int, int], tuple[Run, float]]:
    """Return the runs that make a metric of a cell, with their values, by seed and fold."""
    name = measured_as(metric)
    if metric == HELD_OUT and evidence.winner is not None:
        runs = evidence.winner.runs
    else:
        finished = {run.trial.phase for run in evidence.done(*PHASES)}
        runs = evidence.done("ablation" if metric == HELD_OUT else phase_behind(metric, finished))
    return {run.pair: (run, run.metrics[name]) for run in runs if name in run.metrics}


def number(evidence: CellResults | None, metric: str) -> CellNumber:
    """Return the number of a cell, its mean nan where no run has it."""
    if evidence is None:
        return CellNumber(metric, Average(math.nan, math.nan, 0), UNKNOWN, (), ())
    if metric == PARAMETERS:
        trained = tuple(run for run in evidence.runs if run.result)
        count = evidence.parameters
        return CellNumber(metric, Average(count, math.nan, 1), UNKNOWN, (count,), trained)
    pairs = tuple(runs_of(evidence, metric).values())
    runs, values = tuple(run for run, _ in pairs), tuple(value for _, value in pairs)
    if metric == VOTE:
        voters = tuple(run for run in runs if run.decisions is not None)
        ours = vote_average(evidence.vote, len(voters))
        if evidence.vote is None:
            return CellNumber(metric, ours, UNKNOWN, (), ())
        bounds = wilson(evidence.vote.wrong(VOTING), len(evidence.vote.ids))
        return CellNumber(metric, ours, bounds, (ours.mean,), voters)
    ours = average(values)
    bounds = t_interval(ours) if ours.n > 1 else _over_pictures(runs, values)
    return CellNumber(metric, ours, bounds, values, runs)


def vote_average(vote: Predictions | None, voters: int) -> Average:
    """Return the error in percent of networks that vote, by mean softmax as in the paper; nan without a vote."""
    return Average(math.nan, math.nan, 0) if vote is None else Average(vote.error(VOTING), math.nan, voters)


def _over_pictures(runs: Sequence[Run], values: Sequence[float]) -> Interval:
    """Return Wilson's interval for the error of one network, nan where there is none or its pictures are not known."""
    if not runs or runs[0].decisions is None or not 0 <= values[0] <= 100:
        return UNKNOWN
    n = len(runs[0].decisions.ids)
    return wilson(round(values[0] / 100 * n), n)


def verdict_for(group: ResultTable, row: Row, metric: str, ours: CellNumber) -> Verdict | None:
    """Return the verdict on a number; None where the paper prints none, or printed it of other data."""
    theirs = group.paper(row, metric)
    if theirs is None or row.evidence is None or not group.comparable:
        return None
    if metric != PARAMETERS:
        return verdict(ours.average.mean, ours.average.se if metric != VOTE else None, theirs.value, theirs.se,
                       group.dataset)  # fmt: skip
    # Counts are exact: they have to round to what is printed.
    found = verdict(ours.average.mean, None, theirs.value, None, group.dataset)
    if found.word == "not run":
        return found
    fits = abs(found.difference) <= theirs.rounding + 1e-9
    return Verdict(found.difference, theirs.rounding, "reproduced" if fits else "differs")


def order_kept(group: ResultTable, metric: str) -> Order | None:
    """Count the pairs of rows in the paper's order, None where fewer than two rows have both numbers."""
    pairs = []
    for row in group.rows:
        ours, theirs = number(row.evidence, metric), group.paper(row, metric)
        if ours.there and theirs is not None:
            pairs.append((ours.average.mean, theirs.value))
    return order(*zip(*pairs, strict=True)) if len(pairs) > 1 else None


def verdicts(found: Sequence[ResultTable]) -> Mapping[str, int]:
    """Count the verdicts on errors, over the tables that are the cells' own and not derived from those."""
    counts = {"reproduced": 0, "differs": 0, "not run": 0}
    for group in found:
        if group.table in DERIVED.values():
            continue
        for row in group.rows:
            for metric in group.metrics:
                word = verdict_for(group, row, metric, number(row.evidence, metric))
                if word is not None and metric != PARAMETERS:
                    counts[word.word] += 1
    return counts


def tolerance_sentence(dataset: str) -> str:
    """Say what counts as reproduced."""
    return (
        f"Reproduced: within twice the standard error of the difference, or within {TOLERANCE[dataset]:.1f} points, "
        "whichever is more; parameters: rounding to the printed digits."
    )
