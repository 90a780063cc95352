"""Packing: which trials share a stream of batches, and how many of them one worker trains side by side.

Members of a pack take the same batches in the same order, so a pack decodes and augments once what each member would
for itself. That pays only where making a batch takes a good part of a step. Pictures that stay on the device need no
pack: a worker decodes them once for all its trials. A pack changes nothing in what a trial computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

from crelu_data.datasets import DataSet
from sweeps.execution.throughput import Throughputs
from sweeps.experiment.model_facts import measure_together, net_facts
from sweeps.experiment.trial import Trial
from sweeps.training.shared_batches import StreamKey, stream_key

MAX_MEMBERS = 16  # of a pack under --pack auto: with more, what is shared is less than a tenth of a member's cost
# Packing pays from this ratio of the time for batches to the time for learning. Of a GPU's time only its waits for
# batches count, so it means a decoder that takes 1.1 times as long as the net.
MIN_RATIO = 0.1
# On a GPU small nets fill it together: packs go on where pictures a second are so many times those of trials alone.
MIN_GAIN = 1.2
MEMORY_SHARE = 0.8  # of a GPU's memory that a pack may fill


@dataclass(frozen=True)
class PackPolicy:
    """Rules for packs: up to `most` members, of the cells in `cells` (None: of all), within `memory` bytes.

    With `even`, no pack takes so many trials that another worker has none. Trials on data sets in `resident` need no
    common stream: each takes its own pictures from the device. Of the cells in `unknown` an epoch is to show whether
    packs pay. Where members take their steps at the same time (`side_by_side`), so they take the memory for them.
    """

    most: int = 1
    cells: frozenset[str] | None = None
    even: bool = False
    resident: frozenset[str] = frozenset()
    memory: float = float("inf")
    unknown: frozenset[str] = frozenset()
    side_by_side: bool = False

    def kind(self, trial: Trial) -> StreamKey:
        """Return what the trials of one pack have in common."""
        key = stream_key(trial)
        # On a resident data set folds and seeds may train side by side, each with its own order.
        return (key[0], key[1], *key[5:]) if trial.cell.dataset in self.resident else key

    def members_for(
        self,
        first: Trial,
        waiting: Sequence[Trial],
        epoch: Callable[[Trial], int],
        most: int,
        classes: int,
        crop: int,
    ) -> list[Trial]:
        """Return those of `waiting` to train beside `first`: of its kind, within an epoch of it, at most `most` in all.

        `epoch(trial)` is the epoch a trial has reached, negative for one that should train alone. Members behind catch
        up with the others first.
        """
        members: list[Trial] = []
        start = epoch(first)
        most = min(most, self.most)
        if most < 2 or start < 0 or not self._packs(first):
            return members
        kind = self.kind(first)
        alike = (
            trial
            for trial in waiting
            if self.kind(trial) == kind and self._packs(trial) and max(0, start - 1) <= epoch(trial) <= start + 1
        )
        nearest = list(islice(alike, most - 1))
        measure_together((trial.net, classes, crop) for trial in (first, *nearest))
        own = memory_estimate(first, classes, crop)
        if own is None:
            return members
        state, peak = own
        for trial in chain(nearest, alike):
            estimate = memory_estimate(trial, classes, crop)
            if estimate is None:
                continue
            more, step = estimate
            most_at_once = peak + step if self.side_by_side else max(peak, step)
            if state + more + most_at_once <= self.memory:
                members.append(trial)
                state, peak = state + more, most_at_once
            if len(members) + 2 > most:
                break
        return members

    def _packs(self, trial: Trial) -> bool:
        if trial.cell.task:  # its loop is not ours to stop between two batches
            return False
        return self.cells is None or trial.cell.key in self.cells


def memory_estimate(trial: Trial, classes: int, crop: int) -> tuple[int, int] | None:
    """Return a trial's bytes between steps, and its further bytes in a step; members take their steps in turn.

    None where its model cannot be built, as a search may choose its arguments: it trains alone, and fails alone.

    Between steps: weights, gradients, the optimiser's buffers, averaged weights, and the best weights where the phase
    keeps them. In a step: four bytes for each element of each map after the convolution, after the activation, and for
    its gradient.
    """
    copies = (5 if trial.recipe.optimiser in ("adam", "adamw") else 4) + bool(trial.recipe.ema)
    try:
        facts = net_facts(trial.net, classes, crop)
    except ValueError:
        return None
    return 4 * copies * facts.parameters, 12 * trial.recipe.batch * facts.maps


def fits_on_device(facts: DataSet, resident_bytes: int) -> bool:
    """Return whether the training pictures stay on the device once they are decoded."""
    return 3 * facts.size**2 * facts.splits["train"] <= resident_bytes


def shared_datasets(trials: Iterable[Trial], resident: Collection[str]) -> set[str]:
    """Return the data sets that are not resident and whose batches several trials share."""
    streams = Counter(stream_key(trial) for trial in trials if trial.cell.dataset not in resident)
    return {key[0] for key, count in streams.items() if count > 1}


def policy_from_throughput(trials: Sequence[Trial], throughputs: Throughputs, gpus: float = 0.0) -> PackPolicy:
    """Return the policy for `trials` by the epochs trained so far: packs of the cells where batches take their time.

    A cell without epochs is judged by the cell on the same data whose net is nearest in multiply-adds. While nothing is
    known of the data, trials on it train alone. `gpus` is a trial's share of a GPU.
    """
    trained = throughputs.trained()
    shares = {key: value.data_share for key, value in trained.items() if value.data_share is not None}
    cells = {trial.cell.key: trial.cell.dataset for trial in trials if not trial.cell.task}
    packed, unknown = set(), set()
    for key, dataset in cells.items():
        known = [key] if key in shares else [other for other in shares if cells.get(other) == dataset]
        if known:
            share = shares[min(known, key=partial(_distance, throughputs.macs, key))]
            if share / (1 - share) >= MIN_RATIO:
                packed.add(key)
        else:
            unknown.add(key)
    memory = MEMORY_SHARE * throughputs.device_bytes * (gpus or 1.0)
    most = MAX_MEMBERS if packed else 1
    return PackPolicy(most, frozenset(packed), even=True, memory=memory, unknown=frozenset(unknown))


def policy_on_gpu(
    trials: Sequence[Trial], throughputs: Throughputs, gpus: float, resident: frozenset[str]
) -> PackPolicy:
    """Return the policy for `trials` on a GPU, where members run side by side: as `policy_from_throughput`, and more.

    A cell that has trained alone is tried in packs too, on pictures of any kind, and goes on so where that was faster.
    """
    policy = policy_from_throughput(trials, throughputs, gpus)
    packed = set(policy.cells or ())
    unknown = set()
    for cell in {trial.cell.key: trial.cell for trial in trials if not trial.cell.task}.values():
        gain = throughputs.pack_gain(cell.key)
        if gain is not None and gain < MIN_GAIN:
            packed.discard(cell.key)
        elif throughputs.has_trained_alone(cell.key):
            packed.add(cell.key)
        elif cell.key not in packed:
            unknown.add(cell.key)
    most = MAX_MEMBERS if packed else 1
    return replace(
        policy, most=most, cells=frozenset(packed), unknown=frozenset(unknown), resident=resident, side_by_side=True
    )


def _distance(macs: Mapping[str, float], key: str, other: str) -> float:
    """Return how far apart two cells' nets are, by the factor between their multiply-adds."""
    return max(macs[key], macs[other]) / min(macs[key], macs[other])
