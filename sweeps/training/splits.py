"""The place a trial runs in, and the pictures it learns from, chooses by, and is tested on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data.availability import fingerprint
from data.datasets import DataSet, beton_path, dataset, folds, holdout, order
from data.load import Pictures, open_pictures
from sweeps.experiment.trial import PHASES, Trial, probed
from sweeps.training.runtime import RuntimeConfig

SPLIT_SEED = 0  # of hold-out and folds: one partition for all cells, seeds and sweeps

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Splits:
    """A trial's data set: facts, training file with the indices of each part, test file where the phase opens it."""

    facts: DataSet
    train: Pictures
    test: Pictures | None
    train_indices: Indices
    val_indices: Indices
    probe_indices: Indices


def open_splits(trial: Trial, place: RuntimeConfig) -> Splits:
    """Open the trial's files and part its pictures; ValueError where the data is not what the sweep planned for."""
    name, where, phase = trial.cell.dataset, Path(place.data_dir), PHASES[trial.phase]
    facts = dataset(name, where)
    if place.fingerprint and fingerprint(name, where) != place.fingerprint:
        raise ValueError(
            f"the data of {name} in {place.data_dir} are not those the sweep was planned with; "
            f"to look at them: python -m data verify {name}"
        )
    pictures = open_file(beton_path(name, "train", where), place)
    test = open_file(beton_path(name, facts.final, where), place) if phase.test else None
    learn = np.arange(len(pictures), dtype=np.int64)
    held_out = probe = np.empty(0, np.int64)
    if phase.split == "holdout":
        learn, held_out = holdout(pictures.labels, facts.holdout, SPLIT_SEED)
    elif phase.split == "fold":
        learn, held_out = folds(pictures.labels, trial.folds, SPLIT_SEED)[trial.fold]
    if phase.probe:
        # Phase 1 of Single probes pictures it learns from; phase 2 the hold-out of phase 1, which it learns from too.
        base = learn if phase.split == "holdout" else holdout(pictures.labels, facts.holdout, SPLIT_SEED)[1]
        probe = np.sort(order(SPLIT_SEED, 0, base)[: probed(trial, len(learn), facts.holdout)])
    return Splits(facts, pictures, test, learn, held_out, probe)


def open_file(path: Path, place: RuntimeConfig) -> Pictures:
    """Return the opened file; a worker keeps it over its trials, so that it is read and decoded once."""
    return _kept(path, os.stat(path).st_mtime_ns, place.reader, place.workers, place.device, place.resident_bytes)


@lru_cache(maxsize=4)
def _kept(path: Path, changed: int, reader: str, workers: int, device: str, resident_bytes: int) -> Pictures:
    return open_pictures(path, reader=reader, workers=workers, device=device, resident_bytes=resident_bytes)
