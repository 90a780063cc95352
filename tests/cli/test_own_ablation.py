"""The notebook of an own ablation runs from top to bottom with smaller pictures and one epoch: as one program, and in a
kernel of Jupyter's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import environment

NOTEBOOK = Path(__file__).parents[2] / "notebooks/03_own_ablation.ipynb"
# What makes it a matter of seconds.
SMALLER = {
    "EPOCHS = 8": "EPOCHS = 1",
    '"nets:small", size=32': '"nets:small", size=32, width=4',
    "train=1500,test=600": "train=160,test=60",
    "seeds=3": "seeds=1",
    'profile="paper")': 'profile="paper", flags=["--max-concurrent", "1"])',
}


def test_notebook_of_an_own_ablation_runs_from_top_to_bottom(tmp_path: Path) -> None:
    stored = json.loads(NOTEBOOK.read_text())
    assert not any(cell.get("outputs") for cell in stored["cells"])
    cells = ["".join(cell["source"]) for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert all(len(cell.splitlines()) <= 12 for cell in cells)
    program = "\n".join(cells)
    for words, fewer in SMALLER.items():
        assert program.count(words) == 1, words
        program = program.replace(words, fewer)
    program += "\nprint(results.table())\nprint(results.factors()[columns].to_string())\nprint(len(frame))\n"
    (tmp_path / "notebook.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "own_net: 5 of 5 trials done" in done.stderr
    assert done.stdout.endswith("\n5\n")
    assert "no setting of the other factors has all of its cells" in done.stdout
    assert (tmp_path / "outputs/reports/own_net/report.html").is_file()
    assert (tmp_path / "outputs/ledger/results-own_net.csv").read_text().count("\n") == 6


def test_notebook_of_an_own_ablation_runs_in_a_kernel_and_shows_its_live_table(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="make notebook installs Jupyter")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (trains,) = (cell for cell in notebook.cells if cell.source.startswith("results = run("))
    for cell in notebook.cells:
        for words, fewer in SMALLER.items():
            cell.source = cell.source.replace(words, fewer)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    drawn: list[str] = []
    kinds: set[str] = set()
    take = client.process_message

    def note(message: dict[str, Any], cell: Any, index: int) -> Any:
        if cell is trains and message["msg_type"] == "update_display_data":
            drawn.append(message["content"]["data"]["text/html"])
        kinds.add(message["msg_type"])
        return take(message, cell, index)

    client.process_message = note
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    client.execute(env=environment(tmp_path, PYTHONPATH=os.pathsep.join(paths)))
    shown = [output["data"] for output in trains.outputs if output["output_type"] == "display_data"]
    said = "".join(output["text"] for output in trains.outputs if output["output_type"] == "stream")
    table = trains.outputs[-1]
    assert "clear_output" not in kinds
    assert len(set(drawn)) > 5, "the live table changes while it trains"
    assert [data["text/html"] for data in shown] == drawn[-1:], "the live table is the only picture, and it stays"
    assert "crelu x0.5" in shown[0]["text/plain"]
    assert "own_net: 5 of 5 trials done" in said
    assert "ipywidgets" not in said
    assert "<pre" in table["data"]["text/html"]
    assert "crelu x0.5" in table["data"]["text/plain"]
