"""The numbers of a report as rows of plain values, a row a number, for CSV and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sweeps.experiment.metrics import Metric
from sweeps.experiment.search import Search, goal
from sweeps.experiment.space import value_text
from sweeps.report.result_tables import why_withheld
from sweeps.results.cell_numbers import DERIVED, ResultTable, groups, number, verdict_for
from sweeps.results.chosen_numbers import as_shown, shown_effect, sides, why_untested
from sweeps.results.claims import judge_claims, printed_tests
from sweeps.results.contrasts import Contrast, Effect, effects
from sweeps.results.evidence import LEFT, CellResults, Run, SearchPoint, SweepResults
from sweeps.results.factors import factor_effects, grids
from sweeps.results.marks import MARKS, curve_runs, marks

Line = dict[str, Any]


def tidy(results: SweepResults) -> dict[str, list[Line]]:
    """Return the rows by name: numbers, effects, factors, claims, printed, curves, dropout, runs."""
    used = [table for table in ("1", "2") if any(cell_results.cell.table == table for cell_results in results.cells)]
    rows = {
        "numbers": list(_numbers(results)),
        "effects": list(effect_rows(groups(results))),
        "factors": list(factor_rows(groups(results))),
        "claims": list(_claims(results)),
        "printed": [line for table in used for line in _printed(table)],
        "curves": list(_curves(results)),
        "dropout": list(_dropout(results)),
        "runs": list(_runs(results)),
    }
    return {name: lines for name, lines in rows.items() if lines}


def _named(runs: Sequence[Run]) -> Line:
    return {"trials": [run.key for run in runs], "mlflow_runs": [run.mlflow for run in runs if run.mlflow]}


def _numbers(results: SweepResults) -> Iterable[Line]:
    for group in groups(results):
        for row in group.rows:
            for metric in group.metrics:
                ours, theirs = number(row.results, metric), group.paper(row, metric)
                verdict = verdict_for(group, row, metric, ours)
                yield {
                    "table": group.table,
                    "paper_dataset": group.dataset,
                    "dataset": row.results.cell.dataset if row.results else "",
                    "row": row.label,
                    "cell_key": row.key,
                    "metric": metric,
                    "mean": ours.average.mean,
                    "se": ours.average.se,
                    "n": ours.average.n,
                    "low": ours.interval.low,
                    "high": ours.interval.high,
                    "paper": theirs.value if theirs else float("nan"),
                    "paper_se": (theirs.se if theirs and theirs.se is not None else float("nan")),
                    "difference": verdict.difference if verdict else float("nan"),
                    "difference_low": verdict.interval.low if verdict else float("nan"),
                    "difference_high": verdict.interval.high if verdict else float("nan"),
                    "tolerance": verdict.margin if verdict else float("nan"),
                    "verdict": verdict.word if verdict else "",
                    "withheld": why_withheld(group, row, metric),
                    "marks": [
                        MARKS[mark][0] for mark in marks(group, row.results, ours, results.sweep.protocol.search)
                    ],
                } | _named(ours.runs)


def _contrast(contrast: Contrast, p: float) -> Line:
    return {
        "metric": contrast.metric,
        "difference": contrast.difference,
        "low": contrast.interval.low,
        "high": contrast.interval.high,
        "t": contrast.t,
        "p": contrast.p,
        "p_holm": p,
        "p_uncorrected": contrast.plain_p,
        "p_wilcoxon": contrast.rank_p,
        "p_mcnemar": contrast.pictures.p if contrast.pictures else float("nan"),
        "n": contrast.n,
        "over": contrast.basis,
        "stale": sum(run.state == "stale" for run in contrast.runs),
    } | _named(contrast.runs)


def _lost(cells: Iterable[CellResults], metric: str) -> str:
    """Return how many trials behind a metric were lost, by cell; empty for none."""
    return "; ".join(f"{cell.cell.label}: {words}" for cell in cells if (words := cell.lost(metric)))


def effect_rows(tables: Sequence[ResultTable], chosen: Sequence[Effect] | None = None) -> Iterable[Line]:
    """Yield the effects of tables as rows: the `chosen` ones, or those that a report shows."""
    for group in tables:
        if chosen is None and group.table in DERIVED.values():
            continue
        for effect in effects(group) if chosen is None else chosen:
            names = {
                "table": group.table,
                "paper_dataset": group.dataset,
                "dataset": effect.row.results.cell.dataset if effect.row.results else "",
                "row": effect.row.label,
                "cell_key": effect.row.key,
                "reference": effect.reference.label,
                "reference_key": effect.reference.key,
            }
            lost = _lost(sides(effect), effect.contrast.metric)
            facts: Line = {"withheld": why_untested(effect.contrast, sides(effect)), "lost": lost}
            shown = shown_effect(effect)
            yield names | _contrast(shown.contrast, shown.p) | facts


def factor_rows(tables: Sequence[ResultTable]) -> Iterable[Line]:
    """Yield the main effects and interactions of the grids among a sweep's tables as rows."""
    for grid in grids(tables):
        for effect in factor_effects(grid):
            names = {
                "dataset": grid.dataset,
                "grid": grid.words,
                "factors": effect.name,
                "levels": effect.level,
                "references": effect.reference,
            }
            lost = _lost(grid.cells, effect.contrast.metric)
            withheld = effect.why or why_untested(effect.contrast, grid.cells)
            facts: Line = {"cells": effect.cells, "withheld": withheld, "lost": lost}
            shown = as_shown(effect, grid.cells)
            yield names | _contrast(shown.contrast, shown.p) | facts


def _claims(results: SweepResults) -> Iterable[Line]:
    for result in judge_claims(results):
        for compared in result.compared:
            shown = as_shown(compared, results.cells)
            yield {
                "claim": result.claim.id,
                "sentence": result.claim.sentence,
                "in_print": result.in_print,
                "claim_decision": "withheld" if result.withheld else result.decision,
                "withheld": result.withheld,
                "paper_dataset": compared.comparison.dataset,
                "row": compared.comparison.row,
                "relation": compared.comparison.relation,
                "margin": compared.comparison.margin,
                "rival": compared.rival,
                "decision": "withheld" if result.withheld else compared.decision,
                "more_seeds": None if result.withheld else compared.more,
                "more_of": compared.contrast.unit,
            } | _contrast(shown.contrast, shown.p)


def _printed(table: str) -> Iterable[Line]:
    for test in printed_tests(table):
        welch, corrected = test.difference.plain, test.difference.corrected
        yield {
            "table": table,
            "paper_dataset": test.dataset,
            "row": test.row,
            "rival": test.rival,
            "difference": test.difference.difference,
            "t": welch.t,
            "p": welch.p,
            "t_corrected": corrected.t,
            "p_corrected": corrected.p,
            "p_holm": test.p,
        }


def _curves(results: SweepResults) -> Iterable[Line]:
    for cell_results in results.cells:
        for run in curve_runs(cell_results):
            for epoch, error in zip(run.epochs, run.curve, strict=True):
                row = {"cell": cell_results.cell.label, "trial": run.key, "epoch": epoch}
                yield row | {_column(results.sweep.metric.row): float(error)}


def _dropout(results: SweepResults) -> Iterable[Line]:
    search = results.sweep.protocol.search or Search()
    column = _column(search.objective or results.sweep.metric.row)
    for cell_results in results.cells:
        for order, tried in enumerate(cell_results.tried):
            line: Line = {
                "cell": cell_results.cell.label,
                "number": order,
                "dropout": " ".join(f"{place}={rate:g}" for place, rate in tried.run.trial.dropout),
                "choices": " ".join(f"{name}={value_text(value)}" for name, value in tried.run.trial.choices),
                "objective": goal(search, cell_results.cell).name,
                "value": tried.value if tried.value is not None else float("nan"),
                "state": _state(tried),
                "ended_early": tried.early,
                "trials": [run.key for run in tried.runs],
            }
            line.setdefault(column, line["value"])
            yield line


def _state(tried: SearchPoint) -> str:
    """Return where a suggestion stands; of an open one whether it trains already."""
    states = [run.state for run in tried.runs]
    return next((state for state in reversed(LEFT) if state in states), tried.state)


def _column(name: str) -> str:
    """Return the name of a metric as that of a column: val_f1."""
    return name.replace("/", "_")


def _runs(results: SweepResults) -> Iterable[Line]:
    metric: Metric = results.sweep.metric
    for run in results.runs:
        yield {
            "cell": run.trial.cell.label,
            "trial": run.key,
            "name": run.trial.label,
            "state": str((run.result or {}).get("status", run.state)),
            "stale": run.state == "stale",
            _column(metric.name): run.metrics.get(metric.final, float("nan")),
            _column(metric.row): run.metrics.get(metric.held_out, float("nan")),
            "epochs": int(run.result["epochs"]) if run.result else 0,
            "seconds": run.seconds if run.result or run.seconds else float("nan"),
            "mlflow_run": run.mlflow,
        }
