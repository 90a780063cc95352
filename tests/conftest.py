"""What several test files stand on: an S3 and a PostgreSQL of this machine."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.postgres import Postgres, programs


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answering(address: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until something answers at an address; fail where the process ends or the time is over before."""
    ends = time.monotonic() + seconds
    while True:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        with suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        assert time.monotonic() < ends, f"{address} does not answer"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    program = Path(sys.executable).with_name("moto_server")
    if not program.exists() and not os.environ.get("CI"):
        pytest.skip("moto[server] is not installed")
    port = free_port()
    command = [str(program), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            answering(f"http://127.0.0.1:{port}/moto-api/", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture
def bucket(_moto: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the URI of an empty place on an S3 of this machine, to which the environment leads."""
    for name, value in s3_environment(_moto).items():
        monkeypatch.setenv(name, value)
    from pyarrow import fs

    system, path = fs.FileSystem.from_uri("s3://crelu?allow_bucket_creation=true")
    system.create_dir(path)
    return "s3://crelu/" + "".join(c if c.isalnum() else "-" for c in request.node.name)


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the variables by which a program finds an S3."""
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "made", "AWS_SECRET_ACCESS_KEY": "up",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a PostgreSQL of our own; a laptop may have none, continuous integration must."""
    found = programs()
    if found is None and not os.environ.get("CI"):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    assert found is not None, "PostgreSQL is not installed"
    with Postgres(found) as server:
        yield server
