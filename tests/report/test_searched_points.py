"""Where the trials of a search stand, in every view: what was chosen, diverged, was skipped, or was given up."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crelu_models.model import Model
from sweeps.experiment.cell_trials import sweep_trials
from sweeps.experiment.metrics import HELD_OUT, TOP1
from sweeps.experiment.plan import current_plan, plan, plan_to_json
from sweeps.experiment.sampling import ENOUGH
from sweeps.experiment.search import Search
from sweeps.experiment.space import Choice, Float, Int
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report.charts import response_galleries
from sweeps.report.contents import document
from sweeps.report.record_tables import EARLY, importance_table, why_no_importance
from sweeps.report.render.chart import Responses
from sweeps.report.render.formats import markdown
from sweeps.report.render.html import page
from sweeps.report.tidy import tidy
from sweeps.results import capsule
from sweeps.results.cell_numbers import groups, number
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.marks import marks
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, CRELU, Made, finish, make

CELLS = tuple(dataclasses.replace(cell, table="", row="") for cell in (BASELINE, CRELU))
RATES = {"recipe.lr": Float(0.01, 1)}
DIVERGED = Made({HELD_OUT: 90.0}, curve=[90.0] * 3, status="diverged", ending="diverged")


def rate_of(trial: Trial) -> float:
    return float(dict(trial.choices)["recipe.lr"])


def trained(trial: Trial) -> Made:
    """Return the outcome of a training that ends well: a search trial takes an hour for each 1 of its rate."""
    if trial.phase != "holdout":
        return Made({TOP1: 12.0 + trial.seed}, curve=[])
    return Made({}, curve=[50.0, 10 + 10 * rate_of(trial)], seconds=3600 * rate_of(trial))


def all_diverge(trial: Trial) -> Made:
    return DIVERGED


def made(
    folder: Path, search: Search, outcome: Callable[[Trial], Made | None], **protocol: Any
) -> tuple[Ledger, SweepResults]:
    ledger = Ledger.in_output(str(folder))
    make(ledger, Sweep("points", "paper", CELLS, Protocol(seeds=2, search=search, **protocol)), outcome)
    return ledger, read_sweep(ledger, "points")


def chosen_rows(ledger: Ledger, results: SweepResults) -> list[dict[str, str]]:
    table = document(ledger, results).tables["chosen-setting"]
    return [dict(zip(table.columns, (entry.text for entry in row), strict=True)) for row in table.rows]


def kinds(results: SweepResults) -> list[str]:
    charts = [figure.content for gallery in response_galleries(results) for figure in gallery.figures]
    return [point.kind for chart in charts if isinstance(chart, Responses) for point in chart.points]


def test_search_whose_trials_all_diverged_chose_nothing(tmp_path: Path) -> None:
    search = Search(6, sampler="random", prune=False, space=RATES)
    ledger, results = made(tmp_path, search, all_diverge)
    capsule.write(ledger, results, {}, tmp_path / "points.zip")
    with capsule.opened(tmp_path / "points.zip") as copy:
        for source in (ledger, copy):
            shown = read_sweep(source, "points")
            assert [cell.winner for cell in shown.cells] == [None, None]
            assert chosen_rows(source, shown) == [
                {"cell": cell.label, "chosen setting": "none: all 4 trainings of its search diverged",
                 "hold-out error": "–", "finished": "0", "diverged": "4", "skipped": "2"} for cell in CELLS
            ]  # fmt: skip
            assert kinds(shown) == ["open"] * 8
    assert [line["state"] for line in tidy(results)["dropout"]] == (["diverged"] * 4 + ["skipped"] * 2) * 2
    (table,) = groups(results)
    assert [marks(table, row.results, number(row.results, TOP1), search) for row in table.rows] == [("c",)] * 2


@pytest.mark.parametrize("dimensions", [1, 2])
def test_page_and_markdown_hold_the_importance_of_each_dimension(tmp_path: Path, dimensions: int) -> None:
    space = RATES | ({"recipe.batch": Int(16, 128, step=16)} if dimensions == 2 else {})
    ledger, results = made(tmp_path, Search(24, sampler="random", prune=False, space=space), trained)
    shown = document(ledger, results)
    only = "The only dimension is recipe.lr: all of the importance is its own."
    assert (only in shown.tables["chosen-setting"].notes) == (dimensions == 1)
    texts = [page(shown), markdown(shown)]
    assert all((only in text) == (dimensions == 1) for text in texts)
    if dimensions == 1:
        assert "importance" not in shown.tables
        return
    table = shown.tables["importance"]
    assert table.columns == ("cell", "recipe.lr", "recipe.batch")
    for row in table.rows:
        of_rate, of_batch = (int(entry.text.removesuffix(" %")) for entry in row[1:])
        assert of_rate + of_batch == pytest.approx(100, abs=1)
        assert of_rate > of_batch
        assert all(f"{of_rate} %" in text for text in texts)
        assert f"| {row[0].text} | {of_rate} % | {of_batch} % |" in texts[1]
    assert all("PED-ANOVA" in text for text in texts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"halving": 3, "rung": 1, "prune": False}, "paused after epoch {} of 9"),
        ({"folds": 6}, "pruned after {} of 6 folds"),
        ({}, "pruned after epoch {} of 9"),
        ({"prune": False}, ""),
    ],
)
def test_point_that_ended_early_says_where_in_every_view(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Its value is of there: beside those of whole trainings it must not pass for one of them."""
    space = RATES | {"recipe.batch": Int(16, 128, step=16)}
    search = Search(24, sampler="random", space=space, **change)
    cells = tuple(dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, epochs=9)) for cell in CELLS)
    sweep = Sweep("points", "paper", cells[:1], Protocol(seeds=1, search=search))
    ledger = Ledger.in_output(str(tmp_path))
    while todo := plan(sweep, ledger, {}).to_do:
        pauses = sweep_trials(sweep, ledger.results(), paused=ledger.paused())[cells[0].key].pauses
        for trial in todo:
            errors = [50.0 - epoch + 20 * rate_of(trial) + trial.fold for epoch in range(9)]
            is_pruned = any(e > bar for e, bar in zip(errors, trial.pruning_thresholds, strict=False))
            epochs = pauses.get(trial.key, 6 if is_pruned else 9)
            if trial.phase == "ablation":
                finish(ledger, trial, Made({TOP1: 12.0}))
            elif trial.key in pauses and epochs < 9:
                ledger.pause(trial.key, {"epoch": epochs, "curve": errors[:epochs], "seconds": 1.0})
            else:
                made = Made({HELD_OUT: min(errors[:epochs])}, curve=errors[:epochs])
                finish(ledger, trial, made._replace(status="pruned" if is_pruned else "finished"))
    ledger.write_json("plans/points.json", plan_to_json(plan(sweep, ledger, {})))
    results = read_sweep(ledger, "points")
    (cell,) = results.cells
    early = {point.early for point in cell.tried}
    shown = document(ledger, results)
    (section,) = [section for section in shown.sections if section.id == "dropout"]
    tips = [point.tip for gallery in response_galleries(results) for figure in gallery.figures
            if isinstance(figure.content, Responses) for point in figure.content.points]  # fmt: skip
    told = {line["ended_early"] for line in tidy(results)["dropout"]}
    assert told == early
    assert early - {""} <= {words.format(number) for number in range(1, 10)}
    assert bool(early - {""}) == bool(words) == any(words.partition("{")[0] in tip for tip in tips if words)
    assert [EARLY in notes for notes in (section.chart_words, shown.tables["importance"].notes)] == [bool(words)] * 2


def test_cell_without_a_setting_that_keeps_the_limits_says_so(tmp_path: Path) -> None:
    search = Search(6, sampler="random", prune=False, space=RATES, limits={"seconds": 1.0})
    ledger, results = made(tmp_path, search, trained)
    assert {row["chosen setting"] for row in chosen_rows(ledger, results)} == {
        "none: no trial of its search keeps the limits"
    }


def test_search_that_is_not_over_has_chosen_nothing_yet(tmp_path: Path) -> None:
    ledger, results = made(tmp_path, Search(6, sampler="random", space=RATES), lambda _: None)
    assert {(row["chosen setting"], row["open"]) for row in chosen_rows(ledger, results)} == {("–", "4")}
    assert {line["state"] for line in tidy(results)["dropout"]} == {"new"}


@pytest.mark.parametrize(
    ("trials", "change", "why"),
    [
        (1, {}, "its search diverged"),
        (1, {"folds": 3}, "all 3 trainings of its search diverged"),
        (1, {"halving": 3, "rung": 1}, "its search diverged"),
        (6, {"limits": {"seconds": 1.0}}, "no trial of its search keeps the limits but the {} that diverged"),
    ],
)
def test_training_that_diverged_is_not_chosen(trials: int, change: dict[str, Any], why: str, tmp_path: Path) -> None:
    def outcome(trial: Trial) -> Made:
        too_large = rate_of(trial) > 0.5 or trials == 1
        return DIVERGED._replace(seconds=0.5) if too_large else trained(trial)

    search = Search(trials, sampler="random", prune=False, space=RATES, **change)
    ledger, results = made(tmp_path, search, outcome)
    today = current_plan(ledger, "points")
    for cell in results.cells:
        diverged = sum(point.state == "diverged" for point in cell.tried)
        assert diverged
        assert today.given_up[cell.cell.label] == cell.given_up == why.format(diverged)
        assert {run.key for run in cell.runs} == cell.searched
        assert cell.winner is None


def test_model_that_only_its_training_counted_as_too_large_is_over_the_limit(tmp_path: Path) -> None:
    ledger = Ledger.in_output(str(tmp_path))
    cell = dataclasses.replace(CELLS[0], net=Model("nowhere_at_all:deep", depth=2))
    search = Search(2, "grid", prune=False, space={"model.depth": Int(1, 2)}, limits={"parameters": 150})
    sweep = Sweep("points", "paper", (cell,), Protocol(search=search))
    for trial in plan(sweep, ledger, {}).to_do:
        finish(ledger, trial, trained(trial) if trial.phase != "holdout" else Made({}))
        result = ledger.result(trial.key)
        assert result is not None
        ledger.commit(trial.key, result | {"parameters": 100 * dict(trial.choices)["model.depth"]})
    ledger.write_json("plans/points.json", plan_to_json(plan(sweep, ledger, {})))
    (cell_results,) = read_sweep(ledger, "points").cells
    assert [(point.state, point.early) for point in cell_results.tried] == [("over limit", ""), ("finished", "")]
    assert cell_results.winner is cell_results.tried[1]


def test_setting_that_diverged_on_some_folds_may_be_chosen(tmp_path: Path) -> None:
    def outcome(trial: Trial) -> Made:
        if trial.phase != "inner":
            return Made({TOP1: 12.0 + trial.seed}, curve=[])
        return DIVERGED if trial.fold == 0 else Made({HELD_OUT: 10.0 + rate_of(trial)}, curve=[])

    search = Search(2, sampler="random", prune=False, folds=3, space=RATES)
    ledger, results = made(tmp_path, search, outcome)
    assert [row["diverged"] for row in chosen_rows(ledger, results)] == ["2", "2"]
    assert all(cell.winner is not None and not cell.given_up for cell in results.cells)


def legend(ledger: Ledger, results: SweepResults) -> str:
    (section,) = [section for section in document(ledger, results).sections if section.id == "dropout"]
    return section.chart_words[0]


def test_trial_over_a_limit_is_not_called_pruned(tmp_path: Path) -> None:
    search = Search(6, sampler="random", prune=False, space=RATES, limits={"seconds": 1800.0})
    ledger, results = made(tmp_path, search, trained)
    capsule.write(ledger, results, {}, tmp_path / "points.zip")
    with capsule.opened(tmp_path / "points.zip") as copy:
        for source in (ledger, copy):
            shown = read_sweep(source, "points")
            for row, cell in zip(chosen_rows(source, shown), shown.cells, strict=True):
                over = sum(rate_of(point.run.trial) > 0.5 for point in cell.tried)
                assert over
                assert [row[name] for name in list(row)[3:]] == [str(6 - over), str(over)]
                assert list(row)[3:] == ["finished", "over limit"]
            assert legend(source, shown) == "Filled: trained to the end; hollow: over limit; ringed: chosen."
    assert {line["state"] for line in tidy(results)["dropout"]} == {"finished", "over limit"}


def test_pruned_trial_over_a_limit_is_pruned(tmp_path: Path) -> None:
    search = Search(2, sampler="random", space=RATES, limits={"seconds": 1.0})
    _, results = made(tmp_path, search, lambda trial: trained(trial)._replace(status="pruned"))
    assert {point.state for cell in results.cells for point in cell.tried} == {"pruned"}


def test_legend_names_what_the_hollow_points_are(tmp_path: Path) -> None:
    search = Search(6, sampler="random", prune=False, space=RATES)
    ledger, results = made(
        tmp_path / "some", search, lambda trial: DIVERGED if "lr=0.5" in trial.label else trained(trial)
    )
    assert "diverged" in {point.state for cell in results.cells for point in cell.tried}
    assert legend(ledger, results) == "Filled: trained to the end; hollow: diverged; ringed: chosen."
    ledger, results = made(tmp_path / "none", search, trained)
    assert legend(ledger, results) == "Filled: trained to the end; ringed: chosen."
    ledger, results = made(tmp_path / "all", search, all_diverge)
    assert legend(ledger, results) == "Filled: trained to the end; hollow: diverged."


def test_trial_that_is_suggested_twice_is_counted_once(tmp_path: Path) -> None:
    search = Search(8, space={"recipe.optimiser": Choice("sgd", "adam")})
    ledger, results = made(
        tmp_path, search, lambda trial: Made({}) if trial.phase == "holdout" else Made({TOP1: 12.0 + trial.seed}, [])
    )
    costs = {row[0].text: row[3].text for row in document(ledger, results).tables["costs"].rows}
    (table,) = groups(results)
    for row, cell in zip(chosen_rows(ledger, results), results.cells, strict=True):
        trials = {point.run.key for point in cell.tried}
        assert row["finished"] == costs[cell.cell.label] == str(len(trials))
        assert len(trials) < 5 < len(cell.tried) == 8
        assert "f" in marks(table, cell, number(cell, TOP1), search)


def test_of_a_trial_that_is_suggested_twice_the_one_that_went_furthest_counts(tmp_path: Path) -> None:
    _, results = made(tmp_path, Search(6, sampler="random", prune=False, space=RATES), trained)
    cell = results.cells[0]
    point = cell.tried[0]
    early = point._replace(passed_over=True)
    for tried in ((point, early), (early, point)):
        assert [each.state for each in dataclasses.replace(cell, tried=tried).tried_once] == ["finished"]


def test_setting_whose_other_folds_were_left_out_is_pruned(tmp_path: Path) -> None:
    _, results = made(tmp_path, Search(2, sampler="random", folds=3, space=RATES), lambda _: Made({HELD_OUT: 10.0}))
    point = results.cells[0].tried[0]
    assert point.state == "finished"
    assert point._replace(runs=point.runs[:2]).state == "pruned"


def test_importance_has_a_table_or_the_report_says_why_not(tmp_path: Path) -> None:
    both = RATES | {"recipe.optimiser": Choice("sgd", "adam")}
    ledger, results = made(tmp_path, Search(6, sampler="random", prune=False, space=both), trained)
    shown = document(ledger, results)
    (section,) = [section for section in shown.sections if section.id == "dropout"]
    assert "importance" not in shown.tables
    assert section.words == (
        "No table of importance: a cell needs 20 points, at most half of them with the worst value. Of fewer points it"
        " shows chance.",
    )
    more, known = 2 * ENOUGH, results.cells[0].tried
    cell = dataclasses.replace(results.cells[0], tried=tuple(known[n % len(known)] for n in range(more)))
    told = importance_table(dataclasses.replace(results, cells=(cell,)))
    assert told is not None
    assert len(told.notes) == 1
    short = dataclasses.replace(results.cells[1], tried=known)
    untold = importance_table(dataclasses.replace(results, cells=(cell, short)))
    assert untold is not None
    assert [entry.text for entry in untold.rows[1]] == [short.cell.label, "–", "–"]
    assert untold.notes[1].startswith("No share where fewer than 20 points of a cell have a value, where more than")
    idle = dataclasses.replace(results.cells[1], tried=())
    assert importance_table(dataclasses.replace(results, cells=(cell, idle))) == told


def test_search_of_one_dimension_says_nothing_of_importance(tmp_path: Path) -> None:
    _, results = made(tmp_path, Search(4, sampler="random", prune=False, space=RATES), trained)
    assert why_no_importance(results) == ""
