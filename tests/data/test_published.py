"""A set under a public name is the published one, or refused, or a part of it that is marked as one."""

import dataclasses
import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from crelu_data import sources
from crelu_data.__main__ import main
from crelu_data.datasets import CIFAR10, IMAGENET, beton_path, is_partial, read_sidecar
from crelu_data.folders import File, Listing
from crelu_data.write import prepare
from tests.support.pictures import cifar_tree, picture_folder


def test_checksums_are_torchvision_s() -> None:
    from torchvision import datasets

    for kind, loader in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        assert dict(loader.train_list + loader.test_list) == sources.PUBLISHED[kind]
        assert loader.filename == sources._ARCHIVE[kind]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tree of CIFAR-10 that passes for the published one."""
    cifar_tree(tmp_path, 4)
    folder = tmp_path / "cifar-10-batches-py"
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in sources.PUBLISHED["cifar10"]}
    monkeypatch.setitem(sources.PUBLISHED, "cifar10", digests)
    return folder


@pytest.mark.parametrize("fault", ["missing", "short", "other", "test"])
def test_tree_that_is_not_whole_is_refused_or_marked(
    fault: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "test_batch" if fault == "test" else "data_batch_3"
    batch = pickle.loads((tree / name).read_bytes())
    if fault == "missing":
        (tree / name).unlink()
    elif fault == "short":
        (tree / name).write_bytes(pickle.dumps({key: value[:2] for key, value in batch.items()}))
    else:
        (tree / name).write_bytes(pickle.dumps(batch | {b"data": np.zeros_like(batch[b"data"])}))
    verb = ["prepare", "cifar10", "--source", str(tree), "--data-dir", str(tmp_path / "out"), "--writer", "native"]
    assert main(verb) == 2
    said = capsys.readouterr().err
    assert f"is not the whole of cifar10: {name}" in said
    assert "--partial" in said
    assert not list((tmp_path / "out").glob("*.beton"))
    assert main([*verb, "--partial"]) == 0
    for split in ("train", "test"):
        sidecar = read_sidecar(beton_path("cifar10", split, tmp_path / "out").with_suffix(".json"))
        assert sidecar.partial
        assert is_partial(sidecar)
    capsys.readouterr()
    assert main(verb) == 2
    assert "is a part of cifar10" in capsys.readouterr().err
    assert main([*verb, "--partial"]) == 0


def test_whole_tree_is_not_marked_and_takes_no_other_batch(tree: Path, tmp_path: Path) -> None:
    (tree / "data_batch_6").write_bytes((tree / "data_batch_1").read_bytes())
    for partial in (False, True):
        made = prepare("cifar10", tmp_path / str(partial), origin=tree, writer="native", workers=1, partial=partial)
        assert {split: (s.count, s.partial) for split, s in made.items()} == {"train": (20, False), "test": (4, False)}


@pytest.mark.parametrize("archive", [True, False])
def test_download_that_was_cut_off_while_it_unpacked_is_taken_up_again(
    archive: bool, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its archive the tree is one that somebody put there: it is judged as it is, and not written over."""
    whole = shutil.copytree(tree, tmp_path / "whole")

    class Downloaded:
        def __init__(self, where: str, download: bool) -> None:
            assert download
            shutil.copytree(whole, Path(where) / tree.name, dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Downloaded)
    (tree / "data_batch_3").unlink()
    (tree / "data_batch_4").write_bytes(b"half")
    if archive:
        (tmp_path / "cifar-10-python.tar.gz").touch()
        made = prepare("cifar10", tmp_path, writer="native", workers=1)
        assert {split: (s.count, s.partial) for split, s in made.items()} == {"train": (20, False), "test": (4, False)}
    else:
        with pytest.raises(ValueError, match="is not the whole of cifar10: data_batch_3"):
            prepare("cifar10", tmp_path, writer="native", workers=1)
        assert (tree / "data_batch_4").read_bytes() == b"half"


def imagenet(classes: int = 1000, **changes: int) -> Listing:
    """Return ImageNet's listing, or one with other counts: `train` and `val` of class 7."""
    each = {"train": [1281] * 1000, "val": [50] * 1000}
    for number in range(167):
        each["train"][-1 - number] += 1
    for split, count in changes.items():
        each[split][7] = count
    files = {
        split: {f"n{number:08}": (File("", 0),) * count for number, count in enumerate(counts[:classes])}
        for split, counts in each.items()
    }
    return Listing(Path("/imagenet"), files, ())


@pytest.mark.parametrize(
    ("classes", "changes", "fault"),
    [
        (1000, {}, ""),
        (999, {}, "it has 999 classes, not 1,000"),
        (1, {}, "it has 1 class, not 1,000"),
        (1000, {"train": 1}, "train/n00000007 has 1 picture, not 732 to 1,300"),
        (1000, {"train": 1280}, "train has 1,281,166 pictures, not 1,281,167"),
        (1000, {"train": 700}, "train/n00000007 has 700 pictures, not 732 to 1,300"),
        (1000, {"train": 1301}, "train/n00000007 has 1,301 pictures, not 732 to 1,300"),
        (1000, {"val": 49}, "val/n00000007 has 49 pictures, not 50"),
        (1000, {"val": 51}, "val/n00000007 has 51 pictures, not 50"),
    ],
)
def test_imagenet_has_its_classes_and_counts(classes: int, changes: dict[str, int], fault: str) -> None:
    assert sources._imagenet_fault(imagenet(classes, **changes)) == fault


def test_part_of_imagenet_is_refused_or_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        picture_folder(tmp_path / "tree", split, {"n01": 3, "n02": 3}, (40, 40), "JPEG")
    verb = ["prepare", "imagenet:size=32", "--source", str(tmp_path / "tree"), "--data-dir", str(tmp_path)]
    assert main([*verb, "--writer", "native"]) == 2
    assert "is not the whole of ImageNet: it has 2 classes, not 1,000" in capsys.readouterr().err
    assert main([*verb, "--writer", "native", "--partial"]) == 0
    assert read_sidecar(beton_path("imagenet:size=32", "val", tmp_path).with_suffix(".json")).partial


def test_part_is_known_by_its_counts_where_an_earlier_preparation_did_not_mark_it(tree: Path, tmp_path: Path) -> None:
    small = prepare("cifar10", tmp_path / "out", origin=tree, writer="native", workers=1)["train"]
    assert is_partial(small)
    full = dataclasses.replace(small, count=CIFAR10.splits["train"])
    assert not is_partial(full)
    assert not is_partial(dataclasses.replace(full, count=49_990, skipped=10))
    assert is_partial(dataclasses.replace(full, count=49_990))
    assert is_partial(dataclasses.replace(full, classes=9))
    assert is_partial(dataclasses.replace(full, partial=True))
    assert not is_partial(dataclasses.replace(small, name="synthetic"))
    of_imagenet = dataclasses.replace(small, name="imagenet:size=64", split="val", count=50_000, classes=1000)
    assert not is_partial(of_imagenet)
    assert is_partial(dataclasses.replace(of_imagenet, split="train"))
    assert not is_partial(dataclasses.replace(of_imagenet, split="train", count=IMAGENET.splits["train"]))
