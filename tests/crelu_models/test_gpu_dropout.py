"""Kernels of dropout against torch's operations, bit for bit: on a CPU by Triton's interpreter, and on a GPU."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from crelu_models import activations
from crelu_models.chain import Chain
from crelu_models.dropout import Dropout
from tests.support.gpu_kernels import CPU, TWO_BYTES, Kernels


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities
@pytest.mark.parametrize("dtype", [*TWO_BYTES, torch.float32], ids=str)
@pytest.mark.parametrize("rectified", [False, True])
def test_dropout_gives_the_bits_of_torch(gpu: Kernels, rectified: bool, dtype: torch.dtype) -> None:
    assert gpu.choice.dropout_is_exact(rectified, dtype, CPU)


@pytest.mark.parametrize("rectified", [False, True])
def test_dropout_has_second_derivatives_batches_and_gradients_of_another_layout(gpu: Kernels, rectified: bool) -> None:
    x = torch.randn(2, 3, 5, 4).contiguous(memory_format=torch.channels_last)
    mask = (torch.rand(x.shape) > 0.4).float().contiguous(memory_format=torch.channels_last)
    results = []
    for form in (gpu.dropout.dropped, gpu.dropout.torch_dropped):
        leaf, by = x.clone().requires_grad_(), torch.ones(2, 3, 5, 4).requires_grad_()  # in the plain layout
        y = form(leaf, mask, 0.4, rectified)
        (plain,) = torch.autograd.grad(y, leaf, by.detach(), retain_graph=True)
        (first,) = torch.autograd.grad(y, leaf, by, create_graph=True)
        second = torch.autograd.grad((first * x.cos()).sum(), by)
        many = torch.autograd.grad(
            form(leaf, mask, 0.4, rectified), leaf, torch.stack([by, -by]), is_grads_batched=True
        )
        results.append([y.detach(), plain, first.detach(), *second, *many])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert [value.stride() for value in results[0][:2]] == [value.stride() for value in results[1][:2]]


def test_a_net_takes_dropout_with_the_relu_in_front_by_one_kernel(
    gpu: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Chain(nn.BatchNorm2d(3), nn.ReLU(), Dropout(0.4, "a"), nn.AvgPool2d(2), Dropout(0.3, "b"), nn.Tanh())
    x = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    model(x)  # the samples
    made: list[tuple[str, bool]] = []
    launch = gpu.dropout._launch

    def noted(kernel: object, rectified: bool, *rest: object) -> None:
        made.append(("forward" if kernel is gpu.dropout._dropout_forward else "backward", rectified))
        launch(kernel, rectified, *rest)

    monkeypatch.setattr(gpu.dropout, "_launch", noted)
    results = []
    for interpreted in (True, False):
        monkeypatch.setattr(activations, "INTERPRETED", interpreted)
        for layer in (model[2], model[4]):
            layer.seed(5)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = model(leaf)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])])
    assert made == [("forward", True), ("forward", False), ("backward", False), ("backward", True)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[0][0] == 0).any()


def test_what_the_kernels_of_dropout_do_not_take_is_left_to_torch(
    gpu: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = Dropout(0.4, "a"), torch.randn(4, 3, 6, 6)
    assert gpu.choice.accepts_dropout(x, rectified=True)
    monkeypatch.setattr(gpu.dropout, "_launch", None)

    def seeded(module: nn.Module, x: Tensor) -> Tensor:
        layer.seed(1)
        return module(x)  # type: ignore[no-any-return]

    for odd in (x.double(), x[:, :, ::2], x[:0], x.permute(2, 3, 0, 1)):
        assert torch.equal(seeded(Chain(layer), odd), seeded(layer, odd))
    model = Chain(nn.ReLU(), layer)
    assert torch.equal(model.eval()(x), x.relu())
    model.train()
    monkeypatch.setattr(gpu.choice, "dropout_is_faster", lambda *_: False)
    assert torch.equal(seeded(model, x), seeded(layer, x.relu()))
    monkeypatch.setattr(gpu.choice, "accepts_dropout", lambda _, rectified: rectified)
    for watched in model:
        seen: list[object] = []
        hook = watched.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        assert torch.equal(seeded(model, x), seeded(layer, x.relu()))
        hook.remove()
        assert seen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [*TWO_BYTES, torch.float32], ids=str)
def test_on_a_gpu_dropout_has_the_bits_of_torch(dtype: torch.dtype) -> None:
    from crelu_models.gpu import choice, dropout

    device = torch.device("cuda")
    for rectified in (False, True):
        assert choice.dropout_is_exact(rectified, dtype, device)
        x = torch.randn(128, 64, 33, 31, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        layer = Dropout(0.3, "a")
        mask, rate = layer.mask(x)
        given = {"mask": mask, "rate": rate, "rectified": rectified}
        ours, theirs = (
            choice.with_gradients(partial(form, **given), [x], torch.randn_like(x).fill_(1.7))
            for form in (dropout.dropped, dropout.torch_dropped)
        )
        assert choice.same_bits(ours, theirs)
