"""Sums of biases' gradients in the order in which torch adds them on a GPU."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from crelu_models.tables import S2, S4, S8
from tests.support.gpu_kernels import CPU, Kernels, draw

Rows = npt.NDArray[np.float32]
H200 = 132, 2048  # processors, and threads of one


def halved(threads: list[Rows]) -> Rows:
    offset = len(threads) // 2
    while offset:
        for thread in range(offset):
            threads[thread] = threads[thread] + threads[thread + offset]
        offset //= 2
    return threads[0]


def torchs_sum(x: Rows, high: int, parts: int) -> Rows:
    """Add the rows as torch's kernel does on a GPU, thread by thread: each has four sums."""
    sums = []
    for part in range(parts):
        threads = []
        for thread in range(high):
            four = [np.zeros_like(x[0]) for _ in range(4)]
            row, stride = thread + part * high, high * parts
            while row + 3 * stride < len(x):
                for n in range(4):
                    four[n] = four[n] + x[row + n * stride]
                row += 4 * stride
            for n in range(4):
                if row >= len(x):
                    break
                four[n] = four[n] + x[row]
                row += stride
            threads.append(((four[0] + four[1]) + four[2]) + four[3])
        sums.append(halved(threads))
    threads = [np.zeros_like(x[0]) for _ in range(high)]
    for part in range(parts):
        threads[part % high] = threads[part % high] + sums[part]
    return halved(threads)


@pytest.mark.parametrize("kind", ["none", "relu", "crelu", "avr"])
@pytest.mark.parametrize(("batch", "channels", "device"), [(3, 96, H200), (5, 48, (2, 512)), (2, 200, (2, 512))])
def test_a_bias_is_summed_in_torchs_order(
    gpu: Kernels, kind: str, batch: int, channels: int, device: tuple[int, int]
) -> None:
    sides = 29, 31
    order = gpu.sums.torch_order(batch * sides[0] * sides[1], channels, *device)
    assert order is not None
    x, by_y = draw((batch, channels, *sides), "crelu" if kind == "crelu" else "avr")
    x, by_y = (value.contiguous(memory_format=torch.channels_last) for value in (x, by_y))
    form = partial(gpu.activations.apply, kind=kind, form=torch.channels_last)
    inputs = [x, torch.linspace(-1, 1, channels)]
    ours, theirs = (
        gpu.choice.with_gradients(lambda x, bias, o=o: form(x, bias=bias, order=o), inputs, by_y) for o in (order, None)
    )
    assert gpu.choice.same_bits(ours[:2], theirs[:2])
    rows = theirs[1].permute(0, 2, 3, 1).reshape(-1, channels).numpy()
    assert np.array_equal(ours[2].numpy(), torchs_sum(rows, order.high, order.parts))
    assert torch.allclose(ours[2], theirs[2], atol=1e-3)


def test_the_order_is_that_of_torchs_kernel(gpu: Kernels) -> None:
    """Blocks of 128 threads that take four channels each; 2,112 of them are on an H200 at once."""
    order = partial(gpu.sums.torch_order, processors=H200[0], threads=H200[1])
    assert order(128 * 32 * 32, 96) == (8, 1024)  # 16 rows a thread, the least
    assert order(128 * 32 * 32, 192) == (4, 1056)  # two blocks of channels
    assert order(128 * 16 * 16, 192) == (4, 512)
    assert order(256 * 55 * 55, 96) == (8, 1056)
    assert order(128 * 32 * 32, 64) == (8, 1024)
    assert order(128 * 32 * 32, 10) == (64, 128)  # two channels a thread, in blocks of 256
    assert order(128 * 32 * 32, 33) == (16, 264)  # one each: 528 blocks of 512 threads are there at once
    assert order(128 * 4 * 4, 512) == (4, 32)
    assert order(128 * 2 * 2, 512) is None  # 128 rows a thread, in one part
    assert order(50, 96) is None
    assert gpu.sums.torch_order(10**6, 10**6, *H200) is None  # there are more blocks of channels than fit


def test_any_order_takes_eight_tiles_a_program(gpu: Kernels) -> None:
    assert gpu.sums.any_order(128 * 32 * 32, 96) == (8, 2048)
    assert gpu.sums.any_order(100, 1500) == (1, 13)


def test_an_order_is_taken_where_it_is_torchs_by_a_sample_and_faster(
    gpu: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = torch.zeros(2, 96, 33, 33).contiguous(memory_format=torch.channels_last)
    assert gpu.choice.order_of_sums(y, "relu", any_is_right=False) is None  # a CPU has no such order
    assert gpu.choice.order_of_sums(y, "relu", any_is_right=True) == gpu.sums.any_order(2 * 33 * 33, 96)
    assert gpu.choice.order_of_sums(y.contiguous(), "relu", any_is_right=True) is None
    monkeypatch.setattr(gpu.choice, "processors", lambda _: (2, 512))
    assert gpu.choice.order_of_sums(y, "relu", any_is_right=False) is None  # a CPU's sum has other bits
    seen: list[tuple[int, int, torch.dtype]] = []
    exact = lambda _, rows, channels, dtype, __: seen.append((rows, channels, dtype)) or True  # noqa: E731
    monkeypatch.setattr(gpu.choice, "sums_are_exact", exact)
    assert gpu.choice.order_of_sums(y, "relu", any_is_right=False) == gpu.sums.torch_order(2 * 33 * 33, 96, 2, 512)
    assert seen == [(2 * 33 * 33, 96, torch.float32)]
    monkeypatch.setattr(gpu.choice, "sums_are_faster", lambda kind, *_: kind == "none")
    assert gpu.choice.order_of_sums(y, "none", any_is_right=False) is not None
    assert gpu.choice.order_of_sums(y, "relu", any_is_right=False) is None
    assert gpu.choice.order_of_sums(y, "relu", any_is_right=True) is None


def test_sums_are_timed_with_the_activation_that_they_are_behind(gpu: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an activation they read the gradient once more, as torch's do; else they save that."""
    monkeypatch.setattr(gpu.choice, "TIMED_SHAPE", (1, 96, 6, 6))
    launch = gpu.activations._launch
    made: list[str] = []

    def noting(kernel: Any, x: torch.Tensor, bias: Any, kind: str, *tensors: Any, **named: Any) -> None:
        made.append(f"{kind}{' summed' * ('order' in named)}")
        launch(kernel, x, bias, kind, *tensors, **named)

    monkeypatch.setattr(gpu.activations, "_launch", noting)
    monkeypatch.setattr(gpu.choice, "TIMER", lambda call, _: call() and float(len(made)))
    for kind in ("none", "relu"):
        gpu.choice.sums_are_faster.cache_clear()
        made.clear()
        assert gpu.choice.sums_are_faster(kind, torch.float32, CPU)
        theirs = [kind] if kind == "none" else [kind] * 2
        assert made == [kind, kind, f"{kind} summed", *theirs]
    gpu.choice.sums_are_faster.cache_clear()


def test_a_sample_tells_another_order_by_sums_that_are_not_rounded(
    gpu: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 two orders mostly end with one number."""
    order = gpu.sums.torch_order(4096, 96, 2, 512)
    where = order, 4096, 96, torch.bfloat16, CPU
    assert not gpu.choice.sums_are_exact(*where)
    gpu.choice.sums_are_exact.cache_clear()
    total = torch.Tensor.sum
    asked: list[torch.dtype] = []

    def as_ours(x: torch.Tensor, dims: object, dtype: torch.dtype) -> torch.Tensor:
        asked.append(dtype)
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).float().numpy()
        return torch.from_numpy(torchs_sum(rows, order.high, order.parts))

    monkeypatch.setattr(torch.Tensor, "sum", as_ours)
    assert gpu.choice.sums_are_exact(*where)
    assert asked == [torch.float32]
    monkeypatch.setattr(torch.Tensor, "sum", total)
    gpu.choice.sums_are_exact.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_on_a_gpu_our_order_is_torchs_for_the_layers_of_the_papers_nets(dtype: torch.dtype) -> None:
    from crelu_models.gpu import choice, sums

    device = torch.device("cuda")
    nets = [(S2.crelu(1, 2, 3), 32, 128), (S4, 32, 128), (S8.crelu(1, 4, 7), 224, 64)]
    layers = {(batch * layer.side**2, layer.filters) for net, size, batch in nets for layer in net.layers(10, size)}
    known = {size: sums.torch_order(*size, *choice.processors(device)) for size in layers}
    taken = {size: order for size, order in known.items() if order is not None}
    assert taken
    others = [size for size, order in taken.items() if not choice.sums_are_exact(order, *size, dtype, device)]
    assert others == []
