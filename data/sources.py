"""Sources of original pictures: drawn ones, CIFAR's files, and folders of classes such as ImageNet's."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial as partial_function
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from crelu_data import synthetic
from crelu_data.datasets import (
    IMAGENET,
    SPLITS,
    Ints,
    Sidecar,
    absolute_folder,
    counted,
    dataset,
    holdout,
    recorded_splits,
    synthetic_options,
)
from crelu_data.folders import Listing, check_folder, list_pictures, shown, split_folders
from crelu_data.originals import Originals, originals_path, read_originals
from crelu_data.pixels import Picture, brightest, square

T = TypeVar("T")

_TEST_FROM = 1 << 40  # index of the first synthetic test picture, above every count of training pictures
_TEST = {"cifar10": "test_batch", "cifar100": "test"}
_META = {"cifar10": ("batches.meta", b"label_names", 10), "cifar100": ("meta", b"fine_label_names", 100)}
_CIFAR = {"cifar10": ("cifar-10-batches-py", "CIFAR10"), "cifar100": ("cifar-100-python", "CIFAR100")}
_ARCHIVE = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}  # beside a downloaded tree
# MD5 of the published files, in the order in which they are read; torchvision has the same.
PUBLISHED = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
}
_IMAGENET_EACH = {"train": (732, 1300), "val": (50, 50)}  # pictures of a class, at least and at most


class Source(NamedTuple):
    """Originals of one split: labels (n,), class names, the side to store, and functions of a picture's number.

    `picture` returns uint8 (size, size, 3), or raises where the original is unreadable; `name_of` returns its name.
    `originals` lists the files of all splits, None for drawn pictures; `partial` marks a part of a published set.
    """

    labels: Ints
    class_names: tuple[str, ...]
    size: int
    seed: int
    picture: Callable[[int], Picture]
    name_of: Callable[[int], str]
    originals: Originals | None = None
    partial: bool = False


def sources(
    name: str, origin: Path | None, where: Path, size: int | None, seed: int, partial: bool = False
) -> dict[str, Source]:
    """Return the originals of a data set by split.

    `origin` is their folder. `where` is that of the .beton files, in which CIFAR is searched and to which it is
    downloaded. `size` is the side of a folder's pictures (None: unchanged, at most 256), `seed` that of its split.
    With `partial` a set under a public name may be a part of it. ValueError for missing originals names the files
    expected.
    """
    kind, _, rest = name.partition(":")
    if kind == "synthetic":
        return _synthetic(synthetic_options(name))
    if kind in _CIFAR:
        return _cifar(kind, origin, where, partial)
    if kind == "imagenet":
        return _imagenet(origin or _imagenet_dir(), dataset(name).size, partial)
    if kind == "folder" and rest:
        return _folder(absolute_folder(rest), size, seed)
    raise AssertionError(dataset(name))  # raises the ValueError that lists the names


def _synthetic(options: dict[str, int]) -> dict[str, Source]:
    size = options["size"]
    classes = options["classes"]
    seed = options["seed"]
    kind = {name: options[name] for name in ("size", "classes", "clutter", "contrast")}
    splits = {}
    for split, first in (("train", 0), ("test", _TEST_FROM)):
        draw = partial_function(_draw, seed=seed, first=first, **kind)
        labels = np.arange(options[split], dtype=np.int64) % classes
        names = tuple(synthetic.class_name(label) for label in range(classes))
        splits[split] = Source(labels, names, size, seed, draw, str)
    return splits


def _draw(index: int, seed: int, first: int, size: int, classes: int, clutter: int, contrast: int) -> Picture:
    return synthetic.picture(seed, first + index, index % classes, size, classes, clutter, contrast)


# CIFAR


def _cifar(kind: str, origin: Path | None, where: Path, partial: bool) -> dict[str, Source]:
    folder, loader = _CIFAR[kind]
    tree = _cifar_tree(kind, origin or where)
    if tree is None and origin is not None:
        raise ValueError(f"no {kind} in {origin}: expected {folder}/{_TEST[kind]}")
    if tree is None:
        _download(loader, where)
        tree = where / folder
    fault = _cifar_fault(tree, kind)
    if fault and origin is None and tree == where / folder and (where / _ARCHIVE[kind]).exists():
        _download(loader, where)  # the one before was cut off while it unpacked this archive
        fault = _cifar_fault(tree, kind)
    _check_whole(fault, f"{tree} is not the whole of {kind}", partial)
    train = [tree / name for name in PUBLISHED[kind] if name != _TEST[kind]]
    if fault and kind == "cifar10":
        train = sorted(tree.glob("data_batch_*"))
    names = _cifar_names(tree, kind)
    originals = _cifar_originals(tree, kind)
    splits = {"train": _batches(train, names), "test": _batches([tree / _TEST[kind]], names)}
    return {split: source._replace(originals=originals, partial=bool(fault)) for split, source in splits.items()}


def _check_whole(fault: str, what: str, partial: bool) -> None:
    """Raise ValueError where a set under a public name is a part of it, or something else, unless `partial`."""
    if fault and not partial:
        raise ValueError(f"{what}: {fault}; --partial prepares it, and marks every result of it")


def _cifar_tree(kind: str, base: Path) -> Path | None:
    """Return the folder of CIFAR's files, None where there is none."""
    return next((path for path in (base / _CIFAR[kind][0], base) if (path / _TEST[kind]).exists()), None)


def _cifar_fault(tree: Path, kind: str) -> str:
    """Return which file of a tree is missing or not the published one; empty for none."""
    for name, expected in PUBLISHED[kind].items():
        try:
            with (tree / name).open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except OSError as error:
            return f"{name}: {error.strerror}"
        if digest != expected:
            return f"{name} is not the published file (MD5 {digest}, not {expected})"
    return ""


def _cifar_originals(tree: Path, kind: str) -> Originals:
    names = {*PUBLISHED[kind], *(path.name for path in tree.glob("data_batch_*"))}
    return Originals(str(tree), {name: (tree / name).stat().st_size for name in names if (tree / name).exists()})


def _download(loader: str, where: Path) -> None:
    from torchvision import datasets  # for its addresses and checksums

    try:
        getattr(datasets, loader)(os.fspath(where), download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{loader} could not be downloaded to {where} ({error}); use an existing tree with --source DIR"
        ) from None


def _cifar_names(tree: Path, kind: str) -> tuple[str, ...]:
    meta, key, count = _META[kind]
    if not (tree / meta).exists():
        return tuple(str(label) for label in range(count))
    names = tuple(
        name.decode() if isinstance(name, bytes) else str(name) for name in _unpickled(tree / meta).get(key, ())
    )
    if len(names) != count:
        raise ValueError(f"{tree / meta} names {counted(len(names), 'class', 'classes')}, not {count}")
    return names


def _batches(paths: Sequence[Path], names: tuple[str, ...]) -> Source:
    pixels, labels = [], []
    for path in paths:
        batch = _unpickled(path)
        data = batch.get(b"data")
        targets = batch.get(b"labels", batch.get(b"fine_labels"))
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise ValueError(f"{path} holds no pictures of 3 x 32 x 32 bytes")
        classes = np.array(targets if isinstance(targets, list | np.ndarray) else [])
        if classes.dtype.kind not in "iu" or classes.shape != (len(data),):
            raise ValueError(f"{path} has {counted(len(data), 'picture')}, but not as many integer labels")
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(names):
            raise ValueError(f"{path} has labels outside 0..{len(names) - 1}")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(classes.astype(np.int64))
    if not sum(map(len, labels)):
        raise ValueError(f"no pictures in {', '.join(map(str, paths)) or 'data_batch_*'}")
    return Source(np.concatenate(labels), names, 32, 0, np.concatenate(pixels).__getitem__, str)


class _Plain(pickle.Unpickler):
    """Reader of CIFAR's pickles: arrays and plain containers only, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            known = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.int64().__reduce__()[0]}
            if name in known:
                return known[name]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(shape, order=order)
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


def _unpickled(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            value = _Plain(file, encoding="bytes").load()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except Exception as error:  # a damaged or foreign pickle may raise anything
        raise ValueError(f"{path} is not one of CIFAR's files: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not one of CIFAR's files: it holds a {type(value).__name__}")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}


def whole_splits(name: str, where: Path, sidecars: Mapping[str, Sidecar]) -> set[str]:
    """Return the splits that a prepared set has once it is whole, by the sidecars of those that are finished.

    Sidecars of an earlier preparation do not record them. Then they are those of the list of the originals in `where`,
    or of the folder, or any two where neither is on this machine.
    """
    kind, _, rest = name.partition(":")
    if recorded := recorded_splits(sidecars.values()):
        return recorded
    if kind != "folder":
        return {*dataset(name).splits}
    root = absolute_folder(rest)
    listed = read_originals(originals_path(name, where))
    if listed is not None and any(sidecar.originals == listed.digest for sidecar in sidecars.values()):
        folders = {path.partition("/")[0] for path in listed.sizes} & {*SPLITS}
    elif root.is_dir():
        folders = {*split_folders(root)}
    else:
        folders = {"train", *sidecars}
    return folders if "train" in folders and len(folders) > 1 else {"train", "test"}


def originals_of(name: str, origin: Path | None, where: Path) -> Originals | None:
    """Return the originals of a data set as they are now, None where they are not to be seen; nothing is read."""
    kind, _, rest = name.partition(":")
    if kind in _CIFAR:
        tree = _cifar_tree(kind, origin or where)
        return _cifar_originals(tree, kind) if tree is not None else None
    if kind == "folder":
        root = absolute_folder(rest)
        folders = split_folders(root)
    elif kind == "imagenet" and (origin or os.environ.get("IMAGENET_DIR")):
        root = origin or _imagenet_dir()
        folders = {split: root / split for split in ("train", "val")}
    else:
        return None
    if not all(folder.is_dir() for folder in folders.values()):
        return None
    return Originals(str(root), list_pictures(root, folders, deep=False).sizes)


# Folders of classes


def _imagenet_dir() -> Path:
    folder = os.environ.get("IMAGENET_DIR")
    if not folder:
        raise ValueError("ImageNet cannot be downloaded: give its folder with --source DIR or $IMAGENET_DIR")
    return Path(folder).expanduser().absolute()


def _imagenet(root: Path, size: int, partial: bool) -> dict[str, Source]:
    missing = [split for split in ("train", "val") if not (root / split).is_dir()]
    if missing:
        raise ValueError(f"no ImageNet in {root}: expected train/<class>/*.JPEG and val/<class>/*.JPEG")
    listing = _listing(root, {split: root / split for split in ("train", "val")})
    fault = _imagenet_fault(listing)
    _check_whole(fault, f"{root} is not the whole of ImageNet", partial)
    splits = _splits(listing, size, 0, upright=False)
    return {split: source._replace(partial=bool(fault)) for split, source in splits.items()}


def _imagenet_fault(listing: Listing) -> str:
    """Return in what a folder is not the published ImageNet: classes, and pictures of all and of each."""
    if len(listing.classes) != IMAGENET.classes:
        return f"it has {counted(len(listing.classes), 'class', 'classes')}, not {IMAGENET.classes:,}"
    for split, (least, most) in _IMAGENET_EACH.items():
        counts = {name: len(files) for name, files in listing.files[split].items()}
        for name, count in sorted(counts.items()):
            if not least <= count <= most:
                expected = f"{least:,}" + f" to {most:,}" * (most > least)
                return f"{split}/{name} has {counted(count, 'picture')}, not {expected}"
        if sum(counts.values()) != IMAGENET.splits[split]:
            return f"{split} has {sum(counts.values()):,} pictures, not {IMAGENET.splits[split]:,}"
    return ""


def _folder(root: Path, size: int | None, seed: int) -> dict[str, Source]:
    check_folder(root)
    listing = _listing(root, split_folders(root))
    splits = _splits(listing, size, seed, upright=True)
    _note_dark(root, [file.path for files in listing.files["train"].values() for file in files])
    if len(splits) > 1:
        return splits
    source = splits["train"]
    count = len(source.labels)
    if count < 5:
        raise ValueError(f"{count} pictures in {root} are too few to hold every fifth out for testing")
    train, test = holdout(source.labels, count // 5, seed)
    return {"train": subset(source, train), "test": subset(source, test)}


def _listing(root: Path, folders: Mapping[str, Path]) -> Listing:
    """Return the pictures of a folder, and log what is not taken of it."""
    listing = list_pictures(root, folders)
    for note in listing.notes:
        logging.getLogger("crelu_data").warning("%s: %s", shown(str(root)), note)
    return listing


def _note_dark(root: Path, paths: Sequence[str]) -> None:
    """Log where 16-bit pictures, by 20 of them, use 12 bits or fewer: as they are, they become nearly black."""
    shares = [brightest(path) for path in paths[:: -(-len(paths) // 20)]]
    if 0 < min(shares) <= max(shares) < 1 / 16:
        logging.getLogger("crelu_data").warning(
            "%s: the brightest of %d pictures of more than 8 bits has %.1f %% of white, so all become nearly black; "
            "stretch their numbers first",
            shown(str(root)),
            len(shares),
            100 * max(shares),
        )


def _splits(listing: Listing, size: int | None, seed: int, upright: bool) -> dict[str, Source]:
    names = listing.classes
    originals = Originals(str(listing.root), listing.sizes)
    splits = {}
    for split, classes in listing.files.items():
        if others := sorted(classes.keys() - set(names)):
            raise ValueError(
                f"{split} of {listing.root} has classes without training pictures: {', '.join(map(shown, others[:5]))}"
            )
        files = [(file.path, label) for label, name in enumerate(names) for file in classes.get(name, ())]
        if len(names) < 2 or not files:
            raise ValueError(
                f"{counted(len(names), 'class', 'classes')} with {counted(len(files), 'picture')} "
                f"in {listing.root}, as {split}; "
                "at least two classes are needed, each a folder with pictures of its own"
            )
        paths = tuple(path for path, _ in files)
        size = size or _common_side(paths)
        read = partial_function(_read, paths=paths, size=size, upright=upright)
        labels = np.array([label for _, label in files], np.int64)
        splits[split] = Source(labels, names, size, seed, read, paths.__getitem__, originals)
    return splits


def _common_side(paths: Sequence[str]) -> int:
    """Return the median shorter side of up to 100 pictures, at least 16 and at most 256."""
    from PIL import Image

    sides = []
    for path in paths[:: -(-len(paths) // 100)]:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
                sides.append(min(picture.size))
        except Exception:  # writing will name the unreadable picture
            continue
    return min(256, max(16, int(np.median(sides)))) if sides else 256


def _read(index: int, paths: Sequence[str], size: int, upright: bool) -> Picture:
    return square(paths[index], size, upright)


def subset(source: Source, indices: Ints) -> Source:
    """Return a source of the pictures `indices` of another one, in that order."""
    return source._replace(
        labels=source.labels[indices],
        picture=partial_function(_at, function=source.picture, indices=indices),
        name_of=partial_function(_at, function=source.name_of, indices=indices),
    )


def _at(number: int, function: Callable[[int], T], indices: Ints) -> T:
    return function(int(indices[number]))
