"""Worlds of the queue: sweeps that share trials, their drivers and workers, and all that befalls them, from a seed.

The searcher, the worker, the pack, the plan and the ledger's rules are the real ones. In memory or simulated are the
ledger's files, Tune, the training, the clocks and the table of processes. A world is disturbed for some minutes of its
own clock; then its commands are given anew, with failed trials tried again, until they are through. In the end

- nothing is lost: every trial of the plan has its result, or fails wherever it is trained;
- the ledger is that of an undisturbed sweep, result by result;
- no trial went to two workers whose drivers live, and none that was done went to any;
- the questions of a sweep until decided have the answers that they have there.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import ClassVar, NamedTuple, cast
from unittest import mock

from crelu_models.tables import S2
from sweeps.execution import packing, tuner
from sweeps.execution.packing import PackPolicy
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState, Limits
from sweeps.experiment.cell_trials import expand, planned, question_waves, sweep_trials
from sweeps.experiment.plan import has_failed
from sweeps.experiment.questions.question import Question
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store import lease
from sweeps.store.lease import FENCE, Drivers, Lease, LeaseHeldError
from sweeps.store.ledger import Json
from sweeps.training.runtime import RuntimeConfig
from tests.support import queue_ledger, queue_training
from tests.support.queue_ledger import MemoryLedger, SimulatedFile, SimulatedHost, SimulatedLock, Store, World
from tests.support.queue_processes import Killed, Process, Processes
from tests.support.queue_training import Present, Training
from tests.support.queue_tune import Slot, Tuner

DATA = "synthetic:size=32,classes=4,train=100,test=24"
NET = S2.dropout(0.2, "input").dropout(0.5, "pool1").dropout(0.5, "pool2").width(0.125)
CELLS = tuple(
    Cell(f"cell{number}", NET, DATA, dataclasses.replace(ALLCONV, epochs=3, batch=16, lr=0.01 * (number + 1)))
    for number in range(6)
)
PROTOCOLS = (
    Protocol(seeds=2),
    Protocol(seeds=2, ablation=False, single=True),
    Protocol(seeds=1, folds=3),
    Protocol(seeds=1, ablation=False, single=True, search=Search(4, "random", 2)),
    Protocol(seeds=1, search=Search(6, "random", 2, folds=2)),
    Protocol(seeds=1, search=Search(6, "grid", 3)),
    Protocol(seeds=1, rates=RateStudy("cell?", (0.1, 0.05))),
)
HALVED_WORLDS = 100_000  # from this seed on the trials of a search pause at rungs
HALVED = Protocol(seeds=1, search=Search(6, "random", 3, halving=2, rung=1))
ASKING_WORLDS = 200_000  # from this seed on seeds or folds are added until questions are decided
ASKING = (
    Protocol(seeds=1, until=8),
    Protocol(seeds=2, ablation=False, single=True, until=6),
    Protocol(seeds=1, ablation=False, folds=6, until=6),
    Protocol(seeds=1, search=Search(4, "random", 2), until=6),
)
HOST = SimulatedHost()
SALTS = 4  # kinds of fates; few, so that what Optuna suggests is computed once for many worlds
CALM = 20_000.0  # simulated seconds without disturbances after which a sweep counts as stuck
PATIENCE = 3000.0  # simulated seconds of one such command


def _questions(cells: Sequence[Cell], margin: float) -> tuple[Question, ...]:
    """Return the questions whether the first cell beats each other one."""
    first, *others = cells
    return tuple(
        Question(f"{first.label} beats {other.label}", first.label, other.label, margin=margin) for other in others
    )


def decisions(sweep: Sweep, results: Mapping[str, Json], failed: Collection[str]) -> list[str]:
    """Return the decision of each question of a sweep, by these results."""
    parts = {key: part for key, part in sweep_trials(sweep, results, failed).items() if key}
    return [trajectory.decision for trajectory in question_waves(sweep, parts, results, failed).trajectories]


class StuckError(Exception):
    """A command that comes to no end."""


@dataclass
class Command:
    """Command of a user: a sweep that is started, and started again, until it is through."""

    sweep: Sweep
    packs: Callable[[], PackPolicy]
    workers: int
    host: str
    skew: float
    process: Process | None = None
    tuner: Tuner | None = None
    starts: int = 0
    is_through: bool = False
    slots: list[Slot] = field(default_factory=list)


class QueueWorld:
    """World of one seed."""

    def __init__(self, seed: int) -> None:
        """Draw the sweeps and what may befall them."""
        self.seed = seed
        self.processes = Processes(seed)
        draw = self.draw = self.processes.random
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter({"worlds": 1})
        self.is_calm = False
        self.store = Store(self.processes)
        self.training = Training(draw.randrange(SALTS), draw.choice((1.0, 3.0, 10.0)))
        self.training.trouble = draw.choice((0.0, 0.0, 0.02, 0.08))
        self.training.on_start = self._on_start
        (protocol,) = draw.choices(PROTOCOLS, (1, 3, 1, 3, 2, 2, 1))
        if seed >= ASKING_WORLDS:
            protocol = draw.choice(ASKING)
            self.training.gap = draw.choice((0.0, 30.0, 60.0))
        elif seed >= HALVED_WORLDS:
            protocol = HALVED
        self.commands = [self._command(number, protocol) for number in range(draw.choice((1, 2, 2, 3)))]
        # What befalls, and how often.
        kinds = {
            "kill a worker": self._kill_worker,
            "lose a worker": self._lose_worker,
            "kill a driver": self._kill_driver,
            "end a Tuner": self._end_tuner,
            "interrupt": self._interrupt,
            "freeze": self._freeze,
            "fail a disk": self._fail_disk,
            "finish a trial": self._finish_trial,
        }
        chosen = draw.sample(sorted(kinds), draw.randrange(len(kinds) + 1))
        if draw.random() < 0.5 and "finish a trial" not in chosen:
            chosen.append("finish a trial")
        self.disturbances = {name: kinds[name] for name in chosen}
        self.pace = draw.choice((5.0, 15.0, 40.0))
        self.quiet_after = draw.choice((60.0, 200.0, 500.0)) if chosen or self.training.trouble else 0.0

    def _command(self, number: int, protocol: Protocol) -> Command:
        """Draw a sweep and how it is trained."""
        draw = self.draw
        size = draw.choice((1, 2, 2, 3))
        cells = draw.sample(CELLS[: draw.choice((3, 3, 4, 6))], max(2, size) if protocol.until else size)
        most = draw.choice((1, 2, 4, 4, 8))
        even, probing = draw.random() < 0.5, draw.random() < 0.3
        keys = frozenset(cell.key for cell in cells)
        resident = frozenset({DATA} if draw.random() < 0.7 else ())

        def packs() -> PackPolicy:
            if probing and not self.training.epochs:
                return PackPolicy(1, frozenset(), unknown=keys)
            return PackPolicy(most, None, even, resident)

        host, skew = draw.choice((("here", 0.0), ("here", 0.0), ("there", 0.0), ("ahead", 120.0), ("behind", -86400.0)))
        name = f"sweep{number}"
        questions = _questions(cells, draw.choice((5.0, 30.0))) if protocol.until else ()
        sweep = Sweep(name, "demo", tuple(cells), protocol, questions=questions)
        return Command(sweep, packs, draw.choice((1, 2, 3, 4)), host, skew)

    # The command ------------------------------------------------------------------------------------------------------

    def _start(self, command: Command) -> None:
        command.starts += 1
        name = f"{command.sweep.name}#{command.starts}"
        host = command.host
        skew = command.skew
        if not self.is_calm and self.draw.random() < 0.2:
            host = "another"
            skew = 3600.0
        command.process = self.processes.spawn(name, lambda: self._drive(command), host, skew)

    def _take_over(self, command: Command, frozen: Process) -> None:
        """Give a command on another host, since its driver does not answer."""
        if command.tuner is not None:
            self.counts["commands given twice"] += 1
            abandoned = command.tuner
            self.processes.log(f"gives {command.sweep.name} once more, for {frozen.name} does not answer")
            # The frozen one is no longer watched; its workers train on until it wakes and finds itself replaced.
            for slot in abandoned.slots:
                if slot.worker is not None:
                    slot.worker.was_silent = True
            command.tuner = None
            self._start(command)

    def _drive(self, command: Command) -> None:
        """Do what the command does: take the lease, run the trials, give the lease back."""
        ledger = MemoryLedger()
        process = self.processes.current
        title = command.sweep.title
        held = Lease(ledger, title, self.processes.log, lambda why: self._end_at_once(process, why), HOST)
        held.turn = SimulatedLock()
        held.thread = cast(threading.Thread, Beats(held, process))
        done: Counter[str] = Counter()

        def on_event(event: str, trial: Trial, news: Json) -> None:
            self.processes.log(f"{event} {trial.cell.label} {trial.label}")
            done[trial.key] += event == "done"
            if done[trial.key] > 1:
                self._fault(f"{trial.key} is said to be done once more")

        session = DriverState(
            command.sweep,
            MemoryLedger("memory", held.check),
            RuntimeConfig("memory", "nowhere"),
            TrialResources(max_concurrent=command.workers),
            on_event,
            process.name,
            {},
            limits=Limits(),
            work="tests.support.queue_training:train",
            pack_policy=command.packs,
        )
        try:
            with held:
                tuner.run_trials(session)
        except LeaseHeldError as error:
            self.processes.log(f"does not start: {error}")
        except tuner.NoProgressError as error:
            self.processes.log(f"gives up: {error}")
        except OSError as error:  # the ledger could not be read at the start: the command ends with that
            self.processes.log(f"ends: {error}")
        finally:
            if command.process is process:
                command.tuner = None
            with suppress(OSError):
                ledger.delete(session.stop_mark)
        for error in session.errors:
            if "simulated" not in error:
                self._fault(f"an error in the driver: {error}")
        self.processes.log(f"ends: {session.stop_reason or 'stopped' * session.stopping or 'through'}")

    def _end_at_once(self, driver: Process, why: str) -> None:
        """End a driver that has lost its lease, as its command does."""
        self.processes.log(f"lost: {why}")
        self.counts["drivers that were replaced"] += 1
        for process in self.processes.everyone:
            if process.pid == driver.pid:
                self.processes.kill(process)
        for command in self.commands:
            if command.tuner is not None and command.tuner.driver is driver:
                self._end_workers(command.tuner)
        raise Killed

    def _tuner(self, searcher: tuner.LedgerSearcher, session: DriverState, _: str) -> Tuner:
        made = Tuner(searcher, session, self._on_assign)
        for command in self.commands:  # none for a driver that was replaced and does not know it yet
            if command.process is made.driver:
                command.tuner = made
        return made

    # What is watched --------------------------------------------------------------------------------------------------

    def _fault(self, sentence: str) -> None:
        self.processes.log(f"FAULT: {sentence}")
        self.faults.append(sentence)

    def _living(self) -> Iterator[tuple[Command, Tuner]]:
        """Yield the commands that run, but for those that were silent for so long that others count them as dead."""
        for command in self.commands:
            process = command.process
            if command.tuner is None or process is None or not process.alive or command.tuner.over:
                continue
            if not process.was_silent:
                yield command, command.tuner

    def _on_assign(self, taker: Tuner, slot: Slot, since: float) -> None:
        """Check that nobody else has the trials of an assignment, and that none was done before it was asked for."""
        self.counts["assignments"] += 1
        self.counts["assignments of packs"] += len(slot.held) > 1
        for _, other in self._living() if not taker.driver.was_silent else ():
            for theirs in other.slots:
                theirs_now = {trial.key for trial in other.searcher.running.get(theirs.name, ())}
                for key in (theirs_now & slot.held) if theirs is not slot else ():
                    self._fault(
                        f"{key} goes to {taker.driver.name} {slot.name}, and {other.driver.name} {theirs.name} has it"
                    )
        for key in slot.held:
            if self.store.committed_at.get(key, since) < since:
                self._fault(f"{key} goes to {taker.driver.name} {slot.name} and was done before")

    def _on_start(self, key: str, process: Process) -> None:
        """Check that no other worker to which a living driver listens trains this trial."""
        listened = {worker for _, other in self._living() for worker in other.workers}
        for other in self.training.active[key] & listened:
            if other is not process and other.alive and process in listened:
                self._fault(f"{key} is trained by {process.name} and by {other.name} at once")

    # What befalls -----------------------------------------------------------------------------------------------------

    def _any_tuner(self) -> Tuner | None:
        running = [other for _, other in self._living()]
        return self.draw.choice(running) if running else None

    def _any_worker(self) -> tuple[Slot, Process] | None:
        slots = [(slot, slot.worker) for _, other in self._living() for slot in other.slots
                 if slot.worker is not None and slot.worker.alive and not slot.ending]  # fmt: skip
        return self.draw.choice(slots) if slots else None

    def _kill_worker(self) -> None:
        if chosen := self._any_worker():
            self.processes.log(f"kills {chosen[1].name}")
            self.processes.kill(chosen[1])

    def _lose_worker(self) -> None:
        """Let Ray believe that a worker is dead, which trains on for some time."""
        if chosen := self._any_worker():
            slot, worker = chosen
            self.processes.log(f"loses {worker.name}")
            self._orphan(slot, worker)

    def _orphan(self, slot: Slot, worker: Process) -> None:
        slot.detached.add(worker)
        slot.news.clear()
        self.processes.wake(worker)
        self.processes.call_later(self.draw.expovariate(1 / 30.0), lambda: self.processes.kill(worker))

    def _end_workers(self, other: Tuner) -> None:
        """End the workers of a driver that is gone, some at once, some later."""
        for slot in other.slots:
            if slot.worker is not None and slot.worker.alive:
                if self.draw.random() < 0.5:
                    self.processes.kill(slot.worker)
                else:
                    self._orphan(slot, slot.worker)

    def _kill_driver(self) -> None:
        if other := self._any_tuner():
            self.processes.log(f"kills {other.driver.name}")
            for process in self.processes.everyone:
                if process.pid == other.driver.pid:
                    self.processes.kill(process)
            self._end_workers(other)

    def _end_tuner(self) -> None:
        if other := self._any_tuner():
            self.processes.log(f"ends the Tuner of {other.driver.name}")
            other.error = True
            self._end_workers(other)

    def _interrupt(self) -> None:
        if other := self._any_tuner():
            self.processes.log(f"interrupts {other.driver.name}")
            other.interrupt = True

    def _freeze(self) -> None:
        """Stop a process for some time, or for so long that others take it for dead."""
        living = [process for process in self.processes.everyone if process.alive]
        if living:
            chosen = self.draw.choice(living)
            seconds = self.draw.choice((1.0, 10.0, 25.0, 66.0, 150.0))
            self.processes.log(f"freezes {chosen.name} for {seconds:g} s")
            for process in living:
                if process.pid == chosen.pid:
                    process.was_silent |= seconds > FENCE
                    self.processes.freeze(process, seconds)

    def _fail_disk(self) -> None:
        living = [process for process in self.processes.everyone if process.alive]
        if living:
            process = self.draw.choice(living)
            self.processes.log(f"fails the disk of {process.name}")
            self.store.failing[process.pid] = self.draw.choice((1, 1, 3))

    def _finish_trial(self) -> None:
        """Commit the results of some trials, as the workers of a driver do that has died since."""
        ledger = MemoryLedger()
        results, failed = self._settled()
        paused = ledger.paused()
        known = [trial for command in self.commands for trial in expand(command.sweep, results, failed, paused)]
        waiting = list({trial.key: trial for trial in known if trial.key not in results}.values())
        for trial in self.draw.sample(waiting, min(len(waiting), self.draw.choice((1, 1, 2, 4)))):
            if (result := self.training.result(trial)) is not None:
                self.processes.log(f"finishes {trial.cell.label} {trial.label}")
                ledger.commit(trial.key, result)

    # The course of a world --------------------------------------------------------------------------------------------

    def _settled(self) -> tuple[Mapping[str, Json], set[str]]:
        """Return the results and the failed trials on the ledger."""
        ledger = MemoryLedger()
        return ledger.results(), {key for key, attempts in ledger.failed().items() if has_failed(attempts)}

    def run(self) -> list[str]:
        """Run the world and return its faults."""
        World.store = self.store
        Present.training = self.training
        try:
            with patched(self._tuner):
                self._disturb()
                for command in self.commands:
                    self._end_calmly(command)
                for command in self.commands:
                    self._check(command)
        except StuckError as error:
            self._fault(str(error))
        finally:
            self.processes.close()
        self.counts["trials trained"] += len(self.store.committed_at)
        self.counts["simulated hours"] += round(self.processes.now / 3600)
        for crash in self.processes.crashes:
            self._fault(f"a process crashed: {crash}")
        return self.faults

    def _disturb(self) -> None:
        """Let the commands run, and be given again, while things befall them."""
        names = list(self.disturbances)
        while self.processes.now < self.quiet_after and not self.faults:
            self.processes.pause(self.draw.expovariate(1 / self.pace))
            for command in self.commands:
                process = command.process
                gone = process is None or not process.alive
                if gone and self.draw.random() < 0.4:
                    self._start(command)
                elif process is not None and process.frozen_until > self.processes.now and self.draw.random() < 0.2:
                    self._take_over(command, process)
            if names:
                name = self.draw.choice(names)
                self.counts[name] += 1
                self.disturbances[name]()
        self.is_calm = True
        self.training.trouble = 0.0
        self.store.failing.clear()
        self.processes.log("calm")

    def _end_calmly(self, command: Command) -> None:
        """Give the command, with failed trials tried again, until all of its trials are settled."""
        until = self.processes.now + CALM
        while self.processes.now < until:
            if command.process is not None and command.process.alive:
                self._wait_for(command)
            results, failed = self._settled()
            parts = sweep_trials(command.sweep, results, failed, paused=MemoryLedger().paused())
            waiting = frozenset[str]().union(*(part.paused for part in parts.values()))
            trials = [trial for trial in planned(parts.values()) if trial.key not in waiting]
            again = [trial for trial in trials if trial.key in failed and self.training.result(trial) is not None]
            for trial in again:
                MemoryLedger().delete(f"attempts/{trial.key}")
            if not again and all(trial.key in results or trial.key in failed for trial in trials):
                return
            self.processes.pause(5.0)  # where another driver of it lives, the command does not start
            self._start(command)
        raise StuckError(f"{command.sweep.name} comes to no end")

    def _wait_for(self, command: Command) -> None:
        assert command.process is not None
        until = self.processes.now + PATIENCE
        while command.process.alive:
            if self.processes.now > until:
                raise StuckError(f"{command.process.name} does not end")
            self.processes.pause(5.0)

    def _check(self, command: Command) -> None:
        """Compare the ledger with that of an undisturbed sweep."""
        results: dict[str, Json] = {}
        failed: set[str] = set()
        paused: dict[str, Json] = {}
        while True:
            parts = sweep_trials(command.sweep, results, failed, paused=paused)
            settled = results.keys() | failed | frozenset[str]().union(*(part.paused for part in parts.values()))
            waiting = [trial for trial in planned(parts.values()) if trial.key not in settled]
            if not waiting:
                break
            # One of each cell at a time: a cell whose first trainings diverge needs no others.
            for trial in {trial.cell.key: trial for trial in waiting[::-1]}.values():
                fate = self.training.fate(trial)
                epoch = parts[trial.cell.key].pauses.get(trial.key, trial.recipe.epochs)
                result = self.training.result(trial)
                if epoch < trial.recipe.epochs and not 0 <= fate.fails_at < epoch:
                    paused[trial.key] = {"epoch": epoch, "curve": list(fate.curve[:epoch]), "seconds": float(epoch)}
                elif result is None:
                    failed.add(trial.key)
                else:
                    results[trial.key] = result
        ledger, really_failed = self._settled()
        if command.sweep.protocol.until:
            answers = decisions(command.sweep, results, failed)
            self.counts.update(answers)
            if answers != (really := decisions(command.sweep, ledger, really_failed)):
                self._fault(f"{command.sweep.name} decides {really}, not {answers}")
        reached = MemoryLedger().paused()
        for key, record in paused.items():
            reaches = reached.get(key, {}).get("epoch", 0) >= record["epoch"]
            # Another sweep, which trains it further, may have met its failure before.
            if not reaches and key not in ledger and key not in results and key not in really_failed:
                self._fault(f"{key} of {command.sweep.name} has not paused after epoch {record['epoch']}")
            self.counts["paused"] += key in reached
        for key, result in results.items():
            if key not in ledger:
                self._fault(f"{key} of {command.sweep.name} is lost")
            elif ledger[key] != result:
                self._fault(f"{key} of {command.sweep.name} has another result: {ledger[key]}, not {result}")
        for key in failed - really_failed:
            self._fault(f"{key} of {command.sweep.name} has not failed")
        for key in sorted(results):
            if self.store.files.get(f"checkpoints/{key}") and not self.disturbances:
                self._fault(f"{key} is done and has a checkpoint")
        if not self.disturbances and not self.training.trouble and self.quiet_after == 0.0:
            for folder in ("claims", "packs", "stops", "leases"):
                if names := sorted(self.store.files.get(folder, {})):
                    self._fault(f"{folder} still holds {names}")

    def history(self) -> str:
        """Return all that happened, a line each."""
        return "\n".join(self.processes.history)


class Beats:
    """Thread that renews a lease, in the simulation."""

    def __init__(self, held: Lease, driver: Process) -> None:
        """Prepare to renew the lease of a driver."""
        self.held = held
        self.driver = driver
        self.process: Process | None = None

    def start(self) -> None:
        """Start to renew it."""
        driver = self.driver
        name = f"{driver.name} beats"
        self.process = World.store.processes.spawn(name, self._run, driver.host, driver.skew, driver.pid)

    def join(self) -> None:
        """Wait until it is renewed no more."""
        while self.process is not None and not self.process.ended:
            World.store.processes.wake(self.process)
            World.store.processes.pause(0.5)

    def _run(self) -> None:
        while not self.held.over.is_set():
            with suppress(OSError):
                self.held.renew()
            World.store.processes.pause(lease.BEAT)


class IdleWatchdog:
    """Stands for a worker's watchdog: nothing hangs in a simulation."""

    def __init__(self, *_: object) -> None:
        """Watch nothing."""

    def __enter__(self) -> IdleWatchdog:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def set_current(self, key: str) -> None:
        """Do nothing."""

    def wrap(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return `stop`."""
        return stop


class Known:
    """What is computed once for all worlds of a process, since most of the time would go into it: keys, nets, sizes."""

    keys: ClassVar[dict[tuple[object, ...], str]] = {}
    trials: ClassVar[dict[str, Trial]] = {}
    estimates: ClassVar[dict[str, tuple[int, int]]] = {}
    texts: ClassVar[dict[str, Json]] = {}

    @classmethod
    def key(cls, trial: Trial) -> str:
        """Return a trial's key; the cells of all worlds are told apart by their labels."""
        identity = (trial.cell.label, *FIELDS(trial))
        key = cls.keys.get(identity)
        if key is None:
            key = cls.keys[identity] = REAL_KEY(trial)
            cls.trials[key] = trial
        return key

    @classmethod
    def trial(cls, value: Json) -> Trial:
        """Return the trial of a JSON value."""
        return cls.trials[value["key"]]

    @classmethod
    def json(cls, trial: Trial) -> Json:
        """Return a trial as JSON."""
        if trial.key not in cls.texts:
            cls.texts[trial.key] = REAL_JSON(trial)
        return cls.texts[trial.key]

    @classmethod
    def estimate(cls, trial: Trial, classes: int, crop: int) -> tuple[int, int]:
        """Return a trial's memory."""
        if trial.key not in cls.estimates:
            cls.estimates[trial.key] = REAL_ESTIMATE(trial, classes, crop)
        return cls.estimates[trial.key]


FIELDS = attrgetter(*(field.name for field in dataclasses.fields(Trial) if field.name != "cell"))
CACHED_KEY = cached_property(Known.key)
CACHED_KEY.__set_name__(Trial, "key")
REAL_KEY = Trial.__dict__["key"].func
REAL_JSON, REAL_ESTIMATE = Trial.to_json, packing.memory_estimate


@contextmanager
def patched(make_tuner: Callable[..., Tuner]) -> Iterator[None]:
    """Replace what touches the machine: files, clocks, processes, Tune, the training."""
    clock = queue_ledger.SimulatedTime()
    replaced: dict[str, object] = {
        "sweeps.execution.tuner._tuner": make_tuner,
        "sweeps.execution.tuner.time": clock,
        "sweeps.execution.searcher.time": clock,
        "sweeps.execution.tuner.make_scratch": lambda kind: kind,
        "sweeps.execution.tuner.remove_scratch": lambda folder: None,
        "sweeps.execution.tuner.redirect_stdout": lambda _: nullcontext(),
        "sweeps.execution.session.time": clock,
        "sweeps.experiment.trial.Trial.key": CACHED_KEY,
        "sweeps.experiment.trial.Trial.to_json": lambda trial: Known.json(trial),
        "sweeps.execution.worker.trial_from_json": Known.trial,
        "sweeps.execution.packing.memory_estimate": Known.estimate,
        "sweeps.execution.worker.Ledger": queue_ledger.open_ledger,
        "sweeps.execution.worker.Watchdog": IdleWatchdog,
        "sweeps.execution.watchdog.time": clock,
        "sweeps.execution.pack.Ledger": queue_ledger.open_ledger,
        "sweeps.execution.pack.trial_steps": queue_training.trial_steps,
        "sweeps.execution.pack.time": clock,
        "sweeps.store.lease.lease_file": SimulatedFile,
        "sweeps.store.lease.StoreFile": SimulatedFile,
        "sweeps.store.lease.this_process": HOST.this_process,
        "sweeps.store.lease.system": queue_ledger.simulated_system,
        "sweeps.store.lease.HERE": HOST,
        "sweeps.execution.session.Drivers": lambda ledger: Drivers(ledger, HOST),
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        yield


class WorldRun(NamedTuple):
    """What became of a world: its faults, all that happened, and how often it did."""

    seed: int
    faults: list[str]
    history: str
    counts: Counter[str]


# Faults that were mended, as the methods that had them.


def _pack_whose_first_comes_back(searcher: tuner.LedgerSearcher) -> list[Trial]:
    """Put a pack together as it was once done: a mate that another sweep has finished puts the first back."""
    first = next((trial for trial in searcher.waiting[::-1] if searcher._available(trial)), None)
    if first is None:
        return []
    searcher._take([first])
    policy = searcher.session.pack_policy()
    most = searcher.pack_limits.get(policy.kind(first), policy.most)
    others = policy.members_for(first, searcher.waiting[::-1], searcher._epoch_of, most, 10, 32)
    others = [trial for trial in others if searcher._available(trial)]
    searcher._take(others)
    return [first, *others]


def _claim_after_a_look(drivers: Drivers, sweep: str, key: str) -> bool:
    """Look for a claim, and write another one later."""
    name = f"claims/{key}.json"
    note = drivers.ledger.read_json(name)
    if note and note.get("sweep") != sweep and lease._drives(drivers, note):
        return False
    drivers.ledger.write_json(name, {"sweep": sweep} | HOST.this_process())
    return True


PLANTED: dict[str, dict[str, object]] = {
    "claims": {"sweeps.execution.searcher.claim": _claim_after_a_look},
    "packs": {"sweeps.execution.searcher.LedgerSearcher._next_group": _pack_whose_first_comes_back},
}


def run_world(seed: int, planted: str = "") -> WorldRun:
    """Run the world of a seed, with a planted fault."""
    world = QueueWorld(seed)
    with ExitStack() as stack:
        for name, value in PLANTED[planted].items() if planted else ():
            stack.enter_context(mock.patch(name, value))
        faults = world.run()
    return WorldRun(seed, faults, world.history(), world.counts)
