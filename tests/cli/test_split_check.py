"""What cannot be trained on the pictures that are there is refused before any is."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from crelu_data.availability import expected_pictures
from crelu_data.write import prepare
from crelu_models.tables import S2, S5
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.split_check import check_splits
from sweeps.experiment.recipe import VGG
from sweeps.experiment.sweep import Protocol
from sweeps.experiment.trial import Cell, Trial
from sweeps.launch import launch

SEVEN = "synthetic:size=32,classes=3,train=7,test=2"  # of classes of 3, 2 and 2 pictures; one is held out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("data")
    prepare(SEVEN, where)
    prepare("synthetic:size=32,classes=5,train=5,test=2", where)
    return where


def cell(dataset: str = SEVEN, net: object = S5, batch: int = 3) -> Cell:
    return Cell("VGG", net, dataset, dataclasses.replace(VGG, batch=batch))  # type: ignore[arg-type]


def test_what_fits_is_accepted(data: Path) -> None:
    trials = [Trial(cell()), Trial(cell(), "holdout"), Trial(cell(), "fold", folds=7, fold=3)]
    check_splits(trials, data)


@pytest.mark.parametrize(
    ("trial", "sentence"),
    [
        (Trial(cell(), "fold", folds=8), "VGG: 8 folds of 7 pictures: from 2 to 7 are possible"),
        (Trial(cell("synthetic:size=32,classes=5,train=5,test=2")), "VGG: a hold-out of 1 of 5 pictures: none is"),
        (Trial(cell(batch=1)), "VGG: the batch norm of fc14 needs two pictures a step, and a step has one .batch 1 of"),
    ],
)
def test_what_does_not_fit_is_said(trial: Trial, sentence: str, data: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_splits([trial], data)


def test_pictures_that_are_not_prepared_yet_are_judged_by_what_would_be(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for name, count in (("cats", 4), ("dogs", 3)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(folder / name / f"{number}.png")
    for pictures, classes in (
        (SEVEN, (3, 2, 2)), ("synthetic:size=32,classes=2,train=4,test=2", (2, 2)),
        ("synthetic:size=72,classes=2,train=5,test=2", (3, 2)), (f"folder:{folder}", (3, 3)),
    ):  # fmt: skip
        expected = expected_pictures(pictures, tmp_path / "empty")
        prepare(pictures, tmp_path / "data")
        assert expected == expected_pictures(pictures, tmp_path / "data")
        assert expected[1] == classes
        with pytest.raises(ValueError, match=f"VGG: 9 folds of {sum(classes)} pictures"):
            check_splits([Trial(cell(pictures), "fold", folds=9)], tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    with pytest.raises(ValueError, match="cifar10-train"):
        expected_pictures("cifar10", tmp_path / "empty")


def test_one_picture_a_step_is_enough_without_batch_norm(data: Path) -> None:
    check_splits([Trial(cell(net=S2, batch=1))], data)


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("flag", [("--dry-run",), ()])
def test_command_refuses_before_it_trains(
    flag: tuple[str, ...], prepared: bool, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = data if prepared else tmp_path / "data"
    words = [*flag, "--dataset", SEVEN, "--profile", "paper", "--data-dir", str(where), "--output", str(tmp_path)]
    options = parser("page", "?").parse_args(words)
    if flag:
        assert launch("page", (cell(batch=1),), Protocol(), options) == ExitCode.USAGE
        assert "batch norm of fc14" in capsys.readouterr().err
    else:
        with pytest.raises(ValueError, match="batch norm of fc14"):
            launch("page", (cell(batch=1),), Protocol(), options)
