"""Files of finished trials, compared with the SHA-256 in their results; notes of those that differ.

A trial with a damaged file counts as failed, in the table, the report and MLflow, until it is trained anew by
--retry-failed or the file is restored. Its result stays on the ledger, since later trials were planned by it.

    damaged/KEY.json   the file that differed when it was last read
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from contextlib import suppress

from sweeps.store.ledger import Json, Ledger

HISTORY = "history.json"


def damage(ledger: Ledger, key: str, result: Json, names: Collection[str] | None = None) -> str:
    """Return the first of a result's files (of `names`, if any) that is not what was written, or "".

    A file without a digest, which older results have, is taken as it is, a history where it can be read.
    """
    files: dict[str, str] = result.get("files", {})
    for name, digest in files.items():
        if names is not None and name not in names:
            continue
        path = f"trials/{key}/{name}"
        if digest:
            actual = ledger.sha256(path)
            if actual is None:
                return f"{path} is missing"
            if actual != digest:
                return f"{path} is damaged: its SHA-256 is not the one in the trial's result"
        elif name == HISTORY and not _is_history(ledger.read(path)):
            return f"{path} is damaged: it is no list of epochs"
    return ""


def checked(ledger: Ledger, key: str, result: Json, names: Collection[str] | None = None) -> str:
    """Return the damage of a trial's files, and note it on the ledger."""
    why = damage(ledger, key, result, names)
    if why:
        note_damage(ledger, key, why)
    return why


def note_damage(ledger: Ledger, key: str, why: str) -> None:
    """Note on the ledger which file of a trial is damaged."""
    with suppress(OSError):  # a disk that is read only tells it each time anew
        ledger.write_json(f"damaged/{key}.json", {"why": why, "time": time.time()})


def lost_files(ledger: Ledger, results: Mapping[str, Json]) -> dict[str, str]:
    """Return a file of each result that is missing or of another size than was written, by key; no file is read.

    A file without a digest, which older results have, is taken as it is; one without a size only has to be there.
    """
    lost: dict[str, str] = {}
    present = ledger.file_sizes(results)
    for key, result in results.items():
        digests, sizes = result.get("files", {}), result.get("sizes", {})
        for name in (name for name, digest in digests.items() if digest):
            size = present[key].get(name)
            wanted = sizes.get(name, size) if isinstance(sizes, dict) else size
            if size is None:
                lost[key] = f"trials/{key}/{name} is missing"
            elif size != wanted:
                lost[key] = f"trials/{key}/{name} is damaged: its size is {size} B, not {wanted}"
    return lost


def noted_damage(ledger: Ledger) -> dict[str, str]:
    """Return which file of each trial is noted as damaged, by key; a note on a file that is whole again is deleted."""
    damaged: dict[str, str] = {}
    for name in ledger.names("damaged"):
        key = name.removesuffix(".json")
        result = ledger.result(key)
        noted = str((ledger.read_json(f"damaged/{name}") or {}).get("why", ""))
        why = ""
        if result is not None:
            files = [file for file in result.get("files", {}) if noted.startswith(f"trials/{key}/{file} is ")]
            why = damage(ledger, key, result, files)
        if why:
            damaged[key] = why
        else:
            with suppress(OSError):
                ledger.delete(f"damaged/{name}")
    return damaged


def _is_history(content: bytes | None) -> bool:
    """Tell whether a history can be read; one that is not there is of a result that has none."""
    if content is None:
        return True
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
