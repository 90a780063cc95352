"""Rehearsal of a cell: its first steps at real size and recipe, before a sweep spends hours on it.

The net, its learner and the batches are those of a trial. There is no ledger, no evaluation and no restart.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain, count
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from crelu_data.availability import fetch_dataset
from crelu_data.datasets import DataSet, dataset
from sweeps.experiment.trial import Cell, Trial
from sweeps.training.distributed import ALONE
from sweeps.training.evaluate import Errors, beats, chance, misses
from sweeps.training.loop import DivergedError, Learner
from sweeps.training.run_trial import out_of_memory, reset_process
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import BatchStream
from sweeps.training.splits import Splits, open_splits
from sweeps.training.trainer import JITTER, SLOW_START, new_learner
from sweeps.training.views import Views

LAST: Final = 20  # steps over which a rehearsal's end is measured, and between two reads of a GPU
BLOWN_UP: Final = 2.0  # a loss of so many times the first one and that of chance has diverged
# Embedded pictures in place of a data set that is not there: made within a minute, and easy enough that a net which
# trains leaves chance within some hundred steps.
STAND_IN_PICTURES: Final = {"imagenet": 2000, "cifar10": 4000, "cifar100": 4000}


class Rehearsal(NamedTuple):
    """Result of a cell's first steps.

    `verdict` is trains, at chance, diverged, dead, or out of memory; for the last three `fault_step` (1-based) says
    since when. `last_loss` and `error` (percent) are over the last 20 steps, the norms are of gradients before
    clipping. `memory` is the peak in bytes: of the GPU's tensors, or of the process on a CPU.
    """

    label: str
    key: str
    dataset: str
    steps: int
    first_loss: float
    last_loss: float
    error: float
    largest_norm: float
    median_norm: float
    memory: int
    images_per_s: float
    verdict: str
    fault_step: int
    losses: tuple[float, ...] = ()

    @property
    def is_fault(self) -> bool:
        """Return whether the cell cannot be trained so."""
        return self.verdict in ("diverged", "dead", "out of memory")

    @property
    def words(self) -> str:
        """Return the verdict for people."""
        return f"{self.verdict} at step {self.fault_step}" if self.is_fault else self.verdict


class _Step(NamedTuple):
    """Measurements of one step: mean loss, wrong pictures, norm before clipping, whether all scores were the same."""

    loss: float
    wrong: float
    norm: float
    dead: bool
    pictures: int


Progress = Callable[[int, float, float], None]  # the steps so far, their last loss, pictures a second


def rehearse(
    cell: Cell,
    steps: int,
    config: RuntimeConfig,
    pictures: str = "",
    progress: Progress = lambda *_: None,
    rate: float = 0.0,
) -> Rehearsal:
    """Train `cell` for `steps` from its initial weights, with its own dropout, and return how that went.

    `pictures` names the data set to train on (default: the cell's own). The learning rate is that of the first stage,
    with a warm-up in epochs of the cell's own data; `rate` is one that a study chose, 0 for the recipe's.
    ValueError where net, recipe and pictures do not fit together.
    """
    fetch_dataset(pictures or cell.dataset, config.data_dir, config.data_source)
    reset_process(config)
    device = torch.device(config.device)
    trial = Trial(dataclasses.replace(cell, dataset=pictures or cell.dataset), rate=rate)
    splits = open_splits(trial, config)
    _begin_memory(device)
    measured: list[_Step] = []
    times: list[float] = []
    verdict = ""
    try:
        learner = new_learner(trial, splits.facts, trial.seed, _epoch_steps(cell, splits), device)
        learner.measures_norm = True
        with closing(_views(trial, splits, device)) as batches:
            for row in _train(learner, batches, steps):
                measured += row
                times += [time.perf_counter()] * len(row)
                progress(len(measured), measured[-1].loss, _speed(measured, times))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        verdict = "out of memory"
    guessing = chance(splits.train.sidecar.label_counts)
    word, fault_step = (verdict, len(measured) + 1) if verdict else judge(measured, guessing)
    end = measured[-LAST:]
    norms = [step.norm for step in measured if math.isfinite(step.norm)]
    return Rehearsal(
        label=cell.label,
        key=cell.key,
        dataset=trial.cell.dataset,
        steps=len(measured),
        first_loss=measured[0].loss if measured else math.nan,
        last_loss=fmean(step.loss for step in end) if end else math.nan,
        error=100 * sum(step.wrong for step in end) / sum(step.pictures for step in end) if end else math.nan,
        largest_norm=max(norms, default=math.nan),
        median_norm=median(norms) if norms else math.nan,
        memory=_peak_memory(device),
        images_per_s=_speed(measured, times),
        verdict=word,
        fault_step=fault_step,
        losses=tuple(step.loss for step in measured),
    )


def stand_in(name: str) -> str:
    """Return embedded pictures of the size and the classes of a data set; "" where it needs none or has none."""
    kind = name.partition(":")[0]
    if kind not in STAND_IN_PICTURES:
        return ""
    facts = dataset(name)
    pictures = f"size={facts.size},classes={facts.classes},train={STAND_IN_PICTURES[kind]},test=100"
    return f"synthetic:{pictures},clutter=20,contrast=30"


def judge(measured: list[_Step], guessing: Errors) -> tuple[str, int]:
    """Return the verdict on the steps of a training, and for a fault the step (1-based) at which it began."""
    losses = [step.loss for step in measured]
    for number, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            return "diverged", number
    end = measured[-LAST:]
    last = fmean(losses[-LAST:])
    blown_up = BLOWN_UP * max(losses[0], guessing.loss)
    if last > blown_up:
        return "diverged", next(number for number, loss in enumerate(losses, 1) if loss > blown_up)
    alive = max((number for number, step in enumerate(measured, 1) if not step.dead), default=0)
    if len(measured) - alive >= LAST:
        return "dead", alive + 1
    # Three standard errors below chance, in the error or in the loss, are learning.
    pictures = sum(step.pictures for step in end)
    spread = 3 * stdev(losses[-LAST:]) / math.sqrt(len(end)) if len(end) > 1 else math.inf
    below = last < min((1 - JITTER) * guessing.loss, guessing.loss - spread)
    learns = below or beats(100 * sum(step.wrong for step in end) / pictures, pictures, guessing)
    if learns or len(measured) < SLOW_START or fmean(losses[-SLOW_START:]) < (1 - JITTER) * guessing.loss:
        return "trains" if learns else "at chance", 0
    return "dead", len(measured) - SLOW_START + 1  # as long as a trial would wait


def _epoch_steps(cell: Cell, splits: Splits) -> int:
    """Return the steps of an epoch on the cell's own data, by which its warm-up counts, where their size is known."""
    facts: DataSet = splits.facts
    learned = len(splits.train_indices)
    if cell.dataset != facts.name and stand_in(cell.dataset):
        facts = dataset(cell.dataset)
        learned = facts.splits["train"] - facts.holdout
    return cell.recipe.steps(learned)


def _views(trial: Trial, splits: Splits, device: torch.device) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield training views, epoch after epoch."""
    stream = BatchStream()
    try:
        views = Views(trial, splits, stream, ALONE, device)
        yield from chain.from_iterable(views.training(epoch, 0) for epoch in count())
    finally:
        stream.close()


def _train(learner: Learner, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> Iterator[list[_Step]]:
    """Take steps and yield their measurements, some at a time; end at the first loss that is not finite."""
    scores: list[Tensor] = []

    def keep_scores(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        scores[:] = [output.detach()]

    every = LAST if learner.device.type == "cuda" else 1  # each read waits for the device
    hook = learner.model.register_forward_hook(keep_scores)
    rows: list[Tensor] = []
    sizes: list[int] = []
    try:
        for number in range(1, steps + 1):
            images, labels = next(batches)
            diverged = False
            learner.sums.zero_()  # a later loss would be lost in the sum with one of 1e25
            try:
                learner.step(images, labels)
            except DivergedError:
                diverged = True
            assert learner.gradient_norm is not None
            loss = learner.sums[0] / len(labels)
            same = (scores[0] == scores[0][:1]).all() if len(labels) > 1 else torch.zeros_like(loss)
            values = (loss, misses(scores[0], labels)[0], learner.gradient_norm, same)
            rows.append(torch.stack([value.double() for value in values]))
            sizes.append(len(labels))
            if diverged or number == 1 or number % every == 0 or number == steps:
                measured = [
                    _Step(loss, wrong, norm, bool(dead), size)
                    for (loss, wrong, norm, dead), size in zip(torch.stack(rows).tolist(), sizes, strict=True)
                ]
                yield measured
                if not all(math.isfinite(step.loss) for step in measured):
                    return
                rows.clear()
                sizes.clear()
    finally:
        hook.remove()


def _speed(measured: list[_Step], times: list[float]) -> float:
    """Return the pictures a second after the first reading of the device; nan where there is no later one."""
    later = [step.pictures for step, read_at in zip(measured, times, strict=True) if read_at > times[0]]
    return sum(later) / (times[-1] - times[0]) if later else math.nan


# Memory


def _begin_memory(device: torch.device) -> None:
    """Release what earlier cells have left, and begin to measure the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak of the resident set begins anew (proc(5))


def _peak_memory(device: torch.device) -> int:
    """Return the peak in bytes: of this device's tensors, or of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
