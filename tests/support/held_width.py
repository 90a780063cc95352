"""The sweep of cifar_width whose trainings wait for a test: python -m tests.support.held_width, with the sweep's words.

The file $HELD_WIDTH says how many trials may end. One beyond them trains a few steps, saves its state, and then waits
before each further step until the number is greater, the file is gone, or it is told to stop.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.store.ledger import Json, Ledger

if TYPE_CHECKING:
    from sweeps.execution.session import DriverState
    from sweeps.execution.worker import Report
    from sweeps.experiment.trial import Trial
    from sweeps.training.runtime import RuntimeConfig

VARIABLE = "HELD_WIDTH"
FREE = 10  # steps of a process before it waits


def may_end() -> float:
    """Return how many trials may end now."""
    try:
        return int(Path(os.environ[VARIABLE]).read_text())
    except FileNotFoundError:
        return math.inf


def train(trial: Trial, config: RuntimeConfig, report: Report, stop: Callable[[], bool]) -> Json | None:
    """Train a trial as ever, but wait where it may not end yet."""
    from sweeps.training.run_trial import run_trial

    ledger = Ledger(config.ledger)
    steps = 0

    def leave() -> bool:
        nonlocal steps
        steps += 1
        while steps > FREE and not stop() and len(ledger.names("results")) >= may_end():
            if not ledger.names(f"checkpoints/{trial.key}"):
                break
            time.sleep(0.1)
        return stop()

    return run_trial(trial, config, report, leave)


def main() -> None:
    """Be the sweep's command, with `train` in place of the function that trains."""
    import runpy

    from sweeps.execution import tuner

    run_trials = tuner.run_trials

    def run_held(state: DriverState) -> None:
        state.work = "tests.support.held_width:train"
        run_trials(state)

    tuner.run_trials = run_held
    runpy.run_module("sweeps.cifar_width", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
