"""What a sweep is, which trials it consists of, and how far each of them is. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.metrics import Tested
from sweeps.experiment.recipe import Dimension
from sweeps.experiment.search import Search, budget, study
from sweeps.experiment.trial import Cell, Trial, cell_from_json, cell_to_json
from sweeps.store.ledger import Json, Ledger

Rates = tuple[tuple[str, float], ...]

# Tries of a trial before it counts as failed: the first and two more.
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Protocol:
    """How a cell becomes trials: its search, then with the dropout chosen what science.md calls the protocols.

    `ablation`: one training on all but the hold-out for each seed (Table 4). `single`: Goodfellow's two phases for
    each seed. `folds`: that many networks, each validated on one fold (Average, Vote).
    """

    seeds: int = 1
    ablation: bool = True
    single: bool = False
    match: str = "train_loss"
    folds: int = 0
    search: Search | None = None

    def trainings(self) -> int:
        """Return how many trainings one cell comes to, besides its search."""
        return self.seeds * (self.ablation + 2 * self.single) + self.folds


@dataclass(frozen=True)
class Sweep:
    """A declared list of cells with the protocol that turns each into trials."""

    name: str
    profile: str
    cells: tuple[Cell, ...]
    protocol: Protocol = Protocol()

    def __post_init__(self) -> None:
        """Raise ValueError where two cells are one, by label or by content."""
        for kind, values in (
            ("label", [cell.label for cell in self.cells]),
            ("content", [cell.key for cell in self.cells]),
        ):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                labels = [cell.label for cell in self.cells if twice[0] in (cell.label, cell.key)]
                raise ValueError(f"{len(labels)} cells of {self.name} have the same {kind}: {', '.join(labels)}")

    @property
    def title(self) -> str:
        """Return the name of the sweep's experiment: each profile but the paper's has its own."""
        return self.name if self.profile == "paper" else f"{self.name}-{self.profile}"

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Return the names of the data sets of the cells, each once."""
        return tuple(dict.fromkeys(cell.dataset for cell in self.cells))

    def only(self, globs: Iterable[str]) -> Sweep:
        """Return the sweep with the cells whose label fits a glob and no !glob; ValueError where none is left."""
        globs = tuple(globs)
        wanted = [glob for glob in globs if not glob.startswith("!")] or ["*"]
        barred = [glob[1:] for glob in globs if glob.startswith("!")]
        labels = [cell.label for cell in self.cells]
        for glob in wanted + barred:
            if not fnmatch.filter([label.lower() for label in labels], glob.lower()):
                raise ValueError(unknown_name("cell", glob, labels, self.name))
        kept = tuple(cell for cell in self.cells if _fits(cell.label, wanted) and not _fits(cell.label, barred))
        if not kept:
            raise ValueError(f"no cell of {self.name} is left by --only {' '.join(globs)}")
        return dataclasses.replace(self, cells=kept)


def unknown_name(kind: str, given: str, known: Iterable[str], where: str) -> str:
    """Return the sentence for a name that does not exist, with the nearest that does."""
    import difflib

    names = list(known)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), lower, 1, 0.4)
    hint = f"did you mean {lower[near[0]]!r}?" if near else f"there are: {', '.join(names)}"
    return f"{where} has no {kind} {given!r}; {hint}"


def _fits(label: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(label.lower(), glob.lower()) for glob in globs)


class CellTrials(NamedTuple):
    """What one cell comes to: its search, its protocol, and what will follow from these, as far as is known.

    Trials to come carry the cell's own dropout in place of the one that will be chosen: they are for counting.
    """

    search: list[Trial]
    protocol: list[Trial]
    pending: list[Trial]


def cell_trials(
    cell: Cell, protocol: Protocol, results: Mapping[str, Json], failed: Collection[str] = ()
) -> CellTrials:
    """Return what a cell comes to: a pure function of the ledger; once its study is over, its protocol at once."""
    search = protocol.search
    if search is None:
        rest = protocol_trials(cell, (), "", protocol, results)
        return CellTrials([], rest, _second_phases(cell, protocol, rest, failed))
    found = study(search, cell, results, failed)
    waves = [trial for asked in found.asked for trial in asked.trials]
    winner = found.winner if found.is_finished else None
    inner = search.folds == 0 and search.seed == 0  # the winner is a first phase of Single too
    if winner is not None:
        reference = winner.trial.key if inner else ""
        rest = protocol_trials(cell, winner.trial.dropout, reference, protocol, results)
        return CellTrials(waves, rest, _second_phases(cell, protocol, rest, failed))
    if found.is_finished:  # every one of its trials failed
        return CellTrials(waves, [], [])
    asked = budget(search, cell) * max(1, search.folds) - len(waves)
    again = Trial(cell, "inner", search.seed, (), 0, search.folds) if search.folds else Trial(cell, "holdout")
    rest = protocol_trials(cell, (), "-" if inner else "", protocol, {})
    return CellTrials(waves, [], [again] * asked + rest + _second_phases(cell, protocol, rest, ()))


def _second_phases(cell: Cell, protocol: Protocol, known: Sequence[Trial], failed: Collection[str]) -> list[Trial]:
    """Return second phases of Single in place of those that wait for their first."""
    settled = sum(trial.phase == "match" or (trial.phase == "holdout" and trial.key in failed) for trial in known)
    missing = protocol.seeds * protocol.single - settled
    return [Trial(cell, "match", SECOND_SEED, match=protocol.match, reference="-")] * missing


def expand(sweep: Sweep, results: Mapping[str, Json], failed: Collection[str] = ()) -> list[Trial]:
    """Return the trials that are known now, in the order they should start: a pure function of the ledger."""
    return ordered(cell_trials(cell, sweep.protocol, results, failed) for cell in sweep.cells)


def ordered(parts: Iterable[CellTrials]) -> list[Trial]:
    """Return the trials of all cells in the order they should start: searches first, wave by wave, each trial once.

    Then seed by seed over all cells, so that a sweep that is stopped has whole comparisons.
    """
    parts = list(parts)
    rest = sorted((t for one in parts for t in one.protocol), key=lambda trial: (trial.seed % SECOND_SEED, trial.fold))
    return list({trial.key: trial for trial in [*(t for one in parts for t in one.search), *rest]}.values())


# The second phase of Single starts anew from another seed than the first: this much further.
SECOND_SEED = 1000


def protocol_trials(
    cell: Cell, dropout: Rates, reference: str, protocol: Protocol, results: Mapping[str, Json]
) -> list[Trial]:
    """Return the trials of a cell with its dropout chosen; `reference` is a finished first phase with seed 0."""
    found = []
    for seed in range(protocol.seeds):
        if protocol.ablation:
            found.append(Trial(cell, "ablation", seed, dropout))
        if protocol.single:
            first = Trial(cell, "holdout", seed, dropout)
            key = reference if seed == 0 and reference else first.key
            if key == first.key:
                found.append(first)
            if key in results:
                second = Trial(cell, "match", SECOND_SEED + seed, dropout, match=protocol.match, reference=key)
                found.append(second)
    found += [Trial(cell, "fold", 0, dropout, fold, protocol.folds) for fold in range(protocol.folds)]
    return found


STATES = ("new", "running", "done", "stale", "failed")


class TrialStatus(NamedTuple):
    """A trial and how far it is: new, running (it has a checkpoint), done, stale or failed."""

    trial: Trial
    state: str
    result: Json | None
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """The statuses of all known trials of a sweep, stand-ins for those to follow, and its data's fingerprints."""

    sweep: Sweep
    statuses: tuple[TrialStatus, ...]
    pending: tuple[Trial, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def count(self, *states: str, cell: Cell | None = None) -> int:
        """Count the trials, of one cell or of all, that are in one of `states`."""
        return sum(status.state in states for status in (self.statuses if cell is None else self.of(cell)))

    def of(self, cell: Cell) -> list[TrialStatus]:
        """Return the statuses of one cell's trials."""
        return [status for status in self.statuses if status.trial.cell.key == cell.key]

    def tested(self, cell: Cell) -> list[Tested]:
        """Return the results of a cell's trials, as its numbers are made from."""
        return [(status.trial.phase, status.result["metrics"]) for status in self.of(cell) if status.result is not None]

    @property
    def hours(self) -> float:
        """Return the hours of training behind the results."""
        return sum(float(status.result["seconds"]) for status in self.statuses if status.result is not None) / 3600

    @property
    def total(self) -> int:
        """Return how many trials the sweep comes to; fewer where a search suggests a point twice."""
        return len(self.statuses) + len(self.pending)

    @property
    def to_do(self) -> list[Trial]:
        """Return the trials still to be trained."""
        return [standing.trial for standing in self.statuses if standing.state in ("new", "running")]


def plan(sweep: Sweep, ledger: Ledger, fingerprints: Mapping[str, str]) -> Plan:
    """Return where each trial of `sweep` stands; `fingerprints` are those of the data sets that are there."""
    results = ledger.results()
    attempts = ledger.failed()
    begun = set(ledger.folders("checkpoints"))
    standings = []
    codes = {cell.key: code_fingerprint(cell.net) for cell in sweep.cells}
    failed = {key for key, tries in attempts.items() if has_failed(tries)}
    parts = [cell_trials(cell, sweep.protocol, results, failed) for cell in sweep.cells]
    for trial in ordered(parts):
        result = results.get(trial.key)
        state, why = "new", ""
        if result is not None:
            why = stale(result, fingerprints.get(trial.cell.dataset, ""), codes[trial.cell.key])
            state = "stale" if why else "done"
        elif has_failed(attempts.get(trial.key, [])):
            state, why = "failed", str(attempts[trial.key][-1].get("error", ""))
        elif trial.key in begun:
            state = "running"
        standings.append(TrialStatus(trial, state, result, why))
    return Plan(sweep, tuple(standings), tuple(trial for one in parts for trial in one.pending), fingerprints)


def current_plan(ledger: Ledger, title: str) -> Plan:
    """Return where the trials of a declared sweep stand now; ValueError where its plan is none.

    The data are those of its last run, wherever they lie. A plan that does not name them makes no result stale.
    """
    declared = ledger.read_json(f"plans/{title}.json")
    sweep = sweep_from_json(declared)
    fingerprints = (declared or {}).get("fingerprints", {})
    if not isinstance(fingerprints, dict):
        raise ValueError(f"not a plan: its fingerprints are {fingerprints!r}")
    return plan(sweep, ledger, fingerprints)


def has_failed(attempts: list[Json]) -> bool:
    """Return whether a trial's failed tries are enough to leave it until someone says --retry-failed."""
    return len(attempts) >= MAX_ATTEMPTS or any(attempt.get("final") for attempt in attempts)


def stale(result: Json, fingerprint: str, code: str) -> str:
    """Return why a result no longer stands (its data or the code have changed since), or nothing."""
    if fingerprint and result.get("fingerprint") != fingerprint:
        return "the data have changed since"
    return "the code has changed since" if result.get("code") != code else ""


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON, for the ledger: enough to declare the sweep again without its page."""
    sweep, search = plan.sweep, plan.sweep.protocol.search
    protocol = {name: getattr(sweep.protocol, name) for name in ("seeds", "ablation", "single", "match", "folds")}
    return {
        "sweep": sweep.name,
        "profile": sweep.profile,
        "protocol": protocol | {"search": None if search is None else dataclasses.asdict(search)},
        "cells": [cell_to_json(cell) | {"key": cell.key} for cell in sweep.cells],
        "trials": {standing.trial.key: standing.trial.label for standing in plan.statuses},
        "fingerprints": dict(plan.fingerprints),
    }


def sweep_from_json(value: Any) -> Sweep:
    """Return the sweep that `declared` wrote; ValueError where it is none."""
    try:
        protocol, search = dict(value["protocol"]), value["protocol"]["search"]
        if search is not None:
            space = tuple(Dimension(*dimension) for dimension in search["space"])
            search = Search(**{**search, "space": space})
        cells = tuple(cell_from_json(cell) for cell in value["cells"])
        return Sweep(str(value["sweep"]), str(value["profile"]), cells, Protocol(**{**protocol, "search": search}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a plan: {error!r}") from None
