"""Fixtures of the analysis jobs."""

import shutil
from pathlib import Path

import pytest

from sweeps.store.ledger import Ledger
from tests.support.analysis import fill


@pytest.fixture(scope="session")
def _filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "outputs"
    fill(Ledger(str(folder / "ledger")))
    return folder


@pytest.fixture
def ledger(_filled: Path, tmp_path: Path) -> Ledger:
    """Return a ledger with a finished trial for each of three nets, of a test alone."""
    return Ledger(str(shutil.copytree(_filled, tmp_path / "outputs") / "ledger"))
