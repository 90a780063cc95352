"""Whether a sweep's pictures are there and whole, before anything starts; and the sentence where they are not."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from data import beton
from data.datasets import SPLITS, DataSet, beton_path, dataset, read_sidecar


def fingerprints_of(names: Iterable[str], where: Path) -> dict[str, str]:
    """Return the content fingerprint of each data set that is there."""
    found = {}
    for name in names:
        try:
            paths = _files(name, where)
            found[name] = ";".join(read_sidecar(path.with_suffix(".json")).fingerprint for path in paths)
        except ValueError:
            continue
    return found


def _files(name: str, where: Path) -> list[Path]:
    """Return the files a data set needs; ValueError where it was never prepared."""
    return [beton_path(name, split, where) for split in ("train", dataset(name, where).final)]


def ready(name: str, where: Path, tell: Callable[[str], None]) -> DataSet:
    """Return the facts of a data set that is there and whole; embedded pictures and folders are made on the way.

    ValueError says what was looked for, what was found, and the command that prepares it.
    """
    kind = name.partition(":")[0]
    try:
        missing = [path for path in _files(name, where) if not path.exists()]
    except ValueError:
        missing = [beton_path(name, "train", where)]
    if missing and kind in ("synthetic", "folder"):
        from data.write import prepare

        tell(f"preparing {name} in {where}")
        prepare(name, where)
    elif missing:
        raise ValueError(absent(name, missing, where))
    _whole(name, where)
    return dataset(name, where)


# Files up to this size are read through before a sweep starts (a second or so); larger ones are checked picture by
# picture while they are trained on.
READ_THROUGH = 1 << 30


def _whole(name: str, where: Path) -> None:
    """Raise ValueError where a file of the data set is not the one its sidecar tells of."""
    for path in _files(name, where):
        sidecar, index = read_sidecar(path.with_suffix(".json")), beton.read_index(path)
        same = index.digest == sidecar.index
        if same and sidecar.file_bytes <= READ_THROUGH:
            same = beton.fingerprint(index) == sidecar.fingerprint
        if not same:
            raise ValueError(
                f"{path} is not the file its sidecar tells of, or is damaged; "
                f"to make it anew: python -m data prepare {name} --fresh --data-dir {where}"
            )


def absent(name: str, missing: list[Path], where: Path) -> str:
    """Return the sentence for data that are not there: looked for, found, and what to do."""
    source = os.environ.get("IMAGENET_DIR", "") if name.startswith("imagenet") else ""
    seen = "nothing"
    if source:
        folders = glob.glob(f"{source}/train/*/")
        pictures = sum(len(os.listdir(folder)) for folder in folders[:2000])
        seen = (
            f"in $IMAGENET_DIR {len(folders)} classes with {pictures} pictures" if folders else f"no {source}/train/*/"
        )
    found = [path.name for split in SPLITS if (path := beton_path(name, split, where)).exists()]
    seen = ", ".join(found) or seen
    option = f" --source {source or 'IMAGENET_DIR'}" if name.startswith("imagenet") else ""
    return (
        f"{name} is not prepared: looked for {' and '.join(path.name for path in missing)} in {where}, found {seen}. "
        f"Run: python -m data prepare {name}{option} --data-dir {where}"
    )
