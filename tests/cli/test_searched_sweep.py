"""A page of a user that searches learning rate and optimiser by successive halving, two ranks a trial, one killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from sweeps.experiment.plan import current_plan
from sweeps.experiment.study import study
from sweeps.store.ledger import Ledger
from tests.support.commands import checkpoints, child_runs, environment, ranks_below, wait_for

ROOT = Path(__file__).resolve().parents[2]
PAGE = '''"""Which learning rate and optimiser suit a small net?"""

import dataclasses

from crelu_models import S2
from sweeps import ALLCONV, Cell, Choice, Float, Protocol, Search, main

RECIPE = dataclasses.replace(ALLCONV, name="tiny", epochs=4, batch=16, lr=0.02)
CELLS = [Cell("relu", S2.width(0.0625), "synthetic:size=32,classes=2,train=200,test=20", RECIPE)]
SPACE = {"recipe.lr": Float(1e-3, 0.1, log=True), "recipe.optimiser": Choice("sgd", "adam")}

if __name__ == "__main__":
    main("rates", __doc__, CELLS, Protocol(search=Search(3, space=SPACE, halving=2, rung=2)))
'''


def test_a_search_of_rate_and_optimiser_survives_the_death_of_a_rank(tmp_path: Path) -> None:
    page = tmp_path / "rates.py"
    page.write_text(PAGE)
    words = [sys.executable, str(page), "--output", str(tmp_path / "out"), "--ranks", "2", "--json"]
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    with subprocess.Popen(
        words,
        env=environment(tmp_path, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for("a checkpoint", lambda: checkpoints(ledger), process)
        os.kill(ranks_below(tmp_path)[-1], signal.SIGKILL)
        said, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert not ranks_below(tmp_path)
    results = ledger.results()
    assert {result["hardware"]["ranks"] for result in results.values()} == {"2"}
    (attempt,) = [attempt for key in ledger.folders("attempts") for attempt in ledger.attempts(key)]
    assert "of 2 died (signal 9)" in attempt["error"]
    (title,) = (name.removesuffix(".json") for name in ledger.names("plans"))
    plan = current_plan(ledger, title)
    search = plan.sweep.protocol.search
    assert search is not None
    cell_study = study(search, plan.sweep.cells[0], results, (), paused=ledger.paused())
    assert cell_study.is_finished
    assert cell_study.winner is not None
    # The plan is that of a sweep in which nothing died: what had paused went on or waits still, nothing else was made.
    assert ledger.paused().keys() == cell_study.paused
    assert results.keys() == {t.key for t in cell_study.trials} - cell_study.paused | {plan.statuses[-1].trial.key}
    assert plan.statuses[-1].trial.choices == cell_study.winner.trial.choices
    assert json.loads(said)["trials"]["paused"] == len(cell_study.paused) > 0
    runs = child_runs(tmp_path / "out" / "mlflow.db")
    assert {key for key, (_, status, _) in runs.items() if status == "SCHEDULED"} == cell_study.paused
    assert {key for key, (_, status, _) in runs.items() if status == "FINISHED"} == results.keys()
