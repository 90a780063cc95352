"""Results of sweeps for a notebook or a script: tables, data frames, effects and reports, read from the ledger.

    results = sweeps.load("outputs")["birds"]

Each call reads the ledger as it is then, so the same object follows a sweep that trains. Nothing here trains, and
pandas is loaded when a data frame is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crelu_data.datasets import dataset
from sweeps.experiment.metrics import PARAMETERS, TRAIN
from sweeps.experiment.plan import Plan, current_plan, without_damaged
from sweeps.experiment.wording import count, unknown_name
from sweeps.report import build, terminal
from sweeps.report.notebook import html
from sweeps.report.tidy import effect_rows, factor_rows
from sweeps.results.cell_numbers import DERIVED, ResultTable, Row, groups
from sweeps.results.contrasts import Effect, contrast
from sweeps.results.evidence import READ, read_sweep, titles
from sweeps.results.statistics import holm
from sweeps.store.ledger import Ledger
from sweeps.store.local_uris import reports_in

if TYPE_CHECKING:
    from pandas import DataFrame

WIDTH = 140  # letters of a table's line


class ResultsTable:
    """Table of a sweep: as text where it is printed, as HTML in a notebook."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        """Take the numbers of a plan."""
        self.plan = plan
        self.rows = terminal.lines(plan, _classes(plan), ledger)

    def __repr__(self) -> str:
        return terminal.text(self.plan, self.rows, WIDTH, False).rstrip()

    def _repr_html_(self) -> str:
        return html(terminal.rich_table(self.plan, self.rows), terminal.notes(self.plan, self.rows))


class Results:
    """Results of one sweep, by its title in an output folder."""

    def __init__(self, output: str, title: str) -> None:
        """Name a sweep; ValueError where the output folder has none of this title."""
        self.output = output
        self.title = title
        self._ledger = Ledger.in_output(output)
        titles(self._ledger, title)

    @property
    def plan(self) -> Plan:
        """Return the trials of the sweep, each with its state and result."""
        return without_damaged(current_plan(self._ledger, self.title), self._ledger, READ)

    @property
    def finished(self) -> bool:
        """Return whether every trial of the sweep has a result, or was paused for good by its search."""
        plan = self.plan
        over = plan.passed_over
        return not plan.pending and all(s.result is not None or s.trial.key in over for s in plan.statuses)

    def table(self) -> ResultsTable:
        """Return the table of the sweep, a row a cell."""
        return ResultsTable(self.plan, self._ledger)

    def frame(self) -> DataFrame:
        """Return a data frame of one row a finished trial; the levels of a grid are columns such as factor.act."""
        from pandas import DataFrame

        return DataFrame(terminal.trial_rows(self.plan))

    def effects(self, versus: str = "") -> DataFrame:
        """Return a data frame of paired differences, with intervals, p values, and those after Holm.

        Each cell stands against the one labelled `versus`; without it, against those that the report compares it with.
        """
        from pandas import DataFrame

        results = read_sweep(self._ledger, self.title)
        tables = groups(results)
        if not versus:
            return DataFrame([*effect_rows(tables)])
        table, reference = _row_called(versus, tables, self.title)
        return DataFrame([*effect_rows([table], _against(table, reference))])

    def factors(self) -> DataFrame:
        """Return a data frame of the main effects and interactions of a grid's factors; empty without a grid."""
        from pandas import DataFrame

        return DataFrame([*factor_rows(groups(read_sweep(self._ledger, self.title)))])

    def report(self, to: str | os.PathLike[str] = "") -> Path:
        """Write the report into a folder, that of the output by default, and return the path of its page."""
        if not to and "://" in self.output:
            raise ValueError(f"{self.output} is no local folder: say where the report goes, as in report('report')")
        folder = Path(to).expanduser().absolute() if to else reports_in(self.output)
        return build.make(self._ledger, self.title, folder, "").page

    def __repr__(self) -> str:
        plan = self.plan
        return f"{self.title}: {plan.count('done', 'stale')} of {count(plan.total, 'trial')} done, in {self.output}"


class Output(Mapping[str, Results]):
    """The sweeps of an output folder by their titles."""

    def __init__(self, output: str) -> None:
        """Name an output folder; ValueError where no sweep has run in it."""
        self.output = output
        self._titles = titles(Ledger.in_output(output))

    def __getitem__(self, title: str) -> Results:
        """Return the results of one sweep; ValueError where there is none of this title."""
        return Results(self.output, title)

    def __iter__(self) -> Iterator[str]:
        """Yield the titles."""
        return iter(self._titles)

    def __len__(self) -> int:
        """Return how many sweeps there are."""
        return len(self._titles)

    def __repr__(self) -> str:
        return f"{self.output}: {', '.join(self._titles)}"

    def frame(self) -> DataFrame:
        """Return a data frame of one row a finished trial of any sweep, which the first column names."""
        from pandas import concat

        frames = []
        for title, results in self.items():
            frame = results.frame()
            frame.insert(0, "sweep", title)
            frames.append(frame)
        return concat(frames, ignore_index=True)


def load(output: str | os.PathLike[str] = "outputs") -> Output:
    """Return the sweeps of an output folder, or of a bucket, by their titles; nothing is trained."""
    place = os.fspath(output)
    return Output(place if "://" in place else os.path.abspath(os.path.expanduser(place)))


def _row_called(label: str, tables: Sequence[ResultTable], title: str) -> tuple[ResultTable, Row]:
    """Return the row of a cell with its table, the derived tables left out: by its cell's label, else by its own.

    ValueError where there is none, or where rows of several tables have this label.
    """
    rows = [(t, row) for t in tables if t.table not in DERIVED.values() for row in t.rows if row.results is not None]
    cells = {row.results.cell.label: (table, row) for table, row in rows if row.results is not None}
    if label in cells:
        return cells[label]
    called = {name: place for name, place in cells.items() if place[1].label == label}
    if len(called) > 1:
        raise ValueError(f"{title} has several cells {label!r}: say which, {' or '.join(map(repr, called))}")
    if not called:
        raise ValueError(unknown_name("cell", label, cells, title))
    return next(iter(called.values()))


def _against(table: ResultTable, reference: Row) -> list[Effect]:
    """Return the difference of each other row of a table from a reference, in each error."""
    rivals = [row for row in table.rows if row.results is not None and row.results.tested and row != reference]
    metrics = [metric for metric in table.metrics if metric not in (TRAIN, PARAMETERS)]
    pairs = [(row, contrast(row.results, reference.results, metric)) for metric in metrics for row in rivals]
    known = [(row, difference) for row, difference in pairs if difference.basis not in ("not run", "always 0")]
    adjusted = holm([difference.p for _, difference in known])
    return [Effect(row, reference, difference, float(p)) for (row, difference), p in zip(known, adjusted, strict=True)]


def _classes(plan: Plan) -> dict[str, int]:
    """Return the classes of the data sets that say so by their names."""
    known: dict[str, Any] = {}
    for name in plan.sweep.datasets:
        with suppress(ValueError, OSError):
            known[name] = dataset(name).classes
    return known
