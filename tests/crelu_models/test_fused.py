"""Kernels of a GPU against the definitions, bit for bit: on a CPU by Triton's interpreter, on a GPU as they run."""

import importlib
import math
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from crelu_models import activations
from crelu_models.activations import activation, crelu
from crelu_models.chain import Chain
from crelu_models.modules import build, initialise, seed_dropout
from crelu_models.spec import Conv, Net, Pool
from crelu_models.tables import S2, S4

EXACT = ("crelu", "crelu_leaky", "avr")  # of ELU the interpreter has another exponential
TWO_BYTES = (torch.bfloat16, torch.float16)
# Side, stride, padding and whether a partial window counts: those of our nets, and others.
WINDOWS = [(2, 2, 0, False), (3, 2, 0, True), (3, 2, 0, False), (3, 2, 1, False), (3, 1, 1, False), (2, 3, 0, True)]
CPU = torch.device("cpu")
PLAIN = torch.contiguous_format
NO_TRITON = "an environment without CUDA has no Triton"


@pytest.fixture(scope="module")
def fused() -> Iterator[ModuleType]:
    """Return the kernels for Triton's interpreter; what other tests import is compiled for a GPU."""
    pytest.importorskip("triton", reason=NO_TRITON)
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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
@pytest.mark.parametrize("dtype", [*TWO_BYTES, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [*EXACT, "relu"])
def test_kernels_give_the_bits_of_the_definition(fused: ModuleType, kind: str, dtype: torch.dtype) -> None:
    assert fused.is_exact(kind, dtype, CPU)
    assert fused.is_exact(kind, dtype, CPU, biased=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", TWO_BYTES, ids=str)
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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pooling_gives_the_bits_of_torch(fused: ModuleType, window: tuple[int, int, int, bool]) -> None:
    window = fused.Window(*window)
    assert fused.pool_is_exact(window, torch.float32, CPU)
    for dtype in TWO_BYTES:  # a CPU rounds after each addition, a GPU once, after the last
        for x, by_y in fused.pool_samples(window, dtype, CPU):
            y, by_x = fused.with_gradients(partial(fused.max_pool, window=window), [x], by_y)
            wide = fused.with_gradients(partial(fused.torch_pool, window=window), [x.float()], by_y.float())
            assert fused.same_bits([y, by_x], [value.to(dtype) for value in wide])
            assert all(value.is_contiguous(memory_format=torch.channels_last) for value in (y, by_x))
            assert y.shape == fused.torch_pool(x, window).shape


def test_pooling_keeps_a_byte_for_each_output(fused: ModuleType) -> None:
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = fused.max_pool(x, fused.Window(2, 2, 0, False))
    assert [value.nbytes for value in saved] == [y.numel()]


def test_pooling_treats_nan_ties_infinities_and_zeros_as_a_gpu_does(fused: ModuleType) -> None:
    lowest = -math.inf
    rows = [[1.0, 1.0, math.nan, 2.0], [0.5, 1.0, 3.0, math.nan], [lowest] * 4, [lowest, lowest, lowest, 5.0]]
    x = torch.tensor(rows)[None, None]
    by_y = torch.tensor([[10.0, 20.0], [30.0, -0.0]])[None, None]
    y, by_x = fused.with_gradients(partial(fused.max_pool, window=fused.Window(2, 2, 0, False)), [x], by_y)
    assert str(y[0, 0].tolist()) == "[[1.0, nan], [-inf, 5.0]]"
    # The first of equal ones, the last NaN; of -inf alone none, but where the window holds the first position.
    expected = [[10.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 20.0], [0.0] * 4, [0.0, 0.0, 0.0, -0.0]]
    assert str(by_x[0, 0].tolist()) == str(expected)
    lowest_map, ones = torch.full((1, 1, 4, 4), lowest), torch.ones(1, 1, 2, 2)
    by_x = fused.with_gradients(partial(fused.max_pool, window=fused.Window(3, 2, 1, False)), [lowest_map], ones)[1]
    assert by_x.flatten().tolist() == [1.0] + [0.0] * 15
    # Added to nothing a zero keeps its sign, in a sum it loses it.
    peak = torch.zeros(1, 1, 5, 5)
    peak[0, 0, 2, 2] = peak[0, 0, 0, 0] = 1.0
    by_x = fused.with_gradients(partial(fused.max_pool, window=fused.Window(3, 2, 0, False)), [peak], -0.0 * ones)[1]
    assert [by_x[0, 0, n, n].signbit().item() for n in (0, 2)] == [True, False]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["relu", "crelu", "crelu_leaky", "concat_elu", "avr", "pool"])
def test_kernels_with_bias_and_of_pooling_have_second_derivatives_and_batches(fused: ModuleType, kind: str) -> None:
    x, weight = draw((2, 3, 6, 4), "avr" if kind in ("relu", "avr", "pool") else kind)
    window = fused.Window(2, 1, 1, False)
    weight = torch.randn(fused.torch_pool(x, window).shape) if kind == "pool" else weight
    forms: list[Callable[..., Tensor]] = [
        lambda x, b: fused.apply(x, kind, PLAIN, b),
        lambda x, b: fused.DEFINITIONS[kind](x + b[:, None, None]),
    ]
    if kind == "pool":
        forms = [
            lambda x, b, form=form: form(x, window) * b[:, None, None] for form in (fused.max_pool, fused.torch_pool)
        ]
        x = x.contiguous(memory_format=torch.channels_last)
    gradients = []
    for form in forms:
        leaves = [x.clone().requires_grad_(), torch.tensor([0.3, -0.2, 0.0]).requires_grad_()]
        by = weight.clone().requires_grad_()
        first = torch.autograd.grad(form(*leaves), leaves, by, create_graph=True)
        total = (first[0] * x.cos()).sum() + first[1].sum()
        second = torch.autograd.grad(total, [*leaves, by], allow_unused=True, materialize_grads=True)
        batch = torch.stack([weight, -weight])
        many = torch.autograd.grad(form(*leaves), leaves, batch, is_grads_batched=True)
        gradients.append([*first, *second, *many])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


# A whole net, of small integers, whose sums are exact in any order


def whole_numbers(net: Net, size: int) -> tuple[Chain, Tensor]:
    """Return a built net and pictures, with channels last, that stay whole numbers far from rounding."""
    model = build(net, 5, size)
    initialise(model, net, "he_fan_in", 0)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randint(-1, 2, value.shape, generator=drawn))
    last = torch.channels_last
    pictures = torch.randint(-2, 3, (2, 3, size, size), generator=drawn).float()
    return model.to(memory_format=last), pictures.contiguous(memory_format=last)  # type: ignore[call-overload]


def small_net(*kinds: str) -> Net:
    rows = [Conv(f"conv{n}", 4, 3, 1, 1, act=kind) for n, kind in enumerate(kinds, 1)]
    last = [Pool("pool1", "max", 3, 2, 0, ceil=True), Conv("conv9", None, 1, act="none"), Pool("pool2", "avg", 0)]
    return Net("small", (*rows, *last), 8)


@pytest.fixture
def exact_conv(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the kernels, for convs whose bias is added apart, as a GPU's is; a CPU's gives the same whole numbers."""
    monkeypatch.setattr(fused, "adds_bias_apart", lambda *_: True)
    return fused


def launches(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the kernels launched, by kind, biased or not, and "pool"."""
    made: list[str] = []
    launch, launch_pool = fused._launch, fused._launch_pool

    def noted(kernel: object, x: Tensor, bias: Tensor | None, kind: str, *rest: object, **constants: int) -> None:
        summed = " summed" if constants.get("summed") else ""
        made.append(kind if bias is None and kernel is fused._forward else f"bias {kind}{summed}")
        launch(kernel, x, bias, kind, *rest, **constants)

    monkeypatch.setattr(fused, "_launch", noted)
    monkeypatch.setattr(fused, "_launch_pool", lambda *rest: made.append("pool") or launch_pool(*rest))
    return made


def trained(model: Chain, pictures: Tensor) -> list[Tensor]:
    """Return scores, and the gradients of all parameters from whole numbers."""
    model.zero_grad()
    scores = model(pictures)
    (scores * 16 * torch.arange(1, 6)).sum().backward()
    return [scores.detach(), *(value.grad for value in model.parameters() if value.grad is not None)]


@pytest.mark.parametrize("kinds", [("relu", "crelu"), ("avr", "relu")], ids=str)
def test_a_net_takes_biases_and_pooling_by_kernels_with_the_bits_of_torch(
    exact_conv: ModuleType, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net(*kinds), 8)
    model(pictures)  # the samples
    made = launches(exact_conv, monkeypatch)
    ours = trained(model, pictures)
    forward = [*(f"bias {kind}" for kind in kinds), "pool"]
    assert made == [*forward, *reversed(forward)]
    with torch.inference_mode():
        assert torch.equal(model(pictures), ours[0])
    monkeypatch.setattr(activations, "INTERPRETED", False)
    theirs = trained(model, pictures)
    assert len(ours) == 1 + len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(value.unique().numel() > 2 for value in theirs)


def test_biases_under_autocast_are_cast_as_torch_casts_them(
    exact_conv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net("relu", "crelu"), 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(pictures)
    made = launches(exact_conv, monkeypatch)
    asked: list[torch.dtype] = []
    monkeypatch.setattr(exact_conv, "accepts_bias", lambda _, dtype, *__: asked.append(dtype) or True)
    results = []
    for interpreted in (True, False):
        monkeypatch.setattr(activations, "INTERPRETED", interpreted)
        with torch.autocast("cpu", torch.bfloat16):
            y = model[:4](pictures)
        y.backward(torch.ones_like(y))
        results.append([y.detach(), *(value.grad for value in model[:4].parameters())])
        model.zero_grad()
    assert made == ["bias relu", "bias crelu", "bias crelu", "bias relu"]
    assert asked == [torch.bfloat16] * 2
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert [value.dtype for value in results[0]] == [torch.bfloat16] + [torch.float32] * 4


def test_with_the_fastest_kernels_a_bias_is_summed_with_its_activation(
    exact_conv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net("relu", "crelu"), 8)
    exact = trained(model, pictures)
    made = launches(exact_conv, monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # a training before may have set it
    assert all(torch.equal(a, b) for a, b in zip(trained(model, pictures), exact, strict=True))
    assert made == ["bias relu", "bias crelu", "pool", "pool", "bias crelu summed", "bias relu summed"]
    made.clear()
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    trained(model, pictures)
    assert made[-1] == "bias relu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["relu", "avr"])
def test_a_bias_summed_in_another_order_is_near_torchs_sum_and_always_the_same(
    fused: ModuleType, kind: str, dtype: torch.dtype
) -> None:
    shape = (2, 12, 17, 19)  # of more rows than a program takes, and not a multiple of them
    x, by_y = (value.contiguous(memory_format=torch.channels_last) for value in draw(shape, "avr", dtype))
    bias = torch.linspace(-1, 1, 12).to(dtype)
    forms = [
        partial(fused.apply, kind=kind, form=torch.channels_last, any_order=order) for order in (False, True, True)
    ]
    runs = [fused.with_gradients(lambda x, bias, form=form: form(x, bias=bias), [x, bias], by_y) for form in forms]
    assert fused.same_bits(runs[0][:2], runs[1][:2])
    assert fused.same_bits(runs[1], runs[2])
    exact = runs[0][1].double().sum((0, 2, 3))
    size = runs[0][1].double().abs().sum((0, 2, 3))
    assert runs[1][2].dtype == dtype
    assert ((runs[1][2].double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps + 1e-6 * size).all()


def test_a_net_is_built_printed_and_cut_as_a_sequence(fused: ModuleType) -> None:
    model, _ = whole_numbers(small_net("relu"), 8)
    plain = torch.nn.Sequential(OrderedDict(model.named_children()))
    assert str(model) == str(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model[:2].named_children()] == ["conv1", "conv1_act"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:There is a performance drop:UserWarning")
def test_what_kernels_of_a_net_do_not_take_is_left_to_torch(
    exact_conv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net("relu"), 8)
    expected = model(pictures)
    made = launches(exact_conv, monkeypatch)
    seen: list[torch.Size] = []

    def see(_: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].shape)

    for name, left in (("conv1", ["pool"]), ("conv1_act", ["pool"]), ("pool1", ["bias relu"])):
        hook = getattr(model, name).register_forward_pre_hook(see)
        assert torch.equal(model(pictures), expected)
        hook.remove()
        assert made == left, name
        made.clear()
    assert seen == [(2, 3, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8)]
    every = torch.nn.modules.module.register_module_forward_pre_hook(see)
    assert torch.equal(model(pictures), expected)
    every.remove()
    weights = dict(model.named_parameters())
    many = {name: torch.stack([value, value]) for name, value in weights.items()}
    call = torch.func.functional_call
    assert torch.equal(torch.vmap(lambda w: call(model, w, (pictures,)))(many)[1], expected)
    assert torch.equal(torch.vmap(model)(pictures[None])[0], expected)
    assert torch.func.jvp(lambda x: model(x), (pictures,), (pictures,))[0].equal(expected)
    with torch.autograd.forward_ad.dual_level():
        assert torch.autograd.forward_ad.unpack_dual(model(pictures)).primal.equal(expected)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(pictures), expected)
    assert torch.equal(torch.fx.symbolic_trace(model)(pictures), expected)
    smooth = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    assert torch.autograd.gradcheck(model.double(), smooth, fast_mode=True)
    model.float().to(memory_format=PLAIN)
    for odd in (pictures.contiguous(), pictures[:0]):
        model(odd)
    model.to(memory_format=torch.channels_last)
    exact_conv.LEFT.update({"bias", "pool"})
    model(pictures)
    exact_conv.LEFT.clear()
    assert made == ["bias relu"]  # of the plain layout, which pooling does not take
    monkeypatch.setattr(exact_conv, "adds_bias_apart", lambda *_: False)
    model(pictures)
    assert made == ["bias relu", "pool"]
    model.pool1.dilation = 2
    model(pictures)
    assert made == ["bias relu", "pool"]


def test_the_gradient_of_relu_has_the_layout_that_torch_gives_it(fused: ModuleType) -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for form in (torch.channels_last, PLAIN):
        by_y = torch.randn(2, 3, 4, 4).contiguous(memory_format=form)
        ours = fused.with_gradients(lambda x: fused.apply(x, "relu", torch.channels_last), [x], by_y)
        theirs = fused.with_gradients(torch.relu, [x], by_y)
        assert fused.same_bits(ours, theirs)
        assert [value.stride() for value in ours] == [value.stride() for value in theirs]


def test_a_cpu_is_found_to_add_biases_before_it_rounds(fused: ModuleType) -> None:
    assert not fused.adds_bias_apart(torch.float32, CPU)


def test_the_faster_is_taken_of_two_that_give_equal_bits(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    window = fused.Window(2, 2, 0, False)
    monkeypatch.setattr(fused, "TIMED_SHAPE", (1, 3, 6, 6))
    for first, faster in ((1.0, True), (3.0, False)):
        for choice in (fused.is_faster, fused.pool_is_faster):
            choice.cache_clear()
        times = [first, 2.0] * 3
        calls: list[Tensor] = []
        monkeypatch.setattr(fused, "TIMER", lambda call, _, t=times, c=calls: c.extend(call()) or t.pop(0))
        for _ in range(2):  # it is measured once
            assert fused.accepts(x, "crelu", torch.channels_last) == faster
            assert fused.is_faster("relu", x.dtype, x.device, biased=True) == faster
            assert fused.accepts_pool(x, window) == faster
        assert times == []
        assert [value.shape for value in calls] == [(1, 3, 6, 6)] * 2 + [(1, 3, 6, 6), (3,)] * 2 + [(1, 3, 6, 6)] * 2
    for choice in (fused.is_faster, fused.pool_is_faster):
        choice.cache_clear()


# Triton compiles for a GPU where there is none; what its interpreter takes need not compile.
COMPILED = """
import re
from collections import Counter
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crelu_models import fused

def moves(kernel, **constants):
    names = kernel.arg_names
    types = {"places": "*u8", "sums": "*fp32"} | dict.fromkeys(("x", "y", "g", "saved", "bias", "by_x"), "*bf16")
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    whole = [n for n, name in enumerate(names) if name in ("channels", "width") or signature[name][0] == "*"]
    attributes = {(n,): [["tt.divisibility", 16]] for n in whole}
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    assert made.asm["cubin"]
    return Counter(re.findall(r"(?:ld|st)[.]global[.\\w]*", made.asm["ptx"]))

tile = {"high": 8, "wide": 128}
for kind in fused.DEFINITIONS:
    for kernel in (fused._forward, fused._backward):
        for biased in (False, True):
            sums = {"tiles": fused.SUMMED_TILES, "summed": biased} if kernel is fused._backward else {}
            moves(kernel, kind=kind, slope=fused.SLOPE, biased=biased, **tile, **sums)
for side, stride in ((2, 2), (3, 2)):
    for kernel in (fused._pool_forward, fused._pool_backward):
        print(sorted(moves(kernel, side=side, stride=stride, pad=0, **tile).items()))
"""


def test_kernels_compile_for_a_gpu_and_pooling_moves_16_bytes_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    load, half, store = "ld.global.v4.b32", "v2.b32", "st.global.v4.b32"  # half for the places, of a byte each
    expected = []
    for read, over in ((4, 1), (9, 4)):
        expected.append({load: read, store: 1, f"st.global.{half}": 1})
        expected.append({load: over, f"ld.global.{half}": over, store: 1})
    assert done.stdout.splitlines() == [str(sorted(moves.items())) for moves in expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [*EXACT, "concat_elu"])
def test_on_a_gpu_kernels_compile_and_give_the_bits_of_the_definition(kind: str, dtype: torch.dtype) -> None:
    from crelu_models import fused

    device = torch.device("cuda")
    # The exponential of a GPU's kernel library has no numbers below the normal ones: then torch's operations are taken.
    assert fused.is_exact(kind, dtype, device) or kind == "concat_elu"
    for x, weight, *_ in fused.samples(kind, dtype, device):
        assert fused.agrees(activation(kind, x.shape[1]), kind, x, weight)
    x = torch.randn(8, 96, 17, 17, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert torch.equal(activation(kind, 96)(x), fused.DEFINITIONS[kind](x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [*TWO_BYTES, torch.float32], ids=str)
def test_on_a_gpu_biases_and_pooling_have_the_bits_of_torch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crelu_models import fused

    device = torch.device("cuda")
    assert fused.adds_bias_apart(dtype, device)
    assert all(fused.is_exact(kind, dtype, device, biased=True) for kind in (*EXACT, "relu"))
    assert [window for window in WINDOWS if not fused.pool_is_exact(fused.Window(*window), dtype, device)] == []
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(fused, "is_faster", lambda *_, **__: True)
    monkeypatch.setattr(fused, "pool_is_faster", lambda *_: True)
    assert fused.accepts_bias("relu", dtype, device)
    for net in (S2.crelu(1, 2, 3), S2.activation("crelu_leaky", 2).avr(4), S4):
        model = build(net, 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        initialise(model, net, "he_fan_in", 0)
        for layer in model:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.normal_(layer.bias, std=0.1)
        pictures = torch.randn(32, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        results = []
        for left in (set(), {"bias", "pool"}):
            monkeypatch.setattr(fused, "LEFT", left)
            seed_dropout(model, 0, 0, 0)
            model.zero_grad()
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                scores = model(pictures)
            scores.float().logsumexp(1).sum().backward()
            results.append([scores.detach(), *(value.grad for value in model.parameters())])
        assert [n for n, pair in enumerate(zip(*results, strict=True)) if not fused.same_bits(*zip(pair))] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_kernels_are_timed_without_their_launches() -> None:
    from crelu_models import fused

    x = torch.zeros(1 << 26, device="cuda")
    once = min(fused._milliseconds(lambda: x.add_(1), x.device) for _ in range(5))
    twice = min(fused._milliseconds(lambda: x.add_(1).add_(1), x.device) for _ in range(5))
    assert 1.5 < twice / once < 2.5
    assert fused.is_faster("crelu", torch.bfloat16, x.device)
