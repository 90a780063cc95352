"""Fingerprint of the code that decides a trial's numbers: a result of other code is stale.

It covers the whole training room, what that uses of the nets, the data and the experiment, and of the activations only
those of the trial's net. Names of files, comments, docstrings, annotations and error messages change nothing.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from crelu_models.sources import Rooms, kinds_of, reached_source
from crelu_models.spec import Net
from sweeps.experiment.task_source import task_source
from sweeps.experiment.trial import Cell

ROOT = Path(__file__).resolve().parents[2]
TRAINING = "sweeps/training"
# The store and execution are not among them: how states are saved, and who trains what where, decides no number.
FOLDERS = ("crelu_models", "crelu_data", "sweeps/experiment", TRAINING)
# What a training function of the user's runs in, and no other training.
TASK_LOOP = ("sweeps.training.task.", "sweeps.training.task_data.", "sweeps.training.task_state.")
# Definitions in these packages that decide no number either, by what their dotted names begin with.
ENDS = (
    "crelu_data.availability.",  # pictures have a fingerprint of their own
    "sweeps.experiment.code_fingerprint.",
    "sweeps.experiment.trial.Cell.key",
    "sweeps.experiment.trial.Trial.key",
    "sweeps.experiment.trial.Trial.label",
    "sweeps.experiment.trial.Trial.to_json",
    "sweeps.training.data_time.",
    "sweeps.training.runtime.",
    "sweeps.training.rehearsal.",
    *TASK_LOOP,
)


def code_fingerprint(*nets: Net, root: Path = ROOT) -> str:
    """Return the hash of the source under `root` that decides what trials of these nets compute."""
    return _fingerprint(frozenset[str]().union(*map(kinds_of, nets)), root)


def cell_fingerprint(cell: Cell, root: Path = ROOT) -> str:
    """Return the hash of the source that decides what a cell's trials compute; "" for a task whose file is not here."""
    if not cell.task:
        return code_fingerprint(cell.net, root=root)
    source = task_source(cell.task)
    return _hash(source + _task_fingerprint(kinds_of(cell.net), root)) if source else ""


@cache
def _fingerprint(kinds: frozenset[str], root: Path) -> str:
    rooms = _rooms(root, ENDS)
    return _hash(reached_source(rooms, tuple(rooms.definitions(TRAINING.replace("/", "."))), kinds))


@cache
def _task_fingerprint(kinds: frozenset[str], root: Path) -> str:
    """Return the hash of what our code does for a training function: nets, data, batches, and the loop around it."""
    rooms = _rooms(root, tuple(end for end in ENDS if end not in TASK_LOOP))
    package = TRAINING.replace("/", ".")
    roots = [definition for definition in rooms.definitions(package) if f"{definition[0]}." in TASK_LOOP]
    return _hash(reached_source(rooms, tuple(roots), kinds))


def _rooms(root: Path, ends: tuple[str, ...]) -> Rooms:
    return Rooms(tuple((folder.replace("/", "."), root / folder) for folder in FOLDERS), ends)


def _hash(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]
