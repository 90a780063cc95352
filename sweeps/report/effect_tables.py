"""The tables of effects: ours, and those that the paper's own numbers have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sweeps.experiment.metrics import TOP1
from sweeps.experiment.wording import count
from sweeps.report.render.document import NONE, Entry, Section, Table, Tone, bounds, chance, plain, signed
from sweeps.report.result_tables import legend
from sweeps.results import paper
from sweeps.results.cell_numbers import DERIVED, SETS, ResultTable, digits, named, number
from sweeps.results.chosen_numbers import shown_effect, sides, untested_notes, why_untested
from sweeps.results.claims import PrintedTest, printed_tests
from sweeps.results.contrasts import Contrast, Effect, effects, votes_apart, without_runs
from sweeps.results.evidence import SweepResults
from sweeps.results.marks import MARKS, lost_marks, stale_marks
from sweeps.results.statistics import wilson

BESIDE: Final = "the one beside it: the first of the table that has run, or the one that its cell names"
NAMED: Final = 6  # cells without a result at most that are named
RANKED: Final = 6  # pairs from which Wilcoxon's p can be below .05: the least is 2 / 2**n
WORD_TONES: Final[dict[str, Tone]] = {"better": "good", "worse": "bad"}
PICTURES: Final = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 50_000}


def effect_table(group: ResultTable, group_effects: Sequence[Effect]) -> Table:
    """Return the differences of a table's rows from their references, with every test of them."""
    columns = (
        "", "less", "", "difference", "95 % interval", "t", "p (Holm)", "Wilcoxon p", "McNemar p", "over",
        "so the row is",
    )  # fmt: skip
    references = {effect.reference.label for effect in group_effects}
    only = references.pop() if len(references) == 1 else ""
    rows = []
    for effect in map(shown_effect, group_effects):
        contrast = effect.contrast
        cell = effect.row.key
        places = difference_digits(effect)
        word = effect_word(group, effect)
        rows.append((
            Entry(effect.row.label, cell=cell),
            Entry(NONE if only else effect.reference.label, cell=effect.reference.key),
            Entry(named(contrast.metric, group.table), tone="muted"),
            Entry(signed(contrast.difference, places), "", "", _marks(effect), contrast.runs, cell, contrast.metric),
            Entry(bounds(contrast.interval, places)),
            Entry(signed(contrast.t, 1)),
            Entry(chance(effect.p), tone="good" if effect.p < 0.05 else ""),
            Entry(rank_chance(contrast)),
            Entry(chance(contrast.pictures.p) if contrast.pictures is not None else NONE),
            Entry(contrast.over, tone="muted"),
            Entry(word, tone=WORD_TONES.get(word, "muted")),
        ))  # fmt: skip
    notes = _notes(group, group_effects, only or BESIDE)
    notes += tuple(legend((mark for effect in group_effects for mark in _marks(effect)), group.metric))
    table = Table(f"{group.id}-effects", f"{group.title}: effects", columns, "lllrrrrrrll", tuple(rows), notes)
    return table.without_empty_columns()  # nor with the reference where all have the same


def _notes(group: ResultTable, group_effects: Sequence[Effect], reference: str) -> tuple[str, ...]:
    """Return what a reader has to know of the tests that a table has, and of no others."""
    contrasts = [shown_effect(effect).contrast for effect in group_effects]
    untested = [why_untested(effect.contrast, sides(effect)) for effect in group_effects]
    bases = {contrast.basis for contrast in contrasts}
    pairing = {
        "folds": "over folds: paired, corrected after Nadeau and Bengio",
        "seeds": "over seeds: paired",
        "pictures": "votes: not tested, their interval is over the test pictures",
    }
    tests = "; ".join(words for basis, words in pairing.items() if basis in bases)
    notes = [f"Each row less {reference}." + (f" {tests[0].upper()}{tests[1:]}." if tests else "")]
    tested = sum(math.isfinite(contrast.p) for contrast in contrasts)
    if absent := without_runs(group):
        names = ", ".join(absent) if len(absent) <= NAMED else count(len(absent), "cell")
        notes.append(f"Cells without a result have no row: {names}.")
    if group.metric.is_own:
        words = " Better or worse where p (Holm) is below .05, else open." if tested or not any(untested) else ""
        notes.append(f"{group.metric.note}.{words}")
    without_p = {"pictures": "votes", "one training": "single trainings"}
    left_out = " and ".join(words for basis, words in without_p.items() if basis in bases)
    plain_p = [name for name, values in (
        ("Wilcoxon's", [contrast.rank_p for contrast in contrasts if rank_chance(contrast) != NONE]),
        ("McNemar's", [contrast.pictures.p for contrast in contrasts if contrast.pictures is not None]),
    ) if any(map(math.isfinite, values))]  # fmt: skip
    if tested:
        holm = family_words(tested, untested)
        holm += f"; {left_out} are no part of them" if left_out else ""
        holm += f". {' and '.join(plain_p)} p {'is' if len(plain_p) == 1 else 'are'} not adjusted" if plain_p else ""
        notes.append(f"{holm}.")
    if apart := votes_apart(group):
        rows = ", ".join(f"{row.label} and {other.label}" for row, other in apart)
        notes.append(f"Votes of different folds are not compared: {rows}.")
    if "McNemar's" in plain_p:
        notes.append("McNemar speaks of these networks on other pictures, not of other trainings.")
    return (*notes, *spread_notes(contrasts), *untested_notes(untested))


def rank_chance(contrast: Contrast) -> str:
    """Return Wilcoxon's p as it is printed, a dash where so few pairs can never have one below .05."""
    return chance(contrast.rank_p) if contrast.n >= RANKED else NONE


def spread_notes(contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    """Return what a reader has to know of differences without an interval, and of those without Wilcoxon's p."""
    paired = [contrast for contrast in contrasts if contrast.basis in ("seeds", "folds")]
    notes = ("No interval where all differences are equal: their spread is not known, and their p is Wilcoxon's.",)
    ranked = (f"No Wilcoxon p of fewer than {RANKED} pairs: it cannot be below .05.",)
    has_few = any(math.isfinite(contrast.rank_p) and contrast.n < RANKED for contrast in paired)
    return notes * any(contrast.lacks_spread for contrast in paired) + ranked * has_few


def family_words(tested: int, untested: Sequence[str]) -> str:
    """Return over how many tests of a table p is adjusted; a difference that is `untested` has part in it too."""
    withheld = sum(map(bool, untested))
    family = f"p adjusted after Holm over the {count(tested + withheld, 'test')} of this table"
    return f"{family}, those without p among them" if withheld else family


def effect_word(group: ResultTable, effect: Effect) -> str:
    """Return whether a row is better or worse than its reference by the page's own metric, or that this is open.

    A dash for errors in percent, whose tables say it by sign and p alone.
    """
    if not group.metric.is_own:
        return NONE
    if why_untested(effect.contrast, sides(effect)):
        return "see Questions"
    if not effect.p < 0.05:
        return "open"
    return "better" if group.metric.cost(effect.contrast.difference) < 0 else "worse"


def difference_digits(effect: Effect) -> int:
    """Return with how many decimals a difference is written: as many as the numbers that it is of."""
    metric = effect.contrast.metric
    return digits(metric, number(effect.reference.results, metric).average.mean)


def _marks(effect: Effect) -> tuple[str, ...]:
    """Return the marks of an effect: of either side that lost trainings, of its own trainings that are stale."""
    used = {mark for side in sides(effect) for mark in lost_marks(side, effect.contrast.metric)}
    used |= set(stale_marks(effect.contrast.runs))
    return tuple(mark for mark in MARKS if mark in used)


def effects_of(groups: Sequence[ResultTable]) -> list[tuple[ResultTable, list[Effect]]]:
    """Return the effects of every table that has any, the derived tables left out."""
    by_group = [(group, effects(group)) for group in groups if group.table not in DERIVED.values()]
    return [(group, group_effects) for group, group_effects in by_group if group_effects]


def printed_table(table: str) -> Table | None:
    """Return the tests of a table's printed averages, None where it prints none with a standard error."""
    rows = tuple(_printed(test) for test in printed_tests(table))
    columns = ("", "row", "against", "difference", "t", "p", "t corrected", "p corrected", "p (Holm)", "told apart")
    notes = (
        "From printed mean ± se of ten folds: Welch's t; corrected after Nadeau and Bengio, as folds share training "
        "pictures. The folds themselves are not printed, so nothing is paired.",
        "Holm over this table's corrected tests; they tell two rows apart where that p is below .05.",
    )
    title = f"Table {table} as printed: averages"
    return Table(f"print-{table}", title, columns, "lllrrrrrrl", rows, notes) if rows else None


def _printed(test: PrintedTest) -> tuple[Entry, ...]:
    welch, corrected = test.difference.plain, test.difference.corrected
    numbers = (
        signed(test.difference.difference),
        plain(abs(welch.t), 1),
        chance(welch.p),
        plain(abs(corrected.t), 1),
        chance(corrected.p),
        chance(test.p),
    )
    return (
        Entry(SETS[test.dataset], tone="muted"),
        Entry(test.row),
        Entry(test.rival),
        *(Entry(number, tone="paper") for number in numbers),
        Entry("yes" if test.significant else "no", tone="good" if test.significant else "muted"),
    )


def interval_table(table: str) -> Table:
    """Return Wilson's intervals for the printed errors of single networks, over the pictures they were tested on."""
    rows = []
    for dataset in dict.fromkeys(row.dataset for row in paper.ROWS if row.table == table):
        pictures = PICTURES[dataset]
        first = None
        for label in (row.label for row in paper.rows(table, dataset)):
            printed = paper.printed(table, dataset, label, TOP1)
            if printed is None:
                continue
            interval = wilson(round(printed.value / 100 * pictures), pictures)
            apart = first is not None and (interval.high < first.low or interval.low > first.high)
            word = NONE if first is None else "apart" if apart else "overlap"
            first = first or interval
            rows.append((
                Entry(SETS[dataset], tone="muted"),
                Entry(label),
                Entry(str(printed), tone="paper"),
                Entry(bounds(interval), tone="paper"),
                Entry(word, tone="good" if apart else "muted"),
            ))  # fmt: skip
    notes = (
        "One network each: the interval is over test pictures alone, not over trainings. Intervals of networks on the "
        "same pictures that overlap may still differ; that cannot be seen from print.",
    )
    columns = ("", "row", "top-1", "95 % interval", "from the first row's")
    title = f"Table {table} as printed: single networks, centre crop"
    return Table(f"print-{table}-single", title, columns, "llrrl", tuple(rows), notes)


def print_section(results: SweepResults) -> Section | None:
    """Return what the paper's own numbers support, for the tables that this sweep has rows of."""
    used = [
        table for table in ("1", "2", "4") if any(cell_results.cell.table == table for cell_results in results.cells)
    ]
    averages = [table for table in map(printed_table, used) if table is not None]
    words = "What the numbers that the paper prints say by themselves, before any of our runs."
    parts = (*averages, *(interval_table(table) for table in used))
    return Section("print", "The paper's own numbers, tested", (words,), parts, short="In print") if parts else None
