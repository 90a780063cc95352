"""Draws of a model that is not ours: keyed as far as torch's generators go, and watched for what they do not reach."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from crelu_models.spec import seed_from

APPROXIMATE = "resume=approximate"  # how an event begins that says so, and the tag of such a training


class Draws:
    """Randomness that a model draws besides its dropout layers, such as stochastic depth.

    Torch's own generators are seeded before each forward pass, by the training's seed and the step, or the view that is
    scored: a resumed training draws what an undisturbed one would. `unkeyed` names the draws that are not keyed.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """Key the draws of a training with this seed on this device."""
        self.seed = seed
        self.device = device
        self.unkeyed = ""
        self.watched = -1  # the last epoch whose first pass in this process was watched
        self.scored = -1  # the last epoch after which the first scores in this process were watched

    @contextmanager
    def keyed(self, epoch: int, step: int, first: int, is_part: bool) -> Iterator[None]:
        """Seed torch's generators for a forward pass on the pictures from `first` of a batch, or on all of it."""
        seed_globals(seed_from("draws", self.seed, epoch, step, first), self.device)
        if epoch == self.watched or self.unkeyed:
            yield
            return
        # A look at all states takes 50 us: once an epoch.
        self.watched = epoch
        drawn, others = torch_state(self.device), other_state()
        yield
        if others != other_state():
            self.unkeyed = f"{APPROXIMATE}: the model draws from the generators of NumPy or Python in training"
        elif is_part and drawn != torch_state(self.device):
            self.unkeyed = (
                f"{APPROXIMATE}: the model draws randomness of its own in training, and another number of ranks or of "
                "parts of a batch would draw other numbers"
            )

    @contextmanager
    def keyed_scores(self, epoch: int, stage: int, number: int) -> Iterator[None]:
        """Seed torch's generators for the scores of view `number` in a `stage` of evaluation after an epoch."""
        seed_globals(seed_from("draws", self.seed, epoch, "scores", stage, number), self.device)
        if epoch == self.scored or self.unkeyed:
            yield
            return
        self.scored = epoch
        others = other_state()
        yield
        if other_state() != others:
            self.unkeyed = f"{APPROXIMATE}: the model draws from the generators of NumPy or Python in evaluation"


def seed_globals(seed: int, device: torch.device) -> None:
    """Set torch's own generators, of the CPU and of this device: what a model draws there is keyed by the seed."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def torch_state(device: torch.device) -> bytes:
    """Return the state of torch's generators: another one after a forward pass has drawn from them."""
    state = torch.get_rng_state().numpy().tobytes()
    return state + (torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b"")


def other_state() -> tuple[Any, ...]:
    """Return the state of the generators of NumPy and Python, which nothing keys in a training step."""
    kind, words, position, *rest = np.random.get_state()
    return kind, np.asarray(words).tobytes(), position, *rest, random.getstate()
