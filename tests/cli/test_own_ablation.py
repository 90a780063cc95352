"""The notebook of an own ablation runs from top to bottom, as one program, with smaller pictures and one epoch."""

import json
import subprocess
import sys
from pathlib import Path

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
