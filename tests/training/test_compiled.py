"""A net of ours is compiled as a whole, with its own masks of dropout."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from crelu_models.dropout import Dropout, seed_dropout
from crelu_models.modules import build, initialise
from crelu_models.spec import Net
from crelu_models.tables import S2, S4, S8
from sweeps.training.gpu.compiled import Compiled

NETS = {
    "allconv CReLU": S2.crelu(1, 2, 3).dropout(0.5, "conv2"),
    "VGG": S4,
    "All-CNN-B": S8.crelu(1, 4, 7).dropout(0.5, "conv9"),
}
# Its passes are traced and split as for a compiler, and then run by torch's own operations, with their bits.
BACKEND = "aot_eager_decomp_partition"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def built(net: Net, seed: int = 0) -> nn.Sequential:
    model = build(net.width(0.0625), 10, 64 if net.size > 64 else None)
    initialise(model, net.width(0.0625), "he_fan_in", seed)
    return model


def trained(model: nn.Module, net: nn.Module, pictures: Tensor, seed: int = 0) -> list[Tensor]:
    model.zero_grad()
    seed_dropout(model, seed, 0, 0)
    scores = net(pictures)
    scores.logsumexp(1).sum().backward()
    return [scores.detach(), *(value.grad for value in model.parameters())]


@pytest.mark.parametrize("name", NETS)
def test_a_compiled_net_is_one_graph_and_draws_the_masks_of_the_net(name: str) -> None:
    model = built(NETS[name])
    assert any(isinstance(layer, Dropout) for layer in model)
    pictures = torch.randn(16, 3, *[NETS[name].size if NETS[name].size <= 64 else 64] * 2)
    plain = trained(model, model, pictures)
    compiled = Compiled(model, BACKEND)  # it raises an error where it takes only parts of the net
    for _ in range(2):
        ours = trained(model, compiled, pictures)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=3e-5) for a, b in zip(ours, plain, strict=True))
    other = trained(model, compiled, pictures, seed=1)
    assert not torch.allclose(other[0], plain[0], rtol=1e-3)


def test_compiled_nets_take_turns_with_masks_of_their_own() -> None:
    """Torch compiles a function for eight nets, unless it is told otherwise."""
    pictures = torch.randn(4, 3, 32, 32)
    different = [S4, S2.avr(1), *(S2.crelu(*range(1, n)) for n in range(2, 9))]
    models = [built(net.dropout(0.5, "conv2")) for net in different] + [built(S4, seed=1)]
    plain = [trained(model, model, pictures) for model in models]
    nets = [Compiled(model, "eager") for model in models]
    for _ in range(2):
        for model, net, expected in zip(models, nets, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(trained(model, net, pictures), expected, strict=True))
