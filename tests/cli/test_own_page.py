"""A page outside the package with its own training function and a metric to be high, by the real command.

One seed of each cell diverges, and one worker is killed in the middle: all that is shown agrees.
"""

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest

from sweeps.experiment.plan import current_plan
from sweeps.store.ledger import Ledger
from sweeps.tracking.layout import VIEW_KEY, VIEW_TAG
from tests.support.commands import environment

PAGE = '''"""Which net has the higher score,
and by how much?

It has a training function of its own.
"""

import os
import signal
from pathlib import Path

from sweeps import Cell, Metric, Protocol, main
from tests.support.rate_page import NET, PICTURES, RECIPE

CELLS = [Cell("relu", NET, PICTURES, RECIPE, task="page:train"),
         Cell("crelu", NET.crelu(1), PICTURES, RECIPE, task="page:train")]


def train(trial, data, run):
    concatenates = "crelu" in str(trial.net.to_json())
    level = 0.5 + 0.2 * concatenates
    for epoch in run.epochs():
        run.report(epoch, {"val/f1": level + epoch / 10 if trial.label != "s1" else float("nan")})
        run.checkpoint({"epoch": epoch})
        killed = Path(__file__).with_name("killed")
        if trial.label == "s2" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return {"test/f1": level + trial.seed / (80 if concatenates else 100), "test/recall": 1}


if __name__ == "__main__":
    main("page", __doc__, CELLS, Protocol(seeds=4), metric=Metric("test/f1", better="higher"))
'''
VALUES = {"relu": [0.5, 0.52, 0.53], "crelu": [0.7, 0.725, 0.7375]}


def test_an_own_metric_is_the_same_in_all_that_is_shown(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "page.py").write_text(PAGE)
    out = tmp_path / "out"
    words = [sys.executable, "page.py", "--profile", "paper", "--output", str(out), "--max-concurrent", "1"]
    user = environment(tmp_path, PYTHONPATH=str(root))
    ended = subprocess.run(words, capture_output=True, text=True, env=user, cwd=tmp_path, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "killed").exists()

    # On the ledger: the training that was killed went on, and the seeds that diverged have no number.
    today = current_plan(Ledger(str(out / "ledger")), "page")
    results = {(s.trial.cell.label, s.trial.seed): s.result or {} for s in today.statuses}
    assert sorted(result["resumed"] for result in results.values()) == [0] * 7 + [1]
    assert {seed for (_, seed), result in results.items() if result["status"] == "diverged"} == {1}

    # The table.
    table = {line.split()[0]: line for line in ended.stdout.splitlines() if line.startswith(("cell", "relu", "crelu"))}
    assert re.split(" {2,}", table["cell"].strip()) == ["cell", "params", "test f1", "marks"]
    for label, values in VALUES.items():
        assert f"{fmean(values):.4f} ±{stdev(values) / 3**0.5:.4f}" in table[label]
        assert "1 of 4 seeds diverged" in table[label]
    assert "resume=approximate" in table["relu"] + table["crelu"]
    assert "test f1: higher is better" in ended.stdout
    assert "paper" not in ended.stdout.replace("--profile paper", "")

    # Status, report and MLflow.
    status = [sys.executable, "-m", "sweeps", "status", "--json", "--output", str(out)]
    said = subprocess.run(status, capture_output=True, text=True, env=user, cwd=tmp_path, timeout=100, check=True)
    (sweep,) = json.loads(said.stdout).values()
    shown = {cell["label"]: (cell["test_f1"], cell["n"], cell["lost"]) for cell in sweep["cells"]}
    report = (out / "reports" / "page" / "report.md").read_text()
    assert report.startswith("# page\n\nWhich net has the higher score, and by how much?\n")
    with sqlite3.connect(out / "mlflow.db") as connection:
        logged = connection.execute(
            "select r.name, m.key, m.value from runs r join latest_metrics m using (run_uuid)"
            " where r.lifecycle_stage = 'active' and r.name in ('relu', 'crelu')"
        ).fetchall()
        tags = dict(connection.execute("select key, value from experiment_tags").fetchall())
        notes = [value for (value,) in connection.execute("select value from tags where key = 'mlflow.note.content'")]
        resume = [value for (value,) in connection.execute("select value from tags where key = 'resume'")]
    for label, values in VALUES.items():
        assert shown[label] == (pytest.approx(fmean(values)), 3, "1 of 4 seeds diverged")
        number = rf"{fmean(values):.4f} ± {stdev(values) / 3**0.5:.4f} \(3\)"
        assert re.search(rf"^\| {label} \| {number}<sup>d", report, re.MULTILINE)
        numbers = {key: value for name, key, value in logged if name == label}
        assert numbers["agg/test_f1_mean"] == pytest.approx(fmean(values))
        assert numbers["agg/test_f1_se"] == pytest.approx(stdev(values) / 3**0.5)
        assert numbers["agg/test_f1_n"] == 3
    assert resume == ["approximate"] * 8
    assert tags["mlflow.experiment.primaryMetric.name"] == "agg/test_f1_mean"
    assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"
    # Each address names a view of this metric, of those that the experiment has.
    views = {tag.removeprefix(VIEW_TAG) for tag in tags if tag.startswith(VIEW_TAG)}
    assert views == {"cells-test_f1-higher", "curves-test_f1-higher"}
    assert {view for note in notes for view in re.findall(rf"{VIEW_KEY}=([\w.-]+)", note)} == views
    assert set(re.findall(rf"{VIEW_KEY}=([\w.-]+)", ended.stdout + ended.stderr)) == {"cells-test_f1-higher"}

    # The effect has its sign, and the word that it means; nothing speaks of errors in percent or of the paper.
    (effect,) = re.findall(r"^\| crelu \| test f1 \| (\S+?)<sup>.*\| (\w+) \|$", report, re.MULTILINE)
    difference = fmean(VALUES["crelu"]) - fmean(VALUES["relu"])
    assert effect == (f"+{difference:.4f}", "better")
    for word in ("top-1", "top-5", "percent", "paper", "McNemar", "vote"):
        assert word not in report.replace("--profile paper", ""), word
