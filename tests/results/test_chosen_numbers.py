"""A difference over as many seeds as the questions chose has no test that takes their number for fixed, in any view."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.experiment.metrics import AVERAGE, TOP1, Metric
from sweeps.experiment.questions.question import Question
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report.charts import effect_gallery
from sweeps.report.effect_tables import effect_table, effects_of
from sweeps.report.factor_tables import factor_parts
from sweeps.report.loaded import load
from sweeps.report.render.chart import Forest
from sweeps.report.render.document import NONE, Table
from sweeps.report.tidy import tidy
from sweeps.results import capsule
from sweeps.results.cell_numbers import groups
from sweeps.results.contrasts import effects
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.statistics import holm
from sweeps.store.ledger import Ledger
from tests.support.questions import MEANS, QUESTIONS, A, B, C, D, error_of
from tests.support.sweeps import Made, make

CHOSEN = "the number of seeds was chosen by the questions"
NOTE = f"No p and no interval where {CHOSEN}; their decisions and intervals stand under Questions."
TESTS = ("low", "high", "t", "p", "p_holm", "p_uncorrected", "p_wilcoxon")
SWEEP = Sweep("s", "paper", (A, B, C, D), Protocol(seeds=4, until=12), questions=QUESTIONS)
CLOSE = (Question("A beats C", "A", "C", margin=0.001),)  # which 12 seeds leave open


def outcome(trial: Trial) -> Made:
    return Made({TOP1: error_of(trial)}, curve=[40.0])


def near(trial: Trial) -> float:
    """Return the mean of a trial's cell, and a little that its seed decides."""
    label = trial.cell.label
    return MEANS[label] + 0.02 * (trial.seed * (1 + "ABCD".index(label)) % 5)


def trained(folder: Path, sweep: Sweep, outcome: Callable[[Trial], Made | None] = outcome) -> SweepResults:
    ledger = Ledger.in_output(str(folder))
    make(ledger, sweep, outcome)
    return read_sweep(ledger, sweep.title)


def test_number_of_seeds_that_questions_chose_leaves_a_difference_without_a_test(tmp_path: Path) -> None:
    results = trained(tmp_path, SWEEP)
    ((group, shown),) = effects_of(groups(results))
    assert [effect.row.label for effect in shown] == ["B", "C", "D"]
    assert all(3 < effect.contrast.n < 12 for effect in shown)
    lines = tidy(results)["effects"]
    # No question asks for D, so that it has the declared seeds, and its difference a test.
    assert [line["withheld"] for line in lines] == [CHOSEN, CHOSEN, ""]
    assert [[math.isfinite(line[name]) for name in TESTS] for line in lines] == [[False] * 7, [False] * 7, [True] * 7]
    assert [line["difference"] for line in lines] == [effect.contrast.difference for effect in shown]
    assert [line["n"] for line in lines] == [effect.contrast.n for effect in shown]
    assert lines[2]["p_holm"] == holm([effect.contrast.p for effect in shown])[2]
    table = effect_table(group, shown)
    columns = {name: [row[place].text for row in table.rows] for place, name in enumerate(table.columns)}
    for name in ("95 % interval", "t", "p (Holm)"):
        assert [text == NONE for text in columns[name]] == [True, True, False], name
    assert "Wilcoxon p" not in columns  # of four pairs there is none
    assert NONE not in columns["difference"]
    assert columns["over"] == [f"{effect.contrast.n} seeds" for effect in shown]
    assert table.notes == (
        "Each row less A. Over seeds: paired.",
        "p adjusted after Holm over the 3 tests of this table, those without p among them.",
        "No Wilcoxon p of fewer than 6 pairs: it cannot be below .05.",
        NOTE,
    )


def test_chart_draws_such_a_difference_hollow_and_without_an_interval(tmp_path: Path) -> None:
    ((group, shown),) = effects_of(groups(trained(tmp_path, SWEEP)))
    gallery = effect_gallery(group, shown)
    (figure,) = gallery.figures
    assert isinstance(figure.content, Forest)
    assert [point.kind for point in figure.content.points] == ["open", "open", "ours"]
    assert [math.isfinite(point.interval.low) for point in figure.content.points] == [False, False, True]
    assert "[" not in figure.content.points[0].tip
    assert gallery.caption.endswith(f"filled: p < .05 after Holm. {NOTE}")
    assert effect_gallery(group, shown[:2]).caption == f"Points of error less A. {NOTE}"
    assert effect_gallery(group, shown[2:]).caption.endswith("filled: p < .05 after Holm.")


def test_table_of_such_differences_alone_speaks_of_no_test(tmp_path: Path) -> None:
    sweep = dataclasses.replace(SWEEP, cells=SWEEP.cells[:3])
    ((group, shown),) = effects_of(groups(trained(tmp_path, sweep)))
    table = effect_table(group, shown)
    assert table.columns == ("", "", "difference", "over")
    assert table.notes == ("Each row less A. Over seeds: paired.", NOTE)


def test_largest_number_of_seeds_was_not_chosen(tmp_path: Path) -> None:
    sweep = Sweep("s", "paper", (A, C), Protocol(until=12), questions=CLOSE)
    results = trained(tmp_path, sweep, lambda trial: Made({TOP1: near(trial)}))
    (line,) = tidy(results)["effects"]
    assert (line["n"], line["withheld"]) == (12, "")
    assert all(math.isfinite(line[name]) for name in TESTS)


def test_seeds_that_are_declared_were_not_chosen(tmp_path: Path) -> None:
    results = trained(tmp_path, dataclasses.replace(SWEEP, protocol=Protocol(seeds=4)))
    assert {line["withheld"] for line in tidy(results)["effects"]} == {""}
    assert (
        effect_table(*effects_of(groups(results))[0]).notes[-2].startswith("p adjusted after Holm over the 3 tests of")
    )


def test_one_training_each_has_no_test_that_could_be_withheld(tmp_path: Path) -> None:
    results = trained(tmp_path, SWEEP, lambda trial: outcome(trial) if trial.seed == 0 else None)
    assert {(line["over"], line["withheld"]) for line in tidy(results)["effects"]} == {("one training", "")}


def test_folds_are_chosen_and_the_seeds_beside_them_are_not(tmp_path: Path) -> None:
    protocol = Protocol(seeds=2, folds=10, until=10)
    results = trained(tmp_path, Sweep("s", "paper", (A, B), protocol, questions=QUESTIONS[:1]))
    withheld = {line["metric"]: line["withheld"] for line in tidy(results)["effects"]}
    assert withheld[AVERAGE] == CHOSEN.replace("seeds", "folds")
    assert withheld[TOP1] == ""


def test_difference_of_an_own_metric_is_neither_better_nor_open(tmp_path: Path) -> None:
    metric = Metric("test/f1", "higher")
    cells = tuple(dataclasses.replace(cell, metric=metric, task="page:train") for cell in SWEEP.cells)
    questions = tuple(dataclasses.replace(question, better="higher", margin=0.005) for question in QUESTIONS)
    sweep = dataclasses.replace(SWEEP, cells=cells, questions=questions)
    results = trained(tmp_path, sweep, lambda trial: Made({metric.final: 0.9 - near(trial) / 100}, curve=[]))
    ((group, shown),) = effects_of(groups(results))
    table = effect_table(group, shown)
    assert [row[-1].text for row in table.rows] == ["see Questions", "see Questions", "worse"]
    assert any("Better or worse where" in note for note in table.notes)
    assert not any("Better or worse where" in note for note in effect_table(group, shown[:2]).notes)


def test_effects_of_factors_are_withheld_alike(tmp_path: Path) -> None:
    cells = tuple(
        dataclasses.replace(cell, factors=(("width", level),))
        for cell, level in zip((A, B, D), (1.0, 2.0, 3.0), strict=True)
    )
    results = trained(tmp_path, Sweep("s", "paper", cells, Protocol(seeds=4, until=12), questions=QUESTIONS[:1]))
    lines = tidy(results)["factors"]
    assert [line["withheld"] for line in lines] == [CHOSEN, ""]
    assert [math.isfinite(line["p_holm"]) for line in lines] == [False, True]
    assert all(math.isfinite(line["difference"]) for line in lines)
    (table,) = (part for part in factor_parts(groups(results)) if isinstance(part, Table))
    columns = {name: [row[place].text for row in table.rows] for place, name in enumerate(table.columns)}
    for name in ("95 % interval", "t", "p (Holm)"):
        assert [text == NONE for text in columns[name]] == [True, False], name
    assert "p adjusted after Holm over the 2 tests of this table, those without p among them." in table.notes
    assert NOTE in table.notes


@pytest.mark.parametrize(("versus", "withheld"), [("", ["B", "C"]), ("B", ["A", "C"])])
def test_data_frame_of_effects_has_no_test_of_them_either(tmp_path: Path, versus: str, withheld: list[str]) -> None:
    trained(tmp_path, SWEEP)
    frame = load(tmp_path)["s"].effects(versus)
    assert list(frame[frame["p_holm"].isna()]["row"]) == withheld


def test_capsule_withholds_the_same_tests(tmp_path: Path) -> None:
    results = trained(tmp_path, SWEEP)
    capsule.write(Ledger.in_output(str(tmp_path)), results, {}, tmp_path / "s.zip")
    with capsule.opened(tmp_path / "s.zip") as copy:
        lines = tidy(read_sweep(copy, "s"))["effects"]
    assert [line["withheld"] for line in lines] == [CHOSEN, CHOSEN, ""]
    assert len(effects(groups(results)[0])) == 3
