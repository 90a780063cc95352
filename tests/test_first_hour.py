"""The pictures of the docs show what the code of today prints, by the texts that lie beside them."""

from pathlib import Path

import pytest

from benchmarks.first_hour import Columns
from sweeps.experiment.metrics import PERCENT
from sweeps.report.terminal import HEADINGS
from sweeps.results.paper import COLUMNS
from sweeps.tracking.layout import PARAMS, columns

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"


def text_of(picture: str) -> str:
    """Return what stands on a picture; the test is skipped where it was drawn before texts were written."""
    path = PICTURES / f"{picture}.txt"
    if not path.exists():
        pytest.skip(f"{path.name} is not there yet: benchmarks.first_hour writes it")
    return path.read_text(encoding="utf-8")


def test_table_has_today_s_headings() -> None:
    words = text_of("table").split()
    assert {"cell", *(HEADINGS[metric] for metric in COLUMNS["4"] if metric in HEADINGS)} <= set(words)


@pytest.mark.parametrize("picture", ["live-80x24", "live-200x60"])
def test_live_view_has_today_s_headings(picture: str) -> None:
    words = text_of(picture).split()
    assert {"cell", "done", "hold-out", "error"} <= set(words)
    lines = text_of(picture).splitlines()
    width, height = map(int, picture.removeprefix("live-").split("x"))
    assert max(map(len, lines)) <= width
    assert len(lines) <= height


def test_ctrl_c_is_answered() -> None:
    assert "stopping: " in text_of("interrupted")


def test_mlflow_has_today_s_columns() -> None:
    headings = [line.partition("  ")[0] for line in text_of("mlflow").splitlines()]
    ours = [*columns(PERCENT), *PARAMS]
    # A metric that no run of the demo has is no column.
    assert [name for name in headings if name in ours] == [name for name in ours if name in headings]
    assert {columns(PERCENT)[0], *PARAMS} <= set(headings)
    assert [name for name in headings if "/" in name and name not in ours] == []


def test_text_of_mlflow_s_table_has_a_line_a_column() -> None:
    page = (
        '<div role="columnheader" aria-colindex="2">Metrics</div>'
        '<div role="columnheader" aria-colindex="2"><div>b</div></div>'
        '<div role="columnheader" aria-colindex="1">a</div>'
        '<div role="gridcell" aria-colindex="2">3<span>.5</span></div><div role="gridcell" aria-colindex="1">x</div>'
        '<div role="gridcell" aria-colindex="2"></div>'
    )
    read = Columns(page)
    assert read.headings == {1: "a", 2: "b"}
    assert read.cells == {1: ["x"], 2: ["3.5", ""]}
