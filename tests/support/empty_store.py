"""MLflow's store as a SQLite file that nobody has used, made once for all processes of the tests."""

from __future__ import annotations

import fcntl
import os
import warnings
from pathlib import Path

import pytest

from sweeps.tracking.sqlite_store import prepare


def empty_store(factory: pytest.TempPathFactory) -> Path:
    """Return the store: making it takes seconds, copying it none, so one of pytest-xdist's workers makes it for all."""
    base = factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty.db"
    with path.with_suffix(".lock").open("w") as lock, warnings.catch_warnings():
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            warnings.simplefilter("ignore")  # pytest sets its own filters anew for each test
            prepare(path, pytest.fail)
    return path
