"""What tests of a GPU's kernels draw, and nets of whole numbers, whose sums are exact in any order."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from crelu_models.chain import Chain
from crelu_models.modules import build, initialise
from crelu_models.spec import Conv, Net, Pool

EXACT = ("crelu", "crelu_leaky", "avr")  # of ELU the interpreter has another exponential
TWO_BYTES = (torch.bfloat16, torch.float16)
# Side, stride, padding and whether a partial window counts: those of our nets, and others.
WINDOWS = [(2, 2, 0, False), (3, 2, 0, True), (3, 2, 0, False), (3, 2, 1, False), (3, 1, 1, False), (2, 3, 0, True)]
CPU = torch.device("cpu")
PLAIN = torch.contiguous_format
NO_TRITON = "an environment without CUDA has no Triton"


class Kernels(NamedTuple):
    """Modules of the kernels, for Triton's interpreter."""

    activations: ModuleType
    sums: ModuleType
    dropout: ModuleType
    pooling: ModuleType
    choice: ModuleType


def both(function: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, weight)
    return y.detach(), gradient


def draw(shape: tuple[int, ...], kind: str = "crelu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return an input, and a gradient by its activation."""
    generator = torch.Generator().manual_seed(sum(shape))
    factor = 1 if kind == "avr" else 2
    x = torch.randn(shape, generator=generator)
    return x.to(dtype), torch.randn((shape[0], factor * shape[1], *shape[2:]), generator=generator).to(dtype)


def whole_numbers(net: Net, size: int) -> tuple[Chain, Tensor]:
    """Return a built net and pictures, with channels last, that stay whole numbers far from rounding."""
    model = build(net, 5, size)
    initialise(model, net, "he_fan_in", 0)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randint(-1, 2, value.shape, generator=drawn))
    last = torch.channels_last
    pictures = torch.randint(-2, 3, (2, 3, size, size), generator=drawn).float()
    return model.to(memory_format=last), pictures.contiguous(memory_format=last)  # type: ignore[call-overload]


def small_net(*kinds: str) -> Net:
    rows = [Conv(f"conv{n}", 4, 3, 1, 1, act=kind) for n, kind in enumerate(kinds, 1)]
    last = [Pool("pool1", "max", 3, 2, 0, ceil=True), Conv("conv9", None, 1, act="none"), Pool("pool2", "avg", 0)]
    return Net("small", (*rows, *last), 8)


def launches(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the kernels launched, by kind, biased or not, and "pool"."""
    made: list[str] = []
    launch, launch_pool = gpu.activations._launch, gpu.pooling._launch

    def noted(kernel: object, x: Tensor, bias: Tensor | None, kind: str, *rest: object, **constants: int) -> None:
        summed = " summed" if constants.get("summed") else ""
        made.append(kind if bias is None and kernel is gpu.activations._activation_forward else f"bias {kind}{summed}")
        launch(kernel, x, bias, kind, *rest, **constants)

    monkeypatch.setattr(gpu.activations, "_launch", noted)
    monkeypatch.setattr(gpu.pooling, "_launch", lambda *rest: made.append("pool") or launch_pool(*rest))
    return made


def trained(model: Chain, pictures: Tensor) -> list[Tensor]:
    """Return scores, and the gradients of all parameters from whole numbers."""
    model.zero_grad()
    scores = model(pictures)
    (scores * 16 * torch.arange(1, 6)).sum().backward()
    return [scores.detach(), *(value.grad for value in model.parameters() if value.grad is not None)]
