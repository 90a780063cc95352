"""Ray: one Tuner over a flat queue of trials, and the supervisor that outlives whatever ends a Tuner.

The queue is a Searcher that suggests what the plan lacks and believes only the ledger: a trial is done when its
result is there, whatever Tune says of it. Every start, and every restart after an error, builds a fresh Tuner.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Protocol

from sweeps.ledger import Json, Ledger
from sweeps.plan import TRIES, Sweep, expand, given_up
from sweeps.price import Speed, measure
from sweeps.sets import Place
from sweeps.trial import Cell, Trial
from sweeps.worker import work

# Read by Ray and Tune when they are imported.
os.environ.update(
    {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
)

import ray
from ray import tune
from ray.tune.search import Searcher

FRUITLESS = 3  # sessions in a row without one finished epoch after which the supervisor gives up


class Fruitless(Exception):
    """Ray ended session after session, and nothing was trained."""


class Listener(Protocol):
    """What hears of trials: "started", "epoch", "done", "failed", "left"; `news` is a metrics row or a result."""

    def __call__(self, event: str, trial: Trial, news: Json) -> None: ...


@dataclass(frozen=True)
class Resources:
    """What one trial is given, and how many may run at once (0: as many as fit)."""

    cpus: float = 1.0
    gpus: float = 0.0
    at_once: int = 0


@dataclass(frozen=True)
class Limits:
    """When a session ends before its sweep: hours of GPUs (of trials, on CPUs), failed trials, errors that repeat."""

    hours: float = float("inf")
    failures: int = 1_000_000
    same_error: int = 3  # cells that fail by one and the same error: it is not the cell


@dataclass
class Session:
    """One driver's time on a sweep: what is asked for, what was seen, and whether it is to stop."""

    sweep: Sweep
    ledger: Ledger
    place: Place
    resources: Resources
    listen: Listener
    name: str
    fingerprints: dict[str, str]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    limits: Limits = Limits()
    # What trains a trial, as module:function: another one stands in for it where the queue itself is measured.
    work: str = "sweeps.perform:perform"
    stopping: bool = False
    over_budget: bool = False
    why: str = ""
    epochs: int = 0
    began: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def size(self, trial: Trial) -> int:
        """Return how much memory a step of the trial takes, in numbers: its batch times the maps of its layers."""
        classes, crop = self.shapes.get(trial.cell.dataset, (10, trial.cell.net.size))
        maps = sum(channels * side * side for _, channels, side in trial.cell.net.shapes(classes, crop))
        return trial.cell.recipe.batch * maps

    @property
    def stop_mark(self) -> str:
        """Return the ledger's name of the file whose presence asks this session's trials to leave."""
        return f"stops/{self.name}"

    def hours(self) -> float:
        """Return what this session has used: hours of GPUs, or of trials where they run on CPUs."""
        now = time.monotonic()
        running = sum(now - began for key, began in self.began.items() if key not in self.took)
        return (sum(self.took.values()) + running) / 3600 * (self.resources.gpus or 1.0)

    def stop(self) -> None:
        """Ask every running trial to save its state and leave, and start no more."""
        if not self.stopping:
            self.stopping = True
            try:
                self.ledger.write(self.stop_mark, b"")
            except OSError as error:
                self.errors.append(f"{error}")


class Queue(Searcher):  # type: ignore[misc]
    """The flat queue: what the plan still lacks, in its order; done is what the ledger says is done."""

    def __init__(self, session: Session) -> None:
        """Read the results that are there."""
        super().__init__(metric="epoch", mode="max")
        self.session = session
        self.results = session.ledger.results()
        self.given_up = {key for key, tries in session.ledger.failed().items() if given_up(tries)}
        self.running: dict[str, Trial] = {}
        self.left: set[str] = set()
        self.failures: dict[str, set[str]] = {}
        self.waiting = self._lacking()

    def _lacking(self) -> list[Trial]:
        """Return the trials without a result, in order, that are not running, given up, or left."""
        busy = {trial.key for trial in self.running.values()} | self.given_up | self.left
        trials = expand(self.session.sweep, self.results, self.given_up)
        lacking = [trial for trial in trials if trial.key not in self.results and trial.key not in busy]
        if lacking and not self.session.epochs and not self.running:
            # The largest goes first, as a canary: what does not fit is known before the queue is under way.
            largest = max(lacking, key=lambda trial: self.session.size(trial))
            lacking.remove(largest)
            lacking.insert(0, largest)
        return lacking[::-1]

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trial; None while a running one may bring more; else FINISHED."""
        if self.session.stopping:
            return Searcher.FINISHED
        if not self.waiting:
            return None if self.running else Searcher.FINISHED
        if self.session.hours() >= self.session.limits.hours:
            self._end_for_budget()
            return None if self.running else Searcher.FINISHED
        trial = self.waiting.pop()
        self.running[trial_id] = trial
        self.session.began[trial.key] = time.monotonic()
        self._tell("started", trial, {})
        session = self.session
        place = asdict(session.place) | {"fingerprint": session.fingerprints.get(trial.cell.dataset, "")}
        return {
            "key": trial.key,
            "trial": json.dumps(trial.to_json()),
            "place": place,
            "stop": session.stop_mark,
            "work": session.work,
        }

    def on_trial_result(self, trial_id: str, result: Json) -> None:
        """Pass on an epoch's metrics."""
        trial = self.running.get(trial_id)
        if trial is not None and "row" in result:
            self.session.epochs += 1
            self._tell("epoch", trial, result["row"])
            if self.session.hours() >= self.session.limits.hours:
                self._end_for_budget()

    def _end_for_budget(self) -> None:
        """Stop in good order because the budget is used up: what runs saves its state, and nothing is lost."""
        self.session.over_budget = True
        self.session.stop()

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:
        """Look up on the ledger what became of a trial that Tune has ended."""
        trial = self.running.pop(trial_id, None)
        if trial is None:
            return
        self.session.took[trial.key] = time.monotonic() - self.session.began.pop(trial.key, time.monotonic())
        try:
            self._settle(trial, error)
        except Exception:  # an error here would end every trial of the sweep; the next session sees the ledger again
            self.left.add(trial.key)
            self.session.errors.append(traceback.format_exc())

    def _settle(self, trial: Trial, error: bool) -> None:
        ledger = self.session.ledger
        done = ledger.result(trial.key)
        if done is not None:
            self.results[trial.key] = done
            self._tell("done", trial, done)
        elif self.session.stopping:
            self.left.add(trial.key)
            self._tell("left", trial, {})
        else:
            tries = ledger.attempts(trial.key)
            if error and not given_up(tries):
                lost = {"error": f"the worker process died {TRIES} times", "final": True, "time": time.time()}
                ledger.add_attempt(trial.key, lost)
            tries = ledger.attempts(trial.key)
            if given_up(tries):
                self.given_up.add(trial.key)
                self._tell("failed", trial, tries[-1])
                self._enough(trial, tries[-1])
            else:
                self.left.add(trial.key)
                self._tell("left", trial, {})
        self.waiting = self._lacking()

    def _enough(self, trial: Trial, last: Json) -> None:
        """Stop the session where failures are too many, or one error has met several cells."""
        limits, session = self.session.limits, self.session
        self.failures.setdefault(signature(last), set()).add(trial.cell.key)
        if sum(map(len, self.failures.values())) >= limits.failures:
            session.why = f"{limits.failures} trials have failed"
        elif len(self.failures[signature(last)]) >= limits.same_error:
            session.why = f"the same error in {limits.same_error} cells: {signature(last)}"
        if session.why:
            session.stop()

    def _tell(self, event: str, trial: Trial, news: Json) -> None:
        try:
            self.session.listen(event, trial, news)
        except Exception:
            self.session.errors.append(traceback.format_exc())

    def __getstate__(self) -> Json:
        """Return nothing: Tune pickles its searcher to be restored from, and this one is rebuilt instead."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the ledger is the state."""


def train_trial(config: Json) -> None:
    """Perform the trial in `config` on a worker, telling Tune each epoch."""
    work(config, lambda epoch, row: tune.report({"epoch": epoch, "row": row}))


def signature(attempt: Json) -> str:
    """Return what makes two failures the same: the error's type and the innermost place in our code."""
    kind = str(attempt.get("error", "")).partition(":")[0]
    lines = str(attempt.get("trace", "")).splitlines()
    ours = [line.strip() for line in lines if "/sweeps/" in line or "/data/" in line]
    place = ours[-1].rpartition("/")[2] if ours else ""
    return f"{kind} at {place}" if place else kind


def measure_speeds(cells: Mapping[str, tuple[Cell, int, int]], place: Place, resources: Resources) -> dict[str, Speed]:
    """Return the speed of each cell (with classes and crop), measured by as many workers at once as trials will run."""
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)(_measure)
    began = time.time()
    refs = {key: task.remote(cell, classes, crop, place) for key, (cell, classes, crop) in cells.items()}
    found, ready = {}, []
    for key, ref in refs.items():
        try:
            speed, since = ray.get(ref)
        except Exception:  # what cannot be measured is not priced; if it cannot be trained, its trial will say so
            continue
        found[key] = speed
        ready.append(since)
    # The first of all was ready when its worker had been started and had imported what it needs.
    start = max(0.0, min(ready, default=began) - began)
    return {key: speed._replace(start=start) for key, speed in found.items()}


def _measure(cell: Cell, classes: int, crop: int, place: Place) -> tuple[Speed, float]:
    import torch  # noqa: F401 - part of a worker's start, not of the measurement

    since = time.time()
    return measure(cell, classes, crop, place.device, place.threads), since


def connect(address: str, cpus: int = 0) -> dict[str, float]:
    """Join the Ray cluster at `address`, or start one here ("local"), and return its resources.

    ValueError where none answers.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if address == "local":
        ray.init("local", num_cpus=cpus or os.cpu_count(), include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address, **quiet)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None
    return dict(ray.cluster_resources())


def fits(resources: Resources) -> int:
    """Return how many trials run at once."""
    there = ray.cluster_resources()
    room = there.get("CPU", 1) / max(resources.cpus, 1e-9)
    if resources.gpus:
        room = min(room, there.get("GPU", 0) / resources.gpus)
    return resources.at_once or max(1, int(room))


def drive(session: Session) -> None:
    """Run trials until every planned one is done or given up, or the session is told to stop.

    Ray may end a Tuner at any time (the memory monitor, a lost node, an error in a hook); a fresh one goes on.
    """
    fruitless = 0
    while not session.stopping:
        queue, before = Queue(session), session.epochs
        if not queue.waiting:
            return
        folder = tempfile.mkdtemp(prefix="tune-")
        try:
            # Tune prints on standard output whatever its verbosity; the view has its own hold of the terminal.
            with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
                _tuner(queue, session, folder).fit()
        except Exception as error:
            session.errors.append("".join(traceback.format_exception(error)))
            time.sleep(1.0)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        fruitless = 0 if session.epochs > before else fruitless + 1
        if fruitless >= FRUITLESS:
            last = session.errors[-1].strip().splitlines()[-1] if session.errors else "no error was seen"
            raise Fruitless(f"{FRUITLESS} sessions in a row brought nothing: {last}")


def _tuner(queue: Queue, session: Session, folder: str) -> tune.Tuner:
    """Return a Tuner over the queue, with nothing of its own worth keeping."""
    resources = session.resources
    needs = {"cpu": resources.cpus} | ({"gpu": resources.gpus} if resources.gpus else {})
    return tune.Tuner(
        tune.with_resources(train_trial, needs),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,
            max_concurrent_trials=fits(resources),
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=session.name,
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=TRIES - 1),
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.config.get("key", trial.trial_id))


class Interrupts:
    """From enter to exit: the first SIGINT or SIGTERM stops the session in good order, the second ends it at once."""

    def __init__(self, session: Session, tell: Callable[[str], None]) -> None:
        """Prepare to catch the signals for `session`."""
        self.session, self.tell = session, tell
        self.before: dict[int, Any] = {}
        self.caught = 0

    def __enter__(self) -> Interrupts:
        """Install the handlers (in the main thread only: elsewhere there are none to install)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers of before back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught += 1
        if self.caught > 1:
            os._exit(130)
        self.tell("stopping: running trials save their state (once more to end at once); the same command resumes")
        self.session.stop()
