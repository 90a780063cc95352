"""Check that the pictures of a data set can be split as trials need them, before any is trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from crelu_models.spec import Conv, Linear
from data.datasets import beton_path, check_folds, check_holdout, dataset, read_sidecar
from sweeps.experiment.trial import PHASES, Trial


def check_splits(trials: Iterable[Trial], where: Path) -> None:
    """Raise ValueError where a trial on pictures in `where` cannot be: its hold-out, its folds, or its batch norm.

    A batch norm behind which a picture is a single pixel needs two pictures a step.
    """
    distinct = {(trial.cell.key, trial.phase, trial.folds): trial for trial in trials}
    for trial in distinct.values():
        try:
            _check(trial, where)
        except ValueError as error:
            raise ValueError(f"{trial.cell.label}: {error}") from None


def _check(trial: Trial, where: Path) -> None:
    phase = PHASES[trial.phase]
    recipe = trial.recipe
    facts = dataset(trial.cell.dataset, where)
    label_counts = read_sidecar(beton_path(trial.cell.dataset, "train", where).with_suffix(".json")).label_counts
    learned = sum(label_counts)
    if phase.split == "holdout" or phase.probe:
        check_holdout(label_counts, facts.holdout)
    if phase.split == "holdout":
        learned -= facts.holdout
    if phase.split == "fold":
        check_folds(label_counts, trial.folds)
        learned -= -(-learned // trial.folds)
    if min(recipe.batch, learned) > 1:
        return
    normed = {row.name for row in trial.net.rows if isinstance(row, Conv | Linear) and row.bn}
    for name, _, side in trial.net.shapes(facts.classes, facts.crop):
        if side == 1 and name in normed:
            raise ValueError(
                f"the batch norm of {name} needs two pictures a step, and a step has one (batch {recipe.batch} of "
                f"{learned} pictures); train other cells by --set recipe.batch=N"
            )
