"""Check that the pictures of a data set can be split as trials need them, before any is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from crelu_data.availability import expected_pictures
from crelu_data.datasets import DataSet, check_folds, check_holdout
from crelu_models.model import Model
from crelu_models.spec import Conv, Linear
from sweeps.experiment.trial import PHASES, Trial
from sweeps.experiment.wording import count


def check_splits(trials: Iterable[Trial], where: Path) -> None:
    """Raise ValueError where a trial on pictures in `where` cannot be: its hold-out, its folds, or its batch norm.

    A batch norm behind which a picture is a single pixel needs two pictures a step. Embedded pictures and folders that
    are not prepared yet are judged by what would be prepared.
    """
    distinct = {(trial.cell.key, trial.phase, trial.folds): trial for trial in trials}
    pictures = {name: expected_pictures(name, where) for name in {t.cell.dataset for t in distinct.values()}}
    for trial in distinct.values():
        try:
            _check(trial, *pictures[trial.cell.dataset])
        except ValueError as error:
            raise ValueError(f"{trial.cell.label}: {error}") from None


def _check(trial: Trial, facts: DataSet, label_counts: Sequence[int]) -> None:
    phase = PHASES[trial.phase]
    recipe = trial.recipe
    learned = sum(label_counts)
    if phase.split == "holdout" or phase.probe:
        check_holdout(label_counts, facts.holdout)
    if phase.split == "holdout":
        learned -= facts.holdout
    if phase.split == "fold":
        check_folds(label_counts, trial.folds)
        learned -= -(-learned // trial.folds)
    net = trial.net
    if min(recipe.batch, learned) > 1 or isinstance(net, Model):  # of a model torch says so itself
        return
    normed = {row.name for row in net.rows if isinstance(row, Conv | Linear) and row.bn}
    for name, _, side in net.shapes(facts.classes, facts.crop):
        if side == 1 and name in normed:
            raise ValueError(
                f"the batch norm of {name} needs two pictures a step, and a step has one (batch {recipe.batch} of "
                f"{count(learned, 'picture')}); train other cells by --set recipe.batch=N"
            )
