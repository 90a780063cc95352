"""What does safety cost? Checkpoints, journal and hashing; and a tracking server that is slow or ill.

    python -m benchmarks.bench_safety --rounds 3

First the nine trials of the demo sweep run through the queue with and without writing their state: checkpoints with
their hash and fsync, as often as they are due; what went into saving is clocked in the trials as well, since two sweeps
beside other work differ by more than that. Then a small sweep runs with MLflow in a local SQLite, with a server that
takes a second for every answer, and with one that answers with errors; what is compared is the time its trials took,
and the driver's own work, which is what could slow them, and varies less. All sides take turns in one run; ratios are
of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from crelu_data.datasets import data_dir, dataset
from crelu_data.write import prepare
from sweeps.experiment.profiles import scaled
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.imagenet_placement import CELLS
from sweeps.store.ledger import Ledger
from sweeps.training.run_trial import run_trial
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.trainer import Report, Trainer


def clocked(trial: Trial, place: RuntimeConfig, report: Report, stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Perform a trial as ever, and leave on the ledger the seconds that went into its checkpoints."""
    original = Trainer.save
    spent = 0.0

    def save(trainer: Trainer) -> bool:
        nonlocal spent
        began = time.perf_counter()
        saved = original(trainer)
        spent += time.perf_counter() - began
        return saved

    Trainer.save = save  # type: ignore[method-assign]
    try:
        return run_trial(trial, place, report, stop)
    finally:
        Trainer.save = original  # type: ignore[method-assign]
        Ledger(place.ledger).write_json(f"saving/{trial.key}.json", {"seconds": spent})


def unsaved(trial: Trial, place: RuntimeConfig, report: Report, stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Perform a trial that keeps nothing until its end."""
    original = Trainer.save
    Trainer.save = lambda _: True  # type: ignore[method-assign]
    try:
        return run_trial(trial, place, report, stop)
    finally:
        Trainer.save = original  # type: ignore[method-assign]


def driven(work: str) -> tuple[float, float]:
    """Drive the demo sweep's trials through the queue; return its wall time, and the share of theirs in saving."""
    from sweeps.execution import tuner

    cells = tuple(scaled(cell, "demo") for cell in CELLS)
    sweep = Sweep("safety", "demo", cells, Protocol())
    where = data_dir(None)
    facts = {name: dataset(name, where) for name in sweep.datasets}
    shapes = {name: (fact.classes, fact.crop) for name, fact in facts.items()}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        ledger = Ledger(str(Path(folder).absolute()))
        place = RuntimeConfig(ledger.root, str(where))
        listen: Any = lambda *_: None  # noqa: E731
        session = tuner.DriverState(
            sweep,
            ledger,
            place,
            tuner.TrialResources(),
            listen,
            "safety",
            {},
            shapes,
            work=f"benchmarks.bench_safety:{work}",
        )
        began = time.perf_counter()
        tuner.run_trials(session)
        seconds = time.perf_counter() - began
        results = ledger.results().values()
        assert len(results) == len(cells)
        saving = sum(ledger.read_json(f"saving/{name}")["seconds"] for name in ledger.names("saving"))
        return seconds, saving / sum(result["seconds"] for result in results)


class Ill(http.server.BaseHTTPRequestHandler):
    """A tracking server that answers with an error, at once or after a second."""

    delay = 0.0

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.delay)
        with contextlib.suppress(OSError):
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_GET = do_POST = do_PUT = do_PATCH = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(delay: float) -> Iterator[str]:
    """Serve errors after `delay` seconds on a free port, and yield the address."""
    handler = type("Handler", (Ill,), {"delay": delay})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def swept(epochs: int, tracking: Callable[[], contextlib.AbstractContextManager[str]], worked: list[float]) -> float:
    """Return the seconds that the trials of a small sweep took, tracked at the address that `tracking` yields.

    The driver's own CPU seconds are added to `worked`.
    """
    with tempfile.TemporaryDirectory() as folder, tracking() as uri:
        command = [sys.executable, "-m", "sweeps.imagenet_placement", "--smoke-test", "--seeds", "2"]
        settings = ["--set", f"recipe.epochs={epochs}", "--output", folder, *(["--tracking-uri", uri] if uri else [])]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, *settings], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        results = Ledger(f"{folder}/ledger").results().values()
        assert len(results) == 4
        return sum(result["seconds"] for result in results)


def table(title: str, sides: dict[str, Callable[[], float]], rounds: int) -> None:
    """Let the sides take turns, the first once more to begin with, and print their medians over the first's."""
    next(iter(sides.values()))()
    durations: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            durations[name].append(sides[name]())
    base = median(next(iter(durations.values())))
    print(f"{title:<42}{'median s':>10}{'least':>8}{'most':>8}{'over first':>12}")
    for name, seconds in durations.items():
        ratio = median(seconds) / base - 1
        print(
            f"  {name:<40}{median(seconds):>10.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}{ratio:>+12.1%}", flush=True
        )


def main() -> None:
    """Measure and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweep-epochs", type=int, default=60)
    options = parser.parse_args()
    from sweeps.execution import ray_runtime

    for name in {scaled(cell, "demo").dataset for cell in CELLS}:
        prepare(name, data_dir(None))
    ray_runtime.init_ray("local")
    shares: list[float] = []

    def safe() -> float:
        seconds, share = driven("clocked")
        shares.append(share)
        return seconds

    sides = {"nothing kept": lambda: driven("unsaved")[0], "checkpoints, hashes and fsync": safe}
    table("the demo sweep, from its first trial to its last", sides, options.rounds)
    print(f"  {'of the time of its trials, in saving':<40}{median(shares):>38.1%}", flush=True)
    ray_runtime.shutdown_ray()
    stores: dict[str, Callable[[], contextlib.AbstractContextManager[str]]] = {
        "MLflow in SQLite": lambda: contextlib.nullcontext(""),
        "a server that answers errors": lambda: serving(0.0),
        "a server that takes a second for each": lambda: serving(1.0),
    }
    worked: dict[str, list[float]] = {name: [] for name in stores}
    epochs = options.sweep_epochs
    table(
        "trials of a sweep",
        {name: lambda name=name: swept(epochs, stores[name], worked[name]) for name in stores},  # type: ignore[misc]
        options.rounds,
    )
    print("the driver's own CPU seconds: " + ", ".join(f"{median(times):.1f}" for times in worked.values()))


if __name__ == "__main__":
    main()
