"""What does growth cost? Declared cells, trials in the queue, workers at once, pictures in a file, ranks of a trial.

    python -m benchmarks.bench_scale                 every part, minutes
    python -m benchmarks.bench_scale --record        the same, its table appended to benchmarks/RESULTS.md
    python -m benchmarks.bench_scale --only cells pictures

Each line grows one number and says the cost of one of it, and that over the cost at the smallest size: 1 is a cost
that does not grow. Of workers and ranks the ratio is throughput over that of one. Each size has a process of its own,
whose memory at its peak is the last column; workers and ranks have theirs beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from crelu_models.tables import S2
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell
from sweeps.store.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
CELL = Cell("Baseline", S2, "synthetic", dataclasses.replace(ALLCONV, epochs=1))


def cells(count: int) -> float:
    """Return the seconds to declare a sweep of so many cells, plan it over a ledger with half of it done, and tell."""
    recipes = [dataclasses.replace(ALLCONV, lr=0.001 * (number + 1)) for number in range(count)]
    made = tuple(dataclasses.replace(CELL, label=f"{recipe.lr:g}", recipe=recipe) for recipe in recipes)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        began = time.perf_counter()
        sweep = Sweep("large", "paper", made, Protocol(seeds=2))
        first = plan(sweep, ledger, {})
        seconds = time.perf_counter() - began
        for standing in first.statuses[::2]:
            ledger.commit(standing.trial.key, {"key": standing.trial.key, "metrics": {}, "code": ""})
        began = time.perf_counter()
        second = plan(sweep, ledger, {})
        ledger.write_json("plans/large.json", plan_to_json(second))
        assert (len(first.to_do), len(second.to_do)) == (2 * count, count)
        return seconds + time.perf_counter() - began


def trials(count: int) -> float:
    """Return the seconds of so many trials that train nothing, by the pace of the last half, when all workers run."""
    ends = [when for when, _ in _session(count, 2, "benchmarks.trivial:at_once", count)]
    assert len(ends) == count
    return (ends[-1] - ends[count // 2]) / (count - 1 - count // 2) * count


def workers(count: int) -> float:
    """Return the seconds a trial, of trials that wait, once so many workers have each had one."""
    ends = _session(10_000, count, "benchmarks.trivial:wait", 6 * count)
    seen: set[str] = set()
    for number, (_, worker) in enumerate(ends):
        seen.add(worker)
        if len(seen) == count:
            return (ends[-1][0] - ends[number][0]) / (len(ends) - 1 - number)
    raise AssertionError(f"{len(seen)} of {count} workers had a trial")


def _session(count: int, at_once: int, work: str, enough: int) -> list[tuple[float, str]]:
    """Run so many trials, until `enough` are done since all workers are there; return when each was done, and where."""
    from sweeps.execution import ray_runtime, tuner
    from sweeps.execution.resources import TrialResources
    from sweeps.execution.session import DriverState
    from sweeps.training.runtime import RuntimeConfig

    ends: list[tuple[float, str]] = []
    seen: dict[str, int] = {}

    def listen(event: str, trial: Any, news: dict[str, Any]) -> None:
        if event == "done":
            seen.setdefault(news["hardware"]["worker"], len(ends))
            ends.append((time.perf_counter(), news["hardware"]["worker"]))
            if len(seen) == at_once and len(ends) >= max(seen.values()) + enough:
                session.stop()

    ray_runtime.init_ray("local", cpus=at_once)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"{folder}/ledger")
        sweep = Sweep("scale", "smoke", (CELL,), Protocol(seeds=count))
        place = RuntimeConfig(ledger.root, folder)
        session = DriverState(
            sweep, ledger, place, TrialResources(max_concurrent=at_once), listen, "scale", {}, work=work
        )
        tuner.run_trials(session)
    return ends


def pictures(count: int) -> float:
    """Return the seconds to open a file of so many 32-pixel pictures and read them once, in a drawn order."""
    import numpy as np

    from crelu_data.datasets import beton_path, order
    from crelu_data.load import open_pictures
    from crelu_data.write import prepare

    name = f"synthetic:size=32,classes=10,train={count},test=10"
    with tempfile.TemporaryDirectory() as folder:
        prepare(name, Path(folder))
        began = time.perf_counter()
        with open_pictures(beton_path(name, "train", Path(folder)), reader="threads", workers=1, resident_bytes=0) as p:
            seen = sum(len(batch.labels) for batch in p.batches(order(0, 0, np.arange(count, dtype=np.int64)), 128))
        assert seen == count
        return time.perf_counter() - began


def ranks(count: int) -> float:
    """Return the seconds an epoch of the CIFAR baseline at a quarter of its width, by so many ranks of one thread."""
    from crelu_data.write import prepare
    from sweeps.execution import rank_processes
    from sweeps.training.runtime import RuntimeConfig

    name = "synthetic:size=32,classes=10,train=2048,test=10"
    recipe = dataclasses.replace(ALLCONV, epochs=4, precision="fp32")
    cell = Cell("Baseline", S2.width(0.25), name, recipe)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(name, Path(folder))
        place = RuntimeConfig(f"{folder}/ledger", folder, reader="threads", ranks=count)
        trial = plan(Sweep("ranks", "smoke", (cell,), Protocol()), Ledger(place.ledger), {}).to_do[0]
        try:
            rank_processes.run_trial(trial, place, lambda epoch, row: ends.append(time.perf_counter()))
        finally:
            rank_processes.shutdown_ranks()
    return (ends[-1] - ends[0]) / (len(ends) - 1)


class Part(NamedTuple):
    """One line of growth: what is measured, at which sizes, and whether more of it is to be faster."""

    measure: Callable[[int], float]
    sizes: tuple[int, ...]
    what: str
    faster: bool = False


PARTS = {
    "cells": Part(cells, (50, 500, 5000), "a cell of 2 trials, planned twice"),
    "trials": Part(trials, (125, 500, 2000), "a trial in the queue"),
    "workers": Part(workers, (1, 2, 4), "a trial that waits a second", True),
    "pictures": Part(pictures, (1000, 10_000, 100_000), "a picture read"),
    "ranks": Part(ranks, (1, 2), "an epoch of 2,048 pictures", True),
}


def measured(part: str, size: int, rounds: int) -> tuple[float, float]:
    """Return the median seconds of a size, and the MiB at its peak, each round in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_scale", "--part", part, "--size", str(size)]
    samples = []
    for _ in range(rounds):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        samples.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return statistics.median(sample[0] for sample in samples), max(sample[1] for sample in samples)


def lines(name: str, part: Part, rounds: int) -> list[str]:
    """Measure a part and return its rows."""
    rows = []
    base = 0.0
    for size in part.sizes:
        seconds, memory = measured(name, size, rounds)
        each = seconds if part.faster else seconds / size
        base = base or each
        ratio = base / each if part.faster else each / base
        cost = f"{each:.3f} s" if each >= 0.1 else f"{1e3 * each:.3f} ms"
        rows.append(
            f"| {name} | {size:,} | {part.what} | {cost} | {ratio:.2f}{' ×' if part.faster else ''} | {memory:.0f} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure each size in a process of its own, print one table, and record it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        seconds = PARTS[options.part].measure(options.size)
        print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
        return
    table = ["| what grows | to | of one | costs | ratio | MiB |", "|---|---:|---|---:|---:|---:|"]
    print("\n".join(table), flush=True)
    for name in options.only:
        table += lines(name, PARTS[name], options.rounds)
    print(hardware())
    if options.record:
        command = f"benchmarks.bench_scale{f' --rounds {options.rounds}' if options.rounds > 1 else ''}"
        with open(ROOT / "benchmarks" / "RESULTS.md", "a") as file:
            file.write(f"\n## Growth (`{command}`)\n\n" + "\n".join(table) + f"\n\n{hardware()}.\n")


def hardware() -> str:
    """Return what this was measured on."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray"))
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return f"{time.strftime('%Y-%m-%d')}, {machine}, Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
