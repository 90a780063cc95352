"""The grade of a reproduction: nothing is 0, the paper's own numbers are all that numbers show, a demo is little."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps import cifar_width, imagenet_placement
from sweeps.__main__ import parser
from sweeps.experiment.search import Search
from sweeps.experiment.space import Float
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report.grade_page import declared, tree_named
from sweeps.results import paper
from sweeps.results.claims import judge_claims
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.grade import AGREEMENT, DATA, RUN, SCALE, STAGES, STATISTICS, Graded, Item, grade, row_hours
from sweeps.results.reproduction_trees import (
    CRELU,
    DEMO,
    TREES,
    Analysed,
    Branch,
    Chosen,
    Numbers,
    Proved,
    Sentence,
    Trained,
)
from sweeps.store.ledger import Ledger
from tests.support.sweeps import Made, as_printed, make, only, spread, unsearched

SEEDS = 6
TABLE_1, TABLE_4 = Numbers("", 1, "1", "cifar10"), Numbers("", 1, "4", "imagenet")
OWN = Branch("mine", 1, (Trained("cells", 1, "s-demo"),))  # a tree that a test finds by module:NAME


def shifted(trial: Trial, value: float) -> float:
    """Return a number with a small error of its own for each seed, of mean zero over the seeds."""
    errors = spread(0.0, 0.01, SEEDS)
    random.Random(trial.cell.key).shuffle(errors)
    return value + errors[trial.seed % 1000]


def printed(trial: Trial) -> Made:
    """Return the paper's own numbers, on as many test pictures as the paper's."""
    if trial.phase == "ablation":
        row = trial.cell.row
        values = {metric: paper.printed("4", "imagenet", row, metric) for metric in paper.COLUMNS["4"]}
        return Made({metric: shifted(trial, value.value) for metric, value in values.items() if value})
    made = as_printed(trial, 10_000)
    return made._replace(
        metrics={k: shifted(trial, v) for k, v in made.metrics.items()} if trial.phase == "match" else made.metrics
    )


def surveys(folder: Path, sweep: Sweep, outcome: Callable[[Trial], Made | None] = printed) -> list[SweepResults]:
    """Return the results of a sweep whose trainings came to `outcome`."""
    ledger = Ledger(str(folder))
    make(ledger, sweep, outcome)
    return [read_sweep(ledger, sweep.title)]


def placement(seeds: int = SEEDS) -> Sweep:
    """Return the sweep of Table 4 with some seeds."""
    return unsearched("imagenet_placement", tuple(imagenet_placement.CELLS), Protocol(seeds=seeds))


def scores(graded: Graded) -> dict[str, float]:
    """Return the score of each part by title."""
    return {graded.title: graded.score} | {k: v for part in graded.parts for k, v in scores(part).items()}


def failing(leaf: Numbers | Sentence | Chosen | Trained | Proved, results: list[SweepResults]) -> set[tuple[str, str]]:
    """Return which checks the items of a leaf fail, and why."""
    return {(item.missing, item.why) for item in grade(Branch("", 1, (leaf,)), results).parts[0].items}


def test_nothing_is_nothing() -> None:
    graded = grade(CRELU, [])
    assert graded.score == 0
    assert {item.missing for leaf in graded.leaves() for item in leaf.items} == {RUN}
    # Two seeds of Table 4's baseline: 1.128 GMAC, 1,281,167 pictures, 45 epochs, three passes of two operations.
    hours = 2 * 6 * 1.128e9 * 1_281_167 * 45 / 20e12 / 3600
    assert row_hours("4", "imagenet", "Baseline", folds=False) == pytest.approx(hours, rel=1e-3)
    assert row_hours("1", "cifar10", "CReLU", folds=True) == pytest.approx(
        2.5 * row_hours("1", "cifar10", "CReLU", folds=False)
    )
    table = grade(Branch("", 1, (TABLE_1,)), [])
    rows = [row.label for row in paper.rows("1", "cifar10")]
    # Single's three numbers of a row need the same seeds, average and vote the same folds: each counts once.
    assert table.hours == pytest.approx(sum(row_hours("1", "cifar10", r, f) for r in rows for f in (True, False)))


def test_the_papers_own_numbers_of_table_1_are_all_that_numbers_can_show(tmp_path: Path) -> None:
    protocol = dataclasses.replace(cifar_width.PROTOCOL, seeds=SEEDS)
    results = surveys(tmp_path, unsearched("cifar_width", only(cifar_width.CELLS, "cifar10"), protocol))
    assert failing(TABLE_1, results) == {("", "")}
    leaf = Sentence("", 1, "avr-no-better-over-folds-on-cifar10")
    assert failing(leaf, results) == {("", "")}
    assert failing(Chosen("", 1, "1", "cifar10"), results) == {(RUN, "no search")}
    # Of the sentence on both sets half of the comparisons have no training.
    both = grade(Branch("", 1, (Sentence("", 1, "crelu-below-baseline-and-double"),)), results)
    assert both.score == pytest.approx(0.5)


def test_the_papers_own_numbers_of_table_4_are_all_that_numbers_can_show(tmp_path: Path) -> None:
    graded = scores(grade(CRELU.parts[2], surveys(tmp_path, placement())))  # type: ignore[arg-type]
    title = "CReLU at every layer errs less than FriedNet and PrunedNet, with fewer parameters"
    assert graded["printed numbers"] == graded["sentences"] == graded[title] == 1
    assert graded["dropout chosen on held-out pictures"] == 0
    assert graded["Tables 4 and 5: placements on ImageNet"] == pytest.approx(5 / 5.5)


def test_an_item_stops_at_the_first_check_that_it_fails(tmp_path: Path) -> None:
    sweep = placement(seeds=1)
    why = "one training: its spread is not known"
    assert failing(TABLE_4, surveys(tmp_path / "few", sweep)) == {(STATISTICS, why)}
    small = surveys(tmp_path / "small", placement(2), lambda t: printed(t)._replace(train_pictures=1000))
    assert failing(TABLE_4, small) == {(DATA, "1,000 training pictures, not 1,281,167")}
    cells = tuple(
        dataclasses.replace(c, recipe=dataclasses.replace(c.recipe, epochs=1, schedule_epochs=1)) for c in sweep.cells
    )
    short = surveys(tmp_path / "short", dataclasses.replace(sweep, cells=cells))
    ((check, reason), *_) = failing(TABLE_4, short)
    assert (check, reason.startswith("another recipe: epochs 1, not ")) == (SCALE, True)
    other = surveys(tmp_path / "other", placement(), lambda t: Made({k: v + 9 for k, v in printed(t).metrics.items()}))
    assert failing(TABLE_4, other) == {(AGREEMENT, "differs")}
    assert grade(Branch("", 1, (TABLE_4,)), other).hours == 0  # further trainings would not make it agree
    (current,) = surveys(tmp_path / "stale", placement(2))
    aged = tuple(
        dataclasses.replace(cell, runs=tuple(run._replace(state="stale") for run in cell.runs))
        for cell in current.cells
    )
    stale = [dataclasses.replace(current, cells=aged)]
    assert failing(TABLE_4, stale) == {(STATISTICS, "2 stale trainings")}


def test_a_sentence_that_our_trainings_deny_is_not_in_agreement(tmp_path: Path) -> None:
    def worse(trial: Trial) -> Made:
        made = printed(trial)
        return Made({k: v + 9 for k, v in made.metrics.items()}) if trial.cell.row == "CReLU all" else made

    results = surveys(tmp_path, placement(), worse)
    leaf = Sentence("", 1, "all-below-baseline-with-half")
    assert failing(leaf, results) == {(AGREEMENT, "contradicted"), ("", "")}  # the parameters are half all the same


def test_the_best_of_several_sweeps_counts(tmp_path: Path) -> None:
    weak = surveys(tmp_path / "weak", placement(seeds=1))
    strong = surveys(tmp_path / "strong", placement())
    for both in ([*weak, *strong], [*strong, *weak]):
        assert failing(TABLE_4, both) == {("", "")}


def test_a_demo_is_at_no_scale_of_the_papers_and_its_own_tree_is_half_done(tmp_path: Path) -> None:
    cells = tuple(
        dataclasses.replace(c, dataset="synthetic", net=c.net.width(0.25), paper_dataset="imagenet")
        for c in imagenet_placement.CELLS
    )
    sweep = unsearched("imagenet_placement", cells, Protocol(), "demo")
    outcomes = {"AVR conv1-9": Made({"final/test_top1_err": 90.0}, status="diverged", ending="dead")}
    results = surveys(tmp_path, sweep, lambda t: outcomes.get(t.cell.label, Made({"final/test_top1_err": 30.0})))
    assert {check for check, _ in failing(TABLE_4, results)} == {SCALE, RUN}
    assert grade(CRELU, results).score < 0.02
    leaf = Trained("", 1, "imagenet_placement-demo")
    assert failing(leaf, results) == {("", ""), (AGREEMENT, "a training is at chance")}
    assert scores(grade(DEMO, results))["what was learned is looked at"] == 0


BATCH, PART = "another recipe: batch 64, not 128", "a part of the published data set, or other files by its name"
DIVERGED, STALE = "1 of 10 folds diverged of AVR cifar10", "1 stale training of AVR cifar10"


@pytest.mark.parametrize(
    ("halved", "part", "last", "check", "why", "sentence"),
    [
        ("", "", "diverged", STATISTICS, DIVERGED, DIVERGED),
        ("", "", "absent", STATISTICS, "9 of the paper's 10 folds", "9 of the paper's 10 folds"),
        ("", "", "stale", STATISTICS, STALE, STALE),
        ("", "Baseline", "stale", DATA, PART, f"{PART}; {STALE}"),
        ("Baseline", "", "diverged", SCALE, BATCH, f"{BATCH}; {DIVERGED}"),
        ("Baseline", "Baseline", "", SCALE, BATCH, PART),
        ("Baseline", "AVR", "", SCALE, BATCH, PART),
        ("AVR", "Baseline", "", SCALE, BATCH, BATCH),
    ],
)
def test_a_withheld_sentence_fails_the_check_that_its_trainings_fail(
    tmp_path: Path, halved: str, part: str, last: str, check: str, why: str, sentence: str
) -> None:
    """Its words in the table name the first row that is not the paper's; the grade has the checks in their order."""
    cells = tuple(
        dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, batch=64)) if cell.row == halved else cell
        for cell in only(cifar_width.CELLS, "cifar10")
        if cell.row in ("Baseline", "AVR")
    )

    def is_last(trial: Trial) -> bool:
        return trial.cell.row == "AVR" and trial.fold == 9

    def outcome(trial: Trial) -> Made | None:
        if is_last(trial) and last in ("diverged", "absent"):
            lost = Made({"final/test_top1_err": 90.0}, status="diverged", ending="diverged")
            return lost if last == "diverged" else None
        return as_printed(trial)._replace(partial=trial.cell.row == part)

    (results,) = surveys(tmp_path, Sweep("w", "paper", cells, Protocol(ablation=False, folds=10)), outcome)
    aged = [
        tuple(run._replace(state="stale") if last == "stale" and is_last(run.trial) else run for run in cell.runs)
        for cell in results.cells
    ]
    of_cells = zip(results.cells, aged, strict=True)
    results = dataclasses.replace(results, cells=tuple(dataclasses.replace(cell, runs=runs) for cell, runs in of_cells))
    leaf = Sentence("", 1, "avr-no-better-over-folds-on-cifar10")
    assert failing(leaf, [results]) == {(check, why)}
    (claim,) = (each for each in judge_claims(results) if each.claim.id == leaf.claim)
    assert claim.withheld == sentence


def test_a_theorem_needs_an_analysis_without_a_counter_example(tmp_path: Path) -> None:
    (results,) = surveys(tmp_path, placement(2))
    leaf = Proved("", 1, "theory", "theory/bound_violations")
    assert failing(leaf, [results]) == {(RUN, "no analysis theory")}

    def analysed(broken: float) -> SweepResults:
        first, *others = results.cells
        summary = {"theory": {"metrics": {"theory/bound_violations": broken}}}
        runs = tuple(run._replace(analyses=summary) for run in first.runs)
        return dataclasses.replace(results, cells=(dataclasses.replace(first, runs=runs), *others))

    assert failing(leaf, [analysed(0.0)]) == {("", "")}
    assert failing(leaf, [analysed(1.0)]) == {(AGREEMENT, "2 counter-examples")}


def test_a_search_on_held_out_pictures_is_seen(tmp_path: Path) -> None:
    net = imagenet_placement.CELLS[0].net.dropout(0.25, 9)
    cells = (dataclasses.replace(imagenet_placement.CELLS[0], net=net),)
    results = surveys(tmp_path, Sweep("p", "paper", cells, Protocol(search=Search(2))), lambda t: Made({}))
    assert ("", "") in failing(Chosen("", 1, "4", "imagenet"), results)


def test_a_search_of_another_learning_rate_leaves_the_papers_scale_and_chooses_no_dropout(tmp_path: Path) -> None:
    search = Search(2, "grid", wave=2, space={"recipe.lr": Float(0.02, 0.04, 0.02)})
    sweep = Sweep("p", "paper", imagenet_placement.CELLS[:1], Protocol(seeds=SEEDS, search=search))

    def outcome(trial: Trial) -> Made:
        return printed(trial) if trial.phase == "ablation" else Made({}, curve=[50.0, 40.0 + trial.recipe.lr])

    (results,) = surveys(tmp_path, sweep, outcome)
    why = "another recipe: learning rate 0.02, not 0.01"
    assert {failed for failed in failing(TABLE_4, [results]) if failed[0] != RUN} == {(SCALE, why)}
    assert failing(Chosen("", 1, "4", "imagenet"), [results]) == {(RUN, "no search")}
    (cell,) = results.cells
    runs = tuple(run._replace(analyses={"pairing": {"metrics": {}}}) for run in cell.runs)
    analysed = dataclasses.replace(results, cells=(dataclasses.replace(cell, runs=runs),))
    leaf = Analysed("", 1, "pairing", (("4", "imagenet", "Baseline"),))
    (item,) = grade(Branch("", 1, (leaf,)), [analysed]).parts[0].items
    assert (item.missing, item.why) == (SCALE, why)


def test_a_search_of_dropout_is_judged_by_what_else_it_chose(tmp_path: Path) -> None:
    space = {"net.dropout.conv9": Float(0.0, 0.5, 0.5), "recipe.lr": Float(0.02, 0.04, 0.02)}
    protocol = Protocol(ablation=False, search=Search(4, "grid", space=space))
    sweep = Sweep("p", "paper", imagenet_placement.CELLS[:1], protocol)
    results = surveys(tmp_path, sweep, lambda trial: Made({}, curve=[50.0, 40.0 + trial.recipe.lr]))
    why = "another recipe: learning rate 0.02, not 0.01"
    assert (SCALE, why) in failing(Chosen("", 1, "4", "imagenet"), results)


def test_weights_count_among_siblings_and_checks_by_their_worth() -> None:
    assert [Item("", n, STAGES).score for n in range(6)] == pytest.approx([0, 0.05, 0.2, 0.4, 0.6, 1])
    assert Item("", 3, (RUN, SCALE, DATA)).missing == ""
    tree = Branch("t", 1, (Branch("a", 3, (Trained("", 1, "x"),)), Trained("b", 1, "y")))
    assert grade(tree, []).score == 0
    assert {leaf.claim for branch in CRELU.parts for leaf in _sentences(branch)} == {
        claim.id for claim in paper.CLAIMS
    } - {"vgg-placement-order-cifar10"}


def _sentences(part: object) -> list[Sentence]:
    parts = getattr(part, "parts", ())
    return [part] if isinstance(part, Sentence) else [leaf for inner in parts for leaf in _sentences(inner)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("crelo", "there is no tree 'crelo'; there are: crelu, demo, or module:NAME of your own"),
        ("nosuchmodule:TREE", "the tree nosuchmodule:TREE is not to be had: No module named 'nosuchmodule'"),
        ("json:dumps", "json:dumps is no tree: it is function, and has to be a Branch"),
    ],
)
def test_a_tree_that_is_not_there_is_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        tree_named(name)
    assert str(error.value) == sentence
    assert set(TREES) == {"crelu", "demo"}


def test_the_grade_is_printed_written_and_given_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = dataclasses.replace(placement(1), name="s", profile="demo")
    surveys(tmp_path / "ledger", sweep)
    words = ["grade", "tests.results.test_grade:OWN", "--output", str(tmp_path)]
    options = parser().parse_args(words)
    assert options.verb(options) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "100.0%  mine"
    assert told[1] == "100.0%    cells"
    assert told[2] == f"page       {tmp_path}/reports/grade/grade.html"
    assert "How much of it has been reproduced?" in (tmp_path / "reports/grade/grade.html").read_text()
    assert "| mine | 1 | 100% |" in (tmp_path / "reports/grade/grade.md").read_text()
    options = parser().parse_args(["grade", "--json", "--output", str(tmp_path)])
    assert options.verb(options) == 0
    graded = json.loads(capsys.readouterr().out)
    item = graded["parts"][2]["parts"][0]["items"][0]
    assert (item["name"], item["fails"]) == ("Baseline imagenet: top-1", STATISTICS)
    assert (item["score"], item["why"]) == (pytest.approx(0.4), "one training: its spread is not known")
    assert item["gpu_hours"] == pytest.approx(row_hours("4", "imagenet", "Baseline", folds=False))
    assert graded["gpu_hours"] > 100


def test_an_output_that_is_not_there_has_no_grade_and_an_empty_one_0(tmp_path: Path) -> None:
    options = parser().parse_args(["grade", "--output", str(tmp_path / "typo")])
    with pytest.raises(ValueError, match=f"^no sweep has run in {tmp_path}/typo/ledger; "):
        options.verb(options)
    assert list(tmp_path.iterdir()) == []
    assert declared(Ledger.in_output(str(tmp_path))) == ([], [])
