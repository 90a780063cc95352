"""Built nets: the paper's names, shapes and counts; initial weights; dropout."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from crelu_models.activations import activation
from crelu_models.dropout import Dropout, seed_dropout
from crelu_models.modules import ENERGY, INITS, build, initialise
from crelu_models.spec import CHANNEL_FACTOR, Conv, Drop, Net, Pool
from crelu_models.tables import PAPER, S2, S4, S8, S13

NETS = pytest.mark.parametrize("net", PAPER.values(), ids=PAPER.keys())
SMALL = S8.width(1 / 16)


def empty(net: Net, classes: int, size: int | None = None) -> nn.Sequential:
    """Return the built net without memory behind it: shapes alone."""
    with torch.device("meta"):
        return build(net, classes, size).eval()


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def ready(net: Net, init: str = "he_fan_in", seed: int = 0) -> nn.Sequential:
    module = build(net, 10)
    initialise(module, net, init, seed)
    return module


def outputs(module: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Return what each part of the module gives, by its name."""
    features = {}
    with torch.no_grad():
        for name, part in module.named_children():
            features[name] = x = part(x)
    return features


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@NETS
@pytest.mark.parametrize("classes", [10, 1000])
def test_the_closed_form_counts_what_is_built(net: Net, classes: int):
    assert count(empty(net, classes)) == net.parameters(classes)


@pytest.mark.parametrize("name", CHANNEL_FACTOR)
def test_the_closed_form_counts_every_activation(name: str):
    net = S2.activation(name, 1, 3, 7)
    assert count(empty(net, 10)) == net.parameters(10)


@NETS
@pytest.mark.parametrize("larger", [0, 1, 40])
def test_shapes_and_multiply_accumulates_are_those_of_the_built_net(net: Net, larger: int):
    size = net.size + larger
    module = empty(net, 10, size)
    macs = 0
    features = outputs(module, torch.empty(2, 3, size, size, device="meta"))
    for name, channels, side in net.shapes(10, size):
        y = features.get(f"{name}_act", features[name])
        assert y.shape[:2] == (2, channels)
        assert y.shape[2:] in ((side, side), ())
        part = getattr(module, name)
        if isinstance(part, nn.Conv2d | nn.Linear):
            macs += part.weight.numel() * side**2
    assert features["flatten" if "fc15" not in features else "fc15"].shape == (2, 10)
    assert macs == net.macs(10, size)


@pytest.mark.parametrize("side", range(1, 20))
@pytest.mark.parametrize(
    "pool", [(3, 2, 0, True), (3, 2, 1, True), (2, 3, 1, True), (2, 2, 0, False), (3, 2, 1, False)]
)
def test_sides_behind_a_pool_are_torchs(side: int, pool: tuple[int, int, int, bool]):
    kernel, stride, pad, ceil = pool
    rows = (Conv("conv1", 2, 1), Pool("pool1", "max", kernel, stride, pad, ceil), Conv("conv2", None, 1, act="none"))
    net = Net("pool", (*rows, Pool("pool", "avg", 0)), 64)
    try:
        expected = nn.MaxPool2d(kernel, stride, pad, ceil_mode=ceil)(torch.zeros(1, 1, side, side)).shape[-1]
    except RuntimeError:
        with pytest.raises(ValueError, match="leave nothing at pool1"):
            net.shapes(2, side)
    else:
        assert net.shapes(2, side)[1] == ("pool1", 2, expected)


def test_names_are_the_papers():
    net = S4.dropout(0.2, "input").crelu(1, width=0.5)
    names = [name for name, _ in build(net, 10).named_children()]
    assert names[:8] == [
        "drop_input",
        "conv1",
        "conv1_bn",
        "conv1_act",
        "drop_conv1",
        "conv2",
        "conv2_bn",
        "conv2_act",
    ]
    assert names[-8:] == ["pool5", "drop_pool5", "flatten", "fc14", "fc14_bn", "fc14_act", "drop_fc14", "fc15"]
    assert [name for name, _ in build(SMALL, 10).named_children()][-4:] == ["conv11_act", "conv12", "pool", "flatten"]
    assert [name for name, _ in build(SMALL.final_activation("relu"), 10).named_children()][-3] == "conv12_act"


def test_a_built_net_needs_pictures_large_enough():
    with pytest.raises(ValueError, match="side 34 leave nothing at conv6: 35 is the least"):
        build(S8, 10, 34)


def test_the_last_row_and_column_of_a_picture_of_224_are_never_seen():
    conv1 = ready(SMALL).conv1
    x = pictures(1, 224)
    other = x.clone()
    other[..., 223, :] = other[..., :, 223] = 7.0
    assert torch.equal(conv1(x), conv1(other))
    other[..., 222, 222] = 7.0
    assert not torch.equal(conv1(x), conv1(other))


@pytest.mark.parametrize("key", ["S2", "S2_avr", "S3_half"])
def test_the_border_of_conv7_is_its_activated_bias(key: str):
    module = ready(PAPER[key])
    with torch.no_grad():
        module.conv7.bias.normal_()
    y = outputs(module, pictures(2, 32))["conv7_act"]
    bias = module.conv7_act(module.conv7.bias.detach().view(1, -1, 1, 1))
    assert y.shape[-2:] == (10, 10)
    border = torch.ones(10, 10, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert border.sum() == 36
    assert torch.equal(y[:, :, border], bias.flatten(2).expand(2, -1, 36))


def test_the_average_pool_is_over_whatever_map_is_there():
    module = ready(SMALL)
    for size in (56, 64, 224):
        features = outputs(module, pictures(2, size))
        torch.testing.assert_close(features["flatten"], features["conv12"].mean((2, 3)))


def test_the_scores_of_a_narrow_net_by_plain_functions():
    net = S13.width(0.125)
    module = ready(net)
    x = pictures(2, 64)
    expected = x
    convs = [row for row in net.rows if isinstance(row, Conv)]
    for row in convs:
        conv = getattr(module, row.name)
        z = torch.conv2d(expected, conv.weight, conv.bias, row.stride, row.pad)
        expected = {"relu": z.relu(), "crelu": torch.cat([z.relu(), (-z).relu()], 1), "none": z}[row.act]
    torch.testing.assert_close(module.eval()(x), expected.mean((2, 3)))


def test_batch_norm_is_that_of_cifar_torch() -> None:
    norms = [each for each in build(S4, 10).modules() if isinstance(each, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert len(norms) == 14
    assert {(norm.eps, norm.momentum, norm.affine) for norm in norms} == {(1e-3, 0.1, True)}


def test_channels_last_and_bf16_train():
    net = S4.width(0.125).crelu(1, 3, width=0.5)
    module = ready(net).to(memory_format=torch.channels_last)
    seed_dropout(module, 0, 0, 0)
    x = pictures(4, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        scores = module(x)
    assert scores.dtype == torch.bfloat16
    scores.float().square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in module.parameters())


@pytest.mark.parametrize("init", INITS)
def test_an_initialisation_is_a_function_of_the_seed(init: str):
    net = SMALL.crelu(1, 4, 7)
    torch.manual_seed(1)
    weights = ready(net, init, seed=3).state_dict()
    torch.manual_seed(2)
    module = build(net, 10)
    state = torch.get_rng_state()
    initialise(module, net, init, 3)
    assert torch.equal(torch.get_rng_state(), state)  # no draw from the stream everyone shares
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    other = ready(net, init, seed=4).state_dict()
    assert not any(torch.equal(weights[name], other[name]) for name in weights if name.endswith("weight"))


def test_initialise_undoes_a_training():
    net = S4.width(0.125).activation("prelu", 2)
    fresh, used = ready(net), build(net, 10)
    with torch.no_grad():
        for tensor in used.state_dict().values():
            tensor.copy_(torch.full_like(tensor, 7))
    initialise(used, net, "he_fan_in", 0)
    left = {name for name, tensor in used.state_dict().items() if not torch.equal(tensor, fresh.state_dict()[name])}
    assert left == set()
    assert all(not tensor.any() for name, tensor in used.state_dict().items() if name.endswith("bias"))
    assert set(used.conv2_act.weight.tolist()) == {0.25}
    assert set(used.conv1_bn.weight.tolist()) == {1.0}


def test_nets_start_alike_where_their_tensors_agree():
    plain, halved = ready(SMALL).state_dict(), ready(SMALL.crelu(4, width=0.5)).state_dict()
    other = {name for name in plain if plain[name].shape != halved[name].shape}
    assert other == {"conv4.weight", "conv4.bias"}
    assert all(torch.equal(plain[name], halved[name]) for name in plain if name not in other)


@pytest.mark.parametrize("init", INITS)
def test_layers_of_one_shape_start_apart(init: str):
    module = ready(S2.width(0.125), init)
    weights = [module.conv4.weight, module.conv5.weight, module.conv6.weight]
    assert len({weight.shape for weight in weights}) == 1
    for first, second in itertools.combinations(weights, 2):
        assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.1


def test_initialise_is_no_different_in_another_layout():
    contiguous, channels_last = ready(SMALL), build(SMALL, 10).to(memory_format=torch.channels_last)
    initialise(channels_last, SMALL, "he_fan_in", 0)
    assert all(torch.equal(a, b) for a, b in zip(contiguous.parameters(), channels_last.parameters(), strict=True))


# Standard deviation of conv3's weights (64 filters of 3x3 reading 64 channels), and of the first linear layer's.
@pytest.mark.parametrize(
    ("init", "conv", "linear"),
    [
        ("he_fan_in", math.sqrt(2 / (9 * 64)), math.sqrt(2 / 512)),
        ("he_fan_out", math.sqrt(2 / (9 * 128)), math.sqrt(1 / 512 / 3)),
        ("xavier", math.sqrt(1 / (9 * 64)), math.sqrt(1 / 512)),
        ("torch", math.sqrt(1 / (9 * 64) / 3), math.sqrt(1 / 512 / 3)),
        ("normal_0.01", 0.01, 0.01),
        ("looks_linear", math.sqrt(2 / (9 * 64)), math.sqrt(2 / 512)),
    ],
)
def test_weights_have_the_spread_of_their_initialisation(init: str, conv: float, linear: float):
    net = Net("some", tuple(row for row in S4.rows if not isinstance(row, Drop)), 32)
    module = ready(net, init)
    for weight, spread in ((module.conv3.weight, conv), (module.fc14.weight, linear)):
        assert weight.std().item() == pytest.approx(spread, rel=0.02)
        assert abs(weight.mean().item()) < 4 * spread / math.sqrt(weight.numel())


def test_fan_in_counts_both_phases():
    for net, inputs in ((S2, 192), (S2.crelu(3), 384)):
        assert ready(net).conv4.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * inputs)), rel=0.02)


# Spread over pictures of the last pre-activation, computed apart from this code to one or two digits.
@pytest.mark.parametrize(
    ("key", "init", "expected"),
    [
        ("S2", "he_fan_in", 0.36),
        ("S2", "he_fan_out", 0.16),
        ("S2", "xavier", 0.02),
        ("S2", "torch", 3e-4),
        ("S2", "normal_0.01", 1e-7),
        ("S3_crelu", "he_fan_in", 0.36),
        ("S3_crelu", "he_fan_out", 2.2),
        ("S3_crelu", "torch", 3e-4),
    ],
)
def test_he_fan_in_keeps_the_signal_that_others_lose(key: str, init: str, expected: float):
    scores = outputs(ready(PAPER[key], init), pictures(4, 32))["conv8"]
    assert expected / 2 < scores.std(0).mean().item() < expected * 2


def test_he_fan_in_does_not_blow_up_behind_avr():
    # With ReLU's factor sqrt(2) the spread would be 2.0.
    scores = outputs(ready(PAPER["S2_avr"]), pictures(4, 32))["conv8"]
    assert 0.1 < scores.std(0).mean().item() < 0.7


def test_a_looks_linear_crelu_net_starts_linear():
    net = SMALL.crelu(*range(1, 12))
    module = ready(net, "looks_linear").double()
    x, y = pictures(2, 64).double(), pictures(2, 64, 1).double()
    with torch.no_grad():
        assert (module(x) - module(-x)).abs().max() > 0.1
        torch.testing.assert_close(module(2 * x - 3 * y), 2 * module(x) - 3 * module(y))
        other = ready(net, "he_fan_in").double()
        assert (other(2 * x - 3 * y) - 2 * other(x) + 3 * other(y)).abs().max() > 0.1


def test_energies_are_mean_squares_under_a_normal_input():
    x = torch.linspace(-12, 12, 480_001, dtype=torch.double)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    assert set(ENERGY) == set(CHANNEL_FACTOR)
    for name, energy in ENERGY.items():
        if name != "antirectifier":  # it centres over channels first, of which there is one here
            y = activation(name, 1).double()(x[:, None])[:, 0]
            assert (y**2 * density).sum().item() == pytest.approx(energy, rel=2e-4)


def test_an_unknown_initialisation_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'orthogonal'.*he_fan_in.*looks_linear"):
        initialise(build(SMALL, 10), SMALL, "orthogonal", 0)


def dropped(rate: float, seed: int, x: Tensor, name: str = "conv9") -> Tensor:
    layer = Dropout(rate, name)
    layer.seed(seed)
    return layer(x)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9, 0.0123])
def test_dropout_drops_its_share_and_scales_the_rest(rate: float):
    x = torch.rand(100, 20, 10, 10, generator=torch.Generator().manual_seed(1)) + 1
    y = dropped(rate, 7, x)
    mask = y != 0
    error = math.sqrt(rate * (1 - rate) / x.numel())
    assert abs((~mask).float().mean().item() - rate) < 4 * error
    # A CPU draws with whole 65,536ths, and scales by what it draws with: nothing is shifted by the rounding.
    torch.testing.assert_close(y[mask], x[mask] / (1 - round(rate * 65536) / 65536))
    assert mask.float().mean((0, 2, 3)).std() < 2 * math.sqrt(rate * (1 - rate) / 10_000)  # by element, not by channel


def test_dropout_gives_its_mask_as_the_gradient():
    x = torch.ones(50, 40, requires_grad=True)
    y = dropped(0.5, 1, x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_is_the_identity_in_evaluation():
    x = pictures(2, 8)
    assert Dropout(0.5, "input").eval()(x) is x


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_mask_depends_on_its_seed_alone(kind: torch.dtype, layout: torch.memory_format):
    x = torch.ones(4, 6, 9, 9, dtype=kind).contiguous(memory_format=layout)
    first = dropped(0.5, 3, x)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(dropped(0.5, 3, x), first)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(dropped(0.5, 4, x), first)
    assert first.dtype == kind
    assert set(first.unique().tolist()) == {0.0, 2.0}


def test_dropout_leaves_the_shared_random_stream_alone():
    state = torch.get_rng_state()
    dropped(0.5, 3, torch.ones(1000))
    assert torch.equal(torch.get_rng_state(), state)


def masks(module: nn.Sequential, *at: int) -> dict[str, Tensor]:
    seed_dropout(module, *at)
    x = torch.ones(1, 4, 32, 32)
    return {name: part(x) for name, part in module.named_children() if isinstance(part, Dropout)}


def test_masks_are_a_function_of_seed_epoch_step_and_layer():
    net = SMALL.dropout(0.5, 1).dropout(0.5, 2)
    module = build(net, 10)
    first = masks(module, 0, 0, 0)
    for at in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not any(torch.equal(mask, first[name]) for name, mask in masks(module, *at).items())
    assert not torch.equal(first["drop_conv1"], first["drop_conv2"])
    # Another net, with other dropouts and another order of calls: the same layer, the same mask.
    other = masks(build(S2.dropout(0.5, 2).dropout(0.5, "input"), 10), 0, 0, 0)
    assert torch.equal(other["drop_conv2"], first["drop_conv2"])
    assert all(torch.equal(mask, first[name]) for name, mask in masks(copy.deepcopy(module), 0, 0, 0).items())
    # Masks of neighbouring steps and layers agree no more than by chance.
    for mask in [*masks(module, 0, 0, 1).values(), first["drop_conv2"]]:
        agree = (mask == first["drop_conv1"]).float().mean().item()
        assert abs(agree - 0.5) < 4 * 0.5 / math.sqrt(mask.numel())


def test_a_second_pass_of_one_step_draws_on():
    module = build(SMALL.dropout(0.5, 1), 10)
    seed_dropout(module, 0, 0, 0)
    x = torch.ones(100)
    assert not torch.equal(module.drop_conv1(x), module.drop_conv1(x))


def test_a_training_step_repeats_bit_for_bit():
    net = SMALL.crelu(1, 4, 7, width=0.5).dropout(0.25, 9).dropout(0.1, "input")

    def step() -> list[Tensor]:
        module = ready(net)
        seed_dropout(module, 5, 2, 9)
        module(pictures(4, 56)).square().sum().backward()
        return [parameter.grad for parameter in module.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))


def test_linear_rows_follow_the_size_of_the_picture():
    assert empty(S4, 10, 64).fc14.in_features == 2048
    assert count(empty(S4, 10, 64)) == S4.parameters(10, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_weights_are_those_of_the_cpu_and_masks_repeat():
    net = S13.width(0.125)
    on_cpu, on_gpu = ready(net), build(net, 10).cuda()
    initialise(on_gpu, net, "he_fan_in", 0)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True))
    x = pictures(2, 64).cuda()
    seed_dropout(on_gpu, 1, 2, 3)
    first = on_gpu(x)
    seed_dropout(on_gpu, 1, 2, 3)
    assert torch.equal(on_gpu(x), first)
