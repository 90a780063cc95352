"""Dropout whose masks come from a keyed stream of each layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crelu_models.spec import seed_from

STEPS = 1 << 16  # resolution of a dropout rate on a CPU


class Dropout(nn.Module):
    """Elementwise dropout with its own random stream; surviving elements are scaled by 1 / (1 - rate).

    The stream is `generator`, created on the device of the first training batch; `seed` sets it. On one device, equal
    seeds give equal masks for tensors of equal shape and layout; rows of a batch get their rows of its mask. A CPU
    rounds the rate to the nearest 65,536th, in scaling too. In evaluation mode it is the identity.
    """

    def __init__(self, rate: float, name: str) -> None:
        """Drop elements with probability `rate`; the name of the layer in front, `name`, is part of the seeds."""
        super().__init__()
        self.rate = rate
        self.name = name
        self.generator: torch.Generator | None = None
        self.number: int | None = None  # among the layers of a net that is compiled
        self._seed = seed_from("dropout", name)
        self._first, self._batch, self._pictures = 0, 0, 0

    def seed(self, value: int, first: int = 0, batch: int = 0, pictures: int = 0) -> None:
        """Restart the stream at a 63-bit seed; the next rows are those from `first` of a batch of `batch` (0: all).

        A picture may have several rows: `pictures` counts the pictures (0: one row each).
        """
        self._seed = value
        self._first, self._batch, self._pictures = first, batch, pictures
        if self.generator is not None:
            self.generator.manual_seed(value)

    def forward(self, x: Tensor) -> Tensor:
        """Return x; in training each element is either scaled up or 0."""
        if not self.training:
            return x
        if self.number is not None and torch.compiler.is_compiling():
            mask, rate = torch.ops.crelu_models.mask(x.detach(), self.number), self._share(x.device)
        else:
            mask, rate = self.mask(x)
        # A mask of the type of x: on the CPU a product is several times faster than masked_fill.
        kept: Tensor = x * mask * (1 / (1 - rate))
        return kept

    def mask(self, x: Tensor) -> tuple[Tensor, float]:
        """Return the stream's next mask of 1s and 0s in the shape and layout of x, and the expected share of 0s."""
        if self.generator is None or self.generator.device != x.device:
            self.generator = torch.Generator(x.device)
            self.generator.manual_seed(self._seed)
        fits = bool(self._pictures) and len(x) % self._pictures == 0
        rows = len(x) // self._pictures if fits else 1  # of a picture
        mask = self._empty_mask(x, self._batch * rows)
        self._draw(mask)
        if len(mask) > len(x):
            mask = mask[self._first * rows : self._first * rows + len(x)].clone()
        return mask, self._share(x.device)

    def _draw(self, mask: Tensor) -> None:
        """Fill a mask with the stream's next 1s and 0s."""
        if mask.device.type != "cpu":
            mask.bernoulli_(1 - self.rate, generator=self.generator)
            return
        # A 64-bit word of random bits serves four elements: a tenth of the cost of four draws.
        words = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64)
        bits = words.random_(-(1 << 63), None, generator=self.generator).view(torch.int16)[: mask.numel()]
        torch.ge(bits, self._zeros - STEPS // 2, out=mask.as_strided(bits.shape, (1,)))

    @property
    def _zeros(self) -> int:
        """Return how many of all numbers of 16 bits stand for a 0 on a CPU."""
        return min(round(self.rate * STEPS), STEPS - 1)

    def _share(self, device: torch.device) -> float:
        """Return the expected share of 0s in a mask on a device."""
        return self.rate if device.type != "cpu" else self._zeros / STEPS

    @staticmethod
    def _empty_mask(x: Tensor, batch: int) -> Tensor:
        """Return an empty mask for the full batch, in the layout of x; x holds rows of that batch."""
        if batch <= len(x):
            return torch.empty_like(x)
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=layout)

    def extra_repr(self) -> str:
        """Return the rate and the layer."""
        return f"{self.rate}, {self.name!r}"


# Torch's compiler cannot trace how a mask is drawn: in a compiled net this is an operation, by the layer's number.
_drawing: list[Dropout] = []  # layers of the net that is called, by number


@torch.library.custom_op(
    "crelu_models::mask", mutates_args=(), schema="(Tensor x, int number) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)  # fmt: skip
def _mask(x: Tensor, number: int) -> Tensor:
    """Return the next mask of a layer of the net that is called."""
    mask, _ = _drawing[number].mask(x)
    return mask


_mask.register_fake(lambda x, number: torch.empty_like(x))  # noqa: ARG005


def draw_for(layers: list[Dropout]) -> None:
    """Let the operation draw the masks of these layers, those of the net that is called next."""
    _drawing[:] = layers


def seed_dropout(
    module: nn.Module, seed: int, epoch: int, step: int, first: int = 0, batch: int = 0, pictures: int = 0
) -> None:
    """Seed every dropout layer of `module` for one training step, by these numbers and its name alone.

    The next forward pass gets the masks of the rows from `first` of a batch of `batch` rows (0: all rows), which are
    those of so many `pictures`.
    """
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.seed(seed_from("dropout", seed, epoch, step, layer.name), first, batch, pictures)


def dropout_generators(module: nn.Module) -> list[torch.Generator]:
    """Return the generators of the dropout layers that have drawn."""
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    return [layer.generator for layer in layers if layer.generator is not None]


def renew_generators(module: nn.Module) -> None:
    """Give every dropout layer that has drawn a new generator, at its seed."""
    for layer in module.modules():
        if isinstance(layer, Dropout) and layer.generator is not None:
            layer.generator = torch.Generator(layer.generator.device)
            layer.seed(layer._seed, layer._first, layer._batch)
