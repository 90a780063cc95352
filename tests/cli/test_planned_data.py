"""A sweep's results stand on the data it was planned with, also in reports and status from another data folder."""

import argparse
import dataclasses
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from crelu_data import availability
from crelu_data.write import prepare
from crelu_models.model import Model
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.status import as_json, status, text
from sweeps.cli.verbs import reconcile
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import current_plan, plan
from sweeps.experiment.sweep import Protocol, Sweep, sweep_from_json
from sweeps.imagenet_placement import CELLS
from sweeps.launch import launch
from sweeps.results.cell_numbers import groups, number
from sweeps.results.evidence import read_sweep
from sweeps.results.marks import marks
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_client import connected
from tests.support.sweeps import Made, finish
from tests.support.trials import trial_of


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow and SQLAlchemy warn about among themselves
        yield


def command(folder: Path, *more: str) -> str:
    """Return what a sweep with --data-dir A prints while $CRELU_DATA is B."""
    words = ["--smoke-test", "--data-dir", str(folder / "A"), "--json", *more, "--output", str(folder / "out")]
    options = parser("imagenet_placement", "").parse_args(words)
    with mock.patch.dict(os.environ, {"CRELU_DATA": str(folder / "B")}), redirect_stdout(io.StringIO()) as said:
        assert launch("imagenet_placement", CELLS, Protocol(), options, of_paper=True) == ExitCode.DONE
    return said.getvalue()


def other_data(name: str, source: Path, target: Path) -> None:
    """Put a data set of the same name but other pictures into `target`."""
    shutil.copytree(source, target)
    for path in target.glob("*.json"):
        sidecar = json.loads(path.read_text())
        path.write_text(json.dumps(sidecar | {"fingerprint": "0" * 64}))
    assert availability.fingerprint(name, target) != availability.fingerprint(name, source)


def states(ledger: Ledger, title: str) -> set[str]:
    return {run.state for run in read_sweep(ledger, title).runs}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Return a sweep whose trials are done with the data of A; other data of the same name lie in B."""
    sweep = sweep_from_json(json.loads(command(tmp_path, "--dry-run")))
    (name,) = sweep.datasets
    prepare(name, tmp_path / "A", workers=1)
    other_data(name, tmp_path / "A", tmp_path / "B")
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    print_of_a = availability.fingerprint(name, tmp_path / "A")
    for trial in expand(sweep, {}):
        finish(ledger, trial, Made({TOP1: 50.0}))
        result = ledger.result(trial.key)
        assert result is not None
        ledger.commit(trial.key, result | {"fingerprint": print_of_a})
        store = {"uri": f"sqlite:///{tmp_path}/out/mlflow.db", "experiment": sweep.title, "run": "r"}
        ledger.write_json(f"tracked/{trial.key}.json", store | {"finished_ms": result["finished_ms"]})
    return sweep


def test_sweep_with_its_own_data_dir_is_done_in_its_report_and_in_status(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    count = len(expand(sweep, {}))
    title = sweep.title
    table = json.loads(command(tmp_path))
    assert table["trials"] == {
        "new": 0,
        "running": 0,
        "paused": 0,
        "done": count,
        "stale": 0,
        "failed": 0,
        "skipped": 0,
        "pending": 0,
    }
    for elsewhere in (str(tmp_path / "B"), ""):
        monkeypatch.setenv("CRELU_DATA", elsewhere)
        assert states(ledger, title) == {"done"}
        results = read_sweep(ledger, title)
        for group in groups(results):
            for row in group.rows:
                assert "x" not in marks(group, row.results, number(row.results, TOP1), None)
        status(argparse.Namespace(output=str(tmp_path / "out"), sweep=title, watch=False, json=True))
        cells = json.loads(capsys.readouterr().out)[title]["cells"]
        assert (sum(cell["done"] for cell in cells), sum(cell["stale"] for cell in cells)) == (count, 0)
    # What reconcile tells MLflow of the data is what the sweep itself would have told.
    uri = f"sqlite:///{tmp_path}/rebuilt.db"
    reconcile(argparse.Namespace(output=str(tmp_path / "out"), sweep=title, tracking_uri=uri, experiment=None))
    client = connected(uri)
    runs = client.search_runs([client.get_experiment_by_name(title).experiment_id])
    prints = {run.inputs.dataset_inputs[0].dataset.digest for run in runs}
    assert prints == {availability.fingerprint(sweep.datasets[0], tmp_path / "A")[:36]}


def test_results_of_other_data_than_the_last_run_had_are_stale_everywhere(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    title = sweep.title
    command(tmp_path)
    path = f"plans/{title}.json"
    declared = ledger.read_json(path)
    assert declared is not None
    ledger.write_json(path, declared | {"fingerprints": {sweep.datasets[0]: "0" * 64}})
    assert states(ledger, title) == {"stale"}
    status(argparse.Namespace(output=str(tmp_path / "out"), sweep=title, watch=False, json=False))
    assert " ".join(capsys.readouterr().out.splitlines()[-1].split()[-8:]).startswith(". . . 1 . . .")
    # A plan from before they were noted says nothing of its data.
    del declared["fingerprints"]
    ledger.write_json(path, declared)
    assert states(ledger, title) == {"done"}
    ledger.write_json(path, declared | {"fingerprints": 5})
    with pytest.raises(ValueError, match="not a plan: its fingerprints are 5"):
        current_plan(ledger, title)


def test_status_says_where_it_cannot_compare_the_users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = trial_of("All-CNN-B").cell
    user_cells = [
        dataclasses.replace(base, label=name, net=Model(f"beside_the_page:{name}", size=32)) for name in ("a", "b")
    ]
    ledger = Ledger(str(tmp_path / "ledger"))
    declared = plan(Sweep("s", "paper", (base, *user_cells), Protocol()), ledger, {})
    (line,) = (line for line in text(declared, None).splitlines() if "user's code is not in this folder" in line)
    assert line.startswith("a, b: ")
    assert [cell["code_compared"] for cell in as_json(declared, None)["cells"]] == [True, False, False]
    (tmp_path / "beside_the_page.py").write_text("def a(num_classes):\n    ...\n\ndef b(num_classes):\n    ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "is not in this folder" not in text(declared, None)
    assert all(cell["code_compared"] for cell in as_json(declared, None)["cells"])
