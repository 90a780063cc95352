"""Trainings on a part of a published data set: marked in the terminal's table, in the report and in MLflow."""

from pathlib import Path

import pytest

from sweeps.cifar_width import CELLS
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import plan
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report import mlflow_notes, terminal
from sweeps.report.result_tables import result_tables
from sweeps.results.cell_numbers import groups
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, make


@pytest.fixture(params=[(), (0,), (0, 1)])
def parts(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Return the seeds that are trained on a part."""
    return tuple(request.param)


@pytest.fixture
def ledger(tmp_path: Path, parts: tuple[int, ...]) -> Ledger:
    ledger = Ledger(str(tmp_path))

    def outcome(trial: Trial) -> Made:
        on_part = trial.cell == CELLS[0] and trial.seed in parts
        return Made({TOP1: 9.0 + trial.seed}, partial=on_part)

    make(ledger, Sweep("pair", "paper", CELLS[:2], Protocol(seeds=2)), outcome)
    return ledger


@pytest.fixture
def results(ledger: Ledger) -> SweepResults:
    return read_sweep(ledger, "pair")


def test_terminal_s_table_marks_the_row(ledger: Ledger, parts: tuple[int, ...]) -> None:
    today = plan(Sweep("pair", "paper", CELLS[:2], Protocol(seeds=2)), ledger, {})
    rows = terminal.lines(today, {"cifar10": 10}, ledger)
    assert [row.flags for row in rows] == [("partial data",) if parts else (), ()]
    assert ("partial data" in terminal.text(today, rows, 120, colour=False)) == bool(parts)
    assert terminal.as_json(today, rows)["cells"][0]["flags"] == (["partial data"] if parts else [])


def test_report_marks_the_number_and_lists_the_deviation(results: SweepResults, parts: tuple[int, ...]) -> None:
    tables = [table for group in groups(results) for table in result_tables(group, None)]
    notes = [note for table in tables for note in table.notes if note.startswith("p  partial data: trained on a part")]
    assert bool(notes) == bool(parts)
    told = [(row[0].text, row[2].text) for table in tables if table.id.endswith("-deviations") for row in table.rows]
    assert (("data", "a part of it, or other files by its name") in told) == bool(parts)


def test_note_on_the_cell_s_run_says_it(results: SweepResults, parts: tuple[int, ...]) -> None:
    runs = {cell.cell.key: f"{number:032x}" for number, cell in enumerate(results.cells)}
    first, second = (mlflow_notes.pages(results, "1", runs, "0" * 32)[cell.cell.key].note for cell in results.cells)
    assert ("<sup>p</sup> partial data: trained on a part of the published data set" in first) == bool(parts)
    assert "trained on a part" not in second
