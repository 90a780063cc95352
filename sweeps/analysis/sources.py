"""Weights to analyse, before they are loaded: finished trials of a ledger, or anybody's file; nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from crelu_models.spec import Conv, Linear, Net, Pool
from crelu_models.tables import PAPER
from sweeps.experiment.plan import current_plan
from sweeps.experiment.trial import PHASES
from sweeps.experiment.wording import unknown_name
from sweeps.store.ledger import Json, Ledger

# fmt: off
# torchvision's AlexNet: one tower, 64 filters in conv1 and no groups, so not the paper's. For Figures 1 and 2 alone.
ALEXNET = Net("AlexNet (torchvision)", (
    Conv("conv1",  64, 11, 4, 2),
    Pool("pool1", "max", 3, 2),
    Conv("conv2", 192, 5, 1, 2),
    Pool("pool2", "max", 3, 2),
    Conv("conv3", 384, 3, 1, 1),
    Conv("conv4", 256, 3, 1, 1),
    Conv("conv5", 256, 3, 1, 1),
    Pool("pool5", "max", 3, 2),
    Linear("fc6", 4096),
    Linear("fc7", 4096),
    Linear("fc8", None, act="none"),
), 224)
# fmt: on
TORCHVISION = "torchvision:alexnet"
NETS = PAPER | {"alexnet": ALEXNET}


class NotApplicableError(ValueError):
    """The analysis does not fit this net; the sentence says why."""


class Source(NamedTuple):
    """A place of weights in plain values, for any machine: a trial's key, a file, with its net if known, or neither.

    An empty `dataset` is the trial's; `cell` and `label` are its names for people, `state` is its state in its sweep.
    """

    trial: str = ""
    file: str = ""
    net: str = ""
    dataset: str = ""
    cell: str = ""
    label: str = ""
    state: str = ""

    @property
    def name(self) -> str:
        """Return the name of this source in a sentence."""
        return f"{self.cell} {self.label}".strip() or Path(self.file).name or "no weights"


def of_run(ledger: Ledger, run: str) -> Source:
    """Return the finished trial of this MLflow run, or of this trial key; ValueError where there is none."""
    key = run if ledger.result(run) else ""
    for name in [] if key else ledger.names("tracked"):
        if (ledger.read_json(f"tracked/{name}") or {}).get("run") == run:
            key = name.removesuffix(".json")
    result = ledger.result(key) if key else None
    if result is None:
        raise ValueError(f"no finished run {run!r} in {ledger.root}: it looks for MLflow's run ids and for trial keys")
    if not _has_weights(result):
        raise ValueError(f"the run {run} is {result['status']} and left no weights to analyse")
    return _source(key, result)


def of_sweep(ledger: Ledger, name: str) -> list[Source]:
    """Return the finished trials of a sweep that were tested; those that only chose dropout are left out.

    So are trainings of its cells that are in another sweep alone, or no longer in this one.
    """
    plans = [plan.removesuffix(".json") for plan in ledger.names("plans")]
    if name not in plans:
        raise ValueError(
            unknown_name("sweep", name, plans, ledger.root) if plans else f"{ledger.root} holds no sweep yet"
        )
    today = current_plan(ledger, name)
    finished = []
    for status in today.statuses:
        key = status.trial.key
        result = status.result or today.damaged.get(key)  # loading the weights says which file is damaged
        if result is not None and PHASES[status.trial.phase].test and _has_weights(result):
            finished.append(_source(key, result)._replace(state=status.state))
    if not finished:
        raise ValueError(f"no run of {name} is finished yet")
    return sorted(finished, key=lambda source: (source.cell, source.label, source.trial))


def of_file(file: str, net: str, dataset: str, *, any_net: bool = False) -> Source:
    """Return anybody's weights: a .safetensors file or a torch state dict of one of NETS, or torchvision's AlexNet.

    The net may be unknown, "", where the analysis fits `any_net`.
    """
    if file == TORCHVISION:
        return Source(file=file, net=net or "alexnet", dataset=dataset)
    if not net and not any_net:
        raise ValueError(f"say of which net the weights in {file} are, e.g. --net S8")
    if net and net not in NETS:
        raise ValueError(unknown_name("net", net, NETS, "the paper"))
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no file {path}")
    return Source(file=str(path), net=net, dataset=dataset)


def _source(key: str, result: Json) -> Source:
    return Source(trial=key, cell=result["label"], label=result["trial"])


def _has_weights(result: Json) -> bool:
    return result["status"] == "finished" and "weights.safetensors" in result["files"]
