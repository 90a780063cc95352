"""Splits of a trial's data set: the pictures it trains on, chooses by, and is tested on."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from crelu_data.availability import fingerprint as fingerprint_of
from crelu_data.datasets import DataSet, Ints, beton_path, dataset, folds, holdout, is_partial, order
from crelu_data.load import Pictures, open_pictures
from crelu_models.command_line import python_command
from sweeps.experiment.model_facts import seen_by
from sweeps.experiment.trial import PHASES, Trial, probed
from sweeps.training.runtime import RuntimeConfig

SPLIT_SEED = 0  # of hold-out and folds: one partition for all cells, seeds and sweeps


@dataclass(frozen=True)
class Splits:
    """Data set of a trial: facts, training file with the indices of each part, test file where the phase opens it.

    `fingerprint` is that of the contents of all its files.
    """

    facts: DataSet
    fingerprint: str
    train: Pictures
    test: Pictures | None
    train_indices: Ints
    val_indices: Ints
    probe_indices: Ints

    @property
    def partial(self) -> bool:
        """Return whether a file is a part of the published set of its name."""
        return any(is_partial(pictures.sidecar) for pictures in (self.train, self.test) if pictures is not None)


def open_splits(trial: Trial, config: RuntimeConfig) -> Splits:
    """Open the files of a trial and split its pictures.

    ValueError where they are missing, or not those the sweep planned for; OSError where this machine cannot read them.
    """
    name = trial.cell.dataset
    where = Path(config.data_dir)
    phase = PHASES[trial.phase]
    facts = seen_by(trial.net, dataset(name, where), where)
    look = f"to look at them: {python_command('crelu_data', 'verify', name, '--data-dir', str(where))}"
    try:
        fingerprint = fingerprint_of(name, where)
    except ValueError as error:
        raise ValueError(f"the data of {name} in {where} are missing or damaged ({error}); {look}") from None
    if config.fingerprint not in ("", fingerprint):
        raise ValueError(f"the data of {name} in {where} are not those the sweep was planned with; {look}")
    config = replace(config, reader=trial.cell.decoder or config.reader)
    train = open_file(beton_path(name, "train", where), config)
    test = open_file(beton_path(name, facts.final, where), config) if phase.test else None
    train_indices = np.arange(len(train), dtype=np.int64)
    val_indices = np.empty(0, np.int64)
    probe_indices = np.empty(0, np.int64)
    if phase.split == "holdout":
        train_indices, val_indices = holdout(train.labels, facts.holdout, SPLIT_SEED)
    elif phase.split == "fold":
        train_indices, val_indices = folds(train.labels, trial.folds, SPLIT_SEED)[trial.fold]
    if phase.probe:
        # Single's first phase probes pictures that it trains on; its second the hold-out, which it trains on too.
        first = phase.split == "holdout"
        base = train_indices if first else holdout(train.labels, facts.holdout, SPLIT_SEED)[1]
        count = probed(trial, len(train_indices), facts.holdout)
        probe_indices = np.sort(order(SPLIT_SEED, 0, base)[:count])
    return Splits(facts, fingerprint, train, test, train_indices, val_indices, probe_indices)


def open_file(path: Path, config: RuntimeConfig) -> Pictures:
    """Return the opened file; a worker keeps it for its next trials, so that it is read and decoded once."""
    changed = os.stat(path).st_mtime_ns
    return _cached(path, changed, config.reader, config.workers, config.device, config.resident_bytes)


@lru_cache(maxsize=4)
def _cached(path: Path, _changed_ns: int, reader: str, workers: int, device: str, resident_bytes: int) -> Pictures:
    return open_pictures(path, reader=reader, workers=workers, device=device, resident_bytes=resident_bytes)
