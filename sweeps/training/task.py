"""Training by a function of the user's own: what it is handed, and how its state, rows and numbers reach the ledger.

    def train(trial, data, run) -> dict[str, float]

`trial` is what to train, `data` its pictures, `run` the way to the ledger. The function owns the loop; epochs, prunes,
stops, restarts after a divergence and resumption are those of any trial.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from crelu_data.availability import fetch_dataset
from crelu_models.dropout import seed_dropout
from crelu_models.model import Model
from crelu_models.named import load_named
from crelu_models.spec import Net, seed_from
from sweeps.experiment.code_fingerprint import cell_fingerprint, names_of
from sweeps.experiment.metrics import APPROXIMATELY, LARGEST, SAID_EXACT, final_name, says_approximate
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.task_source import TaskFailedError
from sweeps.experiment.trial import PHASES, Rates, Trial
from sweeps.experiment.user_code import drop_edited, use_folder
from sweeps.store import checkpoint
from sweeps.store.foreign import TASK_FILES, is_trial_file
from sweeps.store.ledger import Json, Ledger, with_room
from sweeps.store.scratch import scratch
from sweeps.training.evaluate import Row
from sweeps.training.loop import DivergedError
from sweeps.training.run_trial import reset_process
from sweeps.training.runtime import RuntimeConfig, SystemUse, device_in_words, hardware
from sweeps.training.splits import Splits, open_splits
from sweeps.training.task_data import TaskData
from sweeps.training.task_state import generators, pack, restore_generators, seed_generators, unpack
from sweeps.training.trainer import ANOTHER_DECODER, ANOTHER_DEVICE, Report, initial_module, note_change

DIVERGED: Final = DivergedError.ending

# Names of numbers: a part of the data and a word. Those of our own numbers are not for a function to give.
NAME: Final = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+")
OURS: Final = ("sys", "final", "best", "agg", "net", "paper")
# Errors that may pass where a trial is tried again (sweeps.execution.failures knows subtypes that never do); all others
# are faults of the function.
RETRIED: Final = (OSError, RuntimeError, MemoryError)

Function = Callable[..., object]


@dataclass(frozen=True)
class TaskTrial:
    """Trial of a training function: net and recipe with what a search chose, and the seed of this attempt.

    After a divergence the training begins anew, with another seed.
    """

    key: str
    label: str
    net: Net | Model
    recipe: Recipe
    seed: int
    phase: str
    fold: int
    dropout: Rates
    _new_model: Callable[[], nn.Module]

    def model(self) -> nn.Module:
        """Return the cell's net at the initial weights of the seed, on the CPU; its last weights are kept."""
        return self._new_model()


@dataclass
class TaskState:
    """Plain state of a training by a function beside what that keeps.

    `resumed` counts the times it was continued. `devices` are those of all of it, in words, and `decoders` those of its
    pictures, "" where they are stored as pixels; the present ones are last.
    """

    history: list[Row] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    restarts: int = 0
    seconds: float = 0.0
    ending: str = ""
    resumed: int = 0
    devices: list[str] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)


class Run:
    """One training by a function: its epochs, its rows and states, and whether it is to end.

    `device` is where to train. Files that the function writes into `folder` are kept with the result.
    """

    def __init__(
        self,
        trial: Trial,
        config: RuntimeConfig,
        code: str,
        splits: Splits,
        report: Report,
        stop: Callable[[], bool],
        folder: Path,
    ) -> None:
        """Begin, or continue from the newest intact checkpoint."""
        self.device = torch.device(config.device)
        self.folder = folder
        self._trial = trial
        self._pause_at = config.pause_at
        self._ledger = Ledger(config.ledger)
        self._code = code
        self._splits = splits
        self._report = report
        self._asked = stop
        self._state = TaskState()
        self._kept: Any = None
        self._generators: Json | None = None
        saved, events = checkpoint.resume(self._ledger, trial.key, code)
        if saved is not None:
            known = {name: saved.state[name] for name in vars(self._state) if name in saved.state}
            self._state = TaskState(**known)
            if saved.state["kept"] is not None:
                user_state = unpack(saved.state["kept"], saved.tensors)
                self._kept = user_state["function"]
                self._generators = user_state["generators"]
                self._state.resumed += 1
        self._state.events += events
        device = device_in_words(self.device, config)
        self._state.events += note_change(self._state.devices, device, self.epoch, ANOTHER_DEVICE)
        self._state.events += note_change(self._state.decoders, splits.train.decoder, self.epoch, ANOTHER_DECODER)
        self._seed = trial.restarted(self._state.restarts)
        seed_generators(seed_from("task", self._seed))
        self._data = TaskData(trial, splits, self.device, stop, self._seed_dropout)
        self._model: nn.Module | None = None
        self._unsent: list[Row] = []  # rows that the sweep has not been told of
        self._divergence = ""
        self._is_left = False
        self._is_exact = False
        self._began = time.monotonic()
        self._row_began = self._began
        self._system_use = SystemUse(self.device)

    @property
    def resumed(self) -> Any:
        """Return the state that `checkpoint` kept, its tensors on the CPU; None for a training that begins."""
        self._restore_generators()
        return self._kept

    @property
    def epoch(self) -> int:
        """Return the epoch to train and report next, counted from 0: how many are behind this training."""
        return len(self._state.history)

    @property
    def stop(self) -> bool:
        """Return whether to end now: the sweep asks for it, or this trial is pruned or pauses. A sign of life too."""
        self._is_left = self._asked() or self._is_left or self._is_paused()
        return self._is_left or self._state.ending != ""

    def _is_paused(self) -> bool:
        """Return whether this trial of a search has reached the epoch at which it pauses."""
        return 0 < self._pause_at <= len(self._state.history) < self._trial.recipe.epochs

    def _pause(self) -> bool:
        """Note on the ledger where the trial has paused, and return True."""
        curve = [row[self._trial.cell.metric.row] for row in self._state.history]
        record = {"epoch": len(curve), "curve": curve, "seconds": self._seconds(), "code": self._code}
        self._ledger.pause(self._trial.key, record)
        return True

    def epochs(self) -> Iterator[int]:
        """Yield the epochs still to train, counted from 0, from where the training stands; fewer where it is to end.

        ValueError for an epoch that is not reported.
        """
        self._restore_generators()
        self._generators = None
        while self.epoch < self._trial.recipe.epochs and not self.stop:
            epoch = self.epoch
            self._row_began = time.monotonic()
            self._seed_dropout(epoch, 0)
            yield epoch
            self._send()
            if self.epoch == epoch:
                raise ValueError(f"epoch {epoch} has ended without run.report({epoch}, {{...}})")

    def report(self, epoch: int, numbers: Mapping[str, Any]) -> None:
        """Add an epoch to the history, by the names of its numbers; once an epoch, in order.

        A number that is none ends this attempt as a divergence. ValueError for another epoch, name or value, and for a
        number of the test set, which is opened once, at the end.
        """
        history = self._state.history
        metric = self._trial.cell.metric
        if epoch != self.epoch:
            raise ValueError(f"run.report is for epoch {self.epoch} now, not {epoch!r}: once an epoch, in order")
        row = numbers_of(numbers, "run.report takes")
        tested = [name for name in row if name.startswith("test/")]
        if tested:
            raise ValueError(f"run.report takes no {tested[0]}: the test set is opened once, at the end; return it")
        if not PHASES[self._trial.phase].test and metric.row not in row:
            raise ValueError(f"run.report has no {metric.row!r}, by which a search chooses, but {_listed(row)}")
        self._check_finite(row, f"in epoch {epoch + 1}")
        now = time.monotonic()
        speed = len(self._data.train) / max(now - self._row_began, 1e-9)
        self._row_began = now
        times = {"epoch": epoch + 1.0, "time_ms": float(time.time_ns() // 1_000_000)}
        history.append(times | row | {"sys/images_per_s": speed} | self._system_use.row())
        self._unsent.append(history[-1])
        # A search trial whose best value so far is worse than its threshold is given up.
        if epoch < len(self._trial.pruning_thresholds):
            best = metric.best(past[metric.row] for past in history)
            if metric.cost(best) > metric.cost(self._trial.pruning_thresholds[epoch]):
                self._state.ending = "pruned"
        self._asked()

    def checkpoint(self, state: object) -> None:
        """Keep a state and the history so far on the ledger: a training that is killed goes on from there.

        The states of Python's, NumPy's and torch's own generators are kept beside it. ValueError for a value that
        cannot be kept.
        """
        packed, tensors = pack({"function": state, "generators": generators(self.device)})
        if self._save(packed, tensors):
            self._send()
        else:
            self._is_left = True

    def exact(self) -> None:
        """Say that this function, resumed from a checkpoint, ends with the numbers that it would have had undisturbed.

        Otherwise the result of a training that was resumed is marked.
        """
        self._is_exact = True

    # For the trial alone ----------------------------------------------------------------------------------------------

    def _handed(self) -> tuple[TaskTrial, TaskData]:
        """Return what the function gets besides this: what to train, and its pictures."""
        trial = self._trial

        def model() -> nn.Module:
            self._model = initial_module(trial.net, self._splits.facts, trial.recipe.init, self._seed)
            return self._model

        handed = TaskTrial(
            trial.key, trial.label, trial.net, trial.recipe, self._seed, trial.phase, trial.fold, trial.dropout, model
        )
        return handed, self._data

    def _seed_dropout(self, epoch: int, step: int) -> None:
        """Seed the dropout of the cell's net, as our own loop does before each step."""
        if self._model is not None:
            seed_dropout(self._model, self._seed, epoch, step)

    def _restore_generators(self) -> None:
        """Set the process's generators to where the checkpoint left them, until the first epoch has begun."""
        if self._generators is not None:
            restore_generators(self._generators, self.device)

    def _check_finite(self, row: Row, when: str) -> None:
        for name, value in row.items():
            if not abs(value) <= LARGEST:
                beyond = f", beyond {LARGEST:g}," if math.isfinite(value) else ""
                self._divergence = f"{name} is {'not a number' if math.isnan(value) else f'{value:g}'}{beyond} {when}"
                raise DivergedError(self._divergence)

    def _send(self) -> None:
        """Tell the sweep of the epochs that it has not been told of."""
        for row in self._unsent:
            self._report(int(row["epoch"]), row)
        self._unsent.clear()

    def _save(self, user_state: Json | None, tensors: dict[str, Tensor]) -> bool:
        """Write a durable checkpoint; False where the sweep ended the wait for a full disk."""
        epoch = len(self._state.history)
        plain = vars(self._state) | {"seconds": self._seconds(), "code": self._code, "kept": user_state}
        content = checkpoint.Checkpoint(tensors, plain | {"epoch": epoch, "step": 0})

        def write() -> bool:
            checkpoint.save(self._ledger, self._trial.key, epoch, 0, content)
            return True

        return with_room(write, self._asked) is not None

    def _seconds(self) -> float:
        return self._state.seconds + time.monotonic() - self._began

    def _restart(self) -> bool:
        """Note the divergence, and return whether another attempt is left, whose state is then saved."""
        state = self._state
        state.events.append(self._divergence)
        if state.restarts >= self._trial.recipe.restarts:
            state.ending = DIVERGED
            return False
        self._ledger.delete(f"checkpoints/{self._trial.key}")
        state.restarts += 1
        state.history = []
        state.devices = []
        state.decoders = []
        state.ending = ""
        self._save(None, {})
        return True

    def _metrics(self, returned: Row) -> Row:
        """Return the numbers of the finished training: the best held-out value of its epochs, and what it returned.

        ValueError where the page's metric is not among them.
        """
        metric = self._trial.cell.metric
        tests = PHASES[self._trial.phase].test
        if self._state.ending == DIVERGED:
            counted = metric.final if tests else metric.held_out
            return {counted: metric.chance} if metric.chance is not None else {}
        numbers = {final_name(name): value for name, value in returned.items()}
        rows = [row for row in self._state.history if metric.row in row]
        if rows:
            best = min(rows, key=lambda row: metric.cost(row[metric.row]))
            numbers |= {"best/epoch": best["epoch"], metric.held_out: best[metric.row]}
        elif metric.row in returned:
            numbers |= {"best/epoch": float(len(self._state.history)), metric.held_out: returned[metric.row]}
        if self._state.ending == "pruned":
            return numbers
        task = self._trial.cell.task
        tested = [name for name in returned if name.startswith("test/")]
        if not tests and tested:
            raise ValueError(f"{task} returned {tested[0]!r} from a training by which a search chooses: drop it there")
        if not tests and metric.held_out not in numbers:
            raise ValueError(f"{task} neither reported nor returned {metric.row!r}, by which a search chooses")
        if tests and metric.name not in returned:
            raise ValueError(f"{task} returned no {metric.name!r}, the page's metric, but {_listed(returned)}")
        return numbers


def run_task(
    trial: Trial, config: RuntimeConfig, report: Report, stop: Callable[[], bool] = lambda: False
) -> Json | None:
    """Train `trial` by its own function from its last checkpoint to its committed result, and return that.

    None, with the state that the function kept, where `stop()` or a pause ended it. TaskFailedError where the function
    raises an error, ValueError for data, a returned value or a state that do not fit, OSError for an unwritable ledger.
    """
    use_folder(config.code_folder)
    ledger = Ledger(config.ledger)
    committed = ledger.result(trial.key)
    if committed is not None:
        return committed
    if not fetch_dataset(trial.cell.dataset, config.data_dir, config.data_source, stop, config.fingerprint):
        return None
    splits = open_splits(trial, config)

    def write() -> bool:
        ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json())
        return True

    if with_room(write, stop) is None:
        return None
    drop_edited(names_of(trial.cell))
    code = cell_fingerprint(trial.cell)
    function = load_named(trial.cell.task)
    # Train to an end: again with another seed after a divergence.
    while True:
        with scratch("task") as folder:
            reset_process(config)
            run = Run(trial, config, code, splits, report, stop, folder)
            returned = _returned(function, run)
            if run._divergence and run._restart():
                continue
            if run._is_left:
                if run._is_paused():
                    with_room(run._pause, stop)
                return None
            run._send()
            outcome = _outcome(run, run._metrics(returned), splits, config)
            return with_room(partial(_commit, ledger, trial, outcome), stop)


def _returned(function: Function, run: Run) -> Row:
    """Call a function and return its numbers; none where it diverged, was pruned or is to leave.

    Where it diverged, another error may stand in the place of ours; and a function may end by one when it is told to.
    A fault that is taken for either shows again where the training goes on.
    """
    try:
        returned = function(*run._handed(), run)
    except (Exception, SystemExit) as error:
        if run._divergence or run._is_left or run._state.ending:
            return {}
        raise TaskFailedError(error, not isinstance(error, RETRIED)) from error
    if run._divergence or run._is_left:
        return {}
    if returned is None and (run._state.ending or not PHASES[run._trial.phase].test):
        return {}
    numbers = numbers_of(returned, f"{run._trial.cell.task} returns")
    try:
        run._check_finite(numbers, "in what was returned")
    except DivergedError:
        return {}
    return numbers


def numbers_of(values: object, what: str) -> Row:
    """Return numbers by name as floats; ValueError for a value of another kind, naming `what` takes or returns it."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} a dictionary of numbers, such as {{'val/f1': 0.8}}, not {values!r:.80}")
    row: Row = {}
    for name, value in values.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or name.partition("/")[0] in OURS:
            raise ValueError(f"{what} numbers called PART/NAME, such as val/f1, not {name!r:.80}")
        try:
            row[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{what} a number as {name!r}, not {value!r:.80}") from None
    return row


def _listed(row: Row) -> str:
    return ", ".join(map(repr, row)) or "nothing"


class TaskOutcome(NamedTuple):
    """Finished training by a function before it is written: the fields of its result, and its files."""

    result: Json
    files: dict[str, bytes]


def _outcome(run: Run, metrics: Row, splits: Splits, config: RuntimeConfig) -> TaskOutcome:
    """Return what a finished training comes to."""
    trial, state = run._trial, run._state
    history = state.history
    files = {
        "trial.json": (json.dumps(trial.to_json(), indent=1, sort_keys=True) + "\n").encode(),
        "history.json": (json.dumps(history, sort_keys=True) + "\n").encode(),
    }
    if run._model is not None:
        weights = checkpoint.separate(run._model.state_dict())
        files["weights.safetensors"] = safetensors.torch.save(weights, {"trial": trial.key})
    for path in sorted(path for path in run.folder.rglob("*") if path.is_file() and not path.is_symlink()):
        name = path.relative_to(run.folder).as_posix()
        if not is_trial_file(TASK_FILES + name):
            raise ValueError(f"{trial.cell.task} put a file into run.folder whose name no store takes: {name!r}")
        files[TASK_FILES + name] = path.read_bytes()
    parameters = sum(value.numel() for value in run._model.parameters()) if run._model is not None else 0
    status = state.ending if state.ending in (DIVERGED, "pruned") else "finished"
    reason = "schedule" if len(history) >= trial.recipe.epochs else "early"
    row = trial.cell.metric.row
    result: Json = {
        "status": status,
        "ending": state.ending or reason,
        "metrics": metrics,
        "curve": [past[row] for past in history] if not PHASES[trial.phase].test else [],
        "epochs": len(history),
        "events": list(state.events),
        "restarts": state.restarts,
        "resume": SAID_EXACT if run._is_exact and not says_approximate(state.events) else APPROXIMATELY,
        "resumed": state.resumed,
        "seconds": run._seconds(),
        "precision": "the function's own",
        "fingerprint": splits.fingerprint,
        "train_pictures": len(splits.train),
        "partial": splits.partial,
        "code": run._code,
        "hardware": hardware(run.device, config, before=state.devices[:-1]),
    }
    if isinstance(trial.cell.net, Model) and parameters:  # no table counts them
        result["parameters"] = parameters
    return TaskOutcome(result, files)


def _commit(ledger: Ledger, trial: Trial, outcome: TaskOutcome) -> Json:
    """Write the files of a trial, then commit and return its result; OSError where the ledger is full."""
    for name, content in outcome.files.items():
        ledger.write(f"trials/{trial.key}/{name}", content)
    result = outcome.result | {
        "key": trial.key,
        "cell_key": trial.cell.key,
        "label": trial.cell.label,
        "trial": trial.label,
        "finished_ms": time.time_ns() // 1_000_000,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in outcome.files.items()},
    }
    ledger.commit(trial.key, result)
    return result
