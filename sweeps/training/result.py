"""Results of finished trials: metrics, weights, history and scores; last the result itself, the commit point."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from crelu_models.model import Model
from sweeps.experiment.metrics import APPROXIMATELY, says_approximate
from sweeps.experiment.trial import PHASES, Trial
from sweeps.store.checkpoint import separate
from sweeps.store.ledger import Json, Ledger
from sweeps.store.tables import constant, parquet
from sweeps.training.evaluate import Errors, Row, best_epoch, counts, errors
from sweeps.training.loop import LOST

# Score tables up to this many numbers keep float32, which votes over folds need; ImageNet's keep float16.
FULL_PRECISION = 4_000_000

# Columns of a score table: id, label (n,), and the scores (n, c) of the views below.
Scores = dict[str, np.ndarray[Any, Any]]
# Kinds of scores, with the suffixes of their metrics.
VIEWS = {"centre": "", "ten_softmax": "_10crop", "ten_score": "_10crop_logit"}


@dataclass(frozen=True)
class TrialOutcome:
    """Finished training before it is written."""

    history: tuple[Row, ...]
    events: tuple[str, ...]
    restarts: int
    ending: str
    seconds: float
    precision: str
    fingerprint: str
    code: str  # fingerprint of the code that has trained it
    hardware: dict[str, str]
    chance: Errors
    test_chance: tuple[float, float]  # top-1 and top-5 error of guessing on the test set; those of `chance` without one
    ten_crops: bool
    weights: dict[str, Tensor]
    scores: Scores
    train: Errors | None
    train_pictures: int = 0
    partial: bool = False
    parameters: int = 0
    pictures: Json = field(default_factory=dict)  # classes, crop, mean and std: what a net needs to take pictures


def commit_result(ledger: Ledger, trial: Trial, outcome: TrialOutcome) -> Json:
    """Write the files of a trial, then commit and return its result; OSError where the ledger is full."""
    contents = {
        "trial.json": (json.dumps(trial.to_json(), indent=1, sort_keys=True) + "\n").encode(),
        "history.json": (json.dumps(list(outcome.history), sort_keys=True) + "\n").encode(),
        "weights.safetensors": safetensors.torch.save(separate(outcome.weights), {"trial": trial.key}),
    }
    if outcome.scores:
        contents["tables/scores.parquet"] = score_table(trial, outcome.scores)
    for name, content in contents.items():
        ledger.write(f"trials/{trial.key}/{name}", content)
    result: Json = {
        "key": trial.key,
        "cell_key": trial.cell.key,
        "label": trial.cell.label,
        "trial": trial.label,
        "status": _status(outcome.ending),
        "ending": outcome.ending,
        "metrics": metrics(trial, outcome),
        "curve": [row["val/top1_err"] for row in outcome.history] if trial.phase in ("holdout", "inner") else [],
        "epochs": len(outcome.history),
        "events": list(outcome.events),
        "restarts": outcome.restarts,
        "seconds": outcome.seconds,
        "precision": outcome.precision,
        "fingerprint": outcome.fingerprint,
        "train_pictures": outcome.train_pictures,
        "partial": outcome.partial,
        "pictures": outcome.pictures,
        "code": outcome.code,
        "hardware": outcome.hardware,
        "finished_ms": time.time_ns() // 1_000_000,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    if isinstance(trial.cell.net, Model):  # no table counts its parameters, and no report can build it
        result["parameters"] = outcome.parameters
    if says_approximate(outcome.events):
        result["resume"] = APPROXIMATELY
    return ledger.commit(trial.key, result)


def _status(ending: str) -> str:
    """Return finished, pruned, or diverged, which a dead training is too; `ending` tells them apart."""
    return "diverged" if ending in LOST else "pruned" if ending == "pruned" else "finished"


def metrics(trial: Trial, outcome: TrialOutcome) -> Row:
    """Return the numbers of a finished trial by metric name, errors in percent.

    A diverged or dead training has the error of chance: it counts as a result, marked as what it is.
    """
    numbers: Row = {}
    if outcome.history and "val/top1_err" in outcome.history[0]:
        best = best_epoch(outcome.history)
        numbers |= {"best/epoch": best["epoch"], "best/val_top1_err": best["val/top1_err"]}
        numbers["best/val_loss"] = best["val/loss"]
        if "probe/loss" in best:
            numbers["best/probe_loss"] = best["probe/loss"]
    if outcome.train is not None:
        numbers |= {"final/train_loss": outcome.train.loss, "final/train_top1_err": outcome.train.top1}
    if outcome.ending in LOST:
        return numbers | _chance(trial, outcome)
    for name, suffix in VIEWS.items():
        if name in outcome.scores:
            labels = torch.from_numpy(outcome.scores["label"])
            scores = torch.from_numpy(outcome.scores[name])
            test = errors(counts(scores.log() if name == "ten_softmax" else scores, labels), len(labels))
            numbers[f"final/test_top1_err{suffix}"] = test.top1
            numbers[f"final/test_top5_err{suffix}"] = test.top5
            numbers[f"final/test_loss{suffix}"] = test.loss
    return numbers


def _chance(trial: Trial, outcome: TrialOutcome) -> Row:
    """Return the metrics of guessing, in place of those of a diverged or dead net."""
    guessing = outcome.chance
    phase = PHASES[trial.phase]
    numbers: Row = {}
    if phase.test:
        # The test set may have other shares of the classes than the pictures that the guess is drawn from.
        top1, top5 = outcome.test_chance
        wrong = {"top1_err": top1, "top5_err": top5}
        crops = ("", "_10crop") if outcome.ten_crops else ("",)
        numbers |= {f"final/test_{name}{crop}": value for name, value in wrong.items() for crop in crops}
    if phase.split != "full":
        numbers |= {"best/epoch": 0.0, "best/val_top1_err": guessing.top1, "best/val_loss": guessing.loss}
    if phase.probe:
        numbers["best/probe_loss"] = guessing.loss
    if phase.probe and phase.test:
        numbers |= {"final/train_top1_err": guessing.top1, "final/train_loss": guessing.loss}
    return numbers


def score_table(trial: Trial, scores: Scores) -> bytes:
    """Return per-picture scores as Parquet: id, label, and a fixed-size list of floats per kind of view."""
    count, classes = scores["centre"].shape
    kind = np.float32 if count * classes <= FULL_PRECISION else np.float16
    columns = {
        "id": pa.array(scores["id"].astype(np.int32)),
        "label": pa.array(scores["label"].astype(np.int16)),
    }
    for name in VIEWS:
        if name in scores:
            values = pa.array(scores[name].astype(kind).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(values, classes)
    columns["trial_key"] = constant(trial.key, count)
    columns["fold"] = pa.array(np.full(count, trial.fold, np.int16))
    return parquet(columns, {"schema": "scores/1", "trial_key": trial.key})
