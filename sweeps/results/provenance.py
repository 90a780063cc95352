"""Provenance of a report: commit, lock, code and versions, for its reproducibility record."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sweeps.store.git import git_state
from sweeps.store.ledger import Json

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"


@cache
def provenance() -> Json:
    """Return commit, changed files, the lock's SHA-256, versions; "" for what is not there."""
    commit, changed = git_state(ROOT)
    return {
        "commit": commit,
        "changed": changed,
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest() if LOCK.is_file() else "",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "scipy", "pyarrow")},
    }


def shares(values: Iterable[str]) -> list[str]:
    """Return the values that occur, sorted; each with its number of trials unless all trials have the same."""
    counts = Counter(values)
    known = {value: number for value, number in sorted(counts.items()) if value}
    if len(known) == len(counts) == 1:
        return list(known)
    return [f"{value} ({number} {'trial' if number == 1 else 'trials'})" for value, number in known.items()]
