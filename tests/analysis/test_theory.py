"""The theorems in numbers: what holds, what is vacuous, and the counterexample to Theorem 4.1."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from crelu_models.activations import crelu
from sweeps.analysis.pooling_ratio import patch_columns
from sweeps.analysis.theory_checks import (
    COUNTEREXAMPLE,
    directions,
    expected_norm,
    natural_patches,
    pooling_bound,
    pooling_cases,
    projection,
    rademacher_cases,
    rademacher_ratio,
    shifts,
    subspace_norms,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Proposition 2.1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [3, 20, 40])
def test_features_go_back_to_the_projection_on_the_filters(filters: int) -> None:
    w, x = normal(20, filters), normal(6, 20, seed=1)
    again = projection(w, crelu(x @ w))
    q = torch.linalg.qr(w).Q
    assert torch.allclose(again, x @ q @ q.T, atol=1e-10)
    # What is lost lies in ker(W^T), not in ker(W) as printed.
    assert ((x - again) @ w).abs().max() < 1e-10


# Theorem A.5 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("coefficient", [-2.0, 0.3])
def test_a_single_filter_is_never_lost(place: int, coefficient: float) -> None:
    c = torch.tensor([coefficient], dtype=torch.float64)
    case = pooling_bound(shifts(normal(1, 9, seed=place), 5), torch.tensor([place]), c)
    assert case.ratio < 1e-12
    assert case.bound < 1e-6


def test_the_bound_is_that_of_the_definition() -> None:
    shifted = shifts(normal(3, 6), 4)
    places = torch.tensor([0, 3, 1])
    c = torch.tensor([0.5, -1.0, 2.0]).double()
    x = sum(c[i] * shifted[i, places[i]] for i in range(3))
    responses = torch.einsum("knd,d->kn", shifted, x)
    chosen = [shifted[i, responses[i].argmax() if c[i] > 0 else responses[i].argmin()] for i in range(3)]
    true, selected = (torch.stack(rows) for rows in ([shifted[i, places[i]] for i in range(3)], chosen))
    least = torch.linalg.eigvalsh(true @ true.T)[0]
    most = torch.linalg.eigvalsh(selected @ selected.T)[-1]
    case = pooling_bound(shifted, places, c)
    assert case.bound == pytest.approx(math.sqrt(max(0, most - least) / least))
    q = torch.linalg.qr(selected.T).Q
    assert case.ratio == pytest.approx(float((x - q @ (q.T @ x)).norm() / x.norm()))


def test_no_drawn_case_violates_the_bound_and_many_say_nothing() -> None:
    cases = pooling_cases(None, 150, 0) | pooling_cases(normal(16, 3, 3, 3), 150, 0)
    assert len(cases) == 7
    for name, group in cases.items():
        assert all(case.ratio <= case.bound + 1e-9 for case in group), name
    vacuous = {name: sum(case.vacuous for case in group) / len(group) for name, group in cases.items()}
    assert vacuous["1 random of length 9, 5 shifts"] == 0
    assert 0.4 < vacuous["2 random of length 9, 5 shifts"] < 0.8
    assert vacuous["8 random of length 20, 5 shifts"] == 1


def test_a_step_of_the_proof_fails_in_some_cases() -> None:
    cases = [case for group in pooling_cases(None, 150, 1).values() for case in group]
    assert 0.005 < sum(not case.step for case in cases) / len(cases) < 0.17


def test_shifted_filters_are_patch_columns_on_a_line() -> None:
    filters = normal(3, 5)
    placed = shifts(filters, 4)
    assert placed.shape == (3, 4, 8)
    assert torch.equal(placed[1, 2], torch.cat([torch.zeros(2).double(), filters[1], torch.zeros(1).double()]))
    assert patch_columns(normal(4, 3, 3, 3), 3).T.view(4, 9, -1).shape == (4, 9, 75)


# Theorem C.1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "k", "draws", "exact"), [(10, 2, 8000, 0.4063), (1200, 48, 60, 0.1990), (3, 3, 50, 1.0)])
def test_the_squared_norm_on_a_random_subspace_is_its_share_of_dimensions(
    d: int, k: int, draws: int, exact: float
) -> None:
    norms = subspace_norms(d, k, draws, 0)
    spread = norms.std() / draws**0.5 + 1e-12
    assert expected_norm(d, k) == pytest.approx(exact, abs=5e-5)
    assert abs(norms.mean() - expected_norm(d, k)) < 4 * spread
    assert abs(norms.square().mean() - k / d) < 4 * norms.square().std() / draws**0.5 + 1e-12
    # As stated, for the norm itself, it is a bound from above.
    assert expected_norm(d, k) <= math.sqrt(k / d) + 1e-12


@pytest.mark.parametrize(("d", "expected"), [(1200, 0.9798), (2400, 0.9899)])
def test_what_a_random_subspace_of_48_dimensions_leaves(d: int, expected: float) -> None:
    left = (1 - subspace_norms(d, 48, 20, 0).square()).sqrt()
    assert float(left.mean()) == pytest.approx(expected, abs=4 * float(left.std()) / 20**0.5)
    assert float(left.std()) < 0.01


# Theorem 4.1 ----------------------------------------------------------------------------------------------------


def brute(values: Tensor) -> float:
    """Return the ratio by its definition, over all signs."""
    both = linear = 0.0
    points = values.shape[1]
    for signs in itertools.product((-1.0, 1.0), repeat=points):
        a = [2 / points * sum(s * max(f, 0) for s, f in zip(signs, row, strict=True)) for row in values.tolist()]
        b = [2 / points * sum(s * max(-f, 0) for s, f in zip(signs, row, strict=True)) for row in values.tolist()]
        both += max(math.hypot(p, q) for p, q in zip(a, b, strict=True))
        linear += max(abs(p - q) for p, q in zip(a, b, strict=True))
    return both / linear


def test_the_counterexample_has_ratio_sqrt_2() -> None:
    ratio = rademacher_ratio(torch.tensor([[1.0, -1.0]]), 1, 0)
    assert ratio.value == pytest.approx(math.sqrt(2), abs=1e-15)
    assert ratio.se == 0
    assert ratio.value > 1  # as stated it would be at most 1


def test_few_points_are_exact() -> None:
    for size in (1, 5):
        values = normal(size, 6, seed=size)
        assert rademacher_ratio(values, 1, 0).value == pytest.approx(brute(values), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_one_function_stays_below_sqrt_2(seed: int) -> None:
    for points in (2, 3, 7, 12):
        assert rademacher_ratio(normal(1, points, seed=seed), 1, 0).value <= math.sqrt(2) + 1e-12


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, math.pi / (2 * math.sqrt(2))), (8, 0.86), (512, 0.76)],
)
def test_normal_classes_have_the_measured_ratio(size: int, expected: float) -> None:
    ratio = rademacher_ratio(normal(size, 200), 3000, 0)
    assert abs(ratio.value - expected) < 4 * ratio.se + 0.008


@pytest.mark.parametrize(("dimension", "expected"), [(2, 1.004), (3, 0.96)])
def test_linear_classes_have_the_measured_ratio(dimension: int, expected: float) -> None:
    values = directions(dimension, 1000) @ normal(200, dimension).T
    ratio = rademacher_ratio(values, 1500, 0)
    assert abs(ratio.value - expected) < 4 * ratio.se


def test_the_dense_directions_reach_the_supremum_of_a_linear_class() -> None:
    for dimension in (2, 3):
        vectors = directions(dimension, 2000)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2000).double())
        # Over the unit ball sup |<w, v>| = |v|.
        v = normal(50, dimension)
        assert ((v @ vectors.T).abs().amax(1) / v.norm(dim=1)).min() > 0.995
    with pytest.raises(ValueError, match="not in 4 dimensions"):
        directions(4, 10)


def test_all_classes_stay_below_the_safe_constant() -> None:
    ratios = rademacher_cases(None, 200, 0) | rademacher_cases(normal(8, 3, 5, 5), 200, 0)
    assert ratios[COUNTEREXAMPLE].value == pytest.approx(math.sqrt(2))
    assert len(ratios) == 9
    assert all(0.5 < ratio.value < 4 for ratio in ratios.values())


def test_patches_of_pictures_are_standardised() -> None:
    patches = natural_patches(150, 3, 0)
    assert patches.shape == (150, 27)
    assert float(patches.mean()) == pytest.approx(0, abs=1e-9)
    assert float(patches.std()) == pytest.approx(1)
    # Neighbouring pixels of pictures are alike.
    assert torch.corrcoef(patches[:, :2].T)[0, 1] > 0.5
