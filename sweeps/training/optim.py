"""Optimisers of the recipes, SGD, Adam and AdamW, by torch's fused steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from sweeps.experiment.recipe import Recipe

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma and Ba, 2015


class Optimiser:
    """SGD with momentum, Adam, or AdamW; weight decay is that of biases too (Torch7's habit).

    It is part of the gradient, and by AdamW a step of its own (Loshchilov and Hutter, 2019).

    `state` holds its tensors by name, one per parameter, from the first step on. torch.optim's own classes load torch's
    compiler, a second of every worker's start, and take longer to prepare a step than to step these nets' tensors.
    """

    def __init__(self, recipe: Recipe, parameters: list[nn.Parameter]) -> None:
        """Prepare to step all `parameters`."""
        self.recipe = recipe
        self.parameters = parameters
        self.state: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        """Move every parameter along its gradient, by this learning rate and weight decay."""
        parameters: list[Tensor] = [*self.parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert len(gradients) == len(parameters), "the scores depend on every parameter"
        if self.recipe.optimiser in ("adam", "adamw"):
            self._adam(parameters, gradients, rate, decay)
        else:
            self._sgd(parameters, gradients, rate, decay)

    def _adam(self, parameters: list[Tensor], gradients: list[Tensor], rate: float, decay: float) -> None:
        if not self.state:
            self.state["step"] = [torch.zeros((), device=parameter.device) for parameter in parameters]
            for name in ("exp_avg", "exp_avg_sq"):
                self.state[name] = [torch.zeros_like(parameter) for parameter in parameters]
        adam(
            parameters, gradients, self.state["exp_avg"], self.state["exp_avg_sq"], [], self.state["step"],
            fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=rate, weight_decay=decay, eps=EPSILON,
            maximize=False, decoupled_weight_decay=self.recipe.optimiser == "adamw",
        )  # fmt: skip

    def _sgd(self, parameters: list[Tensor], gradients: list[Tensor], rate: float, decay: float) -> None:
        # Before the first step there are no buffers; it makes them of its gradients.
        buffers: list[Tensor | None] = [*self.state.get("momentum_buffer", [None] * len(parameters))]
        sgd(
            parameters, gradients, buffers, fused=True, weight_decay=decay, momentum=self.recipe.momentum, lr=rate,
            dampening=self.recipe.dampening, nesterov=self.recipe.nesterov, maximize=False,
        )  # fmt: skip
        if self.recipe.momentum:
            self.state["momentum_buffer"] = [buffer for buffer in buffers if buffer is not None]

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue with the tensors of a checkpoint, by index/name; buffers get the layout of their parameters."""
        self.state = {name: [] for name in sorted({key.partition("/")[2] for key in tensors})}
        for name, values in self.state.items():
            for index, parameter in enumerate(self.parameters):
                value = tensors[f"{index}/{name}"]
                # Adam's count of steps is a scalar.
                buffer = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                values.append(buffer.detach().to(parameter.device))
