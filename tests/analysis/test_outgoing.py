"""Outgoing weights of the two phases of filters: identities, the random floor, and who reads whom."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crelu_models.modules import build, initialise
from crelu_models.spec import Net
from crelu_models.tables import PAPER
from sweeps import imagenet_placement
from sweeps.analysis import outgoing_correlations
from sweeps.analysis.outgoing_correlations import correlations, floor, read_by
from sweeps.analysis.weights import LoadedNet
from sweeps.experiment.trial import Cell
from sweeps.report.render import plots
from sweeps.training.runtime import RuntimeConfig


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_correlations_are_cosines_of_pairs_and_of_all_other_phases() -> None:
    weight = normal(5, 8, 3, 3)
    u = weight.double().transpose(0, 1).flatten(1)
    cosines, centred = correlations(weight), correlations(weight, centred=True)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        assert cosines.pair[i].item() == pytest.approx(torch.cosine_similarity(u[i], u[i + 4], dim=0).item())
        pearson = torch.corrcoef(torch.stack([u[i], u[i + 4]]))[0, 1]
        assert centred.pair[i].item() == pytest.approx(pearson.item())
        for column, j in enumerate(others):
            cosine = torch.cosine_similarity(u[i], u[j + 4], dim=0)
            assert cosines.non_pair[i, column].item() == pytest.approx(cosine.item())
    assert cosines.non_pair.shape == (4, 3)


def test_a_linear_unit_has_minus_one_and_a_rectified_one_plus_one() -> None:
    half = normal(6, 4, 3, 3)
    assert torch.allclose(correlations(torch.cat([half, -half], 1)).pair, torch.full((4,), -1.0).double())
    assert torch.allclose(correlations(torch.cat([half, half], 1)).pair, torch.ones(4).double())
    assert torch.allclose(correlations(torch.cat([half, half * 7], 1)).pair, torch.ones(4).double())


def test_a_net_that_looks_linear_starts_with_pairs_at_minus_one() -> None:
    net = PAPER["S13"]
    model = build(net, 10)
    initialise(model, net, "looks_linear", 0)
    for layer, reader in read_by(net).items():
        pair = correlations(model.state_dict()[f"{reader}.weight"]).pair
        assert torch.allclose(pair, torch.full_like(pair, -1.0)), layer


@pytest.mark.parametrize(("outputs", "kernel", "expected"), [(96, 1, 0.0823), (96, 3, 0.0271), (256, 5, 0.00997)])
def test_random_weights_have_the_floor(outputs: int, kernel: int, expected: float) -> None:
    weight = normal(outputs, 192, kernel, kernel)
    assert floor(weight) == pytest.approx(math.sqrt(2 / (math.pi * outputs * kernel**2)), rel=0.005)
    cosines = correlations(weight)
    assert cosines.non_pair.abs().mean().item() == pytest.approx(expected, rel=0.02)
    assert floor(weight) == pytest.approx(expected, rel=0.02)
    assert cosines.pair.abs().mean().item() == pytest.approx(expected, rel=0.25)
    if kernel == 1:
        assert cosines.non_pair.abs().std().item() == pytest.approx(0.061, abs=0.002)


@pytest.mark.parametrize(("outputs", "exact"), [(1, 1.0), (2, 2 / math.pi), (3, 0.5), (4, 4 / (3 * math.pi))])
def test_the_floor_of_few_outputs_is_exact(outputs: int, exact: float) -> None:
    assert floor(normal(outputs, 2, 1, 1)) == pytest.approx(exact, rel=1e-12)
    u, v = torch.nn.functional.normalize(normal(2, 20_000, outputs).double(), dim=2)
    assert (u * v).sum(1).abs().mean().item() == pytest.approx(exact, rel=0.02)


def test_every_cosine_is_in_a_bin_however_it_is_rounded() -> None:
    one = normal(7, 1, 3, 3)
    cosines = correlations(torch.cat([one * (1 + i / 7) for i in range(12)], 1))
    assert (cosines.non_pair > 1).any()
    counts = outgoing_correlations._non_pairs({"conv1": (cosines, 0.1)})["count"]
    assert counts.sum() == cosines.non_pair.numel()


def test_table_6_stands_beside_its_own_network_alone() -> None:
    def printed_pair(net: Net, cell: Cell | None) -> str | None:
        """Return what the job prints of the paper's pairs beside conv1 of a net."""
        loaded = LoadedNet("any", "none", net, "imagenet", {"conv2.weight": normal(4, 8, 1, 1)}, cell=cell)
        (row,) = outgoing_correlations.findings(loaded, RuntimeConfig("", ""), {"layers": ["conv1"]}).rows
        return row.get("paper pair")

    own = next(cell for cell in imagenet_placement.CELLS if cell.row == "CReLU conv1-7")
    assert printed_pair(PAPER["S10"], own) == ".372±.372"
    assert printed_pair(PAPER["S10"], None) == ".372±.372"  # anybody's weights of this net
    assert printed_pair(PAPER["S9"], None) is None
    assert printed_pair(PAPER["S10"], dataclasses.replace(own, row="")) is None


def test_channels_without_weights_have_no_direction() -> None:
    weight = normal(5, 6, 1, 1)
    weight[:, 4] = 0
    cosines = correlations(weight)
    assert cosines.pair.isnan().tolist() == [False, True, False]
    assert cosines.non_pair.isnan().sum() == 2


def test_an_odd_number_of_inputs_is_no_pair_of_phases() -> None:
    with pytest.raises(ValueError, match="7 inputs"):
        correlations(normal(2, 7, 1, 1))


def test_readers_are_the_next_convs_past_pools_and_dropout() -> None:
    assert read_by(PAPER["S10"]) == {f"conv{i}": f"conv{i + 1}" for i in range(1, 8)}
    assert read_by(PAPER["S3_half"])["conv2"] == "conv3"
    assert read_by(PAPER["S13"]) == {"conv1": "conv2", "conv4": "conv5", "conv7": "conv8"}
    assert read_by(PAPER["S8"]) == read_by(PAPER["S2_avr"]) == {}
    for name, net in PAPER.items():
        weights = build(net, 10).state_dict()
        for layer, reader in read_by(net).items():
            assert weights[f"{reader}.weight"].shape[1] == 2 * len(weights[f"{layer}.weight"]), name


def test_a_histogram_has_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    _, axes = plots.grid(1)
    heights: list[float] = []
    draw = axes[0].hist
    monkeypatch.setattr(axes[0], "hist", lambda *a, **k: heights.extend(draw(*a, **k)[0]))
    values = np.array([-1 - 1e-15, 0.5, 1 + 1e-15, 1 + 1e-15, math.nan])
    plots.histogram(axes[0], values, np.linspace(-1, 1, 5), "black", "cosines")
    assert heights == [0.5, 0, 0, 1.5]  # of four values in bins of half a unit
