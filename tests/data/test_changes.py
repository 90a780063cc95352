"""A prepared set knows its originals: what has changed since is said by each command, and never mixed with the old."""

import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from crelu_data import beton, write
from crelu_data.__main__ import main
from crelu_data.availability import check_available, ensure_dataset, fingerprint
from crelu_data.changes import check_unchanged
from crelu_data.datasets import Sidecar, beton_path, dataset, fresh_command, read_sidecar, remedy, stem
from crelu_data.load import open_pictures
from crelu_data.originals import Originals, difference, originals_path, read_originals, write_originals
from crelu_data.transfer import pull, push
from crelu_data.write import prepare
from crelu_models.command_line import python_command
from tests.support.pictures import picture_folder


def picture(path: Path, side: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.effect_noise((side, side), 90).save(path)


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    picture_folder(tmp_path, "pics", {"a": 6, "b": 6}, (32, 32))
    return tmp_path / "pics"


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a class more": (lambda pics: shutil.copytree(pics / "a", pics / "c"), "6 new (c/0.png, c/1.png, c/2.png, ...)"),
    "a picture more": (lambda pics: picture(pics / "a/new.png", 32), "1 new (a/new.png)"),
    "a picture less": (lambda pics: (pics / "b/3.png").unlink(), "1 gone (b/3.png)"),
    "another picture": (lambda pics: picture(pics / "b/3.png", 40), "1 of another size (b/3.png)"),
    "another class": (lambda pics: (pics / "b/3.png").rename(pics / "a/b3.png"), "1 new (a/b3.png), 1 gone (b/3.png)"),
    "a test split": (
        lambda pics: [shutil.copytree(pics / "a", pics / split / "a") for split in ("train", "test")],
        "12 new (test/a/0.png, test/a/1.png, test/a/2.png, ...), 12 gone (a/0.png, a/1.png, a/2.png, ...)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_folder_is_said_by_each_command(
    change: str, pics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"folder:{pics}"
    where = tmp_path / "out dir"
    place = ["--data-dir", str(where)]
    assert main(["prepare", name, *place, "--writer", "native", "--seed", "3"]) == 0
    check_available(name, where)
    before = fingerprint(name, where)
    make, what = CHANGES[change]
    make(pics)
    expected = f"{pics} has changed since {name} was prepared: {what}; "
    said = []
    for verb in ("prepare", "verify"):
        capsys.readouterr()
        assert main([verb, name, *place]) == 2
        said.append(capsys.readouterr().err)
    for check in (lambda: check_available(name, where), lambda: ensure_dataset(name, where, print)):
        with pytest.raises(ValueError, match="has changed since") as refused:
            check()
        said.append(str(refused.value))
    assert all(expected in sentence for sentence in said)
    assert fingerprint(name, where) == before
    if change == "a test split":
        return  # of one class only: no set to prepare
    command = shlex.split(said[-1].rpartition("; ")[2].partition(" prepares it")[0])
    assert command[:3] == [sys.executable, "-m", "crelu_data"]
    assert main(command[3:]) == 0
    assert main(["verify", name, *place]) == 0
    ensure_dataset(name, where, print)
    assert fingerprint(name, where) != before
    after = read_sidecar(beton_path(name, "train", where).with_suffix(".json"))
    assert (after.size, after.seed) == (32, 3)


def test_unchanged_or_absent_originals_are_no_change(pics: Path, tmp_path: Path) -> None:
    name = f"folder:{pics}"
    prepare(name, tmp_path, writer="native", workers=1)
    (pics / "a/0.png").touch()
    (pics / "a/notes.txt").write_text("no picture")
    (pics / "__MACOSX").mkdir()
    check_unchanged(name, tmp_path)
    assert prepare(name, tmp_path)
    pics.rename(tmp_path / "elsewhere")
    check_available(name, tmp_path)


def test_set_without_a_list_is_taken_and_one_without_details_still_told(pics: Path, tmp_path: Path) -> None:
    """Sidecars of an earlier version have no digest; a set that was pulled has no list."""
    name = f"folder:{pics}"
    where = tmp_path / "out"
    prepare(name, where, writer="native", workers=1)
    push(where, str(tmp_path / "shared"))
    pull(str(tmp_path / "shared"), tmp_path / "node")
    picture(pics / "a/new.png", 32)
    with pytest.raises(ValueError, match=r"was prepared; \S+ -m crelu_data prepare"):
        check_unchanged(name, tmp_path / "node")
    originals_path(name, where).write_bytes(b"\x1f\x8bgarbage")
    with pytest.raises(ValueError, match=r"was prepared; \S+ -m crelu_data prepare"):
        check_unchanged(name, where)
    for split in ("train", "test"):
        path = beton_path(name, split, where).with_suffix(".json")
        old = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in old.items() if key not in ("originals", "partial")}))
        assert read_sidecar(path).originals == ""
    check_unchanged(name, where)
    assert prepare(name, where)


def test_damaged_file_is_told_with_the_command_that_makes_the_same_set(tmp_path: Path) -> None:
    picture_folder(tmp_path / "my pics", "all", {"a": 6, "b": 6}, (32, 32))
    name = f"folder:{tmp_path}/my pics/all"
    where = tmp_path / "out dir"
    made = prepare(name, where, size=24, seed=7, writer="native", workers=1)["train"]
    before = fingerprint(name, where)
    path = beton_path(name, "train", where)
    content = path.read_bytes()
    path.write_bytes(content[:2_097_200] + bytes([content[2_097_200] ^ 1]) + content[2_097_201:])
    command = fresh_command(made, where)
    with open_pictures(path, reader="threads", workers=1) as pictures:
        for refuse in (
            lambda: check_available(name, where),
            lambda: push(where, str(tmp_path / "up")),
            lambda: pictures.picture(0),
            lambda: beton.check_pair(dataclasses.replace(made, size=32), beton.read_index(path)),
        ):
            with pytest.raises(ValueError, match=r"damaged|does not match") as refused:
                refuse()
            said = str(refused.value).partition("; ")[2]
            if "does not match" not in str(refused.value):
                assert said.startswith(f"{command} writes it again; where the originals are not on this machine: ")
                assert shlex.split(said)[-4:] == [name, "--fresh", "--data-dir", str(where)]
            assert said.startswith(python_command("crelu_data", "prepare", name))
    assert main([*shlex.split(command)[3:], "--writer", "native", "--workers", "1"]) == 0
    assert fingerprint(name, where) == before


def test_command_has_what_the_set_was_made_with(pics: Path, tmp_path: Path) -> None:
    made = prepare(f"folder:{pics}", tmp_path, writer="native", workers=1)["train"]
    for changes, words in (
        ({}, ["--size", "32"]),
        ({"seed": 7, "size": 128, "quality": 80}, ["--size", "128", "--seed", "7", "--quality", "80"]),
        ({"name": "cifar10", "partial": True}, ["--partial"]),
        ({"name": "synthetic"}, []),
    ):
        sidecar = dataclasses.replace(made, **changes)
        expected = [
            sys.executable,
            "-m",
            "crelu_data",
            "prepare",
            sidecar.name,
            "--fresh",
            *words,
            "--data-dir",
            "/my data",
        ]
        assert shlex.split(fresh_command(sidecar, Path("/my data"))) == expected
        assert ("pull SOURCE" in remedy(sidecar, tmp_path)) == (sidecar.name != "synthetic")


class KilledError(Exception):
    """The process ends here."""


@pytest.fixture
def killed_after_train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a preparation that is killed between its two splits."""

    def run(name: str, where: Path, **options: object) -> None:
        prepare_split = write._prepare_split

        def first_only(name: str, split: str, *rest: object) -> object:
            if split != "train":
                raise KilledError
            return prepare_split(name, split, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(write, "_prepare_split", first_only)
        with pytest.raises(KilledError):
            prepare(name, where, writer="native", workers=1, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(write, "_prepare_split", prepare_split)

    return run


def test_half_prepared_set_is_not_completed_from_other_pictures(
    pics: Path, tmp_path: Path, killed_after_train: Callable[..., None]
) -> None:
    name = f"folder:{pics}"
    where = tmp_path / "out"
    killed_after_train(name, where)
    picture(pics / "a/new.png", 32)
    with pytest.raises(ValueError, match="has changed since"):
        prepare(name, where, writer="native")
    assert not beton_path(name, "test", where).exists()


def test_half_prepared_set_is_completed_with_its_own_seed_and_size(
    pics: Path, tmp_path: Path, killed_after_train: Callable[..., None]
) -> None:
    name = f"folder:{pics}"
    where = tmp_path / "out"
    expected = prepare(name, tmp_path / "at once", writer="native", seed=7, size=24)
    killed_after_train(name, where, seed=7, size=24)
    assert prepare(name, where, writer="native") == expected


def test_fresh_that_was_killed_between_its_splits_leaves_the_old_set(
    pics: Path, tmp_path: Path, killed_after_train: Callable[..., None]
) -> None:
    name = f"folder:{pics}"
    where = tmp_path / "out"
    before = prepare(name, where, writer="native", workers=1)
    killed_after_train(name, where, fresh=True, seed=7)
    assert prepare(name, where) == before
    assert not list(where.glob(".*.partial"))


@pytest.mark.parametrize("fresh", [False, True])
def test_set_that_is_refused_in_its_second_split_leaves_nothing_of_it(tmp_path: Path, fresh: bool) -> None:
    """Once the pictures are mended, the same command prepares them; none is said to have changed since."""
    for split in ("train", "test"):
        picture_folder(tmp_path / "pics", split, {"a": 6, "b": 6}, (32, 32))
    pics, where = tmp_path / "pics", tmp_path / "out"
    name = f"folder:{pics}"
    if fresh:
        prepare(name, where, writer="native", workers=1)
    held = sorted(where.glob("*.*"))
    for path in (pics / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="12 of 12 unreadable"):
        prepare(name, where, writer="native", workers=1, fresh=fresh)
    assert [path for path in sorted(where.glob("*.*")) if path.suffix != ".lock"] == [
        path for path in held if path.suffix != ".lock"
    ]
    shutil.rmtree(pics / "test")
    picture_folder(pics, "test", {"a": 6, "b": 6}, (32, 32))
    picture(pics / "test/b/new.png", 32)
    assert prepare(name, where, writer="native", workers=1, fresh=fresh)["test"].count == 13


def test_fresh_that_was_killed_between_its_names_leaves_no_mixed_set(
    pics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"folder:{pics}"
    where = tmp_path / "out"
    prepare(name, where, writer="native", workers=1)
    publish = write.beton.publish
    published = list[Path]()

    def first_only(partial: Path, path: Path, sidecar: Sidecar) -> None:
        if published:
            raise KilledError
        published.append(path)
        publish(partial, path, sidecar)

    with monkeypatch.context() as patched:
        patched.setattr(write.beton, "publish", first_only)
        with pytest.raises(KilledError):
            prepare(name, where, writer="native", workers=1, fresh=True, seed=7)
    for check in (lambda: prepare(name, where), lambda: check_available(name, where)):
        with pytest.raises(ValueError, match=r"not of one preparation.*--fresh --size 32 --seed 7"):
            check()
    prepare(name, where, writer="native", fresh=True, seed=7)
    check_available(name, where)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Return a folder with pictures for training, validation and test."""
    for split in ("train", "val", "test"):
        picture_folder(tmp_path / "three", split, {"a": 2, "b": 2}, (16, 16))
    return tmp_path / "three"


@pytest.mark.parametrize("version", ["now", "earlier, with its list", "earlier, without its list"])
def test_set_that_was_killed_before_its_test_split_is_completed_and_never_tested_on_another_one(
    version: str, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"folder:{three}"
    where = tmp_path / "out"
    publish = write.beton.publish

    def not_test(partial: Path, path: Path, sidecar: Sidecar) -> None:
        if sidecar.split == "test":
            raise KilledError
        publish(partial, path, sidecar)

    with monkeypatch.context() as patched:
        patched.setattr(write.beton, "publish", not_test)
        with pytest.raises(KilledError):
            prepare(name, where, writer="native", workers=1)
    if version == "now":
        with pytest.raises(ValueError, match=r"expected .*-train and -val and -test, found train, val"):
            dataset(name, where)
        shutil.copytree(where, tmp_path / "other")
        assert ensure_dataset(name, tmp_path / "other", print).final == "test"
    else:
        for path in where.glob("*.json"):
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "splits"}))
        if "without" in version:
            originals_path(name, where).unlink()
        else:
            three.rename(tmp_path / "away")
        for check in (lambda: ensure_dataset(name, where, print), lambda: check_available(name, where)):
            with pytest.raises(
                ValueError, match=r"has no test split, since its preparation was interrupted: .*python.* -m crelu_data"
            ):
                check()
        if not three.exists():
            (tmp_path / "away").rename(three)
    assert set(prepare(name, where, writer="native", workers=1)) == {"train", "val", "test"}
    assert dataset(name, where).final == "test"
    check_available(name, where)


def test_splits_that_the_folder_no_longer_has_go_with_fresh(three: Path, tmp_path: Path) -> None:
    name = f"folder:{three}"
    where = tmp_path / "out"
    prepare(name, where, writer="native", workers=1)
    shutil.rmtree(three / "test")
    with pytest.raises(ValueError, match=r"4 gone \(test.*--fresh") as refused:
        prepare(name, where)
    command = shlex.split(str(refused.value).rpartition("; ")[2].partition(" prepares it")[0])
    assert main([*command[3:], "--workers", "1", "--writer", "native"]) == 0
    assert {path.stem.rpartition("-")[2] for path in where.glob("*.[bj]*") if path.suffix != ".gz"} == {"train", "val"}
    assert dataset(name, where).final == "val"
    check_available(name, where)


def test_fresh_that_is_killed_before_an_old_split_is_deleted_is_helped_by_fresh(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"folder:{three}"
    where = tmp_path / "out"
    prepare(name, where, writer="native", workers=1)
    shutil.rmtree(three / "test")
    with monkeypatch.context() as patched:
        patched.setattr("crelu_data.beton.unpublish", lambda path: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            prepare(name, where, writer="native", workers=1, fresh=True)
    with pytest.raises(ValueError, match="not of one preparation"):
        prepare(name, where)
    prepare(name, where, writer="native", workers=1, fresh=True)
    assert dataset(name, where).final == "val"


def test_fresh_that_was_killed_before_its_first_split_tells_no_wrong_names(
    pics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new list is there and the pictures are the old ones: it does not explain what has changed since them."""
    name = f"folder:{pics}"
    where = tmp_path / "out"
    prepare(name, where, writer="native", workers=1)
    picture(pics / "a/new.png", 32)
    with monkeypatch.context() as patched:
        patched.setattr("crelu_data.beton.publish", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            prepare(name, where, writer="native", workers=1, fresh=True)
    picture(pics / "b/newer.png", 32)
    with pytest.raises(ValueError, match=r"was prepared; \S+ -m crelu_data prepare"):
        check_unchanged(name, where)


def test_list_holds_each_name_and_size(tmp_path: Path) -> None:
    listed = Originals("/somewhere", {"a/0.png": 5, "b/caf\udce9.png": 7, "c/\n.png": -1})
    path = originals_path("synthetic", tmp_path)
    write_originals(path, listed)
    assert read_originals(path) == listed
    assert path.name == f"{stem('synthetic')}-originals.json.gz"
    for other in ({"a/0.png": 6}, {"a/1.png": 5}, {}):
        assert listed._replace(sizes={**listed.sizes, **other}).digest != listed.digest or not other
    assert listed._replace(root="/elsewhere").digest == listed.digest
    assert Originals("", {"a": 1, "b": 2}).digest != Originals("", {"a": 2, "b": 1}).digest
    assert difference(listed, Originals("", {"a/0.png": 5})) == "2 gone (b/caf\\xe9.png, c/\\n.png)"


def test_sidecars_of_the_originals_are_checked(pics: Path, tmp_path: Path) -> None:
    name = f"folder:{pics}"
    path = beton_path(name, "train", tmp_path).with_suffix(".json")
    made = prepare(name, tmp_path, writer="native", workers=1)["train"]
    assert len(made.originals) == 64
    assert not made.partial
    for field, value in (("partial", 1), ("partial", None), ("originals", 7), ("original", "")):
        path.write_text(json.dumps(dataclasses.asdict(made) | {field: value}))
        with pytest.raises(ValueError, match="is not a sidecar"):
            read_sidecar(path)
