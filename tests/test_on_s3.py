"""A sweep whose ledger and data lie on S3, killed in the middle: the same command ends it, with one run a trial."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.transfer import push
from data.write import prepare
from sweeps.store.lease import SILENCE, Busy, Lease, driver
from sweeps.store.ledger import Ledger


def pictures(folder: Path) -> str:
    """Write a folder of random pictures in two classes and return the name of its data set."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(120):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{number}.png")
    return f"folder:{folder}"


def waited(there: Callable[[], object], process: subprocess.Popen[str], seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_killed_sweep_on_s3_is_ended_by_the_same_command(bucket: str, tmp_path: Path) -> None:
    name, ledger = pictures(tmp_path / "pictures"), Ledger(f"{bucket}/out/ledger")
    prepare(name, tmp_path / "prepared", size=32)
    push(tmp_path / "prepared", f"{bucket}/data")
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "CI": "true", "PYTHONWARNINGS": "ignore"}
    command = [
        sys.executable, "-m", "sweeps.cifar_width", "--smoke-test", "--set", "recipe.epochs=8", "--max-concurrent", "1",
        "--dataset", name, "--data-dir", str(tmp_path / "node"), "--data-source", f"{bucket}/data",
        "--output", f"{bucket}/out", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--price-per-gpu-hour", "2.5",
    ]  # fmt: skip

    def checkpoints() -> list[str]:
        return [file for key in ledger.folders("checkpoints") for file in ledger.names(f"checkpoints/{key}")]

    def started() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    with started() as first:
        waited(checkpoints, first)
        first.send_signal(signal.SIGKILL)
    assert ledger.results() == {}
    began = time.monotonic()
    with started() as second:
        out, error = second.communicate(timeout=300)
    assert second.returncode == 0, error
    assert f"pulling {name}" not in error, "the killed driver had pulled it"
    assert "at 2.5 an hour" in error
    assert time.monotonic() - began < SILENCE + 200
    results = ledger.results()
    assert f"{len(results)} of {len(results)} trials are done" in out
    with sqlite3.connect(tmp_path / "mlflow.db") as base:
        rows = base.execute(
            "select t.value, r.status, (select count(*) from metrics m where m.run_uuid = r.run_uuid and"
            " m.key = 'train/loss') from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'trial.key'"
            " where r.lifecycle_stage = 'active'"
        ).fetchall()
    assert sorted(key for key, _, _ in rows) == sorted(results)
    assert all((status, points) == ("FINISHED", results[key]["epochs"]) for key, status, points in rows)
    assert checkpoints() == []
    assert ledger.names("leases") == []
    verb = [sys.executable, "-m", "sweeps", "status", "--output", f"{bucket}/out"]
    said = subprocess.run(verb, capture_output=True, text=True, env=environment, check=True).stdout
    assert "no driver runs" in said


HELD = """
import os, sys
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
with Lease(Ledger(sys.argv[1]), "s"):
    os.kill(os.getpid(), 9)
"""


def test_lease_on_s3_of_a_killed_driver_of_this_host_is_taken_over_at_once(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    subprocess.run([sys.executable, "-c", HELD, ledger.root], check=False, env=dict(os.environ))
    left = ledger.read_json("leases/s.json")
    assert left is not None
    assert driver(ledger, "s") is None
    with Lease(ledger, "s"), pytest.raises(Busy, match=f"process {os.getpid()} on"), Lease(ledger, "s"):
        pass
    assert driver(ledger, "s") is None
    ledger.write_json("leases/s.json", left | {"host": "another", "beat": time.time() - SILENCE + 30})
    with pytest.raises(Busy, match="on another"), Lease(ledger, "s"):
        pass
    ledger.write_json("leases/s.json", left | {"host": "another", "beat": time.time() - SILENCE - 1})
    with Lease(ledger, "s"):
        assert (driver(ledger, "s") or {})["pid"] == os.getpid()
