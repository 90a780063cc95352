"""The tracker: a thread that brings MLflow up to date with the ledger while trials train."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from sweeps.experiment.plan import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns, Store


class Tracker:
    """The thread that keeps MLflow at the ledger's word; nothing it meets reaches the sweep.

    `mark` is called from anywhere, at any rate, and returns at once: it holds at most one note per trial.
    """

    def __init__(self, store: Store, ledger: Ledger, sweep: Sweep, tell: Callable[[str], None]) -> None:
        """Start the thread; `tell` gets a sentence when the server goes away or comes back."""
        self.store, self.ledger, self.sweep, self.tell = store, ledger, sweep, tell
        self.marked: dict[str, tuple[Trial, str, int]] = {}
        self.marks = 0
        self.cells: dict[str, Cell] = {}
        self.begun: set[str] = set()  # trials that were marked before
        self.trials: dict[str, Trial] = {}
        self.lock = threading.Condition()
        self.closing = False
        self.away_since: float | None = None
        self.error = ""
        self.runs: dict[str, str] = {}
        self.thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self.thread.start()

    def register(self, trials: Iterable[Trial]) -> None:
        """Note the trials of the plan, whose results the cells' averages are made of."""
        with self.lock:
            self.trials |= {trial.key: trial for trial in trials}

    def enqueue(self, trial: Trial, state: str = "RUNNING") -> None:
        """Note that `trial` moved; without a result its run takes `state`."""
        with self.lock:
            self.trials[trial.key] = trial
            self.marks += 1
            self.marked[trial.key] = (trial, state, self.marks)
            if trial.key not in self.begun:
                self.begun.add(trial.key)
                self.cells[trial.cell.key] = trial.cell
            self.lock.notify()

    def close(self, seconds: float) -> int:
        """Bring everything marked to MLflow within `seconds`, and return how many trials are still not there."""
        with self.lock:
            self.closing = True
            self.lock.notify()
        self.thread.join(seconds)
        with self.lock:
            return len(self.marked)

    def _work(self) -> None:
        projection: MlflowRuns | None = None
        failed = 0
        while True:
            with self.lock:
                while not self.marked and not self.cells and not self.closing:
                    self.lock.wait()
                if self.closing and not self.marked and not self.cells:
                    return
            try:
                projection = projection or MlflowRuns(self.store, self.ledger, self.sweep)
                began = time.thread_time()
                self._round(projection)
                self._back()
                failed, pause = 0, max(PAUSE, RATIO * (time.thread_time() - began))
            except Exception as error:  # whatever a server or its client comes up with, training goes on
                self._away(error)
                if self.closing and failed:
                    return
                projection, failed = None, min(failed + 1, 9)
                pause = PAUSE * 2**failed
            ends = time.monotonic() + min(pause, LONGEST)
            with self.lock:
                # Marks that come meanwhile wait: epochs that are sent together cost the server hardly more than one.
                while not self.closing and (left := ends - time.monotonic()) > 0:
                    self.lock.wait(left)

    def _round(self, projection: MlflowRuns) -> None:
        """Bring each trial that is marked now to its run, once: one that moves all the time keeps no other waiting."""
        with self.lock:
            marks = list(self.marked.items())
        for key, mark in marks:
            done = projection.sync_trial(mark[0], mark[1])
            with self.lock:
                if done:  # epochs change nothing of a cell's averages
                    self.cells[mark[0].cell.key] = mark[0].cell
                if self.marked.get(key) == mark:
                    del self.marked[key]
        with self.lock:
            cells = list(self.cells.values())
        for cell in cells:
            own = [trial for trial in list(self.trials.values()) if trial.cell.key == cell.key]
            results = self.ledger.results(trial.key for trial in own)
            projection.sync_cell(cell, own, over=len(results) == len(own))
            with self.lock:
                self.cells.pop(cell.key, None)
        self.runs = dict(projection.runs)

    def _away(self, error: Exception) -> None:
        if self.away_since is None:
            self.away_since = time.time()
            self.tell(
                f"MLflow at {self.store.uri} does not answer ({type(error).__name__}); "
                "training goes on, and the runs are brought up to date when it is back"
            )
        self.error = f"{type(error).__name__}: {error}"

    def _back(self) -> None:
        if self.away_since is not None:
            self.tell(f"MLflow is back after {time.time() - self.away_since:.0f} s; its runs are up to date")
        self.away_since = None


# Seconds between two rounds of the thread: so many at least, and so many for each in which a round has computed, which
# leaves the CPU to the trials; more while the server is away; a minute at most.
PAUSE, RATIO, LONGEST = 2.0, 30.0, 60.0
