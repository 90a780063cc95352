"""Reconstruction: CGLS against the dense pseudoinverse, Gram matrices against dense least squares, and the controls."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crelu_data.synthetic import picture
from crelu_models.activations import crelu
from crelu_models.modules import build, initialise
from crelu_models.spec import Conv, Net, Pool
from crelu_models.tables import PAPER
from sweeps.analysis import reconstruct
from sweeps.analysis.capture import capture, side_read
from sweeps.analysis.cgls import back, cgls, inverted, likeness, ratio, transposed, unrectified
from sweeps.analysis.pooling_ratio import (
    Deal,
    clustered_se,
    inner_starts,
    patch_columns,
    patch_ratios,
    pooled_columns,
    pooled_ratio,
)
from sweeps.analysis.reconstruct import algorithm_of, chain, chain_steps, pooled, randomised, unpooled, why_not
from sweeps.analysis.sources import NotApplicableError
from sweeps.analysis.weights import LoadedNet
from sweeps.results.paper import ROWS
from sweeps.training.runtime import RuntimeConfig

# Kernel, stride, padding, inputs, filters, side: the five geometries of the ImageNet net, small.
GEOMETRIES = [(11, 4, 0, 2, 10, 21), (3, 2, 0, 5, 7, 10), (5, 1, 2, 3, 5, 8), (1, 1, 0, 6, 4, 5), (3, 2, 1, 4, 6, 9)]
geometry = pytest.mark.parametrize(("kernel", "stride", "pad", "inputs", "filters", "side"), GEOMETRIES)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(weight: Tensor, stride: int, pad: int, side: int) -> Tensor:
    """Return conv2d as a dense matrix."""
    size = weight.shape[1] * side**2
    unit = torch.eye(size, dtype=torch.float64).view(size, weight.shape[1], side, side)
    return functional.conv2d(unit, weight, stride=stride, padding=pad).flatten(1).T


# Algorithm 1 ----------------------------------------------------------------------------------------------------


def test_crelu_is_undone_exactly() -> None:
    x = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unrectified(crelu(x)), x)


@geometry
def test_transposed_is_the_adjoint(kernel: int, stride: int, pad: int, inputs: int, filters: int, side: int) -> None:
    weight, x = normal(filters, inputs, kernel, kernel), normal(2, inputs, side, side, seed=1)
    z = functional.conv2d(x, weight, stride=stride, padding=pad)
    other = normal(*z.shape, seed=2)
    inner = (z * other).sum()
    assert torch.isclose(inner, (x * transposed(other, weight, stride, pad, side)).sum(), rtol=1e-12)


@geometry
def test_cgls_is_the_dense_pseudoinverse(
    kernel: int, stride: int, pad: int, inputs: int, filters: int, side: int
) -> None:
    weight, x = normal(filters, inputs, kernel, kernel), normal(2, inputs, side, side, seed=1)
    z = functional.conv2d(x, weight, stride=stride, padding=pad)
    dense = torch.linalg.pinv(matrix(weight, stride, pad, side))
    # Also for z that no x gives: least squares of least norm.
    for right in (z, normal(*z.shape, seed=2)):
        solution = cgls(right, weight, stride, pad, side, [2000], tolerance=1e-13)[0]
        exact = (right.flatten(1) @ dense.T).view_as(solution)
        assert (solution - exact).abs().max() <= 1e-9 * exact.abs().max()


@geometry
def test_the_reconstruction_is_an_orthogonal_projection(
    kernel: int, stride: int, pad: int, inputs: int, filters: int, side: int
) -> None:
    weight, x = normal(filters, inputs, kernel, kernel), normal(2, inputs, side, side, seed=1)

    def project(v: Tensor) -> Tensor:
        z = functional.conv2d(v, weight, stride=stride, padding=pad)
        return cgls(z, weight, stride, pad, side, [2000], tolerance=1e-13)[0]

    again = project(x)
    y = normal(2, inputs, side, side, seed=3)
    lost = ratio(x, again)
    assert ((lost >= 0) & (lost <= 1)).all()
    size = again.square().flatten(1).sum(1) / x.square().flatten(1).sum(1)
    assert torch.allclose(lost.square() + size, torch.ones(2, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(project(again), again, atol=1e-8)
    assert torch.isclose((project(x) * y).sum(), (x * project(y)).sum(), rtol=1e-8)


@geometry
def test_what_the_filters_span_comes_back(
    kernel: int, stride: int, pad: int, inputs: int, filters: int, side: int
) -> None:
    weight = normal(filters, inputs, kernel, kernel)
    some = functional.conv2d(
        torch.zeros(1, inputs, side, side, dtype=torch.float64), weight, stride=stride, padding=pad
    )
    x = transposed(normal(*some.shape, seed=4), weight, stride, pad, side)
    z = functional.conv2d(x, weight, stride=stride, padding=pad)
    assert float(ratio(x, cgls(z, weight, stride, pad, side, [2000], tolerance=1e-13)[0])) <= 1e-9


def test_pixels_beyond_the_last_window_are_lost_and_nothing_else() -> None:
    # As index 223 of 224 under conv1: here 21 of 22, with filters enough for all the rest.
    weight, x = normal(400, 3, 11, 11), normal(1, 3, 20, 20, seed=1)
    again = cgls(functional.conv2d(x, weight, stride=4), weight, 4, 0, 20, [300])[0]
    assert again[:, :, 19].abs().max() == 0
    assert again[:, :, :, 19].abs().max() == 0
    assert (again - x)[:, :, :19, :19].abs().max() < 1e-8


def test_a_1x1_conv_is_inverted_in_closed_form() -> None:
    weight, z = normal(4, 6, 1, 1), normal(2, 4, 5, 5, seed=1)
    exact = inverted(z, weight, 1, 0, 5, [3, 7])
    assert torch.equal(*exact)
    assert torch.allclose(exact[0], cgls(z, weight, 1, 0, 5, [200])[0], atol=1e-9)
    dense = torch.linalg.pinv(matrix(weight, 1, 0, 5))
    assert torch.allclose(exact[0].flatten(1), z.flatten(1) @ dense.T, atol=1e-10)


def test_scales_of_filters_do_not_change_what_comes_back() -> None:
    weight, x = normal(6, 4, 3, 3), normal(1, 4, 9, 9, seed=1)
    scaled = weight * torch.logspace(-0.3, 0.3, 6, dtype=torch.float64)[:, None, None, None]
    both = (cgls(functional.conv2d(x, w, stride=2, padding=1), w, 2, 1, 9, [2000])[0] for w in (weight, scaled))
    assert torch.allclose(*both, atol=1e-8)


def test_limits_are_looks_at_one_run() -> None:
    weight, x = normal(10, 2, 11, 11), normal(3, 2, 21, 21, seed=1)
    z = functional.conv2d(x, weight, stride=4)
    together = cgls(z, weight, 4, 0, 21, [1, 4, 5000])
    for limit, solution in zip((1, 4), together, strict=False):
        assert torch.equal(solution, cgls(z, weight, 4, 0, 21, [limit])[0])
    lost = [ratio(x, solution) for solution in together]
    assert all((after <= before).all() for before, after in itertools.pairwise(lost))


def test_a_picture_does_not_depend_on_its_batch() -> None:
    weight, z = normal(6, 4, 3, 3), normal(3, 6, 5, 5, seed=1)
    z[1] = 0
    together = cgls(z, weight, 2, 1, 9, [40])[0]
    for i in range(3):
        assert torch.allclose(together[i], cgls(z[i : i + 1], weight, 2, 1, 9, [40])[0][0], atol=1e-12)
    assert together[1].abs().max() == 0


def test_float32_comes_near_float64() -> None:
    weight, x = normal(10, 2, 11, 11), normal(1, 2, 21, 21, seed=1)
    z = functional.conv2d(x, weight, stride=4)
    exact = cgls(z, weight, 4, 0, 21, [100])[0]
    single = cgls(z.float(), weight.float(), 4, 0, 21, [100])[0]
    assert single.dtype == torch.float32
    assert float(ratio(exact, single.double())) < 1e-5


def narrow_s9(seed: int = 0) -> LoadedNet:
    """Return CReLU conv1-4 of the ImageNet net at an eighth of its width, drawn at random."""
    net = PAPER["S9"].width(1 / 8)
    model = build(net, 5)
    initialise(model, net, "he_fan_in", seed)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name in weights:
        if name.endswith("bias"):
            weights[name].normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return LoadedNet("narrow S9", "none", net, "", weights)


def test_layers_of_random_filters_lose_what_their_rank_says() -> None:
    subject = narrow_s9()
    size = 75
    limits = [600]
    model = subject.model(size, dtype=torch.float64)
    x = (
        torch.stack([torch.from_numpy(picture(0, i, i, size, 10)).permute(2, 0, 1) for i in range(2)]).double() / 255
        - 0.5
    )
    layers = ["conv1", "conv2", "conv3", "conv4"]
    by_layer = chain(model, chain_steps(subject, "conv4", size, model), layers, x, limits)
    losses = {layer: float(by_layer[layer, 600][0].mean()) for layer in layers}
    # conv2 keeps 12 of 24 dimensions at each place: sqrt(1/2); conv3 12 of 4 x 24: about sqrt(7/8).
    assert losses["conv2"] == pytest.approx(math.sqrt(1 / 2), abs=0.12)
    assert losses["conv3"] == pytest.approx(math.sqrt(7 / 8), abs=0.08)
    # conv4 has 32 filters for 24 inputs and keeps all of them, so that its picture is conv3's.
    assert losses["conv4"] < 1e-3
    again, before = by_layer["conv4", 600][1], by_layer["conv3", 600][1]
    assert float(ratio(before, again).max()) < 1e-3
    assert float(ratio(x, by_layer["conv1", 600][1]).max()) == pytest.approx(losses["conv1"], rel=0.2)


def test_the_chain_undoes_layers_that_lose_nothing() -> None:
    rows = (
        Conv("conv1", 40, 3, 1, 1, act="crelu"),
        Conv("conv2", 90, 1, 1, 0, act="crelu"),
        Conv("conv3", None, 1, act="none"),
        Pool("pool", "avg", 0),
    )
    net = Net("wide", rows, 8)
    model = build(net, 3)
    initialise(model, net, "he_fan_in", 1)
    subject = LoadedNet("wide", "none", net, "", dict(model.state_dict()))
    double = subject.model(8, dtype=torch.float64)
    x = normal(2, 3, 8, 8, seed=5)
    steps = chain_steps(subject, "conv2", 8, double)
    features = capture(double, ["conv3"], x)["conv3"]
    assert float(ratio(x, back(features, steps, 400)).max()) < 1e-8


def test_likeness_fits_the_scale_first() -> None:
    x = normal(2, 3, 6, 6)
    noise = normal(2, 3, 6, 6, seed=1)
    fit = likeness(x, 4 * x + 4e-3 * noise, torch.full((3, 1, 1), 0.25))
    assert torch.allclose(fit.cosine, torch.ones(2, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(fit.scale, torch.full((2,), 0.25, dtype=torch.float64), atol=1e-4)
    # The error is 1e-3 of the noise in what a net reads, 2.5e-4 of it in pixels.
    expected = -10 * (2.5e-4 * noise).square().flatten(1).mean(1).log10()
    assert torch.allclose(fit.psnr, expected, atol=0.1)
    nothing = likeness(x, torch.zeros_like(x), torch.full((3, 1, 1), 0.25))
    assert nothing.scale.tolist() == [0, 0]
    assert nothing.psnr.isfinite().all()


# Algorithm 2 ----------------------------------------------------------------------------------------------------


def dense_ratio(x: Tensor, w: Tensor, mask: Tensor) -> float:
    """Return |x - x'| / |x| by least squares with the columns themselves."""
    chosen = w[:, mask]
    solution = torch.linalg.lstsq(chosen, x[:, None], driver="gelsd").solution
    return float((x - (chosen @ solution)[:, 0]).norm() / x.norm())


@pytest.mark.parametrize(("kernel", "stride", "window"), [(3, 1, 3), (3, 1, 2), (5, 1, 2), (3, 2, 3), (1, 1, 3)])
def test_columns_give_the_responses_of_the_conv(kernel: int, stride: int, window: int) -> None:
    weight = normal(4, 3, kernel, kernel)
    side = (window - 1) * stride + kernel
    x = normal(5, 3, side, side, seed=1)
    w = patch_columns(weight, window, stride)
    assert w.shape == (3 * side**2, 4 * window**2)
    assert torch.allclose((x.flatten(1) @ w).view(5, 4, window, window), functional.conv2d(x, weight, stride=stride))


def test_gram_matrices_give_what_dense_least_squares_gives() -> None:
    weight, x = normal(6, 4, 3, 3), normal(40, 100, seed=1)
    w = patch_columns(weight, 3)
    z = x @ w
    mask = pooled_columns((z + 0.3).view(40, 6, 9)).flatten(1)
    assert mask.sum(1).min() < mask.sum(1).max()
    ratios = pooled_ratio(x.square().sum(1), z, mask, w.T @ w)
    for i in range(40):
        assert float(ratios[i]) == pytest.approx(dense_ratio(x[i], w, mask[i]), abs=1e-12)


def test_columns_that_say_the_same_twice_are_cut() -> None:
    weight = normal(3, 2, 3, 3).repeat(2, 1, 1, 1)
    w = patch_columns(weight, 3)
    x = normal(8, 50, seed=1)
    mask = torch.ones(8, 54, dtype=torch.bool)
    ratios = pooled_ratio(x.square().sum(1), x @ w, mask, w.T @ w)
    for i in range(8):
        assert float(ratios[i]) == pytest.approx(dense_ratio(x[i], w, mask[i]), abs=1e-9)


def test_a_patch_that_is_one_filter_is_not_lost() -> None:
    w = patch_columns(normal(1, 4, 3, 3), 3)
    for j in range(9):
        x = -2.5 * w[:, j][None]
        z = x @ w
        mask = pooled_columns(z.view(1, 1, 9)).flatten(1)
        assert mask[0, j]
        assert float(pooled_ratio(x.square().sum(1), z, mask, w.T @ w)) < 1e-6


def test_more_columns_never_lose_more_and_ratios_stay_within_bounds() -> None:
    w = patch_columns(normal(5, 4, 3, 3), 3)
    x = normal(60, 100, seed=1)
    z = x @ w
    size = x.square().sum(1)
    gram = w.T @ w
    both = pooled_columns(z.view(60, 5, 9)).flatten(1)
    positive = both & (z > 0)
    few, more, none = (pooled_ratio(size, z, mask, gram) for mask in (positive, both, torch.zeros_like(both)))
    assert ((more >= 0) & (few <= 1)).all()
    assert (more <= few + 1e-12).all()
    assert (more < few - 1e-6).any()
    assert (none == 1).all()
    assert pooled_ratio(size[:1] * 0, z[:1] * 0, torch.zeros_like(both[:1]), gram).tolist() == [0]


def test_pooled_columns_are_what_the_pool_keeps() -> None:
    a = normal(7, 5, 9) + 0.4
    mask = pooled_columns(a)
    features = functional.max_pool2d(crelu(a.view(7, 5, 3, 3)), 3)
    for n, i in itertools.product(range(7), range(5)):
        values = a[n, i][mask[n, i]]
        for phase, sign in ((features[n, i], 1), (features[n, i + 5], -1)):
            positive = sign * values[sign * values > 0]
            assert positive.tolist() == ([phase.item()] if phase > 0 else [])


def test_patches_see_no_padding() -> None:
    (conv2, pool1), (conv5, pool2) = pooled(PAPER["S3_half"])
    assert (conv2.name, conv5.name) == ("conv2", "conv5")
    sides = [side_read(PAPER["S3_half"], conv.name, 32) for conv in (conv2, conv5)]
    assert sides == [32, 16]
    # A window of 3 places 2 apart sees 5 inputs from 2u - 1 on.
    assert inner_starts(conv2, pool1, 32) == [*range(1, 28, 2)]
    assert inner_starts(conv5, pool2, 16) == [*range(1, 12, 2)]
    with pytest.raises(ValueError, match="needs 5 and more"):
        inner_starts(conv2, pool1, 5)


@pytest.mark.parametrize(("inputs", "filters", "expected"), [(96, 48, 0.951), (192, 96, 0.952)], ids=["conv2", "conv5"])
def test_normal_patches_lose_as_measured(inputs: int, filters: int, expected: float) -> None:
    w = patch_columns(normal(filters, inputs, 3, 3), 3)
    x = normal(40, 25 * inputs, seed=1)
    z = x @ w
    mask = pooled_columns(z.view(40, filters, 9)).flatten(1)
    assert float(pooled_ratio(x.square().sum(1), z, mask, w.T @ w).mean()) == pytest.approx(expected, abs=0.004)


def embedded(count: int) -> Tensor:
    """Return 32-pixel pieces of embedded pictures of 256 pixels: as smooth as pieces of photographs."""
    pictures = [torch.from_numpy(picture(1, i, i % 10, 256, 10)) for i in range(count)]
    pieces = torch.stack([drawn[i : i + 32, 2 * i : 2 * i + 32] for i, drawn in enumerate(pictures)])
    pieces = pieces.permute(0, 3, 1, 2).float() / 255
    return (pieces - pieces.mean((0, 2, 3), keepdim=True)) / pieces.std((0, 2, 3), keepdim=True)


def half() -> LoadedNet:
    net = PAPER["S3_half"]
    return LoadedNet("half", "none", net, "", dict(build(net, 10).state_dict()))


@pytest.mark.parametrize(("place", "expected", "columns"), [(0, 0.981, 55), (1, 0.986, 112)])
def test_natural_patches_through_random_layers_lose_as_measured(place: int, expected: float, columns: int) -> None:
    subject = randomised(half(), 0)
    conv, pool = pooled(subject.net)[place]
    ratios, counts = patch_ratios(subject, conv, pool, embedded(60).split(25), Deal(120, 60, 32))
    assert float(ratios.mean()) == pytest.approx(expected, abs=0.004)
    assert float(counts.double().mean()) == pytest.approx(columns, rel=0.15)


def test_patches_are_those_of_their_pictures() -> None:
    subject = randomised(half(), 0)
    conv, pool = pooled(subject.net)[0]
    x = embedded(7)
    ratios, _ = patch_ratios(subject, conv, pool, x.split(3), Deal(20, 7, 32))
    again, _ = patch_ratios(subject, conv, pool, x.split(7), Deal(20, 7, 32))
    assert torch.allclose(ratios, again, atol=1e-6)
    changed = x.clone()
    changed[4] = changed[4].flip(2)
    other, _ = patch_ratios(subject, conv, pool, changed.split(3), Deal(20, 7, 32))
    assert ((ratios - other).abs() > 1e-6).nonzero()[:, 0].tolist() == [4, 11, 18]


def test_standard_errors_are_over_pictures() -> None:
    values = normal(12)
    assert clustered_se(values, 12) == pytest.approx(float(values.std()) / math.sqrt(12))
    means = values.view(3, 4).mean(0)
    assert clustered_se(values, 4) == pytest.approx(float(means.std()) / 2)
    assert math.isnan(clustered_se(values, 1))


# What fits ------------------------------------------------------------------------------------------------------


def test_random_control_draws_all_convs_or_one() -> None:
    subject = half()
    control = randomised(subject, 3)
    assert float(control.weights["conv4.weight"].std()) == pytest.approx(1, abs=0.02)
    assert not control.weights["conv4.bias"].any()
    partial = randomised(subject, 3, "conv2")
    assert torch.equal(partial.weights["conv2.weight"], control.weights["conv2.weight"])
    assert torch.equal(partial.weights["conv1.weight"], subject.weights["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "unpooled_convs", "pooled_convs"),
    [
        ("S9", ["conv1", "conv2", "conv3", "conv4"], []),
        ("S13", ["conv1"], []),
        ("S3_half", ["conv1", "conv2"], ["conv2", "conv5"]),
        ("convpool_cnn_c_half", ["conv1", "conv2", "conv3"], ["conv3", "conv6"]),
        ("S8", [], []),
        ("S6", [], []),
        ("S2_avr", [], []),
    ],
)
def test_each_algorithm_fits_its_layers(name: str, unpooled_convs: list[str], pooled_convs: list[str]) -> None:
    net = PAPER[name]
    assert [conv.name for conv in unpooled(net)] == unpooled_convs
    assert [conv.name for conv, _ in pooled(net)] == pooled_convs
    if not unpooled_convs and not pooled_convs:
        with pytest.raises(NotApplicableError, match=r"only CReLU keeps both phases|batch norm"):
            algorithm_of(bare(net), 0)
    else:
        assert algorithm_of(bare(net), 0) == (2 if pooled_convs else 1)


def bare(net: Net) -> LoadedNet:
    return LoadedNet("mine", "weights/mine", net, "", {})


def test_why_not_says_what_stands_in_the_way() -> None:
    assert "pool1 pools in front of conv3" in why_not(PAPER["S3_half"], "conv3", 1)
    assert "behind conv2 stands relu" in why_not(PAPER["S13"], "conv4", 1)
    assert "conv1 has batch norm" in why_not(PAPER["S6"], "conv1", 1)
    assert "max-pooling behind it" in why_not(PAPER["S9"], "conv1", 2)
    with pytest.raises(NotApplicableError, match="mine: no conv has CReLU and max-pooling"):
        algorithm_of(bare(PAPER["S9"]), 2)


def test_table_s1_stands_beside_its_own_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = torch.linspace(0.5, 0.9, 4).double()
    sample = SimpleNamespace(indices=np.arange(4), crop=32, seen=lambda count: [])
    monkeypatch.setattr(reconstruct, "open_sample", lambda *_: sample)
    monkeypatch.setattr(reconstruct, "patch_ratios", lambda *_: (ratios, torch.ones(4)))

    def printed(net: Net, dataset: str) -> list[str | None]:
        """Return what the job prints of the paper's learned filters beside the pooled layers of a net."""
        loaded = LoadedNet("any", "none", net, dataset, dict(build(net, 10).state_dict()))
        asked = {"algorithm": 2, "layers": [], "samples": 4, "seed": 0, "control": "random"}
        return [row.get("paper learned") for row in reconstruct.findings(loaded, RuntimeConfig("", ""), asked).rows]

    table_s1 = {row.label: str(row.numbers[0]) for row in ROWS if (row.table, row.dataset) == ("S1", "cifar10")}
    assert printed(PAPER["S3_half"], "cifar10") == list(table_s1.values())
    assert printed(PAPER["S3_half"], "svhn") == [None, None]
    assert printed(PAPER["S3_crelu"], "cifar10") == [None, None]
