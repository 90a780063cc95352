"""Is anything lost where a disk fails, or a process dies, at any call that changes a file?

    python -m benchmarks.faults_files --part trial prepare
    python -m benchmarks.faults_files --part driver --every 101 --modes kill EIO
    python -m benchmarks.faults_files --part driver store --by-site --minutes 20 --record faults.jsonl
    python -m benchmarks.faults_files --part trial prepare --draw 24 --seed 7

Each command runs once undisturbed, and its calls that change the file system below its folder are counted: open for
writing, write, fsync, rename, unlink and the like. Then it runs once for each call and mode, with a fault at this call:

- kill: SIGKILL before the call; torn: SIGKILL after half of a write, or after any other call;
- EIO, ENOSPC, EROFS: the call fails; with "on", all later ones fail too. A full disk takes half of a write, and lets
  files be deleted.

Then the same command runs undisturbed. It has to end with exit code 0 and the bytes of the first run, or that is a
loss. A message is untrue where a command that was not killed says nothing, shows a traceback, or ends with 0 without
having done its work.

With --by-site the calls are grouped by where they come from: the lines of this project on the stack, the call, the
ending of the name. Of each site the first, a middle and the last call are taken, in all modes. It goes in rounds,
one fault a site, so that --minutes leaves no site out before another has had its turn. --record notes each fault in a
file, a line each; a second start counts those that the file has and goes on with the others.

The parts: a trial by `run_trial`; the driver of a finished sweep, which sends the runs to MLflow and writes table and
report, without Ray, with an empty store (driver) or one that it makes (store); backup and restore of an MLflow store;
`data prepare` by both writers. Pauses between two tries are shortened. The faults come from faults_shim.c, which needs
gcc and Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import cycle, zip_longest
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from markupsafe import Markup

if TYPE_CHECKING:
    from sweeps.cli.options import ExitCode
    from sweeps.cli.settings import Settings
    from sweeps.experiment.plan import Plan
    from sweeps.report.render.chart import Chart

ROOT: Final = f"{Path(__file__).resolve().parents[1]}/"
SHIM: Final = "CRELU_FAULTS_SHIM"  # the variable that names the compiled shim in the process that it is loaded into
NONE, KILL, TORN, FAIL, FAIL_ON = range(5)  # as in faults_shim.c
MODES: Final[dict[str, tuple[int, int]]] = {
    "kill": (KILL, 0),
    "torn": (TORN, 0),
    "EIO": (FAIL, errno.EIO),
    "EIO on": (FAIL_ON, errno.EIO),
    "ENOSPC": (FAIL, errno.ENOSPC),
    "ENOSPC on": (FAIL_ON, errno.ENOSPC),
    "EROFS": (FAIL, errno.EROFS),
    "EROFS on": (FAIL_ON, errno.EROFS),
}
PATIENCE: Final = 120.0  # seconds after which a command counts as stuck
STUCK: Final = 124  # its exit code here
WAITS: Final = 3  # times that a trial waits for a disk before it is stopped here
STOPPED: Final = 3  # exit code here of a trial that was stopped while it waited for the disk
Outcome = dict[str, str]


@dataclass(frozen=True)
class Part:
    """A command under test: `lay` makes the folder before it, `outcome` says what it has left there."""

    name: str
    lay: Callable[[Path], None]
    command: Callable[[Path], int]
    outcome: Callable[[Path], Outcome]
    once: bool = False  # whether the command refuses where its work is done


@dataclass
class Tally:
    """Counts of one mode, and a line for each fault that was not survived."""

    faults: int = 0
    killed: int = 0
    finished: int = 0
    told: int = 0
    losses: int = 0
    untrue: int = 0
    leftovers: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the counts and lines of another tally."""
        for name, value in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Shim:
    """The library in this process that counts calls and makes them fail."""

    def __init__(self, path: str) -> None:
        """Find the library that was loaded first."""
        self.library = ctypes.CDLL(path)
        self.library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        self.library.faults_count.restype = ctypes.c_long
        self.library.faults_log.restype = ctypes.c_char_p
        self._witness: object = None  # the function that C calls: it lives as long as it may be called

    def arm(self, folder: Path | None, target: int = 0, mode: int = NONE, error: int = 0) -> None:
        """Count from now on below a folder, and fail at the target; without a folder, leave all calls alone."""
        self.library.faults_arm(os.fsencode(folder or ""), target, mode, error)

    def watch(self, notes: Path | None) -> None:
        """Note the site of each counted call of this process and its forks in a file; without one, no more."""
        kind = ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p)
        if notes is None:
            self.library.faults_watch(None)
            return
        descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)

        def seen(number: int, call: bytes, path: bytes) -> None:
            ending = Path(os.fsdecode(path)).suffix
            os.write(descriptor, f"{number}\t{site_of(sys._getframe(1))} {call.decode()} {ending}\n".encode())

        self._witness = kind(seen)
        self.library.faults_watch(self._witness)

    def calls(self) -> list[str]:
        """Return the calls since the shim was armed, of this process and those it forked."""
        lines: list[str] = self.library.faults_log().decode(errors="replace").splitlines()
        return lines[: self.library.faults_count()]


def site_of(frame: FrameType | None) -> str:
    """Return the lines of this project on the stack that ends in a frame, innermost first."""
    lines = []
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and "/.venv/" not in name:
            lines.append(f"{name.removeprefix(ROOT)}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines)


def sites(notes: str) -> list[list[int]]:
    """Return the numbers of the calls of each site, from the notes of `Shim.watch`, sites by their first call."""
    calls: dict[str, list[int]] = {}
    for line in notes.splitlines():
        number, _, site = line.partition("\t")
        calls.setdefault(site, []).append(int(number))
    return sorted(sorted(numbers) for numbers in calls.values())


def rounds(groups: list[list[int]], modes: list[str]) -> Iterator[tuple[int, str]]:
    """Yield calls and modes, one of each site a round: in the end its first, a middle and its last call in all modes.

    Sites begin with different modes, so that a run of few rounds has all of them.
    """
    pairs = []
    for place, numbers in enumerate(groups):
        chosen = sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})
        of_site = [(number, mode) for mode in modes for number in chosen]
        begin = place % len(modes) * len(chosen)
        pairs.append(of_site[begin:] + of_site[:begin])
    for of_round in zip_longest(*pairs):
        yield from (pair for pair in of_round if pair is not None)


def drawn(faults: list[tuple[int, str]], modes: list[str], draw: random.Random) -> list[tuple[int, str]]:
    """Return one of the faults, drawn at random, for each of the modes."""
    return [draw.choice([fault for fault in faults if fault[1] == mode]) for mode in modes]


# Processes ----------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], int], log: Path, patience: float = PATIENCE) -> int:
    """Return the exit code of `work` in a fork of this process, negative where a signal ended it; log its words."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child == 0:
        _become(work, log)
    try:
        return _waited(child, patience)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it has forked itself


def _become(work: Callable[[], int], log: Path) -> NoReturn:
    """Do the work in this process, as the main function of a program, and end."""
    code = 1
    try:
        os.setsid()
        words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((null, 0), (words, 1), (words, 2)):
            os.dup2(descriptor, target)
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _waited(child: int, patience: float) -> int:
    began = time.monotonic()
    pause = 0.001
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > patience:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return STUCK
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def said_outcome(part: Part, folder: Path, scratch: Path) -> Outcome:
    """Return what a command has left, read in a process of its own; its error where it cannot be read."""
    answer = scratch / "outcome.json"
    answer.unlink(missing_ok=True)

    def work() -> int:
        answer.write_text(json.dumps(part.outcome(folder)))
        return 0

    if forked(work, scratch / "outcome.log"):
        return {"unreadable": last_line((scratch / "outcome.log").read_text(errors="replace"))}
    outcome: Outcome = json.loads(answer.read_text())
    return outcome


def last_line(words: str) -> str:
    """Return the last line of a program's words that says something."""
    return next((line.strip()[:200] for line in reversed(words.splitlines()) if line.strip()), "")


# The bench ----------------------------------------------------------------------------------------------------------


class Bench:
    """One part under faults, in a scratch folder."""

    def __init__(self, part: Part, shim: Shim, scratch: Path, verbose: bool = False) -> None:
        """Run the command once undisturbed."""
        self.part = part
        self.shim = shim
        self.scratch = scratch
        self.verbose = verbose
        self.folder = scratch / "world"
        self.log = scratch / "words.log"
        self.fresh()
        began = time.monotonic()
        code = self.run()
        self.seconds = time.monotonic() - began
        if code:
            raise ValueError(f"{part.name} fails undisturbed, with {code}:\n{self.log.read_text(errors='replace')}")
        self.calls = self.shim.calls()
        self.wanted = self.said()

    def sites(self) -> list[list[int]]:
        """Run the command once more undisturbed, and return the numbers of the calls of each site."""
        notes = self.scratch / "sites.txt"
        self.fresh()
        self.shim.watch(notes)
        code = self.run()
        self.shim.watch(None)
        if code:
            raise ValueError(f"{self.part.name} fails while it is watched, with {code}:\n{self.log.read_text()}")
        return sites(notes.read_text())

    def fresh(self) -> None:
        """Make the folder as it is before the command."""
        self.shim.arm(None)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.part.lay(self.folder)

    def run(self, target: int = 0, mode: int = NONE, error: int = 0) -> int:
        """Run the command, with a fault at a call; return its exit code."""
        self.shim.arm(self.folder, target, mode, error)
        try:
            return forked(lambda: self.part.command(self.folder), self.log)
        finally:
            self.shim.library.faults_stop()

    def said(self) -> Outcome:
        """Return what the command has left."""
        return said_outcome(self.part, self.folder, self.scratch)

    def fault(self, target: int, mode: str, tally: Tally) -> None:
        """Run the command with a fault and then without, and count what became of it."""
        self.fresh()
        tally.faults += 1
        code = self.run(target, *MODES[mode])
        calls = self.shim.calls()
        call = calls[target - 1] if target <= len(calls) else "not reached"
        where = f"{self.part.name}, {mode} at {target} [{call.replace(str(self.folder), '')[:100]}]"
        words = self.log.read_text(errors="replace")
        # What the command says of the fault.
        if code < 0:
            tally.killed += 1
        elif code == 0:
            tally.finished += 1
        else:
            tally.told += 1
        if why := self._untrue(code, words):
            tally.untrue += 1
            tally.lines.append(f"UNTRUE {where}: exit {code}: {why}")
            if self.verbose:
                tally.lines.append(words)
        # What the same command makes of it.
        again = self.run()
        if again and not (self.part.once and self.said() == self.wanted):
            tally.losses += 1
            words = last_line(self.log.read_text(errors="replace"))
            tally.lines.append(f"LOSS {where}: exit {code}, and the same command ends with {again}: {words}")
            return
        outcome = self.said()
        differing = sorted(name for name in outcome.keys() | self.wanted.keys()
                           if outcome.get(name) != self.wanted.get(name))  # fmt: skip
        if differing:
            tally.losses += 1
            pair = [(name, self.wanted.get(name, "")[:80], outcome.get(name, "")[:80]) for name in differing[:3]]
            tally.lines.append(f"LOSS {where}: exit {code}, and another outcome in the end: {pair}")
        tally.leftovers += bool(self.leftovers())

    def _untrue(self, code: int, words: str) -> str:
        """Return why the words of a command with a fault are untrue, empty where they are true."""
        if code < 0:
            return ""
        if "Traceback (most recent call last)" in words:
            return f"a traceback: {last_line(words)}"
        if code == STUCK:
            return f"stuck: {last_line(words)}"
        if code and not last_line(words):
            return "not a word"
        if code == 0 and (outcome := self.said()) != self.wanted:
            names = sorted(name for name in outcome.keys() | self.wanted if outcome.get(name) != self.wanted.get(name))
            return f"exit 0 without {names[:3]}"
        return ""

    def leftovers(self) -> list[Path]:
        """Return the half-written files that are still there in the end."""
        return [path for path in self.folder.rglob(".*") if not path.name.endswith(".lock")]


class Record:
    """The faults that were tried, a line of a file for each, from which a second start goes on; no file, no memory."""

    def __init__(self, path: Path | None) -> None:
        """Read the lines that are there; one that a kill has cut short counts as none."""
        self.path = path
        self.tried: dict[tuple[str, int, str], Tally] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            with suppress(ValueError):
                part, target, mode, tally = json.loads(line)
                self.tried[part, target, mode] = Tally(**tally)

    def note(self, part: str, target: int, mode: str, tally: Tally) -> None:
        """Add a fault."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps([part, target, mode, dataclasses.asdict(tally)]) + "\n")


def run(bench: Bench, faults: Iterable[tuple[int, str]], limit: float, record: Record) -> dict[str, Tally]:
    """Return a tally for each mode of the faults, a call and a mode each, until `limit` of `time.monotonic()`."""
    tallies: dict[str, Tally] = {}
    for target, mode in faults:
        tally = record.tried.get((bench.part.name, target, mode))
        if tally is None:
            if time.monotonic() > limit:
                continue  # a later one may be on the record
            tally = Tally()
            bench.fault(target, mode, tally)
            record.note(bench.part.name, target, mode, tally)
        for line in tally.lines:
            print(line, flush=True)
        tallies.setdefault(mode, Tally()).add(tally)
    return tallies


# Trial --------------------------------------------------------------------------------------------------------------


def shorten_pauses() -> list[float]:
    """Let this process wait less between two tries of a disk or of MLflow; return the list that notes each wait."""
    sleep = time.sleep
    waits: list[float] = []

    def shorter(seconds: float) -> None:
        waits.append(seconds)
        sleep(min(seconds, 0.05))

    time.sleep = shorter
    return waits


def trial_part(base: Path) -> Part:
    """Return the training of a trial of two short epochs, with a checkpoint after each."""
    from crelu_data.write import prepare
    from crelu_models.tables import S2
    from sweeps.experiment.recipe import ALLCONV
    from sweeps.experiment.trial import Cell, Trial
    from sweeps.store import checkpoint
    from sweeps.training.run_trial import run_trial
    from sweeps.training.runtime import RuntimeConfig
    from tests.support.trials import artifact_hashes

    pictures = "synthetic:size=32,classes=4,train=40,test=8"
    recipe = dataclasses.replace(ALLCONV, epochs=2, batch=16, lr=0.01)
    trial = Trial(Cell("small", S2.crelu(1, 2).dropout(0.2, "input").width(0.125), pictures, recipe), seed=3)
    checkpoint.SAVING_INTERVAL = 0
    data = base / "data"
    in_fork(lambda: prepare(pictures, data, writer="native", workers=1), base)

    def command(folder: Path) -> int:
        waits = shorten_pauses()
        config = RuntimeConfig(str(folder / "ledger"), str(data), reader="threads")
        try:
            result = run_trial(trial, config, lambda *_: None, lambda: len(waits) > WAITS)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if result is None:
            print("stopped while the disk was waited for", file=sys.stderr)
        return STOPPED if result is None else 0

    def outcome(folder: Path) -> Outcome:
        from sweeps.store.ledger import Ledger

        hashes = artifact_hashes(folder / "ledger", trial)
        result = Ledger(str(folder / "ledger")).result(trial.key) or {}
        for name, digest in result["files"].items():
            content = (folder / "ledger/trials" / trial.key / name).read_bytes()
            hashes[f"named {name}"] = str(hashlib.sha256(content).hexdigest() == digest)
        return hashes | {"restarts": str(result["restarts"]), "results": str(list(files(folder / "ledger/results")))}

    # Once in this process, so that forks of it have all modules and compiled loops.
    run_trial(trial, RuntimeConfig(str(base / "warm"), str(data), reader="threads"), lambda *_: None)
    return Part("trial", lambda _: None, command, outcome)


def in_fork(work: Callable[[], object], base: Path) -> None:
    """Do some work in a fork, so that this process starts no threads; ValueError with its words where it fails."""

    def done() -> int:
        work()
        return 0

    if code := forked(done, base / "fork.log", 600):
        raise ValueError(f"exit {code}: {(base / 'fork.log').read_text(errors='replace')}")


def in_fork_with_modules(work: Callable[[], object], base: Path) -> None:
    """Do some work in a fork, and import here the modules that it has imported: later forks have them at once."""
    names = base / "modules.json"

    def noted() -> None:
        work()
        names.write_text(json.dumps(list(sys.modules)))

    in_fork(noted, base)
    for name in json.loads(names.read_text()):
        with suppress(Exception):  # a module that was made by hand, or that looks at where it is imported from
            import_module(name)


def files(folder: Path) -> Iterator[str]:
    """Return the names of all files below a folder but hidden ones, sorted."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            yield name


def digests(folder: Path) -> Outcome:
    """Return the checksum of each file below a folder but hidden ones."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files(folder)}


# Prepare ------------------------------------------------------------------------------------------------------------


def prepare_part(base: Path, writer: str) -> Part:
    """Return the preparation of a folder of sixteen pictures by one of the writers."""
    import crelu_data.load  # noqa: F401
    from crelu_data.__main__ import main
    from tests.support.pictures import picture_folder

    if writer == "ffcv":
        from crelu_data import ffcv_patches

        ffcv_patches.import_ffcv()
    originals = base / f"pictures-{writer}"
    for split in ("train", "test"):
        picture_folder(originals, split, {"a": 4, "b": 4}, (32, 32))

    def command(folder: Path) -> int:
        return main(["prepare", f"folder:{originals}", "--size", "32", "--data-dir", str(folder / "data"),
                     "--workers", "1", "--writer", writer])  # fmt: skip

    return Part(f"prepare, {writer}", lambda _: None, command, digests)


# Backup and restore -------------------------------------------------------------------------------------------------


@cache
def empty_store() -> bytes:
    """Return the content of an MLflow store that nobody has used, and import here what forks need to use one."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    from sweeps.tracking import sqlite_store

    with tempfile.TemporaryDirectory(prefix="faults-store-") as folder:
        path = Path(folder) / "mlflow.db"
        in_fork(lambda: sqlite_store.prepare(path, print), Path(folder))
        return path.read_bytes()


def make_store(output: Path) -> None:
    """Make a small MLflow store with a run, an artifact and a user's database."""
    from mlflow import MlflowClient

    output.mkdir()
    (output / "mlflow.db").write_bytes(empty_store())
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    experiment = client.create_experiment("made", f"{output}/mlartifacts/1")
    made = client.create_run(experiment)
    client.log_metric(made.info.run_id, "error", 12.5)
    client.log_text(made.info.run_id, "made", "tables/made.txt")
    with closing(sqlite3.connect(output / "mlflow-users.db")) as users:
        users.execute("create table users (username, password_hash)")
        users.commit()


def serve(*words: str) -> int:
    """Run `python -m sweeps serve` in this process."""
    from sweeps.__main__ import main

    sys.argv = ["python -m sweeps", "serve", *words]
    return main()


def backup_part(base: Path) -> Part:
    """Return the backup of a small store."""
    import sweeps.ops.mlflow_server  # noqa: F401

    store = base / "store"
    empty_store()
    in_fork(lambda: make_store(store), base)

    def outcome(folder: Path) -> Outcome:
        with tarfile.open(folder / "backup.tar") as tar:
            contents = {entry.name: (tar.extractfile(entry) or tar.fileobj).read() for entry in tar}  # type: ignore[union-attr]
        members = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        members["list.json"] = str(json.loads(contents["list.json"])["sums"])
        return members | {f"store/{name}": digest for name, digest in digests(store).items()}

    def command(folder: Path) -> int:
        return serve("--backup", str(folder / "backup.tar"), "--output", str(store))

    return Part("backup", lambda _: None, command, outcome)


def restore_part(base: Path) -> Part:
    """Return the restore of a small store's backup to an empty place."""
    import sweeps.ops.mlflow_server  # noqa: F401

    store = base / "store-before"
    empty_store()
    source = base / "backup.tar"
    in_fork(lambda: make_store(store), base)
    in_fork(lambda: serve("--backup", str(source), "--output", str(store)), base)

    def outcome(folder: Path) -> Outcome:
        mode = (folder / "out/mlflow-users.db").stat().st_mode & 0o777
        return digests(folder) | {"mode": f"{mode:o}"}

    def command(folder: Path) -> int:
        return serve("--restore", str(source), "--output", str(folder / "out"))

    return Part("restore", lambda _: None, command, outcome, once=True)


# Driver -------------------------------------------------------------------------------------------------------------


def driver_part(base: Path, has_store: bool) -> Part:
    """Return the driver of a finished sweep that MLflow does not have yet: lease, plan, runs, notes, table, report.

    MLflow's store is empty, or the driver makes it, which is most of its calls then.
    """
    # What imports longest, here, so that no fork has to.
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401

    import sweeps.report.build
    import sweeps.training.run_trial  # noqa: F401
    from sweeps.cli import run as driving
    from sweeps.experiment.code_fingerprint import cell_fingerprint
    from sweeps.imagenet_placement import CELLS
    from sweeps.launch import main
    from sweeps.tracking import tracker

    charts = base / "charts.pickle"
    drawn = recall_charts()
    finished = base / "finished"
    words = ["--smoke-test", "--reader", "threads", "--data-dir", str(base / "data"), "--seeds", "1"]

    def command(folder: Path) -> int:
        shorten_pauses()
        tracker.PAUSE, tracker.GRACE = 0.05, 1.0  # type: ignore[misc]
        os.environ["CI"] = "true"
        sys.argv = ["imagenet_placement", *words, "--output", str(folder / "out")]
        main("imagenet_placement", "", CELLS)

    def train(folder: Path) -> None:
        driving._run_trials = train_here
        try:
            command(folder)
        except SystemExit as end:
            if end.code:
                raise ValueError(f"the sweep ends with {end.code}") from None
        charts.write_bytes(pickle.dumps(drawn))

    # The sweep is trained in the folder of the bench: a ledger knows its place.
    place = base / "world"
    shutil.rmtree(place, ignore_errors=True)
    (place / "out").mkdir(parents=True)
    (place / "out/mlflow.db").write_bytes(empty_store())
    in_fork_with_modules(lambda: train(place), base)
    drawn.update(pickle.loads(charts.read_bytes()))
    for cell in CELLS:
        cell_fingerprint(cell)  # which takes as long as the rest of a driver here, and is kept
    shutil.rmtree(place / "out/ledger/tracked", ignore_errors=True)
    shutil.copytree(place / "out/ledger", finished / "out/ledger")
    if has_store:
        (finished / "out/mlflow.db").write_bytes(empty_store())

    def outcome(folder: Path) -> Outcome:
        out = folder / "out"
        ledger = {name: digest for name, digest in digests(out / "ledger").items()
                  if name.startswith(("results/", "trials/", "attempts/"))}  # fmt: skip
        notes = {f"note {name}": "" for name in files(out / "ledger/tracked")}
        elsewhere = ("ledger/", "mlflow.db", "mlartifacts/")
        written = {f"written {name}": "" for name in files(out) if not name.startswith(elsewhere)}
        return ledger | notes | written | shown(out / "mlflow.db")

    def lay(folder: Path) -> None:
        shutil.copytree(finished, folder, dirs_exist_ok=True)

    return Part("driver" if has_store else "driver, new store", lay, command, outcome)


def recall_charts() -> dict[bytes, str]:
    """Let this process and its forks draw no chart twice, and return the drawn ones.

    Drawing is most of a driver's time here, and writes no file.
    """
    from sweeps.report.render import figures

    draw, rastered = figures.draw, figures.rastered
    drawn: dict[bytes, str] = {}

    def recalled(chart: Chart, alt: str) -> Markup:
        key = pickle.dumps((chart, alt))
        if key not in drawn:
            drawn[key] = draw(chart, alt)
        return Markup(drawn[key])

    figures.draw = recalled
    figures.rastered = cache(rastered)
    return drawn


def train_here(today: Plan, settings: Settings, *_: object) -> ExitCode:
    """Train what a plan lacks in this process, in place of Ray's workers."""
    from sweeps.cli.options import ExitCode
    from sweeps.experiment.plan import plan
    from sweeps.training.run_trial import run_trial
    from sweeps.training.runtime import RuntimeConfig

    config = RuntimeConfig(settings.ledger.root, str(settings.data_dir), reader="threads")
    while today.to_do:
        for trial in today.to_do:
            run_trial(trial, config, lambda *_: None)
        today = plan(today.sweep, settings.ledger, {})
    return ExitCode.DONE


def shown(database: Path) -> Outcome:
    """Return what MLflow shows of each run, by its name; times and speeds are left out.

    Of a cell's run that is the last value of each metric: its steps count how often that was sent.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiments = client.search_experiments()
    said: Counter[str] = Counter()
    for run in client.search_runs([experiment.experiment_id for experiment in experiments], max_results=1000):
        metrics = {name: client.get_metric_history(run.info.run_id, name) for name in sorted(run.data.metrics)}
        of_trial = "trial.key" in run.data.tags
        points = {name: [(point.step, point.value) for point in history] if of_trial else run.data.metrics[name]
                  for name, history in metrics.items() if "sys/" not in name and "second" not in name}  # fmt: skip
        artifacts = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        kind = run.data.tags.get("trial.key", run.data.tags.get("cell.key", ""))
        said[json.dumps([kind, run.info.status, points, sorted(run.data.params.items()), artifacts])] += 1
    return {f"run {hashlib.sha256(words.encode()).hexdigest()[:12]} {words[:60]}": str(count)
            for words, count in said.items()}  # fmt: skip


PARTS: Final[dict[str, Callable[[Path], list[Part]]]] = {
    "trial": lambda base: [trial_part(base)],
    "driver": lambda base: [driver_part(base, has_store=True)],
    "store": lambda base: [driver_part(base, has_store=False)],
    "backup": lambda base: [backup_part(base)],
    "restore": lambda base: [restore_part(base)],
    "prepare": lambda base: [prepare_part(base, "native"), prepare_part(base, "ffcv")],
}


def compiled(folder: Path) -> Path:
    """Return the compiled shim; ValueError where there is no gcc, or it does not compile it."""
    if shutil.which("gcc") is None:
        raise ValueError("there is no gcc, which compiles the library that makes calls fail: apt-get install gcc")
    target = folder / "faults_shim.so"
    source = Path(__file__).with_name("faults_shim.c")
    done = subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(target), str(source), "-ldl"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise ValueError(f"gcc does not compile {source.name}: {done.stderr.strip()}")
    return target


def main() -> int:
    """Print a table of all faults; return 1 where something was lost or a message untrue, 2 without gcc."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--every", type=int, default=1, metavar="K", help="only each K-th call (default: all)")
    parser.add_argument(
        "--first", type=int, default=1, metavar="N", help="begin at this call, by site at this fault (default 1)"
    )
    parser.add_argument("--minutes", type=float, default=1e6, metavar="M", help="stop each part then")
    parser.add_argument("--by-site", action="store_true", help="of each site three calls, in rounds over the sites")
    parser.add_argument(
        "--draw", type=int, default=0, metavar="N", help="only N faults of each part at random, modes in turn"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what --draw draws")
    parser.add_argument("--record", type=Path, metavar="FILE", help="note each fault there, and go on from it")
    parser.add_argument("--calls", action="store_true", help="only list the calls")
    parser.add_argument("-v", "--verbose", action="store_true", help="print all words of untrue messages")
    options = parser.parse_args()
    if SHIM not in os.environ:
        return _loaded()
    shim = Shim(os.environ[SHIM])
    record = Record(options.record)
    draw = random.Random(options.seed)
    modes = cycle(options.modes)
    bad = 0
    rows = []
    for name in options.part:
        with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
            for part in PARTS[name](Path(scratch)):
                bench = Bench(part, shim, Path(scratch), options.verbose)
                print(f"{part.name}: {len(bench.calls)} calls, {bench.seconds:.1f} s undisturbed", flush=True)
                if options.calls:
                    print("\n".join(f"{number} {call}" for number, call in enumerate(bench.calls, 1)))
                    continue
                faults = ((call, mode) for call in range(options.first, len(bench.calls) + 1, options.every)
                          for mode in options.modes)  # fmt: skip
                if options.by_site:
                    groups = bench.sites()
                    taken = list(rounds(groups, options.modes))
                    print(f"{part.name}: {len(groups)} sites, {len(taken)} faults", flush=True)
                    faults = iter(taken[options.first - 1 :])
                if options.draw:
                    faults = iter(drawn(list(faults), [next(modes) for _ in range(options.draw)], draw))
                limit = time.monotonic() + 60 * options.minutes
                for mode, tally in run(bench, faults, limit, record).items():
                    bad += tally.losses + tally.untrue
                    counts = (tally.faults, tally.killed, tally.told, tally.finished, tally.leftovers, tally.losses,
                              tally.untrue)  # fmt: skip
                    rows.append(f"| {part.name} | {len(bench.calls)} | {mode} | {' | '.join(map(str, counts))} |")
    print("| part | calls | mode | faults | killed | told | finished all the same | left behind | losses | untrue |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|", *rows, sep="\n")
    return bool(bad)


def _loaded() -> int:
    """Run this program again with the shim before the C library."""
    with tempfile.TemporaryDirectory(prefix="faults-shim-") as folder:
        try:
            shim = compiled(Path(folder))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        environment = os.environ | {SHIM: str(shim), "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1",
                                    "PYTHONWARNINGS": "ignore"}  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.faults_files", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
