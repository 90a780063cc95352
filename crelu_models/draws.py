"""Draws of a model that is not ours: keyed as far as torch's generators go, and watched for what they do not reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crelu_models.from_factory import other_state, seed_globals, torch_state
from crelu_models.spec import seed_from

APPROXIMATE = "resume=approximate"  # how an event begins that says so, and the tag of such a training


class Draws:
    """Randomness that a model draws in its training steps besides its dropout layers, such as stochastic depth.

    Torch's own generators are seeded before each forward pass, by the training's seed and the step: a resumed training
    draws what an undisturbed one would. `unkeyed` says of what that does not hold.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """Key the draws of a training with this seed on this device."""
        self.seed = seed
        self.device = device
        self.unkeyed = ""
        self.watched = -1  # the last epoch whose first pass in this process was watched

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
