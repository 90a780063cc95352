"""What a report was made with: commit, lock, code and versions, for its reproducibility record."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crelu_models.tables import PAPER
from sweeps.experiment.code_fingerprint import code_fingerprint

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"


@cache
def provenance() -> dict[str, Any]:
    """Return commit, changed files, the lock's SHA-256, the code's fingerprint, versions; "" for what is not there."""
    commit, changed = git_state(ROOT)
    return {
        "commit": commit,
        "changed": changed,
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest() if LOCK.is_file() else "",
        "code": code_fingerprint(*PAPER.values()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "scipy", "pyarrow")},
    }


def git_state(folder: Path) -> tuple[str, list[str]]:
    """Return the commit that `folder` is at and the files changed since; nothing where git does not know it."""
    if not (folder / ".git").exists():
        return "", []
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, [line[3:] for line in _git(folder, "status", "--porcelain").splitlines()]
    except (OSError, subprocess.SubprocessError):
        return "", []


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.rstrip("\n")
