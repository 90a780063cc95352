"""What does the queue itself cost? Trivial trials through ours and through plain Ray Tune, and a plan of 10,000 cells.

    python -m benchmarks.bench_overhead --trials 2000 --peer 200

Plain Tune starts a process a trial, as its documentation does; `peer` says how many, since each takes seconds. Both
trainers import torch, as any trainer does. The growth is the time of our last tenth of trials over that of the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from crelu_models.tables import S2
from sweeps.experiment.plan import plan
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell
from sweeps.store.ledger import Ledger

CELL = Cell("Baseline", S2, "synthetic", dataclasses.replace(ALLCONV, epochs=1))


def ours(trials: int, folder: str) -> dict[str, float]:
    """Run so many trivial trials through the queue; return seconds a trial, and the growth from first to last tenth."""
    from sweeps.execution import ray_runtime, tuner
    from sweeps.execution.resources import TrialResources
    from sweeps.execution.session import DriverState
    from sweeps.training.runtime import RuntimeConfig

    ends: list[float] = []

    def listen(event: str, trial: Any, news: dict[str, Any]) -> None:
        if event == "done":
            ends.append(time.perf_counter())

    ray_runtime.init_ray("local")
    ledger = Ledger(f"{folder}/ledger")
    session = DriverState(
        Sweep("overhead", "smoke", (CELL,), Protocol(seeds=trials)),
        ledger,
        RuntimeConfig(ledger.root, folder),
        TrialResources(),
        listen,
        "overhead",
        {},
        work="benchmarks.trivial:at_once",
    )
    began = time.perf_counter()
    tuner.run_trials(session)
    total = time.perf_counter() - began
    assert len(ledger.results()) == trials
    tenth = max(2, trials // 10)
    first, last = ends[tenth] - ends[0], ends[-1] - ends[-1 - tenth]
    return {"per_trial": total / trials, "growth": last / first}


def peer(trials: int) -> dict[str, float]:
    """Run as many through plain Ray Tune's grid search, a process a trial."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import logging

    import ray
    from ray import tune

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)

    def train(config: dict[str, Any]) -> None:
        import torch  # noqa: F401

        tune.report({"error": 50.0})

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tune.Tuner(
            train,
            param_space={"seed": tune.grid_search(list(range(trials)))},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        return {"per_trial": (time.perf_counter() - began) / trials}


def declared(cells: int) -> float:
    """Return the seconds of a plan over so many trials on a ledger that holds the results of a tenth of them."""
    sweep = Sweep("large", "paper", tuple(dataclasses.replace(CELL, label=f"{i}", recipe=dataclasses.replace(
        ALLCONV, lr=0.001 * (i + 1))) for i in range(cells // 10)), Protocol(seeds=10))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        began = time.perf_counter()
        assert len(plan(sweep, ledger, {}).to_do) == cells
        return time.perf_counter() - began


def main() -> None:
    """Measure each side in a process of its own, in turn, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--peer", type=int, default=40)
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "ours":
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(ours(options.trials, folder)))
        return
    if options.side == "peer":
        print("\n" + json.dumps(peer(options.peer)))
        return
    costs = {}
    for side in ("ours", "peer"):
        command = [sys.executable, "-m", "benchmarks.bench_overhead", "--side", side, "--trials", str(options.trials),
                   "--peer", str(options.peer)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
        assert done.returncode == 0, done.stderr
        costs[side] = json.loads(done.stdout.strip().splitlines()[-1])
    mine, theirs = costs["ours"]["per_trial"], costs["peer"]["per_trial"]
    print(f"{'':<22}{'trials':>8}{'s a trial':>12}{'ratio':>8}")
    print(f"{'plain Ray Tune':<22}{options.peer:>8}{theirs:>12.3f}{1:>8.2f}")
    print(f"{'our queue':<22}{options.trials:>8}{mine:>12.3f}{mine / theirs:>8.3f}")
    print(f"last tenth of our trials over the first: {costs['ours']['growth']:.2f}")
    print(f"plan of 10,000 declared trials: {declared(10_000):.2f} s")


if __name__ == "__main__":
    main()
