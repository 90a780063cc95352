"""Deviations of trials from the paper, collected from their cells and results."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from crelu_data.datasets import RAW_UP_TO, dataset
from crelu_models.model import Model
from crelu_models.spec import Linear, Net
from crelu_models.tables import PAPER
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.space import DROPOUT, chosen_net, chosen_recipe, short_name
from sweeps.experiment.wording import count
from sweeps.results.cell_numbers import SETS, ResultTable
from sweeps.results.evidence import CellResults
from sweeps.results.paper import LEFT_OPEN, NOT_STATED, READINGS, ROUNDED
from sweeps.results.paper_cells import (
    CELLS,
    FIELDS,
    Differences,
    choices_of,
    is_literal,
    last_layer,
    layers,
    on_part,
    recipe_differences,
    set_facts,
    tested_pictures,
    training_pictures,
    value_text,
)

# What the second phase of Single is stopped by, as a reader reads it.
MATCHES: Final = {
    "train_loss": "at the first phase's training loss",
    "valid_loss": "at the first phase's hold-out loss",
    "epoch": "after as many epochs as the first phase",
    "none": "at the end of the schedule",
}


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
        (row.label, row.results)
        for row in table.rows
        if row.results is not None and any(run.result for run in row.results.runs)
    ]
    studied = {run.trial.recipe.lr for _, cell in trained for run in cell.runs if run.key in cell.rates}
    for label, cell in trained:
        for difference in dict.fromkeys(_differences(cell, table, studied)):
            labels.setdefault(difference, []).append(label)
    return [
        Deviation(*difference, () if len(rows) == len(trained) else tuple(rows)) for difference, rows in labels.items()
    ]


def _differences(results: CellResults, table: ResultTable, studied: Collection[float]) -> Differences:
    """Yield the differences of a cell; `studied` are the learning rates between which the table's baseline chose."""
    cell = results.cell
    if (cell.table, cell.row) not in CELLS:
        return
    name, recipe = CELLS[cell.table, cell.row]
    yield from _data(results, table)
    for choices in choices_of(results):
        yield from _nets(chosen_net(cell.net, choices), name, dataset(table.dataset).classes)
        yield from _recipe(chosen_recipe(cell.recipe, choices), recipe, cell.table)
    yield from _learning_rates(results, recipe, studied)
    for precision in sorted({str(run.result["precision"]) for run in results.runs if run.result} - {"fp32"}):
        yield "precision", "fp32", precision
    yield from _dropout(results, PAPER[name])
    yield from _protocol(results)


def _data(results: CellResults, table: ResultTable) -> Differences:
    """Yield differences of the pictures: which, how many, how large, how many were held out of training."""
    name = results.cell.dataset
    if name != table.dataset:
        yield "data", SETS[table.dataset], name
    if on_part(results):
        yield "data", "the published set", "a part of it, or other files by its name"
    paper, ours = dataset(table.dataset), set_facts(name)
    if results.classes not in (None, paper.classes):
        yield "classes", f"{paper.classes:,}", f"{results.classes:,}"
    learned = training_pictures(results)
    all_learned = paper.splits["train"]
    for size in sorted(learned - {all_learned}):
        yield "training pictures", f"{all_learned:,}", f"{size:,}"
    if not learned:
        yield "training pictures", f"{all_learned:,}", "not recorded"
    for size in sorted(tested_pictures(results) - {paper.splits[paper.final]}):
        yield "test pictures", f"{paper.splits[paper.final]:,}", f"{size:,}"
    if ours is not None and (ours.size, ours.crop) != (paper.size, paper.crop):
        yield "picture and crop (pixels)", f"{paper.size}, {paper.crop}", f"{ours.size}, {ours.crop}"
    if ours is not None and ours.size > RAW_UP_TO and not results.synthetic:
        yield "stored pictures", "the original files", f"cut to {ours.size} pixels, JPEG of quality 90 by default"
        yield "crops", NOT_STATED, f"of the stored centre, {ours.size} pixels square"
    if results.done("ablation") and ours is not None:
        yield "pictures learned from", "all", f"all but {ours.holdout:,} held out"
    if results.done("match") and ours is not None:
        yield "hold-out of the first phase", NOT_STATED, count(ours.holdout, "picture")


def _nets(ours: Net | Model, name: str, classes: int) -> Differences:
    """Yield the differences of a net from the one that the paper calls `name`, and how that was read."""
    paper = PAPER[name]
    if isinstance(ours, Model):
        yield "net (parameters)", f"{paper.parameters(classes):,}", ours.name
        return
    if is_literal(ours, name):
        yield from (reading for reading in READINGS.get(name, ()) if reading == ROUNDED)
    elif layers(ours) != layers(paper):
        yield "net (parameters)", f"{paper.parameters(classes):,}", f"{ours.parameters(classes):,}"
    else:
        yield from READINGS.get(name, ())
    # The supplement prints an activation on the scores of all nets but VGG; ours have none by default.
    if not isinstance(last_layer(paper), Linear) and last_layer(ours).act == "none":
        yield "activation on the scores", "as on the layers before", "none"


def _recipe(ours: Recipe, paper: Recipe, table: str) -> Differences:
    """Yield the fields of a recipe that are not those of the row's, and those that the paper leaves open."""
    left_open = {FIELDS[field]: (field, words) for field, words in LEFT_OPEN[table].items()}
    yield from (difference for difference in recipe_differences(ours, paper) if difference[0] not in left_open)
    for name, (field, words) in left_open.items():
        if field != "lr":  # a study may have chosen it: the trials have it
            yield name, words, value_text(getattr(ours, field))


def _learning_rates(results: CellResults, paper: Recipe, studied: Collection[float]) -> Differences:
    """Yield the learning rates that the paper leaves open, and those that a study chose in place of the paper's."""
    words = LEFT_OPEN[results.cell.table].get("lr", value_text(paper.lr))
    among = f" of {', '.join(map(value_text, sorted(studied, reverse=True)))}" if studied else ""
    for rate, chosen in sorted({(run.trial.recipe.lr, run.trial.rate > 0) for run in results.tested}):
        if words == NOT_STATED or (chosen and rate != paper.lr):
            how = f", best{among} on the baseline's hold-out" if chosen else ""
            yield FIELDS["lr"], words, f"{value_text(rate)}{how}"


def _dropout(results: CellResults, paper: Net) -> Differences:
    """Yield how dropout was chosen, and rates that are not the printed ones.

    The paper tuned the dropout of the all-convolutional CIFAR nets, Table 1, and does not print the rates.
    """
    if results.cell.table == "1":
        return
    if results.searched_dropout:
        yield "choice of dropout", "rates printed", _where_searched(results)
    printed = _rates(paper)
    for rates in sorted({_rates(run.trial.net) for run in results.tested} - {printed}):
        yield "dropout", printed, rates


def _protocol(results: CellResults) -> Differences:
    """Yield what the paper leaves open and a trial has to settle."""
    if settings := _settings(results):
        yield f"choice of {', '.join(settings)}", NOT_STATED, _where_searched(results)
    if results.done("fold"):
        yield "weights of a fold", NOT_STATED, "of the best epoch on the held-out fold"
    for match in sorted({run.trial.match for run in results.done("match")}):
        yield "second phase of Single ends", "at the first phase's loss, on pictures not stated", MATCHES[match]


def _settings(results: CellResults) -> list[str]:
    """Return the short names of what was searched for a cell besides dropout."""
    names = dict.fromkeys(name for point in results.tried for name, _ in point.run.trial.choices)
    return [short_name(name) for name in names if not name.startswith(DROPOUT)]


def _where_searched(results: CellResults) -> str:
    folds = results.tried[0].run.trial.folds
    return f"searched on {count(folds, 'fold')}" if folds else "searched on the hold-out"


def _rates(net: Net | Model) -> str:
    return ", ".join(f"{rate:g} after {place}" for place, rate in net.dropouts().items()) or "none"
