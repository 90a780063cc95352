"""Nets of ours by torch.compile, each as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from crelu_models.dropout import Dropout, draw_for

# What was compiled, for the next process; the variable TORCHINDUCTOR_CACHE_DIR names another folder.
CACHE = "~/.cache/crelu-sweeps/compiled"
# A process compiles a net for each of its trainings; torch stops at 8 of a function, and then runs it as it is.
MOST_COMPILED = 256


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
        draw_for(self.layers)
        scores: Tensor = self.net(x)
        return scores
