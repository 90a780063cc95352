"""How soon after the command does the first step come, and what does the driver spend on it?

    python -m benchmarks.bench_start                          the demo, from prepared pictures, three times
    python -m benchmarks.bench_start --against ../before      in turn with another checkout that has a .venv

Each side runs in a new output folder. Reported are the seconds until the sweep says that it starts Ray and that a trial
trains, until a worker begins its first trial (it writes trial.json then), until the first checkpoint (an epoch of the
demo), and the driver's processor seconds when the worker begins; medians, and their ratios where there are two sides.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import IO

import psutil

from benchmarks.turns import ROOT

PAGE = "sweeps.imagenet_placement"
EVENTS = ("starting Ray", ": training", "trial.json", "checkpoint", "driver, CPU-s")
PATTERNS = {"trial.json": "ledger/trials/*/trial.json", "checkpoint": "ledger/checkpoints/*/*.safetensors"}
POLL = 0.05


def listen(lines: IO[str], began: float, seen: dict[str, float]) -> None:
    """Note when a line says for the first time what an event is known by."""
    for line in lines:
        for event in EVENTS:
            if event in line:
                seen.setdefault(event, time.perf_counter() - began)


def start(root: Path, data: Path, output: Path) -> dict[str, float]:
    """Start the demo of a checkout, end it after its first checkpoint, and return the seconds until each event."""
    command = [f"{root}/.venv/bin/python", "-u", "-m", PAGE, "--profile", "demo"]
    command += ["--data-dir", str(data), "--output", str(output)]
    seen: dict[str, float] = {}
    began = time.perf_counter()
    process = psutil.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    listener = threading.Thread(target=listen, args=(process.stdout, began, seen), daemon=True)
    listener.start()
    while "checkpoint" not in seen and process.poll() is None:
        for event, pattern in PATTERNS.items():
            if event not in seen and next(output.glob(pattern), None):
                seen[event] = time.perf_counter() - began
                if event == "trial.json":
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        seen["driver, CPU-s"] = times.user + times.system
        time.sleep(POLL)
    with suppress(psutil.Error):
        process.send_signal(signal.SIGINT)
    process.wait()
    listener.join()
    missing = [event for event in EVENTS if event not in seen]
    assert not missing, f"the demo ended without {missing}"
    return seen


def main() -> None:
    """Prepare the pictures, start the sides in turn, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    options = parser.parse_args()
    sides = {"this": ROOT} | ({"the other": options.against.resolve()} if options.against else {})
    delays: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        start(ROOT, Path(folder, "data"), Path(folder, "first"))  # prepares the pictures
        for turn in range(options.rounds):
            for side, root in sides.items():
                delays[side].append(start(root, Path(folder, "data"), Path(folder, f"{side}{turn}")))
                print(
                    f"round {turn + 1}, {side}: " + ", ".join(f"{delays[side][-1][e]:.1f}" for e in EVENTS), flush=True
                )
    middle = {side: [median(run[event] for run in rounds) for event in EVENTS] for side, rounds in delays.items()}
    print(f"{'':<14}" + "".join(f"{event.lstrip(': '):>15}" for event in EVENTS))
    for side, values in middle.items():
        print(f"{side:<14}" + "".join(f"{value:>15.1f}" for value in values))
    if options.against:
        ratios = zip(middle["this"], middle["the other"], strict=True)
        print(f"{'ratio':<14}" + "".join(f"{mine / its:>15.2f}" for mine, its in ratios))


if __name__ == "__main__":
    main()
