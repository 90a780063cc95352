"""A cell's run says of the present trainings what they say, and whose they are, whatever happened before."""

import dataclasses
import importlib
import itertools
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crelu_models.model import Model
from crelu_models.tables import S2, S4
from sweeps.experiment.metrics import AVERAGE, HELD_OUT, PARAMETERS, TOP1, VOTE
from sweeps.experiment.plan import current_plan
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import ALLCONV, Stage
from sweeps.experiment.search import Search, space
from sweeps.experiment.space import Choice, Float, Int, Space
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.report.mlflow_notes import pages
from sweeps.results.cell_numbers import number
from sweeps.results.evidence import read_sweep
from sweeps.store.ledger import Ledger
from sweeps.tracking import mlflow_client
from sweeps.tracking.cell_runs import Published, publish_report
from sweeps.tracking.layout import (
    AXIS,
    COLOUR,
    LEDGER,
    NOTE,
    SWEEP,
    Page,
    cell_metrics,
    colours,
    params_of,
    params_of_cell,
    placement,
    short_names,
)
from sweeps.tracking.layout import trainings_digest as digest_of
from sweeps.tracking.mlflow_client import log_files
from sweeps.tracking.mlflow_runs import MlflowRuns, is_tracked
from sweeps.tracking.run_index import Store
from tests.support.sweeps import Made, make
from tests.support.tracked import START, finish, runs, under_way

CELL = Cell("CReLU conv1-4", S2.crelu(1, 2, 3, 4), "synthetic", ALLCONV)
OTHER = Cell("CReLU conv1-7", S2.crelu(1, 2, 3, 4, 5, 6, 7), "synthetic", ALLCONV)
PLACEMENT = Sweep("imagenet_placement", "demo", (CELL, OTHER), Protocol(seeds=3))
FILES = {"report.html": b"<p>one</p>", "tables/a.tex": b"x"}


def cell_run(projection: MlflowRuns, cell: Cell = CELL) -> Any:
    """Return the run of a cell as the server has it."""
    return projection.client.get_run(projection.runs[f"cell:{cell.key}"])


def train(projection: MlflowRuns, trials: Sequence[Trial], errors: Sequence[float], **how: Any) -> None:
    """Finish trials with these errors, and bring them and their cell to MLflow."""
    for trial, error in zip(trials, errors, strict=True):
        finish(projection.ledger, trial, error, **how)
        projection.sync_trial(trial, "RUNNING")
    projection.sync_cell(trials[0].cell, trials)


def pages_of(ledger: Ledger, trials: Sequence[Trial], extra: Mapping[str, float]) -> Any:
    """Return what makes the page of these trials' cell: its averages, numbers of the report alone, and a note."""

    def pages(experiment: str, cells: Mapping[str, str], report: str) -> dict[str, Page]:
        results = ledger.results(trial.key for trial in trials)
        numbers = cell_metrics((trial, results[trial.key]["metrics"]) for trial in trials)
        page = Page(f"{experiment}: {numbers[AVERAGE]:.2f}, report on {report}", numbers | extra, digest_of(results))
        return {trials[0].cell.key: page}

    return pages


# Averages, note and report agree


@pytest.mark.parametrize(
    "lates", [(300_000, 0, 100_000), (86_400_000, 0, -86_400_000), (0, -120_000, 120_000), (0, 0, 0)]
)
def test_a_worker_whose_clock_is_ahead_does_not_freeze_the_averages(
    store: Store, ledger: Ledger, lates: tuple[int, int, int]
) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(3)]
    projection = MlflowRuns(store, ledger, PLACEMENT)
    for trial, error, late in zip(trials, (60.0, 40.0, 20.0), lates, strict=True):
        finish(ledger, trial, error, finished_ms=START + late)
        projection.sync_trial(trial, "RUNNING")
        projection.sync_cell(CELL, trials)
    shown = cell_run(projection).data.metrics
    assert shown[AVERAGE] == 40.0
    assert shown["agg/test_top1_err_n"] == 3.0
    assert shown["agg/test_top1_err_se"] == pytest.approx(20 / 3**0.5)


@pytest.mark.parametrize("before_errors", [(40.0, 50.0, 60.0), (44.0, 44.0), (10.0, 20.0, 30.0, 40.0), (43.0, 45.0)])
def test_numbers_of_earlier_trainings_are_gone(store: Store, ledger: Ledger, before_errors: tuple[float, ...]) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(len(before_errors))]
    first = MlflowRuns(store, ledger, PLACEMENT)
    train(first, trials, before_errors)
    before = cell_run(first).info.run_id
    for trial in trials:
        ledger.forget(trial.key)
    again = MlflowRuns(store, ledger, PLACEMENT)
    finish(ledger, trials[0], 44.0, restarts=1)
    again.sync_trial(trials[0], "RUNNING")
    again.sync_cell(CELL, trials[:1])
    run = cell_run(again)
    assert run.data.metrics == {AVERAGE: 44.0, "agg/test_top1_err_n": 1.0, TOP1: 44.0}
    assert again.client.get_run(before).info.lifecycle_stage == "deleted"
    below = {run.data.tags.get("mlflow.parentRunId") for run in runs(again) if "trial.key" in run.data.tags}
    assert below == {run.info.run_id}
    assert run.info.status == "FINISHED"
    # Whoever reads them next has nothing to mend.
    MlflowRuns(store, ledger, PLACEMENT).sync_cell(CELL, trials[:1])
    assert cell_run(again).info.lifecycle_stage == "active"


def test_vote_and_note_go_with_the_trainings_that_they_are_of(store: Store, ledger: Ledger) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(2)]
    projection = MlflowRuns(store, ledger, PLACEMENT)
    train(projection, trials[:1], (40.0,))
    extra = {VOTE: 30.0, PARAMETERS: 1.25, "paper/test_top1_err": 39.8}
    publish_report(store.uri, store.experiment, projection.owner, FILES, pages_of(ledger, trials[:1], extra))
    projection.sync_cell(CELL, trials[:1])  # nothing has changed: all stays
    run = cell_run(projection)
    assert run.data.metrics.items() >= extra.items()
    assert "40.00" in run.data.tags[NOTE]
    train(projection, trials, (40.0, 50.0))
    run = cell_run(projection)
    assert VOTE not in run.data.metrics
    assert (run.data.metrics[PARAMETERS], run.data.metrics["paper/test_top1_err"]) == (1.25, 39.8)
    assert run.data.metrics[AVERAGE] == 45.0
    assert "40.00" not in run.data.tags[NOTE]
    assert "report.run" not in run.data.tags
    assert "2 of 2 trainings" in run.data.tags[NOTE]
    publish_report(store.uri, store.experiment, projection.owner, FILES, pages_of(ledger, trials, {VOTE: 20.0}))
    run = cell_run(MlflowRuns(store, ledger, PLACEMENT))
    assert (run.data.metrics[AVERAGE], run.data.metrics[VOTE]) == (45.0, 20.0)
    assert "45.00" in run.data.tags[NOTE]
    assert "paper/test_top1_err" not in run.data.metrics  # a verdict that the report no longer gives


def test_report_of_fewer_trainings_is_no_longer_named(store: Store, ledger: Ledger) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(2)]
    projection = MlflowRuns(store, ledger, PLACEMENT)
    train(projection, trials[:1], (40.0,))
    publish_report(
        store.uri, store.experiment, projection.owner, FILES, pages_of(ledger, trials[:1], {PARAMETERS: 1.0})
    )
    before = cell_run(projection)
    assert before.data.tags["report.run"] == before.info.run_id
    train(projection, trials, (40.0, 50.0))
    after = cell_run(projection)
    assert after.info.run_id == before.info.run_id  # no number of it was wrong: the run stays
    assert "report.run" not in after.data.tags


def test_a_trial_trained_anew_to_another_error_has_a_new_run(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELL)
    projection = MlflowRuns(store, ledger, PLACEMENT)
    finish(ledger, trial, 40.0, finished_ms=START + 100_000)
    projection.sync_trial(trial, "RUNNING")
    before = projection.runs[trial.key]
    finish(ledger, trial, 30.0)  # by a clock that is behind
    again = MlflowRuns(store, ledger, PLACEMENT)
    again.sync_trial(trial, "RUNNING")
    assert again.client.get_run(again.runs[trial.key]).data.metrics[TOP1] == 30.0
    assert again.client.get_run(before).info.lifecycle_stage == "deleted"


def test_a_trial_trained_anew_leaves_no_note_of_the_earlier_one(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELL)
    projection = MlflowRuns(store, ledger, PLACEMENT)
    train(projection, [trial], (40.0,))
    publish_report(store.uri, store.experiment, projection.owner, FILES, pages_of(ledger, [trial], {VOTE: 30.0}))
    train(MlflowRuns(store, ledger, PLACEMENT), [trial], (40.0,), finished_ms=START + 60_000)  # by chance the same
    run = cell_run(MlflowRuns(store, ledger, PLACEMENT))
    assert VOTE not in run.data.metrics
    assert "1 of 1 training planned" in run.data.tags[NOTE]


def test_a_forgotten_trial_shows_no_last_numbers_while_it_trains(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELL)
    finish(ledger, trial, 40.0)
    MlflowRuns(store, ledger, PLACEMENT).sync_trial(trial, "RUNNING")
    ledger.forget(trial.key)
    under_way(ledger, trial, 1)
    again = MlflowRuns(store, ledger, PLACEMENT)
    again.sync_trial(trial, "RUNNING")
    assert TOP1 not in again.client.get_run(again.runs[trial.key]).data.metrics


def test_an_analysis_made_again_shows_its_new_number(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(CELL)
    projection = MlflowRuns(store, ledger, PLACEMENT)
    train(projection, [trial], (40.0,))
    for value, seconds in ((0.5, 1.9e9), (0.25, 1.8e9)):  # the second time, on a machine whose clock is behind
        monkeypatch.setattr(mlflow_client, "time", SimpleNamespace(time=lambda seconds=seconds: seconds))
        log_files(store.uri, projection.runs[trial.key], {}, {"pairing/mu": value})
    assert projection.client.get_run(projection.runs[trial.key]).data.metrics["pairing/mu"] == 0.25


def test_report_lies_on_one_run_and_all_cells_name_it(store: Store, ledger: Ledger) -> None:
    projection = MlflowRuns(store, ledger, PLACEMENT)
    for cell in (CELL, OTHER):
        train(projection, [Trial(cell)], (9.5,))

    def pages(experiment: str, cells: Mapping[str, str], report: str) -> dict[str, Page]:
        assert experiment == projection.experiment
        numbers = cell_metrics([(Trial(CELL), {TOP1: 9.5})]) | {PARAMETERS: 1.25}
        return {key: Page(f"| row of {run} on {report} |", numbers, "abc") for key, run in cells.items()}

    def publish(files: Mapping[str, bytes]) -> Published:
        return publish_report(store.uri, store.experiment, projection.owner, files, pages)

    assert publish(FILES) == (projection.experiment, 2, 2)
    assert publish(FILES) == (projection.experiment, 2, 0)
    assert publish(FILES | {"report.html": b"<p>two</p>"}).changed == 1
    stored = [cell_run(projection, cell) for cell in (CELL, OTHER)]
    (holder,) = [run.info.run_id for run in stored if "report" in run.data.tags]
    for run in stored:
        assert run.data.tags[NOTE] == f"| row of {run.info.run_id} on {holder} |"
        assert run.data.tags["report.run"] == holder
        assert len(projection.client.get_metric_history(run.info.run_id, PARAMETERS)) == 1
        names = {item.path for item in projection.client.list_artifacts(run.info.run_id, "report")}
        assert names == ({"report/report.html", "report/tables"} if run.info.run_id == holder else set())
    held = Path(projection.client.get_run(holder).info.artifact_uri, "report", "report.html")
    assert held.read_bytes() == b"<p>two</p>"
    assert publish_report(store.uri, "nowhere", projection.owner, FILES, pages) == ("", 0, 0)


# Whose runs they are


@pytest.mark.parametrize(
    ("name", "profile"),
    [("imagenet_dropout", "demo"), ("full_grid", "demo"), ("imagenet_placement", "mini"), ("a.page", "paper")],
)
def test_two_sweeps_with_one_cell_have_a_run_of_it_each(store: Store, ledger: Ledger, name: str, profile: str) -> None:
    placement_runs = MlflowRuns(store, ledger, PLACEMENT)
    train(placement_runs, [Trial(CELL)], (41.0,))
    dropout = Sweep(name, profile, (CELL,), Protocol())
    result = ledger.result(Trial(CELL).key)
    assert result is not None
    assert not is_tracked(ledger, store, dropout.title, result)
    dropout_runs = MlflowRuns(store, ledger, dropout)
    more = [Trial(CELL), Trial(CELL, dropout=(("pool1", 0.5),))]
    dropout_runs.sync_trial(more[0], "RUNNING")
    train(dropout_runs, more[1:], (61.0,))
    dropout_runs.sync_cell(CELL, more)
    assert cell_run(MlflowRuns(store, ledger, PLACEMENT)).data.metrics[AVERAGE] == 41.0
    assert cell_run(MlflowRuns(store, ledger, dropout)).data.metrics[AVERAGE] == 51.0
    for projection, count in ((placement_runs, 1), (dropout_runs, 2)):
        parent = cell_run(projection)
        below = [run for run in runs(projection) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert {run.data.tags[SWEEP] for run in [parent, *below]} == {projection.sweep.title}
        assert len(below) == count
        assert is_tracked(ledger, store, projection.sweep.title, result)
        assert ledger.tracked(Trial(CELL).key, projection.sweep.title)["run"] == projection.runs[Trial(CELL).key]


def test_two_people_on_one_server_leave_each_other_s_runs_alone(store: Store, tmp_path: Path) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(2)]
    mine, theirs = Ledger(str(tmp_path / "mine")), Ledger(str(tmp_path / "theirs"))
    train(MlflowRuns(store, mine, PLACEMENT), trials, (40.0, 42.0))
    train(MlflowRuns(store, theirs, PLACEMENT), trials[:1], (50.0,), restarts=1)  # another history of the same trial
    my_runs, their_runs = MlflowRuns(store, mine, PLACEMENT), MlflowRuns(store, theirs, PLACEMENT)
    assert len(runs(my_runs)) == 3 + 2
    assert not set(my_runs.runs.values()) & set(their_runs.runs.values())
    publish_report(store.uri, store.experiment, their_runs.owner, FILES, pages_of(theirs, trials[:1], {}))
    assert "report.run" in cell_run(their_runs).data.tags
    assert "report.run" not in cell_run(my_runs).data.tags
    assert (cell_run(my_runs).data.metrics[AVERAGE], cell_run(their_runs).data.metrics[AVERAGE]) == (41.0, 50.0)


def test_the_run_of_a_cell_goes_with_the_cell_and_comes_back_with_it(store: Store, ledger: Ledger) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(3)]
    elsewhere = Ledger(f"{ledger.root}-other")
    for mine, sweep in (
        (ledger, PLACEMENT),
        (ledger, dataclasses.replace(PLACEMENT, profile="mini")),
        (elsewhere, PLACEMENT),
    ):
        train(MlflowRuns(store, mine, sweep), trials[:2], (40.0, 42.0))
    under_way(ledger, trials[2], 1)
    MlflowRuns(store, ledger, PLACEMENT).sync_trial(trials[2], "RUNNING")
    for part, is_left in (
        (PLACEMENT.only([OTHER.label]), True),
        (dataclasses.replace(PLACEMENT, cells=(OTHER,)), False),
    ):
        before = MlflowRuns(store, ledger, part)
        before.remove_strangers([])
        after = MlflowRuns(store, ledger, part)
        assert before.runs == after.runs
        assert (f"cell:{CELL.key}" in after.runs) == is_left
        assert after.runs.keys() >= {trial.key for trial in trials}
        assert after.index.states[after.runs[trials[2].key]] == "KILLED"
        assert sorted(run.data.tags[SWEEP] for run in runs(after) if "trial.key" not in run.data.tags) == (
            ["imagenet_placement-demo"] * (1 + is_left) + ["imagenet_placement-mini"]
        )
    again = MlflowRuns(store, ledger, PLACEMENT)
    again.sync_cell(CELL, trials)
    assert cell_run(again).data.metrics[AVERAGE] == 41.0
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs(again) if run.info.run_id in again.runs.values()
               and "trial.key" in run.data.tags}  # fmt: skip
    assert parents == {cell_run(again).info.run_id}


@pytest.mark.parametrize(
    "changes", [{"label": "CReLU early"}, {"label": "CReLU 1-4"}, {"table": "Table 4", "row": "early"}]
)
def test_what_a_cell_is_called_now_stands_on_all_its_runs(
    store: Store, ledger: Ledger, changes: Mapping[str, str]
) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(2)]
    train(MlflowRuns(store, ledger, PLACEMENT), trials, (40.0, 42.0))
    renamed = dataclasses.replace(CELL, **changes)
    assert renamed.key == CELL.key
    sweep = dataclasses.replace(PLACEMENT, cells=(renamed, OTHER))
    again = MlflowRuns(store, ledger, sweep)
    again.rename_trials(Trial(renamed, seed=seed) for seed in range(2))
    again.sync_cell(renamed, [Trial(renamed, seed=seed) for seed in range(2)])
    shown = {run.info.run_name: run.data for run in runs(again)}
    name = short_names([renamed.label])[renamed.label]
    assert shown.keys() == {name, f"{name} s0", f"{name} s1"}
    for data in shown.values():
        known = (data.tags["cell.label"], data.tags.get("paper.table", ""), data.tags.get("paper.row", ""))
        assert known == (renamed.label, renamed.table, renamed.row)


def test_trials_have_the_colour_of_their_cell_unless_somebody_picked_another(store: Store, ledger: Ledger) -> None:
    trials = [Trial(cell, seed=seed) for cell in (CELL, OTHER) for seed in range(2)]
    before = MlflowRuns(store, ledger, PLACEMENT)
    train(before, trials[:2], (40.0, 42.0))
    train(before, trials[2:], (30.0, 32.0))
    shades: dict[str, set[str]] = {}
    for run in runs(before):
        shades.setdefault(run.data.tags["cell.key"], set()).add(run.data.tags[COLOUR])
    assert shades == {key: {colour} for key, colour in colours([CELL.key, OTHER.key]).items()}
    for run in (cell_run(before).info.run_id, before.runs[trials[0].key]):
        before.client.set_tag(run, COLOUR, "#000000")
    before.client.delete_tag(before.runs[trials[1].key], COLOUR)  # as an earlier version made it
    before.client.log_metric(cell_run(before).info.run_id, "agg/stray", 1.0)  # so that the cell gets another run
    again = MlflowRuns(store, ledger, PLACEMENT)
    again.rename_trials(trials)
    again.sync_cell(CELL, trials[:2])
    assert cell_run(again).info.run_id != cell_run(before).info.run_id
    now = {run.info.run_name: run.data.tags[COLOUR] for run in runs(again) if run.data.tags["cell.key"] == CELL.key}
    assert now == {"CReLU 1-4": "#000000", "CReLU 1-4 s0": "#000000", "CReLU 1-4 s1": "#000000"}


def test_cells_keep_their_colours_where_others_come_before_them_or_go(store: Store, ledger: Ledger) -> None:
    train(MlflowRuns(store, ledger, PLACEMENT), [Trial(CELL)], (40.0,))
    train(MlflowRuns(store, ledger, PLACEMENT), [Trial(OTHER)], (30.0,))
    fresh = dataclasses.replace(OTHER, label="fresh", net=OTHER.net.width(0.5))
    sweep = dataclasses.replace(PLACEMENT, cells=(fresh, OTHER))
    again = MlflowRuns(store, ledger, sweep)
    train(again, [Trial(fresh)], (20.0,))
    train(again, [Trial(OTHER, seed=1)], (32.0,))
    shades: dict[str, set[str]] = {}
    for run in runs(again):
        shades.setdefault(run.data.tags["cell.key"], set()).add(run.data.tags[COLOUR])
    # That of the cell which went is not given again: the run of its training stays.
    expected = colours([CELL.key, OTHER.key, fresh.key])
    assert shades == {key: {colour} for key, colour in expected.items()}


def test_runs_of_an_earlier_version_are_taken_over_where_the_ledger_names_them(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELL)
    projection = MlflowRuns(store, ledger, PLACEMENT)
    train(projection, [trial], (40.0,))
    for run in runs(projection):  # what an earlier version left: no owner on the runs, no sweep in the note
        for tag in (LEDGER, SWEEP):
            projection.client.delete_tag(run.info.run_id, tag)
    note = ledger.tracked(trial.key, PLACEMENT.title)
    ledger.write_json(f"tracked/{trial.key}.json", note)
    somebody_else = MlflowRuns(store, Ledger(f"{ledger.root}-other"), PLACEMENT)
    assert somebody_else.runs == {}
    again = MlflowRuns(store, ledger, PLACEMENT)
    assert again.runs[trial.key] == note["run"]
    again.sync_trial(trial, "RUNNING")
    again.sync_cell(CELL, [trial])
    assert len(runs(again)) == 2
    assert cell_run(again).data.metrics[AVERAGE] == 40.0
    assert all(again.owner.has(run.data.tags) for run in runs(again))


def test_a_cell_s_run_of_an_earlier_version_stays_where_somebody_s_trial_is_below_it(
    store: Store, ledger: Ledger
) -> None:
    trial = Trial(CELL)
    projection = MlflowRuns(store, ledger, PLACEMENT)
    train(projection, [trial], (40.0,))
    for run in runs(projection):
        projection.client.delete_tag(run.info.run_id, LEDGER)
    shared = projection.runs[f"cell:{CELL.key}"]
    tags = {"trial.key": "theirs", "cell.key": CELL.key, "sweep": PLACEMENT.name, "profile": "demo"}
    projection.client.create_run(projection.experiment, tags=tags | {"mlflow.parentRunId": shared})
    again = MlflowRuns(store, ledger, PLACEMENT)
    again.sync_trial(trial, "RUNNING")
    again.sync_cell(CELL, [trial])
    assert again.runs[f"cell:{CELL.key}"] != shared
    assert again.client.get_run(shared).info.lifecycle_stage == "active"
    assert again.client.get_run(again.runs[trial.key]).data.tags["mlflow.parentRunId"] == cell_run(again).info.run_id


def test_a_ledger_has_one_name_whoever_asks_first(tmp_path: Path) -> None:
    names: list[str] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        ledger = Ledger(str(tmp_path / "ledger"))
        barrier.wait()
        names.append(ledger.identity)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8
    assert len(set(names)) == 1
    assert Ledger(str(tmp_path / "ledger")).identity == names[0]
    assert Ledger(str(tmp_path / "another")).identity != names[0]
    assert Ledger(str(tmp_path / "ledger")).names("") == ["ledger.json", "place.json"]


# What the table and the compare view show


@pytest.mark.parametrize("page", ["imagenet_placement", "imagenet_dropout", "cifar_width", "cifar_vgg", "full_grid"])
def test_names_of_cells_differ_in_what_the_compare_view_shows(page: str) -> None:
    module = importlib.import_module(f"sweeps.{page}")
    labels = [cell.label for cell in (*module.CELLS, *getattr(module, "CROSSED", ()))]
    names = short_names(labels)
    assert len({name[:AXIS] for name in names.values()}) == len(labels)
    assert short_names(labels[:-1]) == {label: names[label] for label in labels[:-1]}


def test_cells_have_colours_of_their_own_that_more_cells_leave_as_they_are() -> None:
    keys = [str(number) for number in range(60)]
    shades = colours(keys)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in shades.values())
    assert len(set(shades.values())) == len(keys)
    assert colours(keys[:5]) == {key: shades[key] for key in keys[:5]}


def test_names_of_cells_stay_readable() -> None:
    labels = ["Baseline", "CReLU conv1-4", "CReLU conv1,4,7", "CReLU conv1,4,7, SGD", "VGG cifar10", "VGG cifar100"]
    short = ["Baseline", "CReLU 1-4", "CReLU 1,4,7", "04 CReLU 1,4,7, SGD", "VGG C10", "VGG C100"]
    assert list(short_names(labels).values()) == short
    numbers = ["03 03 03 03 a", "b", "03 03 03 03 c", "03.2 03 03"]
    assert list(short_names(numbers).values()) == [*numbers[:2], "03.2 03 03 03 03 c", "04 03.2 03 03"]


def test_placements_differ_in_what_the_compare_view_shows() -> None:
    places = ((1,), (1, 3), (1, 3, 5), (1, 3, 5, 8))
    nets = [S4, *(S4.activation(act, *at) for act in ("crelu", "avr", "crelu_leaky") for at in places)]
    assert len({placement(net)[:AXIS] for net in nets}) == len(nets)
    assert placement(nets[-1]) == "1,3,5,8 leaky crelu"


def test_words_of_each_parameter_differ_in_what_the_compare_view_shows(store: Store, ledger: Ledger) -> None:
    resnet = Model("torchvision.models:resnet18", size=64)
    first = resnet.activation("crelu", "layer*.*.relu")
    more = [resnet.activation("gelu", "layer*.*.relu"), resnet.activation("crelu", "layer1.*.relu", "layer2.*.relu")]
    assert placement(first) == "crelu layer*.*.relu"
    assert placement(first)[:AXIS] != placement(more[0])[:AXIS]
    steps = [dataclasses.replace(ALLCONV, stages=(Stage(1, 1.0), Stage(9, factor))) for factor in (0.5, 0.1)]
    small, large = (f"synthetic:size=32,classes={classes}" for classes in (5, 10))
    cells = (
        Cell("no other", resnet, "folder:/data/birds", steps[0], factors=(("at", "no layer at all"),)),
        Cell("crelu", first, "folder:/data/bees", steps[1], factors=(("at", "layer*.*.relu"),)),
        *(Cell(f"{n} more", net, small, steps[0], factors=(("at", "layer*.*.relu6"),)) for n, net in enumerate(more)),
        Cell("embedded", first, large, steps[0], factors=(("at", "layer*.*.relu"),)),
        Cell("other birds", first, "folder:/others/birds", steps[0], factors=(("at", "layer*.*.relu"),)),
    )
    projection = MlflowRuns(store, ledger, Sweep("words", "demo", cells, Protocol()))
    for cell in cells:
        projection.sync_trial(Trial(cell), "RUNNING")
    shown = [run.data.params for run in runs(projection)]
    for param, own in (
        ("activation", [placement(cell.net) for cell in cells]),
        ("dataset", [cell.dataset for cell in cells]),
        ("net", [cell.net.name for cell in cells]),
        ("recipe.stages", [cell.recipe.stages for cell in cells]),
        ("factor.at", [cell.factors for cell in cells]),
    ):
        words = {params[param] for params in shown}
        assert len({word[:AXIS] for word in words}) == len(words) == len(set(own)), param
    datasets = {params["cell"]: params["dataset"] for params in shown}
    assert datasets["no other"] == "birds /data/birds"
    assert datasets["embedded"] == "04 embedded size=32,classes=10"
    assert datasets["other birds"] == "birds /others/birds"


def test_dropout_rates_of_a_study_differ_in_what_the_compare_view_shows() -> None:
    axes = space(Search(), CELL)
    names = [axis.name for axis in axes]
    assert names == ["input", "pool1", "pool2"]
    points = list(itertools.product(*(axis.domain.values() for axis in axes)))
    trials = [Trial(CELL, dropout=tuple(zip(names, map(float, point), strict=True))) for point in points]
    shown = [str(params_of(trial, "c")["dropout"]) for trial in trials]
    assert len({words[:AXIS] for words in shown}) == len(points) == 9 * 15 * 15
    assert shown[0] == "none"
    at = (0.15, 0.0, 0.35)
    assert shown[points.index(at)] == "15 0 35 % input pool1 pool2"
    searched = Trial(CELL, choices=(("net.dropout.pool2", 0.5), ("net.dropout.pool1", 0.0)))
    assert params_of(searched, "c")["dropout"] == "0 50 % pool1 pool2"


def test_a_mean_in_the_table_has_no_rounding_noise() -> None:
    errors = [40.07, 40.17, 40.27]
    assert sum(errors) / 3 != 40.17
    numbers = cell_metrics((Trial(CELL, seed=seed), {TOP1: error}) for seed, error in enumerate(errors))
    assert (numbers[AVERAGE], numbers[TOP1]) == (40.17, 40.17)


def test_cells_have_the_parameters_and_numbers_that_their_trials_have(store: Store, ledger: Ledger) -> None:
    trial = Trial(CELL)
    projection = MlflowRuns(store, ledger, PLACEMENT)
    finish(ledger, trial, 9.5)
    result = ledger.result(trial.key)
    assert result is not None
    ledger.commit(trial.key, result | {"metrics": result["metrics"] | {HELD_OUT: 11.0}})
    projection.sync_trial(trial, "RUNNING")
    projection.sync_cell(CELL, [trial])
    of_trial, of_cell = projection.client.get_run(projection.runs[trial.key]).data, cell_run(projection).data
    assert of_trial.params.keys() == of_cell.params.keys()
    assert {name for name in of_trial.metrics if name.startswith(("final/", "best/"))} <= of_cell.metrics.keys()
    assert (of_cell.metrics[TOP1], of_cell.metrics[HELD_OUT]) == (9.5, 11.0)
    assert {"phase", "seed", "sweep", "cell.key"} <= of_cell.tags.keys() & of_trial.tags.keys()
    assert (of_cell.params["cell"], of_trial.params["cell"]) == ("CReLU 1-4", "CReLU 1-4")


def searched(store: Store, ledger: Ledger) -> tuple[MlflowRuns, list[Trial]]:
    """Return the runs of a sweep that searches, and two trials of a search with a better value at the lower rate."""
    searching = dataclasses.replace(PLACEMENT, protocol=Protocol(search=Search(4)))
    tried = [Trial(CELL, "holdout", dropout=(("pool1", rate),)) for rate in (0.25, 0.5)]
    for trial in tried:
        finish(ledger, trial, 0.0)
        result = ledger.result(trial.key)
        assert result is not None
        ledger.commit(trial.key, result | {"metrics": {HELD_OUT: 100 * trial.dropout[0][1]}})
    return MlflowRuns(store, ledger, searching), tried


def test_a_cell_s_dropout_is_the_one_that_its_study_chose(store: Store, ledger: Ledger) -> None:
    projection, tried = searched(store, ledger)
    projection.sync_cell(CELL, tried)
    assert "dropout" not in cell_run(projection).data.params
    assert cell_run(projection).data.metrics == {}  # the study has suggested neither of the two, and has no winner
    for rate in (0.25, 0.5):  # the second time, the study has been made again
        projection.sync_cell(CELL, [*tried, Trial(CELL, dropout=(("pool1", rate),))])
        assert cell_run(projection).data.params["dropout"] == f"{100 * rate:g} % pool1"
    assert len([run for run in runs(projection) if "trial.key" not in run.data.tags]) == 1


CHOSEN = (("recipe.lr", 0.01), ("recipe.optimiser", "adam"), ("recipe.batch", 64), ("recipe.weight_decay", 0.5))
SPACE: Space = {
    "recipe.lr": Float(1e-3, 1, log=True),
    "recipe.optimiser": Choice("sgd", "adam"),
    "recipe.batch": Int(32, 128),
    "recipe.weight_decay": Float(0, 1),
}


def test_a_cell_s_recipe_is_the_one_that_its_search_chose(store: Store, ledger: Ledger) -> None:
    protocol = Protocol(search=Search(4, space=SPACE))
    projection = MlflowRuns(store, ledger, dataclasses.replace(PLACEMENT, protocol=protocol))
    other = (("recipe.lr", 0.02), *CHOSEN[1:])
    tried = [Trial(CELL, "holdout", choices=choices) for choices in (CHOSEN, other)]

    def shown(trials: Sequence[Trial]) -> dict[str, str]:
        projection.sync_cell(CELL, trials)
        params = cell_run(projection).data.params
        assert (params["epochs"], params["dropout"]) == (str(ALLCONV.epochs), "none")  # not searched: the cell's own
        return {name: params[name] for name in ("lr", "optimiser", "batch", "recipe.weight_decay") if name in params}

    of_adam = {"optimiser": "adam", "batch": "64", "recipe.weight_decay": "0.5"}
    assert shown(tried) == {}
    assert shown([*tried, *(Trial(CELL, seed=seed, choices=CHOSEN) for seed in range(2))]) == {"lr": "0.01"} | of_adam
    assert shown([*tried, Trial(CELL, choices=other)]) == {"lr": "0.02"} | of_adam  # the study has been made again
    assert shown([Trial(CELL, choices=CHOSEN), Trial(CELL, seed=1, choices=other)]) == of_adam
    assert shown(tried) == {}
    assert len([run for run in runs(projection) if "trial.key" not in run.data.tags]) == 1


def test_a_setting_that_a_search_alone_has_goes_while_it_is_made_again(store: Store, ledger: Ledger) -> None:
    protocol = Protocol(search=Search(4, space={"recipe.weight_decay": SPACE["recipe.weight_decay"]}))
    projection = MlflowRuns(store, ledger, dataclasses.replace(PLACEMENT, protocol=protocol))
    projection.sync_cell(CELL, [Trial(CELL, choices=(("recipe.weight_decay", 0.5),))])
    assert cell_run(projection).data.params["recipe.weight_decay"] == "0.5"
    projection.sync_cell(CELL, [])
    assert "recipe.weight_decay" not in cell_run(projection).data.params


def test_a_cell_of_a_search_alone_says_what_is_searched() -> None:
    own = params_of(Trial(CELL), "c")
    protocol = Protocol(ablation=False, search=Search(4, space=SPACE))
    params = params_of_cell(CELL, "c", protocol, [Trial(CELL, "holdout", choices=CHOSEN)])
    searched = {name for name, value in params.items() if value == "searched"}
    assert searched == {"lr", "optimiser", "batch", "recipe.weight_decay"}
    assert (params["dropout"], params["epochs"]) == (own["dropout"], own["epochs"])
    assert params_of_cell(CELL, "c", Protocol(ablation=False, search=Search(4)), [])["dropout"] == "searched"


def test_rates_that_were_tried_are_no_part_of_a_cell() -> None:
    tried = [(Trial(CELL, "holdout", rate=rate), {HELD_OUT: error}) for rate, error in ((0.05, 30.0), (0.01, 40.0))]
    chosen = (Trial(CELL, rate=0.01), {TOP1: 42.0})
    assert cell_metrics([*tried, chosen])[HELD_OUT] == 40.0
    protocol = Protocol(rates=RateStudy("*"))
    assert "lr" not in params_of_cell(CELL, "c", protocol, [trial for trial, _ in tried])
    assert params_of_cell(CELL, "c", protocol, [chosen[0]])["lr"] == 0.01
    assert params_of(tried[0][0], "c")["lr"] == 0.05


def test_the_hold_out_value_of_a_cell_without_a_search_is_a_mean() -> None:
    first_phases = [(Trial(CELL, "holdout", seed), {HELD_OUT: 17.0 + 2 * seed}) for seed in range(3)]
    assert cell_metrics(first_phases)[HELD_OUT] == 19.0
    second = (Trial(CELL, "match", 1000, match="train_loss", reference=first_phases[0][0].key), {TOP1: 12.0})
    assert cell_metrics([*first_phases, second])[HELD_OUT] == 19.0
    seeds = [(Trial(CELL, seed=seed), {TOP1: 12.0, HELD_OUT: 30.0 + seed}) for seed in range(3)]
    assert cell_metrics([*first_phases, *seeds])[HELD_OUT] == 31.0
    tried = [(Trial(CELL, "holdout", rate=rate), {HELD_OUT: 30.0}) for rate in (0.05, 0.01)]
    assert HELD_OUT not in cell_metrics(tried)  # none of them is chosen yet
    assert HELD_OUT not in cell_metrics(first_phases, winner=())
    assert cell_metrics(first_phases, winner=[first_phases[2][0].key])[HELD_OUT] == 21.0
    assert cell_metrics(tried, winner=[tried[1][0].key])[HELD_OUT] == 30.0


def held_out_numbers(
    store: Store, ledger: Ledger, protocol: Protocol, value: Callable[[float], Made], name: str = "lr"
) -> list[float]:
    """Return the hold-out values of a searched cell on its run as trained, on its page, and in the report."""
    sweep = dataclasses.replace(PLACEMENT, cells=(CELL,), protocol=protocol)
    make(ledger, sweep, lambda trial: value(float(dict(trial.choices).get(f"recipe.{name}", 0))))
    projection = MlflowRuns(store, ledger, sweep)
    projection.sync_cell(CELL, [status.trial for status in current_plan(ledger, sweep.title).statuses])
    results = read_sweep(ledger, sweep.title)
    (page,) = pages(results, "1", {CELL.key: "run"}, "run").values()
    numbers = [cell_run(projection).data.metrics, page.metrics]
    return [*(of_view[HELD_OUT] for of_view in numbers), number(results.cells[0], HELD_OUT).average.mean]


def test_a_trial_beyond_a_limit_of_its_search_gives_its_cell_no_hold_out_value(store: Store, ledger: Ledger) -> None:
    rates = {"recipe.lr": Choice(0.1, 0.2, 0.3, 0.4)}
    search = Search(4, sampler="grid", prune=False, space=rates, limits={"seconds": 250})
    protocol = Protocol(ablation=False, search=search)
    numbers = held_out_numbers(
        store, ledger, protocol, lambda lr: Made({}, curve=[50.0, 50 - 100 * lr], seconds=1000 * lr)
    )
    assert numbers == pytest.approx([30.0] * 3)  # 40 % within the limit would be worse, 10 % is beyond it


def test_the_hold_out_value_of_a_search_over_folds_is_the_mean_of_its_winner(store: Store, ledger: Ledger) -> None:
    search = Search(2, sampler="grid", prune=False, folds=3, space={"recipe.lr": Choice(0.1, 0.2)})
    protocol = Protocol(ablation=False, search=search)
    numbers = held_out_numbers(store, ledger, protocol, lambda lr: Made({HELD_OUT: 100 * lr}, curve=[]))
    assert numbers == pytest.approx([10.0] * 3)


def test_the_hold_out_value_of_a_search_at_a_rate_that_was_chosen_is_its_winners(store: Store, ledger: Ledger) -> None:
    search = Search(2, sampler="grid", prune=False, space={"recipe.weight_decay": Choice(0.1, 0.2)})
    protocol = Protocol(ablation=False, search=search, rates=RateStudy("*", (0.07, 0.03)))
    # The trainings of the study of the rate have no weight decay that was searched, and a better value.
    numbers = held_out_numbers(
        store, ledger, protocol, lambda decay: Made({}, curve=[50.0, 5 + 100 * decay]), "weight_decay"
    )
    assert numbers == pytest.approx([15.0] * 3)


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_a_search_that_trains_nothing_chooses_no_hold_out_value(store: Store, ledger: Ledger, status: str) -> None:
    limits = {"seconds": 1} if status == "finished" else {}
    search = Search(4, sampler="grid", prune=False, space={"recipe.lr": Choice(0.1, 0.2)}, limits=limits)
    sweep = dataclasses.replace(PLACEMENT, cells=(CELL,), protocol=Protocol(ablation=False, search=search))
    make(ledger, sweep, lambda _: Made({}, curve=[50.0, 40.0], seconds=1000, status=status))
    projection = MlflowRuns(store, ledger, sweep)
    projection.sync_cell(CELL, [status.trial for status in current_plan(ledger, sweep.title).statuses])
    assert HELD_OUT not in cell_run(projection).data.metrics
    if limits:
        (page,) = pages(read_sweep(ledger, sweep.title), "1", {CELL.key: "run"}, "run").values()
        assert HELD_OUT not in page.metrics


def test_a_cell_whose_last_trial_failed_is_failed(store: Store, ledger: Ledger) -> None:
    trials = [Trial(CELL, seed=seed) for seed in range(2)]
    projection = MlflowRuns(store, ledger, PLACEMENT)
    finish(ledger, trials[0], 40.0)
    projection.sync_cell(CELL, trials)
    assert cell_run(projection).info.status == "RUNNING"
    ledger.add_attempt(trials[1].key, {"error": "ValueError: no", "final": True})
    projection.sync_cell(CELL, trials)
    assert cell_run(projection).info.status == "FAILED"


def test_a_cell_is_finished_where_its_search_has_paused_the_others_for_good(store: Store, ledger: Ledger) -> None:
    projection, tried = searched(store, ledger)
    waiting = Trial(CELL, "holdout", dropout=(("pool1", 0.75),))
    projection.sync_cell(CELL, [*tried, waiting])
    assert cell_run(projection).info.status == "RUNNING"
    projection.sync_cell(CELL, [*tried, waiting], paused=[waiting.key])
    assert cell_run(projection).info.status == "FINISHED"


def test_a_cell_s_dropout_goes_while_its_study_is_made_again(store: Store, ledger: Ledger) -> None:
    projection, tried = searched(store, ledger)
    projection.sync_cell(CELL, [*tried, Trial(CELL, dropout=(("pool1", 0.25),))])
    projection.sync_cell(CELL, tried)
    assert "dropout" not in cell_run(projection).data.params


def test_a_copied_output_has_runs_of_its_own(store: Store, tmp_path: Path) -> None:
    trial = Trial(CELL)
    original = Ledger(str(tmp_path / "one" / "ledger"))
    train(MlflowRuns(store, original, PLACEMENT), [trial], (40.0,))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copied = Ledger(str(tmp_path / "two" / "ledger"))
    copied.forget(trial.key)
    train(MlflowRuns(store, copied, PLACEMENT), [trial], (50.0,), restarts=1)
    for ledger, error in ((original, 40.0), (copied, 50.0)):
        projection = MlflowRuns(store, Ledger(ledger.root), PLACEMENT)
        assert cell_run(projection).data.metrics[AVERAGE] == error
    assert len(runs(projection)) == 4
