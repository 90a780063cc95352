"""Files of reports, which a reader may open while they are written."""

from __future__ import annotations

from pathlib import Path

from crelu_data.storage import full_disk_named


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, with its folder; a reader sees the old content or the new one, and never a part."""
    with full_disk_named(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        part.replace(path)
