"""The recipes say what the paper and its sources say."""

import dataclasses

import pytest

from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Stage

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


def test_warm_up_rises_step_by_step_to_the_rate() -> None:
    warm = dataclasses.replace(ALLCONV, warmup_epochs=1.0)
    rates = [warm.learning_rate(0, step, 4) for step in range(4)] + [warm.learning_rate(1, 0, 4)]
    assert rates == pytest.approx([ALLCONV.lr * k / 4 for k in (1, 2, 3, 4)] + [ALLCONV.lr])


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch", -1), ("lr", 0.0), ("lr", float("nan")), ("optimiser", "adamw"), ("momentum", 1.0),
     ("weight_decay", -1e-4), ("init", "he"), ("precision", "fp8"), ("stages", (Stage(2, 1.0),))],
)  # fmt: skip
def test_impossible_recipe_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(ALLCONV, **{field: value})


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
