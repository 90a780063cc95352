"""A study of the learning rate, and a cell that is given up, by the command: queue, pictures, MLflow, report."""

import sqlite3
from pathlib import Path

import pytest

from sweeps.experiment.plan import current_plan
from sweeps.launch import main
from sweeps.store.ledger import Ledger
from tests.support.commands import child_runs
from tests.support.one_worker import command_here
from tests.support.rate_page import CELLS, PROTOCOL, RATES


@pytest.mark.filterwarnings("ignore")  # of libraries: a command's are nobody's
def test_rate_is_studied_first_and_a_cell_that_trains_at_none_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["page.py", "--profile", "paper", "--output", str(tmp_path / "out")]
    code, out, err = command_here(lambda: main("rate_page", "", CELLS, PROTOCOL), words, tmp_path, monkeypatch)
    assert code == 1, err
    said = [line.split(" ", 1)[1] for line in err.splitlines() if line[2:3] == ":"]
    relu, crelu, _ = CELLS

    # Nothing of the cells with the baseline's recipe begins before its three rates are tried.
    begun = [line.partition(": training")[0] for line in said if line.endswith(": training")]
    tried = [f"relu s0 holdout lr={rate:g}" for rate in RATES]
    of_study = [line for line in begun if not line.startswith("broken")]
    assert of_study[:3] == tried
    last = next(number for number, line in enumerate(said) if "lr=1e+12: done" in line)
    assert all(said.index(f"{line}: training") > last for line in of_study[3:])
    assert "broken: the first 2 trainings of this cell diverged; its other trainings are skipped" in said

    # The ledger has the chosen rate in all of their trainings, and two of the three of the cell that is given up.
    today = current_plan(Ledger(str(tmp_path / "out" / "ledger")), "rate_page")
    assert today.rates == {relu.key: 0.1, crelu.key: 0.1}
    trained = {
        cell.label: [(s.state, s.trial.recipe.lr) for s in today.of(cell) if s.trial.key not in today.studied]
        for cell in CELLS
    }
    assert trained == {
        "relu": [("done", 0.1)] * 3,
        "crelu": [("done", 0.1)] * 3,
        "broken": [("done", 1e12)] * 2 + [("skipped", 1e12)],
    }

    # The end, the report and MLflow say so.
    assert "11 of 12 trials are done." in out
    (following,) = (line for line in out.splitlines() if line.startswith("next "))
    assert following.endswith(f"--profile paper --output {tmp_path / 'out'} --retry-failed")
    assert "  skipped: 1 of broken: the first 2 trainings of this cell diverged" in out
    report = (tmp_path / "out" / "reports" / "rate_page" / "report.md").read_text()
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("|")]
    study = [(row[1], row[3], row[4]) for row in rows if row[0] == "relu" and row[1] in {f"{rate:g}" for rate in RATES}]
    assert study == [("1e+12", "diverged", "–"), ("0.1", "finished", "chosen"), ("0.01", "finished", "–")]
    runs = child_runs(tmp_path / "out" / "mlflow.db")
    assert len(runs) == 11
    with sqlite3.connect(tmp_path / "out" / "mlflow.db") as connection:
        rates = connection.execute(
            "select r.name, p.value from runs r join params p on p.run_uuid = r.run_uuid and p.key = 'lr' where"
            " r.lifecycle_stage = 'active' and r.run_uuid not in (select run_uuid from tags where key = 'trial.key')"
        ).fetchall()
    assert dict(rates) == {"relu": "0.1", "crelu": "0.1", "broken": "1000000000000.0"}
