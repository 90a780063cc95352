"""The batches of a trial against pictures taken one by one: which, in which order, with which label, as which view."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crelu_data.augment import mixing_shares, training_view
from crelu_data.datasets import beton_path, order
from crelu_data.load import open_pictures
from crelu_data.write import prepare
from sweeps.experiment.trial import Trial
from sweeps.training.distributed import ALONE, Ranks
from sweeps.training.shared_batches import TEST, BatchStream
from sweeps.training.splits import open_splits
from sweeps.training.views import TEST_VIEWS, Views
from tests.support.trials import LARGE, SMALL, runtime_config, trial_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("data")
    for name in (SMALL, LARGE):
        prepare(name, where)
    return where


def changed(trial: Trial, **fields: Any) -> Trial:
    recipe = dataclasses.replace(trial.cell.recipe, **fields)
    return dataclasses.replace(trial, cell=dataclasses.replace(trial.cell, recipe=recipe))


def views_of(trial: Trial, data: Path) -> Views:
    splits = open_splits(trial, runtime_config(data, data / "ledger"))
    return Views(trial, splits, BatchStream(), ALONE, torch.device("cpu"))


def stored(name: str, split: str, data: Path) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Return all pictures of a file (n, 3, size, size) and their labels, in the order of the file."""
    with open_pictures(beton_path(name, split, data), reader="threads") as pictures:
        (batch,) = pictures.batches(np.arange(len(pictures)), len(pictures))
        return batch.images, pictures.labels


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"flip": False, "shift": 4},
        {"lighting": 0.1},
        {"resized_crop": 0.2, "rand_augment": 2, "rand_magnitude": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 2)])
def test_training_views_follow_seed_epoch_and_recipe(fields: dict[str, Any], seed: int, epoch: int, data: Path) -> None:
    trial = dataclasses.replace(changed(trial_of("All-CNN-B"), **fields), seed=seed)
    found = views_of(trial, data)
    images, labels = stored(LARGE, "train", data)
    indices = order(seed, epoch, found.splits.train_indices)
    sidecar, recipe = found.splits.train.sidecar, trial.cell.recipe
    batches = list(found.training(epoch, 1))
    assert len(batches) == 2  # 48 pictures are three batches of 16, the first of which is left out
    for number, (view, target) in enumerate(batches, 1):
        ids = indices[16 * number : 16 * (number + 1)]
        expected = training_view(
            images[ids], torch.from_numpy(ids), seed=seed, epoch=epoch, crop=64, flip=recipe.flip, shift=recipe.shift,
            lighting=recipe.lighting, resized_crop=recipe.resized_crop, rand_augment=recipe.rand_augment,
            rand_magnitude=recipe.rand_magnitude, mean=sidecar.mean, std=sidecar.std, eigenvalues=sidecar.eigenvalues,
            eigenvectors=sidecar.eigenvectors,
        )  # fmt: skip
        assert torch.equal(view, expected)
        assert target.tolist() == labels[ids].tolist()


def test_evaluation_sees_the_centre_as_it_is_and_then_ten_crops(data: Path) -> None:
    trial = trial_of("All-CNN-B")
    found = views_of(trial, data)
    assert found.splits.test is not None
    images, labels = stored(LARGE, "test", data)
    sidecar = found.splits.train.sidecar
    mean, std = (torch.tensor(colour)[:, None, None] for colour in (sidecar.mean, sidecar.std))
    normal = (images.float() / 255 - mean) / std
    corners = [(4, 4), (0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    crops = [normal[:, :, top : top + 64, left : left + 64] for top, left in corners]
    expected = [crops[0], *(view for crop in crops[1:] for view in (crop, crop.flip(3)))]
    assert len(expected) == TEST_VIEWS
    for number, each in enumerate(expected):
        batch, view = found.evaluation(TEST, 0, found.splits.test, np.arange(12), number, TEST_VIEWS)
        assert batch.labels.tolist() == labels.tolist()
        assert torch.allclose(view, each, atol=1e-5)


def test_mixed_batches_are_those_of_the_definition_on_one_rank_or_two(data: Path) -> None:
    plain, mixed = trial_of("All-CNN-B"), changed(trial_of("All-CNN-B"), mixup=0.4)
    found = views_of(mixed, data)
    indices = order(3, 1, found.splits.train_indices)
    pairs = list(zip(views_of(plain, data).training(1, 0), found.training(1, 0), strict=True))
    halves = [dataclasses.replace(found, ranks=Ranks(rank, 2), stream=BatchStream()) for rank in (0, 1)]
    parts = zip(*(half.training(1, 0) for half in halves), strict=True)
    for number, (((view, labels), (seen, shares)), ranked) in enumerate(zip(pairs, parts, strict=True)):
        ids = torch.from_numpy(indices[16 * number : 16 * (number + 1)])
        weights = mixing_shares(ids, seed=3, epoch=1, alpha=0.4)
        for place, weight in enumerate(weights.tolist()):
            other = place + 1 if place % 2 == 0 else place - 1
            assert torch.allclose(seen[place], weight * view[place] + (1 - weight) * view[other], atol=1e-5)
            expected = torch.zeros(4)
            expected[labels[place]] += weight
            expected[labels[other]] += 1 - weight
            assert torch.allclose(shares[place], expected)
        assert torch.equal(torch.cat([half for half, _ in ranked]), seen)
        assert all(torch.equal(whole, shares) for _, whole in ranked)
