"""What does safety cost? Checkpoints, journal and hashing; and a tracking server that is slow or ill.

    python -m benchmarks.bench_safety --epochs 3 --rounds 3

First trials of the demo sweep (the largest net and the smallest) are trained with and without writing their state:
checkpoint with its hash and fsync after each epoch. Then a small sweep runs with MLflow in a local SQLite, with a
server that takes a second for every answer, and with one that answers with errors; what is compared is the time its
trials took. All sides take turns in one run; ratios are of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.server
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from data.datasets import data_dir
from data.write import prepare
from sweeps.course import Course
from sweeps.imagenet_placement import CELLS
from sweeps.ledger import Ledger
from sweeps.perform import perform
from sweeps.profile import scaled
from sweeps.sets import Place
from sweeps.trial import Trial


def trained(label: str, epochs: int, safe: bool) -> float:
    """Return the seconds of one training of the demo sweep's cell `label`, with or without its checkpoints."""
    cell = next(scaled(cell, "demo") for cell in CELLS if cell.label == label)
    cell = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, epochs=epochs))
    where, whole = data_dir(None), Course.save
    prepare(cell.dataset, where)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        try:
            if not safe:
                Course.save = lambda _: True  # type: ignore[method-assign]
            began = time.perf_counter()
            perform(Trial(cell), Place(str(Path(folder).absolute()), str(where)), lambda *_: None)
            return time.perf_counter() - began
        finally:
            Course.save = whole  # type: ignore[method-assign]


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


def swept(epochs: int, tracking: Callable[[], contextlib.AbstractContextManager[str]]) -> float:
    """Return the seconds that the trials of a small sweep took, tracked at the address that `tracking` yields."""
    with tempfile.TemporaryDirectory() as folder, tracking() as uri:
        command = [sys.executable, "-m", "sweeps.imagenet_placement", "--smoke-test", "--seeds", "2"]
        settings = ["--set", f"recipe.epochs={epochs}", "--output", folder, *(["--tracking-uri", uri] if uri else [])]
        subprocess.run([*command, *settings], capture_output=True, check=False)
        results = Ledger(f"{folder}/ledger").results().values()
        assert len(results) == 4
        return sum(result["seconds"] for result in results)


def table(title: str, sides: dict[str, Callable[[], float]], rounds: int) -> None:
    """Let the sides take turns, the first once more to begin with, and print their medians over the first's."""
    next(iter(sides.values()))()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    base = median(next(iter(found.values())))
    print(f"{title:<42}{'median s':>10}{'least':>8}{'most':>8}{'over first':>12}")
    for name, seconds in found.items():
        ratio = median(seconds) / base - 1
        print(
            f"  {name:<40}{median(seconds):>10.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}{ratio:>+12.1%}", flush=True
        )


def main() -> None:
    """Measure and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweep-epochs", type=int, default=60)
    options = parser.parse_args()
    for label in ("CReLU all", "CReLU conv1-9"):
        table(
            f"one trial: {label}",
            {
                "nothing kept": lambda label=label: trained(label, options.epochs, False),
                "checkpoint, hash and fsync each epoch": lambda label=label: trained(label, options.epochs, True),
            },
            options.rounds,
        )
    table(
        "trials of a sweep",
        {
            "MLflow in SQLite": lambda: swept(options.sweep_epochs, lambda: contextlib.nullcontext("")),
            "a server that answers errors": lambda: swept(options.sweep_epochs, lambda: serving(0.0)),
            "a server that takes a second for each": lambda: swept(options.sweep_epochs, lambda: serving(1.0)),
        },
        options.rounds,
    )


if __name__ == "__main__":
    main()
