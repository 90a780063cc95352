"""Sources of original pictures: drawn ones, CIFAR's files, and folders of classes such as ImageNet's."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data import synthetic
from data.datasets import Ints, dataset, holdout, synthetic_options

Picture = NDArray[np.uint8]
T = TypeVar("T")

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
_TEST_FROM = 1 << 40  # index of the first synthetic test picture, above every count of training pictures
_TEST = {"cifar10": "test_batch", "cifar100": "test"}
_META = {"cifar10": ("batches.meta", b"label_names", 10), "cifar100": ("meta", b"fine_label_names", 100)}
_CIFAR = {"cifar10": ("cifar-10-batches-py", "CIFAR10"), "cifar100": ("cifar-100-python", "CIFAR100")}


class Source(NamedTuple):
    """Originals of one split: labels (n,), class names, the side to store, and functions of a picture's number.

    `picture` returns uint8 (size, size, 3), or raises where the original is unreadable; `name_of` returns its name.
    """

    labels: Ints
    class_names: tuple[str, ...]
    size: int
    seed: int
    picture: Callable[[int], Picture]
    name_of: Callable[[int], str]


def sources(name: str, origin: Path | None, where: Path, size: int | None, seed: int) -> dict[str, Source]:
    """Return the originals of a data set by split.

    `origin` is their folder. `where` is that of the .beton files, in which CIFAR is searched and to which it is
    downloaded. `size` is the side of a folder's pictures (None: unchanged, at most 256), `seed` that of its split.
    ValueError for missing originals names the files expected.
    """
    kind, _, rest = name.partition(":")
    if kind == "synthetic":
        return _synthetic(synthetic_options(name))
    if kind in _CIFAR:
        return _cifar(kind, origin, where)
    if kind == "imagenet":
        return _imagenet(origin or _imagenet_dir(), dataset(name).size)
    if kind == "folder" and rest:
        return _folder(Path(rest).expanduser().absolute(), size, seed)
    raise AssertionError(dataset(name))  # raises the ValueError that lists the names


def _synthetic(options: dict[str, int]) -> dict[str, Source]:
    size = options["size"]
    classes = options["classes"]
    seed = options["seed"]
    kind = {name: options[name] for name in ("size", "classes", "clutter", "contrast")}
    splits = {}
    for split, first in (("train", 0), ("test", _TEST_FROM)):
        draw = partial(_draw, seed=seed, first=first, **kind)
        labels = np.arange(options[split], dtype=np.int64) % classes
        names = tuple(synthetic.class_name(label) for label in range(classes))
        splits[split] = Source(labels, names, size, seed, draw, str)
    return splits


def _draw(index: int, seed: int, first: int, size: int, classes: int, clutter: int, contrast: int) -> Picture:
    return synthetic.picture(seed, first + index, index % classes, size, classes, clutter, contrast)


# CIFAR


def _cifar(kind: str, origin: Path | None, where: Path) -> dict[str, Source]:
    folder, loader = _CIFAR[kind]
    base = origin or where
    tree = next((path for path in (base / folder, base) if (path / _TEST[kind]).exists()), None)
    if tree is None and origin is not None:
        raise ValueError(f"no {kind} in {origin}: expected {folder}/{_TEST[kind]}")
    if tree is None:
        _download(loader, where)
        tree = where / folder
    train = sorted(tree.glob("data_batch_*")) if kind == "cifar10" else [tree / "train"]
    names = _cifar_names(tree, kind)
    return {"train": _batches(train, names), "test": _batches([tree / _TEST[kind]], names)}


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
        raise ValueError(f"{tree / meta} names {len(names)} classes, not {count}")
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
            raise ValueError(f"{path} has {len(data)} pictures, but not as many integer labels")
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


# Folders of classes


def _imagenet_dir() -> Path:
    folder = os.environ.get("IMAGENET_DIR")
    if not folder:
        raise ValueError("ImageNet cannot be downloaded: give its folder with --source DIR or $IMAGENET_DIR")
    return Path(folder).expanduser().absolute()


def _imagenet(root: Path, size: int) -> dict[str, Source]:
    missing = [split for split in ("train", "val") if not (root / split).is_dir()]
    if missing:
        raise ValueError(f"no ImageNet in {root}: expected train/<class>/*.JPEG and val/<class>/*.JPEG")
    return _splits({split: root / split for split in ("train", "val")}, size, 0, upright=False)


def _folder(root: Path, size: int | None, seed: int) -> dict[str, Source]:
    if not root.is_dir():
        raise ValueError(f"no folder {root}")
    folders = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
    if "train" in folders and len(folders) > 1:
        return _splits(folders, size, seed, upright=True)
    source = _splits({"train": folders.get("train", root)}, size, seed, upright=True)["train"]
    count = len(source.labels)
    if count < 5:
        raise ValueError(f"{count} pictures in {root} are too few to hold every fifth out for testing")
    train, test = holdout(source.labels, count // 5, seed)
    return {"train": subset(source, train), "test": subset(source, test)}


def _splits(roots: dict[str, Path], size: int | None, seed: int, upright: bool) -> dict[str, Source]:
    names = tuple(sorted(_class_names(roots["train"])))
    splits = {}
    for split, root in roots.items():
        others = _class_names(root) - set(names)
        if others:
            raise ValueError(f"{root} has classes that train lacks: {', '.join(sorted(others)[:5])}")
        files = [(path, label) for label, name in enumerate(names) for path in _pictures(root / name)]
        if len(names) < 2 or not files:
            raise ValueError(
                f"{len(names)} classes with {len(files)} pictures in {root}/<class>/; at least two classes are needed"
            )
        paths = tuple(path for path, _ in files)
        size = size or _common_side(paths)
        read = partial(_read, paths=paths, size=size, upright=upright)
        labels = np.array([label for _, label in files], np.int64)
        splits[split] = Source(labels, names, size, seed, read, paths.__getitem__)
    return splits


def _class_names(root: Path) -> set[str]:
    """Return the names of the folders in `root`, except hidden ones."""
    return {entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")}


def _pictures(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    return sorted(entry.path for entry in entries if entry.name.lower().endswith(_SUFFIXES))


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
    """Return the centre square of a picture, after its shorter side is resized to `size` pixels."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings(action="ignore"), Image.open(paths[index]) as opened:  # unusual EXIF and palettes
        opened.draft("RGB", (2 * size, 2 * size))  # libjpeg skips detail that resizing would average away
        picture = ImageOps.exif_transpose(opened) if upright else opened
        picture = picture.convert("RGB")
        wide, high = picture.size
        scale = size / min(wide, high)
        if scale != 1:
            wide, high = max(size, round(wide * scale)), max(size, round(high * scale))
            picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        return np.asarray(picture.crop((left, top, left + size, top + size)))


def subset(source: Source, indices: Ints) -> Source:
    """Return a source of the pictures `indices` of another one, in that order."""
    return source._replace(
        labels=source.labels[indices],
        picture=partial(_at, function=source.picture, indices=indices),
        name_of=partial(_at, function=source.name_of, indices=indices),
    )


def _at(number: int, function: Callable[[int], T], indices: Ints) -> T:
    return function(int(indices[number]))
