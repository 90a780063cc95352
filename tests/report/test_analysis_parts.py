"""What a page shows of the analyses: a table for each kind of row, their runs named once, their pictures."""

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
from sweeps.results.evidence import read_sweep
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
    assert half.columns == ("cell", "layer", "learned", "random", "paper learned")
    assert plain.columns == ("cell", "layer", "iterations", "one layer", "random")
    assert [[entry.text for entry in row] for row in half.rows] == [
        ["CReLU half", "conv2", "0.92", "0.99", ".92 ± .0002"],
        ["CReLU half", "conv5", "0.96", "0.99", "–"],
    ]
    for row in half.rows:
        assert [[run.key for run in entry.runs] for entry in row] == [[TRIALS["CReLU half"].key], [], [], [], []]
    assert isinstance(gallery, Gallery)
    assert [figure.title for figure in gallery.figures] == [
        "CReLU half: reconstruction 5", "CReLU half: reconstruction 20",
        "CReLU conv1-4: reconstruction 5", "CReLU conv1-4: reconstruction 20",
    ]  # fmt: skip


def test_each_format_says_of_which_run_an_analysis_is(ledger: Ledger) -> None:
    report = document(ledger, read_sweep(ledger, "small-demo"))
    sentence, pictures = "Of the first analysed run of each cell.", "pictures are smaller than they are"
    files = latex(report)
    tables = [files[f"tables/analysis-reconstruction{end}.tex"] for end in ("", "-1")]
    texts = [page(report), markdown(report), *tables]
    assert [sentence in text for text in texts] == [True, True, True, True]
    assert [pictures in text for text in texts] == [True, False, False, False]
