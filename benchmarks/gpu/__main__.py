"""What does this GPU give? Bits, steps, activations, packs, pictures, a whole trial and tests, in one table.

    python -m benchmarks.gpu                          all, within eight minutes
    python -m benchmarks.gpu --sections step pack     some of it
    python -m benchmarks.gpu --json gpu.json          the same numbers as JSON

Without a GPU it says so and ends with 0. It needs torch, NumPy, Numba, PyArrow and safetensors; pytest, FFCV and
simplejpeg are used where they are. "roof" is the rate of matrix products in bf16, "copy" that of a copy on the device.
What fails has a line that says why, and the rest goes on. A section that would begin after --seconds is left out, and
70 s later all ends. The file of --json has each row as soon as it is printed. A figure with a target, on an H100 or
H200, has it beside it, and whether it was met.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.bench import ROOT, TINY, Bench, free, section_line, versions
from benchmarks.gpu.kernels import activations
from benchmarks.gpu.packs import pack, serve
from benchmarks.gpu.steps import compiled, profile, roof, step
from benchmarks.gpu.streams import pictures, stream
from benchmarks.gpu.trials import exact, trial

LAST = 70.0  # seconds that the last section has
GRACE = 10.0  # seconds of these to say how the tests went


def tests(bench: Bench) -> None:
    """Run the tests that need a GPU."""
    if importlib.util.find_spec("pytest") is None:
        bench.say("tests", "marked gpu", result="left out: pytest is not installed")
        return
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider",
               "--continue-on-collection-errors", "-W", "ignore::pytest.PytestConfigWarning", *files]  # fmt: skip
    seconds = max(1.0, bench.ends - GRACE - time.perf_counter())
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=seconds)
        said, end = done.stdout.strip() or done.stderr.strip(), ""
    except subprocess.TimeoutExpired as late:
        said, end = late.stdout or b"", f" ended after {seconds:.0f} s"
    lines = said.decode().splitlines() or ["nothing said"]
    bench.say("tests", "marked gpu", result=lines[-1] + end)
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            bench.say("tests", "failed", result=line)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "roof": roof, "exact": exact, "step": step, "profile": profile, "activations": activations, "pack": pack,
    "pictures": pictures, "stream": stream, "trial": trial, "tests": tests, "compiled": compiled,
}  # fmt: skip


def measure(bench: Bench, sections: Sequence[str], seconds: float) -> None:
    """Run sections one after another until the time is over."""
    began = time.perf_counter()
    for name in sections:
        if time.perf_counter() - began > seconds:
            bench.say(name, "left out", result=f"{seconds:g} s are over")
            continue
        start = time.perf_counter()
        with section_line(bench, name, "section"):
            SECTIONS[name](bench)
            free(bench)  # after an error of the device this fails too
        print(f"{'':<12}[{name}: {time.perf_counter() - start:.0f} s]", flush=True)


def main() -> int:
    """Measure all, or some; or be one of several processes."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__, formatter_class=form)
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, metavar="SECTION", default=list(SECTIONS), help=", ".join(SECTIONS)
    )
    parser.add_argument("--seconds", type=float, default=400.0, help="no section begins later (default 400)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows as JSON")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return 0
    torch.backends.cudnn.deterministic = True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device(options.device), Path(folder))
        if options.tiny:
            torch.set_num_threads(1)
            small = tuple((name, (2, 4, 8, 8)) for name in ("crelu", "bias crelu", "max pool 3/2", "relu dropout"))
            sizes = {"families": TINY, "packs": (1,), "window": 0.01,
                     "streamed": (("VGG", 1), ("VGG", 2)), "jpeg_side": 72}  # fmt: skip
            bench = dataclasses.replace(bench, **sizes, activations=small, steps=6, pictures=200, members=2, kills=0)
            bench.trial_pictures, bench.stream_steps = bench.pictures, 4
        if options.serve:
            serve(bench, options.serve)
            return 0
        bench.file = options.json
        bench.ends = bench.began + options.seconds + LAST
        faulthandler.dump_traceback_later(bench.ends - time.perf_counter(), exit=True)
        if "roof" not in options.sections:
            with section_line(bench, "roof", "section"):
                roof(bench)
        measure(bench, options.sections, options.seconds)
        faulthandler.cancel_dump_traceback_later()
    print("  ".join(f"{name} {value}" for name, value in versions().items()))
    bench.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
