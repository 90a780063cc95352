"""A sweep whose ledger and data lie on S3, killed in the middle: the same command ends it, with one run a trial."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_data.transfer import push
from crelu_data.write import prepare
from sweeps.store.lease import Lease, LeaseHeldError, driver
from sweeps.store.ledger import Ledger
from tests.support.commands import checkpoints, child_runs, wait_for
from tests.support.pictures import picture_folder


def test_killed_sweep_on_s3_is_ended_by_the_same_command(bucket: str, tmp_path: Path) -> None:
    picture_folder(tmp_path, "pictures", {"class0": 60, "class1": 60}, (32, 32))
    name, ledger = f"folder:{tmp_path / 'pictures'}", Ledger(f"{bucket}/out/ledger")
    prepare(name, tmp_path / "prepared", size=32)
    push(tmp_path / "prepared", f"{bucket}/data")
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "CI": "true", "PYTHONWARNINGS": "ignore"}
    command = [
        sys.executable, "-m", "sweeps.cifar_width", "--smoke-test", "--set", "recipe.epochs=5", "--max-concurrent", "1",
        "--search-trials", "0", "--folds", "2", "--dataset", name, "--data-dir", str(tmp_path / "node"),
        "--data-source", f"{bucket}/data",
        "--output", f"{bucket}/out", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--price-per-gpu-hour", "2.5",
    ]  # fmt: skip

    def started() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    with started() as first:
        wait_for("a checkpoint", lambda: checkpoints(ledger), first, 240)
        first.send_signal(signal.SIGKILL)
    assert ledger.results() == {}
    with started() as second:
        out, error = second.communicate(timeout=500)
    assert second.returncode == 0, error
    assert f"pulling {name}" not in error, "the killed driver had pulled it"
    assert "at 2.5 an hour" in error
    results = ledger.results()
    assert f"{len(results)} of {len(results)} trials are done" in out
    runs = child_runs(tmp_path / "mlflow.db")
    assert sorted(runs) == sorted(results)
    assert {key: run[1:] for key, run in runs.items()} == {
        key: ("FINISHED", result["epochs"]) for key, result in results.items()
    }
    assert checkpoints(ledger) == []
    assert ledger.names("leases") == []
    verb = [sys.executable, "-m", "sweeps", "status", "--output", f"{bucket}/out"]
    said = subprocess.run(verb, capture_output=True, text=True, env=environment, check=True).stdout
    assert "no driver runs" in said


HELD = """
import os, sys
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from tests.support.commands import checkpoints, child_runs, wait_for
from tests.support.pictures import picture_folder
with Lease(Ledger(sys.argv[1]), "s"):
    os.kill(os.getpid(), 9)
"""


def test_lease_on_s3_of_a_killed_driver_of_this_host_is_taken_over_at_once(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    subprocess.run([sys.executable, "-c", HELD, ledger.root], check=False, env=dict(os.environ))
    left = ledger.read_json("leases/s.json")
    assert left is not None
    assert driver(ledger, "s") is None
    with Lease(ledger, "s"), pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on"), Lease(ledger, "s"):
        pass
    assert driver(ledger, "s") is None
    ledger.write_json("leases/s.json", left)
    with Lease(ledger, "s"):
        assert (driver(ledger, "s") or {})["pid"] == os.getpid()
