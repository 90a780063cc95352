"""What a page shows of the analyses: a table for each kind of row, their runs named once, their pictures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.report import charts
from sweeps.report.contents import document
from sweeps.report.render.document import Gallery, Table
from sweeps.report.render.formats import markdown
from sweeps.report.render.html import page
from sweeps.report.render.latex import latex
from sweeps.results.analyses import SCHEMA
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.store.ledger import Ledger
from tests.support.analysis import TRIALS, fill

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return a ledger on which two cells have a reconstruction of either algorithm, and one pictures of random dots."""
    ledger = fill(Ledger(str(tmp_path / "ledger")))
    rows = {
        "CReLU half": [{"layer": "conv2", "learned": 0.92, "random": 0.99, "paper learned": ".92 ± .0002"},
                       {"layer": "conv5", "learned": 0.96, "random": 0.99}],
        "CReLU conv1-4": [{"layer": "conv1", "iterations": 5, "one layer": 0.1, "random": 0.2}],
    }  # fmt: skip
    for label, lines in rows.items():
        folder = f"trials/{TRIALS[label].key}/analysis/reconstruction"
        files = ("reconstruction_5.png", "reconstruction_20.png")
        for name in files:
            ledger.write(f"{folder}/{name}", PNG)
        summary: dict[str, Any] = {"schema": SCHEMA, "job": "reconstruction", "rows": lines, "metrics": {}, "notes": []}
        # As a job writes it: the columns of a row keep their order.
        summary["files"] = dict.fromkeys(files, "")
        ledger.write(f"{folder}/summary.json", json.dumps(summary).encode())
        # Another request of the same job, which nothing of the page reads.
        ledger.write_json(f"{folder}/samples-3-0a1b2c3d/summary.json", summary | {"rows": [{"layer": "no"}]})
    return ledger


def test_rows_of_two_kinds_are_two_tables_and_name_their_run_once(ledger: Ledger) -> None:
    parts = charts.analysis_parts(ledger, read_sweep(ledger, "small-demo"))
    half, plain, gallery = parts
    assert isinstance(half, Table)
    assert isinstance(plain, Table)
    assert (half.id, plain.id) == ("analysis-reconstruction", "analysis-reconstruction-1")
    assert half.columns == ("cell", "run", "layer", "learned", "random", "paper learned")
    assert plain.columns == ("cell", "run", "layer", "iterations", "one layer", "random")
    assert [[entry.text for entry in row] for row in half.rows] == [
        ["CReLU half", "s0", "conv2", "0.92", "0.99", ".92 ± .0002"],
        ["CReLU half", "s0", "conv5", "0.96", "0.99", "–"],
    ]
    for row in half.rows:
        assert [[run.key for run in entry.runs] for entry in row] == [[TRIALS["CReLU half"].key], [], [], [], [], []]
    assert isinstance(gallery, Gallery)
    assert [figure.title for figure in gallery.figures] == [
        "CReLU half s0: reconstruction 5", "CReLU half s0: reconstruction 20",
        "CReLU conv1-4 s0: reconstruction 5", "CReLU conv1-4 s0: reconstruction 20",
    ]  # fmt: skip


def test_each_format_says_of_which_run_an_analysis_is(ledger: Ledger) -> None:
    report = document(ledger, read_sweep(ledger, "small-demo"))
    sentence, pictures = (
        "Of one analysed run of each cell: the first that is not stale.",
        "pictures are smaller than they are",
    )
    files = latex(report)
    tables = [files[f"tables/analysis-reconstruction{end}.tex"] for end in ("", "-1")]
    texts = [page(report), markdown(report), *tables]
    assert [sentence in text for text in texts] == [True, True, True, True]
    assert [pictures in text for text in texts] == [True, False, False, False]


def with_states(results: SweepResults, label: str, *states: str) -> SweepResults:
    """Return results in which a cell's analysed run is of as many seeds as there are states, in these states."""
    cells = list(results.cells)
    (place,) = [place for place, cell in enumerate(cells) if cell.cell.label == label]
    (run,) = [run for run in cells[place].runs if run.analyses]
    runs = tuple(
        run._replace(trial=dataclasses.replace(run.trial, seed=seed), state=state) for seed, state in enumerate(states)
    )
    cells[place] = dataclasses.replace(cells[place], runs=runs)
    return dataclasses.replace(results, cells=tuple(cells))


def test_a_current_run_is_shown_before_a_stale_one(ledger: Ledger) -> None:
    results = with_states(read_sweep(ledger, "small-demo"), "CReLU half", "stale", "done", "done")
    half = charts.analysis_parts(ledger, results)[0]
    assert isinstance(half, Table)
    assert [(row[1].text, row[1].marks) for row in half.rows] == [("s1", ()), ("s1", ())]
    assert half.notes == ()


def test_an_analysis_of_a_stale_run_alone_says_so_in_table_and_pictures(ledger: Ledger) -> None:
    results = with_states(read_sweep(ledger, "small-demo"), "CReLU half", "stale", "stale")
    for run in (run for cell in results.cells for run in cell.runs if run.analyses):
        for name in run.analyses["reconstruction"]["files"]:
            ledger.write(f"trials/{run.key}/analysis/reconstruction/{name}", PNG)
    half, _, gallery = charts.analysis_parts(ledger, results)
    assert isinstance(half, Table)
    assert [(row[1].text, row[1].marks) for row in half.rows] == [("s0", ("x",)), ("s0", ("x",))]
    assert half.notes == ("x  stale: the data or the code have changed since it was trained.",)
    assert isinstance(gallery, Gallery)
    titles = [figure.title for figure in gallery.figures]
    assert titles[::2] == ["CReLU half s0, stale: reconstruction 5", "CReLU conv1-4 s0: reconstruction 5"]
