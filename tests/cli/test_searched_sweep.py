"""A page of a user that searches learning rate and optimiser by successive halving: killed, resumed, shown."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from sweeps.experiment.plan import current_plan
from sweeps.experiment.study import study
from sweeps.store.ledger import Ledger
from tests.support.commands import child_runs, environment, wait_for

ROOT = Path(__file__).resolve().parents[2]
PAGE = '''"""Which learning rate and optimiser suit a small net?"""

import dataclasses

from crelu_models import S2
from sweeps import ALLCONV, Cell, Choice, Float, Protocol, Search, main

RECIPE = dataclasses.replace(ALLCONV, name="tiny", epochs=4, batch=16, lr=0.02)
CELLS = [Cell("relu", S2.width(0.0625), "synthetic:size=32,classes=2,train=40,test=20", RECIPE)]
SPACE = {"recipe.lr": Float(1e-3, 0.1, log=True), "recipe.optimiser": Choice("sgd", "adam")}

if __name__ == "__main__":
    main("rates", __doc__, CELLS, Protocol(search=Search(3, space=SPACE, halving=2, rung=1)))
'''


def test_a_search_of_rate_and_optimiser_survives_a_kill(tmp_path: Path) -> None:
    page = tmp_path / "rates.py"
    page.write_text(PAGE)
    words = [sys.executable, str(page), "--output", str(tmp_path / "out"), "--max-concurrent", "1"]
    here = environment(tmp_path, PYTHONPATH=str(ROOT))
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    with subprocess.Popen(words, env=here, stderr=subprocess.PIPE, text=True) as first:
        wait_for("a pause", ledger.paused, first)
        first.send_signal(signal.SIGKILL)
    before = ledger.paused()
    done = subprocess.run([*words, "--json"], env=here, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    (title,) = (name.removesuffix(".json") for name in ledger.names("plans"))
    plan = current_plan(ledger, title)
    search = plan.sweep.protocol.search
    assert search is not None
    found = study(search, plan.sweep.cells[0], ledger.results(), (), paused=ledger.paused())
    assert found.is_finished
    assert found.winner is not None
    # The plan is that of a sweep that nobody killed: what had paused went on or waits still, and nothing else was made.
    assert set(before) <= {trial.key for trial in found.trials}
    assert ledger.paused().keys() == found.paused
    assert ledger.results().keys() == {t.key for t in found.trials} - found.paused | {plan.statuses[-1].trial.key}
    assert plan.statuses[-1].trial.choices == found.winner.trial.choices
    assert json.loads(done.stdout)["trials"]["paused"] == len(found.paused) > 0
    runs = child_runs(tmp_path / "out" / "mlflow.db")
    assert {key for key, (_, status, _) in runs.items() if status == "SCHEDULED"} == found.paused
    assert {key for key, (_, status, _) in runs.items() if status == "FINISHED"} == ledger.results().keys()
