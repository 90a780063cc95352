"""Pairs of opposite phase: the identities of mu, and its values for random filters of the paper's shapes."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sweeps.analysis.pairing_scores import compare, contrast, groups_by_layer, mu_bins, pairs, random_mu


def test_mu_is_the_least_cosine_with_another_filter() -> None:
    weight = torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    mu, pair = pairs(weight)
    for i in range(7):
        cosine = {
            j: torch.cosine_similarity(weight[i].double().flatten(), weight[j].double().flatten(), dim=0).item()
            for j in range(7)
            if j != i
        }
        assert mu[i].item() == pytest.approx(min(cosine.values()), abs=1e-12)
        assert pair[i].item() == min(cosine, key=cosine.__getitem__)


def test_a_filter_and_its_negative_are_mates_with_mu_minus_one() -> None:
    half = torch.randn(16, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    mu, pair = pairs(torch.cat([half, -half]))
    assert torch.allclose(mu, torch.full((32,), -1.0, dtype=torch.float64), atol=1e-12)
    assert pair.tolist() == [*range(16, 32), *range(16)]


def test_orthonormal_filters_have_mu_zero() -> None:
    mu, _ = pairs(torch.linalg.qr(torch.randn(27, 27, generator=torch.Generator().manual_seed(2))).Q)
    assert mu.abs().max() < 1e-6


def test_positive_scales_do_not_change_mu() -> None:
    stream = torch.Generator().manual_seed(3)
    weight = torch.randn(48, 3, 3, 3, generator=stream)
    scaled = pairs(weight * (10 ** torch.empty(48).uniform_(-3, 3, generator=stream))[:, None, None, None])
    assert (scaled.mu - pairs(weight).mu).abs().max() < 4e-7
    assert torch.equal(scaled.pair, pairs(weight).pair)


def test_dealing_filters_anew_deals_mu_anew() -> None:
    weight = torch.randn(20, 12, generator=torch.Generator().manual_seed(4))
    dealt = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    before, after = pairs(weight), pairs(weight[dealt])
    assert torch.allclose(after.mu, before.mu[dealt], atol=1e-12)
    assert torch.equal(dealt[after.pair], before.pair[dealt])


def test_zero_filters_have_no_direction_and_are_nobodys_mate() -> None:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(6))
    weight[2] = 0
    mu, pair = pairs(weight)
    assert mu.isnan().tolist() == [False, False, True, False, False, False]
    assert pair[2] == -1
    assert 2 not in pair.tolist()
    assert torch.equal(mu[[0, 1, 3, 4, 5]], pairs(weight[[0, 1, 3, 4, 5]]).mu)


def test_bins_reach_every_mu() -> None:
    # Two filters of nine inputs: a quarter of the random values lie above 0.2.
    random = random_mu(2, 9, 999, 0)
    assert (random > 0.2).double().mean() > 0.2
    learned = torch.tensor([math.nan, -0.3, 0.1], dtype=torch.float64)
    bins = mu_bins([(learned, random)])
    assert np.histogram(random.numpy(), bins)[0].sum() == random.numel()
    assert np.histogram(random.numpy(), bins)[0][-5:].sum() > 0  # and no further than the next tenth
    assert mu_bins([(learned, learned)])[[0, -1]].tolist() == [-1, 0.2]
    assert mu_bins([(learned, learned), (torch.tensor([0.81]), learned)])[-1] == pytest.approx(0.9)


def test_a_single_filter_has_no_pair() -> None:
    with pytest.raises(ValueError, match="1 of 2 filters"):
        pairs(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("filters", "inputs", "expected"),
    [
        (96, 363, -0.131),  # conv1 of the ImageNet net
        (64, 363, -0.123),  # conv1 of AlexNet
        (256, 1200, -0.081),
        (384, 2304, -0.062),
        (384, 1728, -0.071),
        (256, 1728, -0.068),
        (96, 192, -0.180),  # conv2 of the CReLU net, 1x1
        (96, 1728, -0.060),  # its conv3
        (256, 4800, -0.041),  # its conv4
        (96, 27, -0.46),  # conv1 of the CIFAR net
    ],
)
def test_random_filters_have_the_mu_of_a_minimum_of_normals(filters: int, inputs: int, expected: float) -> None:
    mu = random_mu(filters, inputs, 3, 0)
    assert mu.shape == (3, filters)
    # The sd of mu over filters is 0.022 for conv1; the mean of three draws is far closer.
    assert float(mu.mean()) == pytest.approx(expected, abs=0.004 if inputs > 27 else 0.01)
    # E[max of n normals] by its integral.
    x = np.linspace(-8, 8, 4001)
    largest = np.trapezoid(x * (filters - 1) * stats.norm.pdf(x) * stats.norm.cdf(x) ** (filters - 2), x)
    assert float(mu.mean()) == pytest.approx(-largest / math.sqrt(inputs), rel=0.08)


def test_conv1_of_random_filters_spreads_as_measured() -> None:
    mu = random_mu(96, 363, 8, 0)
    assert float(mu.mean()) == pytest.approx(-0.131, abs=0.004)
    assert float(mu.std()) == pytest.approx(0.022, abs=0.005)


def test_random_draws_are_keyed() -> None:
    assert torch.equal(random_mu(5, 8, 2, 7), random_mu.__wrapped__(5, 8, 2, 7))
    assert not torch.equal(random_mu(5, 8, 2, 7), random_mu(5, 8, 2, 8))
    assert not torch.equal(random_mu(5, 8, 2, 7, "conv1"), random_mu(5, 8, 2, 7, "conv2"))


@pytest.mark.parametrize(("filters", "inputs"), [(6, 9), (12, 4), (5, 5)])
def test_a_triangle_of_filters_has_the_mu_of_filters_drawn_one_by_one(filters: int, inputs: int) -> None:
    stream = torch.Generator().manual_seed(10)
    drawn = torch.randn(1500, filters, inputs, generator=stream, dtype=torch.float64)
    cosines = torch.nn.functional.cosine_similarity(drawn[:, :, None], drawn[:, None], dim=3)
    one_by_one = (cosines + 2 * torch.eye(filters)).amin(2)
    triangles = random_mu(filters, inputs, 1500, 0)
    # Layers are independent, their filters are not: mean, extremes and spread of a layer each have one value a layer.
    for of_layer in (lambda mu: mu.mean(1), lambda mu: mu.amin(1), lambda mu: mu.amax(1), lambda mu: mu.std(1)):
        assert stats.ks_2samp(of_layer(one_by_one), of_layer(triangles)).pvalue > 0.01
    # Every filter is like every other one, the first and the last row of the triangle too.
    assert stats.ks_2samp(triangles[:, 0], triangles[:, -1]).pvalue > 0.01


def test_random_filters_do_not_differ_from_random_filters_and_paired_ones_do() -> None:
    stream = torch.Generator().manual_seed(8)
    same = compare(torch.randn(32, 3, 5, 5, generator=stream), 199, 0).contrast
    assert min(same.p, same.ks_p, same.below_p) > 0.05
    assert (same.below, same.below_random) == (0.0, pytest.approx(0, abs=1e-3))
    half = torch.randn(16, 3, 5, 5, generator=stream)
    paired = compare(torch.cat([half, -half]), 199, 0)
    assert (paired.contrast.ks, paired.contrast.below) == (pytest.approx(1), 1)
    assert paired.contrast.gap == pytest.approx(-1 - float(paired.random.mean()), abs=1e-12)
    assert paired.contrast.p == paired.contrast.ks_p == paired.contrast.below_p == pytest.approx(1 / 200)


def test_p_of_the_mean_is_two_sided() -> None:
    apart = compare(torch.eye(32, 75), 199, 0).contrast
    assert apart.gap > 0
    assert apart.p == pytest.approx(1 / 200)
    assert apart.below_p == 1
    opposite = compare(torch.cat([torch.eye(16, 75), -torch.eye(16, 75)]), 199, 0).contrast
    assert opposite.gap < 0
    assert opposite.p == pytest.approx(1 / 200)


def test_of_random_layers_no_more_than_one_in_twenty_is_rejected() -> None:
    stream = torch.Generator().manual_seed(9)
    layers = 500
    error = math.sqrt(0.05 * 0.95 / 500)
    tests = [compare(torch.randn(16, 27, generator=stream), 99, seed).contrast for seed in range(layers)]
    for name in ("p", "ks_p", "below_p"):
        rejected = np.mean([getattr(test, name) <= 0.05 for test in tests])
        assert rejected <= 0.05 + 2 * error, name
        # A p that never rejects would stay below as well. Counts of filters below -.5 have ties, which never reject.
        assert name == "below_p" or rejected >= 0.05 - 3 * error, name


def test_contrast_measures_what_it_says() -> None:
    ours = torch.tensor([-0.9, torch.nan, -0.4], dtype=torch.float64)
    theirs = torch.tensor([[-0.6, -0.2], [-0.2, -0.3], [-0.8, -0.7]], dtype=torch.float64)
    comparison = contrast(ours, theirs)
    assert comparison.gap == pytest.approx(-0.65 - theirs.mean().item())
    assert comparison.means.tolist() == pytest.approx([-0.4, -0.25, -0.75])
    assert (comparison.below, comparison.below_random) == (0.5, pytest.approx(0.5))
    assert comparison.ks == pytest.approx(stats.ks_2samp(ours[[0, 2]], theirs.flatten()).statistic)
    # The means lie .1375, .1125, .2625 and .2375 from that of all four.
    assert comparison.p == 0.75
    # Three layers have as many filters below -.5 as ours, or more: the first has one, the last has two.
    assert comparison.below_p == 0.75


def test_a_layer_is_ranked_among_layers_of_as_many_filters() -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(11))
    weight[3] = 0
    assert compare(weight, 5, 0).random.shape == (5, 7)
    with pytest.raises(ValueError, match="8 filters against random layers of 7"):
        contrast(pairs(weight[[0, 0, 1, 2, 4, 5, 6, 7]]).mu, random_mu(7, 12, 5, 0))


def test_filters_of_a_grouped_conv_have_their_pair_in_their_group() -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(12))
    weight[5], weight[6] = -weight[0], -weight[1]
    assert pairs(weight).pair[[0, 1]].tolist() == [5, 6]
    grouped = compare(weight, 4, 0, "conv2", 2)
    assert [pair // 4 for pair in grouped.learned.pair.tolist()] == [0] * 4 + [1] * 4
    for first in (0, 4):
        assert torch.equal(grouped.learned.mu[first : first + 4], pairs(weight[first : first + 4]).mu)
    assert torch.equal(grouped.random[:, 4:], random_mu(4, 12, 4, 0, "conv2 group 1"))
    with pytest.raises(ValueError, match="8 filters are not 3 groups"):
        pairs(weight, 3)


def test_groups_are_named_by_their_conv() -> None:
    assert groups_by_layer(["conv2=2", "conv4=4"], ["conv1", "conv2", "conv4"]) == {"conv2": 2, "conv4": 4}
    for word in ("conv9=2", "conv2", "conv2=two", "conv2=0"):
        with pytest.raises(ValueError, match=f"not '{word}'"):
            groups_by_layer([word], ["conv1", "conv2"])


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        pairs(torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [1.0, 0.0]]))
