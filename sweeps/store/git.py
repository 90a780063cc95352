"""Git state of a folder: its commit, and the files changed since."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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


def page_source() -> dict[str, str]:
    """Return as tags of MLflow's the file that this process runs, and the commit of its repository, as far as known.

    A notebook's file is not known: its repository is that of the folder in which it works.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    path = Path(file).resolve() if file else None
    start = path.parent if path is not None else Path.cwd()
    top = next((folder for folder in (start, *start.parents) if (folder / ".git").exists()), start)
    commit, changed = git_state(top)
    tags = {"mlflow.source.type": "LOCAL"} | ({"mlflow.source.name": path.name} if path is not None else {})
    return tags | ({"mlflow.source.git.commit": commit, "git.dirty": str(bool(changed)).lower()} if commit else {})
