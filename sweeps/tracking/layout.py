"""Layout of a sweep in MLflow: parameters, the columns of its table, and the addresses of its pages.

MLflow shows no metric until its reader picks one, unless the address names a view that the experiment carries as a
tag. That tag is private to MLflow's page; a test looks for it in the page that is installed. A page that does not know
a key of a view ignores it. The view is the experiment's: a reader who rearranges it in a browser changes his own copy.
"""

from __future__ import annotations

import colorsys
import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from crelu_models.model import Model
from crelu_models.spec import Conv, Net
from sweeps.experiment.metrics import (
    AVERAGE,
    HELD_OUT,
    PARAMETERS,
    PERCENT,
    TOP1,
    VOTE,
    Metric,
    Tested,
    average,
    averages,
    cell_average,
    cell_held_out,
    rounded,
)
from sweeps.experiment.profiles import data_name
from sweeps.experiment.search import chosen_names
from sweeps.experiment.space import DROPOUT, MODEL
from sweeps.experiment.sweep import Protocol
from sweeps.experiment.trial import PHASES, Cell, Trial
from sweeps.store.ledger import Json

# Private to MLflow's page: the tag of a shared view, the address's name for its key, and what a view holds.
VIEW_TAG: Final = "mlflow.sharedViewState."
VIEW_KEY: Final = "viewStateShareKey"
VIEW_COLUMNS: Final = "selectedColumns"
VIEW_ORDER: Final = "columnOrder"
VIEW_WIDTHS: Final = "columnWidths"
VIEW_CHARTS: Final = "compareRunCharts"
VIEW_SECTIONS: Final = "compareRunSections"
HEADING: Final = (7.5, 44)  # pixels of a letter of a column's heading, and of the room beside it
VIEW: Final = "cells"
CURVES: Final = "curves"  # the view whose charts have all trainings, since it folds none
CHART_MODE: Final = "compareRunsMode=CHART"  # in an address: the page opens on its charts
COLOUR: Final = "mlflow.runColor"  # the tag of a run that says its colour on the page
# Sections in which the page puts the charts that it makes of our metrics; "Model metrics" is of names without a "/".
FOLDED: Final = ("agg", "best", "final", "net", "paper", "sys", "train", "val", "Model metrics")
# What cells are compared by.
METRICS: Final = (
    AVERAGE,
    "agg/test_top1_err_se",
    "agg/test_top1_err_n",
    VOTE,
    "agg/test_top1_err_single_mean",
    "agg/test_top1_err_10crop_mean",
    "paper/test_top1_err",
    PARAMETERS,
    TOP1,
    HELD_OUT,
)
PARAMS: Final = ("activation", "dropout", "optimiser", "lr", "epochs")
SHOWN: Final = ("name", "optimiser", "lr", "batch", "epochs")  # fields of a recipe that every run shows or needs not
# The fields of a recipe that every run has as parameters, by the names under which a search chooses them.
RENAMED: Final = {f"recipe.{field}": field for field in SHOWN if field != "name"}
NOTE: Final = "mlflow.note.content"
NOTE_LENGTH: Final = 8000  # characters of a tag
REPORT: Final = "report"  # the folder of a run's artifacts, and the tag that says which report lies there
REPORT_RUN: Final = "report.run"  # the tag of a cell's run that says on which run the report lies
TRAININGS: Final = "cell.trainings"  # tag with the digest of the trainings behind a cell's note and numbers
# The tags by which runs are told from those of another ledger or sweep in the same experiment.
LEDGER: Final = "ledger.id"
SWEEP: Final = "sweep.title"
DECIMALS: Final = 9
AXIS: Final = 10  # characters of a parameter's value that MLflow's compare view shows
Words = Mapping[tuple[str, str], str]  # of parameters, by parameter and word, as the compare view tells them apart
PLAIN: Final[Words] = MappingProxyType({})


class Page(NamedTuple):
    """Page of a cell's run, from the report: its note, its numbers, and the trainings that both are of."""

    note: str
    metrics: Mapping[str, float]
    trainings: str


class Owner(NamedTuple):
    """Ledger and sweep that a run belongs to."""

    ledger: str
    sweep: str

    @property
    def tags(self) -> dict[str, str]:
        """Return the owner as tags of a run."""
        return {LEDGER: self.ledger, SWEEP: self.sweep}

    def has(self, tags: Mapping[str, str]) -> bool:
        """Return whether a run with these tags is the owner's."""
        return (tags.get(LEDGER), tags.get(SWEEP)) == self


# Names ----------------------------------------------------------------------------------------------------------


def short_names(labels: Sequence[str]) -> dict[str, str]:
    """Return a name for each label of a sweep's cells, its first AXIS characters unlike those of all others.

    "CReLU conv1-4" is "CReLU 1-4". A name whose beginning an earlier cell has begins with the cell's number. So cells
    that are added at the end leave the names of the others as they are.
    """
    return _told_apart({label: re.sub(r"\bconv(?=\d)", "", re.sub(r"\bcifar(?=\d)", "C", label)) for label in labels})


def _told_apart(words: Mapping[str, str]) -> dict[str, str]:
    """Return words by the same keys, with its number before each whose first AXIS characters an earlier one has."""
    names: dict[str, str] = {}
    beginnings: set[str] = set()
    for number, (key, name) in enumerate(words.items(), 1):
        again = (f"{number:02}.{times} " for times in itertools.count(2))  # where an earlier name begins with numbers
        prefixes = itertools.chain(("", f"{number:02} "), again)
        name = next(prefix + name for prefix in prefixes if (prefix + name)[:AXIS] not in beginnings)
        beginnings.add(name[:AXIS])
        names[key] = name
    return names


def words_apart(cells: Sequence[Cell], varied: Sequence[str]) -> Words:
    """Return the words that a sweep's cells have as parameters, those of each parameter told apart as names are."""
    words: dict[str, dict[str, str]] = {}
    for cell in cells:
        for param, word in _params(cell, "", varied, PLAIN).items():
            if isinstance(word, str):
                words.setdefault(param, {})[word] = word
    return {(param, word): name for param, known in words.items() for word, name in _told_apart(known).items()}


def placement(net: Net | Model) -> str:
    """Return where a net has another activation than ReLU, with what differs before the axis of the UI is cut.

    Such as "1-4 crelu" or "1,4,7 avr", by the numbers in the layers' names; "relu" for a net that has no other. Of a
    model the kind stands first, as "crelu layer1.*.relu", since globs begin alike; "its own" for one without.
    """
    if isinstance(net, Model):
        return " ".join(f"{kind} {' '.join(globs)}" for kind, globs, _ in net.placements) or "its own"
    layers: dict[str, list[int]] = {}
    for row in net.rows:
        if isinstance(row, Conv) and row.act not in ("relu", "none"):
            layers.setdefault(row.act, []).append(int("".join(filter(str.isdigit, row.name)) or 0))
    words = {act: " ".join(reversed(act.split("_"))) for act in layers}  # crelu_leaky is "leaky crelu"
    return " ".join(f"{_ranges(numbers)} {words[act]}" for act, numbers in layers.items()) or "relu"


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def varied_fields(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the parameters in which cells differ, besides those that every run has: recipe.FIELD, model.ARG, task."""
    fields = [_varying(cell) for cell in cells]
    names = dict.fromkeys(name for values in fields for name in values)
    return tuple(name for name in names if len({values.get(name) for values in fields}) > 1)


def _varying(cell: Cell) -> dict[str, str]:
    """Return what may be a parameter because cells differ in it; a model has only the arguments that it is given."""
    recipe, net = cell.recipe, cell.net
    fields = {f"recipe.{field.name}": getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    values = {name: value for name, value in fields.items() if name.removeprefix("recipe.") not in SHOWN}
    if isinstance(net, Model):
        values |= {f"{MODEL}{name}": value for name, value in net.arguments.items()}
        values |= {f"{MODEL}size": net.size} if net.size else {}
    values |= {"task": cell.task} if cell.task else {}
    return {name: _word(value) for name, value in values.items()}


def params_of_cell(
    cell: Cell, name: str, protocol: Protocol, trials: Iterable[Trial], varied: Sequence[str] = (), words: Words = PLAIN
) -> dict[str, str | int | float]:
    """Return what varies between cells, for people, under the same names as on the runs of its trials.

    What a study chooses is that of the trials which are trained with it. It is missing until there are some and they
    agree, and "searched" for a search after which none is trained.
    """
    searched = {_param_name(choice) for choice in chosen_names(protocol.search, cell)} if protocol.search else set()
    chosen = searched | ({"lr"} if protocol.rates else set())
    tested = [params_of(trial, name, varied, words) for trial in trials if PHASES[trial.phase].test]
    first = tested[0] if tested else {}
    agreed = {param: value for param, value in first.items() if all(other.get(param) == value for other in tested)}
    own = params_of(Trial(cell), name, varied, words)
    of_cell = {param: value for param, value in own.items() if param not in chosen}
    of_cell |= {param: value for param, value in agreed.items() if param in chosen}
    of_cell |= {} if protocol.trains_cells else dict.fromkeys(searched, "searched")
    return of_cell | {"phase": "cell", "seed": "all", "fold": "all" if protocol.folds else ""}


def params_of(
    trial: Trial, name: str, varied: Sequence[str] = (), words: Words = PLAIN
) -> dict[str, str | int | float]:
    """Return what varies between trials, for people; everything else is in trial.json."""
    fold = trial.fold if trial.folds else ""
    return (
        _params(trial.cell, name, varied, words)
        | {
            "lr": trial.recipe.lr,
            "dropout": _dropout(trial),
            "phase": trial.phase,
            "seed": trial.seed,
            "fold": fold,
        }
        | _choices(trial)
    )


def _params(cell: Cell, name: str, varied: Sequence[str], words: Words) -> dict[str, str | int | float]:
    recipe = cell.recipe
    fields = {param: value for param, value in _varying(cell).items() if param in varied}
    factors = {f"factor.{factor}": level for factor, level in cell.factors}
    params: dict[str, str | int | float] = (
        fields
        | factors
        | {
            "activation": placement(cell.net),
            "cell": name,
            "dataset": _data_words(cell.dataset)[:200],
            "net": cell.net.name,
            "optimiser": recipe.optimiser,
            "batch": recipe.batch,
            "epochs": recipe.epochs,
        }
    )
    return {param: words.get((param, str(value)), value) for param, value in params.items()}


def _data_words(dataset: str) -> str:
    """Return a data set with its short name in front, as "birds /data/birds" or "embedded size=32,classes=5"."""
    kind, _, rest = dataset.partition(":")
    return f"{data_name(dataset)} {rest}".strip() if kind in ("folder", "synthetic") else dataset


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, tuple | list | dict) else str(value)


def _choices(trial: Trial) -> dict[str, str | int | float]:
    """Return what a search chose for a trial; fields of the recipe and dropout under the names that all runs have."""
    return {
        _param_name(name): value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        for name, value in trial.choices
        if not name.startswith(DROPOUT)
    }


def _param_name(choice: str) -> str:
    """Return the parameter that shows what a search chooses by a dotted name."""
    return "dropout" if choice.startswith(DROPOUT) else RENAMED.get(choice, choice)


def _dropout(trial: Trial) -> str:
    """Return a trial's dropout rates in percent, then their places: "20 0 50 % input pool1 pool2"; "none" for none.

    A rate of 0 that was chosen is among them, so that two of a study differ before the axis of the UI is cut.
    """
    chosen = [place for place, _ in trial.dropout]
    chosen += [name.removeprefix(DROPOUT) for name, _ in trial.choices if name.startswith(DROPOUT)]
    rates = dict.fromkeys(chosen, 0.0) | trial.net.dropouts()
    percents = [f"{100 * rate:g}" for _, rate in sorted(rates.items())]
    return " ".join([*percents, "%", *sorted(rates)]) if any(rates.values()) else "none"


def colours(keys: Iterable[str], known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return a colour for each key of a sweep's cells, unlike those of its neighbours; more cells leave them as is.

    Those that are `known` stay, and no other key gets one of them.
    """
    taken = set(known.values())
    free = (colour for colour in map(_colour, itertools.count()) if colour not in taken)
    return {key: known[key] if key in known else next(free) for key in keys}


def _colour(number: int) -> str:
    """Return a colour of a row without end: steps of the golden ratio never meet a hue again."""
    parts = colorsys.hls_to_rgb(number * 0.618034 % 1.0, (0.4, 0.6, 0.25)[number % 3], 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


# Numbers --------------------------------------------------------------------------------------------------------


def cell_metrics(
    measured: Iterable[tuple[Trial, Mapping[str, float]]], winner: Collection[str] | None = None
) -> dict[str, float]:
    """Return the numbers of a cell that its finished trials alone make, by their names in MLflow.

    The names of its trials' numbers are there too, so that no column of the table is empty on the row of a cell:
    Single, and the hold-out value. That is the value of a search's `winner`, given by the keys of its trials: none
    where it has chosen nothing, None without a search. A trial of a study of the learning rate counts once a training
    at its rate was tested.
    """
    measured = list(measured)
    metric = measured[0][0].cell.metric if measured else PERCENT
    rates = {trial.rate for trial, _ in measured if PHASES[trial.phase].test}
    at_rate = [(trial, metrics) for trial, metrics in measured if trial.rate in (rates or {0.0})]
    tested: list[Tested] = [(trial.phase, metrics) for trial, metrics in at_rate]
    name = metric.held_out
    if winner is None:
        held_out = cell_held_out(tested, name).mean
    else:
        chosen = [metrics[name] for trial, metrics in measured if trial.key in winner and name in metrics]
        held_out = average(chosen).mean
    return shown(averages(tested, metric) | {metric.final: cell_average(tested, metric.final).mean, name: held_out})


def shown(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers that are known, without the last digits of their sums: 40.17, not 40.169999999999995."""
    return {name: rounded(value, DECIMALS) for name, value in numbers.items() if math.isfinite(value)}


def trainings_digest(results: Mapping[str, Json]) -> str:
    """Return what tells these results, by trial key, from any others of the same cell."""
    content = json.dumps(sorted((key, result["finished_ms"]) for key, result in results.items()))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# The experiment ---------------------------------------------------------------------------------------------------


def columns(metric: Metric) -> tuple[str, ...]:
    """Return the numbers that cells are compared by, as the table's columns."""
    if not metric.is_own:
        return METRICS
    base = metric.mean.removesuffix("_mean")
    return (metric.mean, f"{base}_se", f"{base}_n", f"{base}_single_mean", PARAMETERS, metric.final, metric.held_out)


def experiment_tags(metric: Metric = PERCENT) -> dict[str, str]:
    """Return the tags by which the UI opens an experiment on its runs, and knows what is compared."""
    names = {f"metrics.`{name}`": name for name in columns(metric)} | {f"params.`{name}`": name for name in PARAMS}
    letter, room = HEADING
    widths = {column: round(room + letter * len(name)) for column, name in names.items()}
    table = {VIEW_COLUMNS: [*names], VIEW_ORDER: [*names], VIEW_WIDTHS: widths}
    folded = _charts(metric, "Unfold a cell") | {"hideEmptyCharts": False}  # that of the curves says why it is empty
    by_cell = {"mode": "param", "groupByData": "cell"}
    grouped = {"groupBy": {"aggregateFunction": "average", "groupByKeys": [by_cell]}, "useGroupedValuesInCharts": False}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": metric.mean,
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(metric.better == "higher"),
        f"{VIEW_TAG}{_view_key(VIEW, metric)}": json.dumps(table | folded),
        f"{VIEW_TAG}{_view_key(CURVES, metric)}": json.dumps(table | _charts(metric, "Trainings") | grouped),
    }


def _view_key(view: str, metric: Metric) -> str:
    """Return the key of a view: own metrics have views of their own, since other sweeps may share the experiment."""
    return f"{view}-{metric.name.replace('/', '_')}-{metric.better}" if metric.is_own else view


def _charts(metric: Metric, whose: str) -> dict[str, object]:
    """Return the charts of a view; those that the page makes itself of every other metric are folded below them.

    The page has no titles of charts but the names of metrics. So the headings of the sections say what is shown, in
    thirty letters, which is what the page shows of them. The second heading begins with `whose` the curves are.
    """
    cells, trainings = "cells", "trainings"
    sections = [
        _section(cells, f"Cells: {metric.words}, {metric.better} is better", 2),
        _section(trainings, f"{whose}: {metric.held_out_words} by epoch", 1),
    ]
    scales = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "lineSmoothness": 0}
    mean, parameters = ({"key": name, "type": "METRIC"} for name in (metric.mean, PARAMETERS))
    return {
        VIEW_SECTIONS: [*sections, *(_section(name, name) for name in FOLDED)],
        VIEW_CHARTS: [
            _chart(cells, "BAR", metricKey=metric.mean),
            _chart(cells, "SCATTER", xaxis=parameters, yaxis=mean),
            _chart(trainings, "LINE", metricKey=metric.row, selectedMetricKeys=[metric.row], **scales),
        ],
        "isAccordionReordered": True,  # else the page sorts sections by name
        "runsHiddenMode": "SHOW_ALL",  # else the page draws the first ten runs
    }


def _section(key: str, name: str, columns: int = 0) -> dict[str, object]:
    """Return a section of charts, unfolded where it has columns."""
    shape = {"columns": columns, "cardHeight": 300} if columns else {}
    return {"uuid": key, "name": name, "display": bool(columns), "isReordered": False} | shape


def _chart(section: str, kind: str, **content: object) -> dict[str, object]:
    key = {"uuid": f"{section}-{kind}", "type": kind, "metricSectionId": section}
    return key | {"isGenerated": False, "deleted": False} | content


def table_address(experiment: str, metric: Metric = PERCENT) -> str:
    """Return the address of the experiment's table with the columns of a metric, relative to the server's."""
    return f"#/experiments/{experiment}/runs?{VIEW_KEY}={_view_key(VIEW, metric)}"


def charts_address(experiment: str, metric: Metric = PERCENT) -> str:
    """Return the address of the experiment's charts of a metric, with the curves of all trainings."""
    return f"#/experiments/{experiment}/runs?{VIEW_KEY}={_view_key(CURVES, metric)}&{CHART_MODE}"


def run_address(experiment: str, run: str, file: str = "") -> str:
    """Return the address of a run, or of one of its artifacts opened in the viewer."""
    return f"#/experiments/{experiment}/runs/{run}" + (f"/artifacts/{file}" if file else "")


def compare_address(experiment: str, runs: Sequence[str]) -> str:
    """Return the address at which runs stand side by side."""
    words = ",".join(f"%22{run}%22" for run in runs)
    return f"#/compare-runs?runs=%5B{words}%5D&experiments=%5B%22{experiment}%22%5D"
