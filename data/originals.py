"""Originals of a prepared set: their names and sizes, by which a folder that has changed since is known."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from crelu_data.datasets import stem
from crelu_data.folders import shown

_EXAMPLES = 3


class Originals(NamedTuple):
    """Folder of the originals, and the size of each by its path below the folder."""

    root: str
    sizes: Mapping[str, int]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the list; the folder's own name is no part of it."""
        lines = sorted(f"{name}\0{size}\n" for name, size in self.sizes.items())
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def originals_path(name: str, where: Path) -> Path:
    """Return the path of the list of a data set's originals."""
    return where / f"{stem(name)}-originals.json.gz"


def write_originals(path: Path, originals: Originals) -> None:
    """Write the list atomically."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        content = json.dumps({"root": originals.root, "sizes": dict(originals.sizes)})  # in ASCII
        file.write(gzip.compress(content.encode(), mtime=0))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_originals(path: Path) -> Originals | None:
    """Return the list, None where it is missing or damaged: the sidecar's digest decides, the list only explains."""
    try:
        value = json.loads(gzip.decompress(path.read_bytes()))
        return Originals(str(value["root"]), {str(name): int(size) for name, size in value["sizes"].items()})
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zlib.error):
        return None


def difference(old: Originals, new: Originals) -> str:
    """Return what has changed between two lists: how many are new, gone, or of another size, with examples."""
    new_names = sorted(new.sizes.keys() - old.sizes.keys())
    gone = sorted(old.sizes.keys() - new.sizes.keys())
    other = sorted(name for name in old.sizes.keys() & new.sizes.keys() if old.sizes[name] != new.sizes[name])
    parts = []
    for names, what in ((new_names, "new"), (gone, "gone"), (other, "of another size")):
        if names:
            examples = ", ".join(map(shown, names[:_EXAMPLES])) + (", ..." if len(names) > _EXAMPLES else "")
            parts.append(f"{len(names):,} {what} ({examples})")
    return ", ".join(parts)
