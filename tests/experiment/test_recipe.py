"""The recipes say what the paper and its sources say."""

import dataclasses
import math

import pytest
import torch

from sweeps.experiment.recipe import ADDED, ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe, Stage

# Supplement E: epochs from-to, learning rate, weight decay.
SUPPLEMENT_E = (
    (1, 10, 1e-2, 5e-4),
    (11, 20, 1e-3, 5e-4),
    (21, 25, 1e-4, 5e-4),
    (26, 30, 5e-5, 0),
    (31, 35, 1e-5, 0),
    (36, 40, 5e-6, 0),
    (41, 45, 1e-6, 0),
)


@pytest.mark.parametrize(("first", "last", "rate", "decay"), SUPPLEMENT_E)
def test_imagenet_schedule_is_supplement_e(first: int, last: int, rate: float, decay: float) -> None:
    for epoch in range(first - 1, last):
        assert IMAGENET_SGD.learning_rate(epoch, 0, 100) == pytest.approx(rate, rel=1e-12)
        assert IMAGENET_SGD.decay(epoch) == decay


def test_vgg_halves_at_the_start_of_epochs_25_50_75() -> None:
    rates = [VGG.learning_rate(epoch - 1, 0, 1) for epoch in (1, 24, 25, 49, 50, 299, 300)]
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.5**11, 0.5**12]
    assert VGG.dampening == VGG.momentum == 0.9


def test_vgg_last_halvings_are_at_275_and_at_its_last_epoch() -> None:
    # cifar.torch halves where the epoch is a multiple of 25, and its last one is 300.
    rates = [VGG.learning_rate(epoch - 1, 0, 1) for epoch in (274, 275, 299, 300)]
    assert rates == [0.5**10, 0.5**11, 0.5**11, 0.5**12]


def test_allconv_drops_tenfold_after_200_250_300_epochs() -> None:
    rates = [ALLCONV.learning_rate(epoch, 0, 1) / ALLCONV.lr for epoch in (199, 200, 249, 250, 299, 300, 349)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_adam_rate_is_constant() -> None:
    assert {IMAGENET_ADAM.learning_rate(epoch, 0, 1) for epoch in range(100)} == {2e-4}


def test_fewer_epochs_run_the_whole_schedule() -> None:
    short = dataclasses.replace(IMAGENET_SGD, epochs=9)
    assert [short.learning_rate(epoch, 0, 1) for epoch in range(9)] == pytest.approx(
        [IMAGENET_SGD.learning_rate(5 * epoch, 0, 1) for epoch in range(9)]
    )


def test_a_shorter_cosine_keeps_its_warm_up_or_the_share_of_it() -> None:
    cosine = Recipe("mine", "sgd", batch=128, epochs=30, lr=0.4, schedule="cosine", warmup_epochs=5)
    for epochs, warmup in ((30, 5), (8, 5), (6, 5), (5, 5 / 6), (3, 0.5), (1, 1 / 6)):
        short = cosine.compressed(epochs)
        assert short == dataclasses.replace(cosine, epochs=epochs, warmup_epochs=warmup)
        rates = [short.learning_rate(epoch, step, 60) for epoch in range(epochs) for step in range(60)]
        assert max(rates) == pytest.approx(0.4)
        assert rates[-1] < 0.004
    # By stages a rate may rise all the time, and the keys of such trials stay.
    assert dataclasses.replace(ALLCONV, warmup_epochs=2.0).compressed(1).warmup_epochs == 2.0
    assert cosine.shortened("short", 2, 16, 0.1).warmup_epochs == 1 / 3


def test_warm_up_rises_step_by_step_to_the_rate() -> None:
    warm = dataclasses.replace(ALLCONV, warmup_epochs=1.0)
    rates = [warm.learning_rate(0, step, 4) for step in range(4)] + [warm.learning_rate(1, 0, 4)]
    assert rates == pytest.approx([ALLCONV.lr * k / 4 for k in (1, 2, 3, 4)] + [ALLCONV.lr])


def test_cosine_falls_from_the_rate_to_zero_step_by_step_as_that_of_torch() -> None:
    recipe = Recipe("mine", "sgd", batch=128, epochs=6, lr=0.4, weight_decay=0.1, schedule="cosine", warmup_epochs=2)
    rates = [recipe.learning_rate(epoch, step, 5) for epoch in range(6) for step in range(5)]
    assert rates[:10] == pytest.approx([0.04 * step for step in range(1, 11)])
    assert rates[10:] == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([weight], 0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
    for rate in rates[10:]:
        assert optimiser.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-12)
        optimiser.step()
        scheduler.step()
    assert {recipe.decay(epoch) for epoch in range(6)} == {0.1}


def test_cosine_takes_the_place_of_stages() -> None:
    recipe = dataclasses.replace(IMAGENET_SGD, schedule="cosine")
    assert recipe.learning_rate(20, 0, 10) == pytest.approx(0.005 * (1 + math.cos(math.pi * 20 / 45)))
    assert recipe.decay(40) == 5e-4


def test_a_recipe_of_few_words_has_a_constant_rate_and_no_decay() -> None:
    recipe = Recipe("mine", "adamw", batch=32, epochs=9, lr=1e-3)
    assert {recipe.learning_rate(epoch, 0, 3) for epoch in range(9)} == {1e-3}
    assert (recipe.schedule_epochs, recipe.weight_decay) == (9, 0.0)
    with pytest.raises(ValueError, match=r"recipe.lr is above 0, not 0.0"):
        Recipe("mine", "adamw", batch=32, epochs=9)


def test_new_fields_are_written_where_they_differ_from_their_defaults() -> None:
    for recipe in (ALLCONV, VGG, IMAGENET_SGD, IMAGENET_ADAM):
        assert sorted(recipe.to_json()) == [
            "batch", "clip_norm", "dampening", "drop_last", "epochs", "flip", "init", "lighting", "lr", "momentum",
            "name", "optimiser", "precision", "restarts", "schedule_epochs", "shift", "stages", "warmup_epochs",
            "weight_decay",
        ]  # fmt: skip
    values = ("cosine", True, 0.1, 0.08, 2, 5, 0.2, 0.999)
    recipe = dataclasses.replace(ALLCONV, **dict(zip(ADDED, values, strict=True)))
    assert {name: value for name, value in recipe.to_json().items() if name in ADDED} == dict(
        zip(ADDED, values, strict=True)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch", -1), ("lr", 0.0), ("lr", float("nan")), ("optimiser", "adamax"), ("momentum", 1.0),
     ("weight_decay", -1e-4), ("init", "he"), ("precision", "fp8"), ("stages", (Stage(2, 1.0),)),
     ("schedule", "linear"), ("label_smoothing", 1.0), ("label_smoothing", -0.1), ("ema", 1.0), ("mixup", -1.0),
     ("mixup", float("nan")), ("resized_crop", 1.5), ("rand_augment", -1), ("rand_magnitude", 31)],
)  # fmt: skip
def test_impossible_recipe_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(ALLCONV, **{field: value})


@pytest.mark.parametrize(
    ("recipe", "fields", "says"),
    [
        (VGG, {"nesterov": True}, "nesterov is for sgd with a momentum and without dampening"),
        (IMAGENET_ADAM, {"nesterov": True}, "nesterov is for sgd"),
        (VGG, {"resized_crop": 0.08}, "takes the place of shifts: set recipe.shift=0 with it"),
        (ALLCONV, {"schedule": "cosine", "epochs": 1}, "warmup_epochs of a cosine is below its 1 epoch, not 1.0"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(recipe: Recipe, fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(recipe, **fields)  # type: ignore[arg-type]


def test_ranks_part_no_pair_of_a_mixture() -> None:
    recipe = dataclasses.replace(ALLCONV, batch=16, mixup=0.2)
    recipe.shared(16, 4)
    recipe.shared(36, 1)
    dataclasses.replace(recipe, mixup=0.0).shared(22, 2)
    for pictures, batch, ranks in ((22, 16, 2), (48, 16, 3), (60, 10, 2)):
        with pytest.raises(
            ValueError, match=rf"pairs, and {ranks} ranks part a pair of .* recipe.batch={batch - batch % (2 * ranks)} "
        ):
            dataclasses.replace(recipe, batch=batch).shared(pictures, ranks)


def test_pictures_that_are_left_out_of_an_epoch_are_no_batch_for_ranks_to_part() -> None:
    dataclasses.replace(VGG, mixup=0.2).shared(10_007, 2)  # 78 batches of 128, and 23 pictures that are dropped
    dataclasses.replace(ALLCONV, mixup=0.2).shared(129, 2)  # a last picture alone
    dataclasses.replace(ALLCONV, batch=16, mixup=0.2).shared(10, 5)  # no batch has sixteen


def test_the_batch_that_a_refused_mixture_is_given_is_accepted() -> None:
    recipe = dataclasses.replace(ALLCONV, batch=16, mixup=0.2)
    with pytest.raises(ValueError, match=r"recipe\.batch=8 recipe\.drop_last=true"):
        recipe.shared(10, 2)  # the only batch has these ten
    dataclasses.replace(recipe, batch=8, drop_last=True).shared(10, 2)


def test_recipe_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ALLCONV.lr = 0.1  # type: ignore[misc]
    again = dataclasses.replace(ALLCONV)
    assert again == ALLCONV
    assert hash(again) == hash(ALLCONV)
    assert dataclasses.replace(ALLCONV, lr=0.1) != ALLCONV


@pytest.mark.parametrize(
    ("pictures", "drop_last", "steps"),
    [(40_000, False, 313), (40_000, True, 312), (256, False, 2), (257, False, 2), (258, False, 3), (1, False, 1),
     (129, False, 1), (100, True, 1)],
)  # fmt: skip
def test_last_batch_of_one_picture_is_left_out(pictures: int, drop_last: bool, steps: int) -> None:
    recipe = dataclasses.replace(ALLCONV, batch=128, drop_last=drop_last)
    assert recipe.steps(pictures) == steps


def test_each_picture_is_a_step_where_the_batch_is_one() -> None:
    assert dataclasses.replace(ALLCONV, batch=1).steps(7) == 7
