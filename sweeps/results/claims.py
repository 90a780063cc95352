"""Whether the paper's sentences hold: in our runs, and in its own printed numbers.

A claim is a list of comparisons. Each is decided by its p, adjusted after Holm over all comparisons that the claims of
one table make, and a claim stands where all its comparisons do. The printed means ± SE are tested as the head of
statistics.py says: t, and t after Nadeau and Bengio; a number printed without a spread can only be taken at its face.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from sweeps.experiment.metrics import AVERAGE, Average
from sweeps.results import paper
from sweeps.results.cell_numbers import TABLES, stands_for
from sweeps.results.contrasts import Contrast, contrast, more_seeds
from sweeps.results.evidence import CellResults, Run, SweepResults
from sweeps.results.paper import CLAIMS, FOLDS, Claim, Comparison
from sweeps.results.statistics import Decision, Difference, decide, decide_all, holm, welch

# Where Figures 2 to 4 and Tables 6 and S1, whose rows are layers, find their networks: table and row of a cell.
NETWORKS: Final = {
    "6": ("4", "CReLU conv1-7"),
    "S1": ("1", "CReLU half"),
}
RANDOM: Final = "Random"
TEST_FRACTION: Final = 1 / FOLDS
InPrint = Literal["significant", "at face value", "not significant", "denied", "no numbers"]


class Compared(NamedTuple):
    """One comparison of a claim with one rival: `p` adjusted, `seeds` more that would decide it where it is open."""

    comparison: Comparison
    rival: str
    contrast: Contrast
    p: float
    decision: Decision
    seeds: int | None


class ClaimResult(NamedTuple):
    """A claim as our runs have it, and as the paper's own numbers do; `withheld` says why there is no decision."""

    claim: Claim
    decision: Decision
    compared: tuple[Compared, ...]
    withheld: str
    in_print: InPrint

    @property
    def open(self) -> tuple[Compared, ...]:
        """Return the comparisons that decide nothing yet."""
        return tuple(one for one in self.compared if one.decision == "inconclusive")

    @property
    def seeds(self) -> int | None:
        """Return the further seeds that would decide all that is open; None where seeds would not."""
        asked = [one.seeds for one in self.open]
        return None if not asked or None in asked else max(seeds for seeds in asked if seeds is not None)

    @property
    def hours(self) -> float:
        """Return what those seeds cost, each cell's trainings once, however many comparisons it is in."""
        needed: dict[str, float] = {}
        for one in self.open:
            for side, hours in one.contrast.hours.items():
                needed[side] = max(needed.get(side, 0.0), (one.seeds or 0) * hours)
        return sum(needed.values())

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return the runs it rests on."""
        return tuple({run.key: run for one in self.compared for run in one.contrast.runs}.values())


def judge_claims(survey: SweepResults) -> list[ClaimResult]:
    """Decide every claim that this sweep has a network of, in the paper's order."""
    cells = {
        (stands_for(evidence.cell), evidence.cell.row): evidence
        for evidence in reversed(survey.cells)  # of two cells for one row the first counts
        if evidence.cell.table in TABLES
    }
    found = []
    claims = [claim for claim in CLAIMS if _touched(claim, cells)]
    for table in dict.fromkeys(claim.table for claim in claims):
        found += _decided([claim for claim in claims if claim.table == table], cells)
    return [ruling for claim in claims for ruling in found if ruling.claim is claim]


def _touched(claim: Claim, cells: Mapping[tuple[str, str], CellResults]) -> bool:
    """Tell whether the sweep has the network that a claim's comparisons are about."""
    return any(_network(claim, one, one.row) in cells for one in claim.comparisons)


def _network(claim: Claim, comparison: Comparison, row: str) -> tuple[str, str]:
    """Return the data set and row of the cell that a row of a claim speaks of."""
    if claim.table in NETWORKS:
        return comparison.dataset, NETWORKS[claim.table][1]
    return comparison.dataset, comparison.row if row == RANDOM else row


def _metrics(claim: Claim, comparison: Comparison, rival: str) -> tuple[str, str]:
    """Return the names under which a comparison's two numbers lie on the runs."""
    if claim.table in NETWORKS:
        against = comparison.against_metric or comparison.metric
        return f"{comparison.metric}/{comparison.row}", f"{against}/{rival}"
    if rival == RANDOM:
        return comparison.metric, comparison.metric.replace("/mu/", "/mu_random/")
    return comparison.metric, comparison.against_metric or comparison.metric


def _decided(claims: Sequence[Claim], cells: Mapping[tuple[str, str], CellResults]) -> list[ClaimResult]:
    """Decide the claims of one table together."""
    asked: list[tuple[Claim, Comparison, str, Contrast]] = []
    for claim in claims:
        for comparison in claim.comparisons:
            for rival in paper.rivals(claim.table, comparison):
                ours, theirs = (cells.get(_network(claim, comparison, row)) for row in (comparison.row, rival))
                found = contrast(ours, theirs, *_metrics(claim, comparison, rival), comparison.scale)
                asked.append((claim, comparison, rival, found))
    adjusted = holm([one.p for *_, one in asked])
    family = sum(not math.isnan(one.p) for *_, one in asked)
    by_claim: dict[str, list[Compared]] = {}
    for (claim, comparison, rival, one), p in zip(asked, adjusted, strict=True):
        decision = decide(comparison.relation, one.difference, float(p), one.interval, comparison.margin)
        seeds = more_seeds(one, family, comparison.margin) if decision == "inconclusive" else None
        by_claim.setdefault(claim.id, []).append(Compared(comparison, rival, one, float(p), decision, seeds))
    return [_ruling(claim, by_claim[claim.id], cells) for claim in claims]


def _ruling(claim: Claim, compared: Sequence[Compared], cells: Mapping[tuple[str, str], CellResults]) -> ClaimResult:
    named = {_network(claim, one.comparison, row) for one in compared for row in (one.comparison.row, one.rival)}
    used = {name: cells[name] for name in named if name in cells}
    strangers = [evidence for (dataset, _), evidence in used.items() if evidence.cell.dataset != dataset]
    withheld = ""
    if strangers:
        withheld = "embedded pictures" if strangers[0].synthetic else "other data than the paper's"
    decision = "not run" if withheld else decide_all(one.decision for one in compared)
    return ClaimResult(claim, decision, tuple(compared), withheld, in_print(claim))


# The paper's own numbers --------------------------------------------------------------------------------------


class PrintedTest(NamedTuple):
    """Two averages of the paper, row minus rival, tested; `p` is the corrected one adjusted over the table."""

    table: str
    dataset: str
    row: str
    rival: str
    difference: Difference
    p: float

    @property
    def significant(self) -> bool:
        """Return whether the printed numbers tell the two rows apart."""
        return self.p < 0.05


def printed_tests(table: str) -> list[PrintedTest]:
    """Test every row's average of Table 1 or 2 against the first row's, and what its claims compare besides."""
    asked: list[tuple[str, str, str]] = []
    for dataset in dict.fromkeys(row.dataset for row in paper.ROWS if row.table == table):
        first, *others = [row.label for row in paper.rows(table, dataset)]
        asked += [(dataset, other, first) for other in others]
        asked += [(dataset, one.row, rival) for one, rival in _claimed(table) if one.dataset == dataset]
        if table == "2":
            asked += [(dataset, more, fewer) for fewer, more in itertools.combinations(others, 2)]
    found = [(key, _welch(table, *key)) for key in dict.fromkeys(asked)]
    known = [(key, one) for key, one in found if one is not None]
    adjusted = holm([one.corrected.p for _, one in known])
    return [PrintedTest(table, *key, one, float(p)) for (key, one), p in zip(known, adjusted, strict=True)]


def _claimed(table: str) -> Iterable[tuple[Comparison, str]]:
    """Yield the comparisons of averages that the claims of a table make."""
    for claim in CLAIMS:
        for comparison in claim.comparisons:
            if claim.table == table and comparison.metric == AVERAGE:
                yield from ((comparison, rival) for rival in paper.rivals(table, comparison))


def _welch(table: str, dataset: str, row: str, rival: str) -> Difference | None:
    """Test two printed averages, None where one is not printed or has no standard error."""
    sides = [paper.printed(table, dataset, label, AVERAGE) for label in (row, rival)]
    known = [Average(side.value, side.se, FOLDS) for side in sides if side is not None and side.se is not None]
    return welch(known[0], known[1], TEST_FRACTION) if len(known) == 2 else None


def in_print(claim: Claim) -> InPrint:
    """Tell what the printed numbers say of a claim: taken at their face, and tested where they have a spread."""
    holds = paper.holds_in_print(claim)
    if holds is None:
        return "no numbers"
    if not holds:
        return "denied"
    tests = {(one.dataset, one.row, one.rival): one for one in printed_tests(claim.table)}
    pairs = [
        (one.dataset, one.row, rival)
        for one in claim.comparisons
        if one.metric == AVERAGE
        for rival in paper.rivals(claim.table, one)
    ]
    if not pairs:
        return "at face value"
    return "significant" if all(tests[pair].significant for pair in pairs) else "not significant"
