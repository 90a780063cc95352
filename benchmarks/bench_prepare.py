"""Does `python -m crelu_data prepare` keep all cores busy?

    python -m benchmarks.bench_prepare                       1,500 JPEGs of 500 x 375 pixels, stored at 256
    python -m benchmarks.bench_prepare --pictures 6000

A command is watched from outside, with all its processes and threads, twenty times a second. Reported are the cores
that it kept busy and those that it would have kept busy: beside the time on a core that in which it waited for one,
because other programs had it. The second figure is that of an idle machine, and is what a share of all cores is made
of. A part of the command ends where its progress names another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from benchmarks.turns import ROOT
from crelu_data.cores import cores

POLL = 0.05
Usage = dict[tuple[int, str], tuple[float, float]]  # by process and thread: seconds on a core, seconds waiting for one


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of smooth noise in four classes: about as many bytes a pixel as photographs have."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def usage(parent: psutil.Process, seen: Usage) -> None:
    """Take in the seconds of all threads of a process and of its children; those that have ended keep their last."""
    with suppress(psutil.Error):
        for process in (parent, *parent.children(recursive=True)):
            for file in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                with suppress(OSError):
                    ran, waited, _ = map(int, file.read_text().split())
                    seen[process.pid, file.parent.name] = ran / 1e9, waited / 1e9


def watch(writer: str, source: Path, where: Path) -> tuple[float, float, float]:
    """Prepare by a writer; return wall seconds, and those that all threads were on a core, and waited for one."""
    command = [sys.executable, "-m", "crelu_data", "prepare", f"folder:{source}", "--size", "256"]
    command += ["--writer", writer, "--data-dir", str(where)]
    seen: Usage = {}
    began = time.perf_counter()
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        usage(process, seen)
        time.sleep(POLL)
    wall = time.perf_counter() - began
    assert process.returncode == 0, process.stderr.read()
    ran, waited = (sum(column) for column in zip(*seen.values(), strict=True))
    return wall, ran, waited


def main() -> None:
    """Write the pictures, and watch each writer prepare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1500)
    options = parser.parse_args()
    print(f"{'writer':<10}{'wall, s':>10}{'cores busy':>12}{'and asked for':>15}{'of all':>9}   ({cores()} cores)")
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder, "originals"), options.pictures)
        for writer in ("ffcv", "native"):
            wall, ran, waited = watch(writer, Path(folder, "originals"), Path(folder, writer))
            busy, asked = ran / wall, (ran + waited) / wall
            print(f"{writer:<10}{wall:>10.1f}{busy:>12.2f}{asked:>15.2f}{asked / cores():>9.0%}", flush=True)


if __name__ == "__main__":
    main()
