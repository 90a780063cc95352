"""A page's own metric and training function as values: names, order, keys, what a search makes of them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from crelu_models import S2
from sweeps.experiment.code_fingerprint import cell_fingerprint, code_fingerprint
from sweeps.experiment.metrics import AVERAGE, HELD_OUT, LONGEST, TOP1, Metric, averages, error_text, flags_of
from sweeps.experiment.rates import RateStudy, choose
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search
from sweeps.experiment.study import percentile_thresholds, study
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.task_source import check_task
from sweeps.experiment.trial import Cell, Trial, cell_from_json, cell_to_json
from sweeps.results.marks import explanation
from sweeps.tracking.layout import METRICS, cell_metrics, columns, experiment_tags
from tests.support.trials import trial_of

F1 = Metric("test/f1", better="higher")
TASK = "tests.support.own_tasks:scores"


def task_cell(label: str = "wide", metric: Metric = F1) -> Cell:
    return Cell(label, S2, "cifar10", ALLCONV, task=TASK, metric=metric)


def test_names_follow_from_the_metrics() -> None:
    assert (F1.final, F1.mean, F1.row, F1.held_out) == ("final/test_f1", "agg/test_f1_mean", "val/f1", "best/val_f1")
    assert (Metric().final, Metric().mean, Metric().held_out) == (TOP1, AVERAGE, HELD_OUT)
    assert Metric("val/loss").final == "final/val_loss"
    assert F1.note == "test f1: higher is better"


def test_better_decides_the_order() -> None:
    assert F1.best([0.1, 0.3, 0.2]) == 0.3
    assert Metric("test/loss").best([0.1, 0.3, 0.2]) == 0.1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.83127, "0.8313"), (83.127, "83.13"), (0.00123467, "0.001235"), (3.1e-7, "0.0000003100"),
     (1234.5, "1234.50"), (0, "0.000"), (-0.0, "0.000")],
)  # fmt: skip
def test_values_have_four_digits(value: float, text: str) -> None:
    assert F1.text(value) == text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("f1", "higher"), "a metric is called test/NAME or val/NAME, such as test/f1, not 'f1'"),
     (("train/f1", "higher"), "not 'train/f1'"),
     ((f"test/{'f' * 201}", "higher"), "NAME has at most 200 of A-Z, a-z, 0-9, and of _ . and -"),
     (("test/f1", "more"), "of a metric lower or higher is better, not 'more'"),
     (("test/f1", "higher", float("nan")), "the chance of a metric is a finite number")],
)  # fmt: skip
def test_metric_that_cannot_be_is_refused(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Metric(*arguments)  # type: ignore[arg-type]


def test_longest_metric_has_names_that_mlflow_takes() -> None:
    metric = Metric(f"test/{'f' * LONGEST}", "higher")
    assert max(len(name) for name in (*columns(metric), *experiment_tags(metric))) <= 250


def test_cell_with_a_task_is_another_cell_and_one_without_is_what_it_was() -> None:
    plain = Cell("wide", S2, "cifar10", ALLCONV)
    assert "task" not in Trial(plain).science()
    assert "task" not in cell_to_json(plain)
    cells = [
        plain,
        task_cell(),
        task_cell(metric=Metric("test/f1")),
        dataclasses.replace(task_cell(), task="other:scores"),
    ]
    assert len({cell.key for cell in cells}) == len({Trial(cell).key for cell in cells}) == 4
    for cell in cells:
        assert cell_from_json(cell_to_json(cell)) == cell


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"task": "train"}, "task of 'wide' is 'module:function', not 'train'"),
     ({"table": "4"}, "has a task, so it is no row of the paper's Table 4"),
     ({"task": ""}, "compared by test/f1, which a training function returns: name yours")],
)  # fmt: skip
def test_cell_that_cannot_be_is_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(task_cell(), **changes)


def test_cells_of_a_page_have_one_metric_and_no_task_has_second_phases() -> None:
    with pytest.raises(ValueError, match="'a' is compared by test/f1 and 'b' by test/loss"):
        Sweep("page", "paper", (task_cell("a"), task_cell("b", Metric("test/loss"))))
    with pytest.raises(ValueError, match="trains to a loss that only our own loop measures"):
        Sweep("page", "paper", (task_cell(),), Protocol(single=True))


def test_rate_of_the_highest_value_is_chosen() -> None:
    study = RateStudy("wide", (0.1, 0.2, 0.4))
    values = dict(zip([trial.key for trial in study.trials(task_cell())], (0.5, 0.9, 0.7), strict=True))
    results = {key: {"metrics": {"best/val_f1": value}, "status": "finished"} for key, value in values.items()}
    assert choose(study, task_cell(), results, ()).rate == 0.2


def test_search_takes_the_highest_value_of_the_metric() -> None:
    declared = Search(6, sampler="random", wave=3)
    search = Sweep("page", "paper", (task_cell(),), Protocol(search=declared)).protocol.search
    assert search is not None
    results: dict[str, Any] = {}
    for value in (0.2, 0.9, 0.4, 0.3, 0.8, 0.1):
        (trial, *_) = [
            s.trial for s in study(search, task_cell(), results, ()).suggestions if s.trial.key not in results
        ]
        results[trial.key] = {"metrics": {"best/val_f1": value}, "status": "finished", "curve": [value] * 5}
    winner = study(search, task_cell(), results, ()).winner
    assert winner is not None
    assert winner.value == 0.9


def test_trials_with_a_value_below_the_best_third_are_pruned() -> None:
    curves = [[value] * 5 for value in (0.1, 0.4, 0.2, 0.3)]
    results = [{"status": "finished", "curve": curve} for curve in curves]
    assert percentile_thresholds(results, F1) == (-1e300, -1e300, -1e300, 0.3, 0.3)
    assert percentile_thresholds(results, Metric("test/loss")) == (1e300, 1e300, 1e300, 0.2, 0.2)
    assert percentile_thresholds(results) == (1000.0, 1000.0, 1000.0, 0.2, 0.2)


def test_thresholds_of_small_values_keep_their_digits() -> None:
    mse = Metric("test/mse")
    small = [{"status": "finished", "curve": [value] * 4} for value in (3.1e-7, 3.2e-7, 3.3e-7, 3.4e-7)]
    assert percentile_thresholds(small, mse)[-1] == 3.2e-7
    # Larger ones, and errors in percent, have the decimals by which their trials are known.
    large = [{"status": "finished", "curve": [0.123456789] * 4}] * 4
    percent = [{"status": "finished", "curve": [0.0123456789] * 4}] * 4
    assert percentile_thresholds(large, mse)[-1] == 0.123457
    assert percentile_thresholds(percent)[-1] == 0.012346


def test_numbers_of_a_cell_are_those_of_its_metric() -> None:
    tested = [("ablation", {"final/test_f1": value, "final/test_recall": 1.0}) for value in (0.25, 0.75)]
    assert averages(tested, F1) == {
        "agg/test_f1_mean": 0.5, "agg/test_f1_n": 2.0, "agg/test_f1_se": pytest.approx(0.25)
    }  # fmt: skip
    assert error_text(tested, F1) == "0.5000 ± 0.2500 (n 2)"
    assert error_text([("ablation", {"final/test_f1": -0.0})], F1) == "0.000"
    folds = [("fold", {"final/test_f1": 0.25})]
    assert error_text([*tested, *folds], F1) == "single 0.5000 ± 0.2500 (n 2), folds 0.2500"


def test_only_a_training_that_was_resumed_is_marked() -> None:
    result = {"restarts": 0, "status": "finished", "resume": "approximate"}
    assert flags_of(result | {"resumed": 2}) == ["resume=approximate"]
    assert flags_of(result | {"resumed": 0}) == []


def test_marks_say_what_a_lost_training_counts_as() -> None:
    assert "n leaves it out" in explanation("d", F1)
    assert "it counts with 0.1" in explanation("d", dataclasses.replace(F1, chance=0.1))
    assert "got better in the last fifth" in explanation("u", F1)
    assert "error of chance" in explanation("d")


def test_mark_of_a_resumed_function_says_what_it_does_not_say() -> None:
    assert explanation("a", F1).startswith("a training was resumed from a checkpoint, with another device")
    assert "run.exact()" in explanation("a", F1)
    # Of a function that is compared by the error, in a table beside our own trainings.
    assert "run.exact()" in explanation("a")
    assert "no key decides" in explanation("a")


def test_mlflow_shows_the_columns_of_the_metric() -> None:
    assert columns(Metric()) == METRICS
    assert not any("err" in name or "paper" in name for name in columns(F1))
    assert experiment_tags()["mlflow.experiment.primaryMetric.greaterIsBetter"] == "False"
    assert experiment_tags(F1)["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"


def test_small_values_keep_their_digits_in_mlflow() -> None:
    metric = Metric("test/mse")
    values = {seed: {metric.final: value} for seed, value in enumerate((3e-11, 5e-11))}
    numbers = cell_metrics((Trial(task_cell(metric=metric), seed=seed), metrics) for seed, metrics in values.items())
    assert (numbers[metric.mean], numbers[metric.final]) == (4e-11, 4e-11)


PAGE = """from helper import step

CELLS = [1, 2]

def train(trial, data, run):
    return step(run)

if __name__ == "__main__":
    main(CELLS)
"""


def test_an_edit_of_the_function_makes_results_stale_and_one_of_the_cells_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_page.py").write_text(PAGE)
    (tmp_path / "helper.py").write_text("def step(run):\n    return 1\n")
    cell = dataclasses.replace(task_cell(), task="my_page:train")
    first = cell_fingerprint(cell)
    (tmp_path / "my_page.py").write_text(PAGE.replace("[1, 2]", "[1, 2, 3]").replace("main(", "main(metric=1, *"))
    assert cell_fingerprint(cell) == first
    (tmp_path / "helper.py").write_text("def step(run):\n    return 25\n")
    assert cell_fingerprint(cell) != first
    assert cell_fingerprint(dataclasses.replace(cell, task="not_there:train")) == ""
    plain = trial_of("All-CNN-B").cell
    assert cell_fingerprint(plain) == code_fingerprint(plain.net)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [("not_there:train", "there is no module 'not_there' beside the page"),
     ("my_page:trian", "my_page.py has no 'trian'"),
     ("bad_page:train", "bad_page.py, which calls main in line 3; put that under if __name__"),
     ("no_python:train", "no_python.py is no Python code")],
)  # fmt: skip
def test_task_that_is_not_there_is_said(
    task: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_page.py").write_text(PAGE)
    (tmp_path / "bad_page.py").write_text("def train(): ...\n\nmain('bad_page')\n")
    (tmp_path / "no_python.py").write_text("def train(:\n")
    check_task("my_page:train")
    with pytest.raises(ValueError, match=sentence):
        check_task(task)
