"""One step of a learner by what it must do: gradients in parts, a norm that is cut, a rate a step, sums an epoch."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sweeps.experiment.recipe import ALLCONV, Recipe, Stage
from sweeps.training.evaluate import score
from sweeps.training.loop import DivergedError, Learner

PLAIN = dataclasses.replace(ALLCONV, momentum=0.0, weight_decay=0.0, lr=1.0, epochs=2, schedule_epochs=2,
                            stages=(Stage(1, 1.0),), warmup_epochs=0.0, clip_norm=0.0)  # fmt: skip


def learner(recipe: Recipe = PLAIN, steps: int = 4) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return Learner(model, recipe, seed=0, steps=steps, precision="fp32")


def batch(count: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 4, 4, generator=generator), torch.arange(count) % 3


def moved(by: Learner, images: Tensor, labels: Tensor) -> Tensor:
    """Return how far a step has moved all parameters, in one vector."""
    before = nn.utils.parameters_to_vector(by.model.parameters()).detach().clone()
    by.step(images, labels)
    return before - nn.utils.parameters_to_vector(by.model.parameters()).detach()


@pytest.mark.parametrize("parts", [2, 3, 5, 12])
def test_a_step_in_parts_is_the_step_on_the_mean_loss_of_the_batch(parts: int) -> None:
    images, labels = batch()
    whole, divided = learner(), learner()
    divided.micro_batches = parts
    expected = moved(whole, images, labels)
    loss = nn.functional.cross_entropy(learner().model(images), labels)
    assert whole.sums[0].item() / 12 == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(moved(divided, images, labels), expected, atol=1e-6)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.5), (0.99, 0.99), (2.0, 1.0)])
def test_a_gradient_is_cut_at_the_norm_of_the_recipe(share: float, expected: float) -> None:
    images, labels = batch()
    gradient = moved(learner(), images, labels)
    limit = share * gradient.norm().item()
    cut = moved(learner(dataclasses.replace(PLAIN, clip_norm=limit)), images, labels)
    assert torch.allclose(cut, expected * gradient, rtol=1e-4, atol=1e-7)


def test_each_step_has_the_rate_and_decay_of_its_epoch_and_place() -> None:
    stages = (Stage(1, 1.0), Stage(2, 0.1, 0.0))
    recipe = dataclasses.replace(PLAIN, lr=0.8, weight_decay=0.01, stages=stages, warmup_epochs=1.0)
    one, seen = learner(recipe), []
    one.optimiser.step = lambda rate, decay: seen.append((round(rate, 9), decay))  # type: ignore[method-assign]
    for _ in range(2):
        for _ in range(4):
            one.step(*batch())
        one.end_epoch()
    assert seen == [(0.2, 0.01), (0.4, 0.01), (0.6, 0.01), (0.8, 0.01), *[(0.08, 0.0)] * 4]


def test_errors_of_an_epoch_are_over_its_own_batches() -> None:
    one = learner(dataclasses.replace(PLAIN, lr=1e-12))
    losses = []
    for seed in (1, 2):
        images, labels = batch(seed=seed)
        one.step(images, labels)
        scores = one.model(images).detach()
        losses.append(nn.functional.cross_entropy(scores, labels).item())
        found = one.end_epoch()
        assert found.loss == pytest.approx(losses[-1], rel=1e-5)
        assert found.top1 == pytest.approx(100 * (scores.argmax(1) != labels).float().mean().item(), rel=1e-5)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("value", [3e38, float("nan")])
def test_a_loss_that_is_infinite_or_no_number_has_diverged(value: float) -> None:
    one = learner()
    one.model[3].bias.data = torch.tensor([value, -value, 0.0])
    one.step(*batch(12))
    with pytest.raises(DivergedError, match="epoch 1"):
        one.end_epoch()


def test_a_step_trains_also_after_an_evaluation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    one = Learner(model, PLAIN, seed=0, steps=4, precision="fp32")
    images, labels = batch()
    for seen in (1, 2):
        one.step(images, labels)
        assert model[1].num_batches_tracked == seen
        list(score(model, [images], "fp32"))


def test_a_restored_learner_goes_on_as_the_one_that_was_saved() -> None:
    recipe = dataclasses.replace(PLAIN, momentum=0.9, lr=0.1, warmup_epochs=2.0)
    one, other = learner(recipe), learner(recipe)
    for seed in range(6):
        if one.step_count == 4:
            one.end_epoch()
        one.step(*batch(seed=seed))
    other.restore({name: value.clone() for name, value in one.tensors().items()}, one.epoch, one.step_count)
    assert (other.epoch, other.step_count) == (1, 2)
    for seed in (7, 8):
        one.step(*batch(seed=seed))
        other.step(*batch(seed=seed))
    assert one.end_epoch() == other.end_epoch()
    assert all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())


def test_smoothed_labels_have_the_loss_of_torch() -> None:
    images, labels = batch()
    one = learner(dataclasses.replace(PLAIN, label_smoothing=0.2))
    expected = learner().model
    loss = nn.functional.cross_entropy(expected(images), labels, label_smoothing=0.2)
    loss.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in expected.parameters()])
    assert torch.allclose(moved(one, images, labels), gradient, atol=1e-6)
    assert one.end_epoch().loss == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_mixed_labels_have_the_weighted_loss_and_the_errors_of_the_larger_share(parts: int) -> None:
    images, labels = batch()
    shares = torch.tensor([0.9, 0.2] * 6)
    other = labels.view(-1, 2).flip(1).flatten()
    classes = nn.functional.one_hot(labels, 3) * shares[:, None]
    classes = classes + nn.functional.one_hot(other, 3) * (1 - shares)[:, None]
    one = learner()
    one.micro_batches = parts
    scores = learner().model(images)
    losses = [nn.functional.cross_entropy(scores, each, reduction="none") for each in (labels, other)]
    expected = (shares * losses[0] + (1 - shares) * losses[1]).mean().item()
    one.step(images, classes)
    found = one.end_epoch()
    assert found.loss == pytest.approx(expected, rel=1e-6)
    larger = torch.where(shares > 0.5, labels, other)
    assert found.top1 == pytest.approx(100 * (scores.argmax(1) != larger).float().mean().item())


def normed(recipe: Recipe) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return Learner(model, recipe, seed=0, steps=4, precision="fp32")


def test_averaged_weights_are_those_of_torch_also_when_restored() -> None:
    recipe = dataclasses.replace(PLAIN, lr=0.1, ema=0.8)
    one = normed(recipe)
    theirs = AveragedModel(one.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for seed in range(6):
        if seed == 4:
            one.end_epoch()
            other = normed(recipe)
            other.restore({name: value.clone() for name, value in one.tensors().items()}, one.epoch, one.step_count)
            other.model.load_state_dict(one.model.state_dict())
            one.averaged = other.averaged
        one.step(*batch(seed=seed))
        theirs.update_parameters(one.model)
    expected = theirs.module.state_dict()
    found = one.evaluated.state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-7) for name, value in expected.items())
    assert not torch.allclose(found["4.weight"], one.model[4].weight, atol=1e-4)
    assert torch.equal(found["1.running_mean"], one.model[1].running_mean)
    assert not any(weight.requires_grad for weight in one.evaluated.parameters())


def test_without_averaging_the_net_in_training_is_evaluated() -> None:
    one = learner()
    assert one.evaluated is one.model
    assert not any(name.startswith("averaged") for name in one.tensors())
