"""How long does the report of 1,000 runs take, how much memory, and how large is it? Runs are as a sweep leaves them.

    python -m benchmarks.bench_report --runs 1000
    python -m benchmarks.bench_report --full-grid     # every training of the largest page, none of them tracked

Ledger and MLflow (SQLite) are filled by the code that fills them in a sweep: results committed, runs projected with
their curves, scores of every fold as Parquet. Then `python -m sweeps report` runs in a process of its own, twice: the
first also puts the report on MLflow's runs, the second finds it there. Imports are included; seconds of the CPU stand
beside those of the clock, which on a busy machine are more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sweeps import full_grid
from sweeps.cifar_width import CELLS
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import PHASES, Trial
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.run_index import Store
from sweeps.training.result import score_table

EPOCHS, PICTURES, CLASSES = 50, 1000, 10
LIMITS = (20.0, 2048.0, 3.0)  # seconds, MiB of memory, MB of a page
START = 1_790_000_000_000


def finish(ledger: Ledger, trial: Trial, stream: np.random.Generator) -> None:
    """Write what a trial leaves: its history, the scores of a fold, its result; the numbers are drawn."""
    labels = np.arange(PICTURES) % CLASSES
    scores = stream.normal(0, 1, (PICTURES, CLASSES)).astype(np.float32)
    scores[np.arange(PICTURES), labels] += 3
    error = float(100 * np.mean(scores.argmax(1) != labels))
    curve = [error + 60 * float(np.exp(-e / 10)) for e in range(1, EPOCHS + 1)]
    history = [
        {"epoch": e, "time_ms": START + 1000 * e, "train/loss": 2.0 / e, "val/top1_err": value}
        for e, value in enumerate(curve, 1)
    ]
    files = {"trial.json": json.dumps(trial.to_json()).encode(), "history.json": json.dumps(history).encode()}
    metrics = {"best/val_top1_err": min(curve), "best/epoch": float(EPOCHS)}
    if PHASES[trial.phase].test:
        scored = score_table(trial, {"id": np.arange(PICTURES), "label": labels, "centre": scores})
        files["tables/scores.parquet"] = scored
        metrics["final/test_top1_err"] = error
    for name, content in files.items():
        ledger.write(f"trials/{trial.key}/{name}", content)
    result = {
        "key": trial.key, "cell_key": trial.cell.key, "label": trial.cell.label, "trial": trial.label,
        "status": "finished", "ending": "schedule", "epochs": EPOCHS, "files": dict.fromkeys(files, ""), "events": [],
        "metrics": metrics, "curve": [], "restarts": 0, "seconds": 600.0, "precision": "bf16", "fingerprint": "f" * 64,
        "code": code_fingerprint(trial.cell.net), "finished_ms": START + 1000 * EPOCHS,
        "hardware": {"host": "drawn", "device": "none", "torch": "none", "python": "none"},
    }  # fmt: skip
    ledger.commit(trial.key, result)


def fill(output: Path, runs: int) -> int:
    """Finish and track every trial of a sweep of the ten cells of Table 1 with ten folds, and return their number."""
    ledger = Ledger(str(output / "ledger"))
    stream = np.random.default_rng(0)
    seeds = max(1, runs // len(CELLS) - 10)
    sweep = Sweep("many", "paper", CELLS, Protocol(seeds=seeds, folds=10))
    planned = plan(sweep, ledger, {})
    for trial in planned.to_do:
        finish(ledger, trial, stream)
    ledger.write_json("plans/many.json", plan_to_json(plan(sweep, ledger, {})))
    projection = MlflowRuns(Store(f"sqlite:///{output}/mlflow.db", "many", f"{output}/artifacts"), ledger, sweep)
    for trial in planned.to_do:
        projection.sync_trial(trial, "RUNNING")
    for cell in sweep.cells:
        projection.sync_cell(cell, [trial for trial in planned.to_do if trial.cell.key == cell.key])
    return len(planned.to_do)


def fill_full_grid(output: Path) -> int:
    """Finish every trial of `full_grid`, one wave after another, and return their number."""
    ledger = Ledger(str(output / "ledger"))
    stream = np.random.default_rng(0)
    sweep = Sweep("full_grid", "paper", full_grid.CELLS, full_grid.PROTOCOL)
    finished = 0
    while wave := plan(sweep, ledger, {}).to_do:
        for trial in wave:
            finish(ledger, trial, stream)
        finished += len(wave)
    ledger.write_json("plans/full_grid.json", plan_to_json(plan(sweep, ledger, {})))
    return finished


def measured(output: Path) -> tuple[float, float, float, str]:
    """Run the report and return its seconds by the clock and of the CPU, peak memory in MiB, and its last line."""
    words = [sys.executable, "-m", "sweeps", "report", "--output", str(output)]
    with tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        child = subprocess.Popen(words, stdout=said)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"the report ended with {child.returncode}")
        said.seek(0)
        return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said.read().splitlines()[-1]


def main() -> int:
    """Fill a folder, report it twice, print one table; exit 1 over the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--full-grid", action="store_true", help="all trainings of full_grid, which no run shows")
    parser.add_argument("--output", help="fill this folder and leave it there (default: one that is taken away)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        output = Path(options.output or place).absolute()
        began = time.monotonic()
        runs = fill_full_grid(output) if options.full_grid else fill(output, options.runs)
        tracked = "" if options.full_grid else " and tracked"
        print(f"{runs} runs written{tracked} in {time.monotonic() - began:.0f} s")
        print(f"{'report':<26} {'seconds':>8} {'CPU':>6} {'of':>6} {'peak MiB':>9} {'of':>6}")
        worst = 0.0
        for name in ("first, onto the runs", "again"):
            seconds, busy, memory, said = measured(output)
            print(f"{name:<26} {seconds:>8.1f} {busy:>6.1f} {LIMITS[0]:>6.0f} {memory:>9.0f} {LIMITS[1]:>6.0f}")
            worst = max(worst, busy / LIMITS[0], memory / LIMITS[1])
        (page,) = output.glob("reports/*/report.html")
        size = page.stat().st_size / 1e6
        print(f"report.html {size:.2f} MB of {LIMITS[2]:.0f}\n{said}")
        worst = max(worst, size / LIMITS[2])
        return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
