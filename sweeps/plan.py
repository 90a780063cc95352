"""What a sweep is, which trials it consists of, and how far each of them is. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from sweeps.ledger import Json, Ledger
from sweeps.recipe import Dimension
from sweeps.search import Search, budget, study
from sweeps.trial import Cell, Trial, cell_from_json, cell_to_json, code_fingerprint

Rates = tuple[tuple[str, float], ...]

# Tries of a trial before it counts as failed: the first and two more.
TRIES = 3


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
                raise ValueError(unknown("cell", glob, labels, self.name))
        kept = tuple(cell for cell in self.cells if _fits(cell.label, wanted) and not _fits(cell.label, barred))
        if not kept:
            raise ValueError(f"no cell of {self.name} is left by --only {' '.join(globs)}")
        return dataclasses.replace(self, cells=kept)


def unknown(kind: str, given: str, known: Iterable[str], where: str) -> str:
    """Return the sentence for a name that does not exist, with the nearest that does."""
    import difflib

    names = list(known)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), lower, 1, 0.4)
    hint = f"did you mean {lower[near[0]]!r}?" if near else f"there are: {', '.join(names)}"
    return f"{where} has no {kind} {given!r}; {hint}"


def _fits(label: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(label.lower(), glob.lower()) for glob in globs)


def expand(sweep: Sweep, results: Mapping[str, Json], failed: Collection[str] = ()) -> list[Trial]:
    """Return the trials that are known now, in the order they should start: a pure function of the ledger.

    Searches come first, wave by wave; a cell whose study is over goes on to its protocol at once.
    """
    waves: list[Trial] = []
    rest: list[Trial] = []
    for cell in sweep.cells:
        if sweep.protocol.search is None:
            rest += replicas(cell, (), "", sweep.protocol, results)
            continue
        found = study(sweep.protocol.search, cell, results, failed)
        waves += [asked.trial for asked in found.asked]
        winner = found.winner if found.over else None
        if winner is not None:
            reference = winner.trial.key if winner.trial.seed == 0 else ""
            rest += replicas(cell, winner.trial.dropout, reference, sweep.protocol, results)
    # Seed by seed over all cells, so that a sweep that is stopped has whole comparisons.
    rest.sort(key=lambda trial: (trial.seed % SECOND_SEED, trial.fold))
    return list({trial.key: trial for trial in [*waves, *rest]}.values())


# The second phase of Single starts anew from another seed than the first: this much further.
SECOND_SEED = 1000


def replicas(
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


def most(sweep: Sweep) -> int:
    """Return how many trials the sweep comes to at most: suggestions that repeat, phases that share make it fewer."""
    search = sweep.protocol.search
    per_cell = [budget(search, cell) if search else 0 for cell in sweep.cells]
    return sum(per_cell) + len(sweep.cells) * sweep.protocol.trainings()


class Standing(NamedTuple):
    """A trial and how far it is: new, running (it has a checkpoint), done, stale or failed."""

    trial: Trial
    state: str
    result: Json | None
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """The standings of all trials of a sweep."""

    sweep: Sweep
    standings: tuple[Standing, ...]

    def count(self, *states: str) -> int:
        """Return how many trials are in one of `states`."""
        return sum(standing.state in states for standing in self.standings)

    def of(self, cell: Cell) -> list[Standing]:
        """Return the standings of one cell's trials."""
        return [standing for standing in self.standings if standing.trial.cell.key == cell.key]

    @property
    def to_do(self) -> list[Trial]:
        """Return the trials still to be trained."""
        return [standing.trial for standing in self.standings if standing.state in ("new", "running")]


def plan(sweep: Sweep, ledger: Ledger, fingerprints: Mapping[str, str]) -> Plan:
    """Return where each trial of `sweep` stands; `fingerprints` are those of the data sets that are there."""
    results = ledger.results()
    attempts = ledger.failed()
    begun = set(ledger.folders("checkpoints"))
    standings = []
    for trial in expand(sweep, results, {key for key, tries in attempts.items() if given_up(tries)}):
        result = results.get(trial.key)
        state, why = "new", ""
        if result is not None:
            why = stale(result, fingerprints.get(trial.cell.dataset, ""))
            state = "stale" if why else "done"
        elif given_up(attempts.get(trial.key, [])):
            state, why = "failed", str(attempts[trial.key][-1].get("error", ""))
        elif trial.key in begun:
            state = "running"
        standings.append(Standing(trial, state, result, why))
    return Plan(sweep, tuple(standings))


def given_up(attempts: list[Json]) -> bool:
    """Return whether a trial's failed tries are enough to leave it until someone says --retry-failed."""
    return len(attempts) >= TRIES or any(attempt.get("final") for attempt in attempts)


def stale(result: Json, fingerprint: str) -> str:
    """Return why a result no longer stands (its data or the code have changed since), or nothing."""
    if fingerprint and result.get("fingerprint") != fingerprint:
        return "the data have changed since"
    return "the code has changed since" if result.get("code") != code_fingerprint() else ""


def declared(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON, for the ledger: enough to declare the sweep again without its page."""
    sweep, search = plan.sweep, plan.sweep.protocol.search
    protocol = {name: getattr(sweep.protocol, name) for name in ("seeds", "ablation", "single", "match", "folds")}
    return {
        "sweep": sweep.name,
        "profile": sweep.profile,
        "protocol": protocol | {"search": None if search is None else dataclasses.asdict(search)},
        "cells": [cell_to_json(cell) | {"key": cell.key} for cell in sweep.cells],
        "trials": {standing.trial.key: standing.trial.label for standing in plan.standings},
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
