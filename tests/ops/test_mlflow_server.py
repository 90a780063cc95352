"""The MLflow server is safe as it starts, ends whole, and comes back from its backup with everything in it."""

import hashlib
import io
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from sweeps.__main__ import main
from sweeps.ops.mlflow_backup import ARTIFACT_COLUMNS, _move_artifact_folder, password_hash
from tests.support.postgres import Postgres
from tests.support.servers import free_port, wait_for_answer
from tests.support.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and SQLAlchemy among themselves
SECRET = "correct horse battery staple"
LOGIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": SECRET}
# Columns of tables that sweeps leave empty: they log no model, and use no workspace.
UNUSED = {("logged_models", "artifact_location"), ("workspaces", "default_artifact_root")}


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
    return inherited | {"PYTHONWARNINGS": "ignore"} | more


@contextmanager
def environment_here(**more: str) -> Iterator[None]:
    """Give this process the environment of a user."""
    with pytest.MonkeyPatch.context() as patch:
        wanted = environment(**more)
        for name in os.environ.keys() - wanted.keys():
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        yield


class BecameTheServerError(Exception):
    """The verb became the server, by a command line and an environment."""


def _become(program: str, command: list[str], environment: dict[str, str]) -> NoReturn:
    raise BecameTheServerError(command, environment)


def said(*words: str, **more: str) -> tuple[int, str]:
    """Return the exit code of `python -m sweeps serve` and what it says, in this process."""
    heard = io.StringIO()
    with environment_here(**more), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["python -m sweeps", "serve", *words])
        patch.setattr(os, "umask", lambda mode: mode)
        patch.setattr(os, "execve", _become)
        with redirect_stdout(heard), redirect_stderr(heard):
            code = main()
    return code, heard.getvalue()


@contextmanager
def serving(folder: Path, *words: str, **more: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start the server over a folder and give its address; in the end it must go, with all its processes."""
    port = free_port()
    command = [sys.executable, "-m", "sweeps", "serve", "--output", str(folder), "--port", str(port), *words]
    with open(folder.parent / "server.log", "ab") as log:
        server = subprocess.Popen(command, env=environment(**more), stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}", server
        server.send_signal(signal.SIGTERM)
        server.wait(120)
        until(lambda: not group_lives(server.pid), "the end of all the server's processes", 60)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def group_lives(group: int) -> bool:
    """Return whether a process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def status(address: str, user: str = "", host: str = "") -> int:
    """Return what a request for the experiments is answered with."""
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search?max_results=9")
    if user:
        request.add_header("Authorization", "Basic " + b64encode(user.encode()).decode())
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def write(address: str, artifacts: str = "") -> None:
    """Write three runs with parameters, points and artifacts."""
    client = MlflowClient(address)
    experiment = client.create_experiment("one", artifacts or None)
    for number in range(3):
        run = client.create_run(experiment, run_name=f"run {number}", tags={"trial.key": f"k{number}"}).info.run_id
        client.log_param(run, "lr", 0.1 * number)
        client.log_batch(run, [Metric("val/top1_err", 50 / e, 1_790_000_000_000 + e, e) for e in range(1, 40)])
        client.log_batch(run, [Metric("train/loss", float("nan"), 1_790_000_000_000, 1)])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "weights.bin").write_bytes(bytes(range(256)) * 1000 * (number + 1))
            client.log_artifacts(run, folder, "deep/er")
        client.set_terminated(run, "FINISHED", 1_790_000_009_000)


def shown(address: str) -> list[Any]:
    """Return all that a client sees at an address."""
    client = MlflowClient(address)
    runs: list[Any] = []
    for experiment in sorted(client.search_experiments(), key=lambda each: each.name):
        for run in sorted(client.search_runs([experiment.experiment_id]), key=lambda each: each.info.run_name):
            key = run.info.run_id
            points = {name: [[point.step, point.timestamp, repr(point.value)]
                             for point in client.get_metric_history(key, name)]
                      for name in sorted(run.data.metrics)}  # fmt: skip
            files = {}
            with tempfile.TemporaryDirectory() as folder:
                for item in client.list_artifacts(key, "deep/er"):
                    content = Path(client.download_artifacts(key, item.path, folder)).read_bytes()
                    files[item.path] = hashlib.sha256(content).hexdigest()
            data, info = run.data, run.info
            runs.append([key, experiment.name, info.status, info.end_time, data.params, data.tags, points, files])
    return runs


# A server, its backup and what that brings back


@dataclass(frozen=True)
class Served:
    """What a server over an empty folder has answered and left there, and a backup of it that was made meanwhile."""

    folder: Path
    backup: Path
    told: str
    answers: dict[str, int]
    command: str
    runs: list[Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Start a server over an empty folder, ask it, write to it, back it up while it runs, and end it."""
    folder = tmp_path_factory.mktemp("served")
    secret, out, tar = folder / "secret", folder / "out", folder / "kept.tar"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    words = ["--password-file", str(secret), "--allowed-hosts", "head.internal:*"]
    with serving(out, *words) as (address, server), environment_here(**LOGIN):
        answers = {
            "nobody": status(address),
            "wrong": status(address, "admin:wrong horse battery"),
            "admin": status(address, f"admin:{SECRET}"),
            "head": status(address, f"admin:{SECRET}", "head.internal:5000"),
            "evil": status(address, f"admin:{SECRET}", "evil.example"),
        }
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((_own_address(), int(address.rpartition(":")[2])), 5)
        write(address)
        runs = shown(address)
        MlflowClient(address).create_run(MlflowClient(address).create_experiment("local", f"{folder}/before/1"))
        command = Path(f"/proc/{server.pid}/cmdline").read_text()
        code, told = said("--output", str(out), "--backup", str(tar))
        assert code == 0, told
    return Served(out, tar, told, answers, command, runs)


def test_server_asks_who_comes_and_by_which_name(served: Served) -> None:
    assert served.answers == {"nobody": 401, "wrong": 401, "admin": 200, "head": 200, "evil": 403}
    assert "mlflow" in served.command
    assert SECRET not in served.command
    assert {path.name for path in served.folder.iterdir() if path.stat().st_mode & 0o077} <= {"mlartifacts"}


def test_what_a_server_holds_is_restored_whole(served: Served, tmp_path: Path) -> None:
    assert [run[1:3] for run in served.runs] == [["one", "FINISHED"]] * 3
    assert [len(run[-1]) for run in served.runs] == [1] * 3
    assert served.told.count("3 artifacts") == 1
    assert served.backup.stat().st_mode & 0o077 == 0
    elsewhere = tmp_path / "elsewhere" / "out"
    assert said("--output", str(elsewhere), "--restore", str(served.backup))[0] == 0
    for name in ("mlflow.db", "mlflow-users.db"):
        assert rows(elsewhere / name) == rows(served.folder / name), name
    for name in ("mlflow.db", "mlflow-users.db"):
        assert (elsewhere / name).stat().st_mode & 0o077 == 0, name
    assert contents(elsewhere / "mlartifacts") == contents(served.folder / "mlartifacts")
    sums = {hashlib.sha256(content).hexdigest() for content in contents(elsewhere / "mlartifacts").values()}
    assert sums == {digest for run in served.runs for digest in run[-1].values()}
    code, told = said("--output", str(elsewhere), "--restore", str(served.backup))
    assert code == 2
    assert "mlflow.db is there already" in told


def test_a_server_over_restored_files_takes_the_old_password_and_no_other(served: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert said("--output", str(out), "--restore", str(served.backup))[0] == 0
    with pytest.raises(BecameTheServerError) as became:
        said("--output", str(out), "--allowed-hosts", "head.internal:*", MLFLOW_AUTH_ADMIN_PASSWORD=SECRET)
    command, env = became.value.args
    assert command[1:4] == ["-m", "mlflow", "server"]
    assert "head.internal:*" in command[command.index("--allowed-hosts") + 1].split(",")
    assert SECRET not in " ".join(command)
    assert env["MLFLOW_AUTH_ADMIN_PASSWORD"] == SECRET
    assert env["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{out}/mlflow.db"
    settings = Path(env["MLFLOW_AUTH_CONFIG_PATH"]).read_text()
    assert f"database_uri = sqlite:///{out}/mlflow-users.db\n" in settings
    code, told = said("--output", str(out), MLFLOW_AUTH_ADMIN_PASSWORD="another horse battery")
    assert code == 2
    assert "has another password" in told


def rows(database: Path) -> list[str]:
    """Return a database as the SQL that makes it."""
    with closing(sqlite3.connect(database)) as base:
        return list(base.iterdump())


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _own_address() -> str:
    """Return an address of this machine that is not loopback by name; 127.0.0.2 stands for one where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"


# MLflow's private tables, as the backup and the login check need them: those that its server has made.


def columns(database: Path) -> set[tuple[str, str]]:
    """Return every column of a database with its table."""
    with closing(sqlite3.connect(database)) as base:
        tables = [name for (name,) in base.execute("select name from sqlite_master where type = 'table'")]
        return {(table, row[1]) for table in tables for row in base.execute(f"pragma table_info({table})")}


def test_these_and_no_other_columns_name_a_folder_of_artifacts(served: Served) -> None:
    named = {(table, column) for table, column in columns(served.folder / "mlflow.db") if "artifact" in column}
    assert named == {*ARTIFACT_COLUMNS} | UNUSED


def test_experiments_and_runs_name_the_new_folder(served: Served, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes((served.folder / "mlflow.db").read_bytes())
    before = f"{served.folder.parent}/before"
    dump = "\n".join(rows(database))
    assert len(re.findall(f"{before}/1", dump)) == 2  # the experiment and its run
    _move_artifact_folder(database, before, "/after")
    assert "\n".join(rows(database)) == dump.replace(before, "/after")


def test_password_of_a_user_is_found(served: Served, tmp_path: Path) -> None:
    from werkzeug.security import check_password_hash

    users = served.folder / "mlflow-users.db"
    hashed = password_hash(users, "admin")
    assert hashed is not None
    assert check_password_hash(hashed, SECRET)
    assert not check_password_hash(hashed, "another horse battery staple")
    assert password_hash(users, "nobody") is None
    assert password_hash(tmp_path / "empty.db", "admin") is None


# Other stores, and what is refused


def test_store_on_postgresql_is_restored_whole_to_another(tmp_path: Path, postgres: Postgres) -> None:
    first, second = postgres.database("one"), postgres.database("other")
    tar = tmp_path / "kept.tar"
    key = {"PGPASSWORD": postgres.password}
    artifacts = tmp_path / "a" / "mlartifacts"
    with environment_here(**key):
        write(first, str(artifacts / "1"))
        written = shown(first)
    assert len(written) == 3
    code, told = said("--output", str(tmp_path / "a"), "--store", first, "--backup", str(tar), **key)
    assert (code, told.count("3 artifacts")) == (0, 1), told
    artifacts.rename(tmp_path / "gone")
    arguments = ["--output", str(tmp_path / "b"), "--store", second, "--artifacts", str(artifacts)]
    code, told = said(*arguments, "--restore", str(tar), **key)
    assert code == 0, told
    with environment_here(**key):
        assert shown(second) == written
    code, told = said("--output", str(tmp_path / "c"), "--store", second, "--restore", str(tar), **key)
    assert code == 2
    assert "already exists" in told
    assert "pg_restore" in told
    code, told = said("--output", str(tmp_path / "c"), "--restore", str(tar), **key)
    assert code == 2
    assert "holds a postgresql database" in told
    assert not (tmp_path / "c").exists() or not any((tmp_path / "c").iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no password for the admin"),
        (["--no-auth", "--host", "10.0.0.4"], "only the loopback address"),
        (["--host", "0.0.0.0"], "--allowed-hosts"),
        (["--store", "postgresql://me:secret@db/x"], "$PGPASSWORD"),
        (["--store", "mysql://db/x"], "postgresql://USER@HOST/NAME"),
        (["--port", "70000"], "70000"),
        (["--password-file", "/nowhere"], "/nowhere"),
        (["--backup", "x.tar"], "no MLflow store"),
        (["--restore", "x.tar"], "no such file"),
        (["--output", "s3://bucket/x"], "--store"),
    ],
)
def test_what_is_not_safe_is_a_sentence(words: list[str], told: str, tmp_path: Path) -> None:
    code, answer = said("--output", str(tmp_path / "out"), *words)
    assert code == 2
    assert told in answer
    assert answer.count("\n") == 1
    assert "secret" not in answer
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_password_that_others_can_read_or_that_is_short_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o640)
    code, told = said("--output", str(tmp_path / "out"), "--password-file", str(secret))
    assert code == 2
    assert f"chmod 600 {secret}" in told
    secret.chmod(0o600)
    secret.write_text("short")
    code, told = said("--output", str(tmp_path / "out"), "--password-file", str(secret))
    assert code == 2
    assert "has 5 characters" in told
    assert "short" not in told


def test_backup_lies_on_s3_as_well(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "mlartifacts").mkdir(parents=True)
    (tmp_path / "out" / "mlartifacts" / "a").write_bytes(b"x" * 100_000)
    with sqlite3.connect(tmp_path / "out" / "mlflow.db") as base:
        for table in ("experiments (artifact_location)", "runs (artifact_uri)"):
            base.execute(f"create table {table}")
    tar = f"{bucket}/kept.tar"
    target = tmp_path / "target"
    code, told = said("--output", str(tmp_path / "out"), "--backup", tar)
    assert (code, told.startswith(tar)) == (0, True), told
    code, told = said("--output", str(target), "--restore", tar)
    assert code == 0, told
    assert {path.name for path in target.iterdir()} == {"mlflow.db", "mlartifacts"}
    code, told = said("--output", str(tmp_path / "other"), "--restore", f"{bucket}/gone.tar")
    assert code == 2
    assert "gone.tar" in told


def test_backup_that_is_not_whole_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out" / "mlartifacts" / "0").mkdir(parents=True)
    (tmp_path / "out" / "mlartifacts" / "0" / "a").write_bytes(b"x" * 100_000)
    with sqlite3.connect(tmp_path / "out" / "mlflow.db") as base:
        base.execute("create table experiments (artifact_location)")
        base.execute("create table runs (artifact_uri)")
        base.execute("insert into experiments values (?)", (f"{tmp_path}/out/mlartifacts/7",))
    tar, target = tmp_path / "kept.tar", tmp_path / "target"
    assert said("--output", str(tmp_path / "out"), "--backup", str(tar))[0] == 0
    backup = tar.read_bytes()
    for content in (
        backup[:-12_000],
        backup[:50_000],
        backup.replace(b"x" * 512, b"x" * 511 + b"y", 1),
        b"",
        b"no tar",
    ):
        assert content != backup
        tar.write_bytes(content)
        code, told = said("--output", str(target), "--restore", str(tar))
        assert code == 2
        assert "is not a whole backup" in told
        assert not target.exists() or not any(target.iterdir())
    tar.write_bytes(backup)
    assert said("--output", str(target), "--restore", str(tar))[0] == 0
    assert (target / "mlartifacts" / "0" / "a").read_bytes() == b"x" * 100_000
    with sqlite3.connect(target / "mlflow.db") as base:
        assert base.execute("select * from experiments").fetchall() == [(f"{target}/mlartifacts/7",)]
