"""A page of a user that searches learning rate and optimiser by successive halving, two ranks a trial, one killed."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.cli.verbs import export_study
from sweeps.experiment.plan import current_plan, plan, plan_to_json
from sweeps.experiment.search import Search
from sweeps.experiment.study import study
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.store.ledger import Ledger
from tests.support.commands import child_runs, environment, ranks_below
from tests.support.sweeps import BASELINE

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

# The first rank that has saved a state kills the other of its training.
KILLING = """
import os, pathlib, sys

if any("sweeps.execution.rank_processes" in word for word in sys.orig_argv):
    from sweeps.store import checkpoint

    def save(*words, save=checkpoint.save):
        save(*words)
        try:
            pathlib.Path(__file__).with_name("killed").touch(exist_ok=False)
        except FileExistsError:
            return
        import psutil

        for process in psutil.Process().parent().children():
            if process.pid != os.getpid() and "sweeps.execution.rank_processes" in "".join(process.cmdline()):
                process.kill()

    checkpoint.save = save
"""


def test_a_search_of_rate_and_optimiser_survives_the_death_of_a_rank(tmp_path: Path) -> None:
    page = tmp_path / "rates.py"
    page.write_text(PAGE)
    words = [sys.executable, str(page), "--output", str(tmp_path / "out"), "--ranks", "2", "--json"]
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    killing = tmp_path / "killing"
    killing.mkdir()
    (killing / "sitecustomize.py").write_text(KILLING)
    user = environment(tmp_path, PYTHONPATH=f"{killing}:{ROOT}")
    ended = subprocess.run(words, env=user, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert (killing / "killed").exists()
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
    assert json.loads(ended.stdout)["trials"]["paused"] == len(cell_study.paused) > 0
    runs = child_runs(tmp_path / "out" / "mlflow.db")
    assert {key for key, (_, status, _) in runs.items() if status == "SCHEDULED"} == cell_study.paused
    assert {key for key, (_, status, _) in runs.items() if status == "FINISHED"} == results.keys()


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ("studies.db", "Could not parse"),
        ("sqlite:///{}/nofolder/studies.db", "unable to open database file"),
        ("mysql+nosuchdriver://me:secret@host/studies", "nosuchdriver"),
    ],
)
def test_a_storage_that_cannot_be_written_is_a_sentence(tmp_path: Path, storage: str, why: str) -> None:
    options = searched(tmp_path, storage.format(tmp_path))
    sentence = rf"^--storage .* cannot be written: .*{why}.*; e\.g\. sqlite:///studies\.db$"
    with pytest.raises(ValueError, match=sentence) as error:
        export_study(options)
    assert "secret" not in str(error.value)


def test_studies_are_written_and_the_way_to_look_at_them_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.experiment.study.export", lambda *_: 1)
    assert export_study(searched(tmp_path, "sqlite:///a b.db")) == 0
    command = "optuna-dashboard 'sqlite:///a b.db'   (pip install optuna-dashboard)"
    assert capsys.readouterr().out == f"1 study written; to look at them: {command}\n"


def searched(folder: Path, storage: str) -> argparse.Namespace:
    """Return the options of export-study for a sweep with a search that was declared in a folder."""
    ledger = Ledger.in_output(str(folder))
    sweep = Sweep("rates", "paper", (BASELINE,), Protocol(search=Search(2, sampler="random")))
    ledger.write_json("plans/rates.json", plan_to_json(plan(sweep, ledger, {})))
    return argparse.Namespace(output=str(folder), sweep="rates", storage=storage)
