"""Weights in the type in which a net computes, cast all at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crelu_models.chain import Chain
from sweeps.training.gpu.compiled import Compiled

PRODUCTS = (nn.Conv2d, nn.Linear)  # autocast takes these in its own type


class CastNet:
    """A net called with copies of its weights in the type of its products, in place of those that autocast makes.

    Values and gradients have autocast's bits. It takes a kernel for each weight, and one for each gradient on its way
    back: of the 250 operations of a step of VGG these are 60. Layers of a net that is not ours are left to autocast.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype | None) -> None:
        """Copy the weights and biases of all layers of `net` that are products; without a type none."""
        self.net = net
        parameters: dict[str, Tensor] = {}
        if dtype is not None and isinstance(net, Chain | Compiled):
            parameters = {
                f"{name}.{key}": value
                for name, module in net.named_modules()
                if type(module) in PRODUCTS
                for key, value in module.named_parameters(recurse=False)
                if value.requires_grad and value.dtype == torch.float32
            }
        self.parameters = [*parameters.values()]
        self.copies = {name: torch.empty_like(value, dtype=dtype) for name, value in parameters.items()}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores of the net with its present weights."""
        scores: Tensor
        if not self.copies:
            scores = self.net(images)
            return scores
        with torch.no_grad():
            torch._foreach_copy_([*self.copies.values()], self.parameters)
        for copy in self.copies.values():
            copy.requires_grad_().grad = None
        scores = torch.func.functional_call(self.net, self.copies, (images,))
        return scores

    def give_gradients(self) -> None:
        """Set the gradients of the weights to those of their copies."""
        cast = [copy.grad for copy in self.copies.values() if copy.grad is not None]
        gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        if cast:
            torch._foreach_copy_(gradients, cast)
        for parameter, copy, gradient in zip(self.parameters, self.copies.values(), gradients, strict=True):
            parameter.grad, copy.grad = gradient, None
