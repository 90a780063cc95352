"""Folders of classes: the pictures of each class, and a count of what is not taken."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from crelu_data.datasets import SPLITS, counted

# Suffixes that Pillow opens. They are listed here, so that another version of Pillow does not change a set.
SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".flc", ".fli", ".ftc",
    ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpeg", ".jpf", ".jpg", ".jpx", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm",
    ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
    ".xbm", ".xpm",
))  # fmt: skip
# Suffixes that Pillow knows and that are not taken: it cannot decode them by itself, has them run by another program,
# or (FITS) ignores the scale of their numbers.
REFUSED = frozenset((
    ".bufr", ".emf", ".eps", ".fit", ".fits", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".ps", ".wmf",
))  # fmt: skip
# Folders that systems and programs make beside the classes; so is each whose name begins with a dot.
JUNK = ("__macosx", "@eadir", "lost+found", "#recycle", "@recycle", "$recycle.bin", "system volume information")
_EXAMPLES = 5


class File(NamedTuple):
    """One original: its path, and its size in bytes (-1 where it cannot be asked for)."""

    path: str
    size: int


class Listing(NamedTuple):
    """Pictures of a folder by split and class, each sorted; `notes` say what was not taken."""

    root: Path
    files: Mapping[str, Mapping[str, tuple[File, ...]]]
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes: those with training pictures."""
        return tuple(sorted(self.files["train"]))

    @property
    def sizes(self) -> dict[str, int]:
        """Return the size of each picture by its path below the root."""
        return {
            os.path.relpath(file.path, self.root): file.size
            for classes in self.files.values()
            for files in classes.values()
            for file in files
        }


class _Tally:
    """Counts of what is not taken."""

    def __init__(self, deep: bool) -> None:
        self._deep = deep
        self.junk: set[str] = set()
        self.empty: set[str] = set()
        self.below = Counter[str]()
        self.suffixes = Counter[str]()
        self.beside = Counter[str]()
        self.hidden = 0
        self.special = 0

    def count_below(self, folder: str) -> int:
        """Return how many pictures a folder and those below it hold; 0 where that is not asked for."""
        count = 0
        for _, folders, names in os.walk(folder) if self._deep else ():
            folders[:] = [name for name in folders if not _is_junk(name)]
            count += sum(is_picture(name) and not name.startswith(".") for name in names)
        return count

    def notes(self) -> list[str]:
        """Return a sentence for each kind."""
        notes = []
        if self.junk:
            notes.append(f"left out by name, no class: {_some(sorted(self.junk))}")
        if self.empty:
            notes.append(f"left out, without pictures of its own: {_some(sorted(self.empty))}")
        for counts, noun, where in (
            (self.below, "picture", "in folders below a class"),
            (self.beside, "picture", "beside the folders that are taken"),
            (self.suffixes, "file", "with other suffixes than a picture's"),
        ):
            if counts:
                examples = _some([f"{name} ({count:,})" for name, count in counts.most_common()])
                notes.append(f"not taken, {counted(counts.total(), noun)} {where}: {examples}")
        if self.hidden:
            notes.append(f"not taken, {counted(self.hidden, 'picture')} named with a dot in front")
        if self.special:
            notes.append(f"not taken, {counted(self.special, 'pipe, socket or device', 'pipes, sockets or devices')}")
        return notes


def check_folder(root: Path) -> None:
    """Raise ValueError where there is no folder at all."""
    if not root.is_dir():
        raise ValueError(
            f"no folder {shown(str(root))}: name one that holds a folder of pictures for each class; a relative path "
            "is one below the folder in which the command is typed"
        )


def list_pictures(root: Path, folders: Mapping[str, Path], deep: bool = True) -> Listing:
    """Return the pictures of a folder, `folders` by split being itself or folders in it.

    Without `deep` no folder is entered whose pictures are not taken, so they are not counted.
    """
    tally = _Tally(deep)
    files = {split: _classes(root, folder, tally) for split, folder in folders.items()}
    if root not in folders.values():
        taken = {folder.name for folder in folders.values()}
        _count_beside(root, root, [entry for entry in _entries(root) if entry.name not in taken], tally)
    notes = tally.notes()
    if "val" in files and "test" in files:
        count = sum(map(len, files["val"].values()))
        notes.append(f"no sweep uses the {counted(count, 'picture')} of val/, for test/ is there too")
    return Listing(root, files, tuple(notes))


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits: train/ with val/ and test/ where they are, else the folder itself."""
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    return folders if "train" in folders else {"train": root}


def shown(name: str) -> str:
    """Return a name as a terminal can show it: bytes that are no text, and characters that move its cursor, escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _check_name(path: str) -> None:
    """Raise ValueError for a path that is not UTF-8: no sidecar could name it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of the folder {shown(path)} is not UTF-8: rename it") from None


def is_picture(name: str) -> bool:
    """Return whether a file is a picture by its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _classes(root: Path, folder: Path, tally: _Tally) -> dict[str, tuple[File, ...]]:
    """Return the pictures of each class in the folder of a split."""
    classes = {}
    loose = []
    for entry in _entries(folder):
        if not entry.is_dir():
            loose.append(entry)
        elif _is_junk(entry.name):
            tally.junk.add(os.path.relpath(entry.path, root))
        elif files := _pictures(root, Path(entry.path), tally):
            _check_name(entry.path)
            classes[entry.name] = files
        else:
            tally.empty.add(os.path.relpath(entry.path, root))
    _count_beside(root, folder, loose, tally)
    return classes


def _pictures(root: Path, folder: Path, tally: _Tally) -> tuple[File, ...]:
    """Return the pictures that lie in the folder of a class itself."""
    files = []
    for entry in _entries(folder):
        if entry.is_dir():
            if not _is_junk(entry.name) and (count := tally.count_below(entry.path)):
                tally.below[os.path.relpath(entry.path, root)] += count
        elif not is_picture(entry.name):
            if not entry.name.startswith("."):
                tally.suffixes[os.path.splitext(entry.name)[1].lower() or "none"] += 1
        elif entry.name.startswith("."):
            tally.hidden += 1
        elif not entry.is_file() and os.path.exists(entry.path):
            tally.special += 1  # opening a pipe would wait for ever
        else:
            files.append(File(entry.path, _size(entry)))
    return tuple(sorted(files))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nowhere: writing will name it
        return -1


def _count_beside(root: Path, folder: Path, entries: Iterable[os.DirEntry[str]], tally: _Tally) -> None:
    """Count the pictures that lie beside the classes, or in folders beside those of the splits."""
    for entry in entries:
        if entry.is_dir() and _is_junk(entry.name):
            tally.junk.add(os.path.relpath(entry.path, root))
        elif entry.is_dir():
            if count := tally.count_below(entry.path):
                tally.beside[f"{os.path.relpath(entry.path, root)}/"] += count
        elif is_picture(entry.name) and not entry.name.startswith("."):
            tally.beside["files in " + (os.path.relpath(folder, root) if folder != root else "the folder itself")] += 1


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _EXAMPLES
    return ", ".join(map(shown, names[:_EXAMPLES])) + (f" and {more:,} more" if more > 0 else "")
