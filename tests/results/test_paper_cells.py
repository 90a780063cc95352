"""A number is judged, and a claim decided, by trainings that are the paper's: data, recipe, net, and enough of them."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crelu_data.datasets import dataset
from crelu_models.spec import Net
from crelu_models.tables import PAPER, S8
from sweeps import cifar_vgg, cifar_width, imagenet_placement
from sweeps.experiment.metrics import AVERAGE, PARAMETERS, TOP1, VOTE
from sweeps.experiment.profiles import scaled
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import IMAGENET_ADAM
from sweeps.experiment.search import Search
from sweeps.experiment.space import Float, Int
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, Trial
from sweeps.report.result_tables import result_tables, verdict_text
from sweeps.results.cell_numbers import groups, number, order_kept, verdict_for, verdicts
from sweeps.results.claims import judge_claims
from sweeps.results.deviations import deviations
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.grade import AGREEMENT, Findings, grade
from sweeps.results.paper import COLUMNS, LEARNED, PAIR, printed
from sweeps.results.paper_cells import (
    CELLS,
    FOOTNOTE_5,
    is_other_count,
    other_training,
    other_training_of,
    paper_net,
    printed_of_layer,
    reduced,
)
from sweeps.results.reproduction_trees import Branch, Numbers
from sweeps.results.statistics import Verdict
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, as_printed, make, only, scores, unsearched

BASELINE = imagenet_placement.CELLS[0]
VGG = cifar_vgg.CELLS[:1]


def seen(tmp_path: Path, sweep: Sweep, outcome: Callable[[Trial], Made | None]) -> SweepResults:
    """Return the results of a sweep whose trials came out as `outcome` says."""
    ledger = Ledger(str(tmp_path / "ledger"))
    make(ledger, sweep, outcome)
    return read_sweep(ledger, sweep.title)


def table_4(trial: Trial) -> Made:
    """Return Table 4's printed errors, a little off for each seed."""
    numbers = {metric: printed("4", "imagenet", trial.cell.row, metric) for metric in COLUMNS["4"]}
    off = 0.02 * trial.seed
    return Made({metric: shown.value + off for metric, shown in numbers.items() if shown is not None})


def judged(results: SweepResults, metric: str = TOP1) -> Verdict:
    """Return the verdict on the first row's number."""
    table = groups(results)[0]
    verdict = verdict_for(table, table.rows[0], metric, number(table.rows[0].results, metric))
    assert verdict is not None
    return verdict


def of_cell(tmp_path: Path, cell: Cell, **changes: object) -> SweepResults:
    """Return the results of one cell's two seeds, whose outcomes have these changes."""
    sweep = Sweep("imagenet_placement", "paper", (cell,), Protocol(seeds=2))
    return seen(tmp_path, sweep, lambda trial: table_4(trial)._replace(**changes))


def test_cell_as_the_page_declares_it_is_the_paper_s(tmp_path: Path) -> None:
    results = of_cell(tmp_path, BASELINE)
    assert reduced(results.cells[0], "imagenet") == ""
    assert judged(results).word == "reproduced"
    assert judged(results).why == ""
    for cell in (*cifar_width.CELLS, *cifar_vgg.CELLS, *imagenet_placement.CELLS):
        assert (cell.table, cell.row) in CELLS
        assert paper_net(cell) is not None


RECIPE = BASELINE.recipe
REDUCED = {
    "one epoch": (
        dataclasses.replace(BASELINE, recipe=dataclasses.replace(RECIPE, epochs=1)),
        {},
        "another recipe: epochs 1, not 45",
    ),
    "profile mini": (scaled(BASELINE, "mini"), {}, "another net than the paper's S8"),
    "other stages": (
        dataclasses.replace(BASELINE, recipe=dataclasses.replace(RECIPE, stages=RECIPE.stages[:2])),
        {},
        "another recipe: schedule x0.1 from 11, not x0.1 from 11, x0.01 from 21, x0.005 from 26, x0.001 from 31, ...",
    ),
    "rate and batch": (
        dataclasses.replace(BASELINE, recipe=dataclasses.replace(RECIPE, lr=0.02, batch=32)),
        {},
        "another recipe: batch 32, not 64 and 1 more",
    ),
    "ten classes": (BASELINE, {"scores": scores(np.arange(500) % 10, np.arange(50), 10)}, "10 classes, not 1,000"),
    "few to learn from": (BASELINE, {"train_pictures": 5000}, "5,000 training pictures, not 1,281,167"),
    "few to test on": (
        BASELINE,
        {"scores": scores(np.arange(2000) % 1000, np.arange(50), 1000)},
        "2,000 test pictures, not 50,000",
    ),
    "smaller pictures": (dataclasses.replace(BASELINE, dataset="imagenet:size=64"), {}, "other data than the paper's"),
    "embedded": (scaled(BASELINE, "demo"), {}, "embedded pictures"),
    "a part": (BASELINE, {"partial": True}, "a part of the published data set, or other files by its name"),
}


@pytest.mark.parametrize("name", REDUCED)
def test_verdicts_and_claims_are_withheld_with_the_reason(tmp_path: Path, name: str) -> None:
    cell, changes, why = REDUCED[name]
    results = of_cell(tmp_path, cell, **changes)
    assert reduced(results.cells[0], "imagenet") == why
    if groups(results)[0].comparable:
        verdict = judged(results)
        assert (verdict.word, verdict.why) == ("withheld", why)
        assert verdict_text(verdict) == f"withheld: {why}"
        assert math.isnan(verdict.difference)  # nothing is subtracted from what is not the paper's
        assert verdicts(groups(results)) == {
            "reproduced": 0, "differs": 0, "inconclusive": 0, "withheld": 4, "not run": 0,
        }  # fmt: skip
    with_rival = Sweep("two", "paper", (cell, imagenet_placement.CELLS[1]), Protocol(seeds=2))
    both = seen(tmp_path / "two", with_rival, lambda trial: table_4(trial)._replace(**changes))
    claim = {ruling.claim.id: ruling for ruling in judge_claims(both)}["avr-1-4-below-baseline"]
    assert (claim.decision, bool(claim.withheld)) == ("not run", True)
    notes = [note for group in groups(both) for table in result_tables(group, None) for note in table.notes]
    assert not any(note.startswith("Order:") for note in notes)


@pytest.mark.parametrize(
    ("cell", "changes", "why"),
    [
        (BASELINE, {"clip_norm": 0.0, "lighting": 0.1}, ""),
        (BASELINE, {"clip_norm": 2.0}, "another recipe: gradient norm cut at 2, not 1"),
        (BASELINE, {"warmup_epochs": 1.0}, "another recipe: warm-up epochs 1, not 0"),
        (cifar_width.CELLS[0], {"warmup_epochs": 0.0, "clip_norm": 0.0}, ""),
        (cifar_width.CELLS[0], {"lr": 0.25}, ""),
        (cifar_width.CELLS[0], {"lr": 0.02}, "another recipe: learning rate 0.02, not 0.05"),
        (cifar_width.CELLS[0], {"lighting": 0.1}, "another recipe: colour noise (std) 0.1, not 0"),
        (cifar_vgg.CELLS[0], {"clip_norm": 1.0}, "another recipe: gradient norm cut at 1, not 0"),
    ],
)
def test_training_by_the_letter_of_the_paper_is_the_paper_s(cell: Cell, changes: dict[str, float], why: str) -> None:
    """It names no clipping, no warm-up and no rate of the CIFAR nets, and its sources have colour noise."""
    assert other_training(dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, **changes))) == why


LITERAL = {(cell.table, cell.row): (cell, f"{CELLS[cell.table, cell.row][0]}_literal") for cell in
           (*cifar_width.CELLS, *cifar_vgg.CELLS) if cell.dataset == "cifar10"}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "readings"),
    [
        (("1", "CReLU half"), {"rounding of the max pools"}),
        (("2", "CReLU (1)"), set()),
        (("2", "CReLU (1,3)"), set()),
        (("2", "CReLU (1,3,5)"), set()),
    ],
)
def test_net_as_the_supplement_prints_it_is_the_paper_s(
    tmp_path: Path, row: tuple[str, str], readings: set[str]
) -> None:
    cell, name = LITERAL[row]
    printed = dataclasses.replace(cell, net=PAPER[name])
    assert other_training(printed) == ""
    results = seen(tmp_path, Sweep("printed", "paper", (printed,), Protocol()), lambda _: Made({TOP1: 9.0}))
    of_nets = {"filters of conv3", "batch norm before CReLU", "rounding of the max pools", "net (parameters)"}
    assert {each.what for each in deviations(groups(results)[0])} & of_nets == readings
    narrower = dataclasses.replace(cell, net=PAPER[name].width(0.5, 6))
    assert other_training(narrower) == f"another net than the paper's {CELLS[row][0]}"


@pytest.mark.parametrize(
    ("seeds", "lost", "order"),
    [
        (2, "", ["Order: 3 of 3 pairs of rows as in the paper."]),
        (2, "AVR conv1-7", ["Order: 1 of 1 pair of rows as in the paper."]),
        (1, "", []),
    ],
)
def test_order_is_that_of_the_rows_with_a_verdict(tmp_path: Path, seeds: int, lost: str, order: list[str]) -> None:
    sweep = Sweep("imagenet_placement", "paper", imagenet_placement.CELLS[:3], Protocol(seeds=seeds))

    def outcome(trial: Trial) -> Made:
        has_diverged = trial.cell.row == lost and trial.seed == 1
        return table_4(trial)._replace(status="diverged", ending="diverged") if has_diverged else table_4(trial)

    group = groups(seen(tmp_path, sweep, outcome))[0]
    (table,) = (table for table in result_tables(group, None) if table.id == "table-4-top1")
    assert [note for note in table.notes if note.startswith("Order:")] == order


SEARCHED = {
    "the paper's rate": ({"recipe.lr": Float(0.01, 0.02, 0.01)}, "", {}),
    "another rate": (
        {"recipe.lr": Float(0.02, 0.04, 0.02)},
        "another recipe: learning rate 0.02, not 0.01",
        {"learning rate": ("0.01", "0.02")},
    ),
    "another width": (
        {"net.width": Float(0.25, 0.5, 0.25)},
        "another net than the paper's S8",
        {"net (parameters)": ("9,372,840", f"{S8.width(0.25).parameters(1000):,}")},
    ),
    "dropout": ({"net.dropout.conv9": Float(0.25, 0.5, 0.25)}, "", {}),
}


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("seeds", [0, 2])
def test_what_a_search_chose_is_judged_and_not_what_the_cell_declares(tmp_path: Path, name: str, seeds: int) -> None:
    space, why, expected = SEARCHED[name]
    search = Search(2, "grid", wave=2, space=space)
    protocol = Protocol(seeds=max(1, seeds), ablation=seeds > 0, search=search)

    def outcome(trial: Trial) -> Made:
        ((_, chosen),) = trial.choices
        return table_4(trial) if trial.phase == "ablation" else Made({}, curve=[50.0, 40.0 + float(chosen)])

    results = seen(tmp_path, Sweep("imagenet_placement", "paper", (BASELINE,), protocol), outcome)
    (cell,) = results.cells
    assert other_training_of(cell) == why
    if seeds:
        assert reduced(cell, "imagenet") == why
        assert judged(results).word == ("withheld" if why else "reproduced")
    departures = {each.what: (each.paper, each.here) for each in deviations(groups(results)[0])}
    judged_fields = ("learning rate", "net (parameters)")
    assert {what: departures[what] for what in judged_fields if what in departures} == expected


WIDTH = cifar_width.CELLS[0]
DECLARED = dataclasses.replace(WIDTH, recipe=dataclasses.replace(WIDTH.recipe, lr=0.5))
SEARCH = Search(2, "grid", wave=2, space={"net.dropout.conv9": Float(0.25, 0.5, 0.25)})


@pytest.mark.parametrize(
    ("cell", "protocol", "rate", "why"),
    [
        (BASELINE, Protocol(seeds=2), 0.05, "another recipe: learning rate 0.05, not 0.01"),
        (BASELINE, Protocol(seeds=2), 0.01, ""),
        (BASELINE, Protocol(ablation=False, search=SEARCH), 0.05, "another recipe: learning rate 0.05, not 0.01"),
        (VGG[0], Protocol(), 0.01, "another recipe: learning rate 0.01, not 1"),
        (VGG[0], Protocol(), 1.0, ""),
        (WIDTH, Protocol(), 0.01, ""),
        (DECLARED, Protocol(), 0.01, ""),  # no training was by the declared rate
    ],
)
def test_learning_rate_of_a_study_is_the_recipe_s_unless_the_paper_leaves_it_open(
    tmp_path: Path, cell: Cell, protocol: Protocol, rate: float, why: str
) -> None:
    def outcome(trial: Trial) -> Made:
        if trial.phase != "ablation":
            return Made({}, curve=[50.0, 10.0 if trial.rate == rate else 20.0])
        return table_4(trial) if cell.table == "4" else Made({TOP1: 9.0})

    study = dataclasses.replace(protocol, rates=RateStudy(cell.label, (0.25, rate)))
    results = seen(tmp_path, Sweep("studied", "paper", (cell,), study), outcome)
    assert other_training_of(results.cells[0]) == why
    if protocol.seeds == 2:
        assert (judged(results).word, judged(results).why) == (("withheld", why) if why else ("reproduced", ""))


def test_shifts_that_a_search_chose_are_those_of_the_deviation(tmp_path: Path) -> None:
    protocol = Protocol(search=Search(2, "grid", wave=2, space={"recipe.shift": Int(2, 3)}))

    def outcome(trial: Trial) -> Made:
        return Made({TOP1: 7.0} if trial.phase == "ablation" else {}, curve=[50.0, 40.0 + trial.recipe.shift])

    results = seen(tmp_path, Sweep("cifar_vgg", "paper", VGG, protocol), outcome)
    departures = {each.what: each.here for each in deviations(groups(results)[0])}
    assert departures["shifts (pixels)"] == "2"


@pytest.mark.parametrize("first", ["short", "whole"])
def test_one_cell_stands_for_a_row_of_footnote_5(tmp_path: Path, first: str) -> None:
    whole = tuple(Cell(name, net, "cifar10", VGG[0].recipe) for name, net in FOOTNOTE_5.items())
    short = tuple(
        dataclasses.replace(cell, label=f"{cell.label}, short", recipe=dataclasses.replace(cell.recipe, epochs=1))
        for cell in whole
    )
    cells = (*short, *whole) if first == "short" else (*whole, *short)
    results = seen(tmp_path, Sweep("foot", "paper", cells, Protocol(seeds=2)), lambda _: Made({TOP1: 6.0}))
    (claim,) = judge_claims(results)
    assert {run.trial.cell.label for run in claim.runs} == set(FOOTNOTE_5)


ADAM = dataclasses.replace(BASELINE, label="Adam", recipe=IMAGENET_ADAM)
SHORT = dataclasses.replace(BASELINE, label="short", recipe=dataclasses.replace(RECIPE, epochs=1))
LETTER = dataclasses.replace(BASELINE, label="letter", recipe=dataclasses.replace(RECIPE, clip_norm=0.0))
SMALL = dataclasses.replace(BASELINE, label="small", dataset="imagenet:size=64")


@pytest.mark.parametrize(
    ("cells", "stands", "derived"),
    [
        ((BASELINE, ADAM), "Baseline", "Baseline"),
        ((ADAM, BASELINE), "Baseline", "Baseline"),
        ((BASELINE, LETTER), "Baseline", "Baseline"),
        ((LETTER, BASELINE), "letter", "letter"),
        ((SHORT, ADAM), "short", "short"),
        ((SMALL, BASELINE), "Baseline", "Baseline"),
        ((ADAM, SMALL), "small", "Adam"),  # a table has one data set
    ],
)
def test_one_cell_stands_for_a_row_of_the_paper_wherever_it_is_asked_for(
    tmp_path: Path, cells: tuple[Cell, ...], stands: str, derived: str
) -> None:
    (half,) = (cell for cell in imagenet_placement.CELLS if cell.row == "CReLU all")
    sweep = Sweep("twice", "paper", (*cells, half), Protocol(seeds=2))
    results = seen(tmp_path, sweep, table_4)
    (five,) = (table for table in groups(results) if table.table == "5" and table.comparable)
    (row,) = (row.results for row in five.rows if row.label == "Baseline")
    claims = {claim.claim.id: claim for claim in judge_claims(results)}
    labels = {run.trial.cell.label for run in claims["all-below-baseline-with-half"].runs}
    assert labels == {stands, "CReLU all"}
    assert row is not None
    assert row.cell.label == derived
    graded = Findings([results]).cells("4", "imagenet", "Baseline")
    assert [cell.cell.label for cell in graded] == [stands]


@pytest.mark.parametrize(
    ("cells", "order", "missing"),
    [((BASELINE, LETTER), (3, 0, 0), ""), ((LETTER, BASELINE), (2, 1, 0), AGREEMENT)],
)
def test_second_cell_for_a_row_adds_nothing_to_order_and_grade(
    tmp_path: Path, cells: tuple[Cell, ...], order: tuple[int, int, int], missing: str
) -> None:
    sweep = Sweep("twice", "paper", (*cells, *imagenet_placement.CELLS[1:3]), Protocol(seeds=2))

    def outcome(trial: Trial) -> Made:
        made = table_4(trial)
        return Made(dict.fromkeys(made.metrics, 70 + 0.1 * trial.seed)) if trial.cell.label == "letter" else made

    results = seen(tmp_path, sweep, outcome)
    assert order_kept(groups(results)[0], TOP1) == order
    (leaf,) = grade(Branch("", 1, (Numbers("", 1, "4", "imagenet"),)), [results]).leaves()
    (item,) = (item for item in leaf.items if item.name == "Baseline imagenet: top-1")
    assert item.missing == missing


def test_small_set_under_a_public_name_is_not_the_public_set(tmp_path: Path) -> None:
    """A tree of 5,000 pictures prepared as cifar10 has cifar10's name, classes and layout."""
    sweep = unsearched("cifar_vgg", VGG, cifar_vgg.PROTOCOL)
    results = seen(tmp_path, sweep, lambda trial: as_printed(trial, 1000)._replace(train_pictures=5000))
    for metric in (TOP1, AVERAGE, VOTE):
        assert judged(results, metric).why == "5,000 training pictures, not 50,000"


def test_one_unreadable_picture_in_a_thousand_may_be_missing() -> None:
    full = dataset("imagenet").splits["train"]
    assert not is_other_count(full, full)
    assert not is_other_count(full - full // 1000, full)
    assert is_other_count(full - full // 500, full)
    assert is_other_count(full + 1, full)


def test_trainings_on_different_pictures_are_no_cell_of_the_paper(tmp_path: Path) -> None:
    results = of_cell(tmp_path, BASELINE)
    ledger = Ledger(str(tmp_path / "ledger"))
    key = results.cells[0].runs[0].key
    ledger.commit(key, (ledger.result(key) or {}) | {"fingerprint": "0" * 64})
    assert judged(read_sweep(ledger, results.title)).why == "trainings on different pictures"


def test_results_of_before_the_pictures_were_counted_are_judged_by_the_rest(tmp_path: Path) -> None:
    results = of_cell(tmp_path, BASELINE)
    ledger = Ledger(str(tmp_path / "ledger"))
    for run in results.runs:
        result = ledger.result(run.key) or {}
        ledger.commit(run.key, {name: value for name, value in result.items() if name != "train_pictures"})
    uncounted = read_sweep(ledger, results.title)
    assert judged(uncounted).word == "reproduced"
    (table,) = (table for table in result_tables(groups(uncounted)[0], None) if table.id.endswith("-deviations"))
    assert ["training pictures", "1,281,167", "not recorded", "all"] in [[e.text for e in row] for row in table.rows]


def test_pictures_that_could_not_be_read_are_a_deviation_and_keep_the_verdict(tmp_path: Path) -> None:
    for learned, told in ((49_975, {("50,000", "49,975")}), (50_000, set[tuple[str, str]]())):
        sweep = unsearched("cifar_vgg", VGG, cifar_vgg.PROTOCOL)
        results = seen(tmp_path / f"{learned}", sweep, lambda t, n=learned: as_printed(t)._replace(train_pictures=n))  # type: ignore[misc]
        departures = deviations(groups(results)[0])
        assert {(each.paper, each.here) for each in departures if each.what == "training pictures"} == told
        assert judged(results, AVERAGE).word == "reproduced"


def test_number_with_a_stale_training_has_no_verdict(tmp_path: Path) -> None:
    results = of_cell(tmp_path, BASELINE)
    ledger = Ledger(str(tmp_path / "ledger"))
    key = results.cells[0].runs[1].key
    ledger.commit(key, (ledger.result(key) or {}) | {"code": "another"})
    stale = read_sweep(ledger, results.title)
    verdict = judged(stale)
    assert (verdict.word, verdict.why) == ("withheld", "1 stale training")
    assert verdicts(groups(stale))["withheld"] == 4
    derived = groups(stale)[1]
    (row,) = (row for row in derived.rows if row.results is not None)
    counted = verdict_for(derived, row, PARAMETERS, number(row.results, PARAMETERS))
    assert counted is not None
    assert counted.word == "reproduced"  # a count of parameters is never stale


def test_one_training_has_no_verdict(tmp_path: Path) -> None:
    sweep = Sweep("imagenet_placement", "paper", (BASELINE,), Protocol())
    verdict = judged(seen(tmp_path, sweep, table_4))
    assert (verdict.word, verdict.why) == ("withheld", "one training: its spread is not known")
    assert verdict.difference == pytest.approx(0.0)


def test_equal_trainings_have_no_interval_and_no_verdict(tmp_path: Path) -> None:
    """An interval of width 0 would judge by chance: of .01 more or less, reproduced or differs."""
    sweep = Sweep("imagenet_placement", "paper", (BASELINE,), Protocol(seeds=2))
    results = seen(tmp_path, sweep, lambda trial: table_4(Trial(trial.cell)))
    ours = number(results.cells[0], TOP1)
    assert (ours.average.se, ours.average.n) == (0.0, 2)
    assert math.isnan(ours.interval.low)
    verdict = judged(results)
    assert (verdict.word, verdict.why) == ("withheld", "2 trainings of the same number: their spread is not known")


@pytest.mark.parametrize(("lost", "word"), [(0, "reproduced"), (1, "withheld")])
def test_average_and_vote_need_all_ten_folds(tmp_path: Path, lost: int, word: str) -> None:
    sweep = unsearched("cifar_vgg", VGG, dataclasses.replace(cifar_vgg.PROTOCOL, seeds=2))

    def outcome(trial: Trial) -> Made | None:
        return None if trial.phase == "fold" and trial.fold < lost else as_printed(trial, 10_000)

    results = seen(tmp_path, sweep, outcome)
    for metric in (AVERAGE, VOTE):
        verdict = judged(results, metric)
        assert verdict.word == word
        assert verdict.why == ("9 of the paper's 10 folds" if lost else "")
    assert judged(results).word == "reproduced"  # of two seeds by the protocol of Single


def test_number_with_a_lost_training_has_no_verdict(tmp_path: Path) -> None:
    sweep = unsearched("cifar_vgg", VGG, dataclasses.replace(cifar_vgg.PROTOCOL, seeds=2))

    def outcome(trial: Trial) -> Made:
        made = as_printed(trial, 10_000)
        diverged = trial.phase == "fold" and trial.fold == 3
        return made._replace(status="diverged", ending="diverged", scores={}) if diverged else made

    results = seen(tmp_path, sweep, outcome)
    for metric in (AVERAGE, VOTE):
        verdict = judged(results, metric)
        assert (verdict.word, verdict.why) == ("withheld", "1 of 10 folds diverged")
    assert judged(results).word == "reproduced"


def test_other_folds_than_ten_are_not_the_paper_s(tmp_path: Path) -> None:
    sweep = unsearched("cifar_vgg", VGG, Protocol(ablation=False, folds=5))
    results = seen(tmp_path, sweep, lambda trial: Made({TOP1: 6.9 + 0.01 * trial.fold}))
    assert judged(results, AVERAGE).why == "5 of the paper's 10 folds"


def test_ablation_is_not_the_single_of_tables_1_and_2(tmp_path: Path) -> None:
    sweep = unsearched("cifar_vgg", VGG, Protocol(seeds=3))
    results = seen(tmp_path, sweep, lambda trial: Made({TOP1: 6.35 + 0.01 * trial.seed}))
    assert judged(results).why == "not trained by the protocol of Single"


def test_large_error_is_inconclusive_and_a_far_number_differs(tmp_path: Path) -> None:
    words = {}
    for spread, mean in ((30.0, 41.81), (0.1, 41.81), (0.1, 60.0)):
        sweep = Sweep(f"spread{spread}{mean}", "paper", (BASELINE,), Protocol(seeds=3))
        results = seen(
            tmp_path / f"{spread}{mean}", sweep,
            lambda trial, spread=spread, mean=mean: Made({TOP1: mean + spread * (trial.seed - 1)}),  # type: ignore[misc]
        )  # fmt: skip
        words[spread, mean] = judged(results).word
    assert words == {(30.0, 41.81): "inconclusive", (0.1, 41.81): "reproduced", (0.1, 60.0): "differs"}


def test_parameters_are_judged_by_the_classes_alone(tmp_path: Path) -> None:
    ten = only(cifar_width.CELLS, "cifar10")[:1]
    sweep = unsearched("cifar_width", ten, Protocol(seeds=1, ablation=False, folds=2))
    few = seen(
        tmp_path / "few", sweep, lambda trial: Made({TOP1: 9.0}, scores=scores(np.arange(90) % 9, np.arange(9), 9))
    )
    assert judged(few, PARAMETERS).why == "9 classes, not 10"
    small = seen(tmp_path / "small", sweep, lambda trial: Made({TOP1: 9.0}, train_pictures=100))
    assert judged(small, PARAMETERS).word == "differs"  # 1.287 million do not round to 1.4


def test_a_layer_is_beside_the_paper_only_in_the_papers_row_net_and_data_set() -> None:
    own = next(cell for cell in imagenet_placement.CELLS if cell.row == "CReLU conv1-7")
    net = PAPER["S10"]

    def beside(net: Net, cell: Cell | None, dataset: str = "imagenet") -> str:
        return str(printed_of_layer("6", dataset, "conv3", PAIR, net, cell) or "")

    assert beside(net, own) == beside(net, None) == ".462±.249"
    assert beside(net.dropout(0.5, 9), own) == ".462±.249"  # dropout is tuned
    assert beside(net.width(1 / 8), own) == beside(PAPER["S9"], own) == beside(PAPER["S9"], None) == ""
    assert beside(net, dataclasses.replace(own, row="CReLU conv1-4")) == ""
    assert beside(net, dataclasses.replace(own, table="")) == ""
    assert beside(net, dataclasses.replace(own, dataset="folder:/birds")) == beside(net, own, "folder:/birds") == ""
    literal = printed_of_layer("S1", "cifar10", "conv2", LEARNED, PAPER["S3_half_literal"], None)
    assert literal == printed_of_layer("S1", "cifar10", "conv2", LEARNED, PAPER["S3_half"], None) is not None
