"""Scales of a sweep: the paper's, a mini one on real data, demo and smoke test on embedded pictures."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from crelu_models.model import Model
from crelu_models.spec import Net
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe, Stage
from sweeps.experiment.search import Search, chosen_names
from sweeps.experiment.space import DROPOUT
from sweeps.experiment.trial import Cell

PROFILES = ("paper", "mini", "demo", "smoke")


class Scale(NamedTuple):
    """Reduced form: width of every layer but the classifier, the recipes in place of the paper's, share of dropout.

    `epochs` of a page's own recipe: this part of them, or as many at most.
    """

    width: float
    recipes: dict[str, Recipe]
    dropout: float = 1.0
    part: float = 1.0
    epochs: float = math.inf

    def shortened(self, recipe: Recipe) -> Recipe:
        """Return a page's own recipe with fewer epochs; a warm-up that is too long for them is shortened too."""
        epochs = min(max(1, int(recipe.epochs * self.part)), self.epochs)
        return recipe.compressed(int(epochs))


# A few hundred steps are too few for a schedule of 45 or 350 epochs: the demo's has two drops near its end.
SHORT = (Stage(1, 1.0), Stage(61, 0.2), Stage(86, 0.04))


def _demo(recipe: Recipe, epochs: int, batch: int, lr: float) -> Recipe:
    """Return a recipe for the few hundred steps of a demo."""
    short = recipe.shortened(f"{recipe.name}-demo", epochs, batch, lr)
    # On a CPU that has both, CIFAR's nets of a quarter's width are 1.2 to 1.5 times as fast in bf16 as in fp32;
    # ImageNet's on 64 pixels are not, and up to 1.25 times as slow (benchmarks.bench_step --width 0.25 --batch 32).
    precision = "fp32" if recipe.name.startswith("imagenet") else "auto"
    return dataclasses.replace(short, schedule_epochs=100, stages=SHORT, precision=precision)


DEMO = {
    # With SGD these deep nets stay at chance for the few hundred steps of a demo; with Adam they learn.
    "allconv": dataclasses.replace(_demo(ALLCONV, epochs=8, batch=32, lr=0.002), optimiser="adam", weight_decay=0.0),
    "vgg": dataclasses.replace(_demo(VGG, epochs=8, batch=32, lr=0.003), optimiser="adam", weight_decay=0.0),
    "imagenet-sgd": _demo(IMAGENET_SGD, epochs=16, batch=32, lr=0.02),
    "imagenet-adam": _demo(IMAGENET_ADAM, epochs=16, batch=32, lr=1e-3),
}
# Narrow nets that see few pictures need little dropout: VGG with all of it stays near chance.
LITTLE_DROPOUT = 0.25
PAPER_RECIPES = (ALLCONV, VGG, IMAGENET_SGD, IMAGENET_ADAM)
SCALES = {
    "paper": Scale(1.0, {}),
    "mini": Scale(0.5, {recipe.name: dataclasses.replace(recipe, name=f"{recipe.name}-mini", epochs=recipe.epochs // 10)
                        for recipe in PAPER_RECIPES}, part=0.1),
    "demo": Scale(0.25, DEMO, LITTLE_DROPOUT, epochs=8),
    "smoke": Scale(0.125, {name: dataclasses.replace(recipe, name=f"{name}-smoke", epochs=1)
                           for name, recipe in DEMO.items()}, LITTLE_DROPOUT, epochs=1),
}  # fmt: skip

# Embedded pictures in place of each data set, for profiles that need no download; a few hundred steps learn them.
EMBEDDED = {
    "imagenet": "synthetic:size=72,classes=10,train=2000,test=600,clutter=20,contrast=30",
    "cifar10": "synthetic:size=32,classes=5,train=1500,test=600,clutter=35,contrast=20",
    "cifar100": "synthetic:size=32,classes=10,train=1500,test=600,clutter=35,contrast=20",
}
SMOKE = "synthetic:size=64,classes=4,train=96,test=48"

# Said of a changed field that the trials of a search do not have.
SEARCHED = " (searched over the page's values)"

# Names that a folder's own name would be mistaken for.
TAKEN: Final = ("imagenet", "cifar10", "cifar100", "synthetic", "embedded", *PROFILES)


def data_name(dataset: str) -> str:
    """Return a data set's short name for labels and file names: cifar10, embedded, or that of its folder."""
    kind, _, rest = dataset.partition(":")
    if kind == "synthetic":
        return "embedded"
    if kind != "folder":
        return file_name(dataset)
    name = file_name(Path(rest).name)
    return name if name and name not in TAKEN else f"folder-{name or 'root'}"


def file_name(words: str) -> str:
    """Return words as part of a file name: letters, digits and . = , + - remain, other signs become one underscore."""
    return re.sub(r"[^\w.=,+-]+", "_", words).strip("._")


def on_dataset(cell: Cell, dataset: str) -> Cell:
    """Return `cell` on another data set, which its label and levels name; it stands for the paper's as before."""
    if dataset == cell.dataset:
        return cell
    paper_dataset = (cell.paper_dataset or cell.dataset) if cell.table else ""
    label, versus = (with_data_name(words, cell.dataset, dataset) for words in (cell.label, cell.versus))
    factors = tuple(
        (name, with_data_name(level, cell.dataset, dataset) if isinstance(level, str) else level)
        for name, level in cell.factors
    )
    return dataclasses.replace(
        cell, dataset=dataset, label=label, versus=versus, paper_dataset=paper_dataset, factors=factors
    )


def with_data_name(label: str, before: str, after: str) -> str:
    """Return a label in which the word for a data set, short or in full, is the short one for another set."""
    return " ".join(data_name(after) if word in (before, data_name(before)) else word for word in label.split(" "))


def on_one_dataset(cells: Sequence[Cell], dataset: str) -> tuple[Cell, ...]:
    """Return the cells of a page that are trained where all are trained on one data set.

    They are those of this data set where the page has some, else those of the page's first data set: the others would
    be the same nets on the same pictures once more.
    """
    names = [cell.dataset for cell in cells]
    taken_set = dataset if dataset in names else names[0]
    return tuple(cell for cell in cells if cell.dataset == taken_set)


def names_paper(cells: Iterable[Cell]) -> bool:
    """Return whether a page names the paper: a cell of it is a row of one of its tables."""
    return any(cell.table for cell in cells)


def scaled(cell: Cell, profile: str, dataset: str = "", own_recipes: bool = False) -> Cell:
    """Return `cell` at the scale of `profile`, on `dataset` (default: its own, or embedded pictures in its place).

    A page with `own_recipes` keeps them but for their length: cells that differ in a field still do.
    """
    scale = SCALES[profile]
    if not dataset:
        embedded = SMOKE if profile == "smoke" else EMBEDDED.get(cell.dataset, cell.dataset)
        dataset = cell.dataset if profile in ("paper", "mini") else embedded
    recipe = scale.shortened(cell.recipe) if own_recipes else scale.recipes.get(cell.recipe.name, cell.recipe)
    small = dataclasses.replace(cell, net=_scaled_net(cell.net, scale), recipe=recipe)
    return on_dataset(small, dataset)


def _scaled_net(net: Net | Model, scale: Scale) -> Net | Model:
    """Return a net at a scale, under its name; a model has no width that one could change."""
    if isinstance(net, Model):
        return net
    small = net if scale.width == 1.0 else net.width(scale.width)
    if scale.dropout != 1.0:
        for after, rate in small.dropouts().items():
            small = small.dropout(rate * scale.dropout, after)
    return dataclasses.replace(small, name=net.name)


def has_own_recipes(cells: Iterable[Cell]) -> bool:
    """Return whether a page has a recipe that is not exactly one of the paper's."""
    return any(cell.recipe not in PAPER_RECIPES for cell in cells)


def changed_fields(
    before: Sequence[Cell], after: Sequence[Cell], profile: str, search: Search | None = None
) -> list[str]:
    """Return what a profile has changed in the cells of a page, a line for each field, or each recipe or data set.

    Of a field that the `search` chooses the line says that its trials have other values.
    """
    scale = SCALES[profile]
    lines: list[str] = []
    for old, new in zip(before, after, strict=True):
        searched = chosen_names(search, old) if search else frozenset()
        names = [field.name for field in dataclasses.fields(Recipe) if field.name != "name"]
        fields = [(name, getattr(old.recipe, name), getattr(new.recipe, name)) for name in names]
        words = [
            f"{name} {_word(value)} -> {_word(now)}{SEARCHED if f'recipe.{name}' in searched else ''}"
            for name, value, now in fields
            if value != now
        ]
        lines += [f"recipe {old.recipe.name}: {', '.join(words)}"] if words else []
        if old.net != new.net:
            lines.append(f"nets: width x{scale.width:g} of each layer")
            if old.net.dropouts() and scale.dropout != 1:
                note = SEARCHED if any(name.startswith(DROPOUT) for name in searched) else ""
                lines.append(f"nets: dropout x{scale.dropout:g}{note}")
        if old.dataset != new.dataset:
            lines.append(f"dataset: {old.dataset} -> {new.dataset}")
    return list(dict.fromkeys(lines))


def _word(value: object) -> str:
    """Return the value of a recipe's field for a line of text."""
    if isinstance(value, tuple):
        return "(" + "; ".join(" ".join(f"{number:g}" for number in stage) for stage in value) + ")"
    return f"{value:g}" if isinstance(value, float) else f"{value}"
