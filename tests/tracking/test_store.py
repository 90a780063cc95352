"""MLflow's store is made whole or not at all, and its troubles are told apart, in seconds and in sentences."""

import os
import resource
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from sweeps.store.local_uris import artifacts_in, sqlite_file, sqlite_uri
from sweeps.tracking import sqlite_store
from sweeps.tracking.bare_client import client_of
from sweeps.tracking.mlflow_client import connected
from sweeps.tracking.sqlite_store import prepare
from sweeps.tracking.store_errors import trouble


@pytest.fixture
def copying(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a new store be a copy of one."""
    monkeypatch.setattr(sqlite_store, "_make", lambda path: shutil.copy(empty, path))


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as base:
        return str(base.execute("select version_num from alembic_version").fetchone()[0])


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as base, base:
        for statement in statements:
            base.execute(statement)


def no_revision(path: Path) -> None:
    execute(path, "delete from alembic_version")


def half_of_the_tables(path: Path) -> None:
    execute(path, "drop table alembic_version", "drop table metrics", "drop table tags", "drop table experiments")


def half_of_the_versions(path: Path) -> None:
    execute(path, f"update alembic_version set version_num = '{sqlite_store._revisions()[5]}'")


def one_table(path: Path) -> None:
    path.unlink()
    execute(path, "create table experiments (experiment_id integer)")


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize("damage", [no_revision, half_of_the_tables, half_of_the_versions, one_table])
def test_an_unfinished_store_without_runs_is_moved_aside(
    empty: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "mlflow.db"
    said: list[str] = []
    shutil.copy(empty, path)
    damage(path)
    before = path.read_bytes()
    prepare(path, said.append)
    assert path.read_bytes() == empty.read_bytes()
    (aside,) = tmp_path.glob("mlflow.db.unfinished-*")
    assert aside.read_bytes() == before
    (sentence,) = said
    assert str(path) in sentence
    assert str(aside) in sentence


@pytest.mark.usefixtures("copying")
def test_an_empty_file_is_replaced(empty: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.touch()
    prepare(path, pytest.fail)
    assert path.read_bytes() == empty.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        "insert into runs (run_uuid, experiment_id) values ('r', 0)",
        "insert into experiments (name) values ('mine')",
        "insert into registered_models (name) values ('m')",
    ],
)
def test_a_store_in_which_there_is_anything_stays(empty: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty, path)
    execute(path, content)
    no_revision(path)
    before = path.read_bytes()
    prepare(path, pytest.fail)
    assert path.read_bytes() == before


def test_a_store_of_a_newer_version_stays(empty: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty, path)
    execute(path, "update alembic_version set version_num = 'ffffffffffff'")
    prepare(path, pytest.fail)
    assert revision(path) == "ffffffffffff"


def test_a_store_that_is_not_made_to_its_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, an error of the disk, Ctrl-C: the next attempt begins anew."""
    seen: list[str] = []
    for error in (OSError("no space left"), sqlite3.OperationalError("disk I/O error"), KeyboardInterrupt()):

        def failing(uri: str, error: BaseException = error) -> None:
            file = sqlite_file(uri)
            assert file is not None
            seen.append(file.name)
            file.write_bytes(b"half a store")
            raise error

        monkeypatch.setattr("sweeps.tracking.sqlite_store.client_of", failing)
        with pytest.raises(type(error)):
            prepare(tmp_path / "mlflow.db", pytest.fail)
        assert list(tmp_path.iterdir()) == []
    assert "mlflow.db" not in seen


def test_store_that_met_a_full_disk_is_made_by_the_same_process_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, usual[1]))
    try:
        with pytest.raises(OperationalError, match="disk I/O error"):
            prepare(path, pytest.fail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(link)]
    prepare(path, pytest.fail)
    assert revision(path) == sqlite_store._revisions()[0]


def test_what_a_killed_process_left_is_cleaned_up_later(empty: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty, path)
    old, new = tmp_path / ".mlflow.db.11.draft", tmp_path / ".mlflow.db.12.draft"
    for draft in (old, new):
        draft.touch()
    os.utime(old, (1e9, 1e9))
    prepare(path, pytest.fail)
    assert not old.exists()
    assert new.exists()


# Names


@pytest.mark.parametrize("name", ["a?b", "p%41", "50%", "sp ace", "q'uo\"te", "h#ash&x;y", "ünïcode", "a?b%20c?"])
def test_a_store_lies_where_its_folder_s_name_says(empty: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(empty, folder / "mlflow.db")
    uri = sqlite_uri(f"{folder}/mlflow.db")
    assert sqlite_file(uri) == folder / "mlflow.db"
    client = connected(uri)
    run = client.create_run(client.create_experiment("e", artifacts_in(str(folder)))).info.run_id
    client.log_text(run, "x", "x.txt")
    with closing(sqlite3.connect(folder / "mlflow.db")) as base:
        assert base.execute("select run_uuid from runs").fetchall() == [(run,)]
    assert [path.relative_to(folder).parts[0] for path in tmp_path.rglob("x.txt")] == ["mlartifacts"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


# Troubles


LONG = 100.0  # seconds: far more than a store has to answer, far fewer than its client would go on asking by itself


class Answer(BaseHTTPRequestHandler):
    """A server with one answer."""

    code = 200
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(b"no")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        """Say nothing."""


@pytest.fixture
def answering() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def meet(uri: str) -> tuple[str, bool]:
    """Return what opening a store is answered with, in words, and whether that lasts."""
    began = time.monotonic()
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of any kind
        connected(uri)
    assert time.monotonic() - began < LONG
    problem = trouble(caught.value)
    assert "\n" not in str(problem)
    return problem.reason, problem.lasts


@pytest.mark.parametrize(
    ("code", "reason", "lasts"),
    [
        (401, "login", True),
        (403, "does not let", True),
        (404, "no MLflow server", True),
        (200, "no MLflow server", True),
        (500, "500", False),
        (503, "503", False),
    ],
)
def test_answers_of_a_server_are_told_apart(
    answering: HTTPServer, monkeypatch: pytest.MonkeyPatch, code: int, reason: str, lasts: bool
) -> None:
    monkeypatch.setattr("sweeps.tracking.mlflow_client.PATIENCE", 5 * LONG)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setattr(Answer, "code", code)
    monkeypatch.setattr(Answer, "asked", 0)
    words, is_lasting = meet(f"http://127.0.0.1:{answering.server_port}")
    assert Answer.asked == 1
    assert reason in words
    assert is_lasting is lasts


@pytest.mark.parametrize("retries", ["1", "3", "7"])
def test_request_whose_answer_is_lost_is_sent_once(
    answering: HTTPServer, monkeypatch: pytest.MonkeyPatch, retries: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{5 * LONG:.0f}")
    requests: list[str] = []
    monkeypatch.setattr(Answer, "do_POST", lambda request: requests.append(request.path))  # and closes the connection
    with pytest.raises(MlflowException):
        client_of(f"http://127.0.0.1:{answering.server_port}").create_run("0")
    assert requests == ["/api/2.0/mlflow/runs/create"]


def test_a_silent_server_may_answer_later_and_a_closed_port_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{2 * LONG:.0f}")
    monkeypatch.setattr("sweeps.tracking.mlflow_client.PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert meet(f"http://127.0.0.1:{port}") == ("it gives no answer in time", False)
    assert meet(f"http://127.0.0.1:{port}") == ("nothing listens there", True)
    assert meet(f"postgresql://me:secret@127.0.0.1:{port}/x") == ("nothing listens there", True)


def test_files_that_are_no_store_of_this_version_are_told_apart(empty: Path, tmp_path: Path) -> None:
    names = ("junk", "cut", "newer", "used-older")
    for name in names[1:]:
        shutil.copy(empty, tmp_path / name)
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    (tmp_path / "cut").write_bytes(empty.read_bytes()[:200_000])
    execute(tmp_path / "newer", "update alembic_version set version_num = 'ffffffffffff'")
    execute(tmp_path / "used-older", "insert into experiments (name) values ('mine')")
    half_of_the_versions(tmp_path / "used-older")
    reasons = {name: meet(sqlite_uri(str(tmp_path / name))) for name in names}
    assert reasons["junk"] == reasons["cut"] == ("the file is damaged", True)
    assert reasons["newer"] == reasons["used-older"] == ("its tables are of another version of MLflow", True)


def test_what_mlflow_does_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    assert meet(str(tmp_path / "mlruns")) == ("MLflow no longer takes a folder of files as its store", True)
    assert meet("htp://x") == ("MLflow knows no such store", True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(sqlite3.OperationalError) database or disk is full", "its disk is full"),
        ("(sqlite3.OperationalError) database is locked", "another process holds its file"),
        ("(sqlite3.OperationalError) disk I/O error", "its disk fails"),
        ("something new\nin two lines", "RuntimeError: something new"),
    ],
)
def test_troubles_that_may_pass_are_waited_for(text: str, reason: str) -> None:
    assert trouble(RuntimeError(text)) == (reason, False, "")


@pytest.mark.parametrize("table", ["experiments", "runs", "latest_metrics", "params"])
def test_error_of_the_database_is_raised_without_a_traceback_on_the_terminal(
    tmp_path: Path, empty: Path, table: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty, path)
    client = client_of(sqlite_uri(str(path)))
    run = client.create_run("0").info.run_id
    execute(path, f"drop table {table}")
    with pytest.raises(MlflowException, match=f"no such table: {table}"):
        client.search_experiments() if table == "experiments" else client.get_run(run)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", ["out/mlartifacts", "out/mlflow.db", "/root"])
def test_what_may_not_be_opened_is_named(place: str) -> None:
    error = RuntimeError("artifacts")
    error.__cause__ = PermissionError(13, "Permission denied", place)
    assert trouble(error) == (f"{place} cannot be opened", True, "look at the permissions there")
