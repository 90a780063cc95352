"""Does a sweep under faults end with the very table of one left alone?

    python -m benchmarks.chaos --rounds 20 --seed 0

A small sweep with searches, folds and a real MLflow server runs once undisturbed, and once while every few seconds a
fault is drawn: the driver, a worker or the MLflow server killed (SIGKILL), the driver told to stop (SIGTERM, SIGINT),
a worker paused, a checkpoint or a file of the ledger damaged, the ledger's disk filled (a small tmpfs, as root).
Whatever has ended is started again by the same command. In the end the tables, every trial's weights, curves and
scores (and so every study's points, which are in the trials' keys) are compared with the undisturbed sweep's, and the
runs in MLflow with the ledger, metric by metric; losses are printed, and are the exit code.

    python -m benchmarks.chaos --rounds 5 --faults "kill driver" --scale demo --pause 60 180

Of a sweep until decided the answers to its questions are compared too, look by look:

    python -m benchmarks.chaos --rounds 3 --faults "kill driver" --scale demo --pause 30 60 \\
        --sweep benchmarks.decided --words "--search-trials 0 --folds 6 --until-decided 6"
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sweeps.report.question_tables import text_lines
from sweeps.results.answers import Answers, answers
from sweeps.results.evidence import read_sweep, titles
from sweeps.store.ledger import Ledger
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ("kill driver", "kill worker", "kill server", "terminate driver", "interrupt driver", "pause worker",
          "damage checkpoint", "damage file", "fill disk")  # fmt: skip
PATIENCE = {"smoke": 900.0, "demo": 3600.0}  # seconds after which the sweep counts as stuck
# Folders in which a file is damaged.
DAMAGED = ("packs", "paused", "plans", "prices", "results", "tracked")
PER_EPOCH = ("train", "val", "probe", "lr", "sys")
SCALES = {"smoke": ["--smoke-test"], "demo": ["--profile", "demo"]}


class Stage:
    """One sweep with its own output folder and MLflow server, both started again whenever they are gone."""

    def __init__(self, folder: Path, command: list[str], server: bool, output: str = "") -> None:
        """Prepare; nothing runs yet. The output lies in the folder, or at another place or URI."""
        self.folder = folder
        self.server_wanted = server
        self.port = free_port()
        self.output = output or str(folder / "out")
        self.ledger = Ledger.in_output(self.output)
        uri = [f"--tracking-uri=http://127.0.0.1:{self.port}"] if server else []
        self.command = [*command, "--output", self.output, *uri]
        self.driver: subprocess.Popen[bytes] | None = None
        self.server: subprocess.Popen[bytes] | None = None
        self.log = open(folder / "driver.log", "ab")  # noqa: SIM115 - closed with the stage

    def start(self) -> None:
        """Start whatever does not run: the server, then the driver."""
        if self.server_wanted and (self.server is None or self.server.poll() is not None):
            store = f"sqlite:///{self.folder}/mlflow.db"
            words = ["server", "--backend-store-uri", store, "--artifacts-destination", str(self.folder / "artifacts")]
            program = [
                str(Path(sys.executable).with_name("mlflow")),
                *words,
                "--port",
                str(self.port),
                "--workers",
                "1",
            ]
            quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self.server = subprocess.Popen(
                program, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
        if self.driver is None or self.driver.poll() is not None:
            calm = os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "CI": "true"}
            self.driver = subprocess.Popen(
                self.command, cwd=ROOT, env=calm, stdout=self.log, stderr=self.log, start_new_session=True
            )

    def answers(self) -> bool:
        """Return whether the MLflow server answers, or none is wanted."""
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
            return True
        return not self.server_wanted

    def workers(self) -> list[int]:
        """Return the processes that train this stage's trials: those whose group is the driver's Ray."""
        if self.driver is None:
            return []
        pids = []
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"ray::" in status.read_bytes() and b"train" in status.read_bytes():
                    pid = int(status.parent.name)
                    if self.driver.pid in _ancestors(pid):
                        pids.append(pid)
        return pids

    def finish(self, seconds: float) -> None:
        """Let the sweep come to its end, started again as often as it takes; TimeoutError where it does not."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.start()
            assert self.driver is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self.driver.wait(timeout=5) == 0 and self._tracked():
                    return
        raise TimeoutError(f"the sweep did not end in {seconds:.0f} s; see {self.folder}/driver.log")

    def table(self) -> str:
        """Return the table that the same command prints once more, without the places named below it."""
        done = subprocess.run([*self.command, "-q"], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.partition("\nresults ")[0]

    def _tracked(self) -> bool:
        return set(self.ledger.results()) == {name.removesuffix(".json") for name in self.ledger.names("tracked")}

    def close(self) -> None:
        """End what still runs."""
        for process in (self.driver, self.server):
            if process is not None and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.log.close()


def _ancestors(pid: int) -> set[int]:
    pids: set[int] = set()
    while pid > 1:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(fields[1])
        pids.add(pid)
    return pids


def strike(fault: str, stage: Stage, draw: random.Random) -> bool:
    """Do one fault to the stage and return whether there was something to do it to."""
    assert stage.driver is not None
    signals = {"kill driver": signal.SIGKILL, "terminate driver": signal.SIGTERM, "interrupt driver": signal.SIGINT}
    if fault in signals:
        stage.driver.send_signal(signals[fault])
        with contextlib.suppress(subprocess.TimeoutExpired):
            stage.driver.wait(timeout=60)
        return True
    if fault in ("kill worker", "pause worker"):
        workers = stage.workers()
        if not workers:
            return False
        pid = draw.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if fault == "kill worker" else signal.SIGSTOP)
            if fault == "pause worker":
                time.sleep(4)
                os.kill(pid, signal.SIGCONT)
        return True
    if fault == "kill server":
        # MLflow makes its database in steps: one killed before it first answers never starts again.
        if stage.server is None or stage.server.poll() is not None or not stage.answers():
            return False
        os.killpg(stage.server.pid, signal.SIGKILL)
        stage.server.wait()
        time.sleep(draw.uniform(1, 8))
        return True
    if fault == "fill disk":
        return _fill(stage.folder / "out", draw)
    names = _checkpoints(stage.ledger) if fault == "damage checkpoint" else _json_files(stage.ledger)
    return _damage(stage.ledger, names, draw)


def _checkpoints(ledger: Ledger) -> list[str]:
    folders = (f"checkpoints/{key}" for key in ledger.folders("checkpoints"))
    return [f"{folder}/{name}" for folder in folders for name in ledger.names(folder)]


def _json_files(ledger: Ledger) -> list[str]:
    return [f"{folder}/{name}" for folder in DAMAGED for name in ledger.names(folder) if name.endswith(".json")]


def _damage(ledger: Ledger, names: list[str], draw: random.Random) -> bool:
    """Flip a byte of one file, or cut it short."""
    if not names:
        return False
    name = draw.choice(names)
    with contextlib.suppress(OSError):
        content = bytearray(ledger.read(name) or b"")
        if draw.random() < 0.5 and content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            content = content[: draw.randrange(len(content) + 1)]
        ledger.write(name, bytes(content))
        return True
    return False


def _fill(folder: Path, draw: random.Random) -> bool:
    """Fill the disk of the folder for a few seconds."""
    if not os.path.ismount(folder):
        return False
    path = folder / "ballast"
    with contextlib.suppress(OSError), open(path, "wb") as ballast:
        while True:
            ballast.write(b"\0" * (1 << 20))
    time.sleep(draw.uniform(3, 6))
    path.unlink(missing_ok=True)
    return True


def outcome(ledger: Ledger) -> dict[str, str]:
    """Return a hash of all that each trial left which time does not change."""
    hashes = {}
    for key in ledger.results():
        total = hashlib.sha256()
        for row in _history(ledger, key):
            total.update(repr(sorted((k, v) for k, v in row.items() if k != "time_ms" and "sys/" not in k)).encode())
        for name in ("weights.safetensors", "tables/scores.parquet"):
            total.update(ledger.read(f"trials/{key}/{name}") or b"")
        hashes[key] = total.hexdigest()
    return hashes


def _history(ledger: Ledger, key: str) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads(ledger.read(f"trials/{key}/history.json") or b"[]")
    return rows


def answered(ledger: Ledger) -> Answers | None:
    """Return what the sweep on the ledger says of its questions, with the estimates at every look."""
    (title,) = titles(ledger)
    return answers(read_sweep(ledger, title))


def losses(ledger: Ledger, expected: dict[str, str], runs: Callable[[], list[Any]]) -> list[str]:
    """Return a sentence for each trial lost, doubled or changed, and each run in MLflow that is not as it should be."""
    actual = outcome(ledger)
    said = [f"trial {key} is missing" for key in expected.keys() - actual.keys()]
    said += [f"trial {key} is one too many" for key in actual.keys() - expected.keys()]
    said += [f"trial {key} differs" for key in expected.keys() & actual.keys() if expected[key] != actual[key]]
    by_key: dict[str, list[Any]] = {}
    for run in runs():
        if "trial.key" in run.data.tags:
            by_key.setdefault(run.data.tags["trial.key"], []).append(run)
        if run.info.status != "FINISHED":
            said.append(f"run {run.info.run_name} is {run.info.status}")
    for key in actual:
        trial_runs = by_key.get(key, [])
        epochs = len(_history(ledger, key))
        if len(trial_runs) != 1:
            said.append(f"trial {key} has {len(trial_runs)} runs")
            continue
        for name, steps in trial_runs[0].steps.items():
            if steps != list(range(1, epochs + 1)):
                said.append(f"run of {key} has {name} at steps {steps}, not 1..{epochs}")
    return said


def runs_of(uri: str) -> list[Any]:
    """Return every run of a store, each with the steps of every metric that it has an epoch's value of."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(experiments, max_results=5000))
    for run in runs:
        names = [name for name in run.data.metrics if name.partition("/")[0] in PER_EPOCH]
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        run.steps = {name: sorted(point.step for point in points) for name, points in histories.items()}
    return runs


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mount a small tmpfs on the folder where this may be done; else leave it as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def main() -> int:
    """Run both stages and return the number of losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--sweep", default="cifar_width", help="a sweep, or a page as package.module")
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--epochs", type=int, help="of every training (default: 12 of a smoke test, the demo's own)")
    parser.add_argument("--pause", type=float, nargs=2, default=(2.0, 15.0), metavar=("LEAST", "MOST"))
    parser.add_argument("--pack", default="off", help="packs of the disturbed sweep; the other trains trials alone")
    parser.add_argument("--words", type=shlex.split, default=[], help="further words of the sweep's command")
    parser.add_argument("--keep", action="store_true", help="keep the folder, for a look")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    epochs = options.epochs or (12 if options.scale == "smoke" else 0)
    short = ["--set", f"recipe.epochs={epochs}"] if epochs else []
    page = options.sweep if "." in options.sweep else f"sweeps.{options.sweep}"
    command = [sys.executable, "-m", page, *SCALES[options.scale], *short, *options.words]
    base = Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    (base / "calm").mkdir()
    calm = Stage(base / "calm", [*command, "--pack", "off"], server=False)
    try:
        calm.finish(PATIENCE[options.scale])
        expected = outcome(calm.ledger)
        table = calm.table()
        calm_answers = answered(calm.ledger)
    finally:
        calm.close()
    print(f"undisturbed: {len(expected)} trials in {time.monotonic() - began:.0f} s", flush=True)
    done: Counter[str] = Counter()
    with small_disk(base / "wild" / "out", 200):
        wild = Stage(base / "wild", [*command, "--pack", options.pack], server=True)
        try:
            wild.start()
            while sum(done.values()) < options.rounds:
                time.sleep(draw.uniform(*options.pause))
                fault = draw.choice(options.faults)
                if strike(fault, wild, draw):
                    done[fault] += 1
                    count = f"{len(wild.ledger.results())}/{len(expected)} trials"
                    print(f"{time.monotonic() - began:6.0f} s  {fault:<18} {count}", flush=True)
                wild.start()
            wild.finish(PATIENCE[options.scale])
            said = [] if wild.table() == table else [f"the table differs:\n{wild.table()}\nnot\n{table}"]
            wild_answers = answered(wild.ledger)
            said += [] if wild_answers == calm_answers else [f"it answers {wild_answers}, not {calm_answers}"]
            said += losses(wild.ledger, expected, lambda: runs_of(f"http://127.0.0.1:{wild.port}"))
        finally:
            wild.close()
    print(f"{options.rounds} rounds, seed {options.seed}: {dict(sorted(done.items()))}")
    summary = f"{len(expected)} trials, each with one finished run; the table is the same; nothing lost or doubled"
    print("\n".join(said) or summary)
    print(*(text_lines(calm_answers) if calm_answers is not None else ()), sep="\n")
    print(f"losses: {len(said)}")
    if not (options.keep or said):
        shutil.rmtree(base, ignore_errors=True)
    return min(len(said), 100)


if __name__ == "__main__":
    sys.exit(main())
