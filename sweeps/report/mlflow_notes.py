"""Notes at the head of each cell's MLflow run: its row of the table, the questions about it, and links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from sweeps.experiment.metrics import PARAMETERS, VOTE
from sweeps.experiment.wording import count, plural
from sweeps.report.question_tables import answer_line
from sweeps.report.render.document import NONE, Entry, signed
from sweeps.report.render.formats import markdown_entry, markdown_note, prose
from sweeps.report.result_tables import legend, ours_entry, verdict_text
from sweeps.results.answers import Answers, answers
from sweeps.results.cell_numbers import DERIVED, ResultTable, Row, groups, named, number, verdict_for
from sweeps.results.evidence import CellResults, SweepResults
from sweeps.results.paper_cells import reduced
from sweeps.tracking.layout import (
    REPORT,
    Page,
    cell_metrics,
    charts_address,
    compare_address,
    run_address,
    shown,
    table_address,
    trainings_digest,
)

TESTED = ("fold", "match", "ablation")  # phases whose runs a note names one by one
NAMED = 12  # of them at most


def pages(results: SweepResults, experiment: str, runs: Mapping[str, str], report: str) -> dict[str, Page]:
    """Return the note and the numbers for each cell of a sweep that has a run in `runs`, by cell key.

    `report` is the run on which the report lies.
    """
    pages: dict[str, Page] = {}
    decided = answers(results)
    has_search = results.sweep.protocol.search is not None
    for group in groups(results):
        for row in group.rows if group.table not in DERIVED.values() else ():
            if row.results is not None and row.key in runs:
                questions = _questions(decided, row.results.cell.label)
                note = _note(results, group, row, row.results, questions, experiment, runs, report)
                finished = {run.key: run.result for run in row.results.runs if run.result}
                pages[row.key] = Page(note, _metrics(group, row, row.results, has_search), trainings_digest(finished))
    return pages


def _note(
    results: SweepResults,
    group: ResultTable,
    row: Row,
    cell_results: CellResults,
    questions: Sequence[str],
    experiment: str,
    runs: Mapping[str, str],
    report: str,
) -> str:
    # A number of the paper stands beside none of other pictures.
    judging = group.comparable
    heads = ["", *(["paper"] if judging else []), "ours ± se (n)", *(["difference", "verdict"] if judging else [])]
    lines = (
        [f"**{prose(group.title)}: {prose(row.label)}**", ""]
        + _line(map(Entry, heads))
        + _line(map(Entry, ["---"] + ["---:"] * (len(heads) - 1)))
    )
    used: set[str] = set()
    for metric in group.metrics:
        theirs = group.paper(row, metric)
        values = [Entry(named(metric, group.table))]
        values += [Entry(str(theirs).replace("±", " ± ") if theirs is not None else NONE)] if judging else []
        ours = ours_entry(group, row, metric, results.sweep.protocol.search)
        values.append(ours._replace(sub=""))
        used |= set(ours.marks)
        word = verdict_for(group, row, metric, number(cell_results, metric)) if judging else None
        places = 3 if metric == PARAMETERS else 2
        values += [Entry(signed(word.difference, places)), Entry(verdict_text(word))] if word is not None else []
        lines += _line(values + [Entry(NONE)] * (len(heads) - len(values)))
    notes = legend(used, group.metric)
    lines += ["", *map(markdown_note, notes)] if notes else []
    lost = {metric: cell_results.lost(metric) for metric in group.metrics}
    if any(lost.values()):
        lines += ["", f"Of its trainings: {'; '.join(dict.fromkeys(filter(None, lost.values())))}."]
    return "\n".join([*lines, "", *_links(results, cell_results, experiment, runs, report), *questions])


def _questions(decided: Answers | None, label: str) -> list[str]:
    """Return the lines of the page's questions about a cell, each with its answer so far."""
    if decided is None:
        return []
    asked = [answer for answer in decided.answers if label in answer.question.labels]
    changed = [f"- not as registered: {prose(change.sentence)}" for change in decided.changes] if asked else []
    lines = [f"- {prose(answer_line(answer, decided))}" for answer in asked] + changed
    return ["", plural(len(asked), "Question") + ":", "", *lines] if lines else []


def _line(values: Iterable[Entry]) -> list[str]:
    return [f"| {' | '.join(markdown_entry(value._replace(text=value.text.replace('|', '/'))) for value in values)} |"]


def _links(
    results: SweepResults, cell_results: CellResults, experiment: str, runs: Mapping[str, str], report: str
) -> list[str]:
    cells = [runs[cell.cell.key] for cell in results.cells if cell.cell.key in runs]
    page = run_address(experiment, report, f"{REPORT}/report.html")
    links = [
        f"[the report]({page})",
        f"[all cells in a table]({table_address(experiment, results.sweep.metric)})",
        f"[in charts]({charts_address(experiment, results.sweep.metric)})",
    ]
    if len(cells) > 1:
        links.append(f"[{count(len(cells), 'cell')} beside each other]({compare_address(experiment, cells)})")
    tested = [run for run in cell_results.done(*TESTED) if run.mlflow]
    trials = [
        f"[{prose(run.trial.label)}]({run_address(experiment, quote(run.mlflow, safe=''))})" for run in tested[:NAMED]
    ]
    more = f" and {len(tested) - NAMED} more" if len(tested) > NAMED else ""
    return [" · ".join(links), *(["", f"Trainings: {', '.join(trials)}{more}"] if trials else [])]


def _metrics(group: ResultTable, row: Row, cell_results: CellResults, has_search: bool) -> dict[str, float]:
    """Return the numbers of a cell's run: its averages, and what no trial's run has: paper, vote, parameters."""
    winner = None
    if has_search:
        winner = {run.key for run in cell_results.winner.runs} if cell_results.winner is not None else set()
    metrics = cell_metrics(((run.trial, run.result["metrics"]) for run in cell_results.runs if run.result), winner)
    metrics[PARAMETERS] = number(cell_results, PARAMETERS).average.mean
    # A chart has no room to say why the paper's number is of other trainings.
    beside = group.comparable and not reduced(cell_results, group.dataset)
    for metric in group.metrics:
        ours, theirs = number(cell_results, metric), group.paper(row, metric)
        if beside and theirs is not None:
            metrics[f"paper/{metric.partition('/')[2]}"] = theirs.value
        if metric in (VOTE, PARAMETERS):
            metrics[metric] = ours.average.mean
    return shown(metrics)
