"""MLflow's store as a SQLite file: it is made under another name, and takes its own once it is complete.

MLflow makes its tables in place, in seconds. What is killed meanwhile, or meets a full disk, leaves a file that MLflow
never opens again. Such a file holds no run: it is moved aside.
"""

from __future__ import annotations

import errno
import glob
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sweeps.store.local_uris import sqlite_uri
from sweeps.tracking.bare_client import client_of

TABLES: Final = "select name from sqlite_master where type = 'table' and name not like 'sqlite~_%' escape '~'"
REVISIONS: Final = "alembic_version"  # the table that says which version of the tables a database has
UNTOUCHED: Final = (REVISIONS, "experiments", "workspaces")  # tables that have rows in a database that nobody has used
DRAFT: Final = ".draft"  # how the name of a file ends that is being made
ABANDONED: Final = 600.0  # seconds after which nobody works on such a file any more


def prepare(path: Path, tell: Callable[[str], None]) -> None:
    """Make the database where there is none, or one that was left unfinished; any error is MLflow's or SQLite's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and path.stat().st_size:
        if not _is_unfinished(path):
            return
        tell(f"MLflow's store {path} was left unfinished and holds no run: it is now {_move_aside(path)}")
    _make(path)


def _is_unfinished(path: Path) -> bool:
    """Return whether a database is an unfinished one: it lacks tables of this version of MLflow, and has no rows."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", timeout=20.0, uri=True)) as base:
        tables = {str(name) for (name,) in base.execute(TABLES)}
        if any(_has_rows(base, table) for table in tables.difference(UNTOUCHED)):
            return False
        if "experiments" in tables and base.execute("select count(*) from experiments").fetchone()[0] > 1:
            return False
        revisions = base.execute(f"select version_num from {REVISIONS}").fetchall() if REVISIONS in tables else []
    known = _revisions()
    # A revision that is not known is of a newer version: that file is somebody's.
    return not revisions or (revisions[0][0] in known and revisions[0][0] != known[0])


def _has_rows(base: sqlite3.Connection, table: str) -> bool:
    return base.execute(f'select 1 from "{table}" limit 1').fetchone() is not None  # a name it gave us


def _revisions() -> list[str]:
    """Return the versions of the tables that the installed MLflow knows, the newest first."""
    import mlflow
    from alembic.script import ScriptDirectory

    folder = Path(str(mlflow.__file__)).parent / "store" / "db_migrations"
    return [script.revision for script in ScriptDirectory(str(folder)).walk_revisions()]


def _move_aside(path: Path) -> Path:
    """Rename a database, with its journal, to a name that says when; return that name."""
    aside = path.with_name(f"{path.name}.unfinished-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    os.replace(path, aside)
    return aside


def _make(path: Path) -> None:
    """Make the tables in a file of another name, and link it to its own: the first of two that do so at once stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}{DRAFT}")
    uri = sqlite_uri(str(draft))
    try:
        client_of(uri).search_experiments(max_results=1)
        if path.exists() and not path.stat().st_size:
            path.unlink()
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(draft, path)
    finally:
        _close(uri)
        for suffix in ("", "-journal", "-wal", "-shm"):
            Path(f"{draft}{suffix}").unlink(missing_ok=True)


def _close(uri: str) -> None:
    """Close what MLflow keeps open of a database for its next client: an unfinished one would be met again.

    A file that is open takes room on a full disk after it was deleted.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.pop(uri, None)
    if engine is not None:
        engine.dispose()


def _remove_abandoned(path: Path) -> None:
    """Delete what a process that was killed has left of its draft."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*{DRAFT}*"):
        with suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > ABANDONED:
                draft.unlink()
