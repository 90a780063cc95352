"""The tracker: a thread that brings MLflow up to date with the ledger while trials train."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.lease import LeaseLostError
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.run_index import Store
from sweeps.tracking.store_errors import Trouble, place, trouble

PAUSE: Final = 2.0  # seconds between two rounds of the thread, at least
RATIO: Final = 30.0  # seconds of pause for each second that a round computed, which leaves the CPU to the trials
LONGEST: Final = 60.0  # seconds between two rounds, at most
GRACE: Final = 10.0  # seconds at the end in which errors that may pass are waited for


class Tracker:
    """The thread that keeps MLflow as the ledger says; no error in it reaches the sweep.

    `enqueue` may be called from any thread, at any rate, and returns at once: the queue holds one entry per trial.
    """

    def __init__(self, store: Store, ledger: Ledger, sweep: Sweep, tell: Callable[[str], None]) -> None:
        """Start the thread; `tell` gets a sentence when the server goes away or comes back."""
        self.store = store
        self.ledger = ledger
        self.sweep = sweep
        self.tell = tell
        self.queued: dict[str, tuple[Trial, str]] = {}  # trials that moved, with the status of their runs
        self.cells: dict[str, Cell] = {}  # cells whose runs are to be brought up to date
        self.states: dict[str, str] = {}  # the latest status of each trial that was queued
        self.trials: dict[str, Trial] = {}
        self.skipped: Collection[str] = frozenset()  # keys of trials that are not waited for
        self.paused: Collection[str] = frozenset()  # keys of trials that their search has paused for good
        self.compared = True  # whether the runs were compared with the ledger since they were read
        self.changed = threading.Condition()
        self.sent = 0  # trials and cells that were brought up to date
        self.closing_since: float | None = None
        self.away_since: float | None = None
        self.trouble = Trouble("", False)
        self.thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self.thread.start()

    def register(
        self, trials: Iterable[Trial], skipped: Collection[str] = frozenset(), paused: Collection[str] = frozenset()
    ) -> None:
        """Compare the runs of the plan's trials, none of which trains now, with the ledger, and send what differs.

        Their results make the averages of the cells. The keys in `skipped` are of trials that will not train,
        those in `paused` of trials that their search has paused for good.
        """
        with self.changed:
            self.trials |= {trial.key: trial for trial in trials}
            self.skipped = frozenset(skipped)
            self.paused = frozenset(paused)
            self.states.clear()
            idle = {"RUNNING": "KILLED"}
            self.queued = {key: (trial, idle.get(state, state)) for key, (trial, state) in self.queued.items()}
            self.compared = False
            self.changed.notify()

    def enqueue(self, trial: Trial, state: str = "RUNNING") -> None:
        """Note that `trial` moved; without a result its run takes the status `state`."""
        with self.changed:
            self.trials[trial.key] = trial
            self.queued[trial.key] = (trial, state)
            if trial.key not in self.states:
                self.cells[trial.cell.key] = trial.cell
            self.states[trial.key] = state
            self.changed.notify()

    def waiting(self) -> int:
        """Return how many runs, of trials and cells, wait to be sent."""
        with self.changed:
            return len(self.queued) + len(self.cells)

    def close(self, seconds: float, at_most: float = math.inf) -> int:
        """Empty the queue, end the thread, and return how many runs MLflow lacks, as far as known.

        That takes as long as runs are sent, ends `seconds` after the last of them, and takes `at_most` so many.
        """
        with self.changed:
            self.closing_since = time.monotonic()
            self.changed.notify()
        sent = -1
        end = time.monotonic() + at_most
        while self.thread.is_alive() and sent != self.sent and (left := end - time.monotonic()) > 0:
            sent = self.sent
            self.thread.join(min(seconds, left))
        with self.changed:
            unsent = set(self.queued)
            if not self.compared:
                committed = {name.removesuffix(".json") for name in self.ledger.names("results")}
                unsent |= committed & self.trials.keys()
            return len(unsent or self.cells)

    def _work(self) -> None:
        runs: MlflowRuns | None = None
        failures = 0
        while self._wait_for_work():
            try:
                runs = runs or MlflowRuns(self.store, self.ledger, self.sweep, self.tell)
                began = time.thread_time()
                self._sync(runs)
                failures = 0
                pause = max(PAUSE, RATIO * (time.thread_time() - began))
                self._note_answer()
            except LeaseLostError:  # the driver has ended, or another one has taken over
                return
            except Exception as error:  # an error of the server or its client does not end training
                runs = None
                failures = min(failures + 1, 9)
                self._note_error(error)
                if self._is_over():
                    return
                pause = PAUSE * 2**failures
            self._rest(min(pause, LONGEST), failures > 0)

    def _rest(self, seconds: float, has_failed: bool) -> None:
        """Wait between two rounds, at the end only after an error.

        Entries wait meanwhile: epochs that are sent together cost the server hardly more than one.
        """
        with self.changed:
            if self.closing_since is None:
                self.changed.wait_for(lambda: self.closing_since is not None, seconds)
            elif has_failed:
                self.changed.wait_for(lambda: False, PAUSE)

    def _is_over(self) -> bool:
        """Return whether the sweep ends and the store's trouble lasts, or has lasted long enough."""
        closing = self.closing_since
        return closing is not None and (self.trouble.lasts or time.monotonic() - closing > GRACE)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False where the tracker is closing and there is nothing."""

        def is_pending() -> bool:
            return bool(self.queued or self.cells or not self.compared)

        with self.changed:
            self.changed.wait_for(lambda: is_pending() or self.closing_since is not None)
            return is_pending()

    def _sync(self, runs: MlflowRuns) -> None:
        """Bring each trial that is queued now to its run, once, so that a busy trial keeps no other waiting."""
        self._compare(runs)
        with self.changed:
            entries = list(self.queued.items())
        for key, entry in entries:
            trial, state = entry
            done = runs.sync_trial(trial, state)
            with self.changed:
                self.sent += 1
                if done:  # epochs change nothing in a cell's averages
                    self.cells[trial.cell.key] = trial.cell
                if self.queued.get(key) is entry:
                    del self.queued[key]
        with self.changed:
            cells, trials = list(self.cells.values()), list(self.trials.values())
        for cell in cells:
            of_cell = [trial for trial in trials if trial.cell.key == cell.key]
            runs.sync_cell(cell, of_cell, self.skipped, self.paused)
            with self.changed:
                self.sent += 1
                self.cells.pop(cell.key, None)

    def _compare(self, runs: MlflowRuns) -> None:
        """Queue the trials whose runs are not as the ledger says, and the cells that have runs, where that is due."""
        with self.changed:
            if self.compared:
                return
            expected = {key: (trial, self.states.get(key, "KILLED")) for key, trial in self.trials.items()}
        differing = runs.outdated(expected)
        runs.remove_strangers(expected)
        runs.rename_trials(trial for trial, _ in expected.values())
        with self.changed:
            self.queued = differing | self.queued
            begun = [trial for key, trial in self.trials.items() if key in runs.runs or key in self.queued]
            self.cells |= {cell.key: cell for cell in runs.shown_cells({trial.cell.key for trial in begun})}
            # Trials may have been registered meanwhile.
            self.compared = self.trials.keys() == expected.keys()

    def _note_error(self, error: Exception) -> None:
        before, self.trouble = self.trouble, trouble(error)
        with self.changed:
            self.compared = not self.trials  # what has become of the runs meanwhile is seen when they are read again
        if self.away_since is None or (self.trouble.lasts and self.trouble != before):
            where = place(self.store.uri)
            if self.trouble.lasts:
                self.tell(f"MLflow at {where} takes no runs, for {self.trouble}; training goes on without it")
            else:
                self.tell(
                    f"MLflow at {where} does not answer ({self.trouble}); "
                    "training goes on, and the runs are brought up to date when it is back"
                )
        self.away_since = self.away_since or time.time()

    def _note_answer(self) -> None:
        if self.away_since is not None:
            self.tell(f"MLflow is back after {time.time() - self.away_since:.0f} s; its runs are up to date")
        self.away_since = None
