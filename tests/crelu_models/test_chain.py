"""Modules one after another: a whole net by kernels of a GPU, with the bits of torch."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crelu_models import activations
from crelu_models.dropout import seed_dropout
from crelu_models.modules import build, initialise
from crelu_models.spec import Conv, Net, Pool
from crelu_models.tables import S2, S4
from tests.support.gpu_kernels import (
    CPU,
    EXACT,
    PLAIN,
    TWO_BYTES,
    WINDOWS,
    Kernels,
    draw,
    launches,
    small_net,
    trained,
    whole_numbers,
)


@pytest.mark.parametrize("kinds", [("relu", "crelu"), ("avr", "relu")], ids=str)
def test_a_net_takes_biases_and_pooling_by_kernels_with_the_bits_of_torch(
    gpu: Kernels, exact_conv: None, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net(*kinds), 8)
    model(pictures)  # the samples
    made = launches(gpu, monkeypatch)
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
    gpu: Kernels, exact_conv: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net("relu", "crelu"), 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(pictures)
    made = launches(gpu, monkeypatch)
    asked: list[torch.dtype] = []
    monkeypatch.setattr(gpu.choice, "accepts_bias", lambda _, dtype, *__: asked.append(dtype) or True)
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
    gpu: Kernels, exact_conv: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net("relu", "crelu"), 8)
    exact = trained(model, pictures)
    made = launches(gpu, monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # a training before may have set it
    assert all(torch.equal(a, b) for a, b in zip(trained(model, pictures), exact, strict=True))
    forward = ["bias relu", "bias crelu", "pool", "bias none"]
    backward = ["pool", "bias crelu summed", "bias relu summed"]  # the mean's gradient is no map in one piece
    assert made == [*forward, *backward]
    made.clear()
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    trained(model, pictures)
    assert made[-1] == "bias relu"


def test_a_net_is_built_printed_and_cut_as_a_sequence(gpu: Kernels) -> None:
    model, _ = whole_numbers(small_net("relu"), 8)
    plain = torch.nn.Sequential(OrderedDict(model.named_children()))
    assert str(model) == str(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model[:2].named_children()] == ["conv1", "conv1_act"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:There is a performance drop:UserWarning")
def test_what_kernels_of_a_net_do_not_take_is_left_to_torch(
    gpu: Kernels, exact_conv: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pictures = whole_numbers(small_net("relu"), 8)
    expected, expected_first = model(pictures), model[:2](pictures)
    assert gpu.choice.is_exact("relu", torch.float32, CPU, PLAIN, biased=True)  # its sample is made here
    made = launches(gpu, monkeypatch)
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
    assert torch.equal(model[:2](pictures[0]), expected_first[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert model[:2].double()(pictures.double()).dtype == torch.float64
    model.float()
    model.to(memory_format=torch.channels_last)
    assert made == ["bias relu"]  # of the plain layout, which pooling does not take
    monkeypatch.setattr(activations, "takes_kernels", False)
    model(pictures)
    assert made == ["bias relu"]
    monkeypatch.setattr(activations, "takes_kernels", True)
    monkeypatch.setattr(gpu.choice, "adds_bias_apart", lambda *_: False)
    model(pictures)
    assert made == ["bias relu", "pool"]
    model.pool1.dilation = 2
    model(pictures)
    assert made == ["bias relu", "pool"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["relu", "crelu", "crelu_leaky", "concat_elu", "avr", "pool"])
def test_kernels_with_bias_and_of_pooling_have_second_derivatives_and_batches(gpu: Kernels, kind: str) -> None:
    x, weight = draw((2, 3, 6, 4), "avr" if kind in ("relu", "avr", "pool") else kind)
    window = gpu.pooling.Window(2, 1, 1, False)
    weight = torch.randn(gpu.pooling.torch_pool(x, window).shape) if kind == "pool" else weight
    forms: list[Callable[..., Tensor]] = [
        lambda x, b: gpu.activations.apply(x, kind, PLAIN, b),
        lambda x, b: gpu.activations.DEFINITIONS[kind](x + b[:, None, None]),
    ]
    if kind == "pool":
        forms = [
            lambda x, b, form=form: form(x, window) * b[:, None, None]
            for form in (gpu.pooling.max_pool, gpu.pooling.torch_pool)
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [*TWO_BYTES, torch.float32], ids=str)
def test_on_a_gpu_biases_and_pooling_have_the_bits_of_torch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crelu_models.gpu import choice, pooling

    device = torch.device("cuda")
    assert choice.adds_bias_apart(dtype, device)
    assert all(choice.is_exact(kind, dtype, device, torch.channels_last, biased=True) for kind in (*EXACT, "relu"))
    assert [window for window in WINDOWS if not choice.pool_is_exact(pooling.Window(*window), dtype, device)] == []
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(choice, "is_faster", lambda *_, **__: True)
    monkeypatch.setattr(choice, "pool_is_faster", lambda *_: True)
    choice.is_exact.cache_clear()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):  # as a training asks
        assert choice.accepts_bias("relu", dtype, device, torch.channels_last)
    for net in (S2.crelu(1, 2, 3), S2.activation("crelu_leaky", 2).avr(4), S4):
        model = build(net, 10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        initialise(model, net, "he_fan_in", 0)
        for layer in model:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.normal_(layer.bias, std=0.1)
        pictures = torch.randn(32, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        results = []
        for takes_kernels in (True, False):
            monkeypatch.setattr(activations, "takes_kernels", takes_kernels)
            seed_dropout(model, 0, 0, 0)
            model.zero_grad()
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                scores = model(pictures)
            scores.float().logsumexp(1).sum().backward()
            results.append([scores.detach(), *(value.grad for value in model.parameters())])
        assert [n for n, pair in enumerate(zip(*results, strict=True)) if not choice.same_bits(*zip(pair))] == []


def test_a_bias_in_front_of_batch_norm_is_summed_by_a_kernel_in_the_order_of_torch(
    gpu: Kernels, exact_conv: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Conv("conv1", 4, 3, 1, 1, bn=True), Conv("conv2", None, 1, act="none"), Pool("pool2", "avg", 0)
    model = build(Net("normed", rows, 8), 5, 8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    model(pictures)
    made = launches(gpu, monkeypatch)
    orders: list[tuple[torch.Size, bool]] = []

    def order_of_sums(y: Tensor, _: str, any_is_right: bool) -> Any:
        orders.append((y.shape, any_is_right))
        return gpu.sums.Order(8, 2)

    monkeypatch.setattr(gpu.choice, "order_of_sums", order_of_sums)
    ours = trained(model, pictures)
    assert made == ["bias none", "bias none", "bias none summed"]
    assert orders == [(torch.Size([2, n, 8, 8]), False) for n in (4, 5)]
    with torch.inference_mode():
        model(pictures)
    model.conv1.bias.requires_grad_(False)
    trained(model, pictures)
    assert len(orders) == 3  # of a gradient that is not asked for there is no sum
    assert made[3:] == ["bias none"]
    model.conv1.bias.requires_grad_()
    monkeypatch.setattr(activations, "INTERPRETED", False)
    theirs = trained(model, pictures)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
