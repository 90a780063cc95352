"""The invariance score: exact thresholds, its identities, and the transforms it is taken over."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crelu_models.modules import build, initialise
from crelu_models.spec import Conv, Net, Pool
from sweeps.analysis.capture import batch_size, capture, hidden, response
from sweeps.analysis.invariance_scores import (
    CIFAR,
    IMAGENET,
    SHIFTS,
    Firing,
    Largest,
    firing,
    moved,
    thresholds,
    turned,
)
from sweeps.report.render.plots import spread

NET = Net(
    "small",
    (
        Conv("conv1", 8, 3, 1, 1),
        Conv("conv2", 6, 3, 2, 0, act="crelu"),
        Conv("conv3", 5, 1, act="avr"),
        Conv("conv4", None, 1, act="none"),
        Pool("pool", "avg", 0),
    ),
    16,
)
ACTS = {"conv1": "relu", "conv2": "crelu", "conv3": "avr"}


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> nn.Sequential:
    net = build(NET, 4).eval()
    initialise(net, NET, "he_fan_in", 0)
    return net


def scores(model: nn.Sequential, pictures: Tensor, *after: Tensor) -> dict[str, Firing]:
    """Score `pictures` against what became of them, in batches of 16."""
    split = pictures.split(16)
    levels = thresholds(model, ACTS, len(pictures), split)
    batches: Iterator[list[Tensor]] = map(list, zip(split, *(moved.split(16) for moved in after), strict=True))
    scored = firing(model, ACTS, levels, batches, len(after))
    assert scored.keys() == ACTS.keys()
    return scored


@pytest.mark.parametrize(("k", "sizes"), [(1, [5, 5]), (7, [3, 4, 50]), (20, [64, 64, 64, 1]), (90, [30, 30, 30])])
@pytest.mark.parametrize("ties", [False, True])
def test_the_kth_largest_is_exact_however_the_values_come(k: int, sizes: list[int], ties: bool) -> None:
    values = torch.rand(4, sum(sizes), generator=torch.Generator().manual_seed(k))
    values = (values * 5).floor() if ties else values
    largest = Largest(k)
    for part in values.split(sizes, 1):
        largest.add(part)
    assert torch.equal(largest.kth(), values.sort(1, descending=True).values[:, k - 1])


def test_many_batches_keep_few_values() -> None:
    largest = Largest(50)
    stream = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(200):
        seen.append(torch.rand(3, 400, generator=stream))
        largest.add(seen[-1])
        assert largest.width < 2 * 50 + 400
    assert torch.equal(largest.kth(), torch.cat(seen, 1).sort(1, descending=True).values[:, 49])


def test_too_few_values_have_no_kth_largest() -> None:
    largest = Largest(10)
    largest.add(torch.zeros(2, 9))
    with pytest.raises(ValueError, match="9 values"):
        largest.kth()


def test_a_filter_fires_at_one_place_in_a_hundred(model: nn.Sequential) -> None:
    by_layer = scores(model, draw(32))
    for layer, (threshold, fires, _, places) in by_layer.items():
        captured = capture(model, [f"{layer}_act"], draw(32))[f"{layer}_act"]
        r = captured.relu() if layer == "conv1" else captured.abs()
        flat = r.transpose(0, 1).flatten(1)
        assert places == flat.shape[1]
        assert torch.equal(threshold, flat.sort(1, descending=True).values[:, places // 100])
        assert (fires <= places // 100).all()
        assert torch.equal(fires, (flat > threshold[:, None]).sum(1))
        assert not by_layer[layer].under_firing.any()


def test_scores_equal_their_definition(model: nn.Sequential) -> None:
    x = draw(8)
    after = [draw(8, 1) * 0.7 + draw(8) * 0.7, draw(8).flip(3)]
    for layer, stats in scores(model, x, *after).items():
        r, *moved_r = (response(capture(model, [f"{layer}_act"], v)[f"{layer}_act"], ACTS[layer]) for v in (x, *after))
        for i in range(r.shape[1]):
            fires = r[:, i] > stats.threshold[i]
            for column, other in enumerate(moved_r):
                rate = (other[:, i] > stats.threshold[i])[fires].double().mean()
                assert stats.scores[i, column].item() == pytest.approx(100 * rate.item(), abs=1e-9)


def test_identity_scores_exactly_100(model: nn.Sequential) -> None:
    for stats in scores(model, draw(48), draw(48)).values():
        assert torch.equal(stats.scores, torch.full_like(stats.scores, 100.0))


def test_independent_pictures_score_about_chance(model: nn.Sequential) -> None:
    # Per filter the rate of firing again is that of firing, 1 %; the net sees noise both times.
    for stats in scores(model, draw(256), draw(256, 1)).values():
        assert stats.scores.mean().item() == pytest.approx(1.0, abs=0.45)


def test_the_score_grows_with_what_stays(model: nn.Sequential) -> None:
    x, noise = draw(128), draw(128, 1)
    mixed = [x * share**0.5 + noise * (1 - share) ** 0.5 for share in (0.0, 0.5, 0.95, 1.0)]
    for stats in scores(model, x, *mixed).values():
        mean = stats.scores.mean(0)
        assert (mean.diff() > 0).all()
        assert mean[-1] == 100


def test_flat_features_do_not_notice_a_mirror(model: nn.Sequential) -> None:
    flat = torch.randn(128, 3, 1, 1, generator=torch.Generator().manual_seed(2)).expand(128, 3, 16, 16)
    by_layer = scores(model, flat, flat.flip(3))
    assert (by_layer["conv2"].scores[~by_layer["conv2"].dead] == 100).all()


def test_positive_scales_of_filters_change_no_score(model: nn.Sequential) -> None:
    x, after = draw(48), draw(48).flip(3)
    before = scores(model, x, after)
    conv = model.get_submodule("conv3")
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight *= torch.tensor([2.0, 0.25, 1.0, 8.0, 0.5])[:, None, None, None]
    assert torch.equal(scores(model, x, after)["conv3"].scores, before["conv3"].scores)


def test_rare_and_dead_filters_are_counted_and_do_not_flatter(model: nn.Sequential) -> None:
    conv = model.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    x = draw(64)
    level = capture(model, ["conv1_act"], x)["conv1_act"][:, 1].flatten().sort(descending=True).values
    with torch.no_grad():
        assert conv.bias is not None
        conv.bias[0] = -1e3
        conv.bias[1] = -level[len(level) // 1000]
    stats = scores(model, x, x, draw(64, 3))["conv1"]
    assert stats.dead.tolist() == [True] + [False] * 7
    assert stats.under_firing.tolist() == [False, True] + [False] * 6
    assert stats.threshold[1] == 0
    assert stats.scores[0].isnan().all()
    assert (stats.scores[1:, 0] == 100).all()
    assert (stats.scores[1:] <= 100).all()


def test_too_few_places_and_responses_that_are_no_numbers_are_refused(model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="2 pictures have 98 places at conv2"):
        thresholds(model, {"conv2": "crelu"}, 2, [draw(2)])
    with pytest.raises(ValueError, match="conv1 has responses that are not finite"):
        thresholds(model, {"conv1": "relu"}, 2, [draw(2) * torch.inf])


def test_both_phases_count_as_a_response_where_the_activation_keeps_them() -> None:
    z = torch.tensor([-2.0, 3.0])
    assert response(z, "relu").tolist() == [0, 3]
    for act in ("crelu", "avr", "concat_elu"):
        assert response(z, act).tolist() == [2, 3]


def test_capture_takes_what_layers_read_and_stops_behind_the_last(model: nn.Sequential) -> None:
    x = draw(2)
    inputs = capture(model, ["conv3", "conv2_act", "conv1"], x)
    assert torch.equal(inputs["conv1"], x)
    assert torch.equal(inputs["conv2_act"], model[:3](x))
    assert torch.equal(inputs["conv3"], model[:4](x))
    assert inputs["conv3"].shape == (2, 12, 7, 7)
    assert not model.get_submodule("conv1")._forward_pre_hooks
    with pytest.raises(ValueError, match="no module 'conv9'"):
        capture(model, ["conv9"], x)


def test_batches_keep_to_the_memory() -> None:
    numbers = 8 * 16**2 + 6 * 7**2
    assert batch_size(NET, ["conv1", "conv2"], 16) == 250
    assert batch_size(NET, ["conv1", "conv2"], 160, 10**9) * numbers * 100 < 2**25 * 1.1
    assert [row.name for row in hidden(NET)] == ["conv1", "conv2", "conv3"]


# Transforms -----------------------------------------------------------------------------------------------------


def stored(size: int = 12) -> Tensor:
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_labels_that_would_cover_each_other_are_moved_apart() -> None:
    assert spread([5.0, 1.0, 1.1, 9.0], 0.5) == pytest.approx([5.0, 0.8, 1.3, 9.0])
    assert spread([2.0, 2.0, 2.0], 1.0) == [1.0, 2.0, 3.0]
    assert spread([2.0, 2.0, 2.0], 1.0, low=1.5) == [1.5, 2.5, 3.5]
    assert spread([2.0, 2.0, 2.0, 0.0], 1.0, high=2.2) == pytest.approx([0.2, 1.2, 2.2, -0.8])


def test_identity_is_the_centre() -> None:
    assert torch.equal(moved(stored(), "identity", 12), stored())
    assert torch.equal(moved(stored(), "identity", 8), stored()[:, :, 2:10, 2:10])


def test_flip_mirrors_what_the_net_sees() -> None:
    assert torch.equal(moved(stored(), "flip", 8), stored()[:, :, 2:10, 2:10].flip(3))


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_move_the_picture_and_reflect_at_the_edge(name: str) -> None:
    way = {"down": (3, 0), "up": (-3, 0), "right": (0, 3), "left": (0, -3)}
    down, right = way[name.split()[0]]
    shifted = moved(stored(), name, 12)
    x = stored().float()
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect"))
    assert torch.equal(shifted, padded[:, :, 3 - down : 15 - down, 3 - right : 15 - right])


def test_beyond_the_picture_may_be_black() -> None:
    x = torch.full((1, 3, 12, 12), 7, dtype=torch.uint8)
    assert moved(x, "down 3", 12)[0, 0].eq(7).all()
    black = moved(x, "down 3", 12, "zero")[0, 0]
    assert black[:3].eq(0).all()
    assert black[3:].eq(7).all()
    assert torch.allclose(moved(x, "turn +15", 12), torch.tensor(7.0))
    corners = moved(x, "turn +15", 12, "zero")[0, 0]
    assert corners[0, 0] == 0
    assert corners[6, 6] == pytest.approx(7)


def test_corner_crops_are_the_corners() -> None:
    x = stored()
    assert torch.equal(moved(x, "top left", 8), x[:, :, :8, :8])
    assert torch.equal(moved(x, "top right", 8), x[:, :, :8, 4:])
    assert torch.equal(moved(x, "bottom left", 8), x[:, :, 4:, :8])
    assert torch.equal(moved(x, "bottom right", 8), x[:, :, 4:, 4:])


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_are_exact(quarters: int) -> None:
    x = stored().float()
    assert torch.allclose(turned(x, 90.0 * quarters), x.rot90(quarters, (2, 3)), atol=2e-2)


def test_small_turns_keep_the_centre_and_undo_each_other() -> None:
    row, column = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    smooth = (torch.sin(row / 5) + torch.cos(column / 4)).expand(1, 3, 33, 33)
    rotated = moved(smooth, "turn +15", 33)
    assert rotated[0, 0, 16, 16].item() == pytest.approx(smooth[0, 0, 16, 16].item(), abs=1e-4)
    back = moved(rotated, "turn -15", 33)
    assert (back - smooth)[:, :, 10:23, 10:23].abs().max() < 0.05
    assert (rotated - smooth).abs().max() > 0.5


def test_every_transform_gives_the_side_the_net_sees() -> None:
    assert len(CIFAR) == len(IMAGENET) == 7
    for transform in (*CIFAR, *IMAGENET):
        assert moved(stored(), transform, 8).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="no transform 'spin'"):
        moved(stored(), "spin", 8)
