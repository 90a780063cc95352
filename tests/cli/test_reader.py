"""A decoder whose pixels differ makes trials of its own; the others keep their keys and their titles."""

import dataclasses
from pathlib import Path

import pytest

from sweeps.cli import settings
from sweeps.cli.options import parser
from sweeps.cli.settings import ON_GPU, declare, settle
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.imagenet_placement import CELLS
from sweeps.training.shared_batches import stream_key
from sweeps.training.splits import open_splits
from tests.support.pictures import picture_folder
from tests.support.trials import LARGE, SMALL, runtime_config


def declared(folder: Path, *words: str) -> Sweep:
    options = parser("placement", "?").parse_args(["--output", f"{folder}/out", "--data-dir", f"{folder}", *words])
    return declare("placement", CELLS[:2], Protocol(), options, settle(CELLS, options))


@pytest.mark.parametrize("reader", ON_GPU)
@pytest.mark.parametrize(
    ("name", "is_jpeg"), [(LARGE, True), (SMALL, False), ("imagenet", True), ("folder:/photos", True)]
)
def test_cells_whose_pictures_a_gpu_decodes_are_others(
    name: str, is_jpeg: bool, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "_has_gpu", lambda: True)
    words = ("--dataset", name, "--profile", "mini")
    decoder = reader if is_jpeg else ""
    usual, other = declared(tmp_path, *words), declared(tmp_path, *words, "--reader", reader)
    assert {cell.decoder for cell in usual.cells} == {""}
    assert {cell.decoder for cell in other.cells} == {decoder}
    assert (usual.title == other.title) == (not is_jpeg)
    assert other.title.endswith(f"-{reader}") == is_jpeg
    keys = [{Trial(cell).key for cell in sweep.cells} for sweep in (usual, other)]
    assert (keys[0] == keys[1]) == (not is_jpeg)
    streams = [{stream_key(Trial(cell)) for cell in sweep.cells} for sweep in (usual, other)]
    assert (streams[0] == streams[1]) == (not is_jpeg)


def test_small_pictures_of_a_folder_have_no_decoder_before_they_are_prepared_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crelu_data.write import prepare

    monkeypatch.setattr(settings, "_has_gpu", lambda: True)
    picture_folder(tmp_path, "icons", {"a": 3, "b": 3}, (32, 32))
    name = f"folder:{tmp_path}/icons"
    words = ("--dataset", name, "--profile", "mini", "--reader", "nvjpeg")
    first = declared(tmp_path, *words)
    assert {cell.decoder for cell in first.cells} == {""}
    prepare(name, tmp_path, writer="native", workers=1)
    assert declared(tmp_path, *words) == first


def test_decoder_of_pictures_that_are_pulled_is_by_their_side_at_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crelu_data.write import prepare

    monkeypatch.setattr(settings, "_has_gpu", lambda: True)
    picture_folder(tmp_path, "photos", {"a": 3, "b": 3}, (80, 80))
    name = f"folder:{tmp_path}/photos"
    prepare(name, tmp_path / "source", size=32, writer="native", workers=1)
    words = ("--dataset", name, "--profile", "mini", "--reader", "nvjpeg")
    for source, decoder in (((), "nvjpeg"), (("--data-source", f"{tmp_path}/source"), "")):
        assert {cell.decoder for cell in declared(tmp_path / "here", *words, *source).cells} == {decoder}


@pytest.mark.parametrize("gpu", [[], ["--gpus-per-trial", "0"]])
def test_without_a_gpu_its_decoder_is_refused(gpu: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_has_gpu", lambda: bool(gpu))
    for reader in ON_GPU:
        said = f"--reader {reader}: it decodes on a GPU, and trials here have none; take ffcv"
        with pytest.raises(ValueError, match=said):
            declared(tmp_path, "--profile", "mini", "--reader", reader, *gpu)


def test_a_trial_is_read_by_its_own_decoder(tmp_path: Path) -> None:
    """On a CPU a trial whose pictures nvJPEG has decoded is refused, whatever the reader is."""
    from crelu_data.write import prepare
    from tests.support.trials import trial_of

    prepare(LARGE, tmp_path)
    trial = trial_of("All-CNN-B")
    assert open_splits(trial, runtime_config(tmp_path, tmp_path)).train.decoder == "threads"
    cell = dataclasses.replace(trial.cell, decoder="nvjpeg")
    with pytest.raises(ValueError, match="decode on a GPU"):
        open_splits(dataclasses.replace(trial, cell=cell), runtime_config(tmp_path, tmp_path))
