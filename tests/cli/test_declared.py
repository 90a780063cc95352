"""What a page declares is what its trials hold, or a printed line names what differs, or the command is refused."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sweeps.cifar_vgg
import sweeps.cifar_width
import sweeps.full_grid
import sweeps.imagenet_dropout
import sweeps.imagenet_placement
from crelu_models.model import Model
from crelu_models.tables import PAPER, S2, S4, S8
from sweeps.cli import settings
from sweeps.cli.options import parser
from sweeps.cli.settings import declare, notes, settle
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.halving import rungs
from sweeps.experiment.metrics import Metric
from sweeps.experiment.profiles import PROFILES, changed_fields, data_name, names_paper, scaled
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe, Stage
from sweeps.experiment.search import Search
from sweeps.experiment.space import Choice, Float, Int
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell, trial_from_json
from sweeps.training import runtime

PAGES = 1000
PARSER = parser("page", "?")
NETS = (S2, S2.crelu(1, 2, width=0.5), S2.dropout(0.5, "pool1").width(0.5), S4.dropout(0.4, 2), S8, PAPER["S8_avr_1_4"])
MODELS = (
    Model("torchvision.models:resnet18", size=64),
    Model("nets:small", depth=4),
    Model("nets:small").at("a.*").activation("crelu", width=0.5),
)
RECIPES = (ALLCONV, VGG, IMAGENET_SGD, IMAGENET_ADAM)
SETS = ("cifar10", "cifar100", "imagenet", "folder:/pictures/birds", "synthetic:size=32,classes=5,train=100,test=50")
SPACES: tuple[dict[str, Float | Int | Choice], ...] = (
    {},
    {"recipe.lr": Float(1e-3, 1.0, log=True)},
    {"recipe.epochs": Int(20, 200)},
    {"recipe.epochs": Choice(5, 30), "recipe.optimiser": Choice("sgd", "adam")},
    {"net.width": Float(0.5, 1.0, step=0.25), "recipe.batch": Int(16, 64, step=16)},
    {"model.depth": Int(1, 4), "recipe.label_smoothing": Float(0.0, 0.2, step=0.1)},
)
F1 = Metric("test/f1", better="higher")
ROWS = (
    *(cell for cell in sweeps.imagenet_placement.CELLS),
    *(cell for cell in sweeps.cifar_vgg.CELLS),
)


@dataclasses.dataclass
class Page:
    """Page with a command line and the machine that it is given on."""

    cells: tuple[Cell, ...]
    protocol: Protocol
    words: list[str]
    of_paper: bool
    gpu: bool = False
    configured: bool = False


def recipe_of(draw: random.Random) -> Recipe:
    recipe = draw.choice(RECIPES)
    changes: dict[str, Any] = {}
    if draw.random() < 0.7:
        choices: dict[str, Any] = {
            "name": draw.choice(["mine", recipe.name]),
            "lr": draw.choice([0.5, 0.1, 1e-3]),
            "epochs": draw.choice([1, 5, 30]),
            "optimiser": draw.choice(["sgd", "adam"]),
            "batch": draw.choice([16, 96]),
            "stages": draw.choice([(Stage(1, 1.0),), recipe.stages]),
            "weight_decay": 1e-4,
            "init": draw.choice(["xavier", "own"]),
            "schedule": "cosine",
            "warmup_epochs": draw.choice([0.5, 5.0]),
            "nesterov": True,
            "label_smoothing": 0.1,
            "resized_crop": 0.08,
            "rand_augment": 2,
            "rand_magnitude": 5,
            "mixup": 0.2,
            "ema": 0.9,
        }
        changes = {name: choices[name] for name in draw.sample(list(choices), draw.randint(1, 6))}
    return dataclasses.replace(recipe, **changes)


def search_of(draw: random.Random) -> Search:
    halved = draw.random() < 0.4
    space = draw.choice(SPACES)
    return Search(
        trials=draw.choice([2, 20]),
        sampler=draw.choice(["tpe", "random", "grid" if space else "tpe"]),  # a grid of dropout has 10,000 points
        wave=draw.choice([2, 4]),
        space=space,
        halving=draw.choice([2, 3]) if halved else 0,
        rung=draw.choice([0, 0, 3, 30]) if halved else 0,
    )


def page_of(draw: random.Random) -> Page:
    of_paper = draw.random() < 0.25
    sets = draw.sample(SETS, draw.choice([1, 1, 2]))
    if of_paper:
        cells = tuple(draw.sample(ROWS, draw.randint(1, 4)))
    else:
        nets = draw.choice([NETS, MODELS, (*NETS, *MODELS)])
        task, metric = draw.choice([("", Metric()), ("", Metric()), ("mine:train", Metric()), ("mine:train", F1)])
        cells = tuple(
            Cell(f"cell {number}", draw.choice(nets), draw.choice(sets), recipe_of(draw), task=task, metric=metric)
            for number in range(draw.randint(1, 4))
        )
    protocol = Protocol(
        seeds=draw.choice([1, 3]),
        single=draw.random() < 0.3,
        folds=draw.choice([0, 0, 5]),
        search=search_of(draw) if draw.random() < 0.5 else None,
        rates=draw.choice([None, None, RateStudy("cell 0")]),
    )
    words: list[str] = []
    if profile := draw.choice([None, None, "paper", "mini", "demo"]):
        words += ["--profile", profile]
    elif draw.random() < 0.1:
        words += ["--smoke-test"]
    if draw.random() < 0.3:
        words += ["--dataset", draw.choice(SETS)]
    if draw.random() < 0.2:
        words += ["--set", f"recipe.epochs={draw.choice([2, 40])}"]
    if draw.random() < 0.2:
        words += ["--seeds", "2"]
    if draw.random() < 0.2:
        words += ["--search-trials", "7"]
    if draw.random() < 0.2:
        words += ["--address", "10.0.0.1:6379"]
    return Page(cells, protocol, words, of_paper, draw.random() < 0.5, draw.random() < 0.5)


def trained(page: Page, output: Path) -> tuple[Sweep, list[str]]:
    """Return the sweep that a page's command declares, and the lines that it prints."""
    data = ["--data-dir", str(output)] if page.configured else []
    options = PARSER.parse_args([*page.words, "--output", str(output), *data])
    chosen = settle(page.cells, options, page.of_paper)
    sweep = declare("page", page.cells, page.protocol, options, chosen, page.of_paper)
    lines = [chosen.display.banner, *notes(page.cells, page.protocol, options, chosen, page.of_paper)]
    return sweep, [line for text in lines for line in text.splitlines() if line]


def relabelled(cell: Cell, dataset: str) -> str:
    """Return the label of a cell on other data."""
    words = cell.label.split(" ")
    return " ".join(data_name(dataset) if word == data_name(cell.dataset) else word for word in words)


def differences(page: Page, sweep: Sweep) -> Iterator[str]:
    """Yield what a declared sweep holds otherwise than its page, each as the words that a line must have."""
    asked = dict(word.split("=") for flag, word in zip(page.words, page.words[1:], strict=False) if flag == "--set")
    flags = set(page.words)
    if len(sweep.cells) != len(page.cells):
        yield "two tiny cells" if "--smoke-test" in flags else f"are taken, {len(sweep.cells)} of {len(page.cells)}"
    # A cell is known by its label, in which the word for the data may have changed.
    for cell in sweep.cells:
        old = next((old for old in page.cells if old.label == cell.label), None) or next(
            old for old in page.cells if relabelled(old, cell.dataset) == cell.label
        )
        for field in dataclasses.fields(Recipe):
            value, now = getattr(old.recipe, field.name), getattr(cell.recipe, field.name)
            if field.name != "name" and value != now and f"recipe.{field.name}" not in asked:
                yield f"recipe {old.recipe.name}:|{field.name} "
        if old.net != cell.net:
            yield "nets: width"
            if old.net.dropouts() != cell.net.dropouts():
                yield "nets: dropout"
        if old.dataset != cell.dataset and "--dataset" not in flags:
            yield f"dataset: {old.dataset} -> {cell.dataset}"
        if isinstance(cell.net, Model) and cell.recipe.init != "own":
            yield "recipe.init|is for nets"
        for name in ("task", "metric", "decoder"):
            if getattr(old, name) != getattr(cell, name):
                yield name
    before, after = page.protocol, sweep.protocol
    if before.seeds != after.seeds and "--seeds" not in flags:
        yield "seeds:"
    if before.folds != after.folds:
        yield "folds:"
    if before.rates != after.rates:
        yield "learning rate:"
    if before.search != after.search and before.search is not None and after.search is not None:
        if before.search.trials != after.search.trials and "--search-trials" not in flags:
            yield "search trials:"
        if before.search.wave != after.search.wave:
            yield "search wave:"
        for name in ("sampler", "prune", "seed", "folds", "objective", "direction", "halving", "rung", "limits"):
            if getattr(before.search, name) != getattr(after.search, name):
                yield name
        kept = dict(after.search.axes)
        for name, domain in before.search.axes:
            if kept.get(name) != domain:
                yield f"search: {name} is not chosen"
    if after.search is not None and after.search.halving:
        for cell in sweep.cells:
            if rungs(cell.recipe.epochs, after.search.halving, after.search.rung) == (cell.recipe.epochs,):
                yield f"search halving: |recipe {cell.recipe.name},|trained whole"
    for name in ("ablation", "single", "match"):
        if getattr(before, name) != getattr(after, name):
            yield name


def silent(page: Page, sweep: Sweep, lines: list[str]) -> list[str]:
    """Return what a command does otherwise than its page says without a line that says so."""
    unsaid = [
        words
        for words in differences(page, sweep)
        if not any(all(word in line for word in words.split("|")) for line in lines)
    ]
    # Of the paper's pages one line says that these are the demo's nets and recipes.
    return [] if page.of_paper and sweep.profile != "paper" and lines + unsaid else unsaid


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    state = {"gpu": False}
    monkeypatch.setattr(runtime.glob, "glob", lambda _: ["/dev/nvidia0"] if state["gpu"] else [])
    for name in ("CRELU_DATA", "IMAGENET_DIR", "RAY_ADDRESS", "CRELU_DATA_SOURCE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(settings, "_data_dir", lambda _: Path("/nowhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    return state


def test_nothing_of_a_page_is_changed_silently(machine: dict[str, bool], tmp_path: Path) -> None:
    draw = random.Random(7)
    counts = {"refused": 0, "as written": 0, "said": 0, "searched": 0}
    for number in range(PAGES):
        try:
            page = page_of(draw)
        except ValueError:  # a net of ours without an initialisation
            counts["refused"] += 1
            continue
        machine["gpu"] = page.gpu
        try:
            sweep, lines = trained(page, tmp_path)
            trials = expand(sweep, {})[:2]  # no dropout is searched for a recipe of one's own
        except ValueError:
            counts["refused"] += 1
            continue
        assert silent(page, sweep, lines) == [], (number, page, lines)
        counts["said" if any(True for _ in differences(page, sweep)) else "as written"] += 1
        if not page.of_paper and not {"--profile", "--smoke-test"} & set(page.words):
            assert sweep.profile == "paper", "no page of a user becomes a demo by itself"
        if sweep.protocol.rates is None:
            declared = dict(page.protocol.search.axes if page.protocol.search else ())
            for trial in trials:
                counts["searched"] += bool(trial.choices)
                assert all(declared[name].holds(value) for name, value in trial.choices)
                names = {name.removeprefix("recipe.") for name, _ in trial.choices}
                for field in {field.name for field in dataclasses.fields(Recipe)} - names:
                    assert getattr(trial.recipe, field) == getattr(trial.cell.recipe, field), (number, field)
                again = trial_from_json(trial.to_json())
                assert (again.key, again.recipe, again.net) == (trial.key, trial.recipe, trial.net)
    assert min(counts.values()) > PAGES / 20, counts


UNHALVED = "search halving: no rung from epoch 30 on lies below the {} of recipe mine, so its search trials are "
EPOCHS = {"recipe.epochs": Int(20, 200)}


@pytest.mark.parametrize(
    ("search", "words", "lines"),
    [
        (Search(4, space=SPACES[1], halving=3, rung=30), [], []),
        (
            Search(4, space=SPACES[1], halving=3, rung=30),
            ["--profile", "demo"],
            [UNHALVED.format("8 epochs") + "trained whole"],
        ),
        (
            Search(4, space=SPACES[1], halving=3, rung=30),
            ["--set", "recipe.epochs=1"],
            [UNHALVED.format("1 epoch") + "trained whole"],
        ),
        (Search(4, space=SPACES[1], halving=3, rung=30), ["--profile", "demo", "--search-trials", "0"], []),
        (Search(4, space=EPOCHS | SPACES[1]), [], []),
        (
            Search(4, space=EPOCHS | SPACES[1]),
            ["--profile", "demo"],
            ["search: recipe.epochs is not chosen, it is each recipe's own"],
        ),
        (Search(4, space=EPOCHS), ["--profile", "demo", "--search-trials", "0"], []),
    ],
)
def test_a_search_is_no_longer_than_its_lines_say(
    machine: dict[str, bool], tmp_path: Path, search: Search, words: list[str], lines: list[str]
) -> None:
    mine = dataclasses.replace(ALLCONV, name="mine", epochs=100)
    sweep, printed = trained(Page((Cell("a", S2, "cifar10", mine),), Protocol(search=search), words, False), tmp_path)
    scaled_lines = ("search trials:", "search wave:")
    assert [line for line in printed if line.startswith("search") and not line.startswith(scaled_lines)] == lines
    if sweep.profile == "demo":
        assert "recipe mine: epochs 100 -> 8" in printed
        assert {trial.recipe.epochs for trial in expand(sweep, {})} == {8}


def test_a_profile_says_which_of_its_changes_a_search_goes_over(machine: dict[str, bool], tmp_path: Path) -> None:
    cells = (Cell("a", S2, "cifar10", ALLCONV),)
    search = Search(2, space={"recipe.lr": Float(0.01, 1.0)})
    _, printed = trained(Page(cells, Protocol(search=search), ["--profile", "demo"], of_paper=False), tmp_path)
    line = next(line for line in printed if line.startswith("recipe allconv:"))
    assert "lr 0.05 -> 0.002 (searched over the page's values), " in line
    assert line.count("searched") == 1


def test_a_search_of_epochs_alone_is_refused_under_a_profile(machine: dict[str, bool], tmp_path: Path) -> None:
    cells = (Cell("a", S2, "cifar10", ALLCONV),)
    page = Page(cells, Protocol(search=Search(space=EPOCHS)), ["--profile", "mini"], of_paper=False)
    with pytest.raises(ValueError, match=r"chooses recipe\.epochs alone, .* profile mini .* --search-trials 0"):
        trained(page, tmp_path)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ([], []),
        (["--profile", "demo"], ["recipe mine: epochs 40 -> 8", "nets: width x0.25 of each layer", "seeds: 3 -> 1"]),
        (["--profile", "mini"], ["recipe mine: epochs 40 -> 4", "nets: width x0.5 of each layer"]),
    ],
)
def test_a_grid_of_learning_rates_is_trained_on_any_machine(
    machine: dict[str, bool], tmp_path: Path, words: list[str], lines: list[str]
) -> None:
    mine = dataclasses.replace(ALLCONV, name="mine", epochs=40)
    cells = tuple(
        Cell(f"lr {lr}", S2, "folder:/pictures/birds", dataclasses.replace(mine, lr=lr)) for lr in (0.1, 0.05)
    )
    assert not machine["gpu"]
    page = Page(cells, Protocol(seeds=3), words, of_paper=names_paper(cells))
    sweep, printed = trained(page, tmp_path)
    assert [cell.recipe.lr for cell in sweep.cells] == [0.1, 0.05]
    assert set(lines) <= set(printed)
    assert bool(printed) == bool(lines)


def test_pages_of_the_paper_say_what_they_said(machine: dict[str, bool], tmp_path: Path) -> None:
    pages = (sweeps.imagenet_placement, sweeps.imagenet_dropout, sweeps.cifar_width, sweeps.cifar_vgg)
    for module in pages:
        cells = tuple(module.CELLS)
        assert names_paper(cells)
        page = Page(cells, Protocol(), [], of_paper=True)
        sweep, lines = trained(page, tmp_path)
        assert (sweep.profile, lines[0]) == ("demo", settings.DEMO.format(pictures="embedded pictures"))
        assert all("->" not in line for line in lines)
        assert [cell.recipe.name for cell in sweep.cells] == [
            f"{cell.recipe.name}-demo" for cell in cells[: len(sweep.cells)]
        ]
    grid = tuple(sweeps.full_grid.CELLS)
    assert trained(Page(grid, Protocol(), [], of_paper=True), tmp_path)[0].profile == "demo"


def test_a_page_whose_cells_a_search_makes_one_is_refused(machine: dict[str, bool], tmp_path: Path) -> None:
    cells = (Cell("a", S2, "cifar10", ALLCONV), Cell("b", S2.dropout(0.25, "pool1"), "cifar10", ALLCONV))
    with pytest.raises(ValueError, match="'a' and 'b' of page differ only in what is searched"):
        trained(Page(cells, Protocol(search=Search(3)), [], of_paper=False), tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
def test_no_page_of_ours_has_cells_that_a_search_makes_one(
    machine: dict[str, bool], tmp_path: Path, profile: str
) -> None:
    words = ["--smoke-test"] if profile == "smoke" else ["--profile", profile]
    for module in (sweeps.imagenet_placement, sweeps.cifar_width, sweeps.cifar_vgg, sweeps.full_grid):
        page = Page(tuple(module.CELLS), Protocol(search=Search(3)), words, of_paper=True)
        sweep, _ = trained(page, tmp_path)
        assert sweep.profile == profile
        assert len(sweep.cells) > 1


def test_a_profile_changes_a_model_in_nothing_but_its_epochs() -> None:
    cell = Cell("a", MODELS[0], "folder:/pictures/birds", dataclasses.replace(VGG, name="mine", init="own"))
    small = scaled(cell, "demo", own_recipes=True)
    assert small.net == cell.net
    assert changed_fields([cell], [small], "demo") == ["recipe mine: epochs 300 -> 8"]


def test_a_pack_of_cells_with_a_training_function_is_refused_or_named(machine: dict[str, bool], tmp_path: Path) -> None:
    ours = Cell("ours", S2, "cifar10", ALLCONV)
    custom = dataclasses.replace(ours, label="own", task="page:train")
    banner = {
        words: settle((ours, custom), parser("s", "").parse_args(["--output", str(tmp_path), *words])).display.banner
        for words in (("--pack", "4"), ("--pack", "auto"), ())
    }
    assert "--pack 4 leaves out own: a cell with a training function" in banner.pop(("--pack", "4"))
    assert not any("--pack" in line for line in banner.values())
    with pytest.raises(ValueError, match="--pack 4: a cell with a training function of its own trains alone"):
        settle((custom,), parser("s", "").parse_args(["--output", str(tmp_path), "--pack", "4"]))


@pytest.mark.parametrize(
    ("sets", "words", "pictures", "labels", "left_out"),
    [
        (
            ("folder:/a/birds", "folder:/a/fish"),
            ["--profile", "demo"],
            settings.OWN_DEMO.format(pictures="the pictures of folder:/a/birds and the pictures of folder:/a/fish"),
            ["net birds", "net fish"],
            "",
        ),
        (
            ("cifar10", "cifar100", "folder:/a/birds"),
            ["--profile", "demo"],
            settings.OWN_DEMO.format(pictures="embedded pictures and the pictures of folder:/a/birds"),
            ["net embedded", "net birds"],
            "one data set (embedded) besides the pictures that stay: the page's cells of cifar10 and folder:/a/birds "
            "are taken, 2 of 3",
        ),
        (
            ("cifar10", "cifar100"),
            ["--profile", "demo"],
            settings.OWN_DEMO.format(pictures="embedded pictures"),
            ["net embedded"],
            "one data set (embedded): the page's cells of cifar10 are taken, 1 of 2",
        ),
        (
            ("folder:/a/birds", "folder:/a/fish"),
            ["--smoke-test"],
            settings.SMOKE.format(pictures="embedded pictures"),
            ["net embedded"],
            "one data set (embedded): the page's cells of folder:/a/birds are taken, 1 of 2",
        ),
    ],
)
def test_a_demo_keeps_the_folders_of_a_page_and_says_on_what_it_trains(
    machine: dict[str, bool],
    tmp_path: Path,
    sets: tuple[str, ...],
    words: list[str],
    pictures: str,
    labels: list[str],
    left_out: str,
) -> None:
    cells = tuple(Cell(f"net {data_name(name)}", S2, name, ALLCONV) for name in sets)
    sweep, lines = trained(Page(cells, Protocol(), words, of_paper=False), tmp_path)
    assert [cell.label for cell in sweep.cells] == labels
    assert lines[0] == pictures
    assert [line for line in lines if line.startswith("one data set")] == ([left_out] if left_out else [])
