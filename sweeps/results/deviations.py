"""Where trials departed from the paper: collected from their cells and results, not from what anybody remembers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from crelu_models.spec import Conv, Drop, Linear, Net
from crelu_models.tables import PAPER
from data.datasets import DataSet, dataset
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe
from sweeps.results.cell_numbers import SETS, ResultTable
from sweeps.results.evidence import CellResults

# What the paper trains in each row of its tables, and by which recipe.
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
}


class Deviation(NamedTuple):
    """One thing that rows of a table did otherwise than the paper; `rows` are their labels, all of them: ()."""

    what: str
    paper: str
    here: str
    rows: tuple[str, ...]


def deviations(group: ResultTable) -> list[Deviation]:
    """Return what the rows of one of the paper's tables did otherwise, each thing once with the rows it is true of."""
    found: dict[tuple[str, str, str], list[str]] = {}
    rows = [row for row in group.rows if row.evidence is not None and any(run.result for run in row.evidence.runs)]
    for row in rows:
        if row.evidence is not None:
            for what in dict.fromkeys(_of(row.evidence, group)):
                found.setdefault(what, []).append(row.label)
    return [Deviation(*what, () if len(labels) == len(rows) else tuple(labels)) for what, labels in found.items()]


def _of(evidence: CellResults, group: ResultTable) -> Iterator[tuple[str, str, str]]:
    cell = evidence.cell
    if (cell.table, cell.row) not in CELLS:
        return
    name, recipe = CELLS[cell.table, cell.row]
    yield from _data(evidence, group)
    yield from _nets(cell.net, PAPER[name], evidence.classes)
    yield from _recipes(cell.recipe, recipe)
    for precision in sorted({str(run.result["precision"]) for run in evidence.runs if run.result} - {"fp32"}):
        yield "precision", "fp32", precision
    printed = _dropout(PAPER[name])
    # The paper tuned the dropout of the all-convolutional CIFAR nets, and does not print what it found.
    for here in sorted({_dropout(run.trial.net) for run in evidence.tested} - {printed}) if cell.table != "1" else ():
        yield "dropout", printed, here


def _data(evidence: CellResults, group: ResultTable) -> Iterator[tuple[str, str, str]]:
    """Yield what is other about the pictures: which, how many, how large, how many were kept from training."""
    cell = evidence.cell
    if cell.dataset != group.dataset:
        yield "data", SETS[group.dataset], cell.dataset
    own, facts = dataset(group.dataset), _facts(cell.dataset)
    tested = {len(run.decisions.ids) for run in evidence.tested if run.decisions is not None}
    for count in sorted(tested - {own.splits[own.final]}):
        yield "test pictures", f"{own.splits[own.final]:,}", f"{count:,}"
    if facts is not None and (facts.size, facts.crop) != (own.size, own.crop):
        yield "picture and crop (pixels)", f"{own.size}, {own.crop}", f"{facts.size}, {facts.crop}"
    if evidence.done("ablation") and facts is not None:
        yield "training pictures", "all", f"all but {facts.holdout:,} held out"


def _facts(name: str) -> DataSet | None:
    try:
        return dataset(name)
    except ValueError:  # a folder that was prepared elsewhere
        return None


def _nets(here: Net, paper: Net, classes: int | None) -> Iterator[tuple[str, str, str]]:
    if _layers(here) != _layers(paper):
        if classes is None:
            yield "net", str(paper.name), "another one"
        else:
            yield "net (parameters)", f"{paper.parameters(classes):,}", f"{here.parameters(classes):,}"
    # The supplement prints an activation on the scores of all nets but VGG; ours have none by default.
    printed = "none" if isinstance(_last(paper), Linear) else "avr" if ".avr(" in paper.name else "relu"
    if _last(here).act != printed:
        yield "activation on the scores", printed, _last(here).act


def _layers(net: Net) -> list[Any]:
    """Return what a net is besides its dropout and the activation on its scores."""
    rows = [row for row in net.rows if not isinstance(row, Drop)]
    return [row._replace(act="none") if row == _last(net) else row for row in rows]


def _last(net: Net) -> Conv | Linear:
    return [row for row in net.rows if isinstance(row, Conv | Linear)][-1]


def _recipes(here: Recipe, paper: Recipe) -> Iterator[tuple[str, str, str]]:
    for field, what in FIELDS.items():
        ours, theirs = getattr(here, field), getattr(paper, field)
        if ours != theirs:
            yield what, _text(theirs), _text(ours)
    if (here.stages, here.schedule_epochs) != (paper.stages, paper.schedule_epochs):
        yield "schedule", _schedule(paper), _schedule(here)


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
    return f"{value:g}" if isinstance(value, float) else {True: "yes", False: "no"}.get(value, str(value)) \
        if isinstance(value, bool) else str(value)  # fmt: skip
