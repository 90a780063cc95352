"""What does a whole small sweep take: ours, the same trainings by plain Ray Tune, and by a shell loop?

    python -m benchmarks.bench_sweep                          Table 1 at the demo's scale: an hour and more on 2 cores
    python -m benchmarks.bench_sweep --only 'CReLU half*'     one cell of it: minutes

Ours is the user's command, from its start to its table, report and MLflow runs. The others train what ours trained: the
same nets, splits, dropout, recipes and epochs, with torch's own layers, PIL, torchvision's transforms and a DataLoader
(benchmarks/plain.py); Tune as its documentation does it, a process a trial. They write no scores, weights, checkpoints
or report, and search nothing. Errors are set beside each other, trial by trial: they must agree within their spread.
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
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmarks.plain import train
from crelu_data.datasets import beton_path, data_dir, dataset
from crelu_data.load import open_pictures
from crelu_data.write import prepare
from sweeps.store.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
Rows = list[dict[str, Any]]


def ours(sweep: str, only: list[str], epochs: int, folder: str) -> tuple[float, Rows]:
    """Run the sweep as a user does; return its seconds, and the trials it trained with their epochs and errors."""
    command = [sys.executable, "-m", f"sweeps.{sweep}", "--profile", "demo", "--output", folder, "-q"]
    command += ["--only", *only] if only else []
    command += ["--set", f"recipe.epochs={epochs}"] if epochs else []
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    ledger = Ledger(f"{folder}/ledger")
    rows = []
    for key, result in ledger.results().items():
        error = result["metrics"].get("final/test_top1_err", result["metrics"].get("best/val_top1_err"))
        trial = ledger.read_json(f"trials/{key}/trial.json")
        rows.append({"trial": trial, "epochs": result["epochs"], "error": error, "tested": "final/test_top1_err" in
                     result["metrics"]})  # fmt: skip
    return seconds, rows


def arrays(name: str, path: Path) -> None:
    """Write the pictures of a prepared data set as arrays: what a user of CIFAR has in memory."""
    where = data_dir(None)
    prepare(name, where)
    facts = dataset(name, where)
    saved = {}
    for split in ("train", facts.final):
        with open_pictures(beton_path(name, split, where), reader="threads") as pictures:
            indices = np.arange(len(pictures), dtype=np.int64)
            images = [batch.images.permute(0, 2, 3, 1).numpy() for batch in pictures.batches(indices, 256)]
            part = "train" if split == "train" else "test"
            saved |= {part: np.concatenate(images), f"{part}_labels": np.asarray(pictures.labels)}
            saved |= {} if part == "test" else {"mean": pictures.sidecar.mean, "std": pictures.sidecar.std}
    np.savez(path, holdout=facts.holdout, classes=facts.classes, **saved)


def tune(file: Path) -> list[float]:
    """Train the trials in `file` by plain Ray Tune, a process a trial, and return their errors."""
    from ray import tune

    inputs = json.loads(file.read_text())

    def trainable(config: dict[str, Any]) -> None:
        row = inputs["trials"][config["number"]]
        error = train(row, inputs["pictures"], lambda metrics: tune.report(metrics | {"error": 0.0}))
        tune.report({"error": error, "loss": 0.0, "val_error": 0.0})

    numbers = list(range(len(inputs["trials"])))
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            trainable,
            param_space={"number": tune.grid_search(numbers)},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        by_number = {result.config["number"]: result.metrics["error"] for result in results}
    return [by_number[number] for number in numbers]


def looped(file: Path, count: int) -> list[float]:
    """Train the trials in `file` one after another, each in a process of its own, and return their errors."""
    errors = []
    for number in range(count):
        command = [sys.executable, "-m", "benchmarks.plain", str(file), str(number)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        errors.append(float(done.stdout.strip().splitlines()[-1]))
    return errors


def main() -> None:
    """Run the three sides one after the other and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="cifar_width")
    parser.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="only these cells")
    parser.add_argument("--epochs", type=int, default=0, help="of each training (default: the demo's)")
    parser.add_argument("--sides", nargs="+", choices=("tune", "loop"), default=["tune", "loop"])
    parser.add_argument("--tune", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tune:
        print("\n" + json.dumps(tune(options.tune)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':<34}{'trainings':>10}{'wall s':>9}{'over ours':>11}{'error less ours, tested':>26}", flush=True)
        seconds, rows = ours(options.sweep, options.only, options.epochs, f"{folder}/ours")
        print(f"{'ours, with report and MLflow runs':<34}{len(rows):>10}{seconds:>9.0f}{1:>11.2f}", flush=True)
        pictures, file = Path(folder, "pictures.npz"), Path(folder, "trials.json")
        arrays(rows[0]["trial"]["cell"]["dataset"], pictures)
        file.write_text(json.dumps({"trials": rows, "pictures": str(pictures)}))
        for side in options.sides:
            began = time.perf_counter()
            if side == "tune":
                command = [sys.executable, "-m", "benchmarks.bench_sweep", "--tune", str(file)]
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                errors = json.loads(done.stdout.strip().splitlines()[-1])
            else:
                errors = looped(file, len(rows))
            took = time.perf_counter() - began
            apart = [error - row["error"] for error, row in zip(errors, rows, strict=True) if row["tested"]]
            spread = f"{fmean(apart):+.2f} ± {stdev(apart) / len(apart) ** 0.5:.2f}" if len(apart) > 1 else ""
            name = "plain Ray Tune, DataLoader" if side == "tune" else "shell loop, DataLoader"
            print(f"{name:<34}{len(rows):>10}{took:>9.0f}{took / seconds:>11.2f}{spread:>26}", flush=True)


if __name__ == "__main__":
    main()
