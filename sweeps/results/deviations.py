"""Deviations of trials from the paper, collected from their cells and results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from crelu_models.spec import Conv, Drop, Linear, Net
from crelu_models.tables import PAPER
from data.datasets import DataSet, dataset
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe
from sweeps.results.cell_numbers import SETS, ResultTable
from sweeps.results.evidence import CellResults

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
}  # fmt: skip
Differences = Iterator[tuple[str, str, str]]  # what differs, the paper's, ours


class Deviation(NamedTuple):
    """One deviation of rows of a table from the paper; `rows` are their labels, () for all of them."""

    what: str
    paper: str
    here: str
    rows: tuple[str, ...]


def deviations(table: ResultTable) -> list[Deviation]:
    """Return the deviations of the rows of one of the paper's tables, each once with its rows."""
    labels: dict[tuple[str, str, str], list[str]] = {}
    trained = [
        (row.label, row.evidence)
        for row in table.rows
        if row.evidence is not None and any(run.result for run in row.evidence.runs)
    ]
    for label, cell in trained:
        for difference in dict.fromkeys(_differences(cell, table)):
            labels.setdefault(difference, []).append(label)
    return [
        Deviation(*difference, () if len(rows) == len(trained) else tuple(rows)) for difference, rows in labels.items()
    ]


def _differences(results: CellResults, table: ResultTable) -> Differences:
    cell = results.cell
    if (cell.table, cell.row) not in CELLS:
        return
    name, recipe = CELLS[cell.table, cell.row]
    yield from _data(results, table)
    yield from _nets(cell.net, PAPER[name], results.classes)
    yield from _recipes(cell.recipe, recipe)
    for precision in sorted({str(run.result["precision"]) for run in results.runs if run.result} - {"fp32"}):
        yield "precision", "fp32", precision
    printed = _dropout(PAPER[name])
    # The paper tuned the dropout of the all-convolutional CIFAR nets, and does not print the rates.
    if cell.table != "1":
        for rates in sorted({_dropout(run.trial.net) for run in results.tested} - {printed}):
            yield "dropout", printed, rates


def _data(results: CellResults, table: ResultTable) -> Differences:
    """Yield differences of the pictures: which, how many, how large, how many were held out of training."""
    name = results.cell.dataset
    if name != table.dataset:
        yield "data", SETS[table.dataset], name
    paper, ours = dataset(table.dataset), _facts(name)
    tested = {len(run.decisions.ids) for run in results.tested if run.decisions is not None}
    for count in sorted(tested - {paper.splits[paper.final]}):
        yield "test pictures", f"{paper.splits[paper.final]:,}", f"{count:,}"
    if ours is not None and (ours.size, ours.crop) != (paper.size, paper.crop):
        yield "picture and crop (pixels)", f"{paper.size}, {paper.crop}", f"{ours.size}, {ours.crop}"
    if results.done("ablation") and ours is not None:
        yield "training pictures", "all", f"all but {ours.holdout:,} held out"


def _facts(name: str) -> DataSet | None:
    try:
        return dataset(name)
    except ValueError:  # a folder that was prepared elsewhere
        return None


def _nets(ours: Net, paper: Net, classes: int | None) -> Differences:
    if _layers(ours) != _layers(paper):
        if classes is None:
            yield "net", str(paper.name), "another one"
        else:
            yield "net (parameters)", f"{paper.parameters(classes):,}", f"{ours.parameters(classes):,}"
    # The supplement prints an activation on the scores of all nets but VGG; ours have none by default.
    printed = "none" if isinstance(_last(paper), Linear) else "avr" if ".avr(" in paper.name else "relu"
    if _last(ours).act != printed:
        yield "activation on the scores", printed, _last(ours).act


def _layers(net: Net) -> list[object]:
    """Return the layers of a net without its dropout and the activation on its scores."""
    rows = [row for row in net.rows if not isinstance(row, Drop)]
    return [row._replace(act="none") if row == _last(net) else row for row in rows]


def _last(net: Net) -> Conv | Linear:
    return [row for row in net.rows if isinstance(row, Conv | Linear)][-1]


def _recipes(ours: Recipe, paper: Recipe) -> Differences:
    for field, name in FIELDS.items():
        if getattr(ours, field) != getattr(paper, field):
            yield name, _text(getattr(paper, field)), _text(getattr(ours, field))
    if (ours.stages, ours.schedule_epochs) != (paper.stages, paper.schedule_epochs):
        yield "schedule", _schedule(paper), _schedule(ours)


def _schedule(recipe: Recipe) -> str:
    """Return the factors of the learning rate and where they begin, in epochs of this recipe."""
    steps = [
        f"x{stage.lr_factor:g} from {(stage.first_epoch - 1) * recipe.epochs // recipe.schedule_epochs + 1}"
        for stage in recipe.stages[1:]
    ]
    return ", ".join(steps[:4] + ["..."] * (len(steps) > 4)) or "constant"


def _dropout(net: Net) -> str:
    return ", ".join(f"{rate:g} after {place}" for place, rate in net.dropouts().items()) or "none"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
