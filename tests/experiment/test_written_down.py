"""Numbers of the recipes, the search spaces and the scales, written down a second time from their sources."""

import dataclasses

import pytest

from crelu_models.tables import S8
from sweeps.execution.verify_resume import shortened
from sweeps.experiment.profiles import EMBEDDED, scaled
from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, SPACES, VGG, Recipe
from sweeps.experiment.trial import Cell, Trial

FIELDS = ("optimiser", "batch", "epochs", "lr", "weight_decay", "momentum", "dampening", "init", "flip", "shift",
          "lighting", "drop_last", "warmup_epochs", "clip_norm")  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        (ALLCONV, ("sgd", 128, 350, 0.05, 0.001, 0.9, 0.0, "he_fan_in", True, 0, 0.0, False, 1.0, 1.0)),
        (VGG, ("sgd", 128, 300, 1.0, 0.0005, 0.9, 0.9, "he_fan_out", True, 4, 0.0, True, 0.0, 0.0)),
        (IMAGENET_SGD, ("sgd", 64, 45, 0.01, 0.0005, 0.9, 0.0, "he_fan_in", True, 0, 0.0, False, 0.0, 1.0)),
        (IMAGENET_ADAM, ("adam", 64, 100, 0.0002, 0.0, 0.9, 0.0, "he_fan_in", True, 0, 0.0, False, 0.0, 1.0)),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else "",
)
def test_recipes_are_those_of_section_4_and_supplement_e(recipe: Recipe, values: tuple[object, ...]) -> None:
    assert tuple(getattr(recipe, field) for field in FIELDS) == values


@pytest.mark.parametrize(
    ("pictures", "keep", "drop"), [(50_000, 391, 390), (256, 2, 2), (257, 2, 2), (258, 3, 2), (127, 1, 1), (1, 1, 1)]
)
def test_an_epoch_has_an_incomplete_last_step_unless_that_is_dropped(pictures: int, keep: int, drop: int) -> None:
    assert ALLCONV.steps(pictures) == keep
    assert VGG.steps(pictures) == drop


def test_search_spaces_are_what_the_paper_tuned() -> None:
    assert {family: [tuple(dimension) for dimension in space] for family, space in SPACES.items()} == {
        "allconv": [("input", 0.0, 0.4, 0.05), ("pool1", 0.0, 0.7, 0.05), ("pool2", 0.0, 0.7, 0.05)],
        "vgg": [("conv1", 0.0, 0.4, 0.05), ("conv3", 0.0, 0.5, 0.05), ("conv5", 0.0, 0.5, 0.05),
                ("conv6", 0.0, 0.5, 0.05)],
        "imagenet": [("conv9", 0.0, 0.5, 0.25)],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "epochs"), [(ALLCONV, 35), (VGG, 30), (IMAGENET_SGD, 4), (IMAGENET_ADAM, 10)], ids=lambda each: str(each)
)
def test_mini_is_half_the_width_and_a_tenth_of_the_epochs_on_the_papers_data(recipe: Recipe, epochs: int) -> None:
    cell = Cell("Baseline", S8, "imagenet", recipe)
    mini = scaled(cell, "mini")
    assert mini.net == S8.width(0.5)
    assert mini.dataset == "imagenet"
    assert dataclasses.replace(mini.recipe, name="") == dataclasses.replace(recipe, name="", epochs=epochs)


MODERN = Recipe("mine", "adamw", batch=128, epochs=30, lr=1e-3, schedule="cosine", warmup_epochs=5)


@pytest.mark.parametrize(("profile", "epochs", "warmup"), [("paper", 30, 5), ("mini", 3, 0.5), ("demo", 8, 5),
                                                           ("smoke", 1, 1 / 6)])  # fmt: skip
def test_a_cosine_of_the_user_is_shortened_with_its_warm_up(profile: str, epochs: int, warmup: float) -> None:
    recipe = scaled(Cell("Baseline", S8, "imagenet", MODERN), profile, own_recipes=True).recipe
    assert recipe == dataclasses.replace(MODERN, epochs=epochs, warmup_epochs=warmup)


def test_proof_of_resumption_takes_a_cosine_with_warm_up() -> None:
    short = shortened(Trial(Cell("Baseline", S8, "imagenet", MODERN))).recipe
    assert (short.epochs, short.warmup_epochs) == (3, 0.5)


def test_paper_changes_nothing_and_demo_takes_embedded_pictures() -> None:
    cell = Cell("Baseline", S8, "imagenet", IMAGENET_SGD)
    assert scaled(cell, "paper") == cell
    assert scaled(cell, "demo").dataset == EMBEDDED["imagenet"]
    assert scaled(cell, "demo", "imagenet").dataset == "imagenet"
