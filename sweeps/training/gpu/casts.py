"""Weights in the type in which a net computes, cast all at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crelu_models.chain import Chain
from sweeps.training.evaluate import autocast_type

PRODUCTS = (nn.Conv2d, nn.Linear)  # autocast takes these in its own type


class Casts:
    """Copies of a net's weights in the type of its products, in place of those that autocast makes one by one.

    Values and gradients have autocast's bits. It takes a kernel for each weight, and one for each gradient on its way
    back: of the 250 operations of a step of VGG these are 60.
    """

    def __init__(self, model: Chain, dtype: torch.dtype) -> None:
        """Copy the weights and biases of all layers of `model` that are products."""
        self.model = model
        parameters = {
            f"{name}.{key}": value
            for name, module in model.named_children()
            if type(module) in PRODUCTS
            for key, value in module.named_parameters(recurse=False)
            if value.requires_grad and value.dtype == torch.float32
        }
        self.parameters: list[Tensor] = [*parameters.values()]
        self.copies = {name: torch.empty_like(value, dtype=dtype) for name, value in parameters.items()}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores of the net with its present weights, cast."""
        with torch.no_grad():
            torch._foreach_copy_([*self.copies.values()], self.parameters)
        for copy in self.copies.values():
            copy.requires_grad_().grad = None
        scores: Tensor = torch.func.functional_call(self.model, self.copies, (images,))
        return scores

    def give_gradients(self) -> None:
        """Set the gradients of the weights to those of their copies."""
        cast = [copy.grad for copy in self.copies.values() if copy.grad is not None]
        gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        torch._foreach_copy_(gradients, cast)
        for parameter, copy, gradient in zip(self.parameters, self.copies.values(), gradients, strict=True):
            parameter.grad, copy.grad = gradient, None


def casts_of(model: nn.Module, precision: str) -> Casts | None:
    """Return the casts of a net of ours; None where autocast casts nothing, or may find other layers in the model."""
    dtype = autocast_type(precision)
    return Casts(model, dtype) if dtype is not None and isinstance(model, Chain) else None
