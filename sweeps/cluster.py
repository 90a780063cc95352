"""Ray: one Tuner over a flat queue of trials, and the supervisor that outlives whatever ends a Tuner.

The queue is a Searcher that suggests what the plan lacks and believes only the ledger: a trial is done when its
result is there, whatever Tune says of it. Every start, and every restart after an error, builds a fresh Tuner.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Protocol

from sweeps import tasks
from sweeps.lease import claim, elsewhere, unclaim
from sweeps.ledger import Json, Ledger
from sweeps.plan import TRIES, Part, Sweep, given_up, ordered, part
from sweeps.price import Speed, measure
from sweeps.sets import Place
from sweeps.sharing import Key, Maker, Packs, measure_maker
from sweeps.trial import Cell, Trial
from sweeps.worker import work

# Read by Tune when it is imported.
os.environ.update(
    {
        "RAY_AIR_NEW_OUTPUT": "0",
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
    work: str = "sweeps.crew:perform"
    packs: Packs = field(default_factory=Packs)
    stopping: bool = False
    over_budget: bool = False
    why: str = ""
    epochs: int = 0
    planned: list[Trial] = field(default_factory=list)  # as far as it is known; the others are to come
    to_come: list[Trial] = field(default_factory=list)
    began: dict[str, float] = field(default_factory=dict)  # by Tune's name of what runs
    lost: float = 0.0  # seconds of what ran when a Tuner ended in an error
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
        """Return what this session has used: hours of GPUs, or of workers on CPUs; a pack counts once."""
        now = time.monotonic()
        running = sum(now - began for began in self.began.values())
        return (sum(self.took.values()) + self.lost + running) / 3600 * (self.resources.gpus or 1.0)

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
        session.lost += sum(time.monotonic() - began for began in session.began.values())
        session.began.clear()
        self.results = session.ledger.results()
        self.given_up = {key for key, tries in session.ledger.failed().items() if given_up(tries)}
        self.running: dict[str, list[Trial]] = {}  # by Tune's name: a trial, or the members of a pack
        self.shares: dict[str, list[str]] = {}  # who has a part in the time of a pack, also after leaving it
        self.room: dict[Key, int] = {}  # members for which there was memory, by the kind of pack
        self.left: set[str] = set()
        self.failures: dict[str, set[str]] = {}
        self.parts: dict[str, Part] = {}
        for cell in session.sweep.cells:
            self._part(cell)
        self.waiting = self._lacking()

    def _part(self, cell: Cell) -> None:
        """Look again at what a cell comes to."""
        self.parts[cell.key] = part(cell, self.session.sweep.protocol, self.results, self.given_up)

    def _lacking(self) -> list[Trial]:
        """Return the trials without a result, in order, that are not running, given up, or left."""
        busy = {trial.key for pack in self.running.values() for trial in pack} | self.given_up | self.left
        trials = ordered(self.parts.values())
        self.session.planned = trials
        self.session.to_come = [trial for part in self.parts.values() for trial in part.to_come]
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
        session, pack = self.session, self._pack()
        if not pack:
            return None if self.waiting or self.running else Searcher.FINISHED
        self.running[trial_id], self.shares[trial_id] = pack, [trial.key for trial in pack]
        for trial in pack:
            self._tell("started", trial, {})
        place = asdict(session.place) | {"fingerprint": session.fingerprints.get(pack[0].cell.dataset, "")}
        return {
            "key": pack[0].key + (f"+{len(pack) - 1}" if len(pack) > 1 else ""),
            "pack": f"{session.name}-{trial_id}",
            "trials": [json.dumps(trial.to_json()) for trial in pack],
            "place": place,
            "stop": session.stop_mark,
            "work": session.work,
        }

    def begin(self, trial_id: str) -> None:
        """Count the time of what has been given a machine: to wait for one, on a cluster that grows, costs nothing."""
        if trial_id in self.running:
            self.session.began.setdefault(trial_id, time.monotonic())

    def _free(self, trial: Trial) -> bool:
        """Return whether no other sweep's driver trains this trial; what such a one has finished is done here too."""
        session = self.session
        done = session.ledger.result(trial.key)
        if done is None:
            return not elsewhere(session.ledger, session.sweep.title, trial.key)
        self.results[trial.key] = done
        self.waiting = [other for other in self.waiting if other.key != trial.key]
        self._tell("done", trial, done)
        self._follow(trial)
        return False

    def _pack(self) -> list[Trial]:
        """Take the next trial off the queue, and those that are to train beside it; none where others train them."""
        pack = self._chosen()
        for trial in pack:
            claim(self.session.ledger, self.session.sweep.title, trial.key)
        return pack

    def _chosen(self) -> list[Trial]:
        session = self.session
        first = next((trial for trial in self.waiting[::-1] if self._free(trial)), None)
        if first is None:
            return []
        self.waiting = [trial for trial in self.waiting if trial.key != first.key]
        packs = session.packs
        most = self.room.get(packs.kind(first), packs.most)
        if most < 2:
            return [first]
        if packs.even:
            idle = max(1, fits(session.resources) - len(self.running))
            most = min(most, -(-(len(self.waiting) + 1) // idle))
        shape = session.shapes.get(first.cell.dataset, (10, first.cell.net.size))
        mates = packs.mates(first, self.waiting[::-1], self._position, most, *shape)
        mates = [trial for trial in mates if self._free(trial)]
        taken = {trial.key for trial in mates}
        self.waiting = [trial for trial in self.waiting if trial.key not in taken]
        return [first, *mates]

    def _position(self, trial: Trial) -> int:
        """Return the epoch a trial stands at; -1 for one that has failed before, and is better tried alone."""
        ledger = self.session.ledger
        if ledger.names(f"attempts/{trial.key}"):
            return -1
        saved = ledger.names(f"checkpoints/{trial.key}")
        return int(saved[-1].partition("-")[0]) if saved else 0

    def on_trial_result(self, trial_id: str, result: Json) -> None:
        """Pass on an epoch's metrics, or see what became of a member that has left its pack."""
        pack = self.running.get(trial_id, [])
        trial = next((trial for trial in pack if trial.key == result.get("key")), None)
        if trial is None:
            return
        if "row" in result:
            self.session.epochs += 1
            self._tell("epoch", trial, result["row"])
        elif "over" in result:
            pack.remove(trial)
            if result["fits"]:
                self._narrow(trial, result["fits"])
            self._ended(trial, False, True)
        if self.session.hours() >= self.session.limits.hours:
            self._end_for_budget()

    def _narrow(self, trial: Trial, room: int) -> None:
        """Let packs of this kind have no more than `room` members from now on."""
        kind = self.session.packs.kind(trial)
        self.room[kind] = max(1, min(room, self.room.get(kind, room)))

    def _end_for_budget(self) -> None:
        """Stop in good order because the budget is used up: what runs saves its state, and nothing is lost."""
        self.session.over_budget = True
        self.session.stop()

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:
        """Look up on the ledger what became of a trial that Tune has ended, or of those left of a pack."""
        pack, session = self.running.pop(trial_id, None), self.session
        if pack is None:
            return
        shares = self.shares.pop(trial_id)
        size, seconds = len(shares), time.monotonic() - session.began.pop(trial_id, time.monotonic())
        for key in shares:
            session.took[key] = session.took.get(key, 0.0) + seconds / size
        if error and len(pack) > 1:
            # Its process died again and again, which is how a host's memory runs out.
            self._narrow(pack[0], len(pack) // 2)
        for trial in pack:
            self._ended(trial, error and size == 1, size > 1)
        if size > 1:
            session.ledger.delete(f"packs/{session.name}-{trial_id}.json")

    def _ended(self, trial: Trial, error: bool, again: bool) -> None:
        try:
            unclaim(self.session.ledger, trial.key)
            self._settle(trial, error, again)
        except Exception:  # an error here would end every trial of the sweep; the next session sees the ledger again
            self.left.add(trial.key)
            self.session.errors.append(traceback.format_exc())

    def _settle(self, trial: Trial, error: bool, again: bool) -> None:
        """See what became of a trial; `again` says that one without a result goes back to the queue."""
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
            elif again:
                self._tell("left", trial, {})
                self.waiting = self._lacking()
            else:
                self.left.add(trial.key)
                self._tell("left", trial, {})
        self._follow(trial)

    def _follow(self, trial: Trial) -> None:
        """See what follows from a trial that has come to its end."""
        protocol = self.session.sweep.protocol
        if protocol.search is not None or protocol.single:  # only these make new trials of results
            self._part(trial.cell)
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
    """Perform the trials in `config` on a worker, telling Tune each epoch."""
    work(config, tune.report)


def signature(attempt: Json) -> str:
    """Return what makes two failures the same: the error's type and the innermost place in our code."""
    kind = str(attempt.get("error", "")).partition(":")[0]
    lines = str(attempt.get("trace", "")).splitlines()
    ours = [line.strip() for line in lines if "/sweeps/" in line or "/data/" in line]
    place = ours[-1].rpartition("/")[2] if ours else ""
    return f"{kind} at {place}" if place else kind


def measure_speeds(cells: Mapping[str, tuple[Cell, int, int]], place: Place, resources: Resources) -> dict[str, Speed]:
    """Return the speed of each cell (with classes and crop), measured by as many workers at once as trials will run."""
    began = time.time()
    items = [(key, cell, classes, crop, place) for key, (cell, classes, crop) in cells.items()]
    found, ready = {}, []
    for (key, *_), measured in tasks.each(_measure, items, cpus=resources.cpus, gpus=resources.gpus):
        # What cannot be measured is not priced; if it cannot be trained, its trial will say so.
        if not isinstance(measured, str):
            found[key], since = measured
            ready.append(since)
    # The first of all was ready when its worker had been started and had imported what it needs.
    start = max(0.0, min(ready, default=began) - began)
    return {key: speed._replace(start=start) for key, speed in found.items()}


def _measure(item: tuple[str, Cell, int, int, Place]) -> tuple[Speed, float]:
    import torch  # noqa: F401 - part of a worker's start, not of the measurement

    _, cell, classes, crop, place = item
    since = time.time()
    return measure(cell, classes, crop, place.device, place.threads, place.ranks), since


def measure_makers(names: Iterable[str], place: Place, resources: Resources) -> dict[str, Maker]:
    """Return how fast one worker makes training views of each of these data sets; those that fail are left out."""
    items = [(name, place) for name in names]
    makers = tasks.each(measure_maker, items, cpus=resources.cpus, gpus=resources.gpus)
    # Trials of damaged data will say so; no pack is formed for them.
    found = {name: maker for (name, _), maker in makers if not isinstance(maker, str)}
    return {name: maker._replace(memory=maker.memory * (resources.gpus or 1.0)) for name, maker in found.items()}


def fits(resources: Resources) -> int:
    """Return how many trials run at once, when all machines are up that the cluster may start for them."""
    there = ray.cluster_resources()
    room = there.get("CPU", 1) / max(resources.cpus, 1e-9)
    if resources.gpus:
        room = min(room, there.get("GPU", 0) / resources.gpus)
    return resources.at_once or max(1, int(room), tasks.grown(tasks.autoscaler(), resources.cpus, resources.gpus))


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
            callbacks=[Starts(queue)],
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.config.get("key", trial.trial_id))


class Starts(tune.Callback):  # type: ignore[misc]
    """Tells the queue when a trial has its machine; a Searcher hears only of asking and of results."""

    def __init__(self, queue: Queue) -> None:
        """Tell this queue."""
        self.queue = queue

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass it on."""
        self.queue.begin(trial.trial_id)


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
