"""Changes of originals since a set was prepared from them, and splits that it lacks, as a sentence."""

from __future__ import annotations

from pathlib import Path

from crelu_data.datasets import SPLITS, beton_path, fresh_command, prepare_command, read_sidecar
from crelu_data.folders import shown
from crelu_data.originals import difference, originals_path, read_originals
from crelu_data.sources import originals_of, whole_splits


def check_unchanged(name: str, where: Path, origin: Path | None = None) -> None:
    """Raise ValueError where the originals of a prepared set have changed, or its splits are of different originals.

    Originals that are not on this machine are not asked for, nor those of a set that was prepared without a list.
    """
    paths = [beton_path(name, split, where).with_suffix(".json") for split in SPLITS]
    sidecars = [read_sidecar(path) for path in paths if path.exists()]
    if not sidecars:
        return
    first = sidecars[0]
    command = fresh_command(first, where, origin)
    if len({(each.originals, each.seed, each.size, each.class_names) for each in sidecars}) > 1:
        raise ValueError(
            f"the splits of {shown(name)} in {shown(str(where))} are not of one preparation, so a picture may be in "
            f"two of them; {command} writes them again"
        )
    present = originals_of(name, origin, where) if first.originals else None
    if present is None or present.digest == first.originals:
        return
    listed = read_originals(originals_path(name, where))
    changes = difference(listed, present) if listed is not None and listed.digest == first.originals else ""
    raise ValueError(
        f"{shown(present.root)} has changed since {shown(name)} was prepared{f': {changes}' if changes else ''}; "
        f"{command} prepares it as it is now"
    )


def check_whole(name: str, where: Path) -> None:
    """Raise ValueError where a prepared set lacks a split: its preparation was interrupted."""
    paths = {split: beton_path(name, split, where).with_suffix(".json") for split in SPLITS}
    sidecars = {split: read_sidecar(path) for split, path in paths.items() if path.exists()}
    lacking = sorted(whole_splits(name, where, sidecars) - sidecars.keys())
    if sidecars and lacking:
        raise ValueError(
            f"{shown(name)} in {shown(str(where))} has no {' and no '.join(lacking)} split, since its preparation was "
            f"interrupted: {prepare_command(name, where)}"
        )
