"""What a finished trial leaves: metrics, weights, history, and a table of scores; then its result, the commit point."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.trial import PHASES, Trial
from sweeps.store.ledger import Ledger
from sweeps.store.tables import constant, parquet
from sweeps.training.evaluate import Errors, counts, errors

# Score tables up to this many numbers keep float32, which votes over folds need; ImageNet's keep float16.
FULL_PRECISION = 4_000_000

Row = dict[str, float]


@dataclass(frozen=True)
class TrialOutcome:
    """A finished training before it is written; `scores` hold id, label (n,), centre and ten crops (n, c)."""

    history: tuple[Row, ...]
    events: tuple[str, ...]
    restarts: int
    ending: str
    seconds: float
    precision: str
    fingerprint: str
    hardware: dict[str, str]
    classes: int
    ten_crops: bool
    weights: dict[str, Tensor]
    scores: dict[str, np.ndarray[Any, Any]]
    train: Errors | None


def commit_result(ledger: Ledger, trial: Trial, outcome: TrialOutcome) -> dict[str, Any]:
    """Write the files of a trial, then commit its result, and return that; OSError where the ledger is full."""
    folder, files = f"trials/{trial.key}", {}
    contents = {
        "trial.json": (json.dumps(trial.to_json(), indent=1, sort_keys=True) + "\n").encode(),
        "history.json": (json.dumps(list(outcome.history), sort_keys=True) + "\n").encode(),
        "weights.safetensors": safetensors.torch.save(
            {name: value.contiguous() for name, value in outcome.weights.items()}, {"trial": trial.key}
        ),
    }
    if outcome.scores:
        contents["tables/scores.parquet"] = score_table(trial, outcome.scores)
    for name, content in contents.items():
        ledger.write(f"{folder}/{name}", content)
        files[name] = hashlib.sha256(content).hexdigest()
    result = {
        "key": trial.key,
        "cell_key": trial.cell.key,
        "label": trial.cell.label,
        "trial": trial.label,
        "status": outcome.ending if outcome.ending in ("diverged", "pruned") else "finished",
        "ending": outcome.ending,
        "metrics": metrics(trial, outcome),
        "curve": [row["val/top1_err"] for row in outcome.history] if trial.phase in ("holdout", "inner") else [],
        "epochs": len(outcome.history),
        "events": list(outcome.events),
        "restarts": outcome.restarts,
        "seconds": outcome.seconds,
        "precision": outcome.precision,
        "fingerprint": outcome.fingerprint,
        "code": code_fingerprint(trial.cell.net),
        "hardware": outcome.hardware,
        "finished_ms": time.time_ns() // 1_000_000,
        "files": files,
    }
    ledger.commit(trial.key, result)
    return result


def metrics(trial: Trial, outcome: TrialOutcome) -> dict[str, float]:
    """Return the numbers of a finished trial by metric name, errors in percent.

    A diverged training has the error of chance: it is a result, and marked as one that diverged.
    """
    found: dict[str, float] = {}
    if outcome.history and "val/top1_err" in outcome.history[0]:
        best = min(outcome.history, key=lambda row: (row["val/top1_err"], row["val/loss"], -row["epoch"]))
        found |= {"best/epoch": best["epoch"], "best/val_top1_err": best["val/top1_err"]}
        found |= {"best/val_loss": best["val/loss"]}
        found |= {"best/probe_loss": best["probe/loss"]} if "probe/loss" in best else {}
    if outcome.train is not None:
        found |= {"final/train_loss": outcome.train.loss, "final/train_top1_err": outcome.train.top1}
    if outcome.ending == "diverged":
        return found | _chance(trial, outcome)
    if outcome.scores:
        labels = torch.from_numpy(outcome.scores["label"])
        for name, suffix in (("centre", ""), ("ten_softmax", "_10crop"), ("ten_score", "_10crop_logit")):
            if name in outcome.scores:
                scores = torch.from_numpy(outcome.scores[name])
                found_here = errors(counts(scores.log() if name == "ten_softmax" else scores, labels), len(labels))
                found[f"final/test_top1_err{suffix}"] = found_here.top1
                found[f"final/test_top5_err{suffix}"] = found_here.top5
                found[f"final/test_loss{suffix}"] = found_here.loss
    return found


def _chance(trial: Trial, outcome: TrialOutcome) -> dict[str, float]:
    """Return what a net that tells nothing apart scores, in place of what a diverged one did."""
    classes, phase = outcome.classes, PHASES[trial.phase]
    wrong = {"top1_err": 100 * (1 - 1 / classes), "top5_err": 100 * (1 - min(5, classes) / classes)}
    found: dict[str, float] = {}
    if phase.test:
        crops = ("", "_10crop") if outcome.ten_crops else ("",)
        found |= {f"final/test_{name}{crop}": value for name, value in wrong.items() for crop in crops}
    if phase.split != "full":
        found |= {"best/epoch": 0.0, "best/val_top1_err": wrong["top1_err"], "best/val_loss": math.log(classes)}
    if phase.probe:
        found["best/probe_loss"] = math.log(classes)
    return found


def score_table(trial: Trial, scores: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Return per-picture scores as Parquet: id, label, and a fixed-size list of floats per kind of view."""
    kind = pa.float32() if scores["centre"].size <= FULL_PRECISION else pa.float16()
    classes = scores["centre"].shape[1]
    columns = {
        "id": pa.array(scores["id"].astype(np.int32)),
        "label": pa.array(scores["label"].astype(np.int16)),
    }
    for name in ("centre", "ten_softmax", "ten_score"):
        if name in scores:
            flat = scores[name].astype(np.float32 if kind == pa.float32() else np.float16).reshape(-1)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat, kind), classes)
    count = len(scores["id"])
    columns["trial_key"] = constant(trial.key, count)
    columns["fold"] = pa.array(np.full(count, trial.fold, np.int16))
    return parquet(columns, {"schema": "scores/1", "trial_key": trial.key})
