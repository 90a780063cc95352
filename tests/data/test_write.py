"""Files written from every source by both writers, whole or not at all."""

import hashlib
import importlib.util
import itertools
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crelu_data import beton, synthetic
from crelu_data.datasets import beton_path, dataset, holdout, stem
from crelu_data.decoders.threads import ThreadReader
from crelu_data.sources import sources
from crelu_data.write import prepare, verify
from tests.support.pictures import cifar_tree, picture_folder
from tests.support.waiting import until

WRITERS = ["native", *(["ffcv"] if importlib.util.find_spec("ffcv") else [])]


def stored(path: Path) -> np.ndarray:
    """Return all pictures of a file, uint8 (n, h, w, 3)."""
    index = beton.read_index(path)
    reader = ThreadReader(index, 1, pin=False)
    pictures = [pixels.numpy() for pixels in reader.read(np.arange(len(index.labels)), 64)]
    reader.close()
    return np.concatenate(pictures)


def left_over(where: Path) -> list[str]:
    """Return the names of files that are neither results nor locks."""
    return [p.name for p in where.iterdir() if p.suffix not in (".beton", ".json", ".lock")]


@pytest.mark.parametrize("writer", WRITERS)
def test_stored_pixels_and_labels_are_the_originals(writer: str, tmp_path: Path) -> None:
    name = "synthetic:size=32,classes=7,train=230,test=20,seed=5"
    sidecar = prepare(name, tmp_path, writer=writer, workers=2)["train"]
    index = beton.read_index(beton_path(name, "train", tmp_path))
    originals = np.stack([synthetic.picture(5, i, i % 7, 32, 7) for i in range(230)])
    assert np.array_equal(stored(index.path), originals)
    assert np.array_equal(index.labels, np.arange(230) % 7)
    assert (sidecar.writer, sidecar.mode, sidecar.count, sidecar.seed) == (writer, "raw", 230, 5)
    digest = hashlib.sha256(originals.tobytes() + (np.arange(230) % 7).astype("<i8").tobytes()).hexdigest()
    assert sidecar.fingerprint == digest
    assert verify(index.path) == sidecar


@pytest.mark.parametrize("writer", WRITERS)
def test_jpeg_stays_near_the_originals(writer: str, tmp_path: Path) -> None:
    name = "synthetic:size=80,train=20,test=10"
    sidecar = prepare(name, tmp_path, writer=writer, workers=1)["train"]
    originals = np.stack([synthetic.picture(0, i, i % 10, 80, 10) for i in range(20)]).astype(int)
    assert (sidecar.mode, sidecar.quality) == ("jpeg", 90)
    assert np.abs(stored(beton_path(name, "train", tmp_path)) - originals).mean() < 8  # halved colours and noise
    assert sidecar.file_bytes == beton_path(name, "train", tmp_path).stat().st_size


def test_colours_of_the_sidecar_are_those_of_the_pictures(tmp_path: Path) -> None:
    name = "synthetic:train=150,test=10"
    sidecar = prepare(name, tmp_path, writer="native")["train"]
    pixels = stored(beton_path(name, "train", tmp_path)).reshape(-1, 3) / 255
    np.testing.assert_allclose(sidecar.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sidecar.std, pixels.std(0), rtol=1e-12)
    covariance = np.cov(pixels.T, bias=True)
    vectors = np.array(sidecar.eigenvectors)
    np.testing.assert_allclose(covariance @ vectors, vectors * sidecar.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert list(sidecar.eigenvalues) == sorted(sidecar.eigenvalues, reverse=True)


def test_number_of_workers_changes_no_digit(tmp_path: Path) -> None:
    name = "synthetic:train=310,test=10"
    pairs = [prepare(name, tmp_path / str(workers), workers=workers) for workers in (1, 4)]
    assert pairs[0]["train"].fingerprint == pairs[1]["train"].fingerprint
    assert pairs[0]["train"].mean == pairs[1]["train"].mean


def test_what_is_there_is_kept_until_fresh(tmp_path: Path) -> None:
    name = "synthetic:train=20,test=10"
    prepare(name, tmp_path, writer="native")
    path = beton_path(name, "train", tmp_path)
    first = path.stat().st_ino
    prepare(name, tmp_path)
    assert path.stat().st_ino == first
    prepare(name, tmp_path, writer="native", fresh=True)
    assert path.stat().st_ino != first


def test_two_at_once_write_once(tmp_path: Path) -> None:
    name = "synthetic:train=400,test=10"
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(prepare, name, tmp_path, writer="native", workers=1) for _ in range(2)]
        inodes = []
        for result in results:
            assert result.result()["train"].count == 400
            inodes.append(beton_path(name, "train", tmp_path).stat().st_ino)
    assert inodes[0] == inodes[1]
    assert not left_over(tmp_path)


def test_what_is_there_needs_no_right_to_write(tmp_path: Path) -> None:
    name = "synthetic:train=20,test=10"
    sidecars = prepare(name, tmp_path, writer="native")
    (tmp_path / f".{stem(name)}.lock").unlink()
    (tmp_path / f".{stem(name)}.lock").mkdir()  # stands for a read-only disk: the lock cannot be opened
    assert prepare(name, tmp_path) == sidecars


def test_a_missing_half_of_a_pair_is_made_again(tmp_path: Path) -> None:
    name = "synthetic:train=20,test=10"
    before = prepare(name, tmp_path, writer="native")
    beton_path(name, "test", tmp_path).with_suffix(".json").unlink()
    beton_path(name, "train", tmp_path).unlink()
    assert prepare(name, tmp_path, writer="native") == before


def test_a_torn_pair_is_refused(tmp_path: Path) -> None:
    name = "synthetic:train=20,test=10"
    prepare(name, tmp_path, writer="native")
    beton_path(name, "test", tmp_path).with_suffix(".json").replace(
        beton_path(name, "train", tmp_path).with_suffix(".json")
    )
    with pytest.raises(ValueError, match="--fresh"):
        verify(beton_path(name, "train", tmp_path))


# CIFAR


def test_a_small_tree_in_cifars_layout_is_read(tmp_path: Path) -> None:
    pixels = cifar_tree(tmp_path, 12)
    sidecars = prepare("cifar10", tmp_path, writer="native", partial=True)
    assert (sidecars["train"].count, sidecars["test"].count) == (60, 12)
    assert sidecars["train"].class_names[3] == "class 3"
    planes = pixels[:5].reshape(60, 3, 32, 32)
    assert np.array_equal(stored(beton_path("cifar10", "train", tmp_path)), planes.transpose(0, 2, 3, 1))
    assert dataset("cifar10", tmp_path).splits == {"train": 60, "test": 12}


def test_cifar100_uses_its_fine_labels(tmp_path: Path) -> None:
    tree = tmp_path / "cifar-100-python"
    tree.mkdir()
    for file, count in (("train", 30), ("test", 10)):
        fine = [3 * i % 100 for i in range(count)]
        batch = {"data": np.zeros((count, 3072), np.uint8), "fine_labels": fine, "coarse_labels": [0] * count}
        (tree / file).write_bytes(pickle.dumps(batch, protocol=4))
    sidecars = prepare("cifar100", tmp_path / "out", origin=tree, writer="native", partial=True)
    assert sidecars["train"].classes == 100
    assert np.array_equal(
        beton.read_index(beton_path("cifar100", "train", tmp_path / "out")).labels, 3 * np.arange(30) % 100
    )


class Trap:
    """Unpickles by running a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("spoil", ["trap", "garbage", "short", "labels", "missing"])
def test_foreign_pickles_are_refused_and_run_nothing(spoil: str, tmp_path: Path) -> None:
    cifar_tree(tmp_path, 4)
    path = tmp_path / "cifar-10-batches-py/data_batch_2"
    good = pickle.loads(path.read_bytes())
    if spoil == "trap":
        path.write_bytes(pickle.dumps({b"data": Trap(tmp_path / "sprung")}, protocol=2))
    elif spoil == "garbage":
        path.write_bytes(b"\x80\x02}q\x00garbage")
    elif spoil == "short":
        path.write_bytes(pickle.dumps(good | {b"data": good[b"data"][:, :100]}))
    elif spoil == "labels":
        path.write_bytes(pickle.dumps(good | {b"labels": [0, 1, 2, 10]}))
    else:
        path.unlink()
        path.with_name("test_batch").unlink()
        path.with_name("test_batch").mkdir()
    with pytest.raises(ValueError, match=r"data_batch_2|test_batch"):
        prepare("cifar10", tmp_path / "out", origin=tmp_path, writer="native", partial=True)
    assert not (tmp_path / "sprung").exists()
    assert not list((tmp_path / "out").glob("*.beton"))


# Folders


def test_imagenet_is_cut_to_a_square_of_its_shorter_side(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for split, count in (("train", 3), ("val", 2)):
        picture_folder(tree, split, {"n01": count, "n02": count}, (120, 90), "JPEG")
    sidecars = prepare("imagenet:size=72", tmp_path / "out", origin=tree, writer="native", partial=True)
    assert {split: (s.count, s.size, s.mode) for split, s in sidecars.items()} == {
        "train": (6, 72, "jpeg"),
        "val": (4, 72, "jpeg"),
    }
    path = tree / "train/n02/1.JPEG"
    naive = Image.open(path).convert("RGB").resize((96, 72), Image.Resampling.BICUBIC).crop((12, 0, 84, 72))
    prepared = stored(beton_path("imagenet:size=72", "train", tmp_path / "out"))[4]
    blurred = [
        np.asarray(Image.fromarray(np.asarray(x)).resize((9, 9), Image.Resampling.BOX), int) for x in (naive, prepared)
    ]
    assert np.abs(blurred[0] - blurred[1]).max() <= 4  # JPEG of noise: right in the mean over 8 x 8 pixels
    assert dataset("imagenet:size=72", tmp_path / "out").classes == 2


def test_a_folder_is_parted_once_for_all(tmp_path: Path) -> None:
    picture_folder(tmp_path, "pics", {"a": 20, "b": 10}, (64, 64))
    name = f"folder:{tmp_path / 'pics'}"
    sidecars = prepare(name, tmp_path / "out", writer="native")
    assert {split: (s.count, s.label_counts, s.size) for split, s in sidecars.items()} == {
        "train": (24, (16, 8), 64),
        "test": (6, (4, 2), 64),
    }
    train, test = holdout(np.repeat([0, 1], [20, 10]), 6, 0)
    paths = sorted((tmp_path / "pics").glob("*/*"), key=lambda path: (path.parent, path.name))
    originals = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert np.array_equal(stored(beton_path(name, "test", tmp_path / "out")), originals[test])
    assert np.array_equal(stored(beton_path(name, "train", tmp_path / "out")), originals[train])
    facts = dataset(name, tmp_path / "out")
    assert (facts.classes, facts.size, facts.crop, facts.final) == (2, 64, 64, "test")


def test_a_folder_with_splits_keeps_them(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        picture_folder(tmp_path / "pics", split, {"a": count, "b": count}, (40, 30))
    name = f"folder:{tmp_path / 'pics'}"
    sidecars = prepare(name, tmp_path, writer="native", size=24)
    assert {split: s.count for split, s in sidecars.items()} == {"train": 8, "val": 4, "test": 6}
    with pytest.raises(ValueError, match="size 24, not 32"):
        prepare(name, tmp_path, writer="native", size=32)


@pytest.mark.parametrize("writer", WRITERS)
def test_one_unreadable_picture_is_named_and_left_out(
    writer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture_folder(tmp_path, "pics", {"a": 10, "b": 10}, (32, 32))
    (tmp_path / "pics/a/3.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING, "crelu_data"):
        sidecars = prepare(f"folder:{tmp_path / 'pics'}", tmp_path, writer=writer)
    assert sum(s.count for s in sidecars.values()) == 19
    assert sum(s.skipped for s in sidecars.values()) == 1
    assert "a/3.png" in caplog.text


@pytest.mark.parametrize("writer", WRITERS)
def test_many_unreadable_pictures_stop_it_without_a_file(writer: str, tmp_path: Path) -> None:
    picture_folder(tmp_path, "pics", {"a": 10, "b": 10}, (32, 32))
    for path in (tmp_path / "pics/a").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"unreadable.*a/\d\.png"):
        prepare(f"folder:{tmp_path / 'pics'}", tmp_path / "out", writer=writer)
    assert not list((tmp_path / "out").glob("*.beton"))
    assert not left_over(tmp_path / "out")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("bad", [("a/00", "b/01"), ("a/19", "b/18", "b/19"), tuple(f"a/{n:02}" for n in range(20))])
def test_unreadable_pictures_are_counted_and_no_sound_one_is_named(
    bad: tuple[str, ...], writer: str, tmp_path: Path
) -> None:
    picture_folder(tmp_path, "pics/train", {"a": 20, "b": 20}, (32, 32))
    picture_folder(tmp_path, "pics/test", {"a": 2, "b": 2}, (32, 32))
    for number, path in enumerate(sorted((tmp_path / "pics/train").rglob("*.png"))):
        path.rename(path.with_name(f"{number % 20:02}.png"))
    for name, content in zip(bad, itertools.cycle((b"", b"<html>", b"\x89PNG\r\n\x1a\n")), strict=False):
        (tmp_path / "pics/train" / f"{name}.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{len(bad)} of 40 unreadable: ") as refused:
        prepare(f"folder:{tmp_path / 'pics'}", tmp_path / "out", writer=writer, workers=2)
    named = re.findall(r"train/(\w/\d\d)\.png \(", str(refused.value))
    assert tuple(named) == bad[:5]
    assert "second attempt" not in str(refused.value)


def test_source_that_is_gone_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = set()

    def gone(seed: int, index: int, *_: int) -> np.ndarray:
        tried.add(index)
        raise OSError("stale handle")

    monkeypatch.setattr(synthetic, "picture", gone)
    with pytest.raises(ValueError, match=r"^at least 102 of 500 unreadable: 0 \(stale handle\)"):
        prepare("synthetic:size=16,train=500,test=10", tmp_path, writer="native", workers=1)
    assert len(tried) == 102


@pytest.mark.parametrize("failing", [{3}, {3, 7, 11}, set(range(60))])
def test_picture_that_is_readable_at_the_second_attempt_is_taken(
    failing: set[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = set(failing)

    def glitch(seed: int, index: int, *rest: int) -> np.ndarray:
        if index in left:
            left.discard(index)
            raise OSError("a glitch")
        return drawn(seed, index, *rest)

    drawn = synthetic.picture
    monkeypatch.setattr(synthetic, "picture", glitch)
    made = prepare("synthetic:size=16,train=60,test=10", tmp_path / "a", writer="native", workers=1)["train"]
    assert not left
    monkeypatch.undo()
    assert made == prepare("synthetic:size=16,train=60,test=10", tmp_path / "b", writer="native")["train"]


def test_picture_that_fails_every_other_time_ends_in_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tries = itertools.count()

    def flapping(seed: int, index: int, *rest: int) -> np.ndarray:
        if index == 4 and next(tries) % 2 == 0:
            raise OSError("a glitch")
        return drawn(seed, index, *rest)

    drawn = synthetic.picture
    monkeypatch.setattr(synthetic, "picture", flapping)
    with pytest.raises(OSError, match="1 of 60 pictures cannot be read each time: 4"):
        prepare("synthetic:size=16,train=60,test=10", tmp_path, writer="native", workers=1)
    assert next(tries) == 6  # written three times, and asked for the reason each time


def test_one_unreadable_picture_in_a_thousand_is_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(seed: int, index: int, *rest: int) -> np.ndarray:
        if index in (5, 17):
            raise OSError("cannot be read")
        return drawn(seed, index, *rest)

    drawn = synthetic.picture
    monkeypatch.setattr(synthetic, "picture", damaged)
    with pytest.raises(
        ValueError,
        match=r"^2 of 250 unreadable: 5 \(cannot .*\); 17 \(cannot .*\)\. At most 1 may be",
    ):
        prepare("synthetic:size=16,train=250,test=10", tmp_path, writer="native")


def test_no_embedded_test_picture_is_one_of_the_training_pictures() -> None:
    parts = sources("synthetic:size=16,train=60,test=60", None, Path("nowhere"), None, 0)
    train, test = ({parts[split].picture(index).tobytes() for index in range(60)} for split in ("train", "test"))
    assert len(train | test) == 120


def test_odd_pictures_become_colours(tmp_path: Path) -> None:
    (tmp_path / "pics/a").mkdir(parents=True)
    (tmp_path / "pics/b").mkdir()
    rgb = Image.fromarray(np.full((40, 50, 3), 90, np.uint8))
    for number, mode in enumerate(("L", "P", "RGBA", "CMYK", "1", "RGB")):
        rgb.convert(mode).save(tmp_path / f"pics/{'ab'[number % 2]}/{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    sidecars = prepare(f"folder:{tmp_path / 'pics'}", tmp_path, writer="native", size=32)
    assert sum(s.count for s in sidecars.values()) == 6


def _hear_interrupts() -> None:
    """Undo what a shell does to a job in the background, where SIGINT is ignored, and in all its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    """SIGINT, SIGTERM, while minutes of work are left; then the same to its end."""
    code = (
        "import runpy, sys, time\n"
        "from crelu_data.write import _Samples\n"
        "read = _Samples.__getitem__\n"
        "_Samples.__getitem__ = lambda samples, record: time.sleep(0.1) or read(samples, record)\n"
        "runpy.run_module('crelu_data', run_name='__main__', alter_sys=True)\n"
    )
    words = ["prepare", "synthetic:train=3000,test=10", "--writer", "native", "--workers", "1"]
    command = [sys.executable, "-c", code, *words]
    environment = os.environ | {"CRELU_DATA": str(tmp_path)}
    for blow, status in ((signal.SIGINT, 130), (signal.SIGTERM, 130)):
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
        )

        def alive(process: subprocess.Popen[str] = process) -> None:
            assert process.poll() is None, process.communicate()

        until(lambda: list(tmp_path.glob(".*.partial")), "a file under way", 300, alive, poll=0.02)
        process.send_signal(blow)
        _, said = process.communicate(timeout=300)
        assert process.returncode == status, said
        assert "Traceback" not in said
        assert not list(tmp_path.glob("*.beton"))
        assert not left_over(tmp_path)
    assert prepare("synthetic:train=3000,test=10", tmp_path, writer="native")["train"].count == 3000


@pytest.mark.skipif("ffcv" not in WRITERS, reason="FFCV is not installed")
def test_a_dead_writing_process_is_an_error_not_a_wait(tmp_path: Path) -> None:
    """FFCV's own loop waits for ever for the count of a process that died."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from data import write, sources\n"
        "def fall(index): os.kill(os.getpid(), signal.SIGKILL)\n"
        "source = sources.sources('synthetic:train=20,test=10', None, Path('.'), None, 0)['train']\n"
        "options = write._Options('ffcv', 90, 1)\n"
        "try: write._write_readable(Path(sys.argv[1]), source._replace(picture=fall), 'train', options, print)\n"
        "except OSError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, timeout=300)
    assert "SIGKILL" in ran.stdout, ran.stderr


# The format


def test_native_files_are_ffcvs_own_format(tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    from crelu_data.ffcv_patches import import_ffcv

    import_ffcv()
    from ffcv.reader import Reader

    path = tmp_path / "x.beton"
    pictures = [np.full((32, 32, 3), value, np.uint8) for value in range(9)]
    beton.write(path, 9, ((p.tobytes(), label) for label, p in enumerate(pictures)), 32, jpeg=False)
    reader = Reader(str(path))
    assert tuple(reader.handlers) == beton.FIELDS
    assert np.array_equal(reader.metadata["f1"], np.arange(9))
    assert np.array_equal(reader.alloc_table["ptr"], beton.read_index(path).pointers)


def test_a_disk_that_cannot_be_read_is_no_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.beton").mkdir()
    with pytest.raises(IsADirectoryError):
        beton.read_index(tmp_path / "x.beton")
    with pytest.raises(ValueError, match="is missing"):
        beton.read_index(tmp_path / "y.beton")


@pytest.mark.parametrize("cut", [10, 2000, 5000, 2_100_000, -1])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    beton.write(path, 50, ((bytes(3072), 0) for _ in range(50)), 32, jpeg=False)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"x\.beton"):
        beton.read_index(path)


def test_tables_of_noise_are_refused(tmp_path: Path) -> None:
    """Whatever single byte of the tables is changed, the file is refused or its digest differs."""
    path = tmp_path / "x.beton"
    beton.write(path, 3, ((bytes(3072), 0) for _ in range(3)), 32, jpeg=False)
    content = path.read_bytes()
    digest = beton.read_index(path).digest
    tables = [*range(24), *range(3144, 3144 + 96), *range(len(content) - 72, len(content))]
    for at in tables:
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])
        with suppress(ValueError):
            assert beton.read_index(path).digest != digest


def test_verify_names_the_damaged_picture(tmp_path: Path) -> None:
    name = "synthetic:train=30,test=10"
    prepare(name, tmp_path, writer="native")
    path = beton_path(name, "train", tmp_path)
    index = beton.read_index(path)
    with path.open("r+b") as file:
        file.seek(int(index.pointers[17]) + 100)
        file.write(b"\xff\x00\xff")
    with pytest.raises(ValueError, match=r"1 of 30 pictures .* is damaged: 17"):
        verify(path)
