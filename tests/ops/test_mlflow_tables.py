"""MLflow's private tables are as the backup and the login check need them."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.ops.mlflow_backup import ARTIFACT_COLUMNS, _move_artifact_folder, password_hash

# Tables that sweeps leave empty: they log no model, and use no workspace.
UNUSED = {("logged_models", "artifact_location"), ("workspaces", "default_artifact_root")}
# What MLflow itself makes, in a process of its own: its stores, with an experiment, a run and a user.
STORES = """
import json, sys
from mlflow import MlflowClient
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

folder = sys.argv[1]
client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
run = client.create_run(client.create_experiment("one", f"{folder}/before/1"))
users = SqlAlchemyStore()
users.init_db(f"sqlite:///{folder}/users.db")
users.create_user("admin", "correct horse battery staple", is_admin=True)
print(json.dumps([run.info.artifact_uri, run.info.run_id]))
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of runs and one of users, as this MLflow makes them."""
    folder = tmp_path_factory.mktemp("stores")
    command = [sys.executable, "-W", "ignore", "-c", STORES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    uri, _ = json.loads(done.stdout.splitlines()[-1])
    assert uri.startswith(f"{folder}/before/1/")
    return folder


def columns(database: Path) -> set[tuple[str, str]]:
    """Return every column of a database with its table."""
    with sqlite3.connect(database) as base:
        tables = [name for (name,) in base.execute("select name from sqlite_master where type = 'table'")]
        return {(table, row[1]) for table in tables for row in base.execute(f"pragma table_info({table})")}


def test_these_and_no_other_columns_name_a_folder_of_artifacts(stores: Path) -> None:
    named = {(table, column) for table, column in columns(stores / "mlflow.db") if "artifact" in column}
    assert named == {*ARTIFACT_COLUMNS} | UNUSED


def test_experiments_and_runs_name_the_new_folder(stores: Path) -> None:
    database = stores / "mlflow.db"
    _move_artifact_folder(database, f"{stores}/before", "/after")
    with sqlite3.connect(database) as base:
        (place,) = base.execute("select artifact_location from experiments where name = 'one'").fetchone()
        uris = [uri for (uri,) in base.execute("select artifact_uri from runs")]
    assert place == "/after/1"
    assert [uri.startswith("/after/1/") for uri in uris] == [True]


def test_password_of_a_user_is_found(stores: Path, tmp_path: Path) -> None:
    from werkzeug.security import check_password_hash

    hashed = password_hash(stores / "users.db", "admin")
    assert hashed is not None
    assert check_password_hash(hashed, "correct horse battery staple")
    assert not check_password_hash(hashed, "another horse battery staple")
    assert password_hash(stores / "users.db", "nobody") is None
    assert password_hash(tmp_path / "empty.db", "admin") is None
