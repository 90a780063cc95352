"""Fingerprint of the code that decides a trial's numbers: a result of other code is stale.

It covers the whole training room, what that uses of the nets, the data and the experiment, and of the activations only
those of the trial's net. Names of files, comments, docstrings, annotations and error messages change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from crelu_models.model import Model
from crelu_models.sources import Rooms, kinds_of, reached_source
from crelu_models.spec import CHANNEL_FACTOR, Net
from sweeps.experiment.trial import Cell
from sweeps.experiment.user_code import source_of

ROOT = Path(__file__).resolve().parents[2]
TRAINING = "sweeps/training"
# The store and execution are not among them: how states are saved, and who trains what where, decides no number.
FOLDERS = ("crelu_models", "crelu_models/gpu", "crelu_data", "crelu_data/decoders", "sweeps/experiment", TRAINING)
# Definitions in these packages that decide no number either, by what their dotted names begin with.
ENDS = (
    "crelu_data.availability.",  # pictures have a fingerprint of their own
    "sweeps.experiment.code_fingerprint.",
    "sweeps.experiment.trial.Cell.key",
    "sweeps.experiment.trial.Trial.key",
    "sweeps.experiment.trial.Trial.label",
    "sweeps.experiment.trial.Trial.to_json",
    "sweeps.training.data_time.",
    "sweeps.training.predictor.",
    "sweeps.training.runtime.",
    "sweeps.training.rehearsal.",
    "sweeps.experiment.user_code.",
    "sweeps.experiment.model_facts.measure",
    "sweeps.experiment.model_facts.check_models",
)
# What runs for models alone, and for training functions of the user's.
OF_MODELS = (
    "crelu_models.from_factory.",
    "crelu_models.placement.",
    "crelu_models.channels.",
    "crelu_models.tracing.",
    "crelu_models.named.",
    "crelu_models.draws.",
)
OF_TASKS = ("sweeps.training.task.", "sweeps.training.task_data.", "sweeps.training.task_state.")


def code_fingerprint(*nets: Net | Model, root: Path = ROOT) -> str:
    """Return the hash of the source under `root` that decides what trials of these nets compute.

    Of a model the code of its factory counts too. Empty where that is not on this machine: nothing is known of it.
    """
    models = [net for net in nets if isinstance(net, Model)]
    kinds = frozenset[str]().union(*map(kinds_of, nets))
    if not models:
        return _fingerprint(kinds, root, (*ENDS, *OF_MODELS, *OF_TASKS), "")
    names = [name for model in models for name in model.user_names]
    return _with_users(names, kinds, root, (*ENDS, *OF_TASKS), "")


def cell_fingerprint(cell: Cell, root: Path = ROOT) -> str:
    """Return the hash of the source that decides what a cell's trials compute, that of its training function included.

    Empty where the user's code is not on this machine: nothing is known of it.
    """
    if not cell.task:
        return code_fingerprint(cell.net, root=root)
    ends = ENDS if isinstance(cell.net, Model) else (*ENDS, *OF_MODELS)
    return _with_users(names_of(cell), kinds_of(cell.net), root, ends, OF_TASKS[0])


def names_of(cell: Cell) -> list[str]:
    """Return the names, "module:name", of the user's code that a cell's trials run: its function, and its model's."""
    models = cell.net.user_names if isinstance(cell.net, Model) else ()
    return [*filter(None, [cell.task]), *models]


def _with_users(names: Sequence[str], kinds: frozenset[str], root: Path, ends: tuple[str, ...], first: str) -> str:
    """Return the hash of our source and of the user's code of these names; empty where that is not here."""
    try:
        source = source_of(names)
    except LookupError:
        return ""
    kinds = (kinds & CHANNEL_FACTOR.keys()) | (CHANNEL_FACTOR.keys() if source.uses_ours else set())
    ours = _fingerprint(frozenset(kinds), root, ends, first)
    return hashlib.sha256(f"{ours} {source.fingerprint}".encode()).hexdigest()[:16]


@cache
def _fingerprint(kinds: frozenset[str], root: Path, ends: tuple[str, ...], first: str) -> str:
    """Return the hash of what trials run: of the training room, where `first` names a module of it, of that alone."""
    packages = {folder: folder.replace("/", ".") for folder in FOLDERS}
    rooms = Rooms(tuple((package, root / folder) for folder, package in packages.items()), ends)
    roots = [item for item in rooms.definitions(packages[TRAINING]) if f"{item[0]}.".startswith(first)]
    return hashlib.sha256(reached_source(rooms, tuple(roots), kinds).encode()).hexdigest()[:16]
