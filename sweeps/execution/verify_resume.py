"""Proof that a killed trial resumes exactly: a training that is killed ends as one that is left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from typing import Final, NamedTuple, NoReturn, TextIO

from crelu_models.command_line import sentence
from sweeps.execution.failures import attempt_of
from sweeps.experiment.task_source import TaskFailedError
from sweeps.experiment.trial import Trial, trial_from_json
from sweeps.store.checkpoint import digest
from sweeps.store.foreign import TASK_FILES
from sweeps.store.ledger import Json, Ledger
from sweeps.training.runtime import RuntimeConfig

EPOCHS = 3
REFUSED: Final = "cannot train: "  # begins the line that says why a process ends without a result


class Verdict(NamedTuple):
    """Result of the comparison: how often the trial was killed, and where the two trainings differ (nothing: exact)."""

    kills: int
    differences: tuple[str, ...]


def shortened(trial: Trial) -> Trial:
    """Return the trial with a schedule of a few epochs: the same net, data and steps."""
    recipe = trial.recipe.compressed(min(EPOCHS, trial.recipe.epochs))
    return dataclasses.replace(trial, cell=dataclasses.replace(trial.cell, recipe=recipe))


def verify(trial: Trial, config: RuntimeConfig, folder: str, kills: int, seed: int) -> Verdict:
    """Train `trial` once undisturbed and once killed (SIGKILL) after random steps, in processes of their own.

    The killed one saves at every step, so that kills within an epoch resume within it. ValueError where a training
    fails by itself.
    """
    undisturbed = dataclasses.replace(config, ledger=f"{folder}/whole")
    disturbed = dataclasses.replace(config, ledger=f"{folder}/killed", checkpoint_minutes=0.0)
    steps = _train(trial, undisturbed, 0)
    draw = random.Random(seed)
    killed = 0
    while killed < kills and _train(trial, disturbed, draw.randint(2, max(3, steps // 2))) < 0:
        killed += 1
    _train(trial, disturbed, 0)
    return Verdict(killed, tuple(_differences(trial, undisturbed.ledger, disturbed.ledger)))


def _train(trial: Trial, config: RuntimeConfig, kill_at: int) -> int:
    """Train in a process that is killed at step `kill_at` (0: never); return its steps, or -1 where it was killed."""
    order = json.dumps({"trial": trial.to_json(), "config": dataclasses.asdict(config)})
    command = [sys.executable, "-m", "sweeps.execution.verify_resume"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(order)
        process.stdin.close()
        steps = 0
        why = ""
        for line in process.stdout:
            if line.startswith(REFUSED):
                why = line.removeprefix(REFUSED).strip()
            if line != "step\n":
                continue
            steps += 1
            if steps == kill_at:
                os.kill(process.pid, signal.SIGKILL)
                return -1
        process.wait()
        if process.returncode:
            raise ValueError(why or f"the training ended with exit code {process.returncode}")
        return steps


def _differences(trial: Trial, *roots: str) -> list[str]:
    """Return what differs between the files of a finished trial on two ledgers, times apart.

    What a training function has put into run.folder is compared file by file.
    """
    import safetensors.torch

    contents: list[Json] = []
    for root in roots:
        ledger = Ledger(root)
        folder = f"trials/{trial.key}"
        history = json.loads(ledger.read(f"{folder}/history.json") or b"[]")
        curves = [{name: x for name, x in row.items() if name != "time_ms" and "sys/" not in name} for row in history]
        saved = ledger.read(f"{folder}/weights.safetensors")
        weights = digest(safetensors.torch.load(saved)) if saved is not None else ""
        scores = ledger.read(f"{folder}/tables/scores.parquet")
        result = ledger.result(trial.key) or {}
        digests = {
            f"{name.removeprefix(TASK_FILES)} in run.folder": value
            for name, value in result.get("files", {}).items()
            if name.startswith(TASK_FILES)
        }
        numbers = result.get("metrics")
        contents.append({"weights": weights, "curves": curves, "scores": scores, "numbers": numbers, **digests})
    first, second = contents
    return [name for name in first | second if first.get(name) != second.get(name)]


def _child() -> None:
    """Train what standard input says, with a line per step on standard output.

    Where it cannot be trained, the last line says why, and the exit code is 2. What a training function prints goes to
    standard error, so that each line is whole.
    """
    from sweeps.execution.worker import train_function

    order: Json = json.load(sys.stdin)
    trial = trial_from_json(order["trial"])
    with os.fdopen(os.dup(1), "w") as lines:
        os.dup2(2, 1)

        def stop() -> bool:
            print("step", file=lines, flush=True)
            return False

        try:
            train = train_function("", 1, trial.cell.task)
            train(trial, RuntimeConfig(**order["config"]), lambda *_: None, stop)
        except TaskFailedError as failure:
            _refuse(str(attempt_of(failure.cause, final=True)["error"]), lines)
        except (ValueError, OSError) as error:
            _refuse(sentence(error), lines)


def _refuse(why: str, lines: TextIO) -> NoReturn:
    """Print in one line why a trial cannot be trained, and end."""
    print(REFUSED + " ".join(why.split()), file=lines, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    _child()
