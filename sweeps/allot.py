"""What one trial is given of a machine or a cluster: a share of a GPU, or several, CPUs, and the ranks on them."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data.datasets import DataSet
from sweeps.trial import PHASES, Trial


@dataclass(frozen=True)
class Allotment:
    """GPUs (0: the trial runs on CPUs), CPUs, and the ranks among which both are parted."""

    gpus: float
    cpus: float
    ranks: int

    @property
    def device(self) -> str:
        """Return the kind of device."""
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """Return the threads of each rank."""
        return max(1, int(self.cpus) // self.ranks)


def allot(options: argparse.Namespace, there: Mapping[str, float], local: bool) -> Allotment:
    """Return what the flags give a trial where `there` are so many CPU and GPU.

    ValueError for what cannot be, or is more than a `local` machine has; a cluster may grow.
    """
    gpus, ranks = options.gpus_per_trial, options.ranks
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) >= 1 and not ranks else float(min(ranks, there.get("GPU", 0)))
    if gpus > there.get("GPU", 0) and local:
        raise ValueError(f"--gpus-per-trial {gpus:g}: this machine has {there.get('GPU', 0):g} GPUs")
    if gpus > 1 and gpus % 1:
        raise ValueError(f"--gpus-per-trial {gpus:g}: above one GPU a trial has whole ones")
    ranks = ranks or max(1, int(gpus))
    if gpus and ranks != max(1, gpus):
        raise ValueError(
            f"--ranks {ranks}: on GPUs a trial has one rank a GPU, not {gpus:g} (--gpus-per-trial 0: on CPUs)"
        )
    cpus = max(options.cpus_per_trial, float(ranks)) if ranks > 1 else options.cpus_per_trial
    if ranks > 1 and local and cpus > there.get("CPU", 0):
        raise ValueError(f"{ranks} ranks need a CPU each: this machine has {there.get('CPU', 0):g}")
    if ranks > 1 and options.pack not in (1, "auto"):
        raise ValueError(f"--pack {options.pack}: trials that share a device; with {ranks} ranks a trial has several")
    return Allotment(gpus, cpus, ranks)


def hardware(device: str, threads: int, ranks: int) -> str:
    """Return what a measurement of speed holds for."""
    return f"{platform.processor()} {device} x{threads}{f' by {ranks}' if ranks > 1 else ''}"


def shareable(trials: Iterable[Trial], facts: Mapping[str, DataSet], ranks: int) -> None:
    """Raise ValueError for a trial of whose batches one has fewer pictures than there are ranks.

    Of folds, which differ by a picture, only the whole batches are looked at; the trial itself looks at the last one.
    """
    for trial in trials:
        recipe, fact = trial.cell.recipe, facts[trial.cell.dataset]
        learned = {"full": fact.splits["train"], "holdout": fact.splits["train"] - fact.holdout}
        try:
            recipe.shared(learned.get(PHASES[trial.phase].split, recipe.batch), ranks)
        except ValueError as error:
            raise ValueError(f"{trial.cell.label}: {error}") from None
