"""Kernels of max pooling against torch's, bit for bit."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.support.gpu_kernels import CPU, TWO_BYTES, WINDOWS, Kernels


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pooling_gives_the_bits_of_torch(gpu: Kernels, window: tuple[int, int, int, bool]) -> None:
    window = gpu.pooling.Window(*window)
    assert gpu.choice.pool_is_exact(window, torch.float32, CPU)
    for dtype in TWO_BYTES:  # a CPU rounds after each addition, a GPU once, after the last
        for x, by_y in gpu.choice.pool_samples(window, dtype, CPU):
            y, by_x = gpu.choice.with_gradients(partial(gpu.pooling.max_pool, window=window), [x], by_y)
            wide = gpu.choice.with_gradients(partial(gpu.pooling.torch_pool, window=window), [x.float()], by_y.float())
            assert gpu.choice.same_bits([y, by_x], [value.to(dtype) for value in wide])
            assert all(value.is_contiguous(memory_format=torch.channels_last) for value in (y, by_x))
            assert y.shape == gpu.pooling.torch_pool(x, window).shape


def test_pooling_keeps_a_byte_for_each_output(gpu: Kernels) -> None:
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = gpu.pooling.max_pool(x, gpu.pooling.Window(2, 2, 0, False))
    assert [value.nbytes for value in saved] == [y.numel()]


def test_pooling_treats_nan_ties_infinities_and_zeros_as_a_gpu_does(gpu: Kernels) -> None:
    lowest = -math.inf
    rows = [[1.0, 1.0, math.nan, 2.0], [0.5, 1.0, 3.0, math.nan], [lowest] * 4, [lowest, lowest, lowest, 5.0]]
    x = torch.tensor(rows)[None, None]
    by_y = torch.tensor([[10.0, 20.0], [30.0, -0.0]])[None, None]
    y, by_x = gpu.choice.with_gradients(
        partial(gpu.pooling.max_pool, window=gpu.pooling.Window(2, 2, 0, False)), [x], by_y
    )
    assert str(y[0, 0].tolist()) == "[[1.0, nan], [-inf, 5.0]]"
    # The first of equal ones, the last NaN; of -inf alone none, but where the window holds the first position.
    expected = [[10.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 20.0], [0.0] * 4, [0.0, 0.0, 0.0, -0.0]]
    assert str(by_x[0, 0].tolist()) == str(expected)
    lowest_map, ones = torch.full((1, 1, 4, 4), lowest), torch.ones(1, 1, 2, 2)
    by_x = gpu.choice.with_gradients(
        partial(gpu.pooling.max_pool, window=gpu.pooling.Window(3, 2, 1, False)), [lowest_map], ones
    )[1]
    assert by_x.flatten().tolist() == [1.0] + [0.0] * 15
    # Added to nothing a zero keeps its sign, in a sum it loses it.
    peak = torch.zeros(1, 1, 5, 5)
    peak[0, 0, 2, 2] = peak[0, 0, 0, 0] = 1.0
    by_x = gpu.choice.with_gradients(
        partial(gpu.pooling.max_pool, window=gpu.pooling.Window(3, 2, 0, False)), [peak], -0.0 * ones
    )[1]
    assert [by_x[0, 0, n, n].signbit().item() for n in (0, 2)] == [True, False]
