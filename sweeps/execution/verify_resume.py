"""Proof that a killed trial resumes exactly: a real training, killed for real, against one left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import Any, NamedTuple

from sweeps.experiment.trial import Trial, trial_from_json
from sweeps.store.checkpoint import digest
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig

EPOCHS = 3


class Verdict(NamedTuple):
    """What the comparison found: how often the trial was killed, and where the two differ (nothing: exact)."""

    kills: int
    differences: tuple[str, ...]


def shortened(trial: Trial) -> Trial:
    """Return the trial with a schedule of a few epochs: the same net, data and steps."""
    recipe = dataclasses.replace(trial.cell.recipe, epochs=min(EPOCHS, trial.cell.recipe.epochs))
    return dataclasses.replace(trial, cell=dataclasses.replace(trial.cell, recipe=recipe))


def verify(trial: Trial, place: RuntimeConfig, folder: str, kills: int, seed: int) -> Verdict:
    """Train `trial` once undisturbed and once killed (SIGKILL) after random steps, in processes of their own.

    The killed one saves at every step, so that kills within an epoch resume within it. RuntimeError where a
    training fails by itself.
    """
    whole = dataclasses.replace(place, ledger=f"{folder}/whole")
    broken = dataclasses.replace(place, ledger=f"{folder}/killed", checkpoint_minutes=0.0)
    steps = _train(trial, whole, 0)
    draw, killed = random.Random(seed), 0
    while killed < kills:
        if _train(trial, broken, draw.randint(2, max(3, steps // 2))) >= 0:
            break
        killed += 1
    _train(trial, broken, 0)
    return Verdict(killed, tuple(_differences(trial, whole.ledger, broken.ledger)))


def _train(trial: Trial, place: RuntimeConfig, kill_at: int) -> int:
    """Train in a process that is killed at step `kill_at` (0: never); return its steps, or -1 where it was killed."""
    order = json.dumps({"trial": trial.to_json(), "place": asdict(place)})
    command = [sys.executable, "-m", "sweeps.execution.verify_resume"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(order)
        process.stdin.close()
        steps = 0
        for line in process.stdout:
            if line != "step\n":
                continue
            steps += 1
            if steps == kill_at:
                os.kill(process.pid, signal.SIGKILL)
                return -1
        process.wait()
        if process.returncode:
            raise RuntimeError(f"the training ended with exit code {process.returncode}")
        return steps


def _differences(trial: Trial, one: str, other: str) -> list[str]:
    """Return what differs between what two ledgers hold of a finished trial, times apart."""
    import safetensors.torch

    found, seen = [], []
    for root in (one, other):
        ledger, folder = Ledger(root), f"trials/{trial.key}"
        history = json.loads(ledger.read(f"{folder}/history.json") or b"[]")
        curves = [{name: x for name, x in row.items() if name != "time_ms" and "sys/" not in name} for row in history]
        weights = safetensors.torch.load(ledger.read(f"{folder}/weights.safetensors") or b"")
        seen.append((digest(weights), curves, ledger.read(f"{folder}/tables/scores.parquet")))
    for index, what in enumerate(("weights", "curves", "scores")):
        if seen[0][index] != seen[1][index]:
            found.append(what)
    return found


def _child() -> None:
    """Train what standard input says, with a line a step on standard output."""
    from sweeps.training.run_trial import run_trial

    order: dict[str, Any] = json.load(sys.stdin)

    def stop() -> bool:
        print("step", flush=True)
        return False

    run_trial(trial_from_json(order["trial"]), RuntimeConfig(**order["place"]), lambda *_: None, stop)


if __name__ == "__main__":
    _child()
