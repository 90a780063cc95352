"""What a sweep on other data or with other fields is called: its title, its cells, its place on the ledger."""

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest

from crelu_models.tables import S2
from sweeps import grid
from sweeps.cli.options import parser
from sweeps.cli.settings import declare, settle
from sweeps.cli.verbs import pages
from sweeps.experiment.plan import plan, plan_to_json
from sweeps.experiment.profiles import data_name
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.sweep import Protocol, Sweep, sweep_from_json
from sweeps.experiment.trial import Cell, Trial, cell_from_json, cell_to_json
from sweeps.results.cell_numbers import groups, stands_for
from sweeps.results.evidence import read_sweep, titles
from sweeps.store.foreign import SWEEP_TITLE
from sweeps.store.ledger import Ledger


def declared(page: str, *words: str, output: Path | str = "/nowhere/out") -> tuple[Sweep, str]:
    """Return the sweep that a page's command line asks for, and what is said before it."""
    module = import_module(f"sweeps.{page}")
    options = parser(page, "").parse_args([*words, "--output", str(output)])
    settings = settle(module.CELLS, options)
    protocol = getattr(module, "PROTOCOL", Protocol())
    return declare(page, module.CELLS, protocol, options, settings), settings.display.banner


def written(sweep: Sweep, output: Path) -> Sweep:
    """Write the plan of a sweep, as its run does."""
    ledger = Ledger.in_output(str(output))
    ledger.write_json(f"plans/{sweep.title}.json", plan_to_json(plan(sweep, ledger, {})))
    return sweep


@pytest.mark.parametrize("profile", ["paper", "mini"])
@pytest.mark.parametrize("page", sorted(pages()))
def test_every_sweep_trains_on_a_folder(page: str, profile: str) -> None:
    cells = import_module(f"sweeps.{page}").CELLS
    sweep, said = declared(page, "--profile", profile, "--dataset", "folder:/pictures/flowers")
    first = [cell for cell in cells if cell.dataset == cells[0].dataset]
    assert sweep.datasets == ("folder:/pictures/flowers",)
    assert len(sweep.cells) == len(first) == len({cell.key for cell in sweep.cells})
    expected = f"the page's cells of {cells[0].dataset} are taken, {len(first)} of {len(cells)}"
    assert said == ("" if len(first) == len(cells) else f"one data set (flowers): {expected}")


def test_cells_of_the_data_set_that_is_asked_for_are_taken_where_the_page_has_some() -> None:
    sweep, said = declared("cifar_width", "--profile", "paper", "--dataset", "cifar100")
    page = import_module("sweeps.cifar_width").CELLS
    assert sweep.cells == tuple(cell for cell in page if cell.dataset == "cifar100")
    assert said.endswith("the page's cells of cifar100 are taken, 5 of 10")
    again, _ = declared("cifar_width", "--profile", "paper", "--set", "dataset=cifar100")
    assert (again.cells, again.title) == (sweep.cells, sweep.title)


@pytest.mark.parametrize(
    ("page", "words", "title"),
    [
        ("imagenet_placement", "--profile paper", "imagenet_placement"),
        ("imagenet_placement", "--profile paper --dataset imagenet", "imagenet_placement"),
        ("imagenet_placement", "--profile demo", "imagenet_placement-demo"),
        ("imagenet_placement", "--smoke-test", "imagenet_placement-smoke"),
        ("imagenet_placement", "--profile paper --dataset folder:/a/flowers", "imagenet_placement-flowers"),
        ("imagenet_placement", "--profile demo --dataset folder:/a/flowers", "imagenet_placement-demo-flowers"),
        ("imagenet_placement", "--profile paper --set dataset=folder:/a/flowers", "imagenet_placement-flowers"),
        ("imagenet_placement", "--profile mini --dataset synthetic", "imagenet_placement-mini-embedded"),
        ("imagenet_placement", "--profile mini --dataset folder:/a/demo", "imagenet_placement-mini-folder-demo"),
        ("imagenet_placement", "--profile mini --dataset imagenet:size=64", "imagenet_placement-mini-imagenet_size=64"),
        ("cifar_width", "--profile paper --dataset cifar10", "cifar_width-cifar10"),
        ("cifar_width", "--profile paper --set recipe.epochs=10", "cifar_width-recipe.epochs=10"),
        ("cifar_width", "--profile paper --set recipe.epochs=350", "cifar_width"),  # which it has
        ("cifar_width", "--profile paper --set recipe.epochs=9 recipe.epochs=350", "cifar_width"),
        (
            "cifar_width",
            "--profile paper --set recipe.lr=1e-2 recipe.flip=0",
            "cifar_width-recipe.flip=false,recipe.lr=0.01",
        ),
        (
            "cifar_width",
            "--profile paper --set recipe.flip=false recipe.lr=.01",
            "cifar_width-recipe.flip=false,recipe.lr=0.01",
        ),
        # Values that go only together, in both orders.
        (
            "cifar_vgg",
            "--profile paper --set recipe.shift=0 recipe.resized_crop=0.35",
            "cifar_vgg-recipe.resized_crop=0.35,recipe.shift=0",
        ),
        (
            "cifar_vgg",
            "--profile paper --set recipe.resized_crop=0.35 recipe.shift=0",
            "cifar_vgg-recipe.resized_crop=0.35,recipe.shift=0",
        ),
        (
            "cifar_vgg",
            "--profile paper --set recipe.nesterov=true recipe.dampening=0",
            "cifar_vgg-recipe.dampening=0.0,recipe.nesterov=true",
        ),
        ("cifar_vgg", "--profile paper --set net.final_activation=relu", "cifar_vgg-net.final_activation=relu"),
        ("cifar_vgg", "--profile paper --set net.final_activation=none", "cifar_vgg"),
        ("cifar_vgg", "--profile paper --set recipe.name=vgg-mine", "cifar_vgg"),  # which is no part of a trial
        ("cifar_width", "--profile paper --folds 5", "cifar_width-folds=5"),
        ("cifar_width", "--profile paper --folds 10", "cifar_width"),  # which it has
        ("cifar_width", "--profile paper --folds 0", "cifar_width"),  # a part of its trainings
        ("cifar_width", "--profile demo --folds 3", "cifar_width-demo"),
        ("cifar_width", "--profile demo --folds 10", "cifar_width-demo-folds=10"),
        ("cifar_width", "--profile paper --set recipe.lr=0.01 --folds 5", "cifar_width-recipe.lr=0.01-folds=5"),
    ],
)
def test_title_names_what_the_page_s_cells_are_not(page: str, words: str, title: str) -> None:
    sweep, _ = declared(page, *words.split())
    assert sweep.title == title
    assert SWEEP_TITLE.fullmatch(title)
    again = sweep_from_json(plan_to_json(plan(sweep, Ledger("/nowhere"), {})))
    assert (again.title, again) == (title, sweep)


@pytest.mark.parametrize("labels", [["CReLU cifar10"], ["CReLU cifar10", "CReLU cifar100"]])
def test_smoke_test_of_a_page_with_one_cell_of_its_first_data_set_has_one(labels: list[str]) -> None:
    page = import_module("sweeps.cifar_width").CELLS
    cells = [cell for cell in page if cell.label in labels]
    options = parser("own", "").parse_args(["--smoke-test", "--output", "/nowhere/out"])
    sweep = declare("own", cells, Protocol(), options, settle(cells, options))
    assert [cell.label for cell in sweep.cells] == ["CReLU embedded"]


@pytest.mark.parametrize(
    "words", ["folder:/a/my flowers/../my: flowers*", "folder:/ä/Blüten", "folder:/", "folder:/..."]
)
def test_title_is_a_file_name(words: str) -> None:
    title = declared("cifar_width", "--profile", "paper", "--dataset", words)[0].title
    assert title.startswith("cifar_width-")
    assert len(title) > len("cifar_width-")
    assert SWEEP_TITLE.fullmatch(title)
    assert not set(title) & set(" /\\:*?\"'<>|\t")


def test_folds_are_named_unless_an_earlier_version_has_declared_them_without(tmp_path: Path) -> None:
    words = ("cifar_width", "--profile", "paper", "--folds")
    five, _ = declared(*words, "5", output=tmp_path)
    written(dataclasses.replace(five, variant=""), tmp_path)  # as it was called before
    assert declared(*words, "5", output=tmp_path)[0].title == "cifar_width"
    assert declared(*words, "6", output=tmp_path)[0].title == "cifar_width-folds=6"
    page = written(declared("cifar_width", "--profile", "paper", output=tmp_path)[0], tmp_path)
    assert (page.title, page.protocol.folds) == ("cifar_width", 10)
    assert declared(*words, "5", output=tmp_path)[0].title == "cifar_width-folds=5"


def test_long_title_is_cut_and_remains_its_own() -> None:
    fields = ["recipe.epochs=7", "recipe.lr=0.02", "recipe.momentum=0.8", "recipe.weight_decay=0.01", "recipe.shift=3"]
    long, _ = declared("cifar_width", "--profile", "paper", "--set", *fields)
    other, _ = declared("cifar_width", "--profile", "paper", "--set", *fields[:-1], "recipe.shift=2")
    assert long.title.startswith("cifar_width-recipe.epochs=7,recipe.lr=0.02")
    assert len(long.title) <= len("cifar_width-") + 60
    assert long.title != other.title


def test_two_folders_of_one_name_are_two_sweeps(tmp_path: Path) -> None:
    def of(folder: str) -> Sweep:
        words = ("--profile", "mini", "--dataset", f"folder:{folder}")
        return declared("imagenet_placement", *words, output=tmp_path)[0]

    first = written(of("/a/flowers"), tmp_path)
    second = written(of("/b/flowers"), tmp_path)
    assert first.title == "imagenet_placement-mini-flowers"
    assert second.title.startswith("imagenet_placement-mini-flowers-")
    assert len(second.title) == len(first.title) + len("-123abc")
    assert (of("/a/flowers"), of("/b/flowers")) == (first, second)
    Path(Ledger.in_output(str(tmp_path)).path(f"plans/{first.title}.json")).unlink()
    assert of("/b/flowers").title == second.title  # it stays where its results are


def test_two_folders_of_one_name_are_two_sweeps_of_other_folds_too(tmp_path: Path) -> None:
    def of(folder: str, folds: str) -> Sweep:
        words = ("--profile", "paper", "--dataset", f"folder:{folder}", "--folds", folds)
        return declared("cifar_width", *words, output=tmp_path)[0]

    first = written(of("/a/flowers", "5"), tmp_path)
    second = written(of("/b/flowers", "5"), tmp_path)
    digest = second.title.removeprefix("cifar_width-flowers-").removesuffix("-folds=5")
    assert (first.title, len(digest)) == ("cifar_width-flowers-folds=5", 6)
    assert (of("/a/flowers", "5"), of("/b/flowers", "5")) == (first, second)
    assert of("/b/flowers", "10").title == "cifar_width-flowers"  # which no other data has yet
    earlier = f"cifar_width-flowers-{digest}"
    written(dataclasses.replace(of("/b/flowers", "6"), variant=f"flowers-{digest}"), tmp_path)
    assert of("/b/flowers", "6").title == earlier  # as it was called before


def test_sweeps_of_one_output_stand_side_by_side_under_their_titles(tmp_path: Path) -> None:
    asked: tuple[tuple[str, ...], ...] = (
        ("--profile", "demo"),
        ("--profile", "demo", "--dataset", "folder:/a/flowers"),
        ("--profile", "demo", "--set", "recipe.epochs=3"),
    )
    sweeps = [written(declared("cifar_width", *words, output=tmp_path)[0], tmp_path) for words in asked]
    ledger = Ledger.in_output(str(tmp_path))
    assert sorted(titles(ledger)) == sorted(sweep.title for sweep in sweeps)
    assert len({sweep.title for sweep in sweeps}) == 3
    for sweep in sweeps:
        assert titles(ledger, sweep.title) == [sweep.title]
        assert read_sweep(ledger, sweep.title).sweep == sweep


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (("--profile", "demo"), "CReLU half embedded"),
        (("--profile", "paper", "--dataset", "folder:/a/flowers"), "CReLU half flowers"),
        (("--profile", "paper", "--dataset", "folder:/a/cifar10"), "CReLU half folder-cifar10"),
        (("--profile", "paper"), "CReLU half cifar10"),
    ],
)
def test_cells_are_named_for_what_they_train_on(words: tuple[str, ...], label: str) -> None:
    sweep, _ = declared("cifar_width", *words)
    (cell,) = [cell for cell in sweep.cells if cell.row == "CReLU half" and stands_for(cell) == "cifar10"]
    assert cell.label == label
    assert data_name(cell.dataset) == label.split()[-1]


@pytest.mark.parametrize(
    ("dataset", "label", "title"),
    [
        ("folder:/a/flowers", "CReLU half flowers", "Table 1, CIFAR-100 on flowers"),
        ("synthetic", "CReLU half embedded", "Table 1, CIFAR-100 on embedded pictures"),
        ("imagenet", "CReLU half imagenet", "Table 1, CIFAR-100 on ImageNet"),
    ],
)
def test_cell_says_for_which_data_set_of_the_paper_it_stands(
    dataset: str, label: str, title: str, tmp_path: Path
) -> None:
    cell = import_module("sweeps.cifar_width").CELLS[-1]
    assert (cell.dataset, stands_for(cell)) == ("cifar100", "cifar100")
    options = parser("cifar_width", "").parse_args(["--profile", "paper", "--set", f"dataset={dataset}"])
    moved = declare("p", (cell,), Protocol(), options, settle((cell,), options))
    (moved_cell,) = moved.cells
    assert (moved_cell.label, moved_cell.dataset, stands_for(moved_cell)) == (label, dataset, "cifar100")
    written(moved, tmp_path)
    (group,) = groups(read_sweep(Ledger.in_output(str(tmp_path)), moved.title))
    assert (group.id, group.title, group.comparable) == ("table-1-cifar100", title, False)
    # No part of any key; and older ledgers, which lack it, are read.
    value = cell_to_json(moved_cell)
    assert value.pop("paper_dataset") == "cifar100"
    del value["versus"]
    older = cell_from_json(value)
    assert (older.key, Trial(older).key) == (moved_cell.key, Trial(moved_cell).key)
    assert older.paper_dataset == ""


@pytest.mark.parametrize(
    ("dataset", "level"),
    [("cifar10", "cifar10"), ("folder:/a/birds", "birds"), ("folder:/a/birds", "folder:/a/birds")],
)
def test_levels_of_a_grid_name_what_its_cells_train_on(dataset: str, level: str) -> None:
    def cell(data: str, act: str, width: float) -> Cell:
        return Cell(f"{act} {data}", S2.activation(act, 1).width(width), dataset, ALLCONV)

    cells = grid(cell, data=(level,), act=("relu", "crelu"), width=(0.5,))
    options = parser("p", "").parse_args(["--profile", "paper", "--dataset", "folder:/a/flowers"])
    moved = declare("p", cells, Protocol(), options, settle(cells, options, False), False)
    assert [cell.label for cell in moved.cells] == ["relu flowers", "crelu flowers"]
    assert [cell.factors for cell in moved.cells] == [
        (("data", "flowers"), ("act", act), ("width", 0.5)) for act in ("relu", "crelu")
    ]
