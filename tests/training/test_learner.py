"""One step of a learner by what it must do: gradients in parts, a norm that is cut, a rate a step, sums an epoch."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sweeps.experiment.recipe import ALLCONV, Recipe, Stage
from sweeps.training.distributed import Ranks
from sweeps.training.evaluate import score
from sweeps.training.loop import DivergedError, Learner

PLAIN = dataclasses.replace(ALLCONV, momentum=0.0, weight_decay=0.0, lr=1.0, epochs=2, schedule_epochs=2,
                            stages=(Stage(1, 1.0),), warmup_epochs=0.0, clip_norm=0.0)  # fmt: skip


def make_learner(recipe: Recipe = PLAIN, steps: int = 4) -> Learner:
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
    undivided, divided = make_learner(), make_learner()
    divided.micro_batches = parts
    expected = moved(undivided, images, labels)
    loss = nn.functional.cross_entropy(make_learner().model(images), labels)
    assert undivided.sums[0].item() / 12 == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(moved(divided, images, labels), expected, atol=1e-6)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.5), (0.99, 0.99), (2.0, 1.0)])
def test_a_gradient_is_cut_at_the_norm_of_the_recipe(share: float, expected: float) -> None:
    images, labels = batch()
    gradient = moved(make_learner(), images, labels)
    limit = share * gradient.norm().item()
    cut = moved(make_learner(dataclasses.replace(PLAIN, clip_norm=limit)), images, labels)
    assert torch.allclose(cut, expected * gradient, rtol=1e-4, atol=1e-7)


def test_each_step_has_the_rate_and_decay_of_its_epoch_and_place() -> None:
    stages = (Stage(1, 1.0), Stage(2, 0.1, 0.0))
    recipe = dataclasses.replace(PLAIN, lr=0.8, weight_decay=0.01, stages=stages, warmup_epochs=1.0)
    learner = make_learner(recipe)
    seen = []
    learner.optimiser.step = lambda rate, decay: seen.append((round(rate.item(), 9), decay))  # type: ignore[method-assign]
    for _ in range(2):
        for _ in range(4):
            learner.step(*batch())
        learner.end_epoch()
    assert seen == [(0.2, 0.01), (0.4, 0.01), (0.6, 0.01), (0.8, 0.01), *[(0.08, 0.0)] * 4]


def test_errors_of_an_epoch_are_over_its_own_batches() -> None:
    learner = make_learner(dataclasses.replace(PLAIN, lr=1e-12))
    losses = []
    for seed in (1, 2):
        images, labels = batch(seed=seed)
        learner.step(images, labels)
        scores = learner.model(images).detach()
        losses.append(nn.functional.cross_entropy(scores, labels).item())
        errors = learner.end_epoch()
        assert errors.loss == pytest.approx(losses[-1], rel=1e-5)
        assert errors.top1 == pytest.approx(100 * (scores.argmax(1) != labels).float().mean().item(), rel=1e-5)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("value", [3e38, float("nan")])
def test_a_loss_that_is_infinite_or_no_number_has_diverged(value: float) -> None:
    learner = make_learner()
    learner.model[3].bias.data = torch.tensor([value, -value, 0.0])
    learner.step(*batch(12))
    with pytest.raises(DivergedError, match="epoch 1"):
        learner.end_epoch()


def test_a_step_trains_also_after_an_evaluation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    learner = Learner(model, PLAIN, seed=0, steps=4, precision="fp32")
    images, labels = batch()
    for seen in (1, 2):
        learner.step(images, labels)
        assert model[1].num_batches_tracked == seen
        list(score(model, [images], "fp32"))


def test_a_restored_learner_goes_on_as_the_one_that_was_saved() -> None:
    recipe = dataclasses.replace(PLAIN, momentum=0.9, lr=0.1, warmup_epochs=2.0)
    learner, other = make_learner(recipe), make_learner(recipe)
    for seed in range(6):
        if learner.step_count == 4:
            learner.end_epoch()
        learner.step(*batch(seed=seed))
    other.restore({name: value.clone() for name, value in learner.tensors().items()}, learner.epoch, learner.step_count)
    assert (other.epoch, other.step_count) == (1, 2)
    for seed in (7, 8):
        learner.step(*batch(seed=seed))
        other.step(*batch(seed=seed))
    assert learner.end_epoch() == other.end_epoch()
    assert all(torch.equal(value, other.tensors()[name]) for name, value in learner.tensors().items())


def test_smoothed_labels_have_the_loss_of_torch() -> None:
    images, labels = batch()
    learner = make_learner(dataclasses.replace(PLAIN, label_smoothing=0.2))
    expected = make_learner().model
    loss = nn.functional.cross_entropy(expected(images), labels, label_smoothing=0.2)
    loss.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in expected.parameters()])
    assert torch.allclose(moved(learner, images, labels), gradient, atol=1e-6)
    assert learner.end_epoch().loss == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_mixed_labels_have_the_weighted_loss_and_the_errors_of_the_larger_share(parts: int) -> None:
    images, labels = batch()
    shares = torch.tensor([0.9, 0.2] * 6)
    other = labels.view(-1, 2).flip(1).flatten()
    classes = nn.functional.one_hot(labels, 3) * shares[:, None]
    classes = classes + nn.functional.one_hot(other, 3) * (1 - shares)[:, None]
    learner = make_learner()
    learner.micro_batches = parts
    scores = make_learner().model(images)
    losses = [nn.functional.cross_entropy(scores, each, reduction="none") for each in (labels, other)]
    expected = (shares * losses[0] + (1 - shares) * losses[1]).mean().item()
    learner.step(images, classes)
    errors = learner.end_epoch()
    assert errors.loss == pytest.approx(expected, rel=1e-6)
    larger = torch.where(shares > 0.5, labels, other)
    assert errors.top1 == pytest.approx(100 * (scores.argmax(1) != larger).float().mean().item())


def normed(recipe: Recipe) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return Learner(model, recipe, seed=0, steps=4, precision="fp32")


def test_averaged_weights_are_those_of_torch_also_when_restored() -> None:
    recipe = dataclasses.replace(PLAIN, lr=0.1, ema=0.8)
    learner = normed(recipe)
    theirs = AveragedModel(learner.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for seed in range(6):
        if seed == 4:
            learner.end_epoch()
            other = normed(recipe)
            other.restore(
                {name: value.clone() for name, value in learner.tensors().items()}, learner.epoch, learner.step_count
            )
            other.model.load_state_dict(learner.model.state_dict())
            learner.averaged = other.averaged
        learner.step(*batch(seed=seed))
        theirs.update_parameters(learner.model)
    expected = theirs.module.state_dict()
    weights = learner.evaluated.state_dict()
    assert all(torch.allclose(weights[name], value, atol=1e-7) for name, value in expected.items())
    assert not torch.allclose(weights["4.weight"], learner.model[4].weight, atol=1e-4)
    assert torch.equal(weights["1.running_mean"], learner.model[1].running_mean)
    assert not any(weight.requires_grad for weight in learner.evaluated.parameters())


class ByFunction(nn.Module):
    """Net whose batch norm is a function, in training or always by running statistics."""

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)
        self.learns = learns
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        training = self.training and self.learns
        x = nn.functional.batch_norm(x, self.mean, self.variance, training=training)  # type: ignore[arg-type]
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("learns", "parts"), [(True, 1), (True, 2), (False, 2)])
def test_a_batch_norm_by_function_is_refused_on_parts_of_a_batch(learns: bool, parts: int) -> None:
    learner = Learner(ByFunction(learns), PLAIN, seed=0, steps=4, precision="fp32", foreign=True)
    learner.micro_batches = parts
    if learns and parts > 1:
        with pytest.raises(ValueError, match=r"this net calls functional.batch_norm, which would measure a part"):
            learner.step(*batch())
    else:
        learner.step(*batch())
        assert learner.end_epoch().loss > 0


class Remembering(nn.Module):
    """Net that keeps a running mean of the pictures that it has seen, from a step on."""

    mean: Tensor

    def __init__(self, since: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(48, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("sparse", torch.eye(3).to_sparse(), persistent=False)
        self.since = since
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        self.steps += self.training
        self.norm.running_mean = x.mean((0, 2, 3))  # of a batch norm ranks take care themselves
        if self.training and self.steps >= self.since:
            self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        out: Tensor = self.head(x.flatten(1))
        return out


@pytest.mark.parametrize(("since", "parts"), [(1, 2), (1, 1), (9, 2)])
def test_a_buffer_that_a_step_changes_is_refused_on_parts_of_a_batch(since: int, parts: int) -> None:
    learner = Learner(Remembering(since), PLAIN, seed=0, steps=4, precision="fp32", foreign=True)
    learner.micro_batches = parts
    if since == 1 and parts > 1:
        with pytest.raises(ValueError, match=r"changes the buffer mean in training, and so in each part .*batch=N"):
            learner.step(*batch())
    else:
        learner.step(*batch())
        assert learner.end_epoch().loss > 0


@pytest.mark.parametrize(("since", "comparisons"), [(1, 1), (2, 2), (9, 2)])
def test_ranks_whose_buffers_come_apart_are_refused(
    since: int, comparisons: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: tuple[list[dict[str, str]], ...] = ([], [])

    def gather(ranks: Ranks, value: dict[str, str]) -> list[dict[str, str]]:
        """Return what each rank has told; the second trains after the first."""
        told[ranks.rank].append(value)
        number = len(told[ranks.rank])
        return [each[number - 1] for each in told if len(each) >= number]

    def train(rank: int) -> None:
        images, labels = batch()
        ranks = Ranks(rank, 2)
        learner = Learner(Remembering(since), PLAIN, seed=0, steps=2, precision="fp32", ranks=ranks, foreign=True)
        for _ in range(2):
            learner.step(images[ranks.rows(12)], labels)
        learner.end_epoch()

    monkeypatch.setattr(Ranks, "sum_gradients", lambda *_: None)
    monkeypatch.setattr(Ranks, "all_reduce_sum", lambda _, tensor: tensor)
    monkeypatch.setattr(Ranks, "all_gather", gather)
    train(0)
    if since > 2:
        train(1)
    else:
        with pytest.raises(ValueError, match="each changes the buffer mean by its own rows of a batch; train it on"):
            train(1)
    assert [len(each) for each in told] == [2, comparisons]


def tied(recipe: Recipe) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
    model[2].weight = model[1].weight
    return Learner(model, recipe, seed=0, steps=4, precision="fp32")


def test_averaged_weights_that_are_tied_go_on_where_they_were() -> None:
    recipe = dataclasses.replace(PLAIN, lr=0.1, ema=0.8)
    learner, other = tied(recipe), tied(recipe)
    for seed in range(3):
        learner.step(*batch(seed=seed))
    other.restore({name: value.clone() for name, value in learner.tensors().items()}, learner.epoch, learner.step_count)
    for each in (learner, other):
        each.step(*batch(seed=3))
    weights = other.evaluated.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in learner.evaluated.state_dict().items())
    assert not torch.equal(weights["1.weight"], other.model[1].weight)
    assert other.evaluated[1].weight is other.evaluated[2].weight  # type: ignore[index]


def test_without_averaging_the_net_in_training_is_evaluated() -> None:
    learner = make_learner()
    assert learner.evaluated is learner.model
    assert not any(name.startswith("averaged") for name in learner.tensors())


class Counting(nn.Module):
    """Net that counts its steps in a buffer that is no part of its state."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        if self.training:
            self.seen += 1
        out: Tensor = self.head(x.flatten(1))
        return out


def test_a_buffer_that_no_state_has_goes_on_where_it_was() -> None:
    recipe = dataclasses.replace(PLAIN, lr=0.1, ema=0.8)
    learner, other = (Learner(Counting(), recipe, seed=0, steps=4, precision="fp32") for _ in range(2))
    for seed in range(3):
        learner.step(*batch(seed=seed))
    other.restore({name: value.clone() for name, value in learner.tensors().items()}, learner.epoch, learner.step_count)
    assert other.model.seen == 3
    assert other.evaluated.seen == 3
