"""Facts about data sets without their pictures: sizes, splits, folds, orders and sidecars."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crelu_models.command_line import python_command

Ints = NDArray[np.int64]
Colour = tuple[float, float, float]

SIDECAR_VERSION = 1
RAW_UP_TO = 64  # sides up to this are stored as pixels: JPEG would save few bytes and cost time
SPLITS = ("train", "val", "test")
# Constants of splitmix64 (Steele, Lea and Flood 2014): increment, first and second factor.
SPLITMIX64 = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class DataSet:
    """Facts of one data set.

    `name` is an argument of `dataset`, `size` the stored side and `crop` the side of a training view in pixels,
    `final` the split whose error is reported, `holdout` the number of pictures held out from train for the search.
    """

    name: str
    classes: int
    size: int
    crop: int
    splits: Mapping[str, int] = field(hash=False)
    final: str
    holdout: int


# CIFAR: Krizhevsky 2009; its 10,000 hold-out pictures are Goodfellow et al. 2013.
# ImageNet: ILSVRC 2012, 256 stored and 224 seen (Krizhevsky et al. 2012); 50 hold-out pictures a class.
CIFAR10 = DataSet("cifar10", 10, 32, 32, {"train": 50_000, "test": 10_000}, "test", 10_000)
CIFAR100 = replace(CIFAR10, name="cifar100", classes=100)
IMAGENET = DataSet("imagenet", 1000, 256, 224, {"train": 1_281_167, "val": 50_000}, "val", 50_000)
# Clutter and contrast are in percent.
SYNTHETIC = {"size": 32, "classes": 10, "train": 4000, "test": 1000, "seed": 0, "clutter": 45, "contrast": 15}
_KNOWN = "synthetic, synthetic:size=72,train=3000, cifar10, cifar100, imagenet, imagenet:size=64, folder:PATH"


def dataset(name: str, where: Path | None = None) -> DataSet:
    """Return a data set by name.

    With the folder `where`, counts and classes are those of its prepared files, which may be a part of ImageNet or a
    small tree in CIFAR's layout. The facts of `folder:PATH` exist only there (default: `data_dir(None)`). ValueError
    for an unknown name or field, or a folder that is not prepared.
    """
    kind, _, rest = name.partition(":")
    if kind == "folder" and rest:
        return _folder(name, where or data_dir(None))
    facts = {"cifar10": CIFAR10, "cifar100": CIFAR100, "imagenet": IMAGENET}.get(kind)
    if kind == "synthetic":
        facts = _synthetic(_options(name, SYNTHETIC))
    elif kind == "imagenet" and rest:
        facts = _imagenet(_options(name, {"size": IMAGENET.size})["size"])
    elif facts is None or rest:
        near = get_close_matches(kind, ("synthetic", "cifar10", "cifar100", "imagenet", "folder"), 1)
        raise ValueError(f"unknown data set {name!r}{f' (nearest: {near[0]})' if near else ''}; use one of {_KNOWN}")
    return facts if where is None else _as_stored(facts, where)


def synthetic_options(name: str) -> dict[str, int]:
    """Return the fields of a `synthetic[:...]` name, such as size (side in pixels) and classes; or raise ValueError."""
    return _options(name, SYNTHETIC)


def canonical(name: str) -> str:
    """Return the canonical spelling of a name: without default fields, and with a folder's absolute path."""
    kind, _, rest = name.partition(":")
    return f"folder:{absolute_folder(rest)}" if kind == "folder" and rest else dataset(name).name


def absolute_folder(path: str) -> Path:
    """Return the absolute path of the folder in folder:PATH, without "..": all spellings of it are one data set."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def stem(name: str) -> str:
    """Return the data set's part of its file names: letters, digits, '-', '_' and '.' only."""
    kind, _, rest = canonical(name).partition(":")
    if kind == "folder":
        digest = hashlib.sha256(os.fsencode(rest)).hexdigest()[:6]
        return f"folder-{re.sub(r'[^A-Za-z0-9_.]+', '_', Path(rest).name) or 'root'}-{digest}"
    return re.sub(r"[:,]", "-", f"{kind}:{rest}" if rest else kind).replace("=", "")


def data_dir(flag: str | os.PathLike[str] | None) -> Path:
    """Return the absolute folder of the .beton files: the flag, else $CRELU_DATA, else one under ~/.cache."""
    folder = flag or os.environ.get("CRELU_DATA") or "~/.cache/crelu-sweeps/data"
    return Path(folder).expanduser().absolute()


def check_data_dir(where: Path) -> None:
    """Raise ValueError where the folder of the .beton files is something else."""
    if where.exists() and not where.is_dir():
        raise ValueError(f"{where} is no folder: say by --data-dir or $CRELU_DATA in which one the pictures lie")


def beton_path(name: str, split: str, where: Path) -> Path:
    """Return the path of a split's pictures; its sidecar has the suffix .json instead."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    return where / f"{stem(name)}-{split}.beton"


def view_side(size: int) -> int:
    """Return the side of a training view: a crop of a large picture, the whole of a small one."""
    return crop_of(size) if size > RAW_UP_TO else size


def crop_of(size: int) -> int:
    """Return the side of a training view: 7/8 of the stored side in steps of 8 (256 -> 224, 72 -> 64)."""
    return 8 * round(7 * size / 64)


def _options(name: str, defaults: Mapping[str, int]) -> dict[str, int]:
    kind, _, rest = name.partition(":")
    options = dict(defaults)
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in defaults or not value.isdecimal():
            allowed = ", ".join(f"{k}={v}" for k, v in defaults.items())
            raise ValueError(f"{part!r} in {name!r} is not one of {kind}'s fields with an integer: {allowed}")
        options[key] = int(value)
    for key, least in {"size": 16, "classes": 2, "train": 1, "test": 1}.items():
        if key in options and not least <= options[key] < 10**9:
            raise ValueError(f"{key}={options[key]} in {name!r} must be {least} or more and less than 10**9")
    for key in ("clutter", "contrast"):
        if key in options and not 1 <= options[key] <= 90:
            raise ValueError(f"{key}={options[key]} in {name!r} is a percentage from 1 to 90")
    return options


def _canonical(kind: str, options: Mapping[str, int], defaults: Mapping[str, int]) -> str:
    changed = ",".join(f"{key}={options[key]}" for key in defaults if options[key] != defaults[key])
    return f"{kind}:{changed}" if changed else kind


def _synthetic(options: Mapping[str, int]) -> DataSet:
    size = options["size"]
    train = options["train"]
    return DataSet(
        name=_canonical("synthetic", options, SYNTHETIC),
        classes=options["classes"],
        size=size,
        crop=view_side(size),
        splits={"train": train, "test": options["test"]},
        final="test",
        holdout=train // 5,
    )


def _imagenet(size: int) -> DataSet:
    name = _canonical("imagenet", {"size": size}, {"size": IMAGENET.size})
    return replace(IMAGENET, name=name, size=size, crop=crop_of(size))


def _folder(name: str, where: Path) -> DataSet:
    paths = {split: beton_path(name, split, where).with_suffix(".json") for split in SPLITS}
    sidecars = {split: read_sidecar(path) for split, path in paths.items() if path.exists()}
    final = next((split for split in ("test", "val") if split in sidecars), None)
    recorded = recorded_splits(sidecars.values())
    if "train" not in sidecars or final is None or not recorded <= sidecars.keys():
        prepared = ", ".join(sidecars) or "none"
        expected = " and -".join(sorted(recorded, key=SPLITS.index)) or "train and -test or -val"
        raise ValueError(
            f"{name!r} is not prepared in {where} (expected {stem(name)}-{expected}, "
            f"found {prepared}): {prepare_command(name, where)}"
        )
    train = sidecars["train"]
    counts = {split: sidecar.count for split, sidecar in sidecars.items()}
    return DataSet(canonical(name), train.classes, train.size, view_side(train.size), counts, final, train.count // 5)


def _as_stored(facts: DataSet, where: Path) -> DataSet:
    counts = dict(facts.splits)
    classes = facts.classes
    for split in facts.splits:
        path = beton_path(facts.name, split, where).with_suffix(".json")
        if path.exists():
            sidecar = read_sidecar(path)
            counts[split] = sidecar.count
            classes = sidecar.classes
    holdout = max(1, facts.holdout * counts["train"] // facts.splits["train"])
    return replace(facts, classes=classes, splits=counts, holdout=holdout)


# Orders and folds


def sample_key(*parts: int | str) -> int:
    """Return a 63-bit key of integers and words; different tuples give unrelated keys (BLAKE2b)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_permutation(key: int, count: int) -> Ints:
    """Return a permutation of 0..count-1 from sorted splitmix64 keys, the same in every version of NumPy."""
    golden, first, second = map(np.uint64, SPLITMIX64)
    z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * golden
    z = (z ^ (z >> np.uint64(30))) * first
    z = (z ^ (z >> np.uint64(27))) * second
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable").astype(np.int64)


def split_batches(order: Ints, batch: int) -> list[Ints]:
    """Return the records of each batch in turn; the last may be short."""
    return [order[first : first + batch] for first in range(0, len(order), batch)]


def order(seed: int, epoch: int, indices: Ints) -> Ints:
    """Return the indices in the order of one epoch, which depends on the arguments alone.

    Seed and epoch are hashed, so that no seed repeats another seed's orders; FFCV adds the two.
    """
    return np.asarray(indices, np.int64)[keyed_permutation(sample_key("order", seed, epoch), len(indices))]


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number of things: 1 picture, 2 pictures, 3 classes."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _possible(least: int, most: int) -> str:
    """Return which numbers from `least` to `most` are possible, as a sentence says it."""
    if most <= least:
        return "none is possible" if most < least else f"{least} {'is' if least == 1 else 'are'} possible"
    return f"from {least} to {most} are possible"


def check_holdout(label_counts: Sequence[int], count: int) -> None:
    """Raise ValueError where `count` pictures cannot be held out and one of each class be left to train on."""
    total = sum(label_counts)
    most = total - sum(size > 0 for size in label_counts)
    if not 1 <= count <= most:
        raise ValueError(
            f"a hold-out of {count} of {counted(total, 'picture')}: {_possible(1, most)}, "
            f"since one of each of {counted(total - most, 'class', 'classes')} stays to train on"
        )


def check_folds(label_counts: Sequence[int], k: int) -> None:
    """Raise ValueError where k folds of so many pictures of each class cannot be: a class's only one is in none."""
    total = sum(label_counts)
    most = sum(size for size in label_counts if size > 1)
    if not 2 <= k <= most:
        raise ValueError(
            f"{counted(k, 'fold')} of {counted(total, 'picture')}: {_possible(2, most)}"
            + f", since of {counted(total - most, 'class', 'classes')} the only picture stays to train on"
            * (most < total)
        )


def holdout(labels: Ints, count: int, seed: int) -> tuple[Ints, Ints]:
    """Return 0..n-1 as (train, held out), both ascending, with `count` held out and each class in proportion.

    Of each class at least one picture stays in train; ValueError where that is impossible.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    check_holdout(sizes.tolist(), count)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(quota - exact, kind="stable")  # the largest first
    while missing := count - int(quota.sum()):
        quota[by_remainder[quota[by_remainder] < sizes[by_remainder] - 1][:missing]] += 1
    members = [
        _shuffled(labels, label, sample_key("holdout", seed, int(label)))[:size]
        for label, size in zip(classes, quota, strict=True)
    ]
    return _partition(len(labels), np.concatenate(members))


def folds(labels: Ints, k: int, seed: int) -> list[tuple[Ints, Ints]]:
    """Return k (train, validation) pairs of 0..n-1; sizes and class counts of validations differ by at most one.

    A class's only picture stays in train; each other picture is in one validation. ValueError where a fold would be
    empty.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    check_folds(sizes.tolist(), k)
    shuffled = np.concatenate([_shuffled(labels, c, sample_key("folds", seed, int(c))) for c in classes[sizes > 1]])
    return [_partition(len(labels), shuffled[fold::k]) for fold in range(k)]


def _shuffled(labels: Ints, label: int, key: int) -> Ints:
    members = np.flatnonzero(labels == label)
    return members[keyed_permutation(key, len(members))]


def _partition(count: int, selected: Ints) -> tuple[Ints, Ints]:
    rest = np.ones(count, bool)
    rest[selected] = False
    return np.flatnonzero(rest).astype(np.int64), np.sort(selected).astype(np.int64)


# Sidecars


@dataclass(frozen=True)
class Sidecar:
    """Facts of a .beton file, computed from it when it was written.

    Colours are R, G, B of pixels in 0..1: mean, std and the eigenvalues of the colour covariance; column k of
    `eigenvectors` belongs to eigenvalue k. `fingerprint` is the SHA-256 of the stored pictures in order and the
    labels, `index` that of the file's tables. `measured` counts the pictures behind the statistics, `skipped` the
    unreadable ones left out. `originals` is the SHA-256 of the list of the originals' names and sizes, empty where
    there is none; `partial` marks a part of a published set; `splits` names all splits of the preparation.
    `read_sidecar` checks every field, because a sidecar may come from anywhere; one of an earlier preparation may lack
    the last three.
    """

    name: str
    split: str
    classes: int
    class_names: tuple[str, ...]
    count: int
    size: int
    mode: str
    quality: int
    seed: int
    mean: Colour
    std: Colour
    eigenvalues: Colour
    eigenvectors: tuple[Colour, ...]
    label_counts: tuple[int, ...]
    measured: int
    skipped: int
    writer: str
    fingerprint: str
    index: str
    file_bytes: int
    originals: str = ""
    partial: bool = False
    splits: tuple[str, ...] = ()
    version: int = SIDECAR_VERSION


def is_partial(sidecar: Sidecar) -> bool:
    """Return whether a file is a part of the published set of its name: marked as such, or of other counts."""
    if sidecar.name.partition(":")[0] not in ("cifar10", "cifar100", "imagenet"):
        return False
    facts = dataset(sidecar.name)
    counts = (sidecar.count + sidecar.skipped, sidecar.classes)
    return sidecar.partial or counts != (facts.splits.get(sidecar.split), facts.classes)


def recorded_splits(sidecars: Iterable[Sidecar]) -> set[str]:
    """Return the splits of the preparation that these sidecars are of; empty where they do not say so."""
    return {split for sidecar in sidecars for split in sidecar.splits}


def fresh_command(sidecar: Sidecar, where: Path, origin: Path | None = None) -> str:
    """Return the command that prepares a data set again with the same options."""
    options = ["--source", str(origin)] if origin is not None else []
    if sidecar.name.startswith("folder:"):
        options += ["--size", str(sidecar.size), *(["--seed", str(sidecar.seed)] if sidecar.seed else [])]
    options += ["--quality", str(sidecar.quality)] if sidecar.quality not in (0, 90) else []
    options += ["--partial"] if sidecar.partial else []
    return prepare_command(sidecar.name, where, "--fresh", *options)


def prepare_command(name: str, where: Path, *options: str) -> str:
    """Return the command that prepares a data set in a folder; that of ImageNet names the folder of its originals."""
    if name.startswith("imagenet") and "--source" not in options:
        options = (*options, "--source", os.environ.get("IMAGENET_DIR") or "IMAGENET_DIR")
    return python_command("crelu_data", "prepare", name, *options, "--data-dir", str(where))


def remedy(sidecar: Sidecar, where: Path) -> str:
    """Return how a damaged file is replaced, in words: it is prepared again, or pulled where the originals are not."""
    again = f"{fresh_command(sidecar, where)} writes it again"
    if sidecar.name.startswith("synthetic"):
        return again
    pulled = python_command("crelu_data", "pull", "SOURCE", sidecar.name, "--fresh", "--data-dir", str(where))
    return f"{again}; where the originals are not on this machine: {pulled}"


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write a sidecar atomically: readers see the old file, none, or the complete new one.

    ValueError for one that `read_sidecar` would refuse.
    """
    content = json.dumps(asdict(sidecar), indent=1, ensure_ascii=False).encode()
    sidecar_of(content, str(path))
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_sidecar(path: Path) -> Sidecar:
    """Read and check a sidecar; ValueError names the file and the fault, OSError is one of the disk."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {prepare_command('NAME', path.parent)} writes it") from None
    return sidecar_of(content, str(path))


def sidecar_of(content: bytes, name: str) -> Sidecar:
    """Return the sidecar in the content of a file; ValueError names the file and the fault."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read as JSON: {error}") from None
    try:
        return _sidecar(value)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name} is not a sidecar of version {SIDECAR_VERSION}: {error}") from None


_LATER = ("originals", "partial", "splits")  # fields that sidecars of an earlier preparation lack


def _sidecar(value: object) -> Sidecar:
    expected = {item.name: item.type for item in fields(Sidecar)}
    if not isinstance(value, dict) or {*value, *_LATER} != set(expected):
        raise ValueError(f"it must be an object with the fields {', '.join(expected)}")
    if value["version"] != SIDECAR_VERSION:
        raise ValueError(f"its version is {value['version']!r}")
    frozen = {key: _tuples(item) for key, item in value.items()}
    for key, item in frozen.items():
        if not _FITS[str(expected[key])](item):
            raise ValueError(f"{key} is {value[key]!r}, not a valid {expected[key]}")
    sidecar = Sidecar(**frozen)
    if sidecar.mode not in ("jpeg", "raw") or sidecar.split not in SPLITS:
        raise ValueError(f"mode {sidecar.mode!r} must be jpeg or raw, split {sidecar.split!r} one of {SPLITS}")
    if sidecar.splits and not {sidecar.split} <= {*sidecar.splits} <= {*SPLITS}:
        raise ValueError(f"splits {sidecar.splits!r} must be some of {SPLITS}, and {sidecar.split!r} among them")
    if not len(sidecar.class_names) == len(sidecar.label_counts) == sidecar.classes:
        raise ValueError(f"classes is {sidecar.classes}, but {len(sidecar.class_names)} are named")
    if sum(sidecar.label_counts) != sidecar.count or not sidecar.count or not sidecar.size:
        raise ValueError(f"count {sidecar.count} is not the sum of the label counts, or size is zero")
    if len(sidecar.eigenvectors) != 3 or min(sidecar.std) <= 0:
        raise ValueError("there must be three eigenvectors and std must be positive")
    return sidecar


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _each(kind: type, value: object) -> bool:
    return isinstance(value, tuple) and all(type(item) is kind for item in value)


def _colour(value: Any) -> bool:
    return _each(float, value) and len(value) == 3 and all(map(isfinite, value))


# Keyed by the annotations of Sidecar.
_FITS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int and value >= 0,
    "bool": lambda value: isinstance(value, bool),
    "tuple[str, ...]": lambda value: _each(str, value),
    "tuple[int, ...]": lambda value: _each(int, value) and min(value, default=0) >= 0,
    "Colour": _colour,
    "tuple[Colour, ...]": lambda value: isinstance(value, tuple) and all(map(_colour, value)),
}
