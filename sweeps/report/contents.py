"""From a survey to the document: which sections there are, and in which order a reader meets them."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.report import charts, record_tables
from sweeps.report.claim_tables import claim_table, comparison_table
from sweeps.report.effect_tables import effect_table, effects_of, print_section
from sweeps.report.render.document import Document, Gallery, Section, Tile, count, duration
from sweeps.report.result_tables import result_tables
from sweeps.results.cell_numbers import ResultTable, groups, verdicts
from sweeps.results.claims import ClaimResult, judge_claims
from sweeps.results.evidence import SweepResults
from sweeps.store.ledger import Ledger

EMBEDDED = (
    "Embedded pictures, not the paper's data: this shows how things work and says nothing of what CReLU is worth. "
    "Verdicts are withheld, and the paper's numbers stand greyed beside ours."
)
REDUCED = "Profile {}: not the paper's scale. What is other stands below each table, under deviations."


def document(ledger: Ledger, survey: SweepResults) -> Document:
    """Return the report of a sweep; `ledger` is asked for the analyses' pictures alone."""
    # A sweep that only searches tests nothing, and so says nothing of what the paper says.
    tables, claims = groups(survey), judge_claims(survey) if survey.sweep.protocol.trainings() else []
    found = [
        _claims(claims),
        *(_results(group, survey) for group in tables),
        _effects(tables),
        print_section(survey),
        _galleries("curves", "Learning curves", [charts.curve_gallery(group) for group in tables]),
        _galleries("size", "Error against parameters", [charts.size_gallery(group) for group in tables]),
        _dropout(survey),
        _analyses(ledger, survey),
        _failures(survey),
        Section("cost", "Cost", (), (record_tables.cost_table(survey),)),
        Section("record", "Reproducibility record", (), (record_tables.record_table(survey),), short="Record"),
        Section("runs", "Runs", (RUNS,), tuple(record_tables.run_tables(survey)), folded=True),
    ]
    sections = tuple(section for section in found if section is not None)
    return Document(survey.title, survey.question, _banner(survey), tiles(survey, tables, claims), sections)


def _banner(survey: SweepResults) -> str:
    """Return what has to be said before any number, empty for a sweep at the paper's scale on real pictures."""
    if all(evidence.synthetic for evidence in survey.cells):
        return EMBEDDED
    return REDUCED.format(survey.sweep.profile) if survey.sweep.profile != "paper" else ""


RUNS = "Every number above names the trials it is made of; here is each trial with its MLflow run."


def tiles(survey: SweepResults, tables: Sequence[ResultTable], claims: Sequence[ClaimResult]) -> tuple[Tile, ...]:
    """Return the numbers at the head: verdicts, claims, trainings, hours."""
    found, words = verdicts(tables), [one.decision for one in claims if not one.withheld]
    judged = found["reproduced"] + found["differs"]
    numbers = Tile(f"{found['reproduced']} of {judged}", "errors reproduced", f"{found['not run']} not run")
    others = [word for word in ("contradicted", "inconclusive", "not run") if word in words]
    said = Tile(
        f"{words.count('supported')} of {len(words)}",
        "claims supported",
        ", ".join(f"{words.count(word)} {word}" for word in others),
    )
    done = [run for run in survey.runs if run.result]
    failed = sum(run.state == "failed" for run in survey.runs)
    todo = sum(run.state in ("new", "running") for run in survey.runs)
    trained = Tile(f"{len(done):,}", "trainings", f"{failed} failed, {todo} to do")
    hours = sum(float(run.result["seconds"]) for run in done if run.result) / 3600
    cost = Tile(duration(hours), "of training", f"in {count(len(survey.cells), 'cell')}")
    withheld = Tile("withheld", "verdicts", "embedded or other data")
    tested = [group for group in tables if group.table and survey.sweep.protocol.trainings()]
    own = [numbers, said] if any(group.comparable for group in tested) else [withheld] if tested else []
    return (*own, trained, cost)


def _claims(found: Sequence[ClaimResult]) -> Section | None:
    if not found:
        return None
    details = [comparison_table(one) for one in found if one.runs and not one.withheld]
    return Section("claims", "What the paper says, and what holds", (), (claim_table(found), *details), short="Claims")


def _results(group: ResultTable, survey: SweepResults) -> Section:
    return Section(group.id, group.title, (), tuple(result_tables(group, survey.sweep.protocol.search)))


def _effects(tables: Sequence[ResultTable]) -> Section | None:
    found = effects_of(tables)
    parts = [
        part
        for group, effects in found
        for part in (charts.effect_gallery(group, effects), effect_table(group, effects))
    ]
    return Section("effects", "Effects", (), tuple(parts)) if parts else None


def _galleries(name: str, heading: str, found: Sequence[Gallery | None]) -> Section | None:
    there = tuple(gallery for gallery in found if gallery is not None)
    return Section(name, heading, (), there) if there else None


def _dropout(survey: SweepResults) -> Section | None:
    table = record_tables.dropout_table(survey)
    if table is None:
        return None
    words = "Filled: trained to the end; hollow: pruned; ringed: chosen."
    return Section("dropout", "Dropout response", (words,), (table, *charts.dropout_galleries(survey)))


def _analyses(ledger: Ledger, survey: SweepResults) -> Section | None:
    parts = charts.analysis_parts(ledger, survey)
    words = "Of the first analysed run of each cell."
    return Section("analyses", "Analyses", (words,), tuple(parts)) if parts else None


def _failures(survey: SweepResults) -> Section:
    table = record_tables.failure_table(survey)
    words = () if table else ("No training failed, diverged or was begun anew.",)
    return Section("failures", "Failures", words, (table,) if table else ())
