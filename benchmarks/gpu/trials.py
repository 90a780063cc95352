"""Whole trials: their bits by graphs, in packs and after kills, and the rate of one from its start to its end."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.bench import PACKED, Bench, section_line, torch_alone
from sweeps.experiment.trial import Cell, Trial

CIFAR_TRAINING = 350 * 50_000  # pictures


def exact(bench: Bench) -> None:
    """Compare replayed steps with eager ones by torch, a pack with its members, a killed trial with one left alone."""
    for name, dropout in (("allconv CReLU", "pool1"), ("VGG", "conv1")):
        if name in bench.families:
            row = f"{name}: graph, eager by torch"
            with section_line(bench, "exact", row):
                compare_steps(bench, name, dropout, row)
    trials, config = short_trials(bench, bench.members, min(2000, bench.pictures))
    row = f"pack of {len(trials)}, alone"
    with section_line(bench, "exact", row):
        digests = [train_apart(bench, trials, config, "alone"), train_pack(bench, trials, config, "pack")]
        differ = sum(ours != theirs for ours, theirs in zip(*digests, strict=True))
        bench.say("exact", row, trials_that_differ=differ)
    if not bench.kills:
        return
    from sweeps.execution.verify_resume import shortened, verify

    verdict = verify(shortened(trials[0]), config, str(bench.folder / "resume"), bench.kills, 0)
    bench.say("exact", "killed, left alone", kills=verdict.kills, numbers_that_differ=len(verdict.differences),
              which=", ".join(verdict.differences) or "none")  # fmt: skip


def compare_steps(bench: Bench, name: str, dropout: str, row: str) -> None:
    """Compare the tensors of a family after eager steps by torch's kernels with those after replayed ones by ours."""
    learners = [bench.learner(name, graphs, dropout)[0] for graphs in (False, True)]
    for step in range(bench.steps):
        images, labels = bench.batch(name, step)
        for learner in learners:
            with torch_alone(learner is learners[0]):
                learner.step(images, labels)
    first, second = (learner.tensors() for learner in learners)
    differ = sum(not torch.equal(first[key], second[key]) for key in first)
    bench.say("exact", row, steps=bench.steps, tensors_that_differ=differ, steps_by=learners[1].steps_by)


def trial(bench: Bench) -> None:
    """Measure a whole trial: its rate with its start, and after its first epoch beside that of the step alone."""
    trials, config = short_trials(bench, 1, bench.trial_pictures)
    began = time.perf_counter()
    train_apart(bench, trials, config, "whole")
    took = time.perf_counter() - began
    from sweeps.store.ledger import Ledger
    from sweeps.training.splits import open_splits

    result = Ledger(str(bench.folder / "whole")).result(trials[0].key)
    assert result is not None
    learner, images, labels = bench.learner(trials[0].cell.label, True)
    resident = len(labels) / bench.seconds(lambda: learner.step(images, labels))
    history = json.loads((bench.folder / "whole" / "trials" / trials[0].key / "history.json").read_text())
    pictures = len(open_splits(trials[0], config).train_indices)
    lasted = (history[-1]["time_ms"] - history[0]["time_ms"]) / 1e3
    rate = pictures * (len(history) - 1) / max(lasted, 1e-3)
    steps = median(row["sys/images_per_s"] for row in history[1:])  # without evaluations, and what is saved
    bench.say("trial", trials[0].cell.label, with_start_pictures_s=pictures * len(history) / took, seconds=took,
              pictures_s=rate, resident_percent=100 * rate / resident, steps_percent=100 * steps / resident,
              trainings_an_hour=3600 * rate / CIFAR_TRAINING,
              steps_by=str(result["hardware"].get("steps", "eager")))  # fmt: skip


def short_trials(bench: Bench, count: int, pictures: int) -> tuple[list[Trial], Any]:
    """Return trials of a few epochs on embedded pictures, and where they run."""
    from sweeps.training.runtime import RuntimeConfig

    name = small_pictures(pictures, 500)
    names = [family for family in PACKED if family in bench.families]
    trials = []
    for number in range(count):
        label = names[number % len(names)]
        net, recipe, *_, batch = bench.families[label]
        rate = 0.01 if recipe.name == "allconv" else 0.1  # rates at which these nets learn within a few epochs
        recipe = dataclasses.replace(recipe, epochs=5, batch=batch, lr=rate)
        trials.append(Trial(Cell(label, net, name, recipe), "ablation", seed=number))
    kind = bench.device.type
    return trials, RuntimeConfig(str(bench.folder), str(bench.prepared(name)), device=kind, reader="threads")


def small_pictures(count: int, test: int = 16) -> str:
    """Return the name of a set of pictures of CIFAR's size."""
    return f"synthetic:size=32,classes=10,train={count},test={test}"


def hashes(ledger: Path, trials: Sequence[Trial]) -> list[list[str]]:
    """Return hashes of what trials have left, weights and scores; none of one without a result."""
    from sweeps.store.ledger import Ledger

    results = [Ledger(str(ledger)).result(short_trial.key) for short_trial in trials]
    names = ("weights.safetensors", "tables/scores.parquet")
    return [
        [result["status"], *(result["files"].get(name, "") for name in names)] if result else [] for result in results
    ]


def train_apart(bench: Bench, trials: Sequence[Trial], config: Any, name: str) -> list[list[str]]:
    """Train one after another; return hashes of what they leave."""
    from sweeps.training.run_trial import run_trial

    for short_trial in trials:
        run_trial(short_trial, dataclasses.replace(config, ledger=str(bench.folder / name)), lambda *_: None)
    return hashes(bench.folder / name, trials)


def train_pack(bench: Bench, trials: Sequence[Trial], config: Any, name: str) -> list[list[str]]:
    """Train side by side; return hashes of what they leave."""
    from sweeps.execution.pack import perform_pack

    perform_pack(trials, dataclasses.replace(config, ledger=str(bench.folder / name)), lambda _: None)
    return hashes(bench.folder / name, trials)
