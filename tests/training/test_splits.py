"""The pictures of a trial by phase: no test picture and no hold-out picture among those it trains on."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from crelu_data.datasets import beton_path, folds, holdout, order
from crelu_data.write import prepare
from crelu_models.tables import S2, S5
from sweeps.experiment.recipe import ALLCONV, VGG
from sweeps.experiment.trial import Cell, Trial
from sweeps.training.run_trial import run_trial
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.splits import Splits, open_splits

NAME = "synthetic:size=32,classes=4,train=100,test=24"
CELL = Cell("Baseline", S2, NAME, ALLCONV)
MATCH = {"match": "train_loss", "reference": "a"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("data")
    prepare(NAME, where)
    return where


def splits_of(data: Path, trial: Trial) -> Splits:
    return open_splits(trial, RuntimeConfig(str(data / "ledger"), str(data), reader="threads"))


def test_files_that_are_missing_are_said_so_and_a_disk_that_fails_may_pass(data: Path, tmp_path: Path) -> None:
    where = shutil.copytree(data, tmp_path / "data")
    sidecar = beton_path(NAME, "test", where).with_suffix(".json")
    sidecar.write_text("{}")
    with pytest.raises(ValueError, match=rf"{sidecar} is not a sidecar"):
        splits_of(where, Trial(CELL, "ablation"))
    sidecar.unlink()
    with pytest.raises(ValueError, match=rf"missing or damaged \({sidecar} is missing"):
        splits_of(where, Trial(CELL, "ablation"))
    sidecar.mkdir()  # the disk refuses to read it
    with pytest.raises(IsADirectoryError):
        splits_of(where, Trial(CELL, "ablation"))


def test_a_row_of_table_4_trains_on_all_but_the_hold_out(data: Path) -> None:
    splits = splits_of(data, Trial(CELL, "ablation"))
    train, held_out = holdout(splits.train.labels, 20, 0)
    assert np.array_equal(splits.train_indices, train)
    assert np.array_equal(splits.val_indices, held_out)
    assert len(splits.probe_indices) == 0


@pytest.mark.parametrize(
    ("phase", "fields", "opens_test"),
    [
        ("ablation", {}, True),
        ("holdout", {}, False),
        ("inner", {"folds": 5}, False),
        ("fold", {"folds": 5}, True),
        ("match", MATCH, True),
    ],
)
def test_test_pictures_are_those_of_the_test_file_and_closed_to_a_search(
    phase: str, fields: dict[str, object], opens_test: bool, data: Path
) -> None:
    splits = splits_of(data, Trial(CELL, phase, **fields))  # type: ignore[arg-type]
    assert splits.train.sidecar.split == "train"
    assert (splits.test is not None) == opens_test
    if splits.test is not None:
        assert splits.test.sidecar.split == "test"
        assert len(splits.test) == 24


@pytest.mark.parametrize("phase", ["inner", "fold"])
def test_each_fold_is_held_out_by_the_network_of_its_number(phase: str, data: Path) -> None:
    by_fold = [splits_of(data, Trial(CELL, phase, fold=fold, folds=5)) for fold in range(5)]
    parts = folds(by_fold[0].train.labels, 5, 0)
    for each, (train, held_out) in zip(by_fold, parts, strict=True):
        assert np.array_equal(each.train_indices, train)
        assert np.array_equal(each.val_indices, held_out)
    together = np.concatenate([each.val_indices for each in by_fold])
    assert np.array_equal(np.sort(together), np.arange(100))


def test_the_first_phase_probes_a_quarter_of_what_it_trains_on(data: Path) -> None:
    splits = splits_of(data, Trial(CELL, "holdout"))
    assert len(splits.train_indices) == 80
    assert len(splits.probe_indices) == 20
    assert np.array_equal(splits.probe_indices, np.sort(order(0, 0, splits.train_indices)[:20]))
    assert not np.intersect1d(splits.probe_indices, splits.val_indices).size


def test_the_second_phase_trains_on_everything_and_probes_the_hold_out_of_the_first(data: Path) -> None:
    first, second = splits_of(data, Trial(CELL, "holdout")), splits_of(data, Trial(CELL, "match", **MATCH))
    assert np.array_equal(second.train_indices, np.arange(100))
    assert len(second.val_indices) == 0
    assert np.array_equal(second.probe_indices, first.val_indices)


def test_a_last_batch_of_one_picture_is_left_out_and_batch_norm_trains(data: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(VGG, batch=79, epochs=1, lr=0.1, drop_last=False, precision="fp32")
    trial = Trial(Cell("VGG", S5.width(0.125), NAME, recipe))  # 80 pictures are trained on, so one is left over
    result = run_trial(trial, RuntimeConfig(str(tmp_path), str(data), reader="threads"), lambda *_: None)
    assert result is not None
    assert (result["status"], result["epochs"]) == ("finished", 1)
