"""Queue of a driver for Ray Tune: a searcher that suggests what the plan lacks, and records what becomes of it.

The ledger alone decides: a trial is done when its result is on the ledger. Tune's own word does not count.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Literal

from sweeps.execution import ray_runtime
from sweeps.execution.failures import failure_signature
from sweeps.execution.messages import Assignment, Message
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.experiment.cell_trials import (
    OWN_RATE,
    CellTrials,
    cell_trials,
    planned,
    question_waves,
    rate_choices,
    sweep_trials,
)
from sweeps.experiment.metrics import has_diverged
from sweeps.experiment.plan import MAX_ATTEMPTS, has_failed
from sweeps.experiment.questions.rule import decision_words
from sweeps.experiment.trial import Cell, Trial
from sweeps.experiment.wording import count
from sweeps.store.lease import claim, unclaim
from sweeps.store.ledger import Json, with_room
from sweeps.store.leftovers import remove_pack
from sweeps.training.shared_batches import StreamKey

os.environ.update(ray_runtime.TUNE_SETTINGS)

from ray.exceptions import RayError, RayTaskError
from ray.tune.search import Searcher


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """Queue of trials: those of the plan without a result on the ledger, in the plan's order."""

    def __init__(self, session: DriverState) -> None:
        """Read results and failures from the ledger, and plan the rest."""
        super().__init__(metric="epoch", mode="max")
        self.session = session
        # What ran under a Tuner that has ended runs no more, but has used its time.
        session.lost_seconds += sum(time.monotonic() - began for began in session.started_at.values())
        session.started_at.clear()
        self.results = session.ledger.results()
        self.failed = {key for key, attempts in session.ledger.failed().items() if has_failed(attempts)}
        self.insisted = set(session.ledger.names("insisted"))
        self.paused = session.ledger.paused()
        self.running: dict[str, list[Trial]] = {}  # by Tune's name: one trial, or the members of a pack
        self.chosen: list[Trial] = []  # for the worker that is asked for now
        self.members: dict[str, list[str]] = {}  # keys of all that share a pack's time, also after they have left it
        self.pack_limits: dict[StreamKey, int] = {}  # members that memory allows, by kind of pack
        self.probes: set[str] = set()  # Tune's names of trials that leave after an epoch
        self.probed: set[str] = set()  # keys of trials that were probes; each is one at most once
        self.set_aside: set[str] = set()  # not to be tried again in this session
        self.failures: dict[str, set[str]] = {}  # cells that have failed, by the signature of the error
        self.last_errors: dict[str, Callable[[], object]] = {}  # readers of workers' last errors, by Tune's name
        self.cell_trials: dict[str, CellTrials] = {}
        self._expand()
        self.waiting = self._missing_trials()

    # What runs next --------------------------------------------------------------------------------------------------

    def _expand(self) -> None:
        """Plan the studies of the learning rate, and the trials of all cells, from the results so far."""
        sweep = self.session.sweep
        self.choices = rate_choices(sweep, self.results, self.failed)
        self.cell_trials = sweep_trials(sweep, self.results, self.failed, self.insisted, self.paused)
        if sweep.protocol.until:
            self._announce_decisions()
        for cell in sweep.cells:
            self._note_given_up(cell)

    def _expand_cell(self, cell: Cell) -> None:
        """Plan the trials of a cell from the results so far."""
        protocol = self.session.sweep.protocol
        choice = self.choices.get(cell.key, OWN_RATE)
        trials = cell_trials(cell, protocol, self.results, self.failed, self.insisted, choice, self.paused)
        self.cell_trials[cell.key] = trials
        self._note_given_up(cell)

    def _announce_decisions(self) -> None:
        """Announce the questions that the latest results have ended; not those that had ended before the start."""
        session = self.session
        announced = session.answers
        trajectories = question_waves(session.sweep, self.cell_trials, self.results, self.failed).trajectories
        by_question = zip(session.sweep.questions, trajectories, strict=True)
        ended = {question: trajectory for question, trajectory in by_question if trajectory.decision != "open"}
        for question, trajectory in ended.items():
            if announced is not None and question not in announced:
                pairs = count(trajectory.looks[-1].n, session.sweep.protocol.design.unit)
                given_up = [label for label in question.labels if label in session.given_up]
                session.say(f"{question.text}: {decision_words(trajectory.decision, given_up)} ({pairs} each)")
        session.answers = ended

    def _note_given_up(self, cell: Cell) -> None:
        """Note whether a cell is given up, and why."""
        part = self.cell_trials[cell.key]
        if part.is_given_up:
            consequence = "; its other trainings are skipped" if part.skipped else ""
            self.session.given_up[cell.label] = f"{part.why}{consequence}"
        else:  # one that failed among its first is trained anew
            self.session.given_up.pop(cell.label, None)

    def _missing_trials(self) -> list[Trial]:
        """Return the trials that are neither done, running, failed nor set aside; the next one stands last."""
        taken = {trial.key for pack in (*self.running.values(), self.chosen) for trial in pack}
        waiting = frozenset[str]().union(*(part.paused for part in self.cell_trials.values()))
        excluded = taken | self.failed | self.set_aside | waiting
        trials = planned(self.cell_trials.values())
        self.session.planned = trials
        self.session.pending = [trial for part in self.cell_trials.values() for trial in part.pending]
        missing = [trial for trial in trials if trial.key not in self.results and trial.key not in excluded]
        if missing and not self.session.epochs and not self.running:
            # The largest trial goes first: a lack of memory shows before the others have begun.
            largest = max(missing, key=self.session.size)
            missing.remove(largest)
            missing.insert(0, largest)
        return missing[::-1]

    def suggest(self, trial_id: str) -> Assignment | Literal["FINISHED"] | None:
        """Return the next assignment; None while running trials may bring more; else FINISHED."""
        session = self.session
        ray_runtime.check_alive()
        if not session.stopping and self.waiting and session.hours() >= session.limits.hours:
            self._end_for_budget()
            return None if self.running else "FINISHED"
        group = [] if session.stopping else self._next_group()
        if not group:
            more_may_come = not session.stopping and bool(self.waiting or self.running)
            return None if more_may_come else "FINISHED"
        self.running[trial_id] = group
        self.members[trial_id] = [trial.key for trial in group]
        self.chosen = []
        for trial in group:
            self._notify("started", trial, {})
        fingerprint = session.fingerprints.get(group[0].cell.dataset, "")
        if probe := len(group) == 1 and self._is_probe(group[0]):
            self.probes.add(trial_id)
            self.probed.add(group[0].key)
        return {
            "key": group[0].key + (f"+{len(group) - 1}" if len(group) > 1 else ""),
            "pack": f"{session.name}-{trial_id}",
            "trials": [json.dumps(trial.to_json()) for trial in group],
            "runtime": asdict(session.config) | {"fingerprint": fingerprint},
            "stop": session.stop_mark,
            "work": session.work,
            "probe": probe,
            "pauses": {trial.key: self._pause_of(trial) for trial in group if self._pause_of(trial)},
        }

    def _pause_of(self, trial: Trial) -> int:
        """Return the epoch at which a trial of a search is to pause, 0 for one that is to be trained to its end."""
        part = self.cell_trials.get(trial.cell.key)  # none of a baseline that is not asked for: its rates are studied
        epoch = part.pauses.get(trial.key, 0) if part is not None else 0
        return epoch if epoch < trial.recipe.epochs else 0

    def _next_group(self) -> list[Trial]:
        """Take the next trial off the queue with those to train beside it; none where other drivers train the rest."""
        self.chosen = []
        first = self._first_available()
        if first is None:
            return []
        self._choose(first)
        policy = self.session.pack_policy()
        most = self.pack_limits.get(policy.kind(first), policy.most)
        if most < 2:
            return self.chosen
        if policy.even:
            idle_workers = max(1, max_concurrent(self.session.resources) - len(self.running))
            most = min(most, -(-(len(self.waiting) + 1) // idle_workers))
        shape = self.session.shapes.get(first.cell.dataset, (10, first.cell.net.size))
        for other in policy.members_for(first, self.waiting[::-1], self._epoch_of, most, *shape):
            # The result of one, from another sweep, may end the others' cell.
            if any(trial.key == other.key for trial in self.waiting) and self._available(other):
                self._choose(other)
        return self.chosen

    def _first_available(self) -> Trial | None:
        """Return the next trial that no other driver trains; results met on the way may change the queue."""
        passed: set[str] = set()
        while True:
            trial = next((trial for trial in reversed(self.waiting) if trial.key not in passed), None)
            if trial is None or self._available(trial):
                return trial
            passed.add(trial.key)

    def _choose(self, trial: Trial) -> None:
        """Take a trial off the queue for the group that is being made; the queue, made anew, has it no more."""
        self.chosen.append(trial)
        self._take([trial])

    def _is_probe(self, trial: Trial) -> bool:
        """Return whether a trial is to leave after its next epoch, which shows whether it should train in a pack."""
        policy = self.session.pack_policy()
        if trial.cell.key not in policy.unknown or trial.key in self.probed:
            return False
        others = [other for other in self.waiting if not other.cell.task]  # no pack takes a training function
        return any(policy.kind(other) == policy.kind(trial) for other in others)

    def _take(self, trials: Sequence[Trial]) -> None:
        keys = {trial.key for trial in trials}
        self.waiting = [trial for trial in self.waiting if trial.key not in keys]

    def _available(self, trial: Trial) -> bool:
        """Claim a trial; return False where the driver of another sweep trains it, or has.

        Its result counts too, and so does its last failure, which nobody tries again unasked.
        """
        session = self.session
        result = session.ledger.result(trial.key)
        if result is None and self._has_paused(trial):
            self._take([trial])
            self._record_pause(trial)
            return False
        if result is None:
            claimed = with_room(
                partial(claim, session.drivers, session.sweep.title, trial.key), lambda: session.stopping
            )
            return bool(claimed) and not self._has_failed_elsewhere(trial)
        self._take([trial])
        self._record_result(trial, result)
        return False

    def _has_failed_elsewhere(self, trial: Trial) -> bool:
        """Return whether the driver of another sweep has given up a trial that is claimed; then it is recorded here."""
        attempts = self.session.ledger.attempts(trial.key)
        if not has_failed(attempts):
            return False
        unclaim(self.session.drivers, self.session.sweep.title, trial.key)
        self._take([trial])
        self._record_failure(trial, attempts[-1])
        self._replan_cell(trial)
        return True

    def _epoch_of(self, trial: Trial) -> int:
        """Return the epoch a trial has reached; -1 for one that has failed before, which should train alone."""
        ledger = self.session.ledger
        if ledger.names(f"attempts/{trial.key}"):
            return -1
        checkpoints = ledger.names(f"checkpoints/{trial.key}")
        return int(checkpoints[-1].partition("-")[0]) if checkpoints else 0

    # What workers report ---------------------------------------------------------------------------------------------

    def worker_died(self, trial_id: str) -> None:
        """Say that the process of a trial has died; Tune starts it again."""
        trials = self.running.get(trial_id, [])
        if trials:
            others = f" and {count(len(trials) - 1, 'other')}" if len(trials) > 1 else ""
            who = f"{trials[0].cell.label} {trials[0].label}{others}"
            self.session.say(f"the worker of {who} died; another goes on from the checkpoint")

    def trial_started(self, trial_id: str) -> None:
        """Start the clock of trials that have got a machine: waiting for one, on a growing cluster, costs nothing."""
        if trial_id in self.running:
            self.session.started_at.setdefault(trial_id, time.monotonic())

    def trial_stopped(self, trial_id: str) -> None:
        """Stop the clock of trials whose worker has ended, for good or until another machine takes them.

        Members of a pack have equal parts of its time.
        """
        session = self.session
        began = session.started_at.pop(trial_id, None)
        if began is None:  # it had no machine
            return
        keys = self.members[trial_id]
        seconds = time.monotonic() - began
        for key in keys:
            session.seconds_by_trial[key] = session.seconds_by_trial.get(key, 0.0) + seconds / len(keys)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Sequence[Message]]) -> None:
        """Handle a worker's messages."""
        for message in result.get("news", ()):
            self._on_message(trial_id, message)
        if self.session.hours() >= self.session.limits.hours:
            self._end_for_budget()

    def _on_message(self, trial_id: str, message: Message) -> None:
        group = self.running.get(trial_id, [])
        trial = next((trial for trial in group if trial.key == message["key"]), None)
        if trial is None:
            return
        if "row" in message:
            self.session.epochs += 1
            self._notify("epoch", trial, message["row"])
        else:
            group.remove(trial)
            if message["fits"]:
                self._limit_pack(trial, message["fits"])
            self._on_trial_end(trial, failure=None, retry=True)

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Record from the ledger what became of the trials of a worker that has ended."""
        group = self.running.get(trial_id)
        session = self.session
        if group is None:
            return
        self.trial_stopped(trial_id)
        keys = self.members.pop(trial_id)
        # A pack whose process died several times has probably run out of the host's memory.
        if error and len(group) > 1:
            self._limit_pack(group[0], len(group) // 2)
        packed = len(keys) > 1
        failure = self._last_failure(trial_id) if error and not packed else None
        probe = trial_id in self.probes
        self.probes.discard(trial_id)
        for trial in list(group):
            # The others still count as running: what becomes of this one may make the queue anew.
            group.remove(trial)
            self._on_trial_end(trial, failure=failure, retry=packed or probe)
        self.running.pop(trial_id, None)
        if packed:
            remove_pack(session.ledger, f"{session.name}-{trial_id}")

    def _last_failure(self, trial_id: str) -> Json:
        """Return the attempt of a worker that Tune does not start again: its process has died, or it raised an error.

        Workers note their errors on the ledger, unless that is away. The attempt of an error is therefore not final:
        the next Tuner tries the trial again, which fails after MAX_ATTEMPTS of any kind.
        """
        read = self.last_errors.pop(trial_id, None)
        last_error = read() if read is not None else None
        if last_error is None or (isinstance(last_error, RayError) and not isinstance(last_error, RayTaskError)):
            return {"error": f"the worker process died {MAX_ATTEMPTS} times", "final": True}
        error = (str(last_error).strip() or type(last_error).__name__).splitlines()[-1]
        self.session.errors.append(error)
        return {"error": error, "final": False}

    def _limit_pack(self, trial: Trial, members: int) -> None:
        """Let later packs of this kind have at most so many members."""
        kind = self.session.pack_policy().kind(trial)
        self.pack_limits[kind] = max(1, min(members, self.pack_limits.get(kind, members)))

    def _end_for_budget(self) -> None:
        """Stop because the budget is used up: running trials save their state, and nothing is lost."""
        session = self.session
        if not session.stopping:
            session.stop_reason = f"{session.limits.hours:g} GPU-hours of this command are used up"
        session.over_budget = True
        session.stop()

    # What becomes of a trial -----------------------------------------------------------------------------------------

    def _on_trial_end(self, trial: Trial, *, failure: Json | None, retry: bool) -> None:
        try:
            unclaim(self.session.drivers, self.session.sweep.title, trial.key)
            self._record_outcome(trial, failure, retry)
        except Exception:  # raised here it would end every trial; the next Tuner reads the ledger again
            self.set_aside.add(trial.key)
            self.session.errors.append(traceback.format_exc())

    def _record_outcome(self, trial: Trial, failure: Json | None, retry: bool) -> None:
        """Record a trial as done, failed or left. `failure`: of its worker; `retry`: a trial left may run again."""
        ledger = self.session.ledger
        result = ledger.result(trial.key)
        if result is not None:
            self._record_result(trial, result)
            return
        if self._has_paused(trial):
            self._record_pause(trial)
            return
        attempts = ledger.attempts(trial.key)
        if failure is not None and not self.session.stopping and not has_failed(attempts):
            attempt = failure | {"time": time.time()}
            with_room(partial(ledger.add_attempt, trial.key, attempt), lambda: self.session.stopping)
            attempts = ledger.attempts(trial.key)
        if has_failed(attempts) and not self.session.stopping:
            self._record_failure(trial, attempts[-1])
        else:
            self._notify("left", trial, failure or {})
            if self.session.stopping or not retry:
                self.set_aside.add(trial.key)
            else:
                self.waiting = self._missing_trials()
        self._replan_cell(trial)

    def _record_failure(self, trial: Trial, attempt: Json) -> None:
        self.failed.add(trial.key)
        self._notify("failed", trial, attempt)
        self._check_failure_limits(trial, attempt)

    def _has_paused(self, trial: Trial) -> bool:
        """Return whether a trial has paused, by this driver or that of another sweep, where it is to, or later."""
        epoch = self._pause_of(trial)
        record = self.session.ledger.paused_at(trial.key) if epoch else None
        if record is None or int(record["epoch"]) < epoch:
            return False
        self.paused[trial.key] = record
        return True

    def _record_pause(self, trial: Trial) -> None:
        self._replan_cell(trial)
        self._notify("paused", trial, self.paused[trial.key])

    def _record_result(self, trial: Trial, result: Json) -> None:
        self.results[trial.key] = result
        self._replan_cell(trial)
        self._notify("done", trial, result)

    def _replan_cell(self, trial: Trial) -> None:
        """Plan the trials that follow from this one, where results decide that: a search, Single, a loss."""
        protocol = self.session.sweep.protocol
        # A failed one counts as none of its cell's first trainings: another one is.
        lost = has_diverged(self.results.get(trial.key)) or trial.key in self.failed
        lost = lost or trial.cell.label in self.session.given_up
        studied = any(trial.key == other.key for other in self.cell_trials[""].rates)
        if studied or protocol.until:  # the trials of other cells wait for it
            self._expand()
        elif protocol.search is not None or protocol.single or lost:
            self._expand_cell(trial.cell)
        if studied or protocol.until or protocol.search is not None or protocol.single or lost:
            self.waiting = self._missing_trials()

    def _check_failure_limits(self, trial: Trial, attempt: Json) -> None:
        """Stop the session where too many trials have failed, or several cells by the same error."""
        limits = self.session.limits
        session = self.session
        signature = failure_signature(attempt)
        self.failures.setdefault(signature, set()).add(trial.cell.key)
        if sum(map(len, self.failures.values())) >= limits.failures:
            have = "has" if limits.failures == 1 else "have"
            session.stop_reason = f"{count(limits.failures, 'trial')} {have} failed"
        elif len(self.failures[signature]) >= limits.same_error:
            session.stop_reason = f"the same error in {count(limits.same_error, 'cell')}: {signature}"
        if session.stop_reason:
            session.stop()

    def _notify(self, event: str, trial: Trial, news: Json) -> None:
        try:
            self.session.on_event(event, trial, news)
        except Exception:
            self.session.errors.append(traceback.format_exc())

    # Tune saves and restores its searcher; this one is rebuilt from the ledger instead -------------------------------

    def __getstate__(self) -> Json:
        """Return nothing to pickle."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


def max_concurrent(resources: TrialResources) -> int:
    """Return how many trials run at once, with every machine that the cluster may start for them."""
    if resources.max_concurrent:
        return resources.max_concurrent
    cpus, gpus = resources.cpus, resources.gpus
    slots = sum(ray_runtime.slots(machine, cpus, gpus) for machine in ray_runtime.machines())
    return max(1, slots, ray_runtime.max_slots(ray_runtime.autoscaler(), cpus, gpus))
