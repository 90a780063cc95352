"""The notebooks run from top to bottom over what sweeps and analyses leave, and read nothing but tables."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crelu_data.write import prepare
from sweeps.report.render import plots
from sweeps.store.ledger import Ledger
from sweeps.store.tables import parquet
from tests.support.analysis import SMALL, TRIALS, fill, run_job_command

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def code(name: str) -> list[str]:
    """Return the code cells of a notebook."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(name: str) -> dict[str, Any]:
    """Run the code cells as one program, and return its variables."""
    variables: dict[str, Any] = {}
    for number, cell in enumerate(code(name)):
        exec(compile(cell, f"{name}, cell {number}", "exec"), variables)
    return variables


def results(ledger: Path) -> None:
    """Write two sweeps: two cells with two trials each, and one that shares a trial.

    The second one also has a fold, and a cell of the same name with another recipe. Three trials have scores.
    """
    rng = np.random.default_rng(0)
    columns = {
        "trial_key": ["a", "b", "c", "d"],
        "cell": ["Baseline", "Baseline", "CReLU", "CReLU"],
        "cell_key": ["A", "A", "C", "C"],
        "dataset": ["synthetic:size=72"] * 4,
        "phase": ["ablation"] * 4,
        "seed": [0, 1, 0, 1],
        "fold": [0] * 4,
        "status": ["finished"] * 4,
        "epochs": [9] * 4,
        "folder": [f"trials/{i}" for i in range(4)],
        "final/test_top1_err": [40.0, 42.0, 30.0, 31.0],
    }
    (ledger / "results-small-demo.parquet").write_bytes(parquet(columns))
    other = {name: values[:1] * 3 for name, values in columns.items()} | {
        "trial_key": ["a", "e", "f"], "cell_key": ["A", "A", "B"], "phase": ["ablation", "fold", "ablation"],
        "folder": ["trials/0", "trials/8", "trials/9"], "final/test_top1_err": [40.0, 50.0, 60.0],
    }  # fmt: skip
    (ledger / "results-small-mini.parquet").write_bytes(parquet(other))
    scores = {"id": np.arange(6), "label": np.arange(6) % 3, "centre": list(rng.normal(size=(6, 3)))}
    for i in range(3):
        (ledger / f"trials/{i}/tables").mkdir(parents=True)
        (ledger / f"trials/{i}/tables/scores.parquet").write_bytes(fixed(scores))


def fixed(columns: dict[str, Any]) -> bytes:
    """Return scores as a trial writes them: a fixed-size list for each picture."""
    import pyarrow as pa

    flat = pa.array(np.concatenate(columns["centre"]), pa.float32())
    return parquet({**columns, "centre": pa.FixedSizeListArray.from_arrays(flat, len(columns["centre"][0]))})


@pytest.fixture
def ledger_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    folder = tmp_path / "outputs/ledger"
    folder.mkdir(parents=True)
    return folder


def test_results_are_read_and_averaged(ledger_folder: Path) -> None:
    results(ledger_folder)
    variables = execute("01_read_results")
    errors = variables["errors"]
    assert errors["mean"].tolist() == [41, 30.5, 50, 60]
    assert errors["count"].tolist() == [2, 2, 1, 1]
    assert errors["sem"].tolist()[:2] == pytest.approx([1, 0.5])
    assert [(cell, phase) for _, cell, phase in errors.index] == [
        ("Baseline", "ablation"), ("CReLU", "ablation"), ("Baseline", "fold"), ("Baseline", "ablation"),
    ]  # fmt: skip
    assert variables["right"].shape == (6, 3)


def test_filters_are_read_from_what_the_analyses_leave(
    ledger_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "png", lambda _: b"a picture that no notebook reads")
    prepare(SMALL, tmp_path / "data", writer="native", workers=1)
    filled = fill(Ledger(str(ledger_folder)))
    for job in ("pairing", "invariance", "outgoing", "reconstruction"):
        assert run_job_command(job, filled, tmp_path / "data", "--run", TRIALS["CReLU half"].key) == 0
    variables = execute("02_filters")
    assert list(variables["scores"].columns) == ["CReLU half s0"]
    assert variables["shown"].shape[0] == 2
    assert set(variables["lost"]["net"]) == {"CReLU half s0"}


@pytest.mark.parametrize("name", ["01_read_results", "02_filters"])
def test_notebooks_are_thin_and_read_tables_alone(name: str) -> None:
    cells = code(name)
    assert all(len(cell.splitlines()) <= 25 for cell in cells)
    imported = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(cells), re.MULTILINE))
    assert imported <= {"pathlib", "matplotlib", "numpy", "pandas", "pyarrow"}
    stored = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in stored["cells"])
