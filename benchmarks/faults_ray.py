"""Does a sweep go on when a process of Ray dies under it?

    python -m benchmarks.faults_ray --times 3

A small sweep with searches and folds runs once undisturbed. Then it runs once for each of Ray's processes, which gets
SIGKILL while trials train. The table says how many seconds went by until the driver said so, the exit code, and
whether weights, curves and scores of every trial are the undisturbed sweep's, bit by bit. A Ray of one machine leaves
out monitor, log monitor and dashboard; those are killed in a `ray start --head` that the sweep joins (--cluster).

    python -m benchmarks.faults_ray --processes raylet gcs_server --interrupt
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.chaos import Stage, outcome

# How the processes are known by their command lines.
LOCAL = {
    "gcs_server": r"/gcs/gcs_server ",
    "raylet": r"/raylet/raylet ",
    "dashboard agent": r"^ray::DashboardAgent|dashboard/agent\.py",
    "runtime env agent": r"^ray::RuntimeEnvAgent|runtime_env/agent/main\.py",
    "training worker": r"^ray::(?!IDLE|DashboardAgent|RuntimeEnvAgent)\S*[tT]rain",
    "idle worker": r"^ray::IDLE",
}
CLUSTER = {
    "monitor": r"autoscaler/\S*monitor\.py",
    "log monitor": r"log_monitor\.py|^ray::LogMonitor",
    "dashboard": r"dashboard/dashboard\.py|^ray::Dashboard(?!Agent)",
    "client server": r"ray\.util\.client\.server",
}
SAID = re.compile(r"Ray.* (died|ended)|worker.* died")
ABSENT = "no such process while trials train"
PATIENCE = 600.0  # seconds after which a sweep counts as stuck


@dataclass(frozen=True)
class FaultRun:
    """Run of one sweep under a fault; `said` and `ended` are seconds after it."""

    process: str
    done_before: int
    said: float | None
    sentence: str
    ended: float | None
    code: int | None
    same: bool

    @property
    def good(self) -> bool:
        """Return whether nothing was lost, and the driver spoke in time where it had to."""
        if self.sentence == ABSENT:
            return True
        return self.code == 0 and self.same and (self.said is None or self.said <= 30)

    def line(self) -> str:
        """Return a row of the table."""
        said = "-" if self.said is None else f"{self.said:.1f} s"
        if self.sentence == ABSENT:
            return f"{self.process:<18} {ABSENT}"
        ended = "stuck" if self.ended is None else f"{self.ended:.1f} s"
        return (
            f"{self.process:<18} {self.done_before:>4} {said:>8} {ended:>8} {self.code!s:>5} "
            f"{'same' if self.same else 'OTHER':>6}  {self.sentence}"
        )


HEADER = f"{'killed':<18} {'done':>4} {'said':>8} {'ended':>8} {'exit':>5} {'bytes':>6}  what the driver said"


class RayHead:
    """Ray of one machine as `ray start --head` gives it: in a folder, a port and a process group of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        """Start it, and wait until it says so."""
        self.address = f"127.0.0.1:{port}"
        words = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}",
            "--node-ip-address=127.0.0.1", "--num-cpus=2",
            f"--temp-dir={folder}", f"--dashboard-port={port + 1}", f"--ray-client-server-port={port + 2}",
            "--disable-usage-stats",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if "Ray runtime started" in line:
                return
        raise RuntimeError(f"ray start failed: {said}")

    def close(self) -> None:
        """End it with all its processes."""
        family = [*psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def victims(root: int, pattern: str) -> list[int]:
    """Return the processes below `root` whose command line has this pattern."""
    matching = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if re.search(pattern, " ".join(process.cmdline())):
                    matching.append(process.pid)
    return matching


def disturbed(
    stage: Stage, name: str, pattern: str, results: int, expected: dict[str, str], head: RayHead | None, interrupt: bool
) -> FaultRun:
    """Run a sweep, kill a process once so many results are there, and return what came of it."""
    log = stage.folder / "driver.log"
    stage.start()
    assert stage.driver is not None
    root = stage.driver.pid if head is None else head.process.pid
    began = time.monotonic()
    pids: list[int] = []
    while not pids and stage.driver.poll() is None and time.monotonic() < began + PATIENCE:
        if len(stage.ledger.names("results")) >= results and stage.ledger.folders("checkpoints"):
            pids = victims(root, pattern)
        time.sleep(0.05)
    if not pids:
        return FaultRun(name, len(stage.ledger.names("results")), None, ABSENT, None, None, False)
    read = log.stat().st_size
    done_before = len(stage.ledger.names("results"))
    os.kill(pids[0], signal.SIGKILL)
    struck = time.monotonic()
    if interrupt:
        time.sleep(1)
        stage.driver.send_signal(signal.SIGINT)
    said = None
    sentence = ""
    while stage.driver.poll() is None and time.monotonic() < struck + PATIENCE:
        text = log.read_bytes()[read:].decode(errors="replace")
        if said is None and (match := next((line for line in text.splitlines() if SAID.search(line)), None)):
            said = time.monotonic() - struck
            sentence = match
        time.sleep(0.05)
    ended = time.monotonic() - struck if stage.driver.poll() is not None else None
    code = stage.driver.poll()
    if interrupt and code == 130:
        stage.start()
        code = stage.driver.wait(PATIENCE)
    is_same = ended is not None and outcome(stage.ledger) == expected
    return FaultRun(name, done_before, said, sentence, ended, code, is_same)


def main() -> int:
    """Print the table and return the number of bad rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="sweeps a process, each killed at another point")
    parser.add_argument("--processes", nargs="+", choices=[*LOCAL, *CLUSTER], default=[*LOCAL, *CLUSTER])
    parser.add_argument("--sweep", default="imagenet_placement")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--interrupt", action="store_true", help="send SIGINT a second later; then run it to its end")
    parser.add_argument("--keep", action="store_true", help="keep the folder, for a look")
    options = parser.parse_args()
    words = ["--smoke-test", "--set", f"recipe.epochs={options.epochs}", "--pack", "off"]
    command = [sys.executable, "-m", f"sweeps.{options.sweep}", *words]
    # A driver that joins sends a token only where it is told to; the first sweep makes one where there is none.
    os.environ["RAY_AUTH_MODE"] = "token"
    base = Path(tempfile.mkdtemp(prefix="faults-"))
    (base / "calm").mkdir()
    calm = Stage(base / "calm", command, server=False)
    try:
        calm.finish(PATIENCE)
        expected = outcome(calm.ledger)
    finally:
        calm.close()
    print(f"undisturbed: {len(expected)} trials\n{HEADER}", flush=True)
    bad = 0
    for time_ in range(options.times):
        for name in options.processes:
            folder = base / f"{name.replace(' ', '-')}-{time_}"
            folder.mkdir()
            head = RayHead(folder / "r", 20000 + os.getpid() % 10000) if name in CLUSTER else None
            address = ["--address", head.address] if head else []
            stage = Stage(folder, [*command, *address], server=False)
            try:
                pattern = (LOCAL | CLUSTER)[name]
                results = time_ * len(expected) // options.times
                row = disturbed(stage, name, pattern, results, expected, head, options.interrupt)
            finally:
                stage.close()
                if head:
                    head.close()
            print(row.line(), flush=True)
            bad += not row.good
    print(f"bad: {bad}")
    if not (options.keep or bad):
        shutil.rmtree(base, ignore_errors=True)
    else:
        print(base)
    return min(bad, 100)


if __name__ == "__main__":
    sys.exit(main())
