"""The sections of a report, in the order in which a reader meets them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sweeps.experiment.cell_trials import seeds_text
from sweeps.experiment.wording import count, plural
from sweeps.report import charts, record_tables
from sweeps.report.claim_tables import claim_table, comparison_table
from sweeps.report.effect_tables import effect_table, effects_of, print_section
from sweeps.report.factor_tables import factor_parts
from sweeps.report.question_tables import question_section
from sweeps.report.render.document import Document, Gallery, Section, Table, Tile, duration
from sweeps.report.result_tables import result_tables
from sweeps.results.answers import answers
from sweeps.results.cell_numbers import ResultTable, groups, verdicts
from sweeps.results.claims import ClaimResult, judge_claims
from sweeps.results.evidence import POINT_STATES, SweepResults
from sweeps.store.ledger import Ledger

EMBEDDED = (
    "Embedded pictures, not the paper's data: this shows how things work and says nothing of what CReLU is worth. "
    "Verdicts are withheld, and the paper's numbers stand greyed beside ours."
)
RUNS = (
    "Every number above names the trials it is made of; here is each trial with its MLflow run. "
    "A test value is that of the trained net, a held-out one that of its best epoch."
)
ANALYSED = "Of one analysed run of each cell: the first that is not stale."
PICTURES = (
    "Where the page would be too large, pictures are smaller than they are: in full they lie in the output folder "
    "under ledger/trials, and on the MLflow run of the trial."
)
EMBEDDED_OWN = "Embedded pictures: this shows how things work, and says nothing of other pictures."
CHARTS = 60  # charts of responses on a page
REDUCED = "Profile {}: not the paper's scale. What is other stands below each table, under deviations."

REDUCED_OWN = "Profile {}: not the scale that the page declares."


def document(ledger: Ledger, results: SweepResults) -> Document:
    """Return the report of a sweep; `ledger` is read for the analyses' pictures alone."""
    # A sweep that only searches tests nothing, so it decides no claim.
    tables = groups(results)
    claims = judge_claims(results) if results.sweep.protocol.trains_cells else []
    search = results.sweep.protocol.search
    sections = [
        question_section(answers(results)),
        _claims(claims),
        *(
            Section(group.id, group.title, _seeds(results, group), tuple(result_tables(group, search)))
            for group in tables
        ),
        _effects(tables),
        _factors(tables),
        print_section(results),
        _galleries("curves", "Learning curves", [charts.curve_gallery(group) for group in tables]),
        _galleries("size", _size_heading(results), [charts.size_gallery(group) for group in tables]),
        _rates(results),
        _search(results),
        _analyses(ledger, results),
        _failures(results),
        Section("cost", "Cost", (), (record_tables.cost_table(results),)),
        Section("record", "Reproducibility record", (), (record_tables.record_table(results),), short="Record"),
        Section("runs", "Runs", (RUNS,), tuple(record_tables.run_tables(results)), folded=True),
    ]  # fmt: skip
    shown = tuple(section for section in sections if section is not None)
    return Document(results.title, results.question, _banner(results), tiles(results, tables, claims), shown)


def _banner(results: SweepResults) -> str:
    """Return the warning before all numbers, empty for a sweep at the paper's scale on real pictures."""
    has_own_metric = results.sweep.metric.is_own
    if all(cell_results.synthetic for cell_results in results.cells):
        return EMBEDDED_OWN if has_own_metric else EMBEDDED
    if has_own_metric:
        return "" if results.sweep.profile == "paper" else REDUCED_OWN.format(results.sweep.profile)
    return REDUCED.format(results.sweep.profile) if results.sweep.profile != "paper" else ""


def tiles(results: SweepResults, tables: Sequence[ResultTable], claims: Sequence[ClaimResult]) -> tuple[Tile, ...]:
    """Return the numbers at the head: verdicts, claims, trainings, hours."""
    words = verdicts(tables)
    decisions = [claim.decision for claim in claims if not claim.withheld]
    judged = words["reproduced"] + words["differs"] + words["inconclusive"]
    unjudged = ", ".join(f"{words[word]} {word}" for word in ("withheld", "not run") if words[word])
    others = [word for word in ("contradicted", "inconclusive", "not run") if word in decisions]
    counts = ", ".join(f"{decisions.count(word)} {word}" for word in others)
    finished = [run.result for run in results.runs if run.result]
    failed = sum(run.state == "failed" for run in results.runs)
    judging = [
        Tile(f"{words['reproduced']} of {judged}", "errors reproduced", unjudged),
        Tile(f"{decisions.count('supported')} of {len(decisions)}", "claims supported", counts),
    ]
    tested = [group for group in tables if group.table and results.sweep.protocol.trains_cells]
    if not any(group.comparable for group in tested):
        judging = [Tile("withheld", "verdicts", "embedded or other data")] if tested else []
    paused = sum(run.state == "paused" for run in results.runs)
    rest = f"{f'{paused:,} paused, ' if paused else ''}{failed} failed, {results.to_do:,} to do"
    trained = Tile(f"{len(finished):,}", plural(len(finished), "training") + " done", rest)
    return (*judging, trained, Tile(duration(results.hours), "of training", f"in {count(len(results.cells), 'cell')}"))


def _claims(claims: Sequence[ClaimResult]) -> Section | None:
    if not claims:
        return None
    details = [comparison_table(claim) for claim in claims if claim.runs and not claim.withheld]
    return Section("claims", "What the paper says, and what holds", (), (claim_table(claims), *details), short="Claims")


def _seeds(results: SweepResults, group: ResultTable) -> tuple[str, ...]:
    """Return the sentence that says where the ledger has more seeds than are declared, none where it has not."""
    runs = [run for row in group.rows if row.results is not None for run in row.results.runs if run.result]
    further = seeds_text(results.sweep.protocol, (run.trial for run in runs))
    return (f"{further}: all of them count.",) if further else ()


def _effects(tables: Sequence[ResultTable]) -> Section | None:
    parts = [
        part
        for group, effects in effects_of(tables)
        for part in (charts.effect_gallery(group, effects), effect_table(group, effects))
    ]
    return Section("effects", "Effects", (), tuple(parts)) if parts else None


def _factors(tables: Sequence[ResultTable]) -> Section | None:
    parts = tuple(factor_parts(tables))
    return Section("factors", "Factors", (), parts) if parts else None


def _galleries(name: str, heading: str, galleries: Sequence[Gallery | None]) -> Section | None:
    parts = tuple(gallery for gallery in galleries if gallery is not None)
    return Section(name, heading, (), parts) if parts else None


def _size_heading(results: SweepResults) -> str:
    metric = results.sweep.metric
    name = f"{metric.words[:1].upper()}{metric.words[1:]}" if metric.is_own else "Error"
    return f"{name} against parameters"


def _rates(results: SweepResults) -> Section | None:
    table = record_tables.rate_table(results)
    return Section("rates", "Learning rate", (), (table,)) if table is not None else None


def _search(results: SweepResults) -> Section | None:
    search = results.sweep.protocol.search
    table = record_tables.chosen_table(results)
    if search is None or table is None:
        return None
    words = [_legend(results), *([record_tables.EARLY] if record_tables.some_ended_early(results) else [])]
    galleries = charts.response_galleries(results)
    drawn = list(itertools.accumulate(len(gallery.figures) for gallery in galleries))
    shown = sum(number <= CHARTS for number in drawn)
    if shown < len(galleries):
        words.append(f"Charts of the first {count(shown, 'cell')}; dropout.csv has the numbers of all.")
    importance = record_tables.importance_table(results)
    tables = [table] if importance is None else [table, importance]
    parts: tuple[Table | Gallery, ...] = (*tables, *galleries[:shown])
    heading = "Search" if search.axes else "Dropout response"
    why = record_tables.why_no_importance(results) if importance is None else ""
    return Section("dropout", heading, (why,) if why else (), parts, chart_words=tuple(words))


def _legend(results: SweepResults) -> str:
    """Return what the points of a search's charts are, in a sentence."""
    drawn = {point.state for cell_results in results.cells for point in cell_results.tried if point.scored}
    hollow = " or ".join(state for state in POINT_STATES[1:] if state in drawn)
    is_chosen = any(cell_results.winner is not None for cell_results in results.cells)
    parts = ("filled: trained to the end", f"hollow: {hollow}" if hollow else "", "ringed: chosen" if is_chosen else "")
    return "; ".join(filter(None, parts)).capitalize() + "."


def _analyses(ledger: Ledger, results: SweepResults) -> Section | None:
    parts = charts.analysis_parts(ledger, results)
    return Section("analyses", "Analyses", (ANALYSED,), tuple(parts), chart_words=(PICTURES,)) if parts else None


def _failures(results: SweepResults) -> Section:
    table = record_tables.failure_table(results)
    words = () if table else ("No training failed, diverged, died or was begun anew.",)
    return Section("failures", "Failures", words, (table,) if table else ())
