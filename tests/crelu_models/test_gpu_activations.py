"""Kernels of activations against the definitions, bit for bit: on a CPU by Triton's interpreter, and on a GPU."""

import math
from functools import partial

import pytest
import torch

from crelu_models.activations import activation, crelu
from tests.support.gpu_kernels import CPU, EXACT, PLAIN, TWO_BYTES, Kernels, both, draw


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
@pytest.mark.parametrize("dtype", [*TWO_BYTES, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [*EXACT, "relu"])
def test_kernels_give_the_bits_of_the_definition(gpu: Kernels, kind: str, dtype: torch.dtype) -> None:
    for form in (PLAIN, torch.channels_last):
        assert gpu.choice.is_exact(kind, dtype, CPU, form)
        assert gpu.choice.is_exact(kind, dtype, CPU, form, biased=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", TWO_BYTES, ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_kernels_agree_on_every_number_of_two_bytes(gpu: Kernels, kind: str, dtype: torch.dtype) -> None:
    x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).view(64, 1024)
    if dtype == torch.bfloat16:  # of its subnormal numbers the interpreter makes others
        x = torch.where(x.abs() < 1000 * torch.finfo(dtype).tiny, 0, x)
    ours, theirs = gpu.activations.apply(x, kind, PLAIN), gpu.activations.DEFINITIONS[kind](x)
    assert torch.equal(gpu.choice._bits(ours), gpu.choice._bits(theirs))


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 1, 4, 4), (1, 96, 2, 2), (2, 1100), (3, 4, 6), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("kind", EXACT)
def test_kernels_take_any_shape_in_either_layout(gpu: Kernels, kind: str, shape: tuple[int, ...]) -> None:
    x, weight = draw(shape, kind)
    forms = [PLAIN, torch.channels_last] if len(shape) == 4 else [PLAIN]
    for form in forms:
        for by in (form, PLAIN):  # the gradient may come in the other layout
            inputs = x.contiguous(memory_format=form), weight.contiguous(memory_format=by)
            ours = both(partial(gpu.activations.apply, kind=kind, form=form), *inputs)
            theirs = both(gpu.activations.DEFINITIONS[kind], *inputs)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert ours[0].is_contiguous(memory_format=form)
            assert ours[1].is_contiguous(memory_format=by if kind == "avr" else form)


@pytest.mark.parametrize("kind", ["crelu", "crelu_leaky", "concat_elu", "avr"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kernels_have_second_derivatives_and_batches_of_gradients(gpu: Kernels, kind: str) -> None:
    x, weight = draw((2, 3, 4, 4), kind)
    gradients = []
    for function in (partial(gpu.activations.apply, kind=kind, form=PLAIN), gpu.activations.DEFINITIONS[kind]):
        leaf, by = x.clone().requires_grad_(), weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf), leaf, by, create_graph=True)
        second = torch.autograd.grad((first * x.cos()).sum(), (leaf, by), allow_unused=True, materialize_grads=True)
        batch = torch.stack([weight, -weight])
        (many,) = torch.autograd.grad(function(leaf), leaf, batch, is_grads_batched=True)
        gradients.append([first, *second, many])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_kernels_keep_what_the_next_layer_keeps_anyway(gpu: Kernels) -> None:
    x = torch.randn(2, 3, 4, 4).requires_grad_()
    for kind in ("crelu", "crelu_leaky", "avr"):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=saved: k.append(t.data_ptr()) or t, lambda t: t):
            y = gpu.activations.apply(x, kind, PLAIN)
        assert saved == [(x if kind == "avr" else y).data_ptr()]


def test_kernels_under_autocast_keep_bf16(gpu: Kernels) -> None:
    conv = torch.nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = crelu(conv(x))
        assert torch.equal(y, gpu.activations.DEFINITIONS["crelu"](conv(x)))
    assert y.dtype == torch.bfloat16
    assert y.grad_fn is not None
    assert type(y.grad_fn).__name__ == "_FusedBackward"
    y.float().sum().backward()
    assert conv.weight.grad is not None
    assert math.isfinite(conv.weight.grad.sum().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["relu", "avr"])
def test_a_bias_summed_in_another_order_is_near_torchs_sum_and_always_the_same(
    gpu: Kernels, kind: str, dtype: torch.dtype
) -> None:
    shape = (2, 12, 17, 19)  # of more rows than a program takes, and not a multiple of them
    x, by_y = (value.contiguous(memory_format=torch.channels_last) for value in draw(shape, "avr", dtype))
    bias = torch.linspace(-1, 1, 12).to(dtype)
    ours = gpu.sums.any_order(2 * 17 * 19, 12)
    forms = [
        partial(gpu.activations.apply, kind=kind, form=torch.channels_last, order=order) for order in (None, ours, ours)
    ]
    runs = [gpu.choice.with_gradients(lambda x, bias, form=form: form(x, bias=bias), [x, bias], by_y) for form in forms]
    assert gpu.choice.same_bits(runs[0][:2], runs[1][:2])
    assert gpu.choice.same_bits(runs[1], runs[2])
    exact = runs[0][1].double().sum((0, 2, 3))
    size = runs[0][1].double().abs().sum((0, 2, 3))
    assert runs[1][2].dtype == dtype
    assert ((runs[1][2].double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps + 1e-6 * size).all()


@pytest.mark.parametrize("kind", ["relu", "crelu", "crelu_leaky", "concat_elu", "avr"])
def test_a_gradient_has_the_layout_that_torch_gives_it(gpu: Kernels, kind: str) -> None:
    """The gradient of a conv's bias is a sum of it, whose order follows the layout."""
    for own in (torch.channels_last, PLAIN):
        x = torch.randn(2, 3, 4, 4).contiguous(memory_format=own)
        y = gpu.activations.DEFINITIONS[kind](x)
        whole = [torch.randn(y.shape).contiguous(memory_format=form) for form in (torch.channels_last, PLAIN)]
        for by_y in (*whole, torch.randn(2, y.shape[1], 1, 1).expand(y.shape)):
            ours = gpu.choice.with_gradients(partial(gpu.activations.apply, kind=kind, form=own), [x], by_y)
            theirs = gpu.choice.with_gradients(gpu.activations.DEFINITIONS[kind], [x], by_y)
            assert [value.stride() for value in ours] == [value.stride() for value in theirs]
            assert kind == "concat_elu" or gpu.choice.same_bits(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [*EXACT, "concat_elu"])
def test_on_a_gpu_kernels_compile_and_give_the_bits_of_the_definition(kind: str, dtype: torch.dtype) -> None:
    from crelu_models.gpu import activations, choice

    device = torch.device("cuda")
    # The exponential of a GPU's kernel library has no numbers below the normal ones: then torch's operations are taken.
    for form in (PLAIN, torch.channels_last):
        assert choice.is_exact(kind, dtype, device, form) or kind == "concat_elu"
        x, weight, _ = choice.sample(kind, dtype, device, form)
        assert choice.agrees(activation(kind, x.shape[1]), kind, x, weight)
    x = torch.randn(8, 96, 17, 17, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert torch.equal(activation(kind, 96)(x), activations.DEFINITIONS[kind](x))
