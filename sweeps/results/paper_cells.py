"""Cells of the paper: the net and the recipe of each printed row, and what keeps a cell of ours from being one of them.

A number of ours is judged by the paper's, and a sentence of the paper decided, where the trainings are the paper's:

    data      the public set by its name, all of its pictures (one unreadable in a thousand may be missing), its classes
    recipe    every field, epochs and stages; precision and the number of restarts are not the paper's to say, and a
              learning rate from a study is compared unless the table leaves it open
    net       every layer at its full width; dropout is tuned, and the activation on the scores is left open

Recipe and net are those that were trained: where a search or a study chose a field or a width, that is compared.

The results name how many pictures were in the training file and in the test file. The pictures themselves have no
public fingerprint: that all trainings of a cell had the same ones is checked, that they are the public ones is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from crelu_data.datasets import DataSet, dataset
from crelu_models.model import Model
from crelu_models.spec import Conv, Drop, Linear, Net
from crelu_models.tables import PAPER, S4
from sweeps.experiment.metrics import PARTIAL, flags_of
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, SPRINGENBERG, VGG, Recipe
from sweeps.experiment.space import Choices, chosen_net, chosen_recipe
from sweeps.experiment.trial import Cell
from sweeps.experiment.wording import count
from sweeps.results.evidence import CellResults, Run
from sweeps.results.paper import BY_THE_LETTER, LEFT_OPEN, Printed, printed

# The net and the recipe of each row of the paper's tables.
# fmt: off
CELLS: Final = {
    ("1", "Baseline"):        ("S2",         ALLCONV),
    ("1", "Double"):          ("S3_double",  ALLCONV),
    ("1", "AVR"):             ("S2_avr",     ALLCONV),
    ("1", "CReLU"):           ("S3_crelu",   ALLCONV),
    ("1", "CReLU half"):      ("S3_half",    ALLCONV),
    ("2", "VGG"):             ("S4",         VGG),
    ("2", "CReLU (1)"):       ("S5",         VGG),
    ("2", "CReLU (1,3)"):     ("S6",         VGG),
    ("2", "CReLU (1,3,5)"):   ("S7",         VGG),
    ("4", "Baseline"):        ("S8",         IMAGENET_SGD),
    ("4", "AVR conv1-4"):     ("S8_avr_1_4", IMAGENET_SGD),
    ("4", "AVR conv1-7"):     ("S8_avr_1_7", IMAGENET_SGD),
    ("4", "AVR conv1-9"):     ("S8_avr_1_9", IMAGENET_SGD),
    ("4", "CReLU conv1,4,7"): ("S13",        IMAGENET_ADAM),
    ("4", "CReLU conv1-4"):   ("S9",         IMAGENET_SGD),
    ("4", "CReLU conv1-7"):   ("S10",        IMAGENET_SGD),
    ("4", "CReLU conv1-9"):   ("S11",        IMAGENET_SGD),
    ("4", "CReLU all"):       ("S12",        IMAGENET_ADAM),
}
# The networks of Tables 6 and S1, whose rows are layers: table and row of a cell.
NETWORKS: Final = {
    "6": ("4", "CReLU conv1-7"),
    "S1": ("1", "CReLU half"),
}
# Nets of footnote 5, which no table prints; a cell without a table is one of them by its net and data set.
FOOTNOTE_5: Final = {
    "VGG":       S4,
    "CReLU (2)": S4.crelu(2, width=0.5),
    "CReLU (4)": S4.crelu(4, width=0.5),
}
# fmt: on
FIELDS: Final = {
    "optimiser": "optimiser",
    "batch": "batch",
    "epochs": "epochs",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "momentum": "momentum",
    "dampening": "dampening",
    "init": "initialisation",
    "flip": "flips",
    "shift": "shifts (pixels)",
    "lighting": "colour noise (std)",
    "drop_last": "drop the last batch",
    "warmup_epochs": "warm-up epochs",
    "clip_norm": "gradient norm cut at",
    "nesterov": "Nesterov's momentum",
    "label_smoothing": "label smoothing",
    "resized_crop": "least share of a resized crop",
    "rand_augment": "operations of RandAugment",
    "mixup": "mixup",
    "ema": "decay of averaged weights",
}  # fmt: skip
UNREADABLE: Final = 0.001  # share of a set's pictures that its preparation may leave out

Place = tuple[str, str]  # the paper's data set and row
Differences = Iterator[tuple[str, str, str]]  # what differs, the paper's, ours


def paper_net(cell: Cell) -> Net | None:
    """Return the net that the paper has in the place of a cell, None where it prints no such row."""
    if (cell.table, cell.row) in CELLS:
        return PAPER[CELLS[cell.table, cell.row][0]]
    return FOOTNOTE_5.get(footnote_row(cell))


def paper_recipe(cell: Cell) -> Recipe:
    """Return the recipe that the paper has in the place of a cell."""
    return CELLS[cell.table, cell.row][1] if (cell.table, cell.row) in CELLS else VGG


def footnote_row(cell: Cell) -> str:
    """Return the row of footnote 5 that a cell without a table is, empty where it is none."""
    if cell.table or cell.task or isinstance(cell.net, Model) or not cell.dataset.startswith("cifar"):
        return ""
    return next((row for row, net in FOOTNOTE_5.items() if layers(net) == layers(cell.net)), "")


def printed_of_layer(table: str, dataset: str, layer: str, metric: str, net: Net, cell: Cell | None) -> Printed | None:
    """Return what the paper prints of a layer in Table 6 or S1, None unless row, net and data set are the paper's.

    Anybody's weights have no `cell`: their net and data set are all that is known of them.
    """
    row = NETWORKS[table]
    name, _ = CELLS[row]
    is_row = cell is None or (cell.table, cell.row, cell.dataset) == (*row, dataset)
    is_net = layers(net) == layers(PAPER[name]) or is_literal(net, name)
    return printed(table, dataset, layer, metric) if is_row and is_net else None


def other_data(results: CellResults, paper_set: str) -> str:
    """Return in what the pictures of a cell are not the paper's, empty where they are."""
    if results.synthetic:
        return "embedded pictures"
    if results.cell.dataset != paper_set:
        return "other data than the paper's"
    if classes := other_classes(results, paper_set):
        return classes
    paper = dataset(paper_set)
    for kind, counts, full in (
        ("training", training_pictures(results), paper.splits["train"]),
        ("test", tested_pictures(results), paper.splits[paper.final]),
    ):
        for number in sorted(counts):
            if is_other_count(number, full):
                return f"{count(number, f'{kind} picture')}, not {full:,}"
    if on_part(results):
        return "a part of the published data set, or other files by its name"
    prints = {str(run.result["fingerprint"]) for run in results.tested if run.result}
    return "trainings on different pictures" if len(prints) > 1 else ""


def other_classes(results: CellResults, paper_set: str) -> str:
    """Return how many classes a cell has where they are not as many as the paper's, else nothing."""
    classes = dataset(paper_set).classes
    return "" if results.classes in (None, classes) else f"{count(results.classes, 'class')}, not {classes:,}"


def reduced(results: CellResults, paper_set: str) -> str:
    """Return in what the trainings of a cell are not the paper's, empty where they are."""
    return other_data(results, paper_set) or other_training_of(results)


def standing_cells(cells: Iterable[tuple[Place, CellResults]]) -> dict[Place, CellResults]:
    """Return the one cell that stands for each place of the paper: of several the first that is the paper's.

    Where none is, it is the first that was trained as the paper's, on other pictures; else the first.
    """
    found: dict[Place, list[CellResults]] = {}
    for place, results in cells:
        found.setdefault(place, []).append(results)
    return {place: _first_of_paper(several, place[0]) for place, several in found.items()}


def _first_of_paper(cells: Sequence[CellResults], paper_set: str) -> CellResults:
    """Return the first of the cells that are most the paper's: first by recipe and net, then by pictures."""
    if len(cells) == 1:
        return cells[0]
    return min(cells, key=lambda cell: (bool(other_training_of(cell)), bool(other_data(cell, paper_set))))


def other_training_of(results: CellResults) -> str:
    """Return in what a cell was not trained as the paper's, with what search and study chose; empty where it was.

    Dropout from a search is the paper's own way.
    """
    trials = [run.trial for run in _chosen_runs(results)]
    settings = tuple(dict.fromkeys((trial.choices, trial.rate) for trial in trials)) or (((), 0.0),)
    return next(filter(None, (other_training(results.cell, choices, rate) for choices, rate in settings)), "")


def choices_of(results: CellResults) -> tuple[Choices, ...]:
    """Return the distinct choices of a search with which a cell was tested, or would be: those of its best trial.

    Where a search chose nothing (yet), they are one empty choice.
    """
    return tuple(dict.fromkeys(run.trial.choices for run in _chosen_runs(results))) or ((),)


def _chosen_runs(results: CellResults) -> tuple[Run, ...]:
    """Return the runs by which a cell was tested, or those of its search's best trial, by whose choices it would be."""
    return results.tested or (results.winner.runs if results.winner is not None else ())


def other_training(cell: Cell, choices: Choices = (), rate: float = 0.0) -> str:
    """Return in what a cell's net or recipe, with these choices of a search, is not the paper's; empty where it is.

    `rate` is the learning rate of a study, 0 for none; it counts as the recipe's. Some tables leave the rate open:
    there any rate of a study is the paper's, and so are the rates of its source. Other open fields may be as we chose
    them, or by the letter. The pictures do not matter here.
    """
    paper = paper_net(cell)
    if paper is None:
        return "no row of the paper's"
    net = chosen_net(cell.net, choices)
    name, _ = CELLS.get((cell.table, cell.row), ("", None))
    if isinstance(net, Model) or (layers(net) != layers(paper) and not is_literal(net, name)):
        return f"another net than the paper's {name or paper.name}"
    theirs = paper_recipe(cell)
    ours = chosen_recipe(dataclasses.replace(cell.recipe, lr=rate) if rate else cell.recipe, choices)
    if "lr" in LEFT_OPEN.get(cell.table, {}) and (rate or ours.lr in SPRINGENBERG):
        ours = dataclasses.replace(ours, lr=theirs.lr)
    letter = BY_THE_LETTER.get(cell.table, {})
    as_ours = {field: getattr(theirs, field) for field, value in letter.items() if getattr(ours, field) == value}
    differences = recipe_differences(dataclasses.replace(ours, **as_ours), theirs)
    changed = [f"{what} {here}, not {there}" for what, there, here in differences]
    return f"another recipe: {changed[0]}" + (f" and {len(changed) - 1} more" if changed[1:] else "") if changed else ""


def training_pictures(results: CellResults) -> set[int]:
    """Return how many pictures the training files of a cell's results had, as far as they say."""
    counts = {int(run.result.get("train_pictures", 0)) for run in results.runs if run.result}
    return counts - {0}


def on_part(results: CellResults) -> bool:
    """Return whether a training of a cell was on a part of the published set, as its preparation marked it."""
    return any(PARTIAL in flags_of(run.result) for run in results.runs if run.result)


def tested_pictures(results: CellResults) -> set[int]:
    """Return on how many pictures a cell's networks were tested, as far as their decisions are known."""
    return {len(run.decisions.ids) for run in results.tested if run.decisions is not None}


def is_other_count(count: int, full: int) -> bool:
    """Return whether a file of `count` pictures is not the public one of `full`."""
    return not (1 - UNREADABLE) * full <= count <= full


def set_facts(name: str) -> DataSet | None:
    """Return the facts of a data set by its name, None for a folder that was prepared elsewhere."""
    try:
        return dataset(name)
    except (ValueError, OSError):
        return None


def layers(net: Net) -> list[object]:
    """Return the layers of a net without its dropout and the activation on its scores."""
    scores = last_layer(net)
    rows = [row for row in net.rows if not isinstance(row, Drop)]
    return [row._replace(act="none") if row == scores else row for row in rows]


def is_literal(net: Net, name: str) -> bool:
    """Return whether a net is the supplement's print of the one of this name, where ours is a reading of it."""
    return f"{name}_literal" in PAPER and layers(net) == layers(PAPER[f"{name}_literal"])


def last_layer(net: Net) -> Conv | Linear:
    """Return the layer whose outputs are the scores."""
    return [row for row in net.rows if isinstance(row, Conv | Linear)][-1]


def recipe_differences(ours: Recipe, paper: Recipe) -> Differences:
    """Yield the fields in which a recipe is not the paper's."""
    for field, name in FIELDS.items():
        if getattr(ours, field) != getattr(paper, field):
            yield name, value_text(getattr(paper, field)), value_text(getattr(ours, field))
    if (ours.schedule, ours.stages, ours.schedule_epochs) != (paper.schedule, paper.stages, paper.schedule_epochs):
        yield "schedule", _schedule(paper), _schedule(ours)


def _schedule(recipe: Recipe) -> str:
    """Return the factors of the learning rate and where they begin, in epochs of this recipe."""
    if recipe.schedule != "stages":
        return recipe.schedule
    steps = [
        f"x{stage.lr_factor:g} from {(stage.first_epoch - 1) * recipe.epochs // recipe.schedule_epochs + 1}"
        for stage in recipe.stages[1:]
    ]
    return ", ".join(steps[:4] + ["..."] * (len(steps) > 4)) or "constant"


def value_text(value: object) -> str:
    """Return the value of a recipe's field as a reader reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
