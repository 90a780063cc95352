"""Plan of a sweep: where each trial of its cells stands. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sweeps.experiment.cell_trials import BEYOND, NONE_ADMITTED, ordered, rate_choices, seeds_text, sweep_trials
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.halving import bracket_epochs, rungs
from sweeps.experiment.metrics import Tested, has_diverged, lost_text
from sweeps.experiment.search import budget, search_to_json
from sweeps.experiment.sweep import Sweep, sweep_from_json
from sweeps.experiment.trial import PHASES, SECOND_SEED, Cell, Trial, cell_to_json
from sweeps.store.checkpoint_header import progress
from sweeps.store.integrity import checked, lost_files, noted_damage
from sweeps.store.ledger import Json, Ledger

# Failed attempts of a trial before it counts as failed.
MAX_ATTEMPTS = 3
# Trials, each with the epochs that it has behind it.
Begun = Iterable[tuple[Trial, int]]


STATES = ("new", "running", "paused", "done", "stale", "failed", "skipped")
TO_DO = ("new", "running")


def state_heads(states: Iterable[str]) -> str:
    """Return the headings of columns of states, five letters wide each."""
    short = {"running": "run", "paused": "wait", "failed": "fail", "skipped": "skip"}
    return "".join(f" {short.get(state, state):>4}" for state in states)


class TrialStatus(NamedTuple):
    """Trial and its state: new, running (it has a checkpoint), paused, done, stale, failed or skipped; `why` for some.

    A paused trial of a search waits at a rung, with its checkpoint; it goes on only if its error is among the best.
    """

    trial: Trial
    state: str
    result: Json | None
    why: str = ""


class Expected(NamedTuple):
    """What is expected of a halved search: its arms, the epochs of its rungs, and those that all of it trains."""

    arms: int
    steps: tuple[int, ...]
    epochs: float


def trained_seconds(status: TrialStatus, damaged: Mapping[str, Json], unfinished: Mapping[str, Json]) -> float:
    """Return how long a trial was trained, by its result, a damaged one too, its checkpoint or its last pause."""
    key = status.trial.key
    record = status.result or damaged.get(key) or unfinished.get(key) or {}
    return float(record.get("seconds", 0.0))


@dataclass(frozen=True)
class Plan:
    """Statuses of all known trials of a sweep, stand-ins for those to follow, and its data's fingerprints.

    `further` are the keys of trials of more seeds than the sweep has, which were trained before; `searched` those of
    search trials, `studied` those of studies of the learning rate. `rates` has the rate of each cell that such a study
    chooses for, None while it is open or where none trains. `damaged` has the results of trials that count as failed
    because a file of theirs is damaged: studies were planned by them. `torn` are the keys of trials whose result itself
    cannot be read; they are trained anew. `given_up` says why cells were given up before all of their trials, by label.
    `failed` are the keys of failed trials and `paused` the records of paused ones, as the ledger had them for the plan.
    `unfinished` are the records of trials without a result: what the checkpoint of a running one notes, else the pause.
    """

    sweep: Sweep
    statuses: tuple[TrialStatus, ...]
    pending: tuple[Trial, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    further: frozenset[str] = frozenset()
    searched: frozenset[str] = frozenset()
    studied: frozenset[str] = frozenset()
    rates: Mapping[str, float | None] = field(default_factory=dict)
    damaged: Mapping[str, Json] = field(default_factory=dict)
    torn: frozenset[str] = frozenset()
    given_up: Mapping[str, str] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    paused: Mapping[str, Json] = field(default_factory=dict)
    unfinished: Mapping[str, Json] = field(default_factory=dict)

    def count(self, *states: str, cell: Cell | None = None) -> int:
        """Count the trials, of one cell or of all, that are in one of `states`."""
        return sum(status.state in states for status in (self.statuses if cell is None else self.of(cell)))

    def is_damaged(self, status: TrialStatus) -> bool:
        """Return whether a finished trial has lost a file or its result, and is not trained anew yet."""
        key = status.trial.key
        return key in self.damaged or (key in self.torn and status.state == "new")

    def of(self, cell: Cell) -> list[TrialStatus]:
        """Return the statuses of one cell's trials."""
        return [status for status in self.statuses if status.trial.cell.key == cell.key]

    def pending_of(self, cell: Cell) -> list[Trial]:
        """Return the stand-ins for the trials of one cell that follow once others have ended."""
        return [trial for trial in self.pending if trial.cell.key == cell.key]

    def tested(self, cell: Cell) -> list[Tested]:
        """Return phase and metrics of a cell's finished trials, from which its numbers are made."""
        return [(status.trial.phase, status.result["metrics"]) for status in self.of(cell) if status.result is not None]

    def winner(self, cell: Cell) -> Trial | None:
        """Return the trial of a cell that its held-out metric chooses among those that are tested; None for none.

        Of equal ones, and where a phase holds nothing out, it is the first. The test pictures choose nothing.
        """
        metric = cell.metric
        worst = metric.cost(math.inf)
        tested = [
            (metric.cost(float(status.result["metrics"].get(metric.held_out, worst))), status.trial)
            for status in self.of(cell)
            if status.result is not None and PHASES[status.trial.phase].test and not has_diverged(status.result)
        ]
        return min(tested, key=lambda tried: tried[0])[1] if tested else None

    def lost(self, cell: Cell) -> str:
        """Return what of a cell's trials, its search left out, diverged, failed or was skipped; empty for none."""
        left_out = self.searched | self.studied
        tried = [status for status in self.of(cell) if status.trial.key not in left_out]
        return lost_text((status.trial.phase, status.state, status.result) for status in tried)

    def given_up_sentences(self) -> Iterator[tuple[str, str]]:
        """Yield the label of each cell that was given up, and why, in a sentence without a full stop."""
        for cell in self.sweep.cells:
            if why := self.given_up.get(cell.label):
                yield cell.label, f"{why}; the others are skipped" if self.count("skipped", cell=cell) else why

    def remedy(self, label: str) -> str:
        """Return in a sentence what may train a cell that was given up, by its label."""
        (cell,) = [cell for cell in self.sweep.cells if cell.label == label]
        if self.rates.get(cell.key, 0.0) is None:
            return "--set recipe.lr=RATE trains them at another learning rate"
        if self.is_cut_short(cell):
            skipped = self.count("skipped", cell=cell)
            return f"--retry-failed {'trains them' if skipped else 'lets what was trained beyond those count'}"
        if self.given_up.get(label, "").startswith(NONE_ADMITTED):
            return "a larger limit of the search lets it train"
        return "a longer search, by --search-trials, may find a setting"

    def is_cut_short(self, cell: Cell) -> bool:
        """Return whether trainings of a cell that was given up are skipped, or answer no question."""
        return any(status.state == "skipped" or status.why.endswith(BEYOND) for status in self.of(cell))

    @property
    def asked_for(self) -> list[TrialStatus]:
        """Return the statuses of the trials that are asked for: those of further seeds stay as they are."""
        return [status for status in self.statuses if status.trial.key not in self.further]

    @property
    def to_retry(self) -> list[TrialStatus]:
        """Return the statuses of the failed trials that --retry-failed tries again."""
        return [status for status in self.asked_for if status.state == "failed"]

    def way(self, flag: str, what: str, *statuses: TrialStatus) -> str:
        """Return which flag does what with trials: of further seeds it takes only those that --seeds asks for."""
        further = [status.trial for status in statuses if status.trial.key in self.further]
        if not further:
            return f"{flag} {what}"
        unit = self.sweep.protocol.design.unit
        beyond = f"of a further {unit}" if len(further) == 1 else f"of further {unit}s"
        if self.sweep.protocol.until:
            return f"{beyond}, which no question needs"
        return f"{beyond}: {flag} --seeds {max(trial.seed % SECOND_SEED for trial in further) + 1} {what}"

    @property
    def may_retry(self) -> bool:
        """Return whether --retry-failed changes anything: a trial has failed, or a cell was cut short at its rate."""
        rated = [cell for cell in self.sweep.cells if self.rates.get(cell.key, 0.0) is not None]
        return bool(self.to_retry) or any(map(self.is_cut_short, rated))

    def seeds_text(self) -> str:
        """Return how many seeds are declared and how many the ledger has; empty where it has no more."""
        trained = [status.trial for status in self.statuses if status.result is not None]
        return seeds_text(self.sweep.protocol, trained)

    @property
    def most_seeds(self) -> int:
        """Return how many seeds the cell with most of them has, trained or failed, the declared ones among them."""
        further: dict[str, set[int]] = {}
        for trial in (status.trial for status in self.statuses if status.trial.key in self.further):
            further.setdefault(trial.cell.key, set()).add(trial.seed % SECOND_SEED)
        return self.sweep.protocol.seeds + max(map(len, further.values()), default=0)

    @property
    def hours(self) -> float:
        """Return the hours that all trials were trained, as far as is noted."""
        return sum(trained_seconds(status, self.damaged, self.unfinished) for status in self.statuses) / 3600

    @property
    def total(self) -> int:
        """Return how many trials the sweep comes to; fewer where a search suggests a point twice."""
        return len(self.statuses) + len(self.pending)

    def expected_epochs(self, trial: Trial) -> float:
        """Return how many epochs a trial that is to be trained comes to: in a halved search the mean of its trials."""
        bracket = self._bracket(trial)
        return trial.recipe.epochs if bracket is None else bracket.epochs / bracket.arms

    def epochs_left(self, remaining: Begun, begun: Begun) -> list[float]:
        """Return how many epochs each of the `remaining` trials is still to train.

        Trials of a halved search share what its bracket is expected to train, less what all of its trials have trained,
        as the `begun` ones tell. Each has at least the epochs up to its next rung.
        """
        remaining = list(remaining)
        epochs = [max(0.0, trial.recipe.epochs - done) for trial, done in remaining]
        brackets = {trial.cell.key: bracket for trial, _ in remaining if (bracket := self._bracket(trial)) is not None}
        trained = dict.fromkeys(brackets, 0)
        for trial, done in begun if brackets else ():
            if trial.cell.key in brackets and self._bracket(trial) is not None:
                trained[trial.cell.key] += done
        for key, bracket in brackets.items():
            places = [
                place
                for place, (trial, _) in enumerate(remaining)
                if trial.cell.key == key and self._bracket(trial) is not None
            ]
            for place in places:
                done = remaining[place][1]
                epochs[place] = next((step for step in bracket.steps if step > done), done) - done
            more = bracket.epochs - trained[key] - sum(epochs[place] for place in places)
            for place in places:
                epochs[place] += max(0.0, more) / len(places)
        return epochs

    def _bracket(self, trial: Trial) -> Expected | None:
        """Return what is expected of the halved search that a trial is one of; None for any other trial."""
        search = self.sweep.protocol.search
        is_searched = search is not None and (trial.phase, trial.seed) == ("holdout", search.seed)
        if search is None or not search.halving or not is_searched or trial.key in self.studied:
            return None
        arms = budget(search, trial.cell)
        steps = rungs(trial.recipe.epochs, search.halving, search.rung)
        return Expected(arms, steps, bracket_epochs(arms, search.wave, steps, search.halving))

    def epochs_of(self, status: TrialStatus) -> int:
        """Return how many epochs a trial has behind it, by its result, its checkpoint or its last pause."""
        key = status.trial.key
        result = status.result or self.damaged.get(key)
        return int(result["epochs"]) if result is not None else int(self.unfinished.get(key, {}).get("epoch", 0))

    @property
    def begun(self) -> list[tuple[Trial, int]]:
        """Return the trials that have epochs behind them, with these."""
        return [(status.trial, epochs) for status in self.statuses if (epochs := self.epochs_of(status))]

    @property
    def remaining(self) -> list[tuple[Trial, int]]:
        """Return the trials still to be trained, with the epochs behind each, and those that will follow."""
        begun = [(status.trial, self.epochs_of(status)) for status in self.statuses if status.state in TO_DO]
        return begun + [(trial, 0) for trial in self.pending]

    @property
    def states(self) -> tuple[str, ...]:
        """Return the states to show: "paused" only where a trial is."""
        return tuple(state for state in STATES if state != "paused" or self.count(state))

    @property
    def to_do(self) -> list[Trial]:
        """Return the trials still to be trained."""
        return [status.trial for status in self.statuses if status.state in TO_DO]

    @property
    def passed_over(self) -> frozenset[str]:
        """Return the keys of trials that their search has paused for good: no more of their cells is to be trained."""
        goes_on = {trial.cell.key for trial in (*self.to_do, *self.pending)}
        paused = [status.trial for status in self.statuses if status.state == "paused"]
        return frozenset(trial.key for trial in paused if trial.cell.key not in goes_on)


def plan(sweep: Sweep, ledger: Ledger, fingerprints: Mapping[str, str]) -> Plan:
    """Return the status of each trial of `sweep`; `fingerprints` are those of the data sets that are present."""
    # Before the results: a trial that ends in between is then in both, else it would be in neither.
    paused = ledger.paused()
    results, torn = ledger.read_results()
    damaged = noted_damage(ledger) | lost_files(ledger, results)
    attempts = ledger.failed()
    failed = frozenset(key for key, tries in attempts.items() if has_failed(tries))
    begun = set(ledger.folders("checkpoints"))
    codes = {cell.key: cell_fingerprint(cell) for cell in sweep.trained}
    insisted = set(ledger.names("insisted"))
    parts = sweep_trials(sweep, results, failed, insisted, paused)
    cells = list(parts.values())
    waiting = frozenset[str]().union(*(cell.paused for cell in cells))
    skipped = {key: cell.why for cell in cells for key in cell.skipped}
    given_up = {cell.label: parts[cell.key].why for cell in sweep.cells if parts[cell.key].is_given_up}
    beyond = frozenset[str]().union(*(cell.beyond for cell in cells))
    statuses = []
    for trial in ordered(cells):
        result = results.get(trial.key)
        state = "new"
        why = ""
        if result is not None and trial.key in damaged:
            state = "failed"
            why = "; ".join(filter(None, (damaged[trial.key], BEYOND if trial.key in beyond else "")))
            result = None
        elif result is not None:
            why = stale(result, fingerprints.get(trial.cell.dataset, ""), codes[trial.cell.key])
            state = "stale" if why else "done"
            why = "; ".join(filter(None, (why, BEYOND if trial.key in beyond else "")))
        elif trial.key in failed:
            state = "failed"
            why = str(attempts[trial.key][-1].get("error", ""))
        elif trial.key in skipped:
            state = "skipped"
            why = skipped[trial.key]
        elif trial.key in waiting:
            state = "paused"
            why = f"after epoch {paused[trial.key]['epoch']} of {trial.recipe.epochs}"
        elif trial.key in begun:
            state = "running"
        if trial.key in torn and state in ("new", "running"):
            why = f"results/{trial.key}.json is damaged; it is trained anew"
        statuses.append(TrialStatus(trial, state, result, why))
    pending = tuple(trial for cell in cells for trial in cell.pending)
    searched = frozenset(trial.key for cell in cells for trial in cell.search)
    # What a search with a further seed has chosen is a trial of that search.
    further = frozenset(trial.key for cell in cells for trial in cell.further) - searched
    studied = frozenset(trial.key for cell in cells for trial in cell.rates)
    rates = {key: choice.rate for key, choice in rate_choices(sweep, results, failed).items()}
    unsound = {key: results[key] for key in damaged if key in results}
    running = (status.trial for status in statuses if status.state == "running")
    under_way = {t.key: record for t in running if (record := _under_way(ledger, t, codes)) is not None}
    return Plan(
        sweep,
        tuple(statuses),
        pending,
        fingerprints,
        further,
        searched,
        studied,
        rates,
        unsound,
        torn,
        given_up,
        failed,
        paused,
        {**paused, **under_way},
    )


def _under_way(ledger: Ledger, trial: Trial, codes: Mapping[str, str]) -> Json | None:
    """Return what the newest checkpoint of a trial notes; None where it is by other code, and so begins anew."""
    state = progress(ledger, trial.key)
    code = codes[trial.cell.key]
    return None if state is None or (code and state.get("code") != code) else state


def without_damaged(plan: Plan, ledger: Ledger, names: Collection[str]) -> Plan:
    """Return the plan; a trial with a damaged file of these names counts as failed. The files are read now."""
    statuses = []
    damaged = dict(plan.damaged)
    for status in plan.statuses:
        key, result = status.trial.key, status.result
        why = checked(ledger, key, result, names) if result is not None else ""
        if result is not None and why:
            damaged[key] = result
            why += f"; {BEYOND}" if status.why.endswith(BEYOND) else ""
            status = TrialStatus(status.trial, "failed", None, why)
        statuses.append(status)
    return dataclasses.replace(plan, statuses=tuple(statuses), damaged=damaged)


def current_plan(ledger: Ledger, title: str) -> Plan:
    """Return the plan of a declared sweep as it stands now; ValueError where its file is not a plan.

    The data are those of its last run. A plan that does not name them makes no result stale.
    """
    sweep, fingerprints = declared_sweep(ledger, title)
    return plan(sweep, ledger, fingerprints)


def declared_sweep(ledger: Ledger, title: str) -> tuple[Sweep, dict[str, str]]:
    """Return a sweep as its plan on the ledger declares it, and the fingerprints of its data.

    ValueError, which names the file, where that is not a plan.
    """
    name = f"plans/{title}.json"
    declared = ledger.read_json(name)
    if declared is None and ledger.read(name) is not None:
        raise ValueError(f"{ledger.path(name)} is damaged; to write it anew, start the sweep again")
    try:
        sweep = sweep_from_json(declared)
        fingerprints = (declared or {}).get("fingerprints", {})
        if not isinstance(fingerprints, dict):
            raise ValueError(f"not a plan: its fingerprints are {fingerprints!r}")
    except ValueError as error:
        raise ValueError(f"{ledger.path(name)} is {error}") from None
    return sweep, fingerprints


def has_failed(attempts: list[Json]) -> bool:
    """Return whether a trial's failed attempts are enough to leave it until someone says --retry-failed."""
    return len(attempts) >= MAX_ATTEMPTS or any(attempt.get("final") for attempt in attempts)


def stale(result: Json, fingerprint: str, code: str) -> str:
    """Return why a result does not stand, as its data or its code ("": unknown) differ from these; "" where it does."""
    if fingerprint and result.get("fingerprint") != fingerprint:
        return "the data have changed since"
    return "the code has changed since" if code and result.get("code") != code else ""


def plan_to_json(plan: Plan) -> Json:
    """Return the plan as JSON for the ledger, from which the sweep can be declared again without its page."""
    sweep = plan.sweep
    search = plan.sweep.protocol.search
    return {
        "sweep": sweep.name,
        "profile": sweep.profile,
        "variant": sweep.variant,
        "question": sweep.question,
        "protocol": dataclasses.asdict(sweep.protocol) | {"search": search_to_json(search) if search else None},
        "cells": [cell_to_json(cell) | {"key": cell.key} for cell in sweep.cells],
        "questions": [dataclasses.asdict(question) for question in sweep.questions],
        "trials": {status.trial.key: status.trial.label for status in plan.statuses},
        "fingerprints": dict(plan.fingerprints),
    }
