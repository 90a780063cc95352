"""One driver's time on a sweep: what a trial is given, when to stop, who listens, and the signals that end it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.execution.packing import PackPolicy
from sweeps.execution.resources import TrialResources
from sweeps.execution.throughput import Gauge
from sweeps.experiment.plan import Sweep
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json, Ledger
from sweeps.training.runtime import RuntimeConfig


class Listener(Protocol):
    """What hears of trials: "started", "epoch", "done", "failed", "left"; `news` is a metrics row or a result."""

    def __call__(self, event: str, trial: Trial, news: Json) -> None: ...


@dataclass(frozen=True)
class Limits:
    """When a session ends before its sweep: hours of GPUs (of trials, on CPUs), failed trials, errors that repeat."""

    hours: float = float("inf")
    failures: int = 1_000_000
    same_error: int = 3  # cells that fail by one and the same error: it is not the cell


@dataclass
class DriverState:
    """One driver's time on a sweep: what is asked for, what was seen, and whether it is to stop."""

    sweep: Sweep
    ledger: Ledger
    config: RuntimeConfig
    resources: TrialResources
    on_event: Listener
    name: str
    fingerprints: dict[str, str]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    limits: Limits = Limits()
    # What trains a trial, as module:function: another one stands in for it where the queue itself is measured.
    work: str = "sweeps.execution.rank_processes:run_trial"
    pack_policy: PackPolicy = field(default_factory=PackPolicy)
    gauge: Gauge | None = None  # what is to be measured first
    stopping: bool = False
    over_budget: bool = False
    stop_reason: str = ""
    epochs: int = 0
    planned: list[Trial] = field(default_factory=list)  # as far as it is known; the others are to come
    pending: list[Trial] = field(default_factory=list)
    started_at: dict[str, float] = field(default_factory=dict)  # by Tune's name of what runs
    lost_seconds: float = 0.0  # seconds of what ran when a Tuner ended in an error
    seconds_by_trial: dict[str, float] = field(default_factory=dict)
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
        running = sum(now - began for began in self.started_at.values())
        return (sum(self.seconds_by_trial.values()) + self.lost_seconds + running) / 3600 * (self.resources.gpus or 1.0)

    def stop(self) -> None:
        """Ask every running trial to save its state and leave, and start no more."""
        if not self.stopping:
            self.stopping = True
            try:
                self.ledger.write(self.stop_mark, b"")
            except OSError as error:
                self.errors.append(f"{error}")
