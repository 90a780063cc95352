"""Processes that train one net together: each takes its rows of every batch, and all hold the same state.

Every rank holds the whole net. A step sums the gradients of all ranks, batch norm measures the whole batch, and each
rank draws the dropout mask of the whole batch and uses its rows of it. The result is that of one device, up to the
order of sums. Rank 0 alone reads and writes the ledger, and decides what all ranks do next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from crelu_data.datasets import Ints
from sweeps.store.checkpoint import digest

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Process number `rank` of `size` that train together; a single one waits for nobody.

    With several, torch.distributed is initialised, and all ranks call the collective methods below in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank0(self) -> bool:
        """Return whether this is the rank that reads, writes and decides."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return this rank's rows of a batch of `count` pictures; ranks differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def rows_of_batches(self, indices: Ints, batch: int) -> Ints:
        """Return this rank's rows of each batch of `indices`, in order: what it trains on."""
        if self.size == 1:
            return indices
        batches = [indices[start : start + batch] for start in range(0, len(indices), batch)]
        rows: Ints = np.concatenate([part[self.rows(len(part))] for part in batches])
        return rows

    def full_batches(self, indices: Ints, batch: int) -> Ints:
        """Return every size-th batch of `indices`: what this rank evaluates, batched as on one device."""
        if self.size == 1:
            return indices
        local: Ints = indices[np.arange(len(indices)) // batch % self.size == self.rank]
        return local

    # Collectives

    def broadcast_from_rank0(self, function: Callable[[], T]) -> T:
        """Return on every rank what `function` returns on rank 0; the others do not call it."""
        if self.size == 1:
            return function()
        values: list[Any] = [function() if self.is_rank0 else None]
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return cast(T, values[0])

    def broadcast_flags(self, function: Callable[[], tuple[bool, ...]], count: int) -> tuple[bool, ...]:
        """Return `broadcast_from_rank0(function)` for `count` booleans, cheaply enough for every step."""
        if self.size == 1:
            return function()
        flags = torch.tensor(function() if self.is_rank0 else (False,) * count)
        distributed.broadcast(flags, src=0)
        return tuple(flags.tolist())

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all ranks; with several, as a new tensor."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def all_true(self, value: bool) -> bool:
        """Return whether `value` is true on all ranks."""
        return int(self.all_reduce_sum(torch.tensor(int(value)))) == self.size

    def all_gather(self, value: T) -> list[T]:
        """Return the `value` of every rank, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over the ranks, in one message; a missing one counts as zero."""
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

    def compare_buffers(self, model: nn.Module) -> None:
        """Raise ValueError where a buffer of a model differs between the ranks; those of batch norms they share.

        Each rank would train a net of its own, as where a layer keeps statistics of its pictures.
        """
        if self.size == 1:
            return
        first, *others = self.all_gather(_buffer_digests(model))
        for name, value in first.items():
            if any(other.get(name) != value for other in others):
                raise ValueError(
                    f"ranks cannot share this net: each changes the buffer {name} by its own rows of a batch; train it "
                    "on one rank"
                )

    # Modules

    def convert_batchnorm(self, model: nn.Module) -> nn.Module:
        """Return `model` with batch norm over the rows of all ranks; its layers stay, and its state keeps its names.

        ValueError for a batch norm that has no weights, does not count its batches, or has a forward pass of its own.
        """
        if self.size == 1:
            return model
        for name, layer in model.named_modules():
            if not isinstance(layer, _BatchNorm) or isinstance(layer, nn.SyncBatchNorm):
                continue
            if getattr(layer.forward, "__func__", None) is not _BatchNorm.forward:
                raise ValueError(
                    f"ranks cannot share {name or 'the model'}: it is a {type(layer).__name__}, whose forward pass is "
                    "not that of torch's batch norm; train this net on one rank"
                )
            if not (layer.affine and layer.track_running_stats and layer.momentum is not None):
                raise ValueError(
                    f"ranks share batch norms that have weights, running statistics and a momentum, not {layer}"
                )
            # The layer stays itself: a model that asks for its class, as to freeze it, has the same answer.
            layer.forward = MethodType(_batch_norm_of_ranks, layer)  # type: ignore[method-assign]
        return model


ALONE = Ranks()


def _batch_norm_of_ranks(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Return x (n, c, ...) normalised; in training by mean and variance over the rows of all ranks.

    It works on any device; torch's own SyncBatchNorm needs GPUs.
    """
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    running_mean = cast(Tensor, norm.running_mean)
    running_variance = cast(Tensor, norm.running_var)
    if not norm.training:
        return functional.batch_norm(x, running_mean, running_variance, norm.weight, norm.bias, False, 0.0, norm.eps)
    y, mean, variance, count = _SyncBatchNormFunction.apply(x, norm.weight, norm.bias, norm.eps)
    momentum = cast(float, norm.momentum)
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance * (count / (count - 1)), momentum)
        cast(Tensor, norm.num_batches_tracked).add_(1)
    return cast(Tensor, y)


BATCH_NORM_FUNCTIONS = (functional.batch_norm, torch.batch_norm)  # their sixth argument is `training`


class NoBatchNorm(TorchFunctionMode):
    """Context of a pass in training on a part of a batch, in which a batch norm by function is an error.

    It would measure that part, and the net would be another one; ValueError says so.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what `func` returns, unless it normalises by the statistics of what it reads."""
        kwargs = kwargs or {}
        if func in BATCH_NORM_FUNCTIONS and kwargs.get("training", args[5] if len(args) > 5 else False):
            raise ValueError(
                "this net calls functional.batch_norm, which would measure a part of the batch alone: train it on one "
                "rank and in undivided steps, or build it of torch's batch norm modules"
            )
        return func(*args, **kwargs)


@contextmanager
def constant_buffers(model: nn.Module) -> Iterator[None]:
    """Watch a pass in training on a part of a batch: ValueError where it changes a buffer of the model.

    Each part would change it again, and by its own pictures: the net would be another one.
    """
    before = _buffer_digests(model)
    yield
    for name, value in _buffer_digests(model).items():
        if before.get(name) != value:
            raise ValueError(
                f"this net changes the buffer {name} in training, and so in each part of a batch that does not fit in "
                "memory: give a trial more memory, or train other cells by a smaller --set recipe.batch=N"
            )


def _buffer_digests(model: nn.Module) -> dict[str, str]:
    """Return the digest of each buffer of a model by its name, without sparse ones and those of batch norms."""
    normed = {id(value) for layer in model.modules() if isinstance(layer, _BatchNorm) for value in layer.buffers()}
    return {
        name: digest({name: value})
        for name, value in model.named_buffers()
        if id(value) not in normed and value.layout == torch.strided
    }


class _SyncBatchNormFunction(torch.autograd.Function):
    """Normalisation by statistics of all ranks; the gradient of the input sums over all ranks too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y; and of the whole batch mean and biased variance (c,), and the number of values per channel."""
        values = x.float()
        variance, mean = torch.var_mean(values, _not_channels(x), correction=0)
        # The number is written by a kernel: a copy from the host would wait for a GPU.
        local = torch.cat([mean, variance, mean.new_full((1,), x.numel() // x.shape[1])])
        gathered = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, local)
        means, variances, counts = torch.split(torch.stack(gathered), [len(mean), len(mean), 1], 1)
        count = counts.sum()
        # Chan, Golub and LeVeque 1979: from the means and variances of parts, without differences of large numbers.
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean).square()) * counts).sum(0) / count
        scale = (variance + eps).rsqrt()
        normal = (values - _per_channel(mean, x)) * _per_channel(scale, x)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        y = (normal * _per_channel(weight, x) + _per_channel(bias, x)).to(x.dtype)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients; those of weight and bias are this rank's term of the sum."""
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (x.float() - _per_channel(mean, x)) * _per_channel(scale, x)
        slope = gradient.float()
        by_bias = slope.sum(_not_channels(x))
        by_weight = (slope * normal).sum(_not_channels(x))
        sums = torch.cat([by_bias, by_weight])
        distributed.all_reduce(sums)
        mean_by_bias, mean_by_weight = (sums / count).chunk(2)
        slope = slope - _per_channel(mean_by_bias, x) - normal * _per_channel(mean_by_weight, x)
        return (slope * _per_channel(weight * scale, x)).to(x.dtype), by_weight, by_bias, None


def _not_channels(x: Tensor) -> list[int]:
    """Return the dimensions that are not the channels."""
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return one value per channel in a shape that broadcasts against x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
