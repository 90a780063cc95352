"""Availability of a sweep's pictures before anything starts: whether they are complete, and how they are fetched."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from crelu_data import beton
from crelu_data.changes import check_unchanged, check_whole
from crelu_data.datasets import (
    SPLITS,
    DataSet,
    absolute_folder,
    beton_path,
    canonical,
    check_data_dir,
    counted,
    dataset,
    prepare_command,
    read_sidecar,
    remedy,
    view_side,
)
from crelu_data.folders import check_folder
from crelu_data.storage import Progress, no_progress

if TYPE_CHECKING:
    from crelu_data.sources import Source

# What `listed_once` has listed so far, by name of the data set and data folder; None outside of it.
_LISTED: ContextVar[dict[tuple[str, Path], dict[str, Source]] | None] = ContextVar("listed", default=None)


class NotPreparedError(ValueError):
    """A data set that one prepares by a command of its own is not there."""


def fingerprint(name: str, where: Path) -> str:
    """Return the content fingerprints of a data set's files as one; ValueError where a file is missing."""
    return ";".join(read_sidecar(path.with_suffix(".json")).fingerprint for path in _files(name, where))


def fingerprints(names: Iterable[str], where: Path) -> dict[str, str]:
    """Return the content fingerprint of each data set that is there."""
    known = {}
    for name in names:
        with contextlib.suppress(ValueError, OSError):
            known[name] = fingerprint(name, where)
    return known


def _files(name: str, where: Path) -> list[Path]:
    """Return the files a data set needs; ValueError where it was never prepared."""
    return [beton_path(name, split, where) for split in ("train", dataset(name, where).final)]


class _StopRequestedError(Exception):
    """The caller asked to stop while it waited for pictures."""


def fetch_dataset(
    name: str, where: str, source: str, stop: Callable[[], bool] = lambda: False, wanted: str = ""
) -> bool:
    """Bring a data set to this machine where it is not there; False where `stop()` ended it.

    Pictures come from `source`; embedded ones are made here. Pictures of another fingerprint than `wanted` ("": any)
    are replaced where the source has the wanted ones; a trial that has the old files open goes on with them. `stop` is
    called all the while, as a sign of life. Without a source nothing is fetched, and opening the data set reports what
    is missing. ValueError and OSError as in crelu_data.transfer.pull.
    """
    embedded = name.partition(":")[0] == "synthetic"
    if not (source or embedded):
        return True
    present = _have(name, Path(where), (".beton", ".json"))
    if present and (embedded or not wanted or _holds(name, Path(where), wanted)):
        return True

    def alive() -> None:
        if stop():
            raise _StopRequestedError

    try:
        if embedded:
            from crelu_data.write import prepare

            prepare(name, Path(where), workers=1)
        else:
            from crelu_data.transfer import pull

            fresh = bool(wanted) and _source_holds(name, Path(where), source, wanted)
            if fresh or not present:
                pull(source, Path(where), [name], fresh=fresh, alive=alive)
    except _StopRequestedError:
        return False
    return True


def _source_holds(name: str, where: Path, source: str, wanted: str) -> bool:
    """Return whether a source has a data set with this fingerprint; it may have none of that name."""
    from crelu_data.transfer import NotThereError, source_fingerprint

    with contextlib.suppress(NotThereError):
        return source_fingerprint(source, name, where) == wanted
    return False


def _holds(name: str, where: Path, wanted: str) -> bool:
    """Return whether the files of a data set have this fingerprint, and each is the one its sidecar tells of."""
    try:
        sidecars = [beton.read_pair(path)[0] for path in _files(name, where)]
    except ValueError:
        return False
    return ";".join(sidecar.fingerprint for sidecar in sidecars) == wanted


def _have(name: str, where: Path, suffixes: Iterable[str]) -> bool:
    """Return whether files of a data set with these suffixes are there."""
    try:
        return all(path.with_suffix(suffix).exists() for path in _files(name, where) for suffix in suffixes)
    except ValueError:
        return False


def _pull_if_missing(
    name: str, where: Path, source: str, pictures: bool, tell: Callable[[str], None], progress: Progress
) -> None:
    """Bring a data set, or its sidecars alone, from its source to the driver."""
    if not source or name.startswith("synthetic") or (pictures and _have(name, where, (".beton", ".json"))):
        return
    from crelu_data.transfer import NotThereError, pull

    tell(f"pulling {name} from {source} to {where}" if pictures else f"reading what {source} has of {name}")
    try:
        pull(source, where, [name], pictures=pictures, progress=progress)
    except (NotThereError, OSError) as error:
        # The workers may have the pictures already, for instance on a shared disk.
        if pictures or not _have(name, where, (".json",)):
            raise
        tell(f"{error}; what {where} says of {name} is taken")


def ensure_dataset(
    name: str,
    where: Path,
    tell: Callable[[str], None],
    source: str = "",
    pictures: bool = True,
    progress: Progress = no_progress,
) -> DataSet:
    """Return the facts of a data set that is there and whole; embedded pictures and folders are made on the way.

    From a `source` it is pulled. Without `pictures` its sidecars are enough: the workers of a cluster pull for
    themselves. They are read at each call, since the source may have got other pictures. ValueError says what was
    looked for, what was found, and the command that prepares it.
    """
    kind = name.partition(":")[0]
    _pull_if_missing(name, where, source, pictures, tell, progress)
    if source and not pictures and kind != "synthetic":
        _check_pictures(name, where)
        return dataset(name, where)
    try:
        missing = [path for path in _files(name, where) if not path.exists()]
    except ValueError:
        missing = [beton_path(name, "train", where)]
    if missing and kind in ("synthetic", "folder"):
        from crelu_data.write import prepare

        tell(f"preparing {name} in {where}")
        prepare(name, where, progress=progress)
    elif missing:
        raise NotPreparedError(missing_message(name, missing, where))
    _check_pictures(name, where)
    return dataset(name, where)


def check_present(name: str, where: Path, source: str = "") -> None:
    """Raise ValueError where a data set is not there and could not come: at once, before anything is read or made."""
    check_data_dir(where)
    kind, _, folder = name.partition(":")
    if kind == "folder" and not folder:
        raise ValueError("folder: is followed by a path, as in folder:/path/to/pictures")
    if kind == "folder":
        if not source and not _have(name, where, (".beton",)):
            check_folder(absolute_folder(folder))
        return
    split = dataset(name).final
    missing = [path for path in (beton_path(name, part, where) for part in ("train", split)) if not path.exists()]
    if missing and not source and kind != "synthetic":
        raise NotPreparedError(missing_message(name, missing, where))


def check_available(name: str, where: Path, source: str = "", pictures: bool = True) -> None:
    """Raise ValueError where `ensure_dataset` would for want of pictures or a damaged file; nothing is written."""
    check_present(name, where, source)
    kind = name.partition(":")[0]
    present = _have(name, where, (".beton", ".json") if pictures or not source else (".json",))
    if present:
        _check_pictures(name, where)
    if source and kind != "synthetic" and not (present and pictures):
        from crelu_data.transfer import NotThereError, check_source

        try:
            check_source(source, [name], where)
        except (NotThereError, OSError):
            if pictures or not present:
                raise
    elif kind == "folder" and not present:
        _originals(name, where)


@contextlib.contextmanager
def listed_once() -> Iterator[None]:
    """List the originals of each data set at most once inside: a folder of a million pictures takes its time."""
    token = _LISTED.set({})
    try:
        yield
    finally:
        _LISTED.reset(token)


def _originals(name: str, where: Path) -> dict[str, Source]:
    """Return the originals of a data set by split, as `prepare` would take them without options."""
    from crelu_data.sources import sources

    listed = _LISTED.get()
    if listed is None:
        return sources(name, None, where, None, 0)
    if (name, where) not in listed:
        listed[name, where] = sources(name, None, where, None, 0)
    return listed[name, where]


def expected_pictures(name: str, where: Path) -> tuple[DataSet, tuple[int, ...]]:
    """Return the facts of a data set and the training pictures of each class, also of one that is made on the way.

    ValueError for a data set that is not there and is not made on the way.
    """
    if name.partition(":")[0] not in ("synthetic", "folder") or _have(name, where, (".json",)):
        sidecar = read_sidecar(beton_path(name, "train", where).with_suffix(".json"))
        return dataset(name, where), sidecar.label_counts
    splits = _originals(name, where)
    train = splits["train"]
    final = "test" if "test" in splits else "val"
    counts = {split: len(source.labels) for split, source in splits.items()}
    held_out = max(len(train.labels) // 5, int(name.startswith("synthetic")))
    facts = DataSet(canonical(name), len(train.class_names), train.size, view_side(train.size), counts, final, held_out)
    return facts, tuple(int((train.labels == label).sum()) for label in range(facts.classes))


# Files up to this size are read through before a sweep starts (a second or so); larger ones are checked picture by
# picture while they are trained on.
READ_THROUGH = 1 << 30


def _check_pictures(name: str, where: Path) -> None:
    """Raise ValueError where a file is damaged, or a folder is not the one that was prepared."""
    check_integrity(name, where)
    if name.startswith("folder:"):
        check_whole(name, where)
        check_unchanged(name, where)


def check_integrity(name: str, where: Path) -> None:
    """Raise ValueError where a file of the data set is not the one its sidecar tells of."""
    for path in filter(Path.exists, _files(name, where)):
        sidecar = read_sidecar(path.with_suffix(".json"))
        index = beton.read_index(path)
        same = index.digest == sidecar.index
        if same and sidecar.file_bytes <= READ_THROUGH:
            same = beton.fingerprint(index) == sidecar.fingerprint
        if not same:
            raise ValueError(f"{path} is not the file its sidecar tells of, or is damaged; {remedy(sidecar, where)}")


def missing_message(name: str, missing: list[Path], where: Path) -> str:
    """Return the sentence for data that are not there: looked for, found, and what to do."""
    source = os.environ.get("IMAGENET_DIR", "") if name.startswith("imagenet") else ""
    known = "nothing"
    if source:
        folders = glob.glob(f"{source}/train/*/")
        pictures = sum(len(os.listdir(folder)) for folder in folders[:2000])
        classes = counted(len(folders), "class", "classes")
        held = f"in $IMAGENET_DIR {classes} with {counted(pictures, 'picture')}"
        known = held if folders else f"no {source}/train/*/"
    present = [path.name for split in SPLITS if (path := beton_path(name, split, where)).exists()]
    known = ", ".join(present) or known
    return (
        f"{name} is not prepared: looked for {' and '.join(path.name for path in missing)} in {where}, found {known}. "
        f"Run: {prepare_command(name, where)}"
    )
