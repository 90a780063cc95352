"""Which kernels a GPU takes: those that a sample shows to have torch's bits there, and a timing to be faster.

Where a bit differs, or a kernel does not compile, torch's operations are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from crelu_models.gpu.activations import DEFINITIONS, SINGLE, along_channels, apply, sum_of_rows
from crelu_models.gpu.dropout import dropped, torch_dropped
from crelu_models.gpu.language import BLOCK, INTERPRETED
from crelu_models.gpu.pooling import Window, max_pool, torch_pool
from crelu_models.gpu.sums import Order, any_order, torch_order

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
# Of samples and timings, as of many layers: a kernel is compiled anew for other widths of its tile.
CHANNELS = 96
TIMED_SHAPE = (128, CHANNELS, 32, 32)
SLEEP_CYCLES = 10_000_000  # some 5 ms, in which what is timed is launched
LARGEST_WINDOW = 3
LONGEST_ROW = 65535 * BLOCK  # a GPU has so many programs side by side


def accepts(x: Tensor, kind: str, form: torch.memory_format) -> bool:
    """Return whether the kernels take x: a known type, in one piece, and of a kind in which they are exact and fast."""
    if x.dtype not in FLOATS or x.dim() < 2 or not x.numel() or not x.is_contiguous(memory_format=form):
        return False
    if form == torch.contiguous_format and x[0].numel() > LONGEST_ROW:
        return False
    return is_exact(kind, x.dtype, x.device, form) and is_faster(kind, x.dtype, x.device)


def accepts_bias(kind: str, dtype: torch.dtype, device: torch.device, form: torch.memory_format) -> bool:
    """Return whether one kernel adds a conv's bias to the output, in this layout, and takes the activation."""
    if kind not in DEFINITIONS or dtype not in FLOATS:
        return False
    exact = adds_bias_apart(dtype, device) and is_exact(kind, dtype, device, form, biased=True)
    # A bias alone is added as torch adds it: what may be faster is its gradient.
    return exact and (kind == "none" or is_faster(kind, dtype, device, biased=True))


def accepts_dropout(x: Tensor, rectified: bool) -> bool:
    """Return whether the kernels drop a part of x, or of its positive part: of a known type, and in one piece."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if x.dtype not in FLOATS or not x.numel() or not (last or x.is_contiguous()):
        return False
    return dropout_is_exact(rectified, x.dtype, x.device) and dropout_is_faster(rectified, x.dtype, x.device)


@cache
def dropout_is_exact(rectified: bool, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels of dropout give torch's bits on a sample at several rates, value and gradient."""
    try:
        x, by_y, _ = sample("relu", dtype, device, torch.channels_last)
        mask = (torch.arange(x.numel()) % 3 > 0).view(x.shape).to(x).contiguous(memory_format=torch.channels_last)
        with _usual(device):
            return all(
                same_bits(*(with_gradients(partial(form, mask=mask, rate=rate, rectified=rectified), [x], by_y)
                            for form in (dropped, torch_dropped)))
                for rate in (0.1, 0.3, 0.4, 0.5)
            )  # fmt: skip
    except Exception:  # as above
        return False


@cache
def dropout_is_faster(rectified: bool, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels of dropout take less time than torch's, forward and backward, on one shape."""
    if TIMER is None:
        return True
    try:
        mask = _last(torch.ones(TIMED_SHAPE, dtype=dtype, device=device))
    except torch.OutOfMemoryError:
        return False
    ours, theirs = (partial(form, mask=mask, rate=0.5, rectified=rectified) for form in (dropped, torch_dropped))
    return _beats(ours, theirs, dtype, device)


def order_of_sums(y: Tensor, kind: str, any_is_right: bool) -> Order | None:
    """Return the order in which our kernels sum the gradient of a bias that is added to y; None where torch sums it.

    An activation of a kind is behind it. It is torch's order, unless any is right: then one of ours.
    """
    if y.dim() != 4 or not y.is_contiguous(memory_format=torch.channels_last):
        return None
    channels = y.shape[1]
    rows = y.numel() // channels
    order = any_order(rows, channels) if any_is_right else torch_order(rows, channels, *processors(y.device))
    if order is None or not (any_is_right or sums_are_exact(order, rows, channels, y.dtype, y.device)):
        return None
    return order if sums_are_faster(kind, y.dtype, y.device) else None


@cache
def processors(device: torch.device) -> tuple[int, int]:
    """Return the number of a GPU's processors, and of the threads that one of them has; without a GPU none."""
    if device.type != "cuda":
        return 0, 0
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.max_threads_per_multi_processor


@cache
def sums_are_exact(order: Order, rows: int, channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether sums in an order have torch's bits on drawn gradients of this size, before they are rounded."""
    try:
        with _usual(device):
            drawn = torch.Generator(device).manual_seed(0)
            by_y = _last(torch.randn((rows, channels, 1, 1), generator=drawn, device=device).to(dtype))
            ours = sum_of_rows(by_y, order, torch.float32)
            return same_bits([ours], [by_y.sum((0, 2, 3), dtype=torch.float32)])
    except Exception:  # as above, or memory has run out
        return False


@cache
def sums_are_faster(kind: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether sums of the gradients of biases take less time in the activation's pass, on one shape.

    Without an activation they are that pass, and save no other one.
    """

    def ours(x: Tensor, bias: Tensor) -> Tensor:
        return apply(x, kind, torch.channels_last, bias, order)

    def theirs(x: Tensor, bias: Tensor) -> Tensor:
        return apply(x, kind, torch.channels_last, bias)

    rows = math.prod(TIMED_SHAPE) // CHANNELS
    order = torch_order(rows, CHANNELS, *processors(device)) or any_order(rows, CHANNELS)
    return _beats(ours, theirs, dtype, device, biased=True)


def accepts_pool(x: Tensor, window: Window) -> bool:
    """Return whether the kernels take a max pooling of x: maps in one piece with channels last, and small windows."""
    if x.dtype not in FLOATS or x.dim() != 4 or not x.numel() or window.side > LARGEST_WINDOW:
        return False
    if x.stride(1) != 1 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if min(map(window.outputs, x.shape[2:])) < 1:  # torch says that
        return False
    return pool_is_exact(window, x.dtype, x.device) and pool_is_faster(window, x.dtype, x.device)


@cache
def is_exact(
    kind: str, dtype: torch.dtype, device: torch.device, form: torch.memory_format, biased: bool = False
) -> bool:
    """Return whether the kernels give the bits of the definition on a sample in a layout, value and gradient."""
    try:
        x, weight, bias = sample(kind, dtype, device, form)
        return agrees(partial(apply, kind=kind, form=form), kind, x, weight, bias if biased else None)
    except Exception:  # the kernel does not compile here: torch's operations take its place
        return False


@cache
def adds_bias_apart(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device's convolution rounds its result before it adds the bias, and sums the bias's gradient.

    cuDNN on a GPU rounds first, for each shape. oneDNN on a CPU adds the bias first.
    """
    drawn = torch.Generator().manual_seed(0)
    shapes = (4, 16, 9, 9), (24, 16, 3, 3), (24,), (4, 24, 9, 9)
    with _usual(device):
        x, weight, bias, by_y = (_last(torch.randn(shape, generator=drawn).to(device, dtype)) for shape in shapes)
        whole = with_gradients(lambda bias: functional.conv2d(x, weight, bias, padding=1), [bias], by_y)
        y = functional.conv2d(x, weight, padding=1)
    return same_bits([y + along_channels(bias, y), by_y.sum((0, 2, 3))], whole)


@cache
def pool_is_exact(window: Window, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels of max pooling give torch's bits on samples, value and gradient."""
    try:
        with _usual(device):
            return all(
                same_bits(*(with_gradients(partial(form, window=window), [x], by_y) for form in (max_pool, torch_pool)))
                for x, by_y in pool_samples(window, dtype, device)
            )
    except Exception:  # as above, or torch refuses such a window
        return False


def pool_samples(window: Window, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and gradients by the output: drawn ones with ties, zeros, infinities and NaN, of several sides."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((9, 7), (8, 12)):
        x = torch.randn((3, CHANNELS, height, width), generator=generator).mul(2).round().div(2)
        x[:, ::4] = torch.rand(x[:, ::4].shape, generator=generator)
        x[:, 1::4].relu_()
        x.view(-1)[::41] = math.nan
        x.view(-1)[::37] = math.inf
        if device.type != "cpu":  # a CPU gives the gradient of a window of -inf alone to its first position
            x.view(-1)[::11] = -math.inf
            x[0] = -math.inf
        shape = (3, CHANNELS, window.outputs(height), window.outputs(width))
        by_y = torch.randn(shape, generator=generator)
        by_y.view(-1)[::29] = 3e38
        yield _last(x.to(device, dtype)), _last(by_y.to(device, dtype))


@cache
def pool_is_faster(window: Window, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the kernels of max pooling take less time than torch's, forward and backward, on one shape."""
    ours, theirs = (partial(form, window=window) for form in (max_pool, torch_pool))
    return _beats(ours, theirs, dtype, device)


@cache
def is_faster(kind: str, dtype: torch.dtype, device: torch.device, biased: bool = False) -> bool:
    """Return whether the kernels take less time than the definition, forward and backward, on one shape."""

    def theirs(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return DEFINITIONS[kind](x if bias is None else x + along_channels(bias, x))

    def ours(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(x, kind, torch.channels_last, bias)

    return _beats(ours, theirs, dtype, device, biased)


def _beats(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    dtype: torch.dtype,
    device: torch.device,
    biased: bool = False,
) -> bool:
    """Return whether a function of a map, and of a bias, takes less time than another, forward and backward."""
    if TIMER is None:
        return True
    with _usual(device):
        shapes = [TIMED_SHAPE, TIMED_SHAPE[1:2]] if biased else [TIMED_SHAPE]
        try:
            leaves = [_last(torch.zeros(shape, dtype=dtype, device=device)).requires_grad_() for shape in shapes]
            weight = torch.zeros_like(theirs(*leaves))
            calls = [partial(_both_ways, form, leaves, weight) for form in (ours, theirs)]
            times = [TIMER(call, device) for call in calls]
        except torch.OutOfMemoryError:
            return False
    return times[0] < times[1]


@contextmanager
def _usual(device: torch.device) -> Iterator[None]:
    """Compute with gradients and without autocast in this block. A GPU's autocast gives sums in fp32."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def _both_ways(function: Callable[..., Tensor], leaves: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    """Go forward and backward; return the gradients."""
    return torch.autograd.grad(function(*leaves), leaves, weight)


def _last(x: Tensor) -> Tensor:
    """Return a map with its channels last, and any other tensor as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Return a GPU's time of five calls, without that of their launches: a graph has none."""
    with torch.cuda.device(device):
        call()
        torch.cuda.synchronize()  # others of a pack have streams of their own, and work there
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(5):
            call()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end))


# Taken by tests for a timer of their own. The interpreter's speed says nothing.
TIMER: Callable[[Callable[[], object], torch.device], float] | None = None if INTERPRETED else _milliseconds


def sample(
    kind: str, dtype: torch.dtype, device: torch.device, form: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an input, a gradient and a bias: drawn ones, and zeros, infinities, NaN, small and large ones.

    The exponential of -100 is smaller than any normal number.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, CHANNELS, 9, 7), generator=generator) * torch.logspace(-3, 1, CHANNELS)[:, None, None]
    weight = torch.randn((4, CHANNELS if kind in SINGLE else 2 * CHANNELS, 9, 7), generator=generator)
    bias = torch.randn(CHANNELS, generator=generator) * torch.logspace(-5, 1, CHANNELS)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-7, -1e-7, 3e38, -3e38, 1e-45])
    for tensor, every in ((x, 5), (weight, 7)):
        some = tensor.view(-1)[::every]
        some.copy_(special.repeat(-(-len(some) // len(special)))[: len(some)])
    x.view(-1)[3::55] = -100.0
    x, weight = (value.to(device, dtype).contiguous(memory_format=form) for value in (x, weight))
    return x, weight, bias.to(device, dtype)


def agrees(form: Callable[..., Tensor], kind: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether value and gradients by a form of a kind are those of its definition, bit for bit."""
    with _usual(x.device):
        x, weight = (value.clone(memory_format=torch.preserve_format) for value in (x, weight))
        if bias is None:
            ours = with_gradients(form, [x], weight)
            theirs = with_gradients(DEFINITIONS[kind], [x], weight)
        else:
            ours = with_gradients(lambda x, bias: form(x, bias=bias), [x, bias.clone()], weight)
            theirs = with_gradients(DEFINITIONS[kind], [x + along_channels(bias, x)], weight)
            theirs.append(theirs[1].sum((0, 2, 3)))
    return same_bits(ours, theirs)


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Return a function's value at some inputs, and its gradients by them from this gradient by the value."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, weight)]


def same_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Return whether tensors are equal bit for bit."""
    return all(torch.equal(_bits(a), _bits(b)) for a, b in zip(ours, theirs, strict=True))


def _bits(x: Tensor) -> Tensor:
    """Return the bits of x as integers, with one zero and one NaN: a CPU and a GPU give these different signs."""
    integer = torch.int16 if x.element_size() == 2 else torch.int32
    return torch.where(x.isnan(), math.nan, 0 + x).to(x.dtype).contiguous().view(integer)
