"""Modules of a `Model`: built by its factory, its weights drawn by a seed, its dropout keyed like that of our nets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from crelu_models.draws import seed_globals
from crelu_models.dropout import Dropout
from crelu_models.model import Model
from crelu_models.named import error_text, load_named
from crelu_models.placement import place
from crelu_models.spec import seed_from

# Self-normalising dropout sets an element to this value (Klambauer et al. 2017): -lambda * alpha of SELU.
SELU_LOW = -1.7580993408473766
ELEMENTS = (nn.Dropout, nn.AlphaDropout)
CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)


class ModelDropout(Dropout):
    """Dropout of a model in place of torch's own, with a random stream of its own: of elements or whole channels."""

    p: float  # as torch's own has it

    def __init__(self, rate: float, name: str, channels: bool, alpha: bool, inplace: bool = False) -> None:
        """Drop elements or `channels` with probability `rate`; with `alpha`, to SELU's lowest value.

        `inplace`: what it reads is changed, as code may use that does not take the result.
        """
        super().__init__(rate, name)
        self.states: list[Tensor] = []  # of the stream before each mask of this pass
        self.channels = channels
        self.alpha = alpha
        self.inplace = inplace

    @property
    def rate(self) -> float:
        """Return the probability with which an element or a channel is dropped: `p`, which code may change."""
        return self.p

    @rate.setter
    def rate(self, value: float) -> None:
        """Set that probability."""
        self.p = value

    def seed(self, value: int, first: int = 0, batch: int = 0, pictures: int = 0) -> None:
        """Restart the stream, as `Dropout.seed` does."""
        super().seed(value, first, batch, pictures)
        self.states.clear()

    def mask(self, x: Tensor) -> tuple[Tensor, float]:
        """Return the stream's next mask, or the same once more where the backward pass repeats a forward pass.

        ValueError where it repeats one in which this layer was used several times.
        """
        repeats = torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint does
        if repeats and len(self.states) != 1:
            raise ValueError(f"dropout {self.name} is used several times in a part of a model that is checkpointed")
        if self.generator is None or self.generator.device != x.device:
            self.generator = torch.Generator(x.device)
            self.generator.manual_seed(self._seed)
        if repeats:
            self.generator.set_state(self.states[0])
        else:
            self.states.append(self.generator.get_state())
        return super().mask(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return x; in training each element or channel is either scaled up or dropped."""
        if not self.training or self.rate == 0:
            return x
        return x.copy_(self._dropped(x)) if self.inplace else self._dropped(x)

    def _dropped(self, x: Tensor) -> Tensor:
        """Return x with a part of its elements or channels dropped, as a new tensor."""
        if self.rate >= 1:
            return x * 0
        if self.channels:
            mask, rate = self.mask(x.new_empty(x.shape[:2]))
            mask = mask.view(*mask.shape, *[1] * (x.dim() - 2))
        else:
            mask, rate = self.mask(x)
        if not self.alpha:
            scaled: Tensor = x * mask * (1 / (1 - rate))
            return scaled
        scale = ((1 - rate) * (1 + rate * SELU_LOW**2)) ** -0.5
        dropped: Tensor = (x * mask + SELU_LOW * (1 - mask)) * scale - scale * SELU_LOW * rate
        return dropped


def build_model(model: Model, classes: int, seed: int) -> nn.Module:
    """Return the module that a model's factory makes, with its activations placed and its dropout keyed.

    The factory draws its own initial weights; what it draws from the generators of torch, NumPy or Python is set by the
    seed. ValueError, with the line of the user's code, where it does not load or fails, or returns no module.
    """
    factory = load_named(model.factory)
    with seeded(seed_from("weights", seed, "model")):
        try:
            module = factory(num_classes=classes, **model.arguments)
        except (Exception, SystemExit) as error:
            if "num_classes" in str(error) and isinstance(error, TypeError):
                raise ValueError(f"{model.factory} does not take num_classes: {error_text(error)}") from error
            raise ValueError(f"{model.factory} fails: {error_text(error)}") from error
        if not isinstance(module, nn.Module):
            raise ValueError(f"{model.factory} returns a {type(module).__name__}, not a torch.nn.Module")
        for kind, globs, width in model.placements:
            module = place(module, kind, *globs, width=width)
    return keyed(module)


def keyed(module: nn.Module) -> nn.Module:
    """Return a module in which each of torch's dropout layers has become a `ModelDropout` named by its place.

    The layers stay the objects that they are: code may hold one in a list, or set its `p`.
    """
    for name, child in list(module.named_modules()):
        if type(child) in (*ELEMENTS, *CHANNELS):
            _key(child, name or "model")
    return module


def _key(child: nn.Module, name: str) -> None:
    """Make one of torch's dropout layers a `ModelDropout` of this name, in its mode and with its hooks."""
    rate, inplace = float(child.p), bool(child.inplace)  # type: ignore[arg-type]
    fresh = ModelDropout(rate, name, type(child) in CHANNELS, type(child) in ALPHA, inplace)
    shared = vars(nn.Module())
    child.__class__ = ModelDropout
    vars(child).update({field: value for field, value in vars(fresh).items() if field not in shared})


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set the generators of torch on the CPU, NumPy and Python by a seed, and give each its state back at the end."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed_globals(seed, torch.device("cpu"))
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
