"""The tables of claims: the paper's sentence, its own numbers, the decision of our runs, and what would settle it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sweeps.experiment.wording import count
from sweeps.report.render.document import NONE, TONES, Entry, Table, bounds, chance, duration, signed
from sweeps.results.cell_numbers import NAMES, SETS
from sweeps.results.claims import ClaimResult, Compared, InPrint

WORDS: Final = {
    "lower": "lower than", "lowest": "lower than", "higher": "higher than", "not lower": "not lower than",
}  # fmt: skip
IN_PRINT: Final[dict[InPrint, str]] = {
    "significant": "say so, and tell it from chance",
    "at face value": "say so; printed without a spread, they cannot be tested",
    "not significant": "say so, but not all of it beyond chance",
    "denied": "do not say so",
    "no numbers": "none to compare",
}


WITHIN: Final = (
    "Within: p is the larger one of two one-sided tests, that the difference lies inside the margin; it is below .05 "
    "where the 90 % interval lies inside. Where the difference itself lies outside, p is that of lying outside."
)
MCNEMAR: Final = "McNemar's p speaks of these networks on other pictures, not of other trainings: it decides nothing."


def claim_table(results: Sequence[ClaimResult]) -> Table:
    """Return one row a claim: its sentence, the paper's own numbers, our decision, and what would settle it."""
    rows = []
    for result in results:
        table = result.claim.table
        decision = f"withheld: {result.withheld}" if result.withheld else result.decision
        rows.append((
            Entry(result.claim.sentence),
            Entry(table if table.startswith(("Figure", "Footnote")) else f"Table {table}", tone="muted"),
            Entry(IN_PRINT[result.in_print], tone="paper"),
            Entry(decision, _share(result), tone=TONES.get(result.decision, "muted"), runs=result.runs),
            Entry(_needs(result), tone="muted"),
        ))  # fmt: skip
    columns = ("the paper says", "where", "its own numbers", "here", "what would settle it")
    notes = (
        "A comparison is decided where p < .05 after Holm over all comparisons of these claims together. Not tested: "
        "votes, and top-5 errors of five classes or fewer. They are shown and decide nothing.",
        "Withheld: the trainings behind the claim are not the paper's or too few, or one was lost or is stale.",
    )
    return Table("claims", "Claims", columns, "lllll", tuple(rows), notes)


def _share(result: ClaimResult) -> str:
    """Return how many of a claim's comparisons that have runs support it."""
    decisions = [compared.decision for compared in result.compared]
    decisions = [decision for decision in decisions if decision not in ("not run", "not tested")]
    if result.withheld or not decisions:
        return ""
    return f"{decisions.count('supported')} of {count(len(decisions), 'comparison')}"


def _needs(result: ClaimResult) -> str:
    """Return what would settle a claim that is open."""
    if result.withheld or result.decision not in ("not run", "inconclusive"):
        return NONE
    if result.decision == "not run":
        return f"runs for {count(sum(c.decision == 'not run' for c in result.compared), 'comparison')}"
    if not result.open:
        return "cannot be decided so: votes are not tested"
    if not result.more:
        stuck = [compared for compared in result.open if compared.more is None]
        units = " or ".join(f"{unit}s" for unit in sorted({compared.contrast.unit for compared in stuck}, reverse=True))
        return f"cannot be decided so: {count(len(stuck), 'comparison')} that further {units} would not settle"
    least = "at least " if any(compared.contrast.lacks_spread for compared in result.open) else ""
    needed = " and ".join(count(more, f"further {unit}") for unit, more in result.more.items())
    return f"{least}{needed} a row, {duration(result.hours)} of training"


def comparison_table(result: ClaimResult) -> Table:
    """Return the comparisons of one claim."""
    rows = tuple(_comparison(compared) for compared in result.compared)
    columns = ("comparison", "difference", "95 % interval", "p (Holm)", "over", "", "more trainings")
    votes = any(compared.contrast.pictures is not None for compared in result.compared)
    within = any(compared.comparison.relation == "within" and math.isfinite(compared.p) for compared in result.compared)
    notes = (*([WITHIN] if within else []), *([MCNEMAR] if votes else []))
    return Table(f"claim-{result.claim.id}", result.claim.sentence, columns, "lrrrllr", rows, notes)


def _comparison(compared: Compared) -> tuple[Entry, ...]:
    comparison, contrast = compared.comparison, compared.contrast
    dataset = f"{SETS[comparison.dataset]}, " if comparison.dataset != "imagenet" else ""
    relation = WORDS.get(comparison.relation, f"within {comparison.margin:g} of")
    scale = f"{comparison.scale:g} x " if comparison.scale != 1 else ""
    other_metric = NAMES.get(comparison.against_metric, comparison.against_metric)
    rival = compared.rival if compared.rival != comparison.row else other_metric
    metric = NAMES.get(comparison.metric, comparison.metric)
    digits = 2 if comparison.metric.startswith(("final/", "agg/", "single/")) else 3
    pictures = f"McNemar {chance(contrast.pictures.p)}" if contrast.pictures is not None else ""
    return (
        Entry(f"{dataset}{metric}: {comparison.row} {relation} {scale}{rival}"),
        Entry(signed(contrast.difference, digits), runs=contrast.runs, metric=contrast.metric),
        Entry(bounds(contrast.interval, digits)),
        Entry(chance(compared.p), pictures),
        Entry(contrast.over, tone="muted"),
        Entry(compared.decision, tone=TONES.get(compared.decision, "muted")),
        Entry(_more(compared), tone="muted"),
    )


def _more(compared: Compared) -> str:
    """Return the further trainings a row that would decide a comparison."""
    if compared.more is not None:
        return count(compared.more, compared.contrast.unit)
    return "cannot be decided so" if compared.decision == "inconclusive" else NONE
