"""How a sweep looks in MLflow: parameters, averages, the columns of its table, and its report on the cells' runs.

MLflow shows no metric until its reader picks one, unless the address names a view that the experiment carries as a
tag. The view here is the experiment's, under one name; whoever rearranges it in a browser keeps that for himself.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from crelu_models.spec import Conv, Net
from sweeps.experiment.metrics import AVERAGE, HELD_OUT, PARAMETERS, TOP1, VOTE
from sweeps.experiment.trial import Cell, Trial

VIEW: Final = "cells"
# What one compares cells by; the trials below a cell, opened by its +, fill the later ones.
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
LONGEST: Final = 8000  # characters of a tag
REPORT: Final = "report"  # the folder of a run's artifacts, and the tag that says which report lies there


def placement(net: Net) -> str:
    """Return where a net has another activation than ReLU, in the few letters that an axis of the UI has room for.

    Such as "crelu 1-4" or "avr 1,4,7", by the numbers in the layers' names; "relu" for a net that has no other.
    """
    found: dict[str, list[int]] = {}
    for row in net.rows:
        if isinstance(row, Conv) and row.act not in ("relu", "none"):
            found.setdefault(row.act, []).append(int("".join(filter(str.isdigit, row.name)) or 0))
    return " ".join(f"{act} {_ranges(numbers)}" for act, numbers in found.items()) or "relu"


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def params_of_cell(cell: Cell) -> dict[str, Any]:
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


def params_of(trial: Trial) -> dict[str, Any]:
    """Return what varies between trials, for people; everything else is in trial.json."""
    return params_of_cell(trial.cell) | {
        "dropout": " ".join(f"{name}={rate:g}" for name, rate in sorted(trial.net.dropouts().items())) or "none",
        "phase": trial.phase,
        "seed": trial.seed,
        "fold": trial.fold if trial.folds else "",
    }


def experiment_tags() -> dict[str, str]:
    """Return the tags by which the UI opens an experiment on its runs, and knows what is compared."""
    view = {"selectedColumns": [*(f"metrics.`{name}`" for name in METRICS), *(f"params.`{name}`" for name in PARAMS)]}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": AVERAGE,
        "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def table_address(experiment: str) -> str:
    """Return the address of the experiment's table with the columns above, from the server's own on."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def run_address(experiment: str, run: str, file: str = "") -> str:
    """Return the address of a run, or of one of its artifacts opened in the viewer."""
    return f"#/experiments/{experiment}/runs/{run}" + (f"/artifacts/{file}" if file else "")


def compare_address(experiment: str, runs: Sequence[str]) -> str:
    """Return the address at which runs stand side by side."""
    words = ",".join(f"%22{run}%22" for run in runs)
    return f"#/compare-runs?runs=%5B{words}%5D&experiments=%5B%22{experiment}%22%5D"


class Page(NamedTuple):
    """What the report puts on the run of one cell: the note at its head, and numbers that its trials have not."""

    note: str
    metrics: Mapping[str, float]


def parents(client: Any, experiment: str) -> dict[str, str]:
    """Return the runs of an experiment's cells, by cell key."""
    found: dict[str, str] = {}
    token: str | None = None
    while True:
        page = client.search_runs([experiment], "tags.`cell.key` != ''", max_results=1000, page_token=token)
        for run in page:
            if "trial.key" not in run.data.tags:
                found.setdefault(run.data.tags["cell.key"], run.info.run_id)
        token = page.token
        if not token:
            return found


def publish(client: Any, run: str, files: Mapping[str, bytes], digest: str, page: Page) -> bool:
    """Put a report's files, note and numbers on a run; return whether other ones were there. Raises what MLflow raises.

    Points carry the end of the run as their time, so that the same number sent again is the same point.
    """
    there, note = client.get_run(run), page.note[:LONGEST]
    if there.data.tags.get(REPORT) == digest and there.data.tags.get(NOTE) == note:
        return False
    log_folder(client, run, files, REPORT)
    for name, value in page.metrics.items():
        if there.data.metrics.get(name) != value:
            client.log_metric(run, name, value, there.info.end_time or 0, 0)
    client.set_tag(run, NOTE, note)
    client.set_tag(run, REPORT, digest)
    return True


def log_folder(client: Any, run: str, files: Mapping[str, bytes], folder: str = "") -> None:
    """Log files by their paths in one call, which a server answers faster than one a file."""
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            path = Path(place, name)
            os.makedirs(path.parent, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run, place, folder or None)
