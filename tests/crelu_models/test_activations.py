"""CReLU against its definition, bit for bit, and the other activations against their formulas."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numba
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crelu_models import activations, kernels
from crelu_models.activations import AVR, CReLU, activation, crelu
from crelu_models.spec import ALIASES, CHANNEL_FACTOR

INF, NAN = math.inf, math.nan
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, INF, -INF, NAN, 2.5])
SHAPES = [(2, 3, 5, 7), (4, 6, 1, 1), (3, 1, 4, 4), (1, 4, 3, 3), (5, 8), (2, 3, 4), (2, 3, 2, 3, 4), (0, 3, 4, 4)]


@pytest.fixture(params=["whole", "in halves", "in parts", "compiled"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Take these small tensors as they come, or as larger ones: in halves, gone through, or by the compiled loops."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if request.param == "compiled" else 2)
    if request.param == "in halves":
        monkeypatch.setattr(activations, "HALVES", range(1 << 20))
    if request.param == "in parts":
        monkeypatch.setattr(activations, "PART", 64)
        monkeypatch.setattr(activations, "SMALL", 0)
    if request.param == "compiled":
        monkeypatch.setattr(activations, "LEAST", 0)
    yield str(request.param)
    torch.set_num_threads(threads)


def naive(x: Tensor) -> Tensor:
    return torch.cat([torch.relu(x), torch.relu(-x)], 1)


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, weight)
    return y.detach(), gradient


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crelu_is_its_definition_bit_for_bit(shape: tuple[int, ...], kind: torch.dtype):
    x = draw(shape).to(kind)
    weight = draw((shape[0], 2 * shape[1], *shape[2:]), 1).to(kind)
    for ours, theirs in zip(value_and_gradient(crelu, x, weight), value_and_gradient(naive, x, weight), strict=True):
        assert ours.dtype == theirs.dtype == kind
        assert torch.equal(bits(ours), bits(theirs))


def numbers(kind: torch.dtype) -> Tensor:
    """Return all numbers of two bytes, or as many of four with the notable ones among them, in rows of 64."""
    if kind == torch.float32:
        drawn = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=torch.Generator().manual_seed(2))
        x = torch.cat([SPECIAL, drawn.to(torch.int32).view(kind)])
    else:
        x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(kind)
    x = x[~x.isnan()]
    return x[: len(x) // 64 * 64].view(-1, 64)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compiled_loops_agree_on_every_number(kind: torch.dtype):
    x = numbers(kind)
    weight = draw((len(x), 128)).to(kind)
    for seed, value in enumerate((0.0, -0.0, INF, -INF), 1):
        weight.view(-1)[draw((weight.numel(),), seed).abs() < 0.1] = value
    y, by_x = torch.empty(len(x), 128, dtype=kind), torch.empty_like(x)
    assert kernels.accepts(x, len(x))
    assert kernels.write_crelu(x, y, len(x))
    assert kernels.write_gradient(weight, y, by_x, len(x))
    expected, gradient = value_and_gradient(naive, x, weight)
    assert torch.equal(bits(y), bits(expected))
    assert torch.equal(bits(by_x), bits(gradient))


def test_compiled_loops_leave_to_torch_what_is_no_number():
    x = draw((3, 64))
    y, by_x = torch.empty(3, 128), torch.empty(3, 64)
    weight = draw((3, 128), 1)
    assert kernels.write_crelu(x, y, 3)
    for place in (0, 63, 127):
        odd = weight.clone()
        odd[1, place] = NAN
        assert not kernels.write_gradient(odd, y, by_x, 3)
    x[2, 5] = -NAN
    assert not kernels.write_crelu(x, y, 3)
    y.fill_(NAN)
    assert not kernels.write_gradient(weight, y, by_x, 3)


def test_crelu_takes_the_compiled_loops_where_they_are_faster(form: str, monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    monkeypatch.setattr(kernels, "write_crelu", lambda x, y, rows: taken.append(rows) or False)
    crelu(draw((2, 8, 3, 3)))
    crelu(draw((2, 8, 3, 3)).contiguous(memory_format=torch.channels_last))
    crelu(draw((2, 3, 3, 3)).contiguous(memory_format=torch.channels_last))  # rows of three floats: no whole words
    assert taken == ([2, 18] if form == "compiled" else [])


@pytest.mark.parametrize("error", [RuntimeError("no locator"), OSError("no space")], ids=str)
def test_loops_that_cannot_be_kept_are_compiled_all_the_same(error: Exception, monkeypatch: pytest.MonkeyPatch):
    genuine = numba.cfunc

    def full(signature: Any, cache: bool = False) -> Any:
        def refused(loop: Any) -> Any:
            raise error

        return refused if cache else genuine(signature)

    monkeypatch.setattr(numba, "cfunc", full)
    again = kernels._compiled(2)(kernels._crelu.code._pyfunc)  # type: ignore[attr-defined]
    x, y = draw((3, 8)), torch.empty(3, 16)
    assert again(x.data_ptr(), y.data_ptr(), 3, 4, *kernels.FLOATS[x.dtype]) == 0
    assert torch.equal(y, naive(x))


def test_crelu_without_numba_is_the_same(monkeypatch: pytest.MonkeyPatch):
    x, weight = draw((4, 8, 5, 5)), draw((4, 16, 5, 5), 1)
    ours = value_and_gradient(crelu, x, weight)
    monkeypatch.setattr(activations, "_loops", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(ours, value_and_gradient(crelu, x, weight), strict=True))


def test_crelu_is_its_definition_for_zeros_infinities_and_what_is_no_number():
    x = SPECIAL.repeat(20).view(4, 3, 4, 5)
    for weight in (torch.ones(4, 6, 4, 5), SPECIAL.flip(0).repeat(40).view(4, 6, 4, 5), draw((4, 6, 4, 5))):
        ours, theirs = value_and_gradient(crelu, x, weight), value_and_gradient(naive, x, weight)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 1, 4, 4), (4, 6, 1, 1), (1, 5, 2, 2)], ids=str)
def test_crelu_keeps_channels_last(shape: tuple[int, ...]):
    n, k, *map_ = shape
    x, weight = (draw((n, *map_, channels)).permute(0, 3, 1, 2) for channels in (k, 2 * k))
    y, gradient = value_and_gradient(crelu, x, weight)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, naive(x))
    assert crelu(draw(shape)).is_contiguous()


def test_crelu_takes_any_strides():
    for x in (draw((6, 4, 5, 8))[::2, :, :, 1::3], draw((5, 8, 4, 6)).permute(3, 1, 0, 2), draw((4, 7)).t()):
        weight = draw((x.shape[0], 2 * x.shape[1], *x.shape[2:])).transpose(0, -1).contiguous().transpose(0, -1)
        ours, theirs = value_and_gradient(crelu, x, weight), value_and_gradient(naive, x, weight)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_crelu_keeps_nothing_but_its_output_for_the_backward_pass(form: str):
    saved: list[Tensor] = []
    x = draw((2, 3, 4, 4)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        y = crelu(x)
    assert form == "in halves" or [tensor.data_ptr() for tensor in saved] == [y.data_ptr()]


def test_identities_of_crelu():
    x = draw((4, 5, 6, 6))
    y, up, down = crelu(x), *crelu(x).chunk(2, 1)
    assert torch.equal(y.relu(), y)
    assert not (up * down).any()
    assert torch.equal(up + down, AVR()(x))
    assert torch.equal(up - down, x)
    assert torch.equal(crelu(-x), torch.cat([down, up], 1))
    torch.testing.assert_close(y.norm(), x.norm())
    torch.testing.assert_close(y.double().pow(2).sum(1), x.double().pow(2).sum(1))


def test_the_gradient_of_the_sum_is_the_sign():
    x = torch.tensor([[-2.0, 0.0, 3.0, -0.0]])
    for function in (crelu, AVR()):
        assert value_and_gradient(function, x, torch.ones_like(function(x)))[1].tolist() == [[-1, 0, 1, 0]]


def test_max_pooling_acts_on_each_phase_apart():
    x = draw((2, 3, 8, 8))
    pooled = functional.max_pool2d(crelu(x), 3, 2)
    assert torch.equal(pooled, torch.cat([functional.max_pool2d(each, 3, 2).relu() for each in (x, -x)], 1))


def test_crelu_has_its_first_and_second_derivatives():
    x = draw((2, 3, 2, 2)).double().requires_grad_()
    assert torch.autograd.gradcheck(crelu, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(crelu, x)


def test_crelu_under_vmap():
    x = draw((3, 2, 4, 5, 5))
    expected = torch.stack([naive(each) for each in x])
    assert torch.equal(torch.vmap(crelu)(x), expected)
    assert torch.equal(torch.vmap(crelu, in_dims=-1)(x.movedim(0, -1)), expected)
    assert torch.equal(torch.vmap(torch.vmap(crelu))(x[None]), expected[None])
    gradients = torch.vmap(torch.func.grad(lambda each: crelu(each).pow(2).sum()))(x)
    torch.testing.assert_close(gradients, 2 * x)


def test_crelu_compiles_as_one_graph():
    x, weight = draw((2, 3, 4, 4)), draw((2, 6, 4, 4), 1)
    compiled = torch.compile(crelu, backend="aot_eager", fullgraph=True)
    ours, theirs = value_and_gradient(compiled, x, weight), value_and_gradient(naive, x, weight)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_crelu_under_autocast_keeps_bf16():
    conv = torch.nn.Conv2d(3, 4, 3)
    x = draw((2, 3, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        y = crelu(conv(x))
        assert torch.equal(y, naive(conv(x)))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "crelu": naive,
    "avr": lambda x: torch.maximum(x, -x),
    "none": lambda x: x,
    "leaky_100": lambda x: torch.maximum(x, x / 100),
    "leaky_3": lambda x: torch.maximum(x, x / 3),
    "leaky_5.5": lambda x: torch.maximum(x, x / 5.5),
    "prelu": lambda x: torch.maximum(x, x / 4),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + (-x).exp()),
    "crelu_leaky": lambda x: torch.cat([torch.maximum(x, x / 100), torch.maximum(-x, -x / 100)], 1),
    "concat_elu": lambda x: torch.cat([torch.where(each > 0, each, each.exp() - 1) for each in (x, -x)], 1),
    "antirectifier": lambda x: naive(x - x.sum(1, keepdim=True) / x.shape[1]),
}


@pytest.mark.parametrize("name", CHANNEL_FACTOR)
@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (3, 4)], ids=str)
def test_an_activation_is_its_formula(name: str, shape: tuple[int, ...]):
    x = draw(shape)
    y = activation(name, 4)(x)
    assert y.shape == (3, 4 * CHANNEL_FACTOR[name], *shape[2:])
    torch.testing.assert_close(y, FORMULAS[name](x))


@pytest.mark.parametrize("name", CHANNEL_FACTOR)
def test_only_prelu_learns(name: str):
    assert sum(each.numel() for each in activation(name, 4).parameters()) == (4 if name == "prelu" else 0)


def test_aliases_are_crelu():
    assert all(isinstance(activation(name, 4), CReLU) for name in ALIASES)


def test_an_unknown_activation_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'maxout'.*relu, crelu.*maxmin"):
        activation("maxout", 4)
