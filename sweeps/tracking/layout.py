"""How a sweep looks in MLflow: parameters, the columns of its table, and the addresses of its pages.

MLflow shows no metric until its reader picks one, unless the address names a view that the experiment carries as a
tag. That tag is private to MLflow's page; a test looks for it in the page that is installed. The view is the
experiment's: a reader who rearranges it in a browser changes his own copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from crelu_models.spec import Conv, Net
from sweeps.experiment.metrics import AVERAGE, HELD_OUT, PARAMETERS, TOP1, VOTE
from sweeps.experiment.trial import Cell, Trial

# Private to MLflow's page: the tag of a shared view, the address's name for its key, and what a view holds.
VIEW_TAG: Final = "mlflow.sharedViewState."
VIEW_KEY: Final = "viewStateShareKey"
VIEW_COLUMNS: Final = "selectedColumns"
VIEW: Final = "cells"
# What cells are compared by; the trials below a cell, opened by its +, fill the later columns.
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
NOTE: Final = "mlflow.note.content"
NOTE_LENGTH: Final = 8000  # characters of a tag
REPORT: Final = "report"  # the folder of a run's artifacts, and the tag that says which report lies there


class Page(NamedTuple):
    """What the report puts on a cell's run: the note at its head, and numbers that its trials do not have."""

    note: str
    metrics: Mapping[str, float]


def placement(net: Net) -> str:
    """Return where a net has another activation than ReLU, as short as an axis of the UI needs it.

    Such as "crelu 1-4" or "avr 1,4,7", by the numbers in the layers' names; "relu" for a net that has no other.
    """
    layers: dict[str, list[int]] = {}
    for row in net.rows:
        if isinstance(row, Conv) and row.act not in ("relu", "none"):
            layers.setdefault(row.act, []).append(int("".join(filter(str.isdigit, row.name)) or 0))
    return " ".join(f"{act} {_ranges(numbers)}" for act, numbers in layers.items()) or "relu"


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def params_of_cell(cell: Cell) -> dict[str, str | int | float]:
    """Return what varies between cells, for people."""
    recipe = cell.recipe
    return {
        "activation": placement(cell.net),
        "cell": cell.label,
        "dataset": cell.dataset[:200],
        "net": cell.net.name,
        "optimiser": recipe.optimiser,
        "lr": recipe.lr,
        "batch": recipe.batch,
        "epochs": recipe.epochs,
    }


def params_of(trial: Trial) -> dict[str, str | int | float]:
    """Return what varies between trials, for people; everything else is in trial.json."""
    return params_of_cell(trial.cell) | {
        "lr": trial.recipe.lr,
        "dropout": " ".join(f"{name}={rate:g}" for name, rate in sorted(trial.net.dropouts().items())) or "none",
        "phase": trial.phase,
        "seed": trial.seed,
        "fold": trial.fold if trial.folds else "",
    }


def experiment_tags() -> dict[str, str]:
    """Return the tags by which the UI opens an experiment on its runs, and knows what is compared."""
    view = {VIEW_COLUMNS: [*(f"metrics.`{name}`" for name in METRICS), *(f"params.`{name}`" for name in PARAMS)]}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": AVERAGE,
        "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
        f"{VIEW_TAG}{VIEW}": json.dumps(view),
    }


def table_address(experiment: str) -> str:
    """Return the address of the experiment's table with the columns above, relative to the server's."""
    return f"#/experiments/{experiment}/runs?{VIEW_KEY}={VIEW}"


def run_address(experiment: str, run: str, file: str = "") -> str:
    """Return the address of a run, or of one of its artifacts opened in the viewer."""
    return f"#/experiments/{experiment}/runs/{run}" + (f"/artifacts/{file}" if file else "")


def compare_address(experiment: str, runs: Sequence[str]) -> str:
    """Return the address at which runs stand side by side."""
    words = ",".join(f"%22{run}%22" for run in runs)
    return f"#/compare-runs?runs=%5B{words}%5D&experiments=%5B%22{experiment}%22%5D"
