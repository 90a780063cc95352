"""Work of a worker: train a trial or a pack under a watchdog, with failures on the ledger. It knows nothing of Ray."""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from sweeps.execution.failures import attempt_of, record_failure
from sweeps.execution.messages import Assignment, Message, Notify, left
from sweeps.execution.watchdog import Watchdog, stop_signal
from sweeps.experiment.task_source import TaskFailedError
from sweeps.experiment.trial import Trial, trial_from_json
from sweeps.experiment.user_code import use_folder
from sweeps.store.ledger import Json, Ledger, with_room
from sweeps.training.runtime import RuntimeConfig

# Torch is imported inside functions here: the driver imports this module, and never pays for torch.

Report = Callable[[int, dict[str, float]], None]
Train = Callable[[Trial, RuntimeConfig, Report, Callable[[], bool]], Json | None]


def work(assignment: Assignment, notify: Notify) -> None:
    """Train the trials of an assignment.

    All failures go to the ledger, and those that may pass are raised too: Tune then starts the worker again. A ledger
    that is full or away is waited for. What cannot be read or imported here fails at once. Nothing is imported where
    the driver has asked to stop by then.
    """
    contents: list[Json] = [json.loads(text) for text in assignment["trials"]]
    runtime = RuntimeConfig(**assignment["runtime"])
    ledger = Ledger(runtime.ledger)
    stop = stop_signal(ledger, assignment["stop"])
    if stop():  # before the imports, which take seconds
        return
    try:
        use_folder(runtime.code_folder)
        trials = [trial_from_json(content) for content in contents]
        with collector_off():
            train = train_function(assignment["work"], runtime.ranks, trials[0].cell.task)
    except (Exception, SystemExit) as error:
        attempt = attempt_of(error, final=True)
        for content in contents:
            with_room(partial(ledger.add_attempt, content["key"], attempt), stop)
        return
    if stop():
        return
    if len(trials) > 1:
        _train_pack(assignment["pack"], trials, runtime, assignment["pauses"], notify, stop)
    else:
        runtime = replace(runtime, pause_at=assignment["pauses"].get(trials[0].key, 0))
        _train_one(trials[0], train, runtime, notify, stop, assignment["probe"])


@contextmanager
def collector_off() -> Iterator[None]:
    """Switch the garbage collector off inside the block; later collections skip the objects created in it.

    Torch creates a million objects that last. Scanning them would take a fifth of the time of its import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def train_function(name: str, ranks: int, task: str = "") -> Train:
    """Return what trains a trial: the function of this name (module:function), the task's loop, or ours for the ranks.

    A task runs in one process, whatever it does with several GPUs.
    """
    if name:
        module, _, function = name.partition(":")
        train: Train = getattr(importlib.import_module(module), function)
        return train
    if task:
        from sweeps.training.task import run_task

        return run_task
    if ranks > 1:
        from sweeps.execution import rank_processes

        return rank_processes.run_trial
    from sweeps.training.run_trial import run_trial

    return run_trial


def _train_one(
    trial: Trial, train: Train, runtime: RuntimeConfig, notify: Notify, stop: Callable[[], bool], probe: bool
) -> None:
    """Train a trial; a probe leaves once it has reported an epoch."""
    ledger = Ledger(runtime.ledger)
    if trial.cell.task:
        runtime = runtime.in_one_process()
    reported = False

    def report(epoch: int, row: dict[str, float]) -> None:
        nonlocal reported
        notify({"key": trial.key, "epoch": epoch, "row": row})
        reported = True

    def leave() -> bool:
        return stop() or (probe and reported)

    def is_last(error: BaseException, *, is_fault: bool = False) -> bool | None:
        return with_room(partial(record_failure, ledger, trial.key, error, is_fault=is_fault), stop)

    try:
        guarding = with_room(partial(Watchdog, ledger, [trial.key], runtime.hang_seconds), stop)
        if guarding is None:
            return
        with guarding as watchdog:
            train(trial, runtime, report, watchdog.wrap(leave))
    except TaskFailedError as failure:
        if not is_last(failure.cause, is_fault=failure.final):
            raise RuntimeError(str(failure)) from None  # the cause may be of a class that the driver has not
    except (Exception, SystemExit) as error:
        if not is_last(error):
            raise


def _train_pack(
    name: str,
    trials: list[Trial],
    runtime: RuntimeConfig,
    pauses: Mapping[str, int],
    notify: Notify,
    stop: Callable[[], bool],
) -> None:
    """Train trials side by side.

    Tune starts a worker whose process died again with the same trials. A note on the ledger says which of them had
    left the pack by then: these may train elsewhere already.
    """
    from sweeps.execution.pack import perform_pack

    ledger = Ledger(runtime.ledger)
    note = f"packs/{name}.json"
    gone = set((ledger.read_json(note) or {}).get("left", []))

    def noting(message: Message) -> None:
        if "over" in message:
            # The note comes first: after the message the driver may start the trial elsewhere.
            gone.add(message["key"])
            with_room(partial(ledger.write_note, note, {"left": sorted(gone)}), stop)
        notify(message)

    members = [trial for trial in trials if trial.key not in gone]
    keys = [trial.key for trial in members]
    guarding = with_room(partial(Watchdog, ledger, keys, runtime.hang_seconds, name), stop)
    if guarding is None:
        return
    with guarding as watchdog:
        # A member that has failed, or ended the process before, leaves: it must not end the others again.
        suspects = [trial for trial in members if ledger.attempts(trial.key)]
        for trial in suspects:
            noting(left(trial.key))
        healthy = [trial for trial in members if trial not in suspects]
        perform_pack(healthy, runtime, noting, watchdog.wrap(stop), watchdog.set_current, pauses)
