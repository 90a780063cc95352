"""Activations, with a bias and without, and max pooling: our kernels beside their definitions and a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, replayed, section_line


def activations(bench: Bench) -> None:
    """Measure activations, with a bias and without, and max pooling, forward and backward in a graph.

    Ours stand beside the definition, and against the rate of a copy.
    """
    for name, shape in bench.activations:
        with section_line(bench, "activations", f"{name} {shape}"):
            measure(bench, name, shape)


def measure(bench: Bench, name: str, shape: tuple[int, ...]) -> None:
    """Measure an activation or a pooling by name, on a map of this shape."""
    x = torch.randn(shape, device=bench.device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    by = pool_rival if name.startswith("max pool") else dropout_rival if name.endswith("dropout") else activation_rival
    rival = by(name, x)
    leaves = [value.requires_grad_() for value in rival.inputs]
    weight = torch.randn_like(rival.theirs(*leaves).detach())
    forms = [partial(both_ways, form, leaves, weight) for form in (rival.ours, rival.theirs)]
    eager = [bench.seconds(form) for form in forms]
    took = [bench.seconds(replayed(bench, form)) for form in forms]
    moved = rival.maps * x.nbytes + 2 * weight.nbytes + rival.kept
    bench.say(
        "activations", f"{name} {shape}", ms=1e3 * took[0], over_definition=took[1] / took[0],
        eager_over_definition=eager[1] / eager[0], copy_percent=100 * moved / took[0] / bench.copy,
        kernel=rival.kernel,
    )  # fmt: skip


def kernel_word(x: Tensor, is_taken: Callable[[], bool], is_exact: Callable[[], bool]) -> str:
    """Return whose kernel is taken for x, and why."""
    if not x.is_cuda:
        return "torch's: no GPU"
    return "ours" if is_taken() else "torch's: faster" if is_exact() else "torch's: other bits"


class Rival(NamedTuple):
    """Function of some inputs, by our kernels where these are taken and by torch's operations.

    Both passes together move its first input, a map, and the gradient by it `maps` times in all, what is kept between
    the passes, of `kept` bytes, and its output and the gradient by that. `kernel` says which is taken, and why.
    """

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    inputs: list[Tensor]
    maps: int
    kept: int
    kernel: str


def activation_rival(name: str, x: Tensor) -> Rival:
    """Return an activation by name; "bias" before it stands for that of the conv in front."""
    from crelu_models.activations import activation
    from crelu_models.gpu.activations import BY_INPUT, DEFINITIONS, apply
    from crelu_models.gpu.choice import accepts, accepts_bias, is_exact, order_of_sums

    kind = name.removeprefix("bias ")
    theirs = DEFINITIONS[kind]
    kept = (x if kind in BY_INPUT else theirs(x)).nbytes
    where = kind, x.dtype, x.device, torch.channels_last
    if kind == name:
        kernel = kernel_word(x, partial(accepts, x, kind, torch.channels_last), partial(is_exact, *where))
        return Rival(activation(kind, x.shape[1]), theirs, [x], 2, kept, kernel)

    def biased(x: Tensor, bias: Tensor) -> Tensor:
        return theirs(x + bias[:, None, None])

    def by_one_kernel(x: Tensor, bias: Tensor) -> Tensor:
        return apply(x, kind, torch.channels_last, bias, order)

    kernel = kernel_word(x, partial(accepts_bias, *where), partial(is_exact, *where, biased=True))
    order = order_of_sums(x, kind, any_is_right=False) if kernel == "ours" else None
    form, sums = by_one_kernel if kernel == "ours" else biased, "" if order is None else ", sums in torch's order"
    inputs = [x, x[0, :, 0, 0].clone()]
    if kind == "none":  # the gradient by x is that by y, and is read for the sum alone
        return Rival(form, biased, inputs, 1, 0, kernel + sums)
    # Torch's sum, the gradient by the bias, reads that by x once more.
    return Rival(form, biased, inputs, 3 if order is None else 2, kept, kernel + sums)


def pool_rival(name: str, x: Tensor) -> Rival:
    """Return a max pooling of such windows, "3/2" for 3 by 3 with stride 2, as our nets have them."""
    from crelu_models.gpu.choice import accepts_pool, pool_is_exact
    from crelu_models.gpu.pooling import Window, max_pool, torch_pool

    side, stride = map(int, name.split()[-1].split("/"))
    window = Window(side, stride, 0, ceil=side == 3)
    exact = partial(pool_is_exact, window, x.dtype, x.device)
    kernel = kernel_word(x, partial(accepts_pool, x, window), exact)
    ours, theirs = (partial(form, window=window) for form in (max_pool, torch_pool))
    kept = 2 * theirs(x).numel()  # a byte for each output, written and read
    return Rival(ours if kernel == "ours" else theirs, theirs, [x], 2, kept, kernel)


def dropout_rival(name: str, x: Tensor) -> Rival:
    """Return dropout by a mask that is drawn already; "relu" before it stands for that in front."""
    from crelu_models.gpu.choice import accepts_dropout, dropout_is_exact
    from crelu_models.gpu.dropout import dropped, torch_dropped

    rectified = name.startswith("relu")
    exact = partial(dropout_is_exact, rectified, x.dtype, x.device)
    kernel = kernel_word(x, partial(accepts_dropout, x, rectified), exact)
    mask = torch.ones_like(x)
    ours, theirs = (partial(form, mask=mask, rate=0.5, rectified=rectified) for form in (dropped, torch_dropped))
    return Rival(ours if kernel == "ours" else theirs, theirs, [x], 2 + rectified, 2 * mask.nbytes, kernel)


def both_ways(form: Callable[..., Tensor], leaves: Sequence[Tensor], weight: Tensor) -> None:
    """Go forward and backward."""
    torch.autograd.grad(form(*leaves), leaves, weight)
