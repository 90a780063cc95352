"""A store and a ledger for the tests of MLflow's runs."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.store.ledger import Ledger
from sweeps.tracking.run_index import Store
from tests.support.empty_store import empty_store


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # What MLflow and SQLAlchemy warn about among themselves.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="package")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that nobody has used."""
    return empty_store(tmp_path_factory)


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Path:
    """Return a folder with one SQLite store for many tests here."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty, folder / "mlflow.db")
    return folder


@pytest.fixture
def store(root: Path, request: pytest.FixtureRequest) -> Store:
    return Store(f"sqlite:///{root}/mlflow.db", request.node.name, f"{root}/artifacts", {"synthetic": "abc"})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger"))
