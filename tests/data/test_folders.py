"""Which files of a folder are pictures of which class; everything that is not taken has its sentence."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crelu_data.availability import check_present
from crelu_data.datasets import canonical
from crelu_data.folders import JUNK, REFUSED, SUFFIXES, list_pictures, shown, split_folders
from crelu_data.sources import originals_of, sources, whole_splits
from crelu_data.write import prepare
from tests.support.pictures import picture_folder


def touch(root: Path, names: Iterable[str]) -> Path:
    """Make files of one byte, with their folders."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(root: Path) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Return how many pictures each class has by split, and the notes."""
    listing = list_pictures(root, split_folders(root))
    return {s: {name: len(f) for name, f in classes.items()} for s, classes in listing.files.items()}, listing.notes


def test_suffixes_are_all_that_pillow_opens() -> None:
    """Each suffix that this Pillow opens is taken or refused on purpose, and no other is taken."""
    Image.init()
    opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert opened <= SUFFIXES | REFUSED
    assert not SUFFIXES & REFUSED
    assert opened | {".avif", ".avifs", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx", ".webp"} >= SUFFIXES
    assert {".jfif", ".jpe", ".avif", ".pgm", ".ppm"} <= SUFFIXES


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("JPE", "JPEG"), ("avif", "AVIF"), ("pgm", "PPM"), ("ppm", "PPM"),
     ("jp2", "JPEG2000"), ("tga", "TGA"), ("pcx", "PCX"), ("qoi", "QOI")],
)  # fmt: skip
def test_pictures_of_each_suffix_are_taken(suffix: str, kind: str, tmp_path: Path) -> None:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for label in "ab":
        (tmp_path / "pics" / label).mkdir(parents=True)
        for number in range(4):
            picture = colour.convert("L") if suffix == "pgm" else colour
            picture.save(tmp_path / f"pics/{label}/{number}.{suffix}", kind)
    made = prepare(f"folder:{tmp_path / 'pics'}", tmp_path, writer="native", workers=1)
    assert {split: (s.count, s.skipped) for split, s in made.items()} == {"train": (7, 0), "test": (1, 0)}


@pytest.mark.parametrize("junk", [*JUNK, "__MACOSX", "@eaDir", ".git", ".ipynb_checkpoints"])
def test_folders_of_systems_are_no_classes(junk: str, tmp_path: Path) -> None:
    assert listed(touch(tmp_path, ["a/0.png", "b/0.png", f"{junk}/0.png", f"{junk}/a/0.png", f"b/{junk}/1.png"])) == (
        {"train": {"a": 1, "b": 1}},
        (f"left out by name, no class: {junk}",),
    )


def test_folders_without_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    touch(tmp_path, ["a/0.png", "b/0.png", "d/notes.txt", "e/.0.png", "f/deep/0.png"])
    (tmp_path / "c").mkdir()
    counts, notes = listed(tmp_path)
    assert counts == {"train": {"a": 1, "b": 1}}
    assert notes == (
        "left out, without pictures of its own: c, d, e, f",
        "not taken, 1 picture in folders below a class: f/deep (1)",
        "not taken, 1 file with other suffixes than a picture's: .txt (1)",
        "not taken, 1 picture named with a dot in front",
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_test_class_without_training_pictures_is_refused(split: str, tmp_path: Path) -> None:
    touch(tmp_path, ["train/a/0.png", "train/b/0.png", f"{split}/a/0.png", f"{split}/c/0.png", f"{split}/empty/x.txt"])
    name = f"folder:{tmp_path}"
    for training in ("none", "an empty folder", "nested pictures alone"):
        if training == "an empty folder":
            (tmp_path / "train/c").mkdir()
        elif training == "nested pictures alone":
            touch(tmp_path, ["train/c/deep/0.png"])
        with pytest.raises(ValueError, match=rf"{split} of .* has classes without training pictures: c$"):
            sources(name, None, tmp_path, 32, 0)
    touch(tmp_path, ["train/c/0.png"])
    assert sources(name, None, tmp_path, 32, 0)[split].class_names == ("a", "b", "c")


def test_what_lies_deeper_is_counted_by_its_folder(tmp_path: Path) -> None:
    names = ["a/0.png", "b/0.png", *(f"a/more/{n}.jpg" for n in range(3)), *(f"b/x/y/{n}.PNG" for n in range(5))]
    counts, notes = listed(touch(tmp_path, [*names, "b/x/.hidden.png", "b/x/text.txt", "b/x/@eaDir/0.png"]))
    assert counts == {"train": {"a": 1, "b": 1}}
    assert notes == ("not taken, 8 pictures in folders below a class: b/x (5), a/more (3)",)


def test_folders_that_are_not_taken_are_not_entered_where_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, ["train/a/0.png", "train/b/0.png", "train/b/more/1.png", "other/a/0.png"])
    expected = list_pictures(tmp_path, split_folders(tmp_path))
    monkeypatch.setattr(os, "walk", None)
    listing = list_pictures(tmp_path, split_folders(tmp_path), deep=False)
    assert (listing.files, listing.sizes) == (expected.files, expected.sizes)


def test_other_suffixes_are_counted(tmp_path: Path) -> None:
    names = ["a/0.png", "b/0.JPEG", "a/1.heic", "a/2.HEIC", "b/3.npy", "b/README", "a/.DS_Store", "a/4.pdf", "a/5.mpg"]
    counts, notes = listed(touch(tmp_path, names))
    assert counts == {"train": {"a": 1, "b": 1}}
    assert notes == (
        "not taken, 6 files with other suffixes than a picture's: .heic (2), .pdf (1), .mpg (1), .npy (1), none (1)",
    )


@pytest.mark.parametrize("other", ["valid", "validation", "dev", "Test"])
def test_folders_beside_train_are_counted(other: str, tmp_path: Path) -> None:
    touch(tmp_path, [*(f"train/{label}/0.png" for label in "ab"), *(f"{other}/{label}/0.png" for label in "abc")])
    assert listed(tmp_path) == (
        {"train": {"a": 1, "b": 1}},
        (f"not taken, 3 pictures beside the folders that are taken: {other}/ (3)",),
    )


def test_loose_pictures_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, ["train/a/0.png", "train/b/0.png", "train/loose.png", "test/a/0.png", "top.png", "README.md"])
    counts, notes = listed(tmp_path)
    assert counts == {"train": {"a": 1, "b": 1}, "test": {"a": 1}}
    assert notes == (
        "not taken, 2 pictures beside the folders that are taken: files in train (1), files in the folder itself (1)",
    )


def test_val_beside_test_is_said_to_be_unused(tmp_path: Path) -> None:
    touch(tmp_path, [f"{split}/{label}/{n}.png" for split in ("train", "val", "test") for label in "ab" for n in "012"])
    assert listed(tmp_path)[1] == ("no sweep uses the 6 pictures of val/, for test/ is there too",)
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    for label in "ab":
        (tmp_path / "test" / label).rmdir()
    (tmp_path / "test").rmdir()
    assert listed(tmp_path) == ({"train": {"a": 3, "b": 3}, "val": {"a": 3, "b": 3}}, ())


def test_a_folder_of_one_class_is_no_set_and_one_is_not_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^1 class with 1 picture in .*, as train; at least two classes are needed"):
        sources(f"folder:{touch(tmp_path, ['a/0.png'])}", None, tmp_path, 32, 0)
    touch(tmp_path, ["train/a/0.png", "train/b/0.png", "val/a/0.png", "test/a/0.png"])
    assert list_pictures(tmp_path, split_folders(tmp_path)).notes[-1].startswith("no sweep uses the 1 picture of val/")


def test_pipes_are_not_waited_for_and_broken_links_are_unreadable(tmp_path: Path) -> None:
    touch(tmp_path, ["a/0.png", "b/0.png"])
    os.mkfifo(tmp_path / "a/1.png")
    (tmp_path / "b/1.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b/2.png").symlink_to(tmp_path / "a/0.png")
    counts, notes = listed(tmp_path)
    assert counts == {"train": {"a": 1, "b": 3}}
    assert notes == ("not taken, 1 pipe, socket or device",)
    assert list_pictures(tmp_path, {"train": tmp_path}).sizes["b/1.png"] == -1


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"ab\x80"])
def test_folder_whose_name_is_not_utf8_is_named(name: bytes, tmp_path: Path) -> None:
    for root, label in ((tmp_path, os.fsdecode(name)), (tmp_path / os.fsdecode(name), "c")):
        touch(root, ["a/0.png", "b/0.png", f"{label}/0.png"])
        with pytest.raises(ValueError, match="is not UTF-8: rename it") as refused:
            sources(f"folder:{root}", None, tmp_path, 32, 0)
        assert name.decode("utf-8", "backslashreplace") in str(refused.value)
        str(refused.value).encode()


def test_names_are_shown_without_moving_the_cursor() -> None:
    assert shown("Größe 3") == "Größe 3"
    assert shown("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert shown(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def test_notes_reach_the_log_when_a_folder_is_prepared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture_folder(tmp_path, "pics", {"a": 6, "b": 6, "a/sub": 2, "__MACOSX": 1}, (32, 32))
    with caplog.at_level(logging.WARNING, "crelu_data"):
        made = prepare(f"folder:{tmp_path / 'pics'}", tmp_path, writer="native", workers=1)
    assert sum(sidecar.count for sidecar in made.values()) == 12
    assert "left out by name, no class: __MACOSX" in caplog.text
    assert "2 pictures in folders below a class: a/sub (2)" in caplog.text


@pytest.mark.parametrize(("brightest", "said"), [(4095, True), (1000, True), (5000, False), (65_535, False)])
def test_pictures_that_use_few_of_16_bits_are_said_to_become_black(
    brightest: int, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            numbers = np.linspace(0, brightest, 32 * 32).reshape(32, 32).astype(np.uint16)
            Image.fromarray(numbers).save(tmp_path / label / f"{number}.png")
    with caplog.at_level(logging.WARNING, "crelu_data"):
        sources(f"folder:{tmp_path}", None, tmp_path, 32, 0)
    assert ("nearly black" in caplog.text) == said


def test_folder_is_one_set_however_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, each in (("train", 3), ("val", 1)):
        picture_folder(tmp_path / "pics", split, {"a": each, "b": each}, (32, 32))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in ("../pics", "./../pics/", "~/pics", f"{tmp_path}/work/../pics"):
        name = f"folder:{typed}"
        assert canonical(name) == f"folder:{tmp_path}/pics"
        originals = originals_of(name, None, tmp_path)
        assert originals is not None
        assert originals.root == f"{tmp_path}/pics"
        assert sources(name, None, tmp_path, None, 0)["train"].originals == originals
        assert whole_splits(name, tmp_path, {}) == {"train", "val"}
        check_present(name, tmp_path)
