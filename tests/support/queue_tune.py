"""Stand-in for Ray Tune in the simulation of the queue: what its controller does with a searcher and with workers.

As Tune's own it keeps one trial waiting for a place, hands a worker's reports over one by one, starts a worker that has
died again with the same trials, up to three times in all, and may end in an error.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from sweeps.execution.messages import Assignment, Message
from sweeps.execution.searcher import LedgerSearcher
from sweeps.execution.session import DriverState
from sweeps.execution.worker import work
from sweeps.experiment.plan import MAX_ATTEMPTS
from tests.support.queue_ledger import World
from tests.support.queue_processes import Process, Processes


@dataclass
class Slot:
    """Trial in Tune's sense: an assignment, and the worker that has it."""

    name: str
    assignment: Assignment
    held: set[str]  # keys that this worker is to train, until the driver has heard that they have left
    worker: Process | None = None
    failures: int = 0
    news: deque[Message] = field(default_factory=deque)
    ending: str = ""  # of the worker: done, error
    detached: set[Process] = field(default_factory=set)  # workers to which Tune does not listen any more


class TunerError(RuntimeError):
    """An error in which a Tuner ends, as Ray's do at any time."""


class Tuner:
    """Tuner over a searcher: asks it for trials, starts their workers, and tells it what they report."""

    def __init__(self, searcher: LedgerSearcher, session: DriverState, on_assign: Callable[[Tuner, Slot, float], None]):
        """Prepare to run the trials of a searcher; `on_assign(tuner, slot, since)` is told of each assignment."""
        self.searcher = searcher
        self.session = session
        self.on_assign = on_assign
        self.processes: Processes = World.store.processes
        self.driver = self.processes.current
        self.slots: list[Slot] = []
        self.count = 0
        self.finished = False
        self.error = False  # to end in
        self.interrupt = False  # a signal that the driver has got
        self.over = False

    @property
    def workers(self) -> list[Process]:
        """Return the workers that live and are listened to."""
        return [slot.worker for slot in self.slots if slot.worker is not None and slot.worker.alive]

    def fit(self) -> None:
        """Run until nothing runs and the searcher has no more."""
        try:
            while not self.finished or self.slots:
                self.processes.pause(self.processes.random.uniform(0.2, 1.2))
                if self.interrupt:
                    self.interrupt = False
                    self.session.stop()
                if self.error:
                    raise TunerError("simulated")
                for slot in list(self.slots):
                    self._hear(slot)
                self._ask()
                self._start()
        finally:
            self.over = True

    def _ask(self) -> None:
        """Ask for a trial, unless one waits for a place."""
        if self.finished or any(slot.worker is None for slot in self.slots):
            return
        if len(self.slots) >= self.session.resources.max_concurrent:
            return
        self.count += 1
        name = f"t{self.count}"
        since = self.processes.now
        suggestion = self.searcher.suggest(name)
        if suggestion == "FINISHED":
            self.finished = True
        elif suggestion is not None:
            assignment = cast(Assignment, suggestion)
            slot = Slot(name, assignment, {str(json.loads(text)["key"]) for text in assignment["trials"]})
            self.slots.append(slot)
            self.on_assign(self, slot, since)

    def _start(self) -> None:
        """Start the workers of trials that wait for a place."""
        for slot in self.slots:
            if slot.worker is None and self.processes.random.random() < 0.7:
                slot.ending = ""
                slot.worker = self._spawn(slot)
                self.searcher.trial_started(slot.name)

    def _spawn(self, slot: Slot) -> Process:
        """Start a worker."""
        processes = self.processes

        def notify(message: Message) -> None:
            if me in slot.detached:
                return
            slot.news.append(message)
            processes.park()

        def run() -> None:
            ending = "error"
            try:
                work(slot.assignment, notify)
                ending = "done"
            except Exception as error:
                processes.log(f"ends in {type(error).__name__}: {error}")
            if me not in slot.detached:
                slot.ending = ending

        me = processes.spawn(f"{self.driver.name}.{slot.name}.{slot.failures}", run, self.driver.host, self.driver.skew)
        return me

    def _hear(self, slot: Slot) -> None:
        """Take in a worker's next report, or its end."""
        worker = slot.worker
        if worker is None:
            return
        if slot.news and worker.killed and self.processes.random.random() < 0.5:
            slot.news.clear()  # lost on the way
        if slot.news:
            message = slot.news.popleft()
            self.searcher.on_trial_result(slot.name, cast(Mapping[str, Any], {"news": [message]}))
            if "over" in message:
                slot.held.discard(message["key"])
            self.processes.wake(worker)
            return
        if slot.ending == "done":
            self._complete(slot, error=False)
        elif slot.ending == "error" or worker.killed or worker in slot.detached:
            slot.failures += 1
            slot.detached.add(worker)
            if slot.failures < MAX_ATTEMPTS:
                self.searcher.trial_stopped(slot.name)
                slot.worker = None
                slot.ending = ""
                self.slots.remove(slot)
                self.slots.append(slot)
            else:
                self._complete(slot, error=True)

    def _complete(self, slot: Slot, error: bool) -> None:
        self.slots.remove(slot)
        self.searcher.on_trial_complete(slot.name, error=error)
