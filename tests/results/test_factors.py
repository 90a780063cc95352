"""Main effects and interactions: the paired differences they stand for, what is withheld, and the size of the test."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from crelu_models.tables import S2
from sweeps import full_grid, grid
from sweeps.experiment.metrics import AVERAGE, PERCENT, TOP1, Metric
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Level, Trial
from sweeps.report.build import make as make_report
from sweeps.report.factor_tables import factor_parts, text_lines
from sweeps.report.render.chart import Interaction
from sweeps.report.render.document import NONE, Gallery, Table
from sweeps.report.tidy import tidy
from sweeps.results import factors, statistics
from sweeps.results.cell_numbers import groups
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.factors import (
    Combination,
    Grid,
    factor_effects,
    grids,
    interaction_means,
    paired_contrast,
    targets,
    varying,
    weights,
)
from sweeps.results.statistics import holm
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, make, unsearched

ACTS, NETS = ("relu", "crelu", "avr"), ("S2", "wide")
FULL: list[Combination] = [{"act": a, "net": n} for a, n in itertools.product(ACTS, NETS)]
# The grid of the documentation: avr and relu at full width alone.
PARTIAL: list[Combination] = [
    {"net": n, "act": a, "width": w}
    for n, a, w in itertools.product(NETS, ("relu", "crelu", "avr"), (1.0, 0.5))
    if a == "crelu" or w == 1.0
]


def of(combinations: Sequence[Combination], **levels: Level) -> np.ndarray:  # type: ignore[type-arg]
    """Return the mean over the cells with these levels, as weights."""
    chosen = np.array([all(cell[name] == level for name, level in levels.items()) for cell in combinations])
    return chosen / chosen.sum()


def test_in_a_full_grid_an_effect_is_a_difference_of_means() -> None:
    main = weights(FULL, {"act": ("crelu", "relu")})
    np.testing.assert_allclose(main, of(FULL, act="crelu") - of(FULL, act="relu"), atol=1e-12)
    interaction = weights(FULL, {"act": ("avr", "relu"), "net": ("wide", "S2")})
    wide = of(FULL, act="avr", net="wide") - of(FULL, act="relu", net="wide")
    small = of(FULL, act="avr", net="S2") - of(FULL, act="relu", net="S2")
    np.testing.assert_allclose(interaction, wide - small, atol=1e-12)


def test_in_an_incomplete_grid_only_cells_that_differ_in_the_factor_alone_are_compared() -> None:
    at_full = of(PARTIAL, act="crelu", width=1.0) - of(PARTIAL, act="relu")
    np.testing.assert_allclose(weights(PARTIAL, {"act": ("crelu", "relu")}), at_full, atol=1e-12)
    half = of(PARTIAL, width=0.5) - of(PARTIAL, act="crelu", width=1.0)
    np.testing.assert_allclose(weights(PARTIAL, {"width": (0.5, 1.0)}), half, atol=1e-12)
    assert weights(PARTIAL, {"act": ("crelu", "relu"), "width": (0.5, 1.0)}) is None
    assert weights(PARTIAL, {"net": ("wide", "S2"), "width": (0.5, 1.0)}) is not None
    # Two cells that differ in both factors determine neither.
    crossed: list[Combination] = [{"act": "relu", "net": "S2"}, {"act": "crelu", "net": "wide"}]
    assert weights(crossed, {"act": ("crelu", "relu")}) is None


def test_cells_of_a_third_level_have_no_part_in_an_effect() -> None:
    """An interaction of relu and crelu with the width would else be an effect of avr, which has full width alone."""
    three: list[Combination] = [
        {"act": act, "width": width} for act, width in itertools.product(ACTS, (1, 2)) if (act, width) != ("avr", 2)
    ]
    at_full = of(three, act="avr") - of(three, act="relu", width=1)
    np.testing.assert_array_equal(weights(three, {"act": ("avr", "relu")}), at_full)
    both = of(three, act="crelu") - of(three, act="relu")
    np.testing.assert_array_equal(weights(three, {"act": ("crelu", "relu")}), both)
    # Nor have three cells of an interaction's four, nor a chain of cells over further settings.
    assert weights(three, {"act": ("avr", "relu"), "width": (2, 1)}) is None
    chain: list[Combination] = [{"a": 0, "b": "x"}, {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "y"}]
    assert weights(chain, {"a": (2, 0)}) is None


def test_an_effect_of_two_levels_is_tested_as_scipy_tests_pairs() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 6))
    ours, theirs = paired_contrast(TOP1, (second - first).tolist()), stats.ttest_rel(second, first)
    assert (ours.p, ours.t, ours.n) == (pytest.approx(theirs.pvalue), pytest.approx(theirs.statistic), 6)
    interval = theirs.confidence_interval(0.95)
    assert (ours.interval.low, ours.interval.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_an_effect_over_folds_is_corrected_as_a_difference_is() -> None:
    first, second = np.random.default_rng(4).normal(size=(2, 10))
    expected = statistics.paired(second, first, 0.1)
    ours = paired_contrast(AVERAGE, (second - first).tolist(), folds=10)
    assert (ours.basis, ours.unit, ours.p) == ("folds", "fold", pytest.approx(expected.corrected.p))
    assert ours.plain_p == pytest.approx(expected.plain.p) != ours.p


def test_without_an_effect_five_percent_are_rejected_also_where_spreads_differ() -> None:
    rng = np.random.default_rng(2)
    sweeps, seeds = 4000, 4
    spreads = rng.choice([0.1, 1.0, 3.0], len(PARTIAL))  # of a cell's trainings, besides what a seed has in all cells
    known = [weight for target in targets(varying(PARTIAL)) if (weight := weights(PARTIAL, target)) is not None]
    assert len(known) == 7
    errors = rng.normal(0, 2, (sweeps, 1, seeds)) + spreads[:, None] * rng.normal(size=(sweeps, len(PARTIAL), seeds))
    p = np.stack([stats.ttest_1samp(np.einsum("c,ics->is", weight, errors), 0, axis=1).pvalue for weight in known], 1)
    se = np.sqrt(0.05 * 0.95 / sweeps)
    assert (holm(p) < 0.05).any(1).mean() <= 0.05 + 2 * se
    assert ((p < 0.05).mean(0) <= 0.05 + 2.5 * se).all()  # seven tests: their largest share is above that of one
    assert ((p < 0.05).mean(0) >= 0.05 - 2.5 * se).all()


def made_sweep(ledger: Ledger, seeds: int = 4, missing: str = "", missing_seeds: range = range(9)) -> None:
    """Finish a sweep of three activations by two widths; relu and avr have full width alone."""
    rng = np.random.default_rng(3)
    noise = {seed: rng.normal(0, 1) for seed in range(seeds)}

    def outcome(trial: Trial) -> Made | None:
        levels = dict(trial.cell.factors)
        if trial.cell.label == missing and trial.seed in missing_seeds:
            return None
        effect = {"relu": 0.0, "crelu": -2.0, "avr": 1.0}[str(levels["act"])] + (levels["width"] == 0.5)
        error = 20 + noise[trial.seed] + effect + 0.1 * rng.normal()
        return Made({TOP1: error, "final/test_top5_err": 1.0, "final/test_loss": 1.0})

    cells = grid(
        lambda act, width: Cell(f"{act} x{width:g}", S2.activation(act, 1).width(width), "cifar100", ALLCONV),
        act=ACTS,
        width=(1.0, 0.5),
        where=lambda act, width: act == "crelu" or width == 1.0,
    )
    make(ledger, unsearched("acts", cells, Protocol(seeds=seeds)), outcome)


def test_report_has_the_effects_of_a_grid_and_names_what_is_withheld(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    made_sweep(ledger)
    results = read_sweep(ledger, "acts")
    (design,) = grids(groups(results))
    assert dict(design.levels) == {"act": ACTS, "width": (1.0, 0.5)}
    effects = {(e.contrast.metric, e.name, e.level): e for e in factor_effects(design)}
    crelu = effects[TOP1, "act", "crelu"]
    assert (crelu.contrast.basis, crelu.contrast.n, crelu.cells) == ("seeds", 4, 2)
    assert crelu.contrast.difference == pytest.approx(-2, abs=0.3)
    assert crelu.contrast.p < crelu.p < 0.05  # Holm counts the others
    assert len(crelu.contrast.runs) == 8
    assert effects["final/test_top5_err", "act", "crelu"].contrast.p == 1  # the same in all cells and seeds
    assert effects[TOP1, "width", "0.5"].contrast.difference == pytest.approx(1, abs=0.3)
    assert effects[TOP1, "act × width", "crelu, 0.5"].why
    _, report, page, _ = make_report(ledger, "acts", tmp_path / "reports", "")
    table = report.tables["factors"]
    assert [row[0].text for row in table.rows[:3]] == ["act", "act", "width"]
    why = "no setting of the other factors has all of its cells"
    assert [note for note in table.notes if "withheld" in note] == [f"act × width: some are withheld, {why}."]
    assert "Parallel lines" in page.read_text()
    assert (page.parent / "factors.csv").read_text().count("\n") == 1 + len(effects)


RATES = {"allconv": 0.05, "sgd": 0.1, "adam": 0.001}  # a name alone makes no other recipe
LEVELS = {"act": ("relu", "crelu"), "width": (1.0, 0.5)}


def cell(prefix: str, act: str, width: float, dataset: str = "cifar10", recipe: str = "allconv") -> Cell:
    net = S2.activation(act, 1).width(width)
    return Cell(f"{prefix} {act} x{width:g}", net, dataset, dataclasses.replace(ALLCONV, name=recipe, lr=RATES[recipe]))


def of_cells(
    folder: Path, cells: tuple[Cell, ...], *missing: str, metric: Metric = PERCENT, scale: float = 1e-3
) -> SweepResults:
    """Return a sweep of three seeds: crelu is 2 better, half width 1 worse, pictures of CIFAR-100 20 worse."""
    ledger = Ledger(str(folder))

    def outcome(trial: Trial) -> Made | None:
        levels = dict(trial.cell.factors)
        base = 20.0 + 20 * (trial.cell.dataset == "cifar100") + 0.1 * trial.seed
        noise = 0.01 * trial.seed**2 * (1 + (levels["act"] == "crelu"))
        value = base - 2 * (levels["act"] == "crelu") + (levels["width"] == 0.5) + noise
        value = value * scale if metric.is_own else value
        return None if trial.cell.label in missing else Made({metric.final: value})

    task = "page:train" if metric.is_own else ""
    declared = tuple(dataclasses.replace(cell, metric=metric, task=task) for cell in cells)
    make(ledger, Sweep("s", "paper", declared, Protocol(seeds=3)), outcome)
    return read_sweep(ledger, "s")


@pytest.mark.parametrize("named", [False, True])
def test_cells_of_different_pictures_are_never_compared(named: bool, tmp_path: Path) -> None:
    """Also where the page names the data set as a factor."""
    cells = tuple(
        made
        for dataset in ("cifar10", "cifar100")
        for made in grid(lambda act, width, dataset=dataset: cell(dataset, act, width, dataset), **LEVELS)
    )
    if named:
        cells = tuple(dataclasses.replace(made, factors=(("data", made.dataset), *made.factors)) for made in cells)
    some = of_cells(tmp_path / "some", cells, "cifar100 crelu x1", "cifar100 crelu x0.5")
    first, second = grids(groups(some))
    assert [(part.dataset, part.words) for part in (first, second)] == [
        ("cifar10", "CIFAR-10"),
        ("cifar100", "CIFAR-100"),
    ]
    assert [dict(part.levels) for part in (first, second)] == [LEVELS, LEVELS]
    assert [effect.name for effect in factor_effects(second) if not effect.why] == ["width"]
    assert second.left_out(TOP1) == ("cifar100 crelu x1", "cifar100 crelu x0.5")
    crelu = factor_effects(first)[0]
    assert (crelu.level, crelu.cells, crelu.contrast.difference) == ("crelu", 4, pytest.approx(-2, abs=0.1))
    whole = of_cells(tmp_path / "whole", cells)
    titles = [part.title for part in factor_parts(groups(whole)) if isinstance(part, Table)]
    assert titles == ["Factors: act, width (CIFAR-10)", "Factors: act, width (CIFAR-100)"]
    rows = tidy(whole)["factors"]
    assert [row["dataset"] for row in rows if row["factors"] == "act"] == ["cifar10", "cifar100"]
    means = [interaction_means(part, TOP1, "act", "width") for part in grids(groups(whole))]
    assert [part and part.errors["relu", 1.0] for part in means] == [
        pytest.approx(20.1, abs=0.1),
        pytest.approx(40.1, abs=0.1),
    ]


def test_recipe_may_be_a_factor_though_each_has_its_table(tmp_path: Path) -> None:
    cells = grid(
        lambda recipe, act: cell(recipe, act, 1.0, recipe=recipe), recipe=("sgd", "adam"), act=("relu", "crelu")
    )
    whole = tuple(dataclasses.replace(made, factors=(*made.factors, ("width", 1.0))) for made in cells)
    tables = groups(of_cells(tmp_path, whole))
    assert len(tables) == 2
    (design,) = grids(tables)
    assert dict(design.levels) == {"recipe": ("sgd", "adam"), "act": ("relu", "crelu")}
    assert design.words == ""


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        (("sgd", "adam"), ["CIFAR-10, recipe 'sgd'", "CIFAR-10, recipe 'adam'"]),
        (("sgd", "sgd"), ["0 relu x1 to 0 crelu x0.5", "1 relu x1 to 1 crelu x0.5"]),
    ],
)
def test_no_two_cells_of_a_grid_have_equal_levels(recipes: tuple[str, str], words: list[str], tmp_path: Path) -> None:
    cells = tuple(
        made
        for number, recipe in enumerate(recipes)
        for made in grid(lambda act, width, n=number, r=recipe: cell(f"{n}", act, width, recipe=r), **LEVELS)
    )
    # The same net under another label would be the same trials: the second grid's nets have dropout.
    cells = (*cells[:4], *(dataclasses.replace(made, net=made.net.dropout(0.1, 1)) for made in cells[4:]))
    designs = grids(groups(of_cells(tmp_path, cells)))
    assert [design.words for design in designs] == words
    assert [design.combinations for design in designs] == [[dict(made.factors) for made in cells[:4]]] * 2


def test_full_grid_answers_what_each_choice_does_on_its_own(tmp_path: Path) -> None:
    cells = tuple(made for made in full_grid.CELLS if made.label.startswith("allconv cifar10 "))

    def outcome(trial: Trial) -> Made:
        levels = dict(trial.cell.factors)
        wide = 0.01 * trial.seed**2 * (levels.get("width") == 0.5)
        avr, half = levels.get("activation") == "avr", levels.get("width") == 0.5
        return Made({TOP1: 20 + 0.1 * trial.seed + wide - 2 * avr + half + 9 * (not levels)})

    ledger = Ledger(str(tmp_path))
    make(ledger, Sweep("s", "paper", cells, Protocol(seeds=3)), outcome)
    (design,) = grids(groups(read_sweep(ledger, "s")))
    assert design.levels == {
        "placement": ("conv1", "conv2", "conv4", "conv1,2", "conv1-4", "conv1-7"),
        "activation": ("crelu", "avr", "crelu_leaky"),
        "width": (1.0, 0.5),
    }
    found = {(effect.name, effect.level): effect.contrast for effect in factor_effects(design) if not effect.why}
    mains = {("placement", level): 0.0 for level in design.levels["placement"][1:]}
    mains |= {("activation", "avr"): -2.0, ("activation", "crelu_leaky"): 0.0, ("width", "0.5"): 1 + 0.05 / 3}
    measured = {effect: contrast.difference for effect, contrast in found.items() if "×" not in effect[0]}
    assert measured == pytest.approx(mains, abs=0.006)  # a difference is rounded to .01
    # AVR at half width is not trained, so this is not determined.
    assert ("activation × width", "avr, 0.5") not in found


def test_factors_of_an_own_metric_are_in_its_digits_and_words(tmp_path: Path) -> None:
    cells = grid(lambda act, width: cell("c", act, width), **LEVELS)
    gallery, table = factor_parts(groups(of_cells(tmp_path, cells, metric=Metric("test/f1", "higher"))))
    assert isinstance(table, Table)
    assert isinstance(gallery, Gallery)
    assert table.rows[0][4].text == "−0.00198"
    assert "test f1: higher is better." in table.notes
    assert "changes the test f1 at" in table.notes[0]
    assert gallery.caption.startswith("Mean test f1 by")
    assert "Higher is better" in gallery.caption
    chart = gallery.figures[0].content
    assert isinstance(chart, Interaction)
    assert chart.y_label == "test f1"
    assert chart.lines[0].points[0].tip == "relu, 1: 0.02012"


def test_effects_of_small_values_are_not_rounded_away(tmp_path: Path) -> None:
    cells = grid(lambda act, width: cell("c", act, width), **LEVELS)
    (design,) = grids(groups(of_cells(tmp_path, cells, metric=Metric("test/mse"), scale=1e-11)))
    crelu, *_ = factor_effects(design)
    assert (crelu.name, crelu.level) == ("act", "crelu")
    assert crelu.contrast.difference * 1e11 == pytest.approx(-1.983, abs=0.001)
    assert crelu.contrast.p < 0.001


def test_effects_that_add_up_to_0_in_all_seeds_are_0(tmp_path: Path) -> None:
    """In binary .1 + .2 is not .15 + .15. Their difference means nothing, and no t is made of it."""
    cells = grid(lambda act, width: cell("c", act, width), **LEVELS)
    errors = {("relu", 1.0): 0.1, ("relu", 0.5): 0.2, ("crelu", 1.0): 0.15, ("crelu", 0.5): 0.15}
    ledger = Ledger(str(tmp_path))

    def outcome(trial: Trial) -> Made:
        levels = dict(trial.cell.factors)
        return Made({TOP1: errors[str(levels["act"]), float(levels["width"])] * (1 + trial.seed)})

    make(ledger, Sweep("s", "paper", cells, Protocol(seeds=3)), outcome)
    (design,) = grids(groups(read_sweep(ledger, "s")))
    crelu, *_ = factor_effects(design)
    assert (crelu.contrast.difference, crelu.contrast.sd, crelu.contrast.t) == (0.0, 0.0, 0.0)


def test_effect_of_a_stale_training_says_so(tmp_path: Path) -> None:
    cells = grid(lambda act, width: cell("c", act, width), **LEVELS)
    results = of_cells(tmp_path, cells)
    ledger = Ledger(str(tmp_path))
    trial = Trial(cells[3], seed=0)  # crelu of half width: both main effects and the interaction use it
    result = ledger.result(trial.key)
    assert result is not None
    marked = []
    for code in (result["code"], "another"):
        ledger.commit(trial.key, result | {"code": code})
        (table,) = (part for part in factor_parts(groups(read_sweep(ledger, results.title))) if isinstance(part, Table))
        marked.append([row[4].marks for row in table.rows])
    assert marked == [[()] * 3, [("x",)] * 3]
    assert any(note.startswith("x  stale") for note in table.notes)


def test_rows_say_which_trainings_are_stale_and_which_were_lost(tmp_path: Path) -> None:
    cells = grid(lambda act, width: cell("c", act, width), **LEVELS)
    title = of_cells(tmp_path, cells).title
    ledger = Ledger(str(tmp_path))
    old, lost = Trial(cells[3], seed=0), Trial(cells[0], seed=1)
    for trial, change in ((old, {"code": "another"}), (lost, {"status": "diverged", "ending": "diverged"})):
        result = ledger.result(trial.key)
        assert result is not None
        ledger.commit(trial.key, result | change)
    rows = tidy(read_sweep(ledger, title))
    words = "c relu x1: 1 of 3 seeds diverged"
    assert [(row["stale"], row["lost"]) for row in rows["factors"]] == [(1, words)] * 3
    effects = {row["cell_key"]: (row["stale"], row["lost"]) for row in rows["effects"]}
    assert effects == {cells[1].key: (0, words), cells[2].key: (0, words), cells[3].key: (1, words)}
    assert [(row["trial"], row["state"]) for row in rows["runs"] if row["stale"]] == [(old.key, "finished")]


def test_a_cell_without_a_result_is_left_out_and_named(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    made_sweep(ledger, missing="avr x1")
    (design,) = grids(groups(read_sweep(ledger, "acts")))
    assert design.left_out(TOP1) == ("avr x1",)
    assert {effect.level for effect in factor_effects(design) if not effect.why} == {"crelu", "0.5"}
    _, table = factor_parts(groups(read_sweep(ledger, "acts")))
    assert isinstance(table, Table)
    assert "Without a result, and left out: avr x1." in table.notes


@pytest.mark.parametrize("seeds", [5, 6])
def test_a_table_of_factors_has_no_column_with_nothing_in_it(tmp_path: Path, seeds: int) -> None:
    ledger = Ledger(str(tmp_path))
    cells = grid(lambda act, width: cell("c", act, width), **LEVELS)
    make(ledger, Sweep("s", "paper", cells, Protocol(seeds=seeds)), lambda trial: Made({TOP1: 9 + trial.seed**2 / 7}))
    _, table = factor_parts(groups(read_sweep(ledger, "s")))
    assert isinstance(table, Table)
    assert ("Wilcoxon p" in table.columns) is (seeds == 6)
    assert len(table.align) == len(table.columns)
    assert all(any(row[place].text != NONE for row in table.rows) for place in range(len(table.columns)))
    assert "Wilcoxon p" not in text_lines(table)[1]


def test_reference_of_a_factor_is_the_first_that_the_page_declares_in_every_metric(tmp_path: Path) -> None:
    """Also where its cells have no result in one of them yet."""
    cells = grid(lambda act, width: cell("c", act, width), **LEVELS)
    ledger = Ledger(str(tmp_path))

    def outcome(trial: Trial) -> Made | None:
        waits = trial.cell.label == "c relu x1" and trial.phase == "fold"
        return None if waits else Made({TOP1: 9 + 0.1 * trial.seed + 0.1 * trial.fold + len(trial.cell.label) / 10})

    make(ledger, Sweep("s", "paper", cells, Protocol(seeds=3, folds=3)), outcome)
    tables = groups(read_sweep(ledger, "s"))
    (design,) = grids(tables)
    assert {effect.reference for effect in factor_effects(design) if "×" not in effect.name} == {"relu", "1"}
    _, table = factor_parts(tables)
    assert isinstance(table, Table)
    assert [note for note in table.notes if "ithheld" in note or "left out" in note] == [
        "act × width: some in average are withheld, no setting of the other factors has all of its cells.",
        "Without a result in average, and left out: c relu x1.",
    ]


def test_a_seed_counts_where_all_cells_of_an_effect_have_it(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    made_sweep(ledger, missing="avr x1", missing_seeds=range(1, 3))
    (design,) = grids(groups(read_sweep(ledger, "acts")))
    counts = {effect.level: effect.contrast.n for effect in factor_effects(design) if effect.contrast.metric == TOP1}
    assert (counts["crelu"], counts["avr"], counts["0.5"]) == (4, 2, 4)


def test_one_seed_has_a_difference_and_no_test(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    made_sweep(ledger, seeds=1)
    (design,) = grids(groups(read_sweep(ledger, "acts")))
    effects = [effect for effect in factor_effects(design) if not effect.why]
    assert {effect.contrast.basis for effect in effects} == {"one training"}
    assert all(np.isnan(effect.p) and np.isfinite(effect.contrast.difference) for effect in effects)


def test_means_of_an_interaction_are_over_settings_that_have_all_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: Any = [SimpleNamespace(cell=SimpleNamespace(factors=tuple(levels.items()))) for levels in PARTIAL]
    errors = {id(cell): 10.0 * number for number, cell in enumerate(cells)}
    monkeypatch.setattr(factors, "runs_of", lambda cell, _: {(seed, 0): ("run", errors[id(cell)]) for seed in (0, 1)})
    design = Grid(varying(PARTIAL), cells, (TOP1,))
    means = interaction_means(design, TOP1, "net", "width")  # of crelu alone: the others have no half width
    assert means is not None
    expected = {
        (levels["net"], levels["width"]): 10.0 * number
        for number, levels in enumerate(PARTIAL)
        if levels["act"] == "crelu"
    }
    assert means.errors == expected
    crossed = [levels for levels in PARTIAL if (levels["net"], levels["act"]) != ("wide", "crelu")]
    alone = Grid(varying(crossed), tuple(cells[PARTIAL.index(levels)] for levels in crossed), (TOP1,))
    assert interaction_means(alone, TOP1, "net", "width") is None
