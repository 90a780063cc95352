"""Names, orders, folds and sidecars."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crelu_data import datasets
from crelu_data.datasets import (
    Sidecar,
    beton_path,
    canonical,
    data_dir,
    dataset,
    folds,
    holdout,
    order,
    read_sidecar,
    stem,
    write_sidecar,
)

SIDECAR = Sidecar(
    name="synthetic",
    split="train",
    classes=2,
    class_names=("bars", "posts"),
    count=5,
    size=32,
    mode="raw",
    quality=0,
    seed=0,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    eigenvalues=(0.1, 0.01, 0.001),
    eigenvectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    label_counts=(3, 2),
    measured=5,
    skipped=0,
    writer="native",
    fingerprint="0" * 64,
    index="1" * 64,
    file_bytes=4_200_000,
)


@pytest.mark.parametrize(
    ("name", "classes", "size", "crop", "train", "final", "final_count"),
    [
        ("cifar10", 10, 32, 32, 50_000, "test", 10_000),
        ("cifar100", 100, 32, 32, 50_000, "test", 10_000),
        ("imagenet", 1000, 256, 224, 1_281_167, "val", 50_000),
        ("imagenet:size=64", 1000, 64, 56, 1_281_167, "val", 50_000),
        ("synthetic:size=72,train=3000,test=600", 10, 72, 64, 3000, "test", 600),
    ],
)
def test_facts_are_those_of_the_published_sets(
    name: str, classes: int, size: int, crop: int, train: int, final: str, final_count: int
) -> None:
    facts = dataset(name)
    assert (facts.classes, facts.size, facts.crop, facts.final) == (classes, size, crop, final)
    assert facts.splits == {"train": train, final: final_count}


def test_a_name_has_one_spelling() -> None:
    assert canonical("synthetic:size=32,seed=0") == "synthetic"
    assert canonical("synthetic:train=3000,size=72") == canonical("synthetic:size=72,train=3000")
    assert canonical("imagenet:size=256") == "imagenet"
    assert stem("synthetic:train=3000,size=72") == "synthetic-size72-train3000"
    assert dataset(canonical("synthetic:classes=4,size=40")) == dataset("synthetic:size=40,classes=4")


def test_stems_of_folders_are_safe_and_differ(tmp_path: Path) -> None:
    stems = [stem(f"folder:{tmp_path / name}") for name in ("my pics/é:*", "my pics/b", "b")]
    assert len(set(stems)) == 3
    for each in stems:
        assert set(each) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cifra10", "nearest: cifar10"),
        ("cifar10:size=64", "use one of"),
        ("synthetic:colour=3", "not a field of synthetic|not one of"),
        ("synthetic:size=8", "16 or more"),
        ("synthetic:size=-3", "with an integer"),
        ("folder:", "use one of"),
        ("folder:/nowhere", "data prepare folder:/nowhere"),
    ],
)
def test_a_wrong_name_is_told_with_what_would_be_right(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        dataset(name, tmp_path)


def test_data_dir_is_flag_then_variable_then_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CRELU_DATA", raising=False)
    assert data_dir(None) == Path.home() / ".cache/crelu-sweeps/data"
    monkeypatch.setenv("CRELU_DATA", str(tmp_path))
    assert data_dir(None) == tmp_path
    assert data_dir("/elsewhere") == Path("/elsewhere")
    assert data_dir("relative").is_absolute()


@pytest.mark.parametrize(
    ("name", "held_out"), [("cifar10", 10_000), ("cifar100", 10_000), ("imagenet", 50_000), ("synthetic", 800)]
)
def test_hold_out_is_a_fifth_of_cifar_and_50_pictures_a_class_of_imagenet(name: str, held_out: int) -> None:
    assert dataset(name).holdout == held_out


def test_orders_and_parts_are_written_down() -> None:
    """Other ones would give every result other pictures, and no result would say so."""
    labels = np.arange(12) % 3
    assert order(0, 0, np.arange(12)).tolist() == [6, 1, 2, 4, 5, 0, 10, 11, 7, 3, 9, 8]
    assert order(3, 7, np.arange(12)).tolist() == [1, 10, 7, 8, 4, 2, 11, 5, 6, 3, 0, 9]
    assert [holdout(labels, 4, seed)[1].tolist() for seed in (0, 1)] == [[3, 9, 10, 11], [0, 4, 5, 6]]
    assert [held_out.tolist() for _, held_out in folds(labels, 4, 0)] == [[1, 3, 11], [0, 5, 7], [4, 6, 8], [2, 9, 10]]
    assert [held_out.tolist() for _, held_out in folds(labels, 4, 1)] == [[2, 4, 9], [1, 6, 11], [3, 5, 10], [0, 7, 8]]


def test_order_is_a_permutation_of_its_indices() -> None:
    indices = np.arange(100, 1100)
    shuffled = order(3, 1, indices)
    assert not np.array_equal(shuffled, indices)
    assert np.array_equal(np.sort(shuffled), indices)
    assert np.array_equal(shuffled, order(3, 1, indices))


def test_no_seed_replays_another_seeds_orders() -> None:
    orders = {order(seed, epoch, np.arange(50)).tobytes() for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_first_places_are_uniform_over_epochs() -> None:
    count = 20
    epochs = 4000
    first = np.bincount([order(0, epoch, np.arange(count))[0] for epoch in range(epochs)], minlength=count)
    expected = epochs / count
    assert ((first - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees, p = 0.001


def test_holdout_is_stratified_and_covers_the_set() -> None:
    labels = np.repeat(np.arange(7), [100, 50, 33, 10, 5, 1, 301])
    train, held = holdout(labels, 120, seed=1)
    assert len(held) == 120
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(500))
    assert np.abs(np.bincount(labels[held], minlength=7) - np.bincount(labels) * 120 / 500).max() < 1
    assert np.array_equal(held, np.sort(held))
    assert np.array_equal(held, holdout(labels, 120, seed=1)[1])
    assert not np.array_equal(held, holdout(labels, 120, seed=2)[1])


def test_folds_part_the_set_and_every_class() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1003)
    parts = folds(labels, 10, seed=0)
    held = [validation for _, validation in parts]
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(1003))
    counts = np.stack([np.bincount(labels[validation], minlength=10) for validation in held])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp([len(validation) for validation in held]) <= 1
    for train, validation in parts:
        assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(1003))


@pytest.mark.parametrize("count", range(1, 14))
def test_holdout_leaves_a_picture_of_each_class(count: int) -> None:
    labels = np.asarray([0] * 8 + [1, 2, 3] + [4] * 5 + [5] * 3)  # 19 pictures: 13 may go
    train, held = holdout(labels, count, seed=0)
    assert len(held) == count
    assert set(labels[train]) == set(range(6))
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(19))


def test_holdout_without_rare_classes_is_the_proportional_one() -> None:
    """One that changed would give every result other pictures."""
    labels = np.repeat(np.arange(5), [9, 4, 6, 7, 5])
    _, held = holdout(labels, 11, seed=0)
    assert np.bincount(labels[held]).tolist() == [3, 1, 2, 3, 2]  # 3.19, 1.42, 2.13, 2.48, 1.77


@pytest.mark.parametrize("k", range(2, 9))
def test_a_class_s_only_picture_is_in_no_fold(k: int) -> None:
    labels = np.asarray([3, 0, 0, 1, 1, 1, 2, 1, 4, 0])
    parts = folds(labels, k, seed=0) if k < 8 else []
    if k == 8:
        with pytest.raises(ValueError, match="8 folds of 10 pictures: from 2 to 7 are possible, since of 3 classes"):
            folds(labels, k, seed=0)
    for train, validation in parts:
        assert len(validation) >= 1
        assert set(labels[train]) == set(range(5))
    held = [picture for _, validation in parts for picture in validation]
    assert k == 8 or sorted(held) == [1, 2, 3, 4, 5, 7, 9]


def test_classes_of_one_picture_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="a hold-out of 2 of 8 pictures: none is possible, since one of"):
        holdout(np.arange(8), 2, 0)
    with pytest.raises(ValueError, match="none is possible"):
        folds(np.arange(8), 2, 0)


def test_one_is_not_many_in_what_cannot_be_split() -> None:
    labels = np.asarray([0, 0, 1])
    with pytest.raises(ValueError, match=r"^a hold-out of 2 of 3 pictures: 1 is possible, since one of each of 2 "):
        holdout(labels, 2, 0)
    with pytest.raises(ValueError, match=r"^4 folds of 3 pictures: 2 are possible, since of 1 class the only"):
        folds(labels, 4, 0)


@pytest.mark.parametrize("call", [lambda x: holdout(x, 0, 0), lambda x: holdout(x, 4, 0), lambda x: folds(x, 6, 0)])
def test_impossible_parts_are_refused(call: object) -> None:
    with pytest.raises(ValueError, match="pictures"):
        call(np.array([0, 0, 1, 1, 1]))  # type: ignore[operator]


def test_a_sidecar_survives_its_file(tmp_path: Path) -> None:
    sidecar = dataclasses.replace(SIDECAR, splits=("train", "test"))
    write_sidecar(tmp_path / "x.json", sidecar)
    assert read_sidecar(tmp_path / "x.json") == sidecar
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"count": "5"},
        {"count": True},
        {"count": 6},
        {"classes": 3},
        {"mode": "exec"},
        {"split": "../train"},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, "x"]},
        {"std": [0.2, 0.2, float("nan")]},
        {"std": [0.2, 0.2, 0.0]},
        {"eigenvectors": [[1.0, 0.0, 0.0]]},
        {"version": 99},
        {"version": None},
        {"class_names": "ab"},
        {"label_counts": [-1, 6]},
        {"splits": ["val", "test"]},
        {"splits": ["train", "../test"]},
        {"splits": "train"},
        {"surplus": 1},
    ],
)
def test_a_wrong_sidecar_is_refused_by_name(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(dataclasses.asdict(SIDECAR) | change))
    with pytest.raises(ValueError, match=r"x\.json"):
        read_sidecar(path)


@pytest.mark.parametrize("change", [{"seed": -1}, {"count": 6}, {"mean": (float("nan"), 0.0, 0.0)}])
def test_a_sidecar_that_could_not_be_read_is_not_written(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_sidecar(path, SIDECAR)
    with pytest.raises(ValueError, match=r"x\.json is not a sidecar"):
        write_sidecar(path, dataclasses.replace(SIDECAR, **change))
    assert read_sidecar(path) == SIDECAR


def test_a_disk_that_cannot_be_read_is_no_fault_of_the_sidecar(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError):
        read_sidecar(tmp_path / "x.json")
    with pytest.raises(ValueError, match="is missing"):
        read_sidecar(tmp_path / "y.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00", '{"version": 1}', "[" * 100_000])
def test_a_sidecar_that_is_no_sidecar_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_sidecar(path)


def test_counts_with_a_place_are_those_of_its_files(tmp_path: Path) -> None:
    small = dataclasses.replace(SIDECAR, name="cifar10", classes=2, count=5)
    write_sidecar(beton_path("cifar10", "train", tmp_path).with_suffix(".json"), small)
    facts = dataset("cifar10", tmp_path)
    assert (facts.classes, facts.splits["train"], facts.splits["test"], facts.holdout) == (2, 5, 10_000, 1)
    assert dataset("cifar10") == datasets.CIFAR10
