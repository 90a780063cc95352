"""Fixtures of the analysis jobs."""

from pathlib import Path

import pytest

from sweeps.store.ledger import Ledger
from tests.support.analysis import fill


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return a ledger with a finished trial for each of three nets, of a test alone."""
    return fill(Ledger(str(tmp_path / "outputs/ledger")))
