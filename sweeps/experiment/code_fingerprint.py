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

ROOT = Path(__file__).resolve().parents[2]
TRAINING = "sweeps/training"
# The store and execution are not among them: how states are saved, and who trains what where, decides no number.
FOLDERS = ("crelu_models", "crelu_data", "crelu_data/decoders", "sweeps/experiment", TRAINING)
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
)


def code_fingerprint(*nets: Net, root: Path = ROOT) -> str:
    """Return the hash of the source under `root` that decides what trials of these nets compute."""
    return _fingerprint(frozenset[str]().union(*map(kinds_of, nets)), root)


@cache
def _fingerprint(kinds: frozenset[str], root: Path) -> str:
    packages = {folder: folder.replace("/", ".") for folder in FOLDERS}
    rooms = Rooms(tuple((package, root / folder) for folder, package in packages.items()), ENDS)
    source = reached_source(rooms, tuple(rooms.definitions(packages[TRAINING])), kinds)
    return hashlib.sha256(source.encode()).hexdigest()[:16]
