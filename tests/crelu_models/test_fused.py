"""Kernels of a GPU against the definitions, bit for bit: on a CPU by Triton's interpreter, on a GPU as they run."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from crelu_models import activations
from crelu_models.activations import activation, crelu

EXACT = ("crelu", "crelu_leaky", "avr")  # of ELU the interpreter has another exponential
CPU = torch.device("cpu")
PLAIN = torch.contiguous_format


@pytest.fixture(scope="module")
def fused() -> Iterator[ModuleType]:
    """Return the kernels for Triton's interpreter; what other tests import is compiled for a GPU."""
    name = "crelu_models.fused"
    sys.modules.pop(name, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(activations, "INTERPRETED", True)
        activations._kernels.cache_clear()
        module = importlib.import_module(name)
        assert module.INTERPRETED
        yield module
    sys.modules.pop(name)
    activations._kernels.cache_clear()


def both(function: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, weight)
    return y.detach(), gradient


def draw(shape: tuple[int, ...], kind: str = "crelu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return an input, and a gradient by its activation."""
    generator = torch.Generator().manual_seed(sum(shape))
    factor = 1 if kind == "avr" else 2
    x = torch.randn(shape, generator=generator)
    return x.to(dtype), torch.randn((shape[0], factor * shape[1], *shape[2:]), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_kernels_give_the_bits_of_the_definition(fused: ModuleType, kind: str, dtype: torch.dtype) -> None:
    assert fused.is_exact(kind, dtype, CPU)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_kernels_agree_on_every_number_of_two_bytes(fused: ModuleType, kind: str, dtype: torch.dtype) -> None:
    x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).view(64, 1024)
    if dtype == torch.bfloat16:  # of its subnormal numbers the interpreter makes others
        x = torch.where(x.abs() < 1000 * torch.finfo(dtype).tiny, 0, x)
    ours, theirs = fused.apply(x, kind, PLAIN), fused.DEFINITIONS[kind](x)
    assert torch.equal(fused._bits(ours), fused._bits(theirs))


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 1, 4, 4), (1, 96, 2, 2), (2, 1100), (3, 4, 6), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("kind", EXACT)
def test_kernels_take_any_shape_in_either_layout(fused: ModuleType, kind: str, shape: tuple[int, ...]) -> None:
    x, weight = draw(shape, kind)
    forms = [PLAIN, torch.channels_last] if len(shape) == 4 else [PLAIN]
    for form in forms:
        for by in (form, PLAIN):  # the gradient may come in the other layout
            inputs = x.contiguous(memory_format=form), weight.contiguous(memory_format=by)
            ours = both(partial(fused.apply, kind=kind, form=form), *inputs)
            theirs = both(fused.DEFINITIONS[kind], *inputs)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert all(value.is_contiguous(memory_format=form) for value in ours)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_kernel_of_elu_is_its_formula_and_is_taken_only_where_it_is_exact(fused: ModuleType) -> None:
    x, weight = draw((3, 5, 7, 3))
    ours = both(partial(fused.apply, kind="concat_elu", form=PLAIN), x, weight)
    theirs = both(fused.DEFINITIONS["concat_elu"], x, weight)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not fused.accepts(x, "concat_elu", PLAIN)
    assert torch.equal(activation("concat_elu", 5)(x), fused.DEFINITIONS["concat_elu"](x))


def test_a_kernel_that_does_not_compile_is_not_taken(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(fused, "_launch", refused)
    fused.is_exact.cache_clear()
    assert not fused.accepts(torch.randn(2, 3), "crelu", PLAIN)
    fused.is_exact.cache_clear()


def test_activations_take_the_kernels(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(fused, "apply", lambda x, kind, form: taken.append(kind) or x)
    monkeypatch.setattr(fused, "is_exact", lambda *_: True)
    for kind in ("crelu", "crelu_leaky", "concat_elu", "avr", "antirectifier", "relu", "elu"):
        activation(kind, 3)(torch.randn(2, 3, 4, 4))
    assert taken == ["crelu", "crelu_leaky", "concat_elu", "avr", "crelu"]


def test_what_the_kernels_do_not_take_is_left_to_torch(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_launch", None)
    monkeypatch.setattr(fused, "is_exact", lambda *_: True)
    x = torch.randn(4, 6, 5, 5)
    for odd in (x.double(), x[:, ::2], x[:0], x[0, 0, 0], x.permute(2, 3, 0, 1)):
        assert not fused.accepts(odd, "crelu", PLAIN)
    assert torch.equal(crelu(x.double()), fused.DEFINITIONS["crelu"](x.double()))
    assert torch.equal(torch.vmap(crelu)(x), torch.stack([torch.cat([e.relu(), (-e).relu()], 1) for e in x]))
    gradient = torch.func.grad(lambda value: crelu(value).pow(2).sum())(x)
    torch.testing.assert_close(gradient, 2 * x)
    compiled = torch.compile(crelu, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), fused.DEFINITIONS["crelu"](x))


@pytest.mark.parametrize("kind", ["crelu", "crelu_leaky", "concat_elu", "avr"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kernels_have_second_derivatives_and_batches_of_gradients(fused: ModuleType, kind: str) -> None:
    x, weight = draw((2, 3, 4, 4), kind)
    gradients = []
    for function in (partial(fused.apply, kind=kind, form=PLAIN), fused.DEFINITIONS[kind]):
        leaf, by = x.clone().requires_grad_(), weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf), leaf, by, create_graph=True)
        second = torch.autograd.grad((first * x.cos()).sum(), (leaf, by), allow_unused=True, materialize_grads=True)
        batch = torch.stack([weight, -weight])
        (many,) = torch.autograd.grad(function(leaf), leaf, batch, is_grads_batched=True)
        gradients.append([first, *second, many])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_kernels_keep_what_the_next_layer_keeps_anyway(fused: ModuleType) -> None:
    x = torch.randn(2, 3, 4, 4).requires_grad_()
    for kind in ("crelu", "crelu_leaky", "avr"):
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=saved: k.append(t.data_ptr()) or t, lambda t: t):
            y = fused.apply(x, kind, PLAIN)
        assert saved == [(x if kind == "avr" else y).data_ptr()]


def test_kernels_under_autocast_keep_bf16(fused: ModuleType) -> None:
    conv = torch.nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = crelu(conv(x))
        assert torch.equal(y, fused.DEFINITIONS["crelu"](conv(x)))
    assert y.dtype == torch.bfloat16
    assert y.grad_fn is not None
    assert type(y.grad_fn).__name__ == "_FusedBackward"
    y.float().sum().backward()
    assert conv.weight.grad is not None
    assert math.isfinite(conv.weight.grad.sum().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [*EXACT, "concat_elu"])
def test_on_a_gpu_kernels_compile_and_give_the_bits_of_the_definition(kind: str, dtype: torch.dtype) -> None:
    from crelu_models import fused

    device = torch.device("cuda")
    # The exponential of a GPU's kernel library has no numbers below the normal ones: then torch's operations are taken.
    assert fused.is_exact(kind, dtype, device) or kind == "concat_elu"
    for x, weight, _ in fused.samples(kind, dtype, device):
        assert fused.agrees(activation(kind, x.shape[1]), kind, x, weight)
    x = torch.randn(8, 96, 17, 17, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert torch.equal(activation(kind, 96)(x), fused.DEFINITIONS[kind](x))
