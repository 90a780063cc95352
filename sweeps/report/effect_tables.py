"""The tables of effects, ours and those that the paper's own numbers have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sweeps.experiment.metrics import TOP1
from sweeps.report.render.document import (
    NONE,
    Entry,
    Section,
    Table,
    Tone,
    bounds,
    chance,
    count,
    plain,
    signed,
)
from sweeps.results import paper
from sweeps.results.cell_numbers import (
    DERIVED,
    SETS,
    ResultTable,
    named,
)
from sweeps.results.claims import PrintedTest, printed_tests
from sweeps.results.contrasts import Effect, effects, over
from sweeps.results.evidence import SweepResults
from sweeps.results.statistics import wilson

PICTURES: Final = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 50_000}


def effect_table(group: ResultTable, found: Sequence[Effect]) -> Table:
    """Return the differences of a table's rows from its first row, with every test of them."""
    columns = ("", "", "difference", "95 % interval", "t", "p (Holm)", "Wilcoxon p", "McNemar p", "over")
    rows = []
    for one in found:
        c = one.contrast
        rows.append((
            Entry(one.row.label, cell=one.row.key),
            Entry(named(c.metric, group.table), tone="muted"),
            Entry(signed(c.difference), runs=c.runs, cell=one.row.key, metric=c.metric),
            Entry(bounds(c.interval)),
            Entry(signed(c.t, 1)),
            Entry(chance(one.p), tone="good" if one.p < 0.05 else ""),
            Entry(chance(c.rank_p)),
            Entry(chance(c.pictures.p) if c.pictures is not None else NONE),
            Entry(over(c.basis, c.n), tone="muted"),
        ))  # fmt: skip
    family = sum(math.isfinite(one.contrast.p) for one in found)
    holm = f"p adjusted after Holm over the {count(family, 'test')} of this table; Wilcoxon's and McNemar's are not."
    notes = (
        f"Each row less {found[0].reference.label}. Over folds: paired, corrected after Nadeau and Bengio; over seeds: "
        "paired; votes: McNemar on the test pictures.",
        *([holm] if family else []),
        "McNemar speaks of these networks on other pictures, not of other trainings.",
    )
    # A column in which no row has anything, t of votes say, is left out.
    kept = [i for i in range(len(columns)) if any(row[i].text != NONE for row in rows)]
    lines = tuple(tuple(row[i] for i in kept) for row in rows)
    align = "".join("llrrrrrrl"[i] for i in kept)
    return Table(f"{group.id}-effects", f"{group.title}: effects", tuple(columns[i] for i in kept), align, lines, notes)


def effects_of(groups: Sequence[ResultTable]) -> list[tuple[ResultTable, list[Effect]]]:
    """Return the effects of every table that has any, the derived ones left out."""
    found = [(group, effects(group)) for group in groups if group.table not in DERIVED.values()]
    return [(group, one) for group, one in found if one]


def printed_table(table: str) -> Table | None:
    """Return the tests of a table's printed averages, None where it prints none with a standard error."""
    tests = printed_tests(table)
    rows = tuple(_printed(one) for one in tests)
    columns = (
        "",
        "row",
        "against",
        "difference",
        "t",
        "p",
        "t corrected",
        "p corrected",
        "p (Holm)",
        "told apart",
    )
    notes = (
        "From printed mean ± se of ten folds: Welch's t; corrected after Nadeau and Bengio, as folds share training "
        "pictures. The folds themselves are not printed, so nothing is paired.",
        "Holm over this table's corrected tests; they tell two rows apart where that p is below .05.",
    )
    title = f"Table {table} as printed: averages"
    return Table(f"print-{table}", title, columns, "lllrrrrrrl", rows, notes) if rows else None


def _printed(one: PrintedTest) -> tuple[Entry, ...]:
    plainly, corrected = one.difference.plain, one.difference.corrected
    return (
        Entry(SETS[one.dataset], tone="muted"),
        Entry(one.row),
        Entry(one.rival),
        Entry(signed(one.difference.difference), tone="paper"),
        Entry(plain(abs(plainly.t), 1), tone="paper"),
        Entry(chance(plainly.p), tone="paper"),
        Entry(plain(abs(corrected.t), 1), tone="paper"),
        Entry(chance(corrected.p), tone="paper"),
        Entry(chance(one.p), tone="paper"),
        Entry("yes" if one.significant else "no", tone="good" if one.significant else "muted"),
    )


def interval_table(table: str) -> Table:
    """Return Wilson's intervals for the printed errors of single networks, over the pictures they were tested on."""
    rows = []
    for dataset in dict.fromkeys(row.dataset for row in paper.ROWS if row.table == table):
        pictures = PICTURES[dataset]
        printed = [(row.label, paper.printed(table, dataset, row.label, TOP1)) for row in paper.rows(table, dataset)]
        found = [(label, one, wilson(round(one.value / 100 * pictures), pictures)) for label, one in printed if one]
        first = found[0][2]
        for i, (label, one, interval) in enumerate(found):
            apart = interval.high < first.low or interval.low > first.high
            word = NONE if i == 0 else "apart" if apart else "overlap"
            tone: Tone = "good" if apart and i else "muted"
            rows.append((Entry(SETS[dataset], tone="muted"), Entry(label), Entry(str(one), tone="paper"),
                         Entry(bounds(interval), tone="paper"), Entry(word, tone=tone)))  # fmt: skip
    notes = (
        "One network each: the interval is over test pictures alone, not over trainings. Intervals of networks on the "
        "same pictures that overlap may still differ; that cannot be seen from print.",
    )
    columns = ("", "row", "top-1", "95 % interval", "from the first row's")
    title = f"Table {table} as printed: single networks, centre crop"
    return Table(f"print-{table}-single", title, columns, "llrrl", tuple(rows), notes)


def print_section(survey: SweepResults) -> Section | None:
    """Return what the paper's own numbers support, for the tables that this sweep has rows of."""
    used = [table for table in ("1", "2", "4") if any(evidence.cell.table == table for evidence in survey.cells)]
    averages = [found for found in map(printed_table, used) if found is not None]
    words = "What the numbers that the paper prints say by themselves, before any of our runs."
    parts = (*averages, *(interval_table(table) for table in used))
    return Section("print", "The paper's own numbers, tested", (words,), parts, short="In print") if parts else None
