"""State of a driver: what its trials get, what it has seen of them, and whether it is to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.execution.packing import PackPolicy
from sweeps.execution.resources import TrialResources
from sweeps.experiment.model_facts import net_facts
from sweeps.experiment.questions.question import Question
from sweeps.experiment.questions.rule import Trajectory
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Trial
from sweeps.store.lease import Drivers
from sweeps.store.ledger import Json, Ledger
from sweeps.training.runtime import RuntimeConfig


class Listener(Protocol):
    """Listener to events of trials: "started", "epoch", "done", "failed", "left"; `news` is a row or a result."""

    def __call__(self, event: str, trial: Trial, news: Json) -> None:
        """Take in an event of a trial."""


@dataclass(frozen=True)
class Limits:
    """Limits of a session: hours of GPUs (of trials, on CPUs), failed trials, cells that fail by the same error."""

    hours: float = float("inf")
    failures: int = 1_000_000
    same_error: int = 3


@dataclass
class DriverState:
    """State of one driver, from its start to its end.

    `work` names another trainer than ours as module:function, for benchmarks of the queue itself. `pack_policy` is
    asked each time that trials are handed out, since epochs may have shown by then that packing pays.
    """

    sweep: Sweep
    ledger: Ledger
    config: RuntimeConfig
    resources: TrialResources
    on_event: Listener
    name: str
    fingerprints: dict[str, str]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)  # classes and crop, by data set
    limits: Limits = Limits()
    work: str = ""
    shipped: dict[str, str] = field(default_factory=dict)  # the user's files, for workers of other hosts
    pack_policy: Callable[[], PackPolicy] = PackPolicy
    say: Callable[[str], None] = print  # shows a sentence to the user
    address: str = "local"  # of the cluster that was joined; local: Ray was started here
    lose_cluster: Callable[[str], None] = print  # ends the command where the cluster that was joined has gone
    start_over: Callable[[str], None] = print  # begins the command anew where Ray has died and holds the main thread
    hours_before: float = 0.0  # that the command had used when it began anew
    # What was seen so far.
    stopping: bool = False
    next_mark: float = -math.inf  # when the workers may be told to stop, by the monotonic clock; never, once they were
    over_budget: bool = False
    stop_reason: str = ""
    epochs: int = 0
    planned: list[Trial] = field(default_factory=list)
    pending: list[Trial] = field(default_factory=list)  # stand for trials that will follow from results
    given_up: dict[str, str] = field(default_factory=dict)  # why no more of a cell is trained, by its label
    answers: dict[Question, Trajectory] | None = None  # of questions no longer open; None before the first look
    started_at: dict[str, float] = field(default_factory=dict)  # of what runs now, by Tune's name
    lost_seconds: float = 0.0  # of what ran when a Tuner ended in an error
    seconds_by_trial: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    drivers: Drivers = field(init=False)  # of other sweeps, whose beats it has seen

    def __post_init__(self) -> None:
        """Prepare to look at the drivers of other sweeps."""
        self.drivers = Drivers(self.ledger)

    def size(self, trial: Trial) -> int:
        """Return a measure of a step's memory: the batch times the elements of all maps."""
        classes, crop = self.shapes.get(trial.cell.dataset, (10, trial.cell.net.size))
        return trial.recipe.batch * net_facts(trial.cell.net, classes, crop).maps

    @property
    def stop_mark(self) -> str:
        """Return the ledger's name of the file whose presence asks this session's workers to stop."""
        return f"stops/{self.name}"

    def hours(self) -> float:
        """Return the hours of GPUs, or of workers on CPUs, that this command has used; a pack counts once."""
        now = time.monotonic()
        running = sum(now - began for began in self.started_at.values())
        seconds = sum(self.seconds_by_trial.values()) + self.lost_seconds + running
        return self.hours_before + seconds / 3600 * (self.resources.gpus or 1.0)

    def decided(self) -> int:
        """Return how many of the page's questions are decided."""
        return sum(trajectory.is_decided for trajectory in (self.answers or {}).values())

    def stop(self) -> None:
        """Ask every running trial to save its state and leave, and start no more.

        While the store refuses the mark that tells the workers, each call tries again, once a second at most.
        """
        is_first = not self.stopping
        self.stopping = True
        if time.monotonic() < self.next_mark:
            return
        self.next_mark = math.inf  # no other call writes it meanwhile, or once it is written
        try:
            self.ledger.write(self.stop_mark, b"")
        except OSError as error:
            self.next_mark = time.monotonic() + 1.0
            if is_first:
                self.errors.append(f"{error}")
