"""Trials that train in about a second: four families of nets on synthetic pictures, and what a trial leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crelu_models.spec import Net
from crelu_models.tables import S2, S5, S9
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe
from sweeps.experiment.trial import PHASES, Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig

if TYPE_CHECKING:
    import pytest
    from torch import Tensor

    from sweeps.training.loop import Learner

SMALL = "synthetic:size=32,classes=4,train=100,test=24"
LARGE = "synthetic:size=72,classes=4,train=60,test=12"
DROPPED = S2.crelu(1, 2).dropout(0.2, "input").dropout(0.5, "pool1")
FAMILIES: dict[str, tuple[Net, str, Recipe, float]] = {
    "allconv with dropout": (DROPPED, SMALL, ALLCONV, 0.01),
    "VGG with batch norm": (S5, SMALL, VGG, 0.1),
    "All-CNN-B": (S9.dropout(0.25, 9), LARGE, IMAGENET_SGD, 0.01),
    "All-CNN-B by Adam": (S9, LARGE, IMAGENET_ADAM, 1e-3),
}
# Factors of the learning rate: a pack has one member for each.
FACTORS = {
    "allconv with dropout": (1.0, 0.5, 2.0),
    "VGG with batch norm": (1.0, 0.5, 2.0),
    "All-CNN-B": (1.0, 0.3, 2.0),
    "All-CNN-B by Adam": (1.0, 0.5),
}
Hashes = Callable[[Trial], dict[str, str]]


class Killed(BaseException):
    """A kill of the process: no code of a trial catches it."""


class StepClock:
    """Clock whose seconds are the steps that all learners have taken; the `first` one may take longer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count the steps from now on."""
        from sweeps.training.loop import Learner

        self.taken = 0
        self.first = 1
        step = Learner.step

        def counted(learner: Learner, images: Tensor, labels: Tensor) -> None:
            self.taken += 1
            step(learner, images, labels)

        monkeypatch.setattr(Learner, "step", counted)

    def __call__(self) -> float:
        """Return the time."""
        return float(self.taken + (self.first - 1) * (self.taken > 0))


def trial_of(family: str, phase: str = "ablation") -> Trial:
    """Return a trial of three short epochs of a family."""
    net, dataset, recipe, lr = FAMILIES[family]
    short = dataclasses.replace(recipe, epochs=3, batch=16, lr=lr)
    return Trial(Cell(family, net.width(0.125), dataset, short), phase, seed=3)


def modern_trial(phase: str = "ablation") -> Trial:
    """Return a trial by a recipe that has all that the paper's have not."""
    base = trial_of("VGG with batch norm", phase)
    recipe = dataclasses.replace(
        base.cell.recipe, optimiser="adamw", lr=1e-3, schedule="cosine", warmup_epochs=1.0, label_smoothing=0.1,
        shift=0, resized_crop=0.25, rand_augment=1, mixup=0.2, ema=0.9,
    )  # fmt: skip
    return dataclasses.replace(base, cell=dataclasses.replace(base.cell, recipe=recipe))


def scaled_lr(trial: Trial, factor: float) -> Trial:
    """Return the trial with another learning rate: the same batches, another net after the first step."""
    recipe = dataclasses.replace(trial.cell.recipe, lr=trial.cell.recipe.lr * factor)
    return dataclasses.replace(trial, cell=dataclasses.replace(trial.cell, recipe=recipe))


def members(family: str, phase: str = "ablation") -> list[Trial]:
    """Return the trials of a family that may form a pack."""
    return [scaled_lr(trial_of(family, phase), factor) for factor in FACTORS[family]]


def runtime_config(data: Path, ledger: Path, **changes: Any) -> RuntimeConfig:
    """Return the machine of a test: its CPU, and the reader that every machine has."""
    return dataclasses.replace(RuntimeConfig(str(ledger), str(data), reader="threads"), **changes)


def artifact_hashes(ledger: Path, trial: Trial) -> dict[str, str]:
    """Return hashes of a finished trial's curves, weights and scores; times and speeds are left out."""
    result = Ledger(str(ledger)).result(trial.key)
    assert result is not None
    tested = PHASES[trial.phase].test and result["status"] == "finished"
    assert ("tables/scores.parquet" in result["files"]) == tested
    folder = Ledger(str(ledger)).path(f"trials/{trial.key}")
    history = json.loads(Path(folder, "history.json").read_text())
    curves = [
        {name: value for name, value in row.items() if name != "time_ms" and "sys/" not in name} for row in history
    ]
    names = ["weights.safetensors", *(["tables/scores.parquet"] if tested else [])]
    hashes = {name: hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() for name in names}
    return hashes | {"history": json.dumps(curves)}
