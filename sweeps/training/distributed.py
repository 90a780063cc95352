"""Several processes that train one net together: each takes its rows of every batch, and all end with one net's state.

Every rank holds the whole net. A step sums the gradients of the ranks' rows, batch norm measures the whole batch,
and a dropout mask is drawn for the whole batch, of which a rank takes its rows: what is computed is what one device
computes, up to the order of sums. Rank 0 leads: it alone reads and writes the ledger, and decides what all then do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

T = TypeVar("T")
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes, by number; alone it does everything itself and waits for nobody.

    With several, torch.distributed is initialised, and each method that says so is called by all of them in turn.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank0(self) -> bool:
        """Return whether this is the rank that reads, writes and decides."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return this rank's rows of a batch of `count` pictures: as many as any other's, or one more."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def own_rows(self, indices: Indices, batch: int) -> Indices:
        """Return this rank's rows of each batch of `indices`, in order."""
        starts = range(0, len(indices), batch)
        return np.concatenate([indices[start : start + batch][self.rows(len(indices[start : start + batch]))]
                               for start in starts]) if self.size > 1 else indices  # fmt: skip

    def batches(self, indices: Indices, batch: int) -> Indices:
        """Return every size-th batch of `indices`, whole: what this rank evaluates, as one device would batch it."""
        chosen = np.arange(len(indices)) // batch % self.size == self.rank
        return indices[chosen] if self.size > 1 else indices

    # Called by all ranks -----------------------------------------------------------------------------------------

    def broadcast_from_rank0(self, function: Callable[[], T]) -> T:
        """Return on every rank what `function` returns on rank 0, which alone calls it."""
        if self.size == 1:
            return function()
        found: list[Any] = [function() if self.is_rank0 else None]
        distributed.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return cast(T, found[0])

    def broadcast_flags(self, function: Callable[[], tuple[bool, ...]], count: int) -> tuple[bool, ...]:
        """Do what `first` does for `count` booleans, cheaply enough for every step."""
        if self.size == 1:
            return function()
        found = torch.tensor(function() if self.is_rank0 else (False,) * count)
        distributed.broadcast(found, src=0)
        return tuple(found.tolist())

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all ranks' `tensor`, which stays as it is."""
        if self.size == 1:
            return tensor
        found = tensor.clone()
        distributed.all_reduce(found)
        return found

    def all_true(self, value: bool) -> bool:
        """Return whether `value` is true on all ranks."""
        return int(self.all_reduce_sum(torch.tensor(int(value)))) == self.size

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's `value`, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by the sum over the ranks, in one message; a missing one counts as zero."""
        if self.size == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def convert_batchnorm(self, model: nn.Sequential) -> nn.Sequential:
        """Return `model` with each batch norm measuring the whole batch; its state keeps its names."""
        if self.size > 1:
            for name, part in model.named_children():
                if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                    setattr(model, name, SyncBatchNorm(part))
        return model


ALONE = Ranks()


class SyncBatchNorm(nn.Module):
    """Batch norm over the rows of all ranks, on any device (torch's own SyncBatchNorm is for GPUs alone)."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        """Take over the parameters and running statistics of `norm`."""
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (n, c, ...) normalised, in training by mean and variance over the rows of all ranks."""
        mean, variance = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        if not self.training:
            return functional.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        y: Tensor
        y, whole_mean, whole_variance, count = _SyncBatchNormFunction.apply(x, self.weight, self.bias, self.eps)
        momentum = cast(float, self.momentum)
        with torch.no_grad():
            mean.lerp_(whole_mean, momentum)
            variance.lerp_(whole_variance * (count / (count - 1)), momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)
        return y


class _SyncBatchNormFunction(torch.autograd.Function):
    """Normalise by statistics of all ranks; the gradient of the input takes the sums over all ranks too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y, and the mean, the biased variance (c,) and the number of values a channel of the whole batch."""
        values = x.float()
        variance, mean = torch.var_mean(values, _others(x), correction=0)
        own = torch.cat([mean, variance, mean.new_tensor([x.numel() // x.shape[1]])])
        everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyone, own)
        means, variances, counts = torch.split(torch.stack(everyone), [len(mean), len(mean), 1], 1)
        count = counts.sum()
        # Chan, Golub and LeVeque 1979: of parts' means and variances, without a difference of large numbers.
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean).square()) * counts).sum(0) / count
        scale = (variance + eps).rsqrt()
        normal = (values - _wide(mean, x)) * _wide(scale, x)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return (normal * _wide(weight, x) + _wide(bias, x)).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients; those of weight and bias are this rank's part of the sum."""
        x, weight, mean, scale, count = ctx.saved_tensors
        normal, slope = (x.float() - _wide(mean, x)) * _wide(scale, x), gradient.float()
        bias, by_weight = slope.sum(_others(x)), (slope * normal).sum(_others(x))
        sums = torch.cat([bias, by_weight])
        distributed.all_reduce(sums)
        all_bias, all_weight = (sums / count).chunk(2)
        slope = slope - _wide(all_bias, x) - normal * _wide(all_weight, x)
        return (slope * _wide(weight * scale, x)).to(x.dtype), by_weight, bias, None


def _others(x: Tensor) -> list[int]:
    """Return the dimensions that are not the channels."""
    return [dim for dim in range(x.dim()) if dim != 1]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """Return one value a channel in a shape that meets x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
