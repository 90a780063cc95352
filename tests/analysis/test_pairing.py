"""Pairs of opposite phase: the identities of mu, and its values for random filters of the paper's shapes."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sweeps.analysis.pairing_scores import contrast, pairs, random_mu


def test_mu_is_the_least_cosine_with_another_filter() -> None:
    weight = torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    mu, mate = pairs(weight)
    for i in range(7):
        cosine = {
            j: torch.cosine_similarity(weight[i].double().flatten(), weight[j].double().flatten(), dim=0).item()
            for j in range(7)
            if j != i
        }
        assert mu[i].item() == pytest.approx(min(cosine.values()), abs=1e-12)
        assert mate[i].item() == min(cosine, key=cosine.__getitem__)


def test_a_filter_and_its_negative_are_mates_with_mu_minus_one() -> None:
    half = torch.randn(16, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    mu, mate = pairs(torch.cat([half, -half]))
    assert torch.allclose(mu, torch.full((32,), -1.0, dtype=torch.float64), atol=1e-12)
    assert mate.tolist() == [*range(16, 32), *range(16)]


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
    mu, mate = pairs(weight)
    assert mu.isnan().tolist() == [False, False, True, False, False, False]
    assert mate[2] == -1
    assert 2 not in mate.tolist()
    assert torch.equal(mu[[0, 1, 3, 4, 5]], pairs(weight[[0, 1, 3, 4, 5]]).mu)


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
        (96, 27, -0.46),  # conv1 of the CIFAR net
    ],
)
def test_random_filters_have_the_mu_of_a_minimum_of_normals(filters: int, inputs: int, expected: float) -> None:
    mu = random_mu(torch.Size((filters, inputs)), 3, 0)
    assert mu.shape == (3, filters)
    # The sd of mu over filters is 0.022 for conv1; the mean of three draws is far closer.
    assert float(mu.mean()) == pytest.approx(expected, abs=0.004 if inputs > 27 else 0.01)
    # E[max of n normals] by its integral.
    x = np.linspace(-8, 8, 4001)
    largest = np.trapezoid(x * (filters - 1) * stats.norm.pdf(x) * stats.norm.cdf(x) ** (filters - 2), x)
    assert float(mu.mean()) == pytest.approx(-largest / math.sqrt(inputs), rel=0.08)


def test_conv1_of_random_filters_spreads_as_measured() -> None:
    mu = random_mu(torch.Size((96, 3, 11, 11)), 8, 0)
    assert float(mu.mean()) == pytest.approx(-0.131, abs=0.004)
    assert float(mu.std()) == pytest.approx(0.022, abs=0.005)


def test_random_draws_are_keyed() -> None:
    shape = torch.Size((5, 8))
    assert torch.equal(random_mu(shape, 2, 7), random_mu(shape, 2, 7))
    assert not torch.equal(random_mu(shape, 2, 7), random_mu(shape, 2, 8))


def test_random_filters_do_not_differ_from_random_filters_and_paired_ones_do() -> None:
    random = random_mu(torch.Size((32, 75)), 6, 0)
    same = contrast(random_mu(torch.Size((32, 75)), 1, 99)[0], random)
    assert same.p > 0.01
    assert same.ks_p > 0.01
    assert (same.below, same.below_random) == (0.0, 0.0)
    half = torch.randn(16, 75, generator=torch.Generator().manual_seed(8))
    paired = contrast(pairs(torch.cat([half, -half])).mu, random)
    assert (paired.ks, paired.below) == (1.0, 1.0)
    assert paired.gap == pytest.approx(-1 - float(random.mean()), abs=1e-12)
    assert paired.p == pytest.approx(1 / 2000)


def test_permutation_p_is_uniform_without_a_difference() -> None:
    stream = torch.Generator().manual_seed(9)
    p = [contrast(values[:12], values[12:].view(2, 10)).p for values in torch.randn(40, 32, generator=stream)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_contrast_measures_what_it_says() -> None:
    ours, theirs = torch.tensor([-0.9, -0.4, torch.nan]), torch.tensor([[-0.6, -0.1, -0.2, -0.3]])
    found = contrast(ours.double(), theirs.double())
    assert found.gap == pytest.approx(-0.65 + 0.3)
    assert (found.below, found.below_random) == (0.5, 0.25)
    assert found.ks == pytest.approx(0.75)
