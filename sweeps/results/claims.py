"""Claims of the paper, decided in our runs and in its own printed numbers.

A claim is a list of comparisons. Each is decided by its p, adjusted after Holm over all comparisons that the claims of
a sweep make, and a claim stands where all its comparisons do. Comparisons of votes are shown, and decide nothing: one
vote a side says nothing of other trainings. A claim is withheld where a training behind it is not the paper's, was
lost or is stale, where they are not its ten folds or Single, and where seeds came until questions were decided.

The printed means ± SE are tested as the head of statistics.py says; a number printed without a spread is taken at face
value.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from sweeps.experiment.metrics import AVERAGE, Average
from sweeps.experiment.questions.question import asked_cells
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.wording import count
from sweeps.results import paper
from sweeps.results.cell_numbers import cells_of_rows, number, other_protocol
from sweeps.results.contrasts import UNTESTED, Contrast, contrast, contrast_with, more_trainings
from sweeps.results.evidence import CellResults, Run, SweepResults
from sweeps.results.paper import CLAIMS, FOLDS, Claim, Comparison
from sweeps.results.paper_cells import (
    CELLS,
    NETWORKS,
    Place,
    footnote_row,
    other_data,
    other_training_of,
    reduced,
    standing_cells,
)
from sweeps.results.statistics import Decision, Difference, decide, decide_all, error_of_mean, holm, p_within, welch

RANDOM: Final = "Random"
FOOTNOTE: Final = "Footnote"  # of cells that no table prints
TEST_FRACTION: Final = 1 / FOLDS
Cells = Mapping[Place, CellResults]
InPrint = Literal["significant", "at face value", "not significant", "denied", "no numbers"]


class Compared(NamedTuple):
    """One comparison of a claim with one rival: `p` is adjusted; `more` trainings would decide it where it is open."""

    comparison: Comparison
    rival: str
    contrast: Contrast
    p: float
    decision: Decision
    more: int | None


class Lacks(NamedTuple):
    """What keeps the trainings behind a claim from deciding it: another net or recipe, other pictures, or their number.

    Too few of them, of another protocol, lost and stale ones are of the last kind. Each is empty where it is nothing.
    """

    training: str = ""
    data: str = ""
    number: str = ""


class ClaimResult(NamedTuple):
    """A claim as our runs and the paper's own numbers decide it.

    `withheld` says in a sentence why there is no decision, `lacks` by kind of reason.
    """

    claim: Claim
    decision: Decision
    compared: tuple[Compared, ...]
    withheld: str
    in_print: InPrint
    lacks: Lacks = Lacks()

    @property
    def open(self) -> tuple[Compared, ...]:
        """Return the comparisons that decide nothing yet."""
        return tuple(compared for compared in self.compared if compared.decision == "inconclusive")

    @property
    def more(self) -> Mapping[str, int]:
        """Return how many further seeds, and folds, a row would decide all that is open; empty where none would."""
        if not self.open or any(compared.more is None for compared in self.open):
            return {}
        needed: dict[str, int] = {}
        for compared in self.open:
            unit = compared.contrast.unit
            needed[unit] = max(needed.get(unit, 0), compared.more or 0)
        return needed

    @property
    def hours(self) -> float:
        """Return the hours that those take, each cell's trainings once, however many comparisons it is in."""
        needed: dict[str, float] = {}
        for compared in self.open:
            for trainings, hours in compared.contrast.hours.items():
                needed[trainings] = max(needed.get(trainings, 0.0), (compared.more or 0) * hours)
        return sum(needed.values())

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return the runs behind it."""
        return tuple({run.key: run for compared in self.compared for run in compared.contrast.runs}.values())


def judge_claims(results: SweepResults) -> list[ClaimResult]:
    """Decide every claim that this sweep has a network of, in the paper's order."""
    cells = cells_of_rows(results) | standing_cells(
        ((cell_results.cell.dataset, FOOTNOTE + row), cell_results)
        for cell_results in results.cells
        if (row := footnote_row(cell_results.cell))
    )
    return _decide_together(
        [
            claim
            for claim in CLAIMS
            if any(_network(claim, comparison, comparison.row) in cells for comparison in claim.comparisons)
        ],
        cells,
        results.sweep,
    )


def _network(claim: Claim, comparison: Comparison, row: str) -> Place:
    """Return the data set and row of the cell behind a row of a claim."""
    if claim.table in NETWORKS:
        return comparison.dataset, NETWORKS[claim.table][1]
    if claim.table.startswith(FOOTNOTE):
        return comparison.dataset, FOOTNOTE + row
    return comparison.dataset, comparison.row if row == RANDOM else row


def _metrics(claim: Claim, comparison: Comparison, rival: str) -> tuple[str, str]:
    """Return the names under which a comparison's two numbers lie on the runs."""
    if claim.table in NETWORKS:
        against = comparison.against_metric or comparison.metric
        return f"{comparison.metric}/{comparison.row}", f"{against}/{rival}"
    if rival == RANDOM:
        return comparison.metric, comparison.metric.replace("/mu/", "/mu_random/")
    return comparison.metric, comparison.against_metric or comparison.metric


def _decide_together(claims: Sequence[Claim], cells: Cells, sweep: Sweep) -> list[ClaimResult]:
    """Decide claims whose p values are adjusted as one family."""
    contrasts = [
        (claim, comparison, rival, _deciding(comparison, _contrast(claim, comparison, rival, cells)))
        for claim in claims
        for comparison in claim.comparisons
        for rival in paper.rivals(claim.table, comparison)
    ]
    raw = [test.p for _, _, _, test in contrasts]
    adjusted = holm(raw).tolist()
    family = sum(not math.isnan(p) for p in raw)
    compared: dict[str, list[Compared]] = {claim.id: [] for claim in claims}
    for (claim, comparison, rival, test), p in zip(contrasts, adjusted, strict=True):
        decision = decide(comparison.relation, test.difference, float(p), comparison.margin)
        if test.basis in UNTESTED:
            decision = "not tested"
        if test.basis == "exact":
            decision = "supported" if paper.holds(comparison, test.difference, 0.0) else "contradicted"
        more = more_trainings(test, family, comparison.margin) if decision == "inconclusive" else None
        compared[claim.id].append(Compared(comparison, rival, test, float(p), decision, more))
    return [_claim_result(claim, compared[claim.id], cells, sweep) for claim in claims]


def _contrast(claim: Claim, comparison: Comparison, rival: str, cells: Cells) -> Contrast:
    """Compare the networks of a row and its rival; the rival may be a number of the literature, or a bound."""
    ours = cells.get(_network(claim, comparison, comparison.row))
    metric, rival_metric = _metrics(claim, comparison, rival)
    value = comparison.bound if comparison.bound is not None else _of_literature(claim, comparison, rival)
    if value is not None:
        return contrast_with(ours, metric, value)
    theirs = cells.get(_network(claim, comparison, rival))
    return contrast(ours, theirs, metric, rival_metric, comparison.scale)


def _of_literature(claim: Claim, comparison: Comparison, rival: str) -> float | None:
    """Return the printed number of a rival that no cell stands for, None for other rivals."""
    if claim.table != "5" or ("4", rival) in CELLS:
        return None
    number = paper.printed(claim.table, comparison.dataset, rival, comparison.metric)
    return None if number is None else number.value


def _deciding(comparison: Comparison, test: Contrast) -> Contrast:
    """Return a test with the p that decides a comparison: of a difference from 0, for "within" from the margin."""
    if comparison.relation != "within":
        return test
    # Differences that are all equal, but for binary rounding, have no interval.
    known = math.isfinite(test.interval.low)
    se = error_of_mean(test.sd, test.n, 1 / test.folds if test.folds else None) if known else 0.0
    return test._replace(p=p_within(comparison.margin, test.difference, se, test.n - 1))


def _claim_result(claim: Claim, comparisons: Sequence[Compared], cells: Cells, sweep: Sweep) -> ClaimResult:
    networks = {
        _network(claim, compared.comparison, row): None
        for compared in comparisons
        for row in (compared.comparison.row, compared.rival)
    }
    behind = [(cells[network], network[0]) for network in networks if network in cells]
    other = _first(reduced(results, paper_set) for results, paper_set in behind)
    few = "" if other else _too_few(claim, comparisons, cells, sweep)
    shortage = "; ".join(filter(None, (few, _lost(claim, comparisons, cells), _stale(comparisons))))
    withheld = "; ".join(filter(None, (other, shortage)))
    lacks = Lacks(
        _first(other_training_of(results) for results, _ in behind),
        _first(other_data(results, paper_set) for results, paper_set in behind),
        shortage,
    )
    decision = "not run" if withheld else decide_all(compared.decision for compared in comparisons)
    return ClaimResult(claim, decision, tuple(comparisons), withheld, in_print(claim), lacks)


def _first(reasons: Iterable[str]) -> str:
    """Return the first reason that is one, empty for none."""
    return next(filter(None, reasons), "")


def _sides(claim: Claim, compared: Compared, cells: Cells) -> Iterator[tuple[CellResults, str]]:
    """Yield the cells of a comparison, the row's and the rival's, with the name of the number that each is in."""
    metrics = _metrics(claim, compared.comparison, compared.rival)
    for row, metric in zip((compared.comparison.row, compared.rival), metrics, strict=True):
        results = cells.get(_network(claim, compared.comparison, row))
        if results is not None:
            yield results, metric


def _too_few(claim: Claim, comparisons: Sequence[Compared], cells: Cells, sweep: Sweep) -> str:
    """Return why the trainings behind a claim are too few to decide it, or of another protocol; else nothing.

    One training a side leaves a claim open. Seeds that came until questions were decided would decide too often.
    """
    asked, design = asked_cells(sweep.questions), sweep.protocol.design
    for compared in comparisons:
        test = compared.contrast
        if test.basis not in ("folds", "seeds", "one training"):
            continue
        sides = list(_sides(claim, compared, cells))
        for results, metric in sides:
            why = other_protocol(metric, claim.table, number(results, metric))
            if why and not results.lost(metric):
                return why
        is_asked = test.unit == design.unit and all(results.cell.label in asked for results, _ in sides)
        if is_asked and test.n < design.most:
            return f"{count(test.n, test.unit)}, a number that the questions chose: see Questions"
    return ""


def _lost(claim: Claim, comparisons: Sequence[Compared], cells: Cells) -> str:
    """Return what of the trainings behind a claim diverged, failed or was skipped, by cell; empty for nothing."""
    sides = [side for compared in comparisons for side in _sides(claim, compared, cells)]
    reasons = {f"{lost} of {results.cell.label}": None for results, metric in sides if (lost := results.lost(metric))}
    return "; ".join(reasons)


def _stale(comparisons: Sequence[Compared]) -> str:
    """Return how many of the trainings behind a claim are stale, by cell; empty for none. Counts of a net never are."""
    tested = [compared.contrast for compared in comparisons if compared.contrast.basis != "exact"]
    stale = {run.key: run.trial.cell.label for test in tested for run in test.runs if run.state == "stale"}
    return "; ".join(f"{count(n, 'stale training')} of {label}" for label, n in Counter(stale.values()).items())


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
        """Return whether the printed numbers differ by more than chance."""
        return self.p < 0.05


def printed_tests(table: str) -> list[PrintedTest]:
    """Test every row's average of Table 1 or 2 against the first row's, and what its claims compare besides."""
    claimed = [pair for claim in CLAIMS if claim.table == table for pair in _averages_of(claim)]
    pairs: list[tuple[str, str, str]] = []
    for dataset in dict.fromkeys(row.dataset for row in paper.ROWS if row.table == table):
        first, *others = [row.label for row in paper.rows(table, dataset)]
        pairs += [(dataset, other, first) for other in others]
        pairs += [pair for pair in claimed if pair[0] == dataset]
        if table == "2":
            pairs += [(dataset, more, fewer) for fewer, more in itertools.combinations(others, 2)]
    tests = {pair: _welch(table, *pair) for pair in pairs}
    known = [(pair, test) for pair, test in tests.items() if test is not None]
    adjusted = holm([test.corrected.p for _, test in known])
    return [PrintedTest(table, *pair, test, float(p)) for (pair, test), p in zip(known, adjusted, strict=True)]


def _averages_of(claim: Claim) -> list[tuple[str, str, str]]:
    """Return data set, row and rival of the averages that a claim compares."""
    return [
        (comparison.dataset, comparison.row, rival)
        for comparison in claim.comparisons
        if comparison.metric == AVERAGE
        for rival in paper.rivals(claim.table, comparison)
    ]


def _welch(table: str, dataset: str, row: str, rival: str) -> Difference | None:
    """Test two printed averages, None where one is not printed or has no standard error."""
    sides = [paper.printed(table, dataset, label, AVERAGE) for label in (row, rival)]
    known = [Average(side.value, side.se, FOLDS) for side in sides if side is not None and side.se is not None]
    return welch(known[0], known[1], TEST_FRACTION) if len(known) == 2 else None


def in_print(claim: Claim) -> InPrint:
    """Return what the printed numbers say of a claim: at face value, and tested where they have a spread."""
    holds = paper.holds_in_print(claim)
    if holds is None:
        return "no numbers"
    if not holds:
        return "denied"
    pairs = _averages_of(claim)
    if not pairs:
        return "at face value"
    tests = {(test.dataset, test.row, test.rival): test for test in printed_tests(claim.table)}
    return "significant" if all(tests[pair].significant for pair in pairs) else "not significant"
