"""The MLflow server is safe as it starts, ends whole, and comes back from its backup with everything in it."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import Postgres
from tests.support.servers import free_port, wait_for_answer
from tests.support.waiting import until

SECRET = "correct horse battery staple"
VERB = [sys.executable, "-m", "sweeps", "serve"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
    return kept | {"PYTHONWARNINGS": "ignore"} | more


def said(*words: str, **more: str) -> tuple[int, str]:
    done = subprocess.run([*VERB, *words], capture_output=True, text=True, env=environment(**more), timeout=300)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def serving(folder: Path, *words: str, **more: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start the server over a folder and give its address; in the end it must go, with all its processes."""
    port = free_port()
    command = [*VERB, "--output", str(folder), "--port", str(port), *words]
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
        with urllib.request.urlopen(request, timeout=30) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code


CLIENT = """
import hashlib, json, pathlib, sys, tempfile
from mlflow import MlflowClient
from mlflow.entities import Metric
client, what = MlflowClient(sys.argv[1]), sys.argv[2]
if what == "write":
    experiment = client.create_experiment("one", sys.argv[3] or None)
    for number in range(3):
        run = client.create_run(experiment, run_name=f"run {number}", tags={"trial.key": f"k{number}"}).info.run_id
        client.log_param(run, "lr", 0.1 * number)
        client.log_batch(run, [Metric("val/top1_err", 50 / e, 1_790_000_000_000 + e, e) for e in range(1, 40)])
        client.log_batch(run, [Metric("train/loss", float("nan"), 1_790_000_000_000, 1)])
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "weights.bin").write_bytes(bytes(range(256)) * 1000 * (number + 1))
            client.log_artifacts(run, folder, "deep/er")
        client.set_terminated(run, "FINISHED", 1_790_000_009_000)
found = []
for experiment in sorted(client.search_experiments(), key=lambda e: e.name):
    for run in sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.run_name):
        id = run.info.run_id
        points = {name: [[p.step, p.timestamp, repr(p.value)] for p in client.get_metric_history(id, name)]
                  for name in sorted(run.data.metrics)}
        files = {}
        for item in client.list_artifacts(id, "deep/er"):
            content = pathlib.Path(client.download_artifacts(id, item.path)).read_bytes()
            files[item.path] = hashlib.sha256(content).hexdigest()
        data, info = run.data, run.info
        found.append([id, experiment.name, info.status, info.end_time, data.params, data.tags, points, files])
print(json.dumps(found))
"""


def client(address: str, what: str, artifacts: str = "", **more: str) -> Any:
    """Return all that a client sees at an address, after it wrote three runs where `what` says so."""
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": SECRET}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address, what, artifacts], capture_output=True, text=True, timeout=400,
        env=environment(**login, **more),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_server_asks_who_comes_and_by_which_name_and_is_restored_whole(tmp_path: Path) -> None:
    secret, out, tar = tmp_path / "secret", tmp_path / "out", tmp_path / "kept.tar"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    with serving(out, "--password-file", str(secret)) as (address, server):
        assert status(address) == status(address, "admin:wrong horse battery") == 401
        assert status(address, f"admin:{SECRET}") == 200
        assert status(address, f"admin:{SECRET}", "evil.example") == 403
        assert SECRET not in Path(f"/proc/{server.pid}/cmdline").read_text()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((_own_address(), int(address.rpartition(":")[2])), 5)
        written = client(address, "write")
        assert len(written) == 3
        # While it runs.
        code, told = said("--output", str(out), "--backup", str(tar))
        assert (code, told.count("3 artifacts")) == (0, 1), told
    assert {path.name for path in out.iterdir() if path.stat().st_mode & 0o077} <= {"mlartifacts"}
    assert tar.stat().st_mode & 0o077 == 0
    elsewhere = tmp_path / "elsewhere" / "out"
    assert said("--output", str(elsewhere), "--restore", str(tar))[0] == 0
    with serving(elsewhere, "--allowed-hosts", "head.internal:*", MLFLOW_AUTH_ADMIN_PASSWORD=SECRET) as (address, _):
        assert client(address, "read") == written
        assert status(address) == 401
        assert status(address, f"admin:{SECRET}", "head.internal:5000") == 200
    code, told = said("--output", str(elsewhere), "--restore", str(tar))
    assert code == 2
    assert "mlflow.db is there already" in told
    code, told = said("--output", str(elsewhere), MLFLOW_AUTH_ADMIN_PASSWORD="another horse battery")
    assert code == 2
    assert "has another password" in told


def _own_address() -> str:
    """Return an address of this machine that is not loopback by name; 127.0.0.2 stands for one where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"


def test_store_on_postgresql_is_restored_whole_to_another(tmp_path: Path, postgres: Postgres) -> None:
    first, second, tar = postgres.database("one"), postgres.database("other"), tmp_path / "kept.tar"
    key, artifacts = {"PGPASSWORD": postgres.password}, tmp_path / "a" / "mlartifacts"
    written = client(first, "write", str(artifacts / "1"), **key)
    code, told = said("--output", str(tmp_path / "a"), "--store", first, "--backup", str(tar), **key)
    assert (code, told.count("3 artifacts")) == (0, 1), told
    artifacts.rename(tmp_path / "gone")
    there = ["--output", str(tmp_path / "b"), "--store", second, "--artifacts", str(artifacts)]
    code, told = said(*there, "--restore", str(tar), **key)
    assert code == 0, told
    assert client(second, "read", **key) == written
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
    import sqlite3

    (tmp_path / "out" / "mlartifacts").mkdir(parents=True)
    (tmp_path / "out" / "mlartifacts" / "a").write_bytes(b"x" * 100_000)
    with sqlite3.connect(tmp_path / "out" / "mlflow.db") as base:
        for table in ("experiments (artifact_location)", "runs (artifact_uri)"):
            base.execute(f"create table {table}")
    tar, target = f"{bucket}/kept.tar", tmp_path / "target"
    code, told = said("--output", str(tmp_path / "out"), "--backup", tar)
    assert (code, told.startswith(tar)) == (0, True), told
    code, told = said("--output", str(target), "--restore", tar)
    assert code == 0, told
    assert {path.name for path in target.iterdir()} == {"mlflow.db", "mlartifacts"}
    code, told = said("--output", str(tmp_path / "other"), "--restore", f"{bucket}/gone.tar")
    assert code == 2
    assert "gone.tar" in told


def test_backup_that_is_not_whole_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "out" / "mlartifacts" / "0").mkdir(parents=True)
    (tmp_path / "out" / "mlartifacts" / "0" / "a").write_bytes(b"x" * 100_000)
    with sqlite3.connect(tmp_path / "out" / "mlflow.db") as base:
        base.execute("create table experiments (artifact_location)")
        base.execute("create table runs (artifact_uri)")
        base.execute("insert into experiments values (?)", (f"{tmp_path}/out/mlartifacts/7",))
    tar, target = tmp_path / "kept.tar", tmp_path / "target"
    assert said("--output", str(tmp_path / "out"), "--backup", str(tar))[0] == 0
    whole = tar.read_bytes()
    for content in (whole[:-12_000], whole[:50_000], whole.replace(b"x" * 512, b"x" * 511 + b"y", 1), b"", b"no tar"):
        assert content != whole
        tar.write_bytes(content)
        code, told = said("--output", str(target), "--restore", str(tar))
        assert code == 2
        assert "is not a whole backup" in told
        assert not target.exists() or not any(target.iterdir())
    tar.write_bytes(whole)
    assert said("--output", str(target), "--restore", str(tar))[0] == 0
    assert (target / "mlartifacts" / "0" / "a").read_bytes() == b"x" * 100_000
    with sqlite3.connect(target / "mlflow.db") as base:
        assert base.execute("select * from experiments").fetchall() == [(f"{target}/mlartifacts/7",)]
