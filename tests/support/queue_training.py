"""Simulated training: a trial's fate is a function of its key, its state a chain of hashes over its epochs.

A result holds the end of that chain, so a training that resumed from a wrong state has another result.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import STEP, TEST, PackContext, Position, Steps, drain
from tests.support.queue_ledger import MemoryLedger, World
from tests.support.queue_processes import Process

STEPS = 2  # of an epoch
Report = Callable[[int, dict[str, float]], None]


class Fate(NamedTuple):
    """What a trial comes to whenever and wherever it is trained.

    `fails_at` is the epoch (0-based) before whose end it raises ValueError, `restarts_at` the one at whose end it
    diverges once; -1 for never. `diverges` says that it diverges for good.
    """

    curve: tuple[float, ...]
    fails_at: int
    restarts_at: int
    diverges: bool


@dataclass
class Training:
    """What of all trainings a world decides and sees: fates, troubles that pass, and who trains what now."""

    salt: int
    step_seconds: float
    trouble: float = 0.0  # share of steps that raise an error
    gap: float = 0.0  # by which each cell errs more than the one before it
    divergence: float = 0.08  # share of trials that diverge
    active: dict[str, set[Process]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)  # trained so far, by trial, repeated ones too
    on_start: Callable[[str, Process], None] = lambda key, process: None

    def fate(self, trial: Trial) -> Fate:
        """Return what a trial comes to."""
        draw = random.Random(f"{self.salt} {trial.key}")
        epochs = trial.recipe.epochs
        floor = draw.uniform(5, 60) + self.gap * int(trial.cell.label.removeprefix("cell"))
        curve = tuple(round(floor + draw.uniform(0, 3) + 30 / (epoch + 1), 3) for epoch in range(epochs))
        fails_at = draw.randrange(epochs) if draw.random() < 0.04 else -1
        restarts_at = draw.randrange(epochs) if draw.random() < 0.08 else -1
        if 0 <= restarts_at < fails_at:  # with another seed it does not fail
            fails_at = -1
        return Fate(curve, fails_at, restarts_at, draw.random() < self.divergence)

    def result(self, trial: Trial) -> Json | None:
        """Return the result that a trial comes to, None for one that fails: what the simulation has to end in."""
        fate = self.fate(trial)
        state = _start(trial)
        if fate.fails_at >= 0:
            return None
        while not _is_over(state, trial, fate):
            state = _after_epoch(state, trial, fate)
        return _result(trial, fate, state)


class Present:
    """Holder of the trainings of the present simulation."""

    training: Training


def trial_steps(
    trial: Trial, runtime: RuntimeConfig, report: Report, stop: Callable[[], bool], context: PackContext
) -> Steps[Json | None]:
    """Stand for the function of this name: yield the position before each batch, save, report, commit."""
    training = Present.training
    processes = World.store.processes
    ledger = MemoryLedger(runtime.ledger)
    committed = ledger.result(trial.key)
    if committed is not None:
        return committed
    fate = training.fate(trial)
    with _registered(trial.key):
        state = _resumed(ledger, trial)
        while not _is_over(state, trial, fate):
            if _is_paused(state, trial, runtime):
                _pause(ledger, trial, state, fate)
                return None
            epoch = int(state["epoch"])
            for number in range(STEPS):
                yield Position(epoch, STEP, number)
                processes.pause(training.step_seconds * processes.random.uniform(0.5, 1.5))
                if stop():
                    _save(ledger, trial, state, number)
                    return None
                _trouble(context)
            if fate.fails_at == epoch and not state["restarts"]:
                raise ValueError("this trial fails wherever it is trained")
            state = _after_epoch(state, trial, fate)
            if not state["epoch"]:
                ledger.delete(f"checkpoints/{trial.key}")
            training.epochs[trial.key] = training.epochs.get(trial.key, 0) + 1
            _save(ledger, trial, state, 0)
            if state["epoch"]:
                report(int(state["epoch"]), {"epoch": float(state["epoch"]), "val/top1_err": fate.curve[epoch]})
        yield Position(int(state["epoch"]), TEST, 0)
        processes.pause(training.step_seconds)
        ledger.write(f"trials/{trial.key}/weights", str(state["chain"]).encode())
        result = _result(trial, fate, state)
        ledger.commit(trial.key, result)
        processes.log(f"commits {trial.cell.label} {trial.label}")
    return result


def train(trial: Trial, runtime: RuntimeConfig, report: Report, stop: Callable[[], bool]) -> Json | None:
    """Train a trial alone."""
    return drain(trial_steps(trial, runtime, report, stop, PackContext()))


@contextmanager
def _registered(key: str) -> Iterator[None]:
    """Count the present process among those that train a trial."""
    training = Present.training
    process = World.store.processes.current
    training.active.setdefault(key, set()).add(process)
    training.on_start(key, process)
    try:
        yield
    finally:
        training.active[key].discard(process)


def _trouble(context: PackContext) -> None:
    """Raise an error that passes, now and then."""
    training = Present.training
    processes = World.store.processes
    if processes.random.random() >= training.trouble:
        return
    kind = processes.random.randrange(4)
    if kind == 0 and context.others_present():
        processes.log("runs out of memory")
        raise torch.OutOfMemoryError("simulated")
    if kind == 1:
        processes.log("loses its device")
        raise torch.AcceleratorError("simulated")
    if kind == 2:
        processes.log("loses its disk")
        raise OSError(5, "simulated")
    processes.log("raises an error")
    raise RuntimeError("simulated")


def _start(trial: Trial) -> Json:
    return {"epoch": 0, "restarts": 0, "chain": hashlib.sha256(trial.key.encode()).hexdigest()}


def _after_epoch(state: Json, trial: Trial, fate: Fate) -> Json:
    """Return the state after one more epoch, which may begin anew with another seed."""
    epoch = int(state["epoch"])
    if fate.restarts_at == epoch and not state["restarts"]:
        return _start(trial) | {"restarts": 1}
    chain = hashlib.sha256(f"{state['chain']} {epoch} {trial.restarted(state['restarts'])}".encode()).hexdigest()
    return {"epoch": epoch + 1, "restarts": state["restarts"], "chain": chain}


def _is_paused(state: Json, trial: Trial, runtime: RuntimeConfig) -> bool:
    """Return whether a training has reached the epoch at which it pauses."""
    return 0 < runtime.pause_at <= int(state["epoch"]) < trial.recipe.epochs


def _pause(ledger: MemoryLedger, trial: Trial, state: Json, fate: Fate) -> None:
    """Note where a training has paused."""
    epoch = int(state["epoch"])
    ledger.pause(trial.key, {"epoch": epoch, "curve": list(fate.curve[:epoch]), "seconds": float(epoch)})


def _is_over(state: Json, trial: Trial, fate: Fate) -> bool:
    """Return whether a training is at its end, or is pruned here."""
    epoch = int(state["epoch"])
    return epoch >= trial.recipe.epochs or _is_pruned(epoch, trial, fate)


def _is_pruned(epoch: int, trial: Trial, fate: Fate) -> bool:
    thresholds = trial.pruning_thresholds
    return 0 < epoch <= len(thresholds) and min(fate.curve[:epoch]) > thresholds[epoch - 1]


def _result(trial: Trial, fate: Fate, state: Json) -> Json:
    epoch = int(state["epoch"])
    pruned = _is_pruned(epoch, trial, fate) and epoch < trial.recipe.epochs
    error = min(fate.curve[:epoch])
    return {
        "key": trial.key,
        "status": "diverged" if fate.diverges else "pruned" if pruned else "finished",
        "metrics": {"best/val_top1_err": error, "final/test_top1_err": error + 1, "best/probe_loss": 1.0},
        "curve": list(fate.curve[:epoch]),
        "epochs": epoch,
        "restarts": state["restarts"],
        "chain": state["chain"],
    }


def _resumed(ledger: MemoryLedger, trial: Trial) -> Json:
    """Return the state in the newest checkpoint, or that of a beginning."""
    for name in reversed(ledger.names(f"checkpoints/{trial.key}")):
        content = ledger.read(f"checkpoints/{trial.key}/{name}")
        if content:
            state: Json = json.loads(content)
            return state
    return _start(trial)


def _save(ledger: MemoryLedger, trial: Trial, state: Json, step: int) -> None:
    """Write a checkpoint and delete all but the last two."""
    folder = f"checkpoints/{trial.key}"
    ledger.write(f"{folder}/{state['epoch']:05d}-{step:08d}.safetensors", json.dumps(state).encode())
    for name in ledger.names(folder)[:-2]:
        ledger.delete(f"{folder}/{name}")
