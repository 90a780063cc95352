"""Trainers that train nothing, for what is said of the queue and the search and not of a net."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig

Report = Callable[[int, dict[str, float]], None]


def at_once(trial: Trial, place: RuntimeConfig, report: Report, stop: Callable[[], bool]) -> dict[str, Any]:
    """Commit a result without training: what is left is the queue's own cost."""
    return _commit(trial, place, [50.0])


def wait(trial: Trial, place: RuntimeConfig, report: Report, stop: Callable[[], bool]) -> dict[str, Any]:
    """Commit a result after a second in which nothing is computed here, as where a GPU computes."""
    time.sleep(1.0)
    return _commit(trial, place, [50.0])


def bowl(trial: Trial, place: RuntimeConfig, report: Report, stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Play a training whose hold-out error falls to a known function of the dropout rates, least at .1, .4, .5.

    Errors fall as 30 / epoch above their floor, the same for all: who is worse in the end is worse all the way.
    """
    return _play(trial, place, bowl_curve(trial))


def bowl_curve(trial: Trial) -> list[float]:
    """Return the errors of a bowl by epoch."""
    return [floor(trial) + 30 / epoch for epoch in range(1, trial.recipe.epochs + 1)]


def crossing_curve(trial: Trial) -> list[float]:
    """Return errors by epoch that cross: more dropout learns more slowly, and each epoch wanders by half a point."""
    slowness = 1 + 2 * sum(rate for _, rate in trial.dropout)
    draw = random.Random(trial.key)
    epochs = range(1, trial.recipe.epochs + 1)
    return [floor(trial) + 30 * slowness / epoch + draw.gauss(0, 0.5) for epoch in epochs]


def floor(trial: Trial) -> float:
    """Return the error to which a trial falls in the end."""
    return 10 + 40 * distance([rate for _, rate in trial.dropout])


def _play(trial: Trial, place: RuntimeConfig, errors: list[float]) -> dict[str, Any] | None:
    """Play a training with these errors to its end, or to the epoch where it is pruned or pauses."""
    curve: list[float] = []
    for epoch, error in enumerate(errors):
        curve.append(error)
        if epoch < len(trial.pruning_thresholds) and min(curve) > trial.pruning_thresholds[epoch]:
            break
        if len(curve) == place.pause_at < len(errors):
            Ledger(place.ledger).pause(trial.key, {"epoch": len(curve), "curve": curve, "seconds": 0.0})
            return None
    return _commit(trial, place, curve, "pruned" if len(curve) < len(errors) else "finished")


def distance(rates: Sequence[float]) -> float:
    """Return how far three dropout rates are from the bowl's least point, squared."""
    return sum((rate - best) ** 2 for rate, best in zip(rates, (0.1, 0.4, 0.5), strict=True))


def _commit(trial: Trial, place: RuntimeConfig, curve: list[float], status: str = "finished") -> dict[str, Any]:
    result: dict[str, Any] = {
        "key": trial.key,
        "cell_key": trial.cell.key,
        "label": trial.cell.label,
        "trial": trial.label,
        "status": status,
        "ending": "schedule",
        "metrics": {"best/val_top1_err": min(curve), "best/epoch": float(len(curve)), "best/probe_loss": math.e},
        "curve": curve,
        "epochs": len(curve),
        "events": [],
        "restarts": 0,
        "seconds": 0.0,
        "precision": "fp32",
        "fingerprint": place.fingerprint,
        "code": code_fingerprint(trial.cell.net),
        "hardware": {"worker": f"{os.getpid()}"},
        "finished_ms": time.time_ns() // 1_000_000,
        "files": {},
    }
    Ledger(place.ledger).commit(trial.key, result)
    return result
