"""Nets of ours by torch.compile, each as a whole: drawing a mask of dropout, which it cannot trace, is an operation."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from crelu_models.modules import Dropout

CACHE = (
    "~/.cache/crelu-sweeps/compiled"  # of what was compiled, for the next process; TORCHINDUCTOR_CACHE_DIR is another
)
# A process compiles a net for each of its trainings; torch stops at 8 of a function, and then runs it as it is.
MOST_COMPILED = 256

_drawing: list[Dropout] = []  # of the net that is called: its layers by number


@torch.library.custom_op(
    "crelu_models::mask", mutates_args=(), schema="(Tensor x, int number) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)  # fmt: skip
def _mask(x: Tensor, number: int) -> Tensor:
    """Return the next mask of a layer of the net that is called."""
    mask, _ = _drawing[number].mask(x)
    return mask


_mask.register_fake(lambda x, number: torch.empty_like(x))  # noqa: ARG005


class Compiled(nn.Module):
    """A net by torch.compile, with the net's own weights and masks. Its sums and roundings come in another order."""

    def __init__(self, net: nn.Module, backend: str = "inductor") -> None:
        """Prepare to compile `net` when it is first called; a call raises an error where the whole cannot be."""
        super().__init__()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(CACHE).expanduser()))
        import torch._dynamo.config as limits

        limits.recompile_limit = MOST_COMPILED
        self.layers = [layer for layer in net.modules() if isinstance(layer, Dropout)]
        for number, layer in enumerate(self.layers):
            layer.number = number
        self.net = torch.compile(net, fullgraph=True, dynamic=False, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of pictures."""
        _drawing[:] = self.layers
        scores: Tensor = self.net(x)
        return scores
