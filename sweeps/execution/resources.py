"""Resources of one trial: a share of a GPU or several GPUs, CPUs, and the ranks that share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crelu_data.datasets import DataSet
from sweeps.experiment.trial import PHASES, Trial


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of a trial as asked for, before a cluster is seen.

    `gpus` None: one where there are GPUs. `ranks` 0: one a GPU, on CPUs one. `max_concurrent` 0: as many as fit.
    `pack` None: "auto" on GPUs, 1 on CPUs.
    """

    gpus: float | None = None
    cpus: float = 1.0
    ranks: int = 0
    max_concurrent: int = 0
    pack: int | Literal["auto"] | None = None


@dataclass(frozen=True)
class TrialResources:
    """Resources of one trial: GPUs (0: it runs on CPUs) and CPUs, shared by its ranks; and how many trials run at once.

    `max_concurrent` 0: as many as fit.
    """

    gpus: float = 0.0
    cpus: float = 1.0
    ranks: int = 1
    max_concurrent: int = 0

    @property
    def device(self) -> str:
        """Return the kind of device."""
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """Return the threads of each rank."""
        return max(1, int(self.cpus) // self.ranks)


def resolve_resources(request: ResourceRequest, machines: Sequence[Mapping[str, float]], local: bool) -> TrialResources:
    """Return the resources of a trial on `machines`, the CPU and GPU of each that is up or may be started.

    ValueError for what cannot be, or is more than the one `local` machine has; for others see `why_unschedulable`.
    """
    most = {name: max((machine.get(name, 0.0) for machine in machines), default=0.0) for name in ("CPU", "GPU")}
    gpus, ranks = request.gpus, request.ranks
    if gpus is None:
        gpus = 1.0 if most["GPU"] >= 1 and not ranks else float(min(ranks, most["GPU"]))
    if gpus > most["GPU"] and local:
        raise ValueError(f"--gpus-per-trial {gpus:g}: this machine has {_listed({'GPU': most['GPU']})}")
    if gpus > 1 and gpus % 1:
        raise ValueError(f"--gpus-per-trial {gpus:g}: above one GPU a trial has whole ones")
    ranks = ranks or max(1, int(gpus))
    if gpus and ranks != max(1, gpus):
        raise ValueError(
            f"--ranks {ranks}: on GPUs a trial has one rank a GPU, not {gpus:g} (--gpus-per-trial 0: on CPUs)"
        )
    cpus = max(request.cpus, float(ranks)) if ranks > 1 else request.cpus
    if local and cpus > most["CPU"]:
        what = f"{ranks} ranks need a CPU each" if cpus == ranks > 1 else f"--cpus-per-trial {cpus:g}"
        raise ValueError(f"{what}: this machine has {_listed({'CPU': most['CPU']})}")
    if ranks > 1 and request.pack not in (1, "auto", None):
        raise ValueError(f"--pack {request.pack}: trials that share a device; with {ranks} ranks a trial has several")
    return TrialResources(gpus, cpus, ranks, request.max_concurrent)


def why_unschedulable(resources: TrialResources, machines: Sequence[Mapping[str, float]]) -> str:
    """Return why no machine can run a trial, as a sentence; empty where one can."""
    needs = {name: need for name, need in (("GPU", resources.gpus), ("CPU", resources.cpus)) if need}
    if any(all(machine.get(name, 0.0) >= need for name, need in needs.items()) for machine in machines):
        return ""
    kinds = sorted({tuple(machine.get(name, 0.0) for name in needs) for machine in machines}, reverse=True)
    have = ", ".join(_listed(dict(zip(needs, kind, strict=True))) for kind in kinds)
    return f"a trial needs {_listed(needs)} of one machine, and the cluster's machines have {have or 'none'}"


def _listed(resources: Mapping[str, float]) -> str:
    """Return resources in words, as "2 GPUs and 1 CPU"."""
    return " and ".join(f"{number:g} {name}{'s' * (number != 1)}" for name, number in resources.items())


def check_rank_batches(trials: Iterable[Trial], facts: Mapping[str, DataSet], ranks: int) -> None:
    """Raise ValueError where some batch of a trial has fewer pictures than there are ranks.

    A training function of the user's has no ranks.

    Folds differ in size by a picture, so for them only full batches are checked here; the trial checks its last one.
    """
    for trial in trials:
        if trial.cell.task:
            continue
        recipe = trial.recipe
        fact = facts[trial.cell.dataset]
        learned = {"full": fact.splits["train"], "holdout": fact.splits["train"] - fact.holdout}
        try:
            recipe.shared(learned.get(PHASES[trial.phase].split, recipe.batch), ranks)
        except ValueError as error:
            raise ValueError(f"{trial.cell.label}: {error}") from None
