"""Fixtures of several folders: prepared pictures, an S3 and a PostgreSQL of this machine."""

import atexit
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.postgres import Postgres, programs
from tests.support.servers import free_port, s3_environment, wait_for_answer

if TYPE_CHECKING:
    from sweeps.experiment.trial import Trial
    from tests.support.trials import Hashes

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores; set before torch is imported


def _unsynced(file: int) -> None:
    """Stand for fsync, whose files need not outlast this machine's power; tests that look at it replace this one."""
    os.fstat(file)  # an error where the file is not open


os.fsync = _unsynced  # type: ignore[assignment]

# With pytest -n, these start first, the longest before the others: a worker that begins one last keeps all waiting.
LONGEST = (
    "test_aws.py", "test_local.py", "test_cloud.py", "test_chaos.py",  # of the clusters, for two workers
    "test_sweep.py", "test_rank_processes.py", "test_pack.py",
    "test_mlflow_server.py", "test_searched_sweep.py", "test_own_page.py",
    "test_own_ablation.py", "test_analysis_sweep.py", "test_resume.py", "test_faults.py",
    "test_packing.py", "test_code_fingerprint.py", "test_planned_data.py", "test_simulation.py", "test_borders.py",
    "test_claims.py", "test_null_sweeps.py", "test_ray_death.py", "test_agreement.py", "test_load.py", "test_write.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """Freeze the imported objects, so that no later collection of garbage scans them."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Give back how this process takes signals: a command that has ended in it, as in its own, ends it at the next."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the pictures on which the families of `tests.support.trials` train."""
    from crelu_data.write import prepare
    from tests.support.trials import LARGE, SMALL  # torch, which few folders need

    folder = tmp_path_factory.mktemp("data")
    for name in (SMALL, LARGE):
        prepare(name, folder)
    return folder


@pytest.fixture(scope="session")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> "Hashes":
    """Return a function from a trial to the hashes of what it leaves undisturbed; each trial trains once a session."""
    from sweeps.training.run_trial import run_trial
    from tests.support.trials import artifact_hashes, runtime_config

    ledger = tmp_path_factory.mktemp("uninterrupted")

    def hashes(trial: "Trial") -> dict[str, str]:
        run_trial(trial, runtime_config(data, ledger), lambda *_: None)  # a finished trial is only read
        return artifact_hashes(ledger, trial)

    return hashes


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    program = Path(sys.executable).with_name("moto_server")
    if not program.exists() and not os.environ.get("CI"):
        pytest.skip("moto[server] is not installed")
    port = free_port()
    command = [str(program), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for_answer(f"http://127.0.0.1:{port}/moto-api/", server)
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a PostgreSQL of our own; a laptop may have none, continuous integration must."""
    folder = programs()
    if folder is None and not os.environ.get("CI"):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    assert folder is not None, "PostgreSQL is not installed"
    with Postgres(folder) as server:
        yield server
