"""The examples of docs/own-training.md train as they stand, on pictures that are at hand."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from sweeps.experiment.metrics import Metric
from sweeps.experiment.task_source import check_task
from sweeps.training.task import run_task
from tests.support.trials import SMALL, runtime_config, trial_of

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[2] / "docs" / "own-training.md").read_text(), re.M | re.S
)


def page(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, *blocks: str) -> str:
    """Write the page of the example, and return the name of its function."""
    monkeypatch.syspath_prepend(str(folder))
    (folder / f"{name}.py").write_text("\n".join(blocks).replace("folder:/data/birds", SMALL))
    return f"{name}:train"


def result_of(task: str, metric: Metric, data: Path, ledger: Path) -> dict[str, Any]:
    trial = trial_of("allconv with dropout")
    cell = dataclasses.replace(trial.cell, task=task, metric=metric)
    result = run_task(dataclasses.replace(trial, cell=cell), runtime_config(data, ledger), lambda *_: None)
    assert result is not None
    return result


def test_plain_loop_trains(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = page(tmp_path, "rare", monkeypatch, BLOCKS[0])
    check_task(task)
    result = result_of(task, Metric("test/f1", better="higher"), data, tmp_path / "ledger")
    assert (result["epochs"], result["ending"]) == (3, "schedule")
    assert 0 <= result["metrics"]["final/test_f1"] <= 1


@pytest.mark.filterwarnings("ignore")  # what Lightning and torch say about each other
def test_lightning_module_trains(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    task = page(tmp_path, "rare_lightning", monkeypatch, BLOCKS[0], BLOCKS[1])
    result = result_of(task, Metric("test/right", better="higher"), data, tmp_path / "ledger")
    assert (result["epochs"], result["ending"]) == (3, "schedule")
    assert 0 <= result["metrics"]["final/test_right"] <= 1
