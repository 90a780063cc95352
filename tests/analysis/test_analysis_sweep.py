"""Analyses over a whole sweep: Ray tasks, what is kept, what fails, the table; and help that comes at once."""

import csv
import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweeps.analysis import summary
from sweeps.analysis.compute import JobSpec, run_job
from sweeps.analysis.sources import NotApplicableError, of_run, of_sweep
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger
from sweeps.training.result import commit_result
from sweeps.training.runtime import RuntimeConfig
from tests.support.analysis import CELLS, PAGES, TRIALS, read_summary, run_job_command, untrained

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python as somebody who has set nothing; what Ray and MLflow warn about is not looked at."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
    env = inherited | {"PYTHONWARNINGS": "ignore", "SLURM_CPUS_ON_NODE": "1"}  # a Ray with one worker that loads torch
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=env, timeout=400)


# Many runs ----------------------------------------------------------------------------------------------------


def test_runs_of_a_sweep_are_tasks_and_one_that_fails_is_a_sentence(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = f"trials/{TRIALS['CReLU half'].key}/weights.safetensors"
    weights = ledger.read(broken)
    assert weights is not None
    ledger.write(broken, b"torn")
    words = ("--sweep", "small-demo", "--output", str(Path(ledger.root).parent))
    process = run("-m", "sweeps.analysis.outgoing", *words, "--device", "cpu")
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert "3 runs to analyse; Ray local" in process.stderr
    assert "failed on CReLU half s0: " in process.stderr
    assert f"{broken} is damaged" in process.stderr
    assert "not for Baseline: no conv has CReLU" in process.stderr
    assert "1 of these runs not in MLflow yet" in process.stderr
    assert all(word in process.stdout for word in ("CReLU conv1-4 s0", "floor", "non-pair", "small-demo/outgoing.csv"))
    # The same command goes on where that one was: what is done, and what does not fit, is known.
    first = read_summary(ledger, "CReLU conv1-4", "outgoing")
    ledger.write(broken, weights)
    assert run_job_command("outgoing", ledger, "", "--sweep", "small-demo") == 0
    shown = capsys.readouterr()
    assert read_summary(ledger, "CReLU conv1-4", "outgoing") == first
    assert "runs to analyse" not in shown.err
    assert "not for Baseline: no conv has CReLU" in shown.err
    rows = [line.split()[:4] for line in shown.out.splitlines()]
    assert ["CReLU", "conv1-4", "s0", "conv1"] in rows
    left = csv.DictReader(io.StringIO((ledger.read("analysis/small-demo/outgoing.csv") or b"").decode()))
    runs = [row["run"] for row in left]
    assert runs == ["CReLU conv1-4 s0"] * 4 + ["CReLU half s0"] * 7
    table = pq.read_table(io.BytesIO(ledger.read("analysis/small-demo/outgoing.parquet") or b"")).to_pydict()
    assert table["run"] == runs
    assert table["pair"][:4] == [row["pair"] for row in first["rows"]]
    # Columns come in the order of the table, from a summary that is read back too.
    assert list(first["rows"][0])[:5] == ["layer", "filters", "zero", "pair", "pair sd"]


def inapplicable(*_: object) -> None:
    raise NotApplicableError("never fits")


def explode(*_: object) -> None:
    raise RuntimeError("a shape that nobody thought of\nand more")


def test_an_error_nobody_thought_of_is_a_sentence_with_its_trace_on_the_ledger(ledger: Ledger) -> None:
    source = next(source for source in of_sweep(ledger, "small-demo") if source.cell == "CReLU half")
    assert source.name == "CReLU half s0"
    outcome = run_job(JobSpec("outgoing", f"{__name__}:explode", {}, False), source, RuntimeConfig(ledger.root, ""))
    assert outcome.summary is None
    assert not outcome.not_applicable
    assert outcome.why.startswith("RuntimeError: a shape that nobody thought of (trace: ")
    assert "in explode" in Path(outcome.why.partition("trace: ")[2].removesuffix(")")).read_text()
    # What is done afterwards takes the trace away. That a job does not apply is noted, and hides nothing that fits.
    spec = JobSpec("outgoing", "sweeps.analysis.outgoing_correlations:findings", {"layers": ["conv2"]}, False)
    assert run_job(
        spec._replace(work=f"{__name__}:inapplicable"), source, RuntimeConfig(ledger.root, "")
    ).not_applicable
    assert run_job(spec, source, RuntimeConfig(ledger.root, "")).summary is not None
    assert ledger.names(f"trials/{source.trial}/analysis/outgoing") == [
        "non_pairs.parquet", "outgoing.png", "summary.csv", "summary.json", "table.parquet",
    ]  # fmt: skip


def test_trainings_of_its_cells_that_a_sweep_does_not_have_are_left_out(ledger: Ledger) -> None:
    superseded = Trial(CELLS[0], rate=0.01)
    of_folds = Trial(CELLS[0], "fold", fold=0, folds=5)
    for trial in (superseded, of_folds):
        commit_result(ledger, trial, untrained(trial))
        assert of_run(ledger, trial.key).cell == "Baseline"
    assert {source.trial for source in of_sweep(ledger, "small-demo")} == {trial.key for trial in TRIALS.values()}


# The table ----------------------------------------------------------------------------------------------------


def runs_of(cell: str, *scores: float, verdict: str = "holds") -> list[dict[str, Any]]:
    return [
        {"job": "invariance", "request": "", "cell": cell, "label": f"{cell} s{seed}", "trial": f"{cell}{seed}",
         "dataset": "toy", "state": "done",
         "rows": [{"layer": "conv1", "score": score, "p": 0.1 * seed, "filters": 8, "verdict": verdict + "!" * seed}]}
        for seed, score in enumerate(scores)
    ]  # fmt: skip


def test_several_runs_of_a_cell_are_one_line_with_their_mean(tmp_path: Path) -> None:
    summaries = runs_of("Baseline", 10.0, 20.0) + runs_of("CReLU", 40.0)
    assert summary.averaged(summaries) == [
        {"net": "Baseline", "runs": 2, "layer": "conv1", "score": 15.0, "p": None, "filters": 8, "verdict": None},
        {"net": "CReLU", "runs": 1, "layer": "conv1", "score": 40.0, "p": 0.0, "filters": 8, "verdict": "holds"},
    ]
    assert [row["net"] for row in summary.averaged(summaries[1:])] == ["Baseline s1", "CReLU s0"]
    ledger = Ledger(str(tmp_path))
    summary.leave(ledger, "toy", summaries)
    lines = (tmp_path / "analysis/toy/invariance.csv").read_text().splitlines()
    assert lines[0] == "cell,run,trial,state,dataset,layer,score,p,filters,verdict"
    assert len(lines) == 1 + 3


def test_stale_runs_are_counted_and_averaged_only_where_none_is_current(tmp_path: Path) -> None:
    mixed, old = runs_of("Baseline", 90.0, 10.0, 20.0), runs_of("CReLU", 40.0, 60.0)
    for entry in (mixed[0], *old):
        entry["state"] = "stale"
    current = runs_of("AVR", 5.0)
    rows = [
        tuple(row[name] for name in ("net", "runs", "stale", "score"))
        for row in summary.averaged(mixed + old + current)
    ]
    assert rows == [("Baseline", 2, "1 left out", 15.0), ("CReLU", 2, "all", 50.0), ("AVR", 1, None, 5.0)]
    assert summary.averaged(old[:1])[0] | {"net": "", "stale": ""} == summary.averaged(current)[0] | {
        "net": "", "stale": "", "score": 40.0,
    }  # fmt: skip
    assert summary.averaged(old[:1])[0]["stale"] == "all"
    ledger = Ledger(str(tmp_path))
    summary.leave(ledger, "toy", mixed)
    rows = csv.DictReader((tmp_path / "analysis/toy/invariance.csv").read_text().splitlines())
    assert [row["state"] for row in rows] == ["stale", "done", "done"]


def test_a_job_says_which_runs_of_a_sweep_are_stale(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    trial = TRIALS["CReLU half"]
    assert {source.state for source in of_sweep(ledger, "small-demo")} == {"done"}
    commit_result(ledger, trial, dataclasses.replace(untrained(trial), code="of before"))
    assert {source.cell: source.state for source in of_sweep(ledger, "small-demo")}["CReLU half"] == "stale"
    words = ("--samples", "3", "--layers", "conv1")
    for one in TRIALS.values():  # in this process
        assert run_job_command("pairing", ledger, "", "--run", one.key, *words) == 0
    assert summary.STALE_NOTE not in capsys.readouterr().out
    assert run_job_command("pairing", ledger, "", "--sweep", "small-demo", *words) == 0
    shown = capsys.readouterr().out
    assert summary.STALE_NOTE in shown
    (half,) = [line.split() for line in shown.splitlines() if line.startswith(" CReLU half s0")]
    assert half[3:5] == ["all", "conv1"]


# The command line ---------------------------------------------------------------------------------------------

USAGE = {
    "--help": 0,
    "--samples -1": 2,
    "--run x --weights y": 2,
    "--weights nothing.pt --net S88": 2,
    "--run x --net S8": 2,
}


# One process says all of it, a case after the other: what a case loads stays for the next, and is none of the heavy.
CASES = """
import cProfile, runpy, sys
module = sys.argv[1]
for words in sys.argv[2:]:
    sys.argv = [module, *words.split()]
    try:
        with cProfile.Profile() as steps:
            runpy.run_module('sweeps.analysis.' + module, run_name='__main__')
    except SystemExit as end:
        status = end.code
    heavy = {'torch', 'ray', 'mlflow', 'optuna', 'scipy', 'matplotlib', 'pyarrow', 'safetensors'}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    calls = sum(function.callcount for function in steps.getstats())
    print(f'\\f{status} {calls}', end='\\f', flush=True)
    print('', end='\\f', file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("name", PAGES)
def test_help_and_usage_errors_come_at_once(name: str) -> None:
    process = run("-c", CASES, name, *USAGE)
    assert process.returncode == 0, process.stderr
    said, ends = process.stdout.split("\f")[::2], process.stdout.split("\f")[1::2]
    for out, end, error, (words, status) in zip(said, ends, process.stderr.split("\f"), USAGE.items(), strict=False):
        code, calls = map(int, end.split())
        assert code == status, (words, error)
        assert (f"python -m sweeps.analysis.{name} " in out) if not status else "error: " in error
        assert calls < 400_000, words  # of functions: some tenths of a second
    assert len(ends) == len(USAGE)
