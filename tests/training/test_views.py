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
from sweeps.training import views
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
    trial_views = views_of(trial, data)
    images, labels = stored(LARGE, "train", data)
    indices = order(seed, epoch, trial_views.splits.train_indices)
    sidecar = trial_views.splits.train.sidecar
    recipe = trial.cell.recipe
    batches = list(trial_views.training(epoch, 1))
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


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("steps_at_once", "resident"), [(1, True), (3, True), (100, True), (100, False)])
def test_views_made_for_several_steps_at_once_are_those_of_each_step(
    steps_at_once: int, resident: bool, rank: int, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """78 pictures in batches of 8 on two ranks: nine steps of 4 rows and a last one of 3, from the second on."""
    trial = changed(trial_of("allconv with dropout"), batch=8, drop_last=False, shift=4)
    config = runtime_config(data, data / "ledger", resident_bytes=(1 << 30) * resident)
    splits = open_splits(trial, config)
    indices = splits.train_indices[:78]
    splits = dataclasses.replace(splits, train_indices=indices)
    monkeypatch.setitem(views.VIEW_BYTES, "cpu", steps_at_once * 12 * 4 * 32 * 32)
    made: list[int] = []

    def counted(images: Tensor, ids: Tensor, **arguments: Any) -> Tensor:
        made.append(len(ids))
        return training_view(images, ids, **arguments)

    monkeypatch.setattr(views, "training_view", counted)
    batches = list(Views(trial, splits, BatchStream(), Ranks(rank, 2), torch.device("cpu")).training(5, 1))
    sides = {1: [4] * 8 + [3], 3: [12, 12, 11], 100: [35]}
    assert made == sides[steps_at_once if resident else 1]
    images, labels = stored(SMALL, "train", data)
    sidecar = splits.train.sidecar
    ids = order(trial.seed, 5, indices)
    assert len(batches) == 9
    for number, (view, target) in enumerate(batches, 1):
        batch = ids[8 * number : 8 * (number + 1)]
        rows = batch[Ranks(rank, 2).rows(len(batch))]
        expected = training_view(
            images[rows], torch.from_numpy(rows), seed=trial.seed, epoch=5, crop=32, flip=trial.cell.recipe.flip,
            shift=4, lighting=0.0, mean=sidecar.mean, std=sidecar.std, eigenvalues=sidecar.eigenvalues,
            eigenvectors=sidecar.eigenvectors,
        )  # fmt: skip
        assert torch.equal(view, expected)
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert target.tolist() == labels[batch].tolist()


def test_views_with_lighting_are_made_step_by_step(data: Path) -> None:
    """A product of matrices need not have the same last bit for another number of rows."""
    trial = changed(trial_of("allconv with dropout"), lighting=0.1)
    assert views_of(trial, data)._steps_at_once(16) == 1
    assert views_of(changed(trial, lighting=0.0), data)._steps_at_once(16) > 1


def test_evaluation_sees_the_centre_as_it_is_and_then_ten_crops(data: Path) -> None:
    trial = trial_of("All-CNN-B")
    trial_views = views_of(trial, data)
    assert trial_views.splits.test is not None
    images, labels = stored(LARGE, "test", data)
    sidecar = trial_views.splits.train.sidecar
    mean, std = (torch.tensor(colour)[:, None, None] for colour in (sidecar.mean, sidecar.std))
    normal = (images.float() / 255 - mean) / std
    corners = [(4, 4), (0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    crops = [normal[:, :, top : top + 64, left : left + 64] for top, left in corners]
    expected = [crops[0], *(view for crop in crops[1:] for view in (crop, crop.flip(3)))]
    assert len(expected) == TEST_VIEWS
    for number, each in enumerate(expected):
        batch, view = trial_views.evaluation(TEST, 0, trial_views.splits.test, np.arange(12), number, TEST_VIEWS)
        assert batch.labels.tolist() == labels.tolist()
        assert torch.allclose(view, each, atol=1e-5)


def test_mixed_batches_are_those_of_the_definition_on_one_rank_or_two(data: Path) -> None:
    plain, mixed = trial_of("All-CNN-B"), changed(trial_of("All-CNN-B"), mixup=0.4)
    trial_views = views_of(mixed, data)
    indices = order(3, 1, trial_views.splits.train_indices)
    pairs = list(zip(views_of(plain, data).training(1, 0), trial_views.training(1, 0), strict=True))
    halves = [dataclasses.replace(trial_views, ranks=Ranks(rank, 2), stream=BatchStream()) for rank in (0, 1)]
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
        assert all(torch.equal(full_shares, shares) for _, full_shares in ranked)
