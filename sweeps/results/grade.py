"""Grade of a reproduction: how much of a paper the sweeps of an output have shown, part by part.

Each leaf of a tree is a list of items, each of which passes checks in order, and stops at the first that it fails:
a number that agrees at another scale shows nothing. An item's score is the worth of the checks that it passed.
A leaf's is the mean of its items', a branch's the weighted mean of its parts'.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from crelu_models.tables import PAPER
from sweeps.experiment.metrics import AVERAGE, PARAMETERS, VOTE, has_diverged
from sweeps.results import paper
from sweeps.results.cell_numbers import NAMES, cells_of_rows, groups, number, stale_text, too_few, verdict_for
from sweeps.results.claims import ClaimResult, Compared, judge_claims
from sweeps.results.evidence import CellResults, SweepResults
from sweeps.results.paper import FOLDS
from sweeps.results.paper_cells import CELLS, other_data, other_training_of, set_facts
from sweeps.results.reproduction_trees import Analysed, Branch, Chosen, Leaf, Numbers, Proved, Sentence, Trained

OPERATIONS_PER_SECOND: Final = 20e12  # of the GPU for which hours are estimated
PASSES: Final = 3  # forward and twice as much backward
RUN: Final = "run"
SCALE: Final = "at the paper's scale"
DATA: Final = "on the paper's data"
STATISTICS: Final = "with enough trainings"
AGREEMENT: Final = "in agreement"
STAGES: Final = (RUN, SCALE, DATA, STATISTICS, AGREEMENT)
# What each check counts: a training alone shows little, agreement most.
WORTH: Final = {RUN: 1, SCALE: 3, DATA: 4, STATISTICS: 4, AGREEMENT: 8}


class Item(NamedTuple):
    """One thing to show: how many of its checks it passed, and why it stopped there.

    `hours` are the estimated GPU-hours of the `trainings` that it lacks.
    """

    name: str
    passed: int
    checks: tuple[str, ...]
    why: str = ""
    trainings: str = ""
    hours: float = 0.0

    @property
    def score(self) -> float:
        """Return the share of the checks that it passed, by what each is worth."""
        worth = [WORTH[check] for check in self.checks]
        return sum(worth[: self.passed]) / sum(worth)

    @property
    def missing(self) -> str:
        """Return the check that it fails; empty where it passed all."""
        return self.checks[self.passed] if self.passed < len(self.checks) else ""


class Graded(NamedTuple):
    """A part of a paper with its score from 0 to 1: a leaf has items, a branch has parts."""

    title: str
    weight: float
    score: float
    items: tuple[Item, ...] = ()
    parts: tuple[Graded, ...] = ()

    def leaves(self) -> Iterator[Graded]:
        """Yield the leaves below, or the leaf itself."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()

    @property
    def hours(self) -> float:
        """Return the GPU-hours of the trainings that are missing, those that several leaves need counted once."""
        needed: dict[str, float] = {}
        for leaf in self.leaves():
            for item in leaf.items:
                needed[item.trainings] = max(needed.get(item.trainings, 0.0), item.hours)
        return sum(needed.values())


def grade(tree: Branch, all_results: Sequence[SweepResults]) -> Graded:
    """Return the grade of each part of a paper, from the sweeps of an output."""
    return _branch(tree, Findings(all_results))


class Findings:
    """Findings of several sweeps: their cells, claims and analyses."""

    def __init__(self, all_results: Sequence[SweepResults]) -> None:
        self.all_results = all_results
        self.of_rows = [cells_of_rows(results) for results in all_results]
        self.claims: dict[str, list[ClaimResult]] = {}
        for results in all_results:
            if results.sweep.protocol.trains_cells:
                for claim in judge_claims(results):
                    self.claims.setdefault(claim.claim.id, []).append(claim)

    def cells(self, table: str, dataset: str, row: str) -> list[CellResults]:
        """Return the cells that stand for a row: one of each sweep that has it."""
        found = [cells[dataset, row] for cells in self.of_rows if (dataset, row) in cells]
        return [cell for cell in found if cell.cell.table == table]


def _branch(branch: Branch, findings: Findings) -> Graded:
    parts = tuple(
        _branch(part, findings) if isinstance(part, Branch) else _leaf(part, findings) for part in branch.parts
    )
    total = sum(part.weight for part in parts)
    score = sum(part.weight * part.score for part in parts) / total if total else 0.0
    return Graded(branch.title, branch.weight, score, (), parts)


def _leaf(leaf: Leaf, findings: Findings) -> Graded:
    items = tuple(_items(leaf, findings))
    score = sum(item.score for item in items) / len(items) if items else 0.0
    return Graded(leaf.title, leaf.weight, score, items)


def _items(leaf: Leaf, findings: Findings) -> Iterable[Item]:
    match leaf:
        case Numbers():
            return _numbers(leaf, findings)
        case Sentence():
            return _sentence(leaf, findings)
        case Analysed():
            return _analysed(leaf, findings)
        case Proved():
            return _proved(leaf, findings)
        case Chosen():
            return _chosen(leaf, findings)
        case Trained():
            return _trained(leaf, findings)


def _best(name: str, checks: tuple[str, ...], candidates: Iterable[tuple[int, str]], absent: str) -> Item:
    """Return the item as the best of the sweeps has it; `absent` says what is missing where none has it."""
    passed, why = max(candidates, key=lambda candidate: candidate[0], default=(0, absent))
    return Item(name, passed, checks, why)


def _stage(*reasons: str) -> tuple[int, str]:
    """Return how many checks pass before the first with a reason why not, and that reason."""
    passed = sum(1 for _ in itertools.takewhile(lambda reason: not reason, reasons))
    return passed, reasons[passed] if passed < len(reasons) else ""


# Printed numbers ----------------------------------------------------------------------------------------------


def _numbers(leaf: Numbers, findings: Findings) -> Iterator[Item]:
    """Yield an item for each error that a table prints of one data set; counts of parameters need no training."""
    stands: dict[tuple[str, str], list[tuple[int, str]]] = {}
    tables = [table for results in findings.all_results for table in groups(results)]
    for table in tables:
        if (table.table, table.dataset) != (leaf.table, leaf.dataset):
            continue
        for row in table.standing_rows:
            for metric in table.metrics:
                if row.results is not None and table.paper(row, metric) is not None:
                    ours = number(row.results, metric)
                    scale = other_training_of(row.results)
                    data = other_data(row.results, leaf.dataset)
                    few = row.results.lost(metric) or too_few(metric, leaf.table, ours) or stale_text(ours.runs)
                    judged = verdict_for(table, row, metric, ours)
                    word = judged.word if judged is not None else "not compared"
                    stand = _stage(
                        "" if ours.known else "no training", scale, data, few, "" if word == "reproduced" else word
                    )
                    stands.setdefault((row.printed, metric), []).append(stand)
    for printed in paper.rows(leaf.table, leaf.dataset):
        for metric in paper.COLUMNS[leaf.table]:
            if metric != PARAMETERS and paper.printed(leaf.table, leaf.dataset, printed.label, metric) is not None:
                name = f"{printed.label} {leaf.dataset}: {NAMES.get(metric, metric)}"
                item = _best(name, STAGES, stands.get((printed.label, metric), ()), "no training")
                if item.missing not in ("", AGREEMENT):
                    folds = metric in (AVERAGE, VOTE)
                    hours = row_hours(leaf.table, leaf.dataset, printed.label, folds)
                    trainings = f"{printed.label} {leaf.dataset} {'folds' if folds else 'seeds'}"
                    item = item._replace(trainings=trainings, hours=hours)
                yield item


def row_hours(table: str, dataset: str, row: str, folds: bool) -> float:
    """Return the GPU-hours of a row's trainings, estimated from its operations: ten folds, or two seeds.

    Of Tables 1 and 2 a seed is the two phases of Single.
    """
    net, recipe = CELLS[table, row]
    facts = set_facts(dataset)
    if facts is None:
        return 0.0
    trainings = FOLDS if folds else 2 * (2 if table in ("1", "2") else 1)
    macs = PAPER[net].macs(facts.classes, facts.crop)
    return trainings * PASSES * 2 * macs * facts.splits["train"] * recipe.epochs / OPERATIONS_PER_SECOND / 3600


# Sentences ----------------------------------------------------------------------------------------------------

# A decision by the trainings, and what of it is missing.
UNDECIDED: Final = ("inconclusive", "not tested")


def _sentence(leaf: Sentence, findings: Findings) -> Iterator[Item]:
    """Yield an item for each comparison of a claim that tests decide; a comparison of votes decides nothing."""
    (claim,) = [claim for claim in paper.CLAIMS if claim.id == leaf.claim]
    stands: dict[tuple[str, str, str, str], list[tuple[int, str]]] = {}
    for result in findings.claims.get(leaf.claim, ()):
        for compared in result.compared:
            stands.setdefault(_name(compared), []).append(_claim_stage(result, compared))
    for comparison in claim.comparisons:
        if comparison.metric == VOTE:
            continue
        for rival in paper.rivals(claim.table, comparison):
            place = (comparison.dataset, comparison.row, comparison.metric, rival)
            name = f"{comparison.row} {comparison.dataset}: {comparison.metric} {comparison.relation} {rival}"
            yield _best(name, STAGES, stands.get(place, ()), "no training")


def _name(compared: Compared) -> tuple[str, str, str, str]:
    comparison = compared.comparison
    return comparison.dataset, comparison.row, comparison.metric, compared.rival


def _claim_stage(result: ClaimResult, compared: Compared) -> tuple[int, str]:
    """Return how far a comparison of a claim has come, and why no further."""
    known = not math.isnan(compared.contrast.difference)
    open_ = compared.decision if compared.decision in UNDECIDED else ""
    denied = "" if compared.decision == "supported" else compared.decision
    lacks = result.lacks
    return _stage("" if known else "no training", lacks.training, lacks.data, lacks.number or open_, denied)


# Analyses, theorems, protocol ---------------------------------------------------------------------------------


def _analysed(leaf: Analysed, findings: Findings) -> Iterator[Item]:
    """Yield an item for each network whose analysis a figure shows."""
    checks = (RUN, SCALE, DATA)
    for table, dataset, row in leaf.networks:
        stands = []
        for cell in findings.cells(table, dataset, row):
            has = any(leaf.job in run.analyses for run in cell.runs)
            stands.append(
                _stage("" if has else f"no analysis {leaf.job}", other_training_of(cell), other_data(cell, dataset))
            )
        yield _best(f"{row} {dataset}: {leaf.job}", checks, stands, "no training")


def _proved(leaf: Proved, findings: Findings) -> Iterator[Item]:
    """Yield the item of a theorem: looked at on a network, and no counter-example found."""
    values = [
        float(run.analyses[leaf.job]["metrics"][leaf.metric])
        for results in findings.all_results
        for run in results.runs
        if leaf.metric in run.analyses.get(leaf.job, {}).get("metrics", {})
    ]
    broken = sum(values)
    stands = [_stage("", f"{broken:g} counter-examples" if broken else "")] if values else []
    yield _best(leaf.metric, (RUN, AGREEMENT), stands, f"no analysis {leaf.job}")


def _chosen(leaf: Chosen, findings: Findings) -> Iterator[Item]:
    """Yield an item for each row of a table whose net has dropout: its rates were searched on held-out pictures."""
    for row in paper.rows(leaf.table, leaf.dataset):
        if (leaf.table, row.label) not in CELLS:
            continue
        stands = []
        for cell in findings.cells(leaf.table, leaf.dataset, row.label):
            searched = cell.winner is not None and cell.searched_dropout
            stands.append(
                _stage("" if searched else "no search", other_training_of(cell), other_data(cell, leaf.dataset))
            )
        yield _best(f"{row.label} {leaf.dataset}: search", (RUN, SCALE, DATA), stands, "no search")


def _trained(leaf: Trained, findings: Findings) -> Iterator[Item]:
    """Yield an item for each cell of a sweep: trained, and better than guessing."""
    cells = [cell for results in findings.all_results if results.title == leaf.sweep for cell in results.cells]
    if not cells:
        yield Item(leaf.sweep, 0, (RUN,), "this sweep has not run")
    for cell in cells:
        trained = bool(cell.tested)
        lost = any(has_diverged(run.result) for run in cell.tested)
        passed, why = _stage("" if trained else "no training", "a training is at chance" if lost else "")
        yield Item(cell.cell.label, passed, (RUN, AGREEMENT), why)


def stage_counts(graded: Graded) -> Mapping[str, int]:
    """Count the items of a part by the check that they fail, "" for those that passed all."""
    counts: dict[str, int] = {}
    for leaf in graded.leaves():
        for item in leaf.items:
            counts[item.missing] = counts.get(item.missing, 0) + 1
    return counts
