"""The tables of claims: what the paper says, what its own numbers say of it, what ours do, what would settle it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sweeps.report.render.document import (
    NONE,
    TONES,
    Entry,
    Table,
    bounds,
    chance,
    count,
    duration,
    signed,
)
from sweeps.results.cell_numbers import (
    NAMES,
    SETS,
)
from sweeps.results.claims import ClaimResult, Compared, InPrint
from sweeps.results.contrasts import over

WORDS: Final = {
    "lower": "lower than", "lowest": "lower than", "higher": "higher than", "not lower": "not lower than",
}  # fmt: skip
IN_PRINT: Final[dict[InPrint, str]] = {
    "significant": "say so, and tell it from chance",
    "at face value": "say so; printed without a spread, they cannot be tested",
    "not significant": "say so, but not all of it beyond chance",
    "denied": "do not say so",
    "no numbers": "none printed",
}


def claim_table(found: Sequence[ClaimResult]) -> Table:
    """Return one row a claim: the sentence, what the paper's own numbers say, what ours do, what would settle it."""
    rows = tuple(
        (
            Entry(one.claim.sentence),
            Entry(source(one), tone="muted"),
            Entry(IN_PRINT[one.in_print], tone="paper"),
            Entry(decided(one), held(one), tone=TONES.get(one.decision, "muted"), runs=one.runs),
            Entry(needs(one), tone="muted"),
        )
        for one in found
    )
    columns = ("the paper says", "where", "its own numbers", "here", "what would settle it")
    note = "A comparison is decided where p < .05 after Holm over all comparisons that the claims of one table make."
    return Table("claims", "Claims", columns, "lllll", rows, (note,))


def source(ruling: ClaimResult) -> str:
    """Return where the paper makes a claim."""
    table = ruling.claim.table
    return table if table.startswith("Figure") else f"Table {table}"


def decided(ruling: ClaimResult) -> str:
    """Return the verdict on a claim."""
    return f"withheld: {ruling.withheld}" if ruling.withheld else ruling.decision


def held(ruling: ClaimResult) -> str:
    """Return how many of a claim's comparisons stand, of those that have runs."""
    there = [one.decision for one in ruling.compared if one.decision != "not run"]
    if ruling.withheld or not there:
        return ""
    return f"{there.count('supported')} of {count(len(there), 'comparison')}"


def needs(ruling: ClaimResult) -> str:
    """Return what would settle a claim that is open."""
    if ruling.withheld:
        return NONE
    missing = sum(one.decision == "not run" for one in ruling.compared)
    if ruling.decision == "not run":
        return f"runs for {count(missing, 'comparison')}"
    if ruling.decision != "inconclusive":
        return NONE
    if ruling.seeds is None:
        stuck = [one for one in ruling.open if one.seeds is None]
        return f"{count(len(stuck), 'comparison')} that further seeds would not settle"
    least = "at least " if any(one.contrast.basis == "one training" for one in ruling.open) else ""
    return f"{least}{count(ruling.seeds, 'further seed')} a row, {duration(ruling.hours)} of training"


def comparison_table(ruling: ClaimResult) -> Table:
    """Return the comparisons of one claim."""
    rows = tuple(_compared(one) for one in ruling.compared)
    columns = ("comparison", "difference", "95 % interval", "p (Holm)", "over", "", "more seeds")
    return Table(f"claim-{ruling.claim.id}", ruling.claim.sentence, columns, "lrrrllr", rows)


def _compared(one: Compared) -> tuple[Entry, ...]:
    comparison, found = one.comparison, one.contrast
    dataset = f"{SETS[comparison.dataset]}, " if comparison.dataset != "imagenet" else ""
    relation = WORDS.get(comparison.relation, f"within {comparison.margin:g} of")
    scale = f"{comparison.scale:g} x " if comparison.scale != 1 else ""
    rival = (
        one.rival if one.rival != comparison.row else NAMES.get(comparison.against_metric, comparison.against_metric)
    )
    words = f"{dataset}{NAMES.get(comparison.metric, comparison.metric)}: {comparison.row} {relation} {scale}{rival}"
    digits = 2 if comparison.metric.startswith(("final/", "agg/")) else 3
    seeds = NONE if one.seeds is None else str(one.seeds)
    return (
        Entry(words),
        Entry(signed(found.difference, digits), runs=found.runs, metric=found.metric),
        Entry(bounds(found.interval, digits)),
        Entry(chance(one.p)),
        Entry(over(found.basis, found.n), tone="muted"),
        Entry(one.decision, tone=TONES.get(one.decision, "muted")),
        Entry(seeds, tone="muted"),
    )
