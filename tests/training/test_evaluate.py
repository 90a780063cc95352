"""Errors of a net on pictures: against a ranking by sort, an average written out, and torch in evaluation mode."""

import math

import pytest
import torch
from torch import Tensor, nn

from sweeps.training.evaluate import autocast, counts, dead, errors, misses, precision_of, score, ten_crop_scores


def place_of_the_true_class(scores: list[float], label: int) -> int:
    """Return how many classes come before the true one; of equal scores the class of the lower index comes first."""
    ranking = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return ranking.index(label)


def test_a_picture_is_missed_where_the_true_class_is_not_among_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (400, 8), generator=generator).float()  # most rows hold equal scores
    labels = torch.randint(0, 8, (400,), generator=generator)
    places = [place_of_the_true_class(row, label) for row, label in zip(scores.tolist(), labels.tolist(), strict=True)]
    assert misses(scores, labels).tolist() == [sum(place >= 1 for place in places), sum(place >= 5 for place in places)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_picture_whose_true_class_has_no_number_is_missed(value: float) -> None:
    scores = torch.zeros(1, 3)
    scores[0, 0] = value
    assert misses(scores, torch.tensor([0])).tolist() == [1, 1]
    assert misses(torch.tensor([[1.0, math.nan, 0.0]]), torch.tensor([0])).tolist() == [0, 0]


def test_errors_are_shares_in_percent_and_the_loss_is_a_mean() -> None:
    scores = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 1])
    loss = (2 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 4
    measured = errors(counts(scores, labels), 4)
    assert measured.loss == pytest.approx(loss, rel=1e-6)
    assert (measured.top1, measured.top5) == (25.0, 0.0)


def test_ten_views_are_averaged_as_probabilities_and_as_scores() -> None:
    views = torch.randn(10, 6, 4, generator=torch.Generator().manual_seed(1))
    softmax, scores = ten_crop_scores(iter(views))
    assert torch.allclose(softmax, views.softmax(2).mean(0), atol=1e-6)
    assert torch.allclose(scores, views.mean(0), atol=1e-6)
    assert not torch.allclose(softmax, views.mean(0).softmax(1), atol=1e-3)


def test_scores_are_those_of_evaluation_mode() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3))
    pictures = torch.randn(5, 3, 4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    first, second = (next(score(model, [pictures], "fp32")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, model.eval()(pictures).detach())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (torch.ones(3, 4), True),
        (torch.tensor([[1.0, 2.0], [1.0, 2.0]]), True),
        (torch.tensor([[1.0, 2.0], [1.0, 2.1]]), False),
        (torch.ones(1, 4), False),
    ],
)
def test_a_net_is_dead_where_all_pictures_get_the_same_scores(scores: Tensor, expected: bool) -> None:
    assert dead(scores) is expected


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_fp32_is_fp32_and_tf32_a_precision_of_its_own(precision: str, allowed: bool) -> None:
    for earlier in ("tf32", "fp32"):  # of another trial in this process
        autocast(earlier, torch.device("cpu"))
        with autocast(precision, torch.device("cpu")):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed  # in the backward pass
    autocast("fp32", torch.device("cpu"))


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp32"), ((8, 0), "tf32"), ((9, 0), "tf32")])
def test_tf32_is_recorded_where_a_gpu_has_it(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision_of("tf32", torch.device("cuda")) == name
    assert precision_of("tf32", torch.device("cpu")) == "fp32"
    assert precision_of("fp32", torch.device("cuda")) == "fp32"
