"""SGD and Adam by torch's fused steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from sweeps.experiment.recipe import Recipe

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma and Ba, 2015


class Optimiser:
    """SGD with momentum, or Adam, by torch's fused steps; weight decay is coupled, on biases too (Torch7's habit).

    `state` holds its tensors by name, one a parameter, from the first step on. torch.optim's own classes load torch's
    compiler, a second of every worker's start, and take longer to gather what a step is about than these tensors.
    """

    def __init__(self, recipe: Recipe, parameters: list[nn.Parameter]) -> None:
        """Prepare to step all `parameters`."""
        self.recipe, self.parameters = recipe, parameters
        self.state: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        """Move every parameter along its gradient, by this learning rate and weight decay."""
        parameters: list[Tensor] = [*self.parameters]
        gradients = [each.grad for each in parameters if each.grad is not None]
        assert len(gradients) == len(parameters), "every parameter has its part in the scores"
        if self.recipe.optimiser == "adam":
            self._adam(parameters, gradients, rate, decay)
        else:
            self._sgd(parameters, gradients, rate, decay)

    def _adam(self, parameters: list[Tensor], gradients: list[Tensor], rate: float, decay: float) -> None:
        if not self.state:
            self.state["step"] = [torch.zeros((), device=each.device) for each in parameters]
            self.state |= {name: [torch.zeros_like(each) for each in parameters] for name in ("exp_avg", "exp_avg_sq")}
        steps, means, squares = self.state["step"], self.state["exp_avg"], self.state["exp_avg_sq"]
        adam(
            parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False, beta1=BETAS[0],
            beta2=BETAS[1], lr=rate, weight_decay=decay, eps=EPSILON, maximize=False,
        )  # fmt: skip

    def _sgd(self, parameters: list[Tensor], gradients: list[Tensor], rate: float, decay: float) -> None:
        # Without buffers this is the first step, which begins them with the gradients.
        buffers: list[Tensor | None] = [*self.state.get("momentum_buffer", [None] * len(parameters))]
        sgd(
            parameters, gradients, buffers, fused=True, weight_decay=decay, momentum=self.recipe.momentum, lr=rate,
            dampening=self.recipe.dampening, nesterov=False, maximize=False,
        )  # fmt: skip
        if self.recipe.momentum:
            self.state["momentum_buffer"] = [each for each in buffers if each is not None]

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the tensors of a checkpoint, by index/name; buffers take their parameter's layout."""
        names = sorted({name.partition("/")[2] for name in tensors})
        self.state = {name: [] for name in names}
        for name in names:
            for index, parameter in enumerate(self.parameters):
                value = tensors[f"{index}/{name}"]
                same = value.shape == parameter.shape  # Adam's count of steps is a scalar
                there = torch.empty_like(parameter).copy_(value) if same else value.to(parameter.device)
                self.state[name].append(there.detach())
