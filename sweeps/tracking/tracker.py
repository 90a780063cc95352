"""The tracker: a thread that brings MLflow up to date with the ledger while trials train."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from sweeps.experiment.plan import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.run_index import Store

PAUSE: Final = 2.0  # seconds between two rounds of the thread, at least
RATIO: Final = 30.0  # seconds of pause for each second that a round computed, which leaves the CPU to the trials
LONGEST: Final = 60.0  # seconds between two rounds, at most


class Tracker:
    """The thread that keeps MLflow as the ledger says; no error in it reaches the sweep.

    `enqueue` may be called from any thread, at any rate, and returns at once: the queue holds one entry per trial.
    """

    def __init__(self, store: Store, ledger: Ledger, sweep: Sweep, tell: Callable[[str], None]) -> None:
        """Start the thread; `tell` gets a sentence when the server goes away or comes back."""
        self.store, self.ledger, self.sweep, self.tell = store, ledger, sweep, tell
        self.queued: dict[str, tuple[Trial, str]] = {}  # trials that moved, with the status of their runs
        self.cells: dict[str, Cell] = {}  # cells whose runs are to be brought up to date
        self.seen: set[str] = set()  # trials that were queued before
        self.trials: dict[str, Trial] = {}
        self.changed = threading.Condition()
        self.closing = False
        self.away_since: float | None = None
        self.error = ""
        self.thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self.thread.start()

    def register(self, trials: Iterable[Trial]) -> None:
        """Note the trials of the plan, whose results make the averages of the cells."""
        with self.changed:
            self.trials |= {trial.key: trial for trial in trials}

    def enqueue(self, trial: Trial, state: str = "RUNNING") -> None:
        """Note that `trial` moved; without a result its run takes the status `state`."""
        with self.changed:
            self.trials[trial.key] = trial
            self.queued[trial.key] = (trial, state)
            if trial.key not in self.seen:
                self.seen.add(trial.key)
                self.cells[trial.cell.key] = trial.cell
            self.changed.notify()

    def close(self, seconds: float) -> int:
        """Empty the queue within `seconds`, end the thread, and return how many trials are still queued."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(seconds)
        with self.changed:
            return len(self.queued)

    def _work(self) -> None:
        runs: MlflowRuns | None = None
        failures = 0
        while self._wait_for_work():
            try:
                runs = runs or MlflowRuns(self.store, self.ledger, self.sweep)
                began = time.thread_time()
                self._sync(runs)
                failures, pause = 0, max(PAUSE, RATIO * (time.thread_time() - began))
                self._note_answer()
            except Exception as error:  # an error of the server or its client does not end training
                self._note_error(error)
                if self.closing and failures:
                    return
                runs, failures = None, min(failures + 1, 9)
                pause = PAUSE * 2**failures
            # Entries wait meanwhile: epochs that are sent together cost the server hardly more than one.
            with self.changed:
                self.changed.wait_for(lambda: self.closing, min(pause, LONGEST))

    def _wait_for_work(self) -> bool:
        """Wait until something is queued; False where the tracker is closing and nothing is."""
        with self.changed:
            self.changed.wait_for(lambda: self.queued or self.cells or self.closing)
            return bool(self.queued or self.cells)

    def _sync(self, runs: MlflowRuns) -> None:
        """Bring each trial that is queued now to its run, once, so that a busy trial keeps no other waiting."""
        with self.changed:
            entries = list(self.queued.items())
        for key, entry in entries:
            trial, state = entry
            done = runs.sync_trial(trial, state)
            with self.changed:
                if done:  # epochs change nothing in a cell's averages
                    self.cells[trial.cell.key] = trial.cell
                if self.queued.get(key) is entry:
                    del self.queued[key]
        with self.changed:
            cells, trials = list(self.cells.values()), list(self.trials.values())
        for cell in cells:
            runs.sync_cell(cell, [trial for trial in trials if trial.cell.key == cell.key])
            with self.changed:
                self.cells.pop(cell.key, None)

    def _note_error(self, error: Exception) -> None:
        if self.away_since is None:
            self.away_since = time.time()
            self.tell(
                f"MLflow at {self.store.uri} does not answer ({type(error).__name__}); "
                "training goes on, and the runs are brought up to date when it is back"
            )
        self.error = f"{type(error).__name__}: {error}"

    def _note_answer(self) -> None:
        if self.away_since is not None:
            self.tell(f"MLflow is back after {time.time() - self.away_since:.0f} s; its runs are up to date")
        self.away_since = None
