"""The tables of results: ours beside the paper's, differences and verdicts, deviations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from sweeps.experiment.metrics import PARAMETERS, PERCENT, VOTE, Metric
from sweeps.experiment.search import Search
from sweeps.experiment.wording import count
from sweeps.report.render.document import NONE, TONES, Entry, Table, bounds, plain, signed
from sweeps.results.cell_numbers import (
    DERIVED,
    CellNumber,
    ResultTable,
    Row,
    digits,
    named,
    number,
    order_kept,
    slug,
    tolerance_sentence,
    verdict_for,
)
from sweeps.results.deviations import deviations
from sweeps.results.marks import MARKS, explanation, marks
from sweeps.results.paper import Printed
from sweeps.results.paper_cells import reduced
from sweeps.results.statistics import METHODS, Verdict

ERRORS: Final = "Errors in percent, lower is better; ± is the standard error, (n) the trainings behind a number."
BRACKETS: Final = "In brackets: 95 % interval over the test pictures (Wilson), where there is one network or one vote."


def result_tables(group: ResultTable, search: Search | None) -> list[Table]:
    """Return a table in the paper's own shape, then one a metric with differences and verdicts, then deviations.

    Where ours is trained on other data than the paper's, nothing is subtracted and nothing judged.
    """
    details: list[Table | None] = []
    if group.table:
        details += [_detail(group, metric, search) for metric in group.metrics if group.comparable]
        details += [_votes(group), _deviations(group)]
    return [_overview(group, search), *(table for table in details if table is not None)]


def _overview(group: ResultTable, search: Search | None) -> Table:
    rows = []
    used = set()
    for row in group.rows:
        entries = [Entry(row.label, cell=row.key)]
        for metric in group.metrics:
            ours = ours_entry(group, row, metric, search)
            used |= set(ours.marks)
            if group.table:
                entries.append(_paper(group.paper(row, metric)))
            entries.append(ours)
        rows.append(tuple(entries))
    names = [named(metric, group.table) for metric in group.metrics]
    both = bool(group.table)
    columns = ["", *(column for name in names for column in (("paper", "ours") if both else (name,)))]
    heads = (("", 1), *((name, 2) for name in names)) if both else ()
    bracketed = any(entry.sub for line in rows for entry in line)
    judging = [tolerance_sentence(group.dataset)] if group.comparable else []
    spread = ERRORS
    if group.metric.is_own:
        spread = f"{group.metric.note}; ± is the standard error, (n) the trainings behind a number."
    notes = (spread, *([BRACKETS] if bracketed else []), *judging, *_derivation(group), *legend(used, group.metric))
    return Table(group.id, group.title, tuple(columns), "l" + "r" * (len(columns) - 1), tuple(rows), notes, heads)


def _derivation(group: ResultTable) -> Iterable[str]:
    if group.table == "3":
        yield "The paper's table sets votes of ten networks beside single networks of the literature."
        yield "VGG + CReLU is the row of Table 2 that the paper took, whatever our test errors say."
    if group.table in ("4", "5"):
        yield "The paper's rows differ in more than placement: Adam for 100 epochs at half width, SGD for 45 elsewhere."
    if group.table == "1":
        yield "The paper's parameter counts are those of a net with one more layer than its Table S2 prints."


def _detail(group: ResultTable, metric: str, search: Search | None) -> Table:
    rows = []
    used = set()
    for row in group.rows:
        if row.results is None and group.paper(row, metric) is None:
            continue
        ours = ours_entry(group, row, metric, search)
        used |= set(ours.marks)
        difference, word = _verdict(group, row, metric)
        rows.append((Entry(row.label, cell=row.key), _paper(group.paper(row, metric)), ours, difference, word))
    notes = [tolerance_sentence(group.dataset)]
    order = order_kept(group, metric) if metric != PARAMETERS else None
    if order is not None and (pairs := order.same + order.opposite + order.tied):
        tied = f", {order.tied} equal" if order.tied else ""
        notes.append(f"Order: {order.same} of {count(pairs, 'pair')} of rows as in the paper{tied}.")
    return Table(
        f"{group.id}-{slug(metric)}",
        f"{group.title}: {named(metric, group.table)}",
        ("", "paper", "ours ± se (n)" if metric != PARAMETERS else "ours", "difference", "verdict"),
        "lrrrl",
        tuple(rows),
        (*notes, *legend(used)),
    )


def _paper(printed: Printed | None) -> Entry:
    return Entry(str(printed).replace("±", " ± ") if printed is not None else NONE, tone="paper")


def ours_entry(group: ResultTable, row: Row, metric: str, search: Search | None) -> Entry:
    """Return the place of a number of ours, with its marks."""
    ours = number(row.results, metric)
    if not ours.known:
        return Entry(NONE, tone="muted", marks=marks(group, row.results, ours, search))
    text, interval = ours_text(ours), ours_interval(ours)
    return Entry(text, interval, "", marks(group, row.results, ours, search), ours.runs, row.key, metric)


def ours_text(ours: CellNumber) -> str:
    """Return a number of ours: mean ± standard error (n), as far as known."""
    mean, se, n = ours.average
    places = digits(ours.metric, mean)
    if ours.metric == PARAMETERS:
        return plain(mean, places)
    spread = f" ± {plain(se, places)}" if math.isfinite(se) else ""
    return f"{plain(mean, places)}{spread} ({n})"


def ours_interval(ours: CellNumber) -> str:
    """Return the interval over test pictures of a single network, or of one vote."""
    single = ours.metric == VOTE or ours.average.n == 1
    return bounds(ours.interval) if single and math.isfinite(ours.interval.low) else ""


def _verdict(group: ResultTable, row: Row, metric: str) -> tuple[Entry, Entry]:
    ours = number(row.results, metric)
    verdict = verdict_for(group, row, metric, ours)
    if verdict is None:
        return Entry(NONE, tone="muted"), Entry(NONE, tone="muted")
    digits = 3 if metric == PARAMETERS else 2
    runs = ours.runs
    cell = row.key
    interval = bounds(verdict.interval) if metric != PARAMETERS and math.isfinite(verdict.interval.low) else ""
    difference = Entry(
        signed(verdict.difference, digits), interval, runs=runs if ours.known else (), cell=cell, metric=metric
    )
    return difference, Entry(verdict_text(verdict), tone=TONES.get(verdict.word, "muted"))


def verdict_text(verdict: Verdict) -> str:
    """Return the word of a verdict, with the reason where it is withheld."""
    return f"withheld: {verdict.why}" if verdict.why else verdict.word


def why_withheld(group: ResultTable, row: Row, metric: str) -> str:
    """Return why a number of ours is not judged by the printed one; empty where it is, or where none is printed."""
    if row.results is None or group.paper(row, metric) is None:
        return ""
    judged = verdict_for(group, row, metric, number(row.results, metric))
    return judged.why if judged is not None else reduced(row.results, group.dataset)


def legend(used: Iterable[str], metric: Metric = PERCENT) -> list[str]:
    """Return the explanations of the marks that a table of this metric has, in the marks' order."""
    marks_used = set(used)
    return [f"{mark}  {name}: {explanation(mark, metric)}." for mark, (name, _) in MARKS.items() if mark in marks_used]


def _votes(group: ResultTable) -> Table | None:
    """Return the votes of each row's networks by method, None where there are none or the table is a derived one."""
    rows = []
    for row in group.rows if group.table not in DERIVED.values() else ():
        ours = number(row.results, VOTE)
        if row.results is not None and row.results.vote is not None:
            errors = zip(METHODS, (VOTE, "", ""), strict=True)
            entries = [Entry(plain(row.results.vote.error(method)), runs=ours.runs, cell=row.key, metric=metric)
                       for method, metric in errors]  # fmt: skip
            rows.append((Entry(row.label, cell=row.key), *entries))
    columns = ("", "mean softmax", "mean score", "majority")
    title = f"{group.title}: ways to vote"
    note = "The paper's vote is taken to be the mean softmax; error in percent of the folds' networks together."
    return Table(f"{group.id}-votes", title, columns, "lrrr", tuple(rows), (note,)) if rows else None


def _deviations(group: ResultTable) -> Table | None:
    """Return how the trials differ from the paper, None where they do not or the table is a derived one."""
    rows = tuple(
        (
            Entry(change.what),
            Entry(change.paper, tone="paper"),
            Entry(change.here),
            Entry(", ".join(change.rows) or "all"),
        )
        for change in (deviations(group) if group.table not in DERIVED.values() else ())
    )
    if not rows:
        return None
    title = f"{group.title}: deviations from the paper, as the trials have them"
    return Table(f"{group.id}-deviations", title, ("what", "paper", "here", "rows"), "llll", rows)
