"""Client of MLflow for an address, at which anything may answer or nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sweeps.store.local_uris import SCHEME, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRIES: Final = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
TIMEOUT: Final = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds, where the environment sets no others
# What libraries may log. A traceback of an error of the database that they also raise says nothing more.
LEVELS: Final = {
    "alembic": logging.ERROR,
    "mlflow": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,
    "sqlalchemy.pool": logging.CRITICAL,
}


def client_of(uri: str) -> MlflowClient:
    """Return a client of a store, without what MLflow and its migrations log about themselves.

    It sends each request once. A lost answer leaves open whether the request took effect; a search finds out. A
    repeated request may create a second run. So a number of retries in the environment counts for nothing here.
    """
    import mlflow

    os.environ[RETRIES] = "0"
    os.environ.setdefault(*TIMEOUT)
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    file = sqlite_file(uri)
    client = mlflow.MlflowClient(uri)
    # MLflow makes a folder of the name that a quoted path has in a URI.
    named = Path(uri.removeprefix(SCHEME)).parent if file is not None else Path("/")
    while file is not None and named != file.parent:
        try:
            named.rmdir()
        except OSError:  # it holds something, and so do all above it
            break
        named = named.parent
    return client
