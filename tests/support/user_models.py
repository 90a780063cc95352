"""Models as users write them, for tests: batch norm, dropout of every kind, randomness that no key reaches."""

import os
import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Small(nn.Module):
    """Convolutional net with batch norm, dropout of channels and of elements, and a layer that it uses twice."""

    def __init__(self, num_classes: int, rate: float = 0.0, draws: str = "", freeze: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(rate))
        self.drop = nn.Dropout(rate)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, num_classes)
        self.unused = nn.Linear(2, 2)
        self.draws = draws
        if freeze:
            self.body[0].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = self.drop(self.body(x).mean((2, 3)))
        x = self.drop(self.inner(x))
        if self.training and self.draws == "torch":
            x = functional.dropout(x, 0.5)
        if self.training and self.draws == "numpy":
            x = x * float(np.random.rand())
        if self.training and self.draws == "python":
            x = x * random.random()
        out: Tensor = self.head(x)
        return out


def small(num_classes: int, **options: object) -> Small:
    """Return a small net."""
    return Small(num_classes, **options)  # type: ignore[arg-type]


NET = small(2)  # a net itself, in place of a function that makes one


def huge(num_classes: int) -> nn.Module:
    """Return a layer that no machine has the memory for."""
    return nn.Linear(10**12, num_classes, bias=False)


WIDTH = torch.full((1,), 3)


def reads(num_classes: int) -> nn.Module:
    """Return a net whose width is read from tensors: of the module, and its own."""
    width = int(WIDTH.item() + torch.full((1,), 1).item())
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, width), nn.Linear(width, num_classes))


class Tied(nn.Module):
    """Net with tied weights, whose first part is computed again in the backward pass."""

    def __init__(self, num_classes: int, rate: float, again: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(rate)
        self.head = nn.Linear(3, num_classes)
        self.again = again

    def part(self, x: Tensor) -> Tensor:
        """Return what is computed twice."""
        out: Tensor = self.drop(self.second(self.first(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        x = x.mean((2, 3))
        x = checkpoint(self.part, x, use_reentrant=False) if self.again else self.part(x)
        out: Tensor = self.head(x)
        return out


def tied(num_classes: int, rate: float = 0.5, again: bool = True) -> Tied:
    """Return a net with tied weights."""
    return Tied(num_classes, rate, again)


def pair(num_classes: int) -> nn.Module:
    """Return a net that gives a pair in training."""

    class Pair(Small):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return (scores, scores) if self.training else scores  # type: ignore[return-value]

    return Pair(num_classes)


def late(num_classes: int) -> nn.Module:
    """Return a net whose forward pass has a fault in training alone."""

    class Late(Small):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return self.nothing(scores) if self.training else scores  # type: ignore[operator]

    net = Late(num_classes)
    net.nothing = None  # type: ignore[assignment]
    return net


def thousand(num_classes: int) -> nn.Module:
    """Return a net that gives a thousand scores, whatever the classes."""
    return Small(1000)


def without_classes(depth: int) -> nn.Module:
    """Return a net of no classes."""
    return Small(depth)


def failing(num_classes: int) -> nn.Module:
    """Raise an error."""
    table = {"a": 1}
    return Small(table[f"b{num_classes}"])


def no_module(num_classes: int) -> list[int]:
    """Return no net."""
    return [num_classes]


def ends(num_classes: int) -> nn.Module:
    """End the process."""
    raise SystemExit(4)


def dies(num_classes: int) -> nn.Module:
    """End the process as a fault of a library does."""
    os._exit(3)


def meta_shy(num_classes: int) -> nn.Module:
    """Return a net that cannot run without memory."""

    class Shy(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * float(torch.ones(1, device=x.device).item()))

    return Shy(num_classes)


class Plain(nn.Module):
    """Net that torch.fx can follow, with a name for its activation."""

    def __init__(self, num_classes: int, rate: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(rate)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        out: Tensor = self.head(self.pool(self.drop(self.act(self.conv(x)))).flatten(1))
        return out


def plain(num_classes: int, rate: float = 0.0) -> Plain:
    """Return a net that torch.fx can follow."""
    return Plain(num_classes, rate)


class Own(nn.Module):
    """Net with a count and drawn places that no state holds, a weight of five dimensions, and noise at all times."""

    seen: Tensor

    def __init__(self, num_classes: int, noise: float) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 16, (1, 3, 3), (1, 2, 2))
        self.head = nn.Linear(16, num_classes)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.order = torch.randperm(16)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        if self.training:
            self.seen += 1
        x = self.conv(x[:, :, None]).relu().mean((2, 3, 4))[:, self.order] * (1 + self.seen / 100)
        out: Tensor = self.head(functional.dropout(x, self.noise))
        return out


def own(num_classes: int, noise: float = 0.0) -> Own:
    """Return a net with what no state holds."""
    return Own(num_classes, noise)
