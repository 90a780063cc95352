"""Ray: one Tuner over a flat queue of trials, and the supervisor that outlives whatever ends a Tuner.

The queue is a Searcher that suggests what the plan lacks and believes only the ledger: a trial is done when its
result is there, whatever Tune says of it. Every start, and every restart after an error, builds a fresh Tuner.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

from sweeps.execution import ray_runtime, throughput
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.execution.worker import work
from sweeps.experiment.plan import MAX_ATTEMPTS, CellTrials, cell_trials, has_failed, ordered
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.lease import claim, elsewhere, unclaim
from sweeps.store.ledger import Json
from sweeps.training.shared_batches import StreamKey

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

from ray import tune
from ray.tune.search import Searcher

MAX_FRUITLESS_SESSIONS = 3  # sessions in a row without one finished epoch after which the supervisor gives up


class NoProgressError(Exception):
    """Ray ended session after session, and nothing was trained."""


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """The flat queue: what the plan still lacks, in its order; done is what the ledger says is done."""

    def __init__(self, session: DriverState) -> None:
        """Read the results that are there."""
        super().__init__(metric="epoch", mode="max")
        self.session = session
        session.lost_seconds += sum(time.monotonic() - began for began in session.started_at.values())
        session.started_at.clear()
        if session.gauge is not None:
            self._gauging(session.gauge.abandon)
        self.results = session.ledger.results()
        self.failed = {key for key, tries in session.ledger.failed().items() if has_failed(tries)}
        self.running: dict[str, list[Trial]] = {}  # by Tune's name: a trial, or the members of a pack
        self.shares: dict[str, list[str]] = {}  # who has a part in the time of a pack, also after leaving it
        self.pack_limits: dict[StreamKey, int] = {}  # members for which there was memory, by the kind of pack
        self.set_aside: set[str] = set()
        self.failures: dict[str, set[str]] = {}
        self.cell_trials: dict[str, CellTrials] = {}
        for cell in session.sweep.cells:
            self._expand_cell(cell)
        self.waiting = self._missing_trials()

    def _expand_cell(self, cell: Cell) -> None:
        """Look again at what a cell comes to."""
        self.cell_trials[cell.key] = cell_trials(cell, self.session.sweep.protocol, self.results, self.failed)

    def _missing_trials(self) -> list[Trial]:
        """Return the trials without a result, in order, that are not running, given up, or left."""
        busy = {trial.key for pack in self.running.values() for trial in pack} | self.failed | self.set_aside
        trials = ordered(self.cell_trials.values())
        self.session.planned = trials
        self.session.pending = [trial for part in self.cell_trials.values() for trial in part.pending]
        lacking = [trial for trial in trials if trial.key not in self.results and trial.key not in busy]
        if lacking and not self.session.epochs and not self.running:
            # The largest goes first, as a canary: what does not fit is known before the queue is under way.
            largest = max(lacking, key=lambda trial: self.session.size(trial))
            lacking.remove(largest)
            lacking.insert(0, largest)
        return lacking[::-1]

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trial; None while a running one may bring more; else FINISHED."""
        session = self.session
        if session.stopping:
            return Searcher.FINISHED
        if not self.waiting:
            return None if self.running else Searcher.FINISHED
        if session.hours() >= session.limits.hours:
            self._end_for_budget()
            return None if self.running else Searcher.FINISHED
        if session.gauge is not None:
            share = session.gauge.hand(trial_id)
            if share is not None:
                place = asdict(session.config)
                return {"key": f"gauge-{trial_id}", "measure": share, "place": place, "stop": session.stop_mark}
            if session.gauge.first:
                return None
        pack = self._claim_next_group()
        if not pack:
            return None if self.waiting or self.running else Searcher.FINISHED
        self.running[trial_id], self.shares[trial_id] = pack, [trial.key for trial in pack]
        for trial in pack:
            self._notify("started", trial, {})
        place = asdict(session.config) | {"fingerprint": session.fingerprints.get(pack[0].cell.dataset, "")}
        return {
            "key": pack[0].key + (f"+{len(pack) - 1}" if len(pack) > 1 else ""),
            "pack": f"{session.name}-{trial_id}",
            "trials": [json.dumps(trial.to_json()) for trial in pack],
            "place": place,
            "stop": session.stop_mark,
            "work": session.work,
        }

    def trial_started(self, trial_id: str) -> None:
        """Count the time of what has been given a machine: to wait for one, on a cluster that grows, costs nothing."""
        if trial_id in self.running:
            self.session.started_at.setdefault(trial_id, time.monotonic())

    def _gauging(self, step: Callable[..., Any], *words: Any) -> None:
        """Take a step of the gauge, which may tell the driver what was found."""
        try:
            step(*words)
        except Exception:
            self.session.errors.append(traceback.format_exc())

    def _available(self, trial: Trial) -> bool:
        """Return whether no other sweep's driver trains this trial; what such a one has finished is done here too."""
        session = self.session
        done = session.ledger.result(trial.key)
        if done is None:
            return not elsewhere(session.ledger, session.sweep.title, trial.key)
        self.results[trial.key] = done
        self.waiting = [other for other in self.waiting if other.key != trial.key]
        self._notify("done", trial, done)
        self._replan_cell(trial)
        return False

    def _claim_next_group(self) -> list[Trial]:
        """Take the next trial off the queue, and those that are to train beside it; none where others train them."""
        pack = self._next_group()
        for trial in pack:
            claim(self.session.ledger, self.session.sweep.title, trial.key)
        return pack

    def _next_group(self) -> list[Trial]:
        session = self.session
        first = next((trial for trial in self.waiting[::-1] if self._available(trial)), None)
        if first is None:
            return []
        self.waiting = [trial for trial in self.waiting if trial.key != first.key]
        packs = session.pack_policy
        most = self.pack_limits.get(packs.kind(first), packs.most)
        if most < 2:
            return [first]
        if packs.even:
            idle = max(1, max_concurrent(session.resources) - len(self.running))
            most = min(most, -(-(len(self.waiting) + 1) // idle))
        shape = session.shapes.get(first.cell.dataset, (10, first.cell.net.size))
        mates = packs.members_for(first, self.waiting[::-1], self._epoch_of, most, *shape)
        mates = [trial for trial in mates if self._available(trial)]
        taken = {trial.key for trial in mates}
        self.waiting = [trial for trial in self.waiting if trial.key not in taken]
        return [first, *mates]

    def _epoch_of(self, trial: Trial) -> int:
        """Return the epoch a trial stands at; -1 for one that has failed before, and is better tried alone."""
        ledger = self.session.ledger
        if ledger.names(f"attempts/{trial.key}"):
            return -1
        saved = ledger.names(f"checkpoints/{trial.key}")
        return int(saved[-1].partition("-")[0]) if saved else 0

    def on_trial_result(self, trial_id: str, result: Json) -> None:
        """Take in what a worker has told: an epoch, a member that has left its pack, or what was measured."""
        for news in result.get("news", ()):
            self._on_news(trial_id, news)
        if self.session.hours() >= self.session.limits.hours:
            self._end_for_budget()

    def _on_news(self, trial_id: str, news: Json) -> None:
        if "measured" in news and self.session.gauge is not None:
            self._gauging(self.session.gauge.hear, news["measured"])
        pack = self.running.get(trial_id, [])
        trial = next((trial for trial in pack if trial.key == news.get("key")), None)
        if trial is None:
            return
        if "row" in news:
            self.session.epochs += 1
            self._notify("epoch", trial, news["row"])
        elif "over" in news:
            pack.remove(trial)
            if news["fits"]:
                self._limit_pack(trial, news["fits"])
            self._on_trial_end(trial, False, True)

    def _limit_pack(self, trial: Trial, room: int) -> None:
        """Let packs of this kind have no more than `room` members from now on."""
        kind = self.session.pack_policy.kind(trial)
        self.pack_limits[kind] = max(1, min(room, self.pack_limits.get(kind, room)))

    def _end_for_budget(self) -> None:
        """Stop in good order because the budget is used up: what runs saves its state, and nothing is lost."""
        self.session.over_budget = True
        self.session.stop()

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:
        """Look up on the ledger what became of a trial that Tune has ended, or of those left of a pack."""
        pack, session = self.running.pop(trial_id, None), self.session
        if session.gauge is not None:
            self._gauging(session.gauge.leave, trial_id)
        if pack is None:
            return
        shares = self.shares.pop(trial_id)
        size, seconds = len(shares), time.monotonic() - session.started_at.pop(trial_id, time.monotonic())
        for key in shares:
            session.seconds_by_trial[key] = session.seconds_by_trial.get(key, 0.0) + seconds / size
        if error and len(pack) > 1:
            # Its process died again and again, which is how a host's memory runs out.
            self._limit_pack(pack[0], len(pack) // 2)
        for trial in pack:
            self._on_trial_end(trial, error and size == 1, size > 1)
        if size > 1:
            session.ledger.delete(f"packs/{session.name}-{trial_id}.json")

    def _on_trial_end(self, trial: Trial, error: bool, again: bool) -> None:
        try:
            unclaim(self.session.ledger, trial.key)
            self._record_outcome(trial, error, again)
        except Exception:  # an error here would end every trial of the sweep; the next session sees the ledger again
            self.set_aside.add(trial.key)
            self.session.errors.append(traceback.format_exc())

    def _record_outcome(self, trial: Trial, error: bool, again: bool) -> None:
        """See what became of a trial; `again` says that one without a result goes back to the queue."""
        ledger = self.session.ledger
        done = ledger.result(trial.key)
        if done is not None:
            self.results[trial.key] = done
            self._notify("done", trial, done)
        elif self.session.stopping:
            self.set_aside.add(trial.key)
            self._notify("left", trial, {})
        else:
            tries = ledger.attempts(trial.key)
            if error and not has_failed(tries):
                lost = {"error": f"the worker process died {MAX_ATTEMPTS} times", "final": True, "time": time.time()}
                ledger.add_attempt(trial.key, lost)
            tries = ledger.attempts(trial.key)
            if has_failed(tries):
                self.failed.add(trial.key)
                self._notify("failed", trial, tries[-1])
                self._check_failure_limits(trial, tries[-1])
            elif again:
                self._notify("left", trial, {})
                self.waiting = self._missing_trials()
            else:
                self.set_aside.add(trial.key)
                self._notify("left", trial, {})
        self._replan_cell(trial)

    def _replan_cell(self, trial: Trial) -> None:
        """See what follows from a trial that has come to its end."""
        protocol = self.session.sweep.protocol
        if protocol.search is not None or protocol.single:  # only these make new trials of results
            self._expand_cell(trial.cell)
            self.waiting = self._missing_trials()

    def _check_failure_limits(self, trial: Trial, last: Json) -> None:
        """Stop the session where failures are too many, or one error has met several cells."""
        limits, session = self.session.limits, self.session
        self.failures.setdefault(failure_signature(last), set()).add(trial.cell.key)
        if sum(map(len, self.failures.values())) >= limits.failures:
            session.stop_reason = f"{limits.failures} trials have failed"
        elif len(self.failures[failure_signature(last)]) >= limits.same_error:
            session.stop_reason = f"the same error in {limits.same_error} cells: {failure_signature(last)}"
        if session.stop_reason:
            session.stop()

    def _notify(self, event: str, trial: Trial, news: Json) -> None:
        try:
            self.session.on_event(event, trial, news)
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
    """Perform the trials in `config` on a worker, telling Tune each epoch; or measure what it says."""

    def tell(news: Json) -> None:
        # In a list: of dictionaries within a result Tune makes columns, whose names the queue does not know.
        tune.report({"news": [news]})

    (throughput.take if "measure" in config else work)(config, tell)


def failure_signature(attempt: Json) -> str:
    """Return what makes two failures the same: the error's type and the innermost place in our code."""
    kind = str(attempt.get("error", "")).partition(":")[0]
    lines = str(attempt.get("trace", "")).splitlines()
    ours = [line.strip() for line in lines if "/sweeps/" in line or "/data/" in line]
    place = ours[-1].rpartition("/")[2] if ours else ""
    return f"{kind} at {place}" if place else kind


def max_concurrent(resources: TrialResources) -> int:
    """Return how many trials run at once, when all machines are up that the cluster may start for them."""
    cpus, gpus = resources.cpus, resources.gpus
    room = sum(ray_runtime.slots(machine, cpus, gpus) for machine in ray_runtime.machines())
    return resources.max_concurrent or max(1, room, ray_runtime.max_slots(ray_runtime.autoscaler(), cpus, gpus))


def run_trials(session: DriverState) -> None:
    """Run trials until every planned one is done or given up, or the session is told to stop.

    Ray may end a Tuner at any time (the memory monitor, a lost node, an error in a hook); a fresh one goes on.
    """
    fruitless = 0
    while not session.stopping:
        queue, before = LedgerSearcher(session), session.epochs
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
        if fruitless >= MAX_FRUITLESS_SESSIONS:
            last = session.errors[-1].strip().splitlines()[-1] if session.errors else "no error was seen"
            raise NoProgressError(f"{MAX_FRUITLESS_SESSIONS} sessions in a row brought nothing: {last}")


def _tuner(queue: LedgerSearcher, session: DriverState, folder: str) -> tune.Tuner:
    """Return a Tuner over the queue, with nothing of its own worth keeping."""
    resources = session.resources
    needs = {"cpu": resources.cpus} | ({"gpu": resources.gpus} if resources.gpus else {})
    return tune.Tuner(
        tune.with_resources(train_trial, needs),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,
            max_concurrent_trials=max_concurrent(resources),
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=session.name,
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=MAX_ATTEMPTS - 1),
            verbose=0,
            callbacks=[StartCallback(queue)],
        ),
    )


def _name(trial: Any) -> str:
    return str(trial.config.get("key", trial.trial_id))


class StartCallback(tune.Callback):  # type: ignore[misc]
    """Tells the queue when a trial has its machine; a Searcher hears only of asking and of results."""

    def __init__(self, queue: LedgerSearcher) -> None:
        """Tell this queue."""
        self.searcher = queue

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass it on."""
        self.searcher.trial_started(trial.trial_id)
