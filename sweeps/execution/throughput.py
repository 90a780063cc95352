"""Throughput of nets: what the epochs trained so far, on the ledger and in this session, say of those to come.

A cell's throughput is that of its own epochs. One that has not been trained yet is estimated from those that have:
seconds a picture grow with the net's multiply-adds. Where nothing has been trained, nothing is known.
"""

from __future__ import annotations

import json
import platform
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from statistics import median, quantiles
from typing import NamedTuple

from sweeps.execution.resources import TrialResources
from sweeps.store.checkpoint_header import progress
from sweeps.store.integrity import HISTORY, damage
from sweeps.store.ledger import Json, Ledger
from sweeps.training.runtime import GPU_SIZE, MIB

FEW = 3  # finished trials of a cell, the latest ones, whose epochs are read
RECENT = 20  # epochs of this session by which a cell is judged
SPREAD = 1.1  # least factor between the likely speed and either end of its interval: sessions differ by that
# The same for a net that is scaled from a single other one: a small net's convolutions may run at less than half the
# speed of a large one's (benchmarks/RESULTS.md).
SCALING = 2.0
# Share of its time that a trial alone keeps a GPU busy: eager steps of CIFAR nets 0.5, captured ones and large nets 1;
# least, likely, most. Trials that share a GPU slow each other down once these shares add up to more than it has.
BUSY = (0.5, 0.7, 1.0)
# A device as a checkpoint names it (training.runtime.device_in_words): a CPU, and how many ranks and GPUs it has.
A_CPU = "a CPU"
NUMBERS = re.compile(r"[(,] ?([0-9]+) (?:ranks|GPUs)")


class Throughput(NamedTuple):
    """Pictures a second that a net learns from, with the ends of an interval, and its batches' share of the time."""

    likely: float
    slowest: float
    fastest: float
    data_share: float | None = None

    def scaled(self, factor: float) -> Throughput:
        """Return the throughput times a factor."""
        return Throughput(self.likely * factor, self.slowest * factor, self.fastest * factor, self.data_share)


@dataclass
class EpochRates:
    """Rates of one cell's epochs: pictures a second, and the batches' share of the time where it was measured.

    That is so where a trial trains alone; of a pack's epochs it is not known. `device_bytes` is the memory of the
    smallest GPU.
    """

    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    sharers: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))  # trials on its GPU, for each speed
    data_shares: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    alone: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    packed: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    device_bytes: float = float("inf")

    def add(self, row: Mapping[str, float], sharers: int = 1) -> None:
        """Add an epoch by its row; `sharers` trials, itself included, had its GPU then."""
        self.speeds.append(float(row["sys/images_per_s"]))
        self.sharers.append(sharers)
        (self.alone if "sys/data_share" in row else self.packed).append(float(row["sys/images_per_s"]))
        if "sys/data_share" in row:
            self.data_shares.append(float(row["sys/data_share"]))
        self.device_bytes = min(self.device_bytes, MIB * row.get(GPU_SIZE, float("inf")))

    def throughput(self, sharers: int = 1) -> Throughput | None:
        """Return the median speed with the deciles of the epochs, at least a factor of SPREAD apart; None for none.

        The speed is that of one of `sharers` trials on a GPU.
        """
        if not self.speeds:
            return None
        speeds = [
            [speed * (slowdown(before, busy) / slowdown(sharers, busy)) for busy in BUSY]
            for speed, before in zip(self.speeds, self.sharers, strict=True)
        ]
        likely = median(values[1] for values in speeds)
        slowest, fastest = [min(values) for values in speeds], [max(values) for values in speeds]
        if len(speeds) > 1:
            slowest = quantiles(slowest, n=10, method="inclusive")
            fastest = quantiles(fastest, n=10, method="inclusive")
        share = median(self.data_shares) if self.data_shares else None
        return Throughput(likely, min(slowest[0], likely / SPREAD), max(fastest[-1], likely * SPREAD), share)


def slowdown(sharers: int, busy: float) -> float:
    """Return how many times as long a step takes that shares its GPU with others of its kind, each `busy` alone."""
    return max(1.0, sharers * busy)


@dataclass
class Throughputs:
    """Throughput of each cell of a sweep on one kind of hardware, as far as it is known.

    `macs` are a cell's multiply-adds a picture, `past` the epochs of finished trials. A cell's own epochs in this
    session take the place of its past ones. `sharers` trials share each GPU.
    """

    macs: Mapping[str, float]
    past: Mapping[str, EpochRates] = field(default_factory=dict)
    present: dict[str, EpochRates] = field(default_factory=dict)
    sharers: int = 1

    @property
    def device_bytes(self) -> float:
        """Return the memory of the smallest GPU on which one of these epochs was trained; infinite where none was."""
        known = (*self.past.values(), *self.present.values())
        return min((epochs.device_bytes for epochs in known), default=float("inf"))

    def add(self, cell_key: str, row: Mapping[str, float], sharers: int = 1) -> None:
        """Add an epoch of this session, in which `sharers` trials had the GPU."""
        self.present.setdefault(cell_key, EpochRates()).add(row, sharers)

    def has_trained_alone(self, cell_key: str) -> bool:
        """Return whether a cell has an epoch of a trial that trained alone."""
        return any(cell_key in epochs and epochs[cell_key].alone for epochs in (self.past, self.present))

    def pack_gain(self, cell_key: str) -> float | None:
        """Return a cell's speed in packs over its speed alone, a member's seconds being its part of the pack's.

        None where either is not known.
        """
        known = [epochs[cell_key] for epochs in (self.past, self.present) if cell_key in epochs]
        alone = [speed for rates in known for speed in rates.alone]
        packed = [speed for rates in known for speed in rates.packed]
        return median(packed) / median(alone) if alone and packed else None

    def trained(self) -> dict[str, Throughput]:
        """Return the throughput of each cell with a known epoch."""
        trained: dict[str, Throughput] = {}
        for key in self.macs:
            past, present = (
                rates.get(key, EpochRates()).throughput(self.sharers) for rates in (self.past, self.present)
            )
            if past is not None and present is not None and present.data_share is None:
                present = present._replace(data_share=past.data_share)
            if (latest := present or past) is not None:
                trained[key] = latest
        return trained

    def all(self) -> dict[str, Throughput]:
        """Return the throughput of every cell, by its own epochs or scaled from others'; empty where none is known."""
        trained = self.trained()
        if not trained:
            return {}
        # In multiply-adds a second, which nets of other sizes share better than pictures a second.
        rates = [value.scaled(self.macs[key]) for key, value in trained.items()]
        likely = median(rate.likely for rate in rates)
        slowest = min([rate.slowest for rate in rates] + [likely / SCALING] * (len(rates) == 1))
        fastest = max([rate.fastest for rate in rates] + [likely * SCALING] * (len(rates) == 1))
        other = Throughput(likely, slowest, fastest)
        return {key: trained.get(key) or other.scaled(1 / macs) for key, macs in self.macs.items()}


def sharers_of(gpus: float, running: int | None = None) -> int:
    """Return how many trials of `gpus` GPUs each have one together, where so many run (None: as many as fit).

    Ray fills a GPU before it takes the next.
    """
    fit = int(1 / gpus + 1e-9) if 0 < gpus < 1 else 1
    return fit if running is None else max(1, min(fit, running))


def past_epochs(
    ledger: Ledger, results: Iterable[Json], resources: TrialResources, begun: Iterable[tuple[str, str]] = ()
) -> dict[str, EpochRates]:
    """Return the epochs of the latest finished trials of each cell on this kind of hardware, by cell key.

    Of several kinds of GPU those count that trained last. Of a cell without such trials the epochs count that are in
    checkpoints of `begun` trials, given by the keys of cell and trial.
    """
    latest = sorted((result for result in results if _same_kind(result, resources)), key=_finished, reverse=True)
    by_cell: dict[str, list[Json]] = {}
    for result in latest:
        if result["hardware"]["device"] == latest[0]["hardware"]["device"]:
            by_cell.setdefault(str(result["cell_key"]), []).append(result)
    epochs = {cell_key: EpochRates() for cell_key in by_cell}
    for cell_key, finished in by_cell.items():
        for result in finished[FEW - 1 :: -1]:
            if damage(ledger, str(result["key"]), result, [HISTORY]):
                continue  # the report names it
            for row in json.loads(ledger.read(f"trials/{result['key']}/{HISTORY}") or b"[]"):
                epochs[cell_key].add(row, sharers_of(float(result["hardware"].get("gpu_share", 1))))
    gpu = str(latest[0]["hardware"]["device"]) if latest and resources.device == "cuda" else ""
    under_way: dict[str, list[str]] = {}
    for cell_key, key in begun:
        if cell_key not in epochs:
            under_way.setdefault(cell_key, []).append(key)
    for cell_key, keys in under_way.items():
        for key in keys[:FEW]:
            state = progress(ledger, key) or {}
            if _has_same_kind(state, resources) and str(state["devices"][-1]).startswith(gpu):
                for row in state["history"]:
                    epochs.setdefault(cell_key, EpochRates()).add(row, sharers_of(resources.gpus))
    return epochs


def _finished(result: Json) -> float:
    return float(result.get("finished_ms", 0))


def _same_kind(result: Json, resources: TrialResources) -> bool:
    """Return whether a trial ran on such a device, by as many ranks, on a CPU by as many threads.

    A training function has no ranks: its one process has the GPUs or threads of all.
    """
    hardware = result.get("hardware", {})
    device = "cpu" if hardware.get("device") == (platform.processor() or platform.machine()) else "cuda"
    ranks, gpus, threads = (int(hardware.get(name, 1)) for name in ("ranks", "gpus", "threads"))
    if "device" not in hardware or device != resources.device:
        return False
    if device == "cuda":
        return ranks * gpus == resources.ranks
    if "resumed" in result:  # by a training function
        return threads == resources.ranks * resources.threads
    return (ranks, threads) == (resources.ranks, resources.threads)


def _has_same_kind(state: Json, resources: TrialResources) -> bool:
    """Return whether a checkpoint names such a device, and as many ranks or GPUs; threads it does not name."""
    if not state.get("history") or not state.get("devices"):
        return False
    words = str(state["devices"][-1])
    device = "cpu" if words.startswith(A_CPU) else "cuda"
    number = prod(int(number) for number in NUMBERS.findall(words))
    return device == resources.device and (number == resources.ranks or (device == "cpu" and "resumed" in state))
