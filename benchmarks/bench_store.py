"""Does the MLflow store keep up? The driver's own writer over a ledger on which many trials report, on two databases.

    python -m benchmarks.bench_store --trials 32 --seconds 60 --every 1 --drivers 1 4

Each server is the one of `python -m sweeps serve`, with its login, on SQLite and on a private PostgreSQL, in turn. A
driver is a process with a Tracker; its trials save a checkpoint with one more epoch of six metrics every so many
seconds and are marked, as the queue marks them; in the end each commits a result. The latency of an epoch is from its
own time stamp to the answer of the server that took it. In the end every history is read back and compared with the
ledger, point by point; what is lost or doubled is the exit code. Several drivers share the trials: a driver sends one
request at a time, so only they show what a store does with writers side by side.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from crelu_models.tables import S2
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from tests.support.postgres import Postgres, programs

ROOT = Path(__file__).resolve().parents[1]
CELLS = tuple(Cell(f"cell {i}", S2, "synthetic", dataclasses.replace(ALLCONV, lr=0.01 * (i + 1))) for i in range(4))
METRICS = ("train/loss", "train/top1_err", "val/loss", "val/top1_err", "lr", "sys/images_per_s")
DIGITS = (0, 0, 2, 2, 2, 2, 0, 0, 1, 1, 0, 0)  # of a row of the table
TICKS = os.sysconf("SC_CLK_TCK")


class Found(NamedTuple):
    """What one driver saw: epochs and points reported and taken, seconds of each epoch, of each request, to drain."""

    reported: int
    taken: int
    latencies: list[float]
    requests: list[float]
    drained: float
    lost: int
    doubled: int


def report(ledger: Ledger, trials: Sequence[Trial], tracker: Any, seconds: float, every: float) -> dict[str, Any]:
    """Let every trial report an epoch each `every` seconds, evenly spread, then finish; return their histories."""
    import torch

    from sweeps.store import checkpoint

    histories: dict[str, list[dict[str, float]]] = {trial.key: [] for trial in trials}
    began = time.time()
    tick = 0
    while (due := began + every * tick / len(trials)) < began + seconds:
        time.sleep(max(0.0, due - time.time()))
        trial = trials[tick % len(trials)]
        history = histories[trial.key]
        epoch = tick // len(trials) + 1
        row = {name: 1.0 / epoch + number for number, name in enumerate(METRICS)}
        history.append({"epoch": float(epoch), "time_ms": float(time.time_ns() // 1_000_000), **row})
        saved = checkpoint.Checkpoint({"w": torch.zeros(8)}, {"epoch": epoch, "history": history})
        checkpoint.save(ledger, trial.key, epoch, 0, saved)
        tracker.enqueue(trial)
        tick += 1
    for trial in trials:
        _finish(ledger, trial, histories[trial.key])
        tracker.enqueue(trial)
    return histories


def _finish(ledger: Ledger, trial: Trial, history: list[dict[str, float]]) -> None:
    """Commit a result as a trial does."""
    ledger.write(f"trials/{trial.key}/history.json", json.dumps(history).encode())
    ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json())
    ledger.commit(trial.key, {
        "key": trial.key, "cell_key": trial.cell.key, "status": "finished", "restarts": 0, "epochs": len(history),
        "metrics": {"final/test_top1_err": 9.0}, "finished_ms": time.time_ns() // 1_000_000, "fingerprint": "none",
        "code": "none", "precision": "fp32", "hardware": {}, "files": {"trial.json": ""},
    })  # fmt: skip


def drive(uri: str, name: str, trials: int, seconds: float, every: float) -> Found:
    """Be one driver: track so many trials for so long, then read everything back."""
    import mlflow

    from sweeps.tracking.mlflow_runs import MlflowRuns
    from sweeps.tracking.run_index import Store
    from sweeps.tracking.tracker import Tracker

    taken: list[tuple[float, int, int]] = []  # when, time stamp, step: of the leading metric
    requests: list[float] = []
    count = 0
    lock = threading.Lock()
    send = mlflow.MlflowClient.log_batch

    def timed(self: Any, run: str, metrics: Sequence[Any] = (), *rest: Any, **more: Any) -> Any:
        nonlocal count
        began = time.perf_counter()
        answer = send(self, run, metrics, *rest, **more)
        with lock:
            requests.append(time.perf_counter() - began)
            count += len(metrics)
            taken.extend((time.time(), point.timestamp, point.step) for point in metrics if point.key == METRICS[0])
        return answer

    mlflow.MlflowClient.log_batch = timed
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        sweep = Sweep(name, "demo", CELLS, Protocol(seeds=trials))
        driver_trials = [Trial(CELLS[number % len(CELLS)], seed=number // len(CELLS)) for number in range(trials)]
        store = Store(uri, name)
        MlflowRuns(store, ledger, sweep)  # the experiment is there, as it is when a sweep begins to train
        tracker = Tracker(store, ledger, sweep, lambda sentence: print(sentence, file=sys.stderr))
        tracker.register(driver_trials)
        histories = report(ledger, driver_trials, tracker, seconds, every)
        before = count
        ended = time.time()
        missing = tracker.close(300.0)
        drained = time.time() - ended
        assert not missing, f"{missing} trials are not tracked: {tracker.error}"
        lost, doubled = compare(MlflowRuns(store, ledger, sweep), histories)
    latencies = [when - stamp / 1000 for when, stamp, _ in taken]
    return Found(sum(map(len, histories.values())), before, latencies, requests, drained, lost, doubled)


def compare(projection: Any, histories: dict[str, Any]) -> tuple[int, int]:
    """Return how many points of the histories are not on the runs, and how many are there more than once."""
    jobs = [(key, name) for key in histories for name in METRICS]

    def read(job: tuple[str, str]) -> tuple[int, int]:
        key, name = job
        points = projection.client.get_metric_history(projection.runs[key], name)
        logged = [(point.step, point.timestamp, point.value) for point in points]
        wanted = {(int(row["epoch"]), int(row["time_ms"]), row[name]) for row in histories[key]}
        return len(wanted - set(logged)), len(logged) - len(set(logged) & wanted)

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(read, jobs))
    return sum(lost for lost, _ in counts), sum(doubled for _, doubled in counts)


@contextmanager
def serving(store: str, folder: Path, secret: str, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Start the server and give its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "sweeps", "serve", "--output", str(folder), "--store", store, "--port", str(port)]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                  env=environment | {"MLFLOW_AUTH_ADMIN_PASSWORD": secret})  # fmt: skip
    try:
        ends = time.monotonic() + 180
        while time.monotonic() < ends and server.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            time.sleep(0.2)
        else:
            raise SystemExit((folder / "server.log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def busy(pids: Sequence[int]) -> float:
    """Return the CPU seconds of processes and all their children, ended ones included."""
    total = 0.0
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / TICKS
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return total


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value that so large a part of them does not exceed."""
    return sorted(values)[min(len(values) - 1, math.ceil(part * len(values)) - 1)] if values else math.nan


def measured(address: str, pids: Sequence[int], name: str, drivers: int, options: Any, secret: str) -> list[float]:
    """Run so many drivers side by side; return a row of the table."""
    environment = os.environ | {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": secret}
    words = [sys.executable, "-m", "benchmarks.bench_store", "--trials", str(options.trials // drivers), "--seconds",
             str(options.seconds), "--every", str(options.every), "--uri", address]  # fmt: skip
    before = busy(pids)
    running = [
        subprocess.Popen([*words, "--name", f"{name}-{number}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for number in range(drivers)
    ]
    said = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running)
    outcomes = [Found(**json.loads(lines.splitlines()[-1])) for lines in said]  # MLflow prints of runs that end
    latencies = [value for outcome in outcomes for value in outcome.latencies]
    requests = [value for outcome in outcomes for value in outcome.requests]
    taken = sum(outcome.taken for outcome in outcomes)
    return [
        len(METRICS) * sum(outcome.reported for outcome in outcomes) / options.seconds, taken / options.seconds,
        *(quantile(latencies, part) for part in (0.5, 0.95, 0.99, 1.0)), 1000 * statistics.median(requests),
        1000 * quantile(requests, 0.99), max(outcome.drained for outcome in outcomes), busy(pids) - before,
        sum(outcome.lost for outcome in outcomes), sum(outcome.doubled for outcome in outcomes),
    ]  # fmt: skip


def main() -> int:
    """Measure both stores under each number of drivers, print one table; exit 1 where a point was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds of a trial's epoch")
    parser.add_argument("--drivers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.uri:
        print(json.dumps(drive(options.uri, options.name, options.trials, options.seconds, options.every)._asdict()))
        return 0
    bin = programs()
    if bin is None:
        print("PostgreSQL is not installed (apt-get install postgresql): SQLite alone is measured", file=sys.stderr)
    secret = secrets.token_hex(16)
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(bin)) if bin else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {}
        address, pid = stack.enter_context(serving(f"sqlite:///{folder}/mlflow.db", folder, secret, {**os.environ}))
        sides["SQLite"] = (address, [pid])
        if postgres is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            store = postgres.database("mlflow")
            address, pid = stack.enter_context(serving(store, folder, secret, postgres.environment))
            sides["PostgreSQL"] = (address, [pid, postgres.process])
        print(f"{options.trials} trials, an epoch of {len(METRICS)} metrics every {options.every:g} s for "
              f"{options.seconds:g} s")  # fmt: skip
        heads = ("drivers", "points/s", "taken/s", "lag p50", "p95", "p99", "max s", "request p50", "p99 ms", "drain s",
                 "CPU s", "lost", "doubled")  # fmt: skip
        print(f"{'':<10}" + "".join(f"{head:>{max(8, len(head) + 2)}}" for head in heads))
        wrong = 0.0
        for drivers in options.drivers:
            for name, (address, pids) in sides.items():
                row = measured(address, pids, f"{name}-{drivers}", drivers, options, secret)
                wrong += row[-1] + row[-2]
                shown = [f"{drivers}", *(f"{value:.{digits}f}" for value, digits in zip(row, DIGITS, strict=True))]
                cells = (f"{cell:>{max(8, len(head) + 2)}}" for cell, head in zip(shown, heads, strict=True))
                print(f"{name:<10}" + "".join(cells), flush=True)
        return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
