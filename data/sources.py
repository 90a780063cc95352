"""Where pictures come from before they are a .beton file: drawn, CIFAR's own files, or folders of classes."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data import synthetic
from data.datasets import Ints, dataset, holdout, synthetic_options

Picture = NDArray[np.uint8]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
_TEST_FROM = 1 << 40  # index of the first synthetic test picture: no count of training pictures reaches it
_CIFAR = {"cifar10": ("cifar-10-batches-py", "CIFAR10"), "cifar100": ("cifar-100-python", "CIFAR100")}


class Source(NamedTuple):
    """One split: labels (n,), class names, the side to store, and how to get and to name a picture by its number.

    `picture` returns uint8 (size, size, 3) and raises where the original is unreadable.
    """

    labels: Ints
    class_names: tuple[str, ...]
    size: int
    seed: int
    picture: Callable[[int], Picture]
    name_of: Callable[[int], str]


def sources(name: str, origin: Path | None, where: Path, size: int | None, seed: int) -> dict[str, Source]:
    """Find the originals of a data set by split.

    `origin` is the folder they lie in, `where` that of the .beton files (CIFAR is looked for and downloaded
    there), `size` the side of a folder's pictures (None: as they are, at most 256), `seed` that of its split.
    ValueError where nothing is found says what was looked for.
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
    size, classes, seed = options["size"], options["classes"], options["seed"]
    found = {}
    for split, first in (("train", 0), ("test", _TEST_FROM)):
        draw = partial(_drawn, seed=seed, first=first, size=size, classes=classes)
        labels = np.arange(options[split], dtype=np.int64) % classes
        names = tuple(synthetic.class_name(label) for label in range(classes))
        found[split] = Source(labels, names, size, seed, draw, str)
    return found


def _drawn(index: int, seed: int, first: int, size: int, classes: int) -> Picture:
    return synthetic.picture(seed, first + index, index % classes, size, classes)


# CIFAR


def _cifar(kind: str, origin: Path | None, where: Path) -> dict[str, Source]:
    folder, loader = _CIFAR[kind]
    places = [place for base in ((origin,) if origin else (where,)) for place in (base / folder, base)]
    tree = next((place for place in places if (place / _TEST[kind]).exists()), None)
    if tree is None and origin is not None:
        raise ValueError(f"no {kind} in {origin}: looked for {folder}/{_TEST[kind]}")
    if tree is None:
        _download(loader, where)
        tree = where / folder
    train = sorted(tree.glob("data_batch_*")) if kind == "cifar10" else [tree / "train"]
    names = _cifar_names(tree, kind)
    return {"train": _batches(train, names), "test": _batches([tree / _TEST[kind]], names)}


_TEST = {"cifar10": "test_batch", "cifar100": "test"}


def _download(loader: str, where: Path) -> None:
    from torchvision import datasets  # for its address book and checksums alone

    try:
        getattr(datasets, loader)(os.fspath(where), download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{loader} could not be downloaded to {where} ({error}); an existing tree is taken with --source DIR"
        ) from None


def _cifar_names(tree: Path, kind: str) -> tuple[str, ...]:
    meta, key, count = ("batches.meta", b"label_names", 10) if kind == "cifar10" else ("meta", b"fine_label_names", 100)
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
        data, found = batch.get(b"data"), batch.get(b"labels", batch.get(b"fine_labels"))
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise ValueError(f"{path} holds no pictures of 3 x 32 x 32 bytes")
        marks = np.array(found if isinstance(found, list | np.ndarray) else [])
        if marks.dtype.kind not in "iu" or marks.shape != (len(data),):
            raise ValueError(f"{path} has {len(data)} pictures and not as many whole numbers for labels")
        if len(marks) and not 0 <= marks.min() <= marks.max() < len(names):
            raise ValueError(f"{path} has labels outside 0..{len(names) - 1}")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(marks.astype(np.int64))
    if not sum(map(len, labels)):
        raise ValueError(f"no pictures in {', '.join(map(str, paths)) or 'data_batch_*'}")
    return Source(np.concatenate(labels), names, 32, 0, np.concatenate(pixels).__getitem__, str)


class _Plain(pickle.Unpickler):
    """Reads CIFAR's pickles, and nothing that could run code: arrays and the plain containers only."""

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
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickled(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            value = _Plain(file, encoding="bytes").load()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except Exception as error:  # whatever a damaged or foreign pickle makes its reader raise
        raise ValueError(f"{path} is not one of CIFAR's files: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not one of CIFAR's files: it holds a {type(value).__name__}")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}


# Folders of classes


def _imagenet_dir() -> Path:
    place = os.environ.get("IMAGENET_DIR")
    if not place:
        raise ValueError("ImageNet cannot be downloaded: say where it lies with --source DIR or $IMAGENET_DIR")
    return Path(place).expanduser().absolute()


def _imagenet(root: Path, size: int) -> dict[str, Source]:
    missing = [split for split in ("train", "val") if not (root / split).is_dir()]
    if missing:
        raise ValueError(f"no ImageNet in {root}: looked for train/<class>/*.JPEG and val/<class>/*.JPEG")
    return _splits({split: root / split for split in ("train", "val")}, size, 0, upright=False)


def _folder(root: Path, size: int | None, seed: int) -> dict[str, Source]:
    if not root.is_dir():
        raise ValueError(f"no folder {root}")
    given = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
    if "train" in given and len(given) > 1:
        return _splits(given, size, seed, upright=True)
    whole = _splits({"train": given.get("train", root)}, size, seed, upright=True)["train"]
    if len(whole.labels) < 5:
        raise ValueError(f"{len(whole.labels)} pictures in {root} are too few to set every fifth aside for testing")
    train, test = holdout(whole.labels, len(whole.labels) // 5, seed)
    return {"train": subset(whole, train), "test": subset(whole, test)}


def _splits(roots: dict[str, Path], size: int | None, seed: int, upright: bool) -> dict[str, Source]:
    names = tuple(sorted(entry.name for entry in os.scandir(roots["train"]) if _plain_folder(entry)))
    found = {}
    for split, root in roots.items():
        others = {entry.name for entry in os.scandir(root) if _plain_folder(entry)} - set(names)
        if others:
            raise ValueError(f"{root} has classes that train has not: {', '.join(sorted(others)[:5])}")
        files = [(path, label) for label, name in enumerate(names) for path in _pictures(root / name)]
        if len(names) < 2 or not files:
            raise ValueError(
                f"found {len(names)} classes with {len(files)} pictures in {root}/<class>/; two are needed"
            )
        paths = tuple(path for path, _ in files)
        size = size or _common_side(paths)
        read = partial(_read, paths=paths, size=size, upright=upright)
        labels = np.array([label for _, label in files], np.int64)
        found[split] = Source(labels, names, size, seed, read, paths.__getitem__)
    return found


def _plain_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _pictures(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    return sorted(entry.path for entry in entries if entry.name.lower().endswith(_SUFFIXES))


def _common_side(paths: Sequence[str]) -> int:
    """Return the median shorter side of up to 100 pictures, 256 at most."""
    from PIL import Image

    sides = []
    for path in paths[:: -(-len(paths) // 100)]:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
                sides.append(min(picture.size))
        except Exception:  # named later, when it is read in earnest
            continue
    return min(256, max(16, int(np.median(sides)))) if sides else 256


def _read(index: int, paths: Sequence[str], size: int, upright: bool) -> Picture:
    """Return the centre square of a picture whose shorter side has been made `size` pixels."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings(action="ignore"), Image.open(paths[index]) as opened:  # odd EXIF and palettes
        opened.draft("RGB", (2 * size, 2 * size))  # libjpeg leaves out detail that would be averaged away
        picture = ImageOps.exif_transpose(opened) if upright else opened
        picture = picture.convert("RGB")
        wide, high = picture.size
        scale = size / min(wide, high)
        if scale != 1:
            wide, high = max(size, round(wide * scale)), max(size, round(high * scale))
            picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        return np.asarray(picture.crop((left, top, left + size, top + size)))


def subset(source: Source, kept: Ints) -> Source:
    """Return the source with the pictures `kept` alone, in that order."""
    return source._replace(
        labels=source.labels[kept],
        picture=partial(_through, call=source.picture, kept=kept),
        name_of=partial(_through, call=source.name_of, kept=kept),
    )


def _through(index: int, call: Callable[[int], Any], kept: Ints) -> Any:
    return call(int(kept[index]))
