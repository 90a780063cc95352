"""Sweeps under faults: the short form of benchmarks/chaos.py, with ledger, pictures and MLflow on servers."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos import Stage, losses, outcome, runs_of, strike
from benchmarks.faults_files import train_here
from crelu_data.transfer import push
from crelu_data.write import prepare
from sweeps.__main__ import main as verb
from sweeps.cifar_width import CELLS, PROTOCOL
from sweeps.cli import run
from sweeps.cli.options import ExitCode, parser
from sweeps.launch import launch
from sweeps.store.lease import Lease, LeaseHeldError, driver
from sweeps.store.ledger import Ledger
from sweeps.tracking import sqlite_store
from tests.support import held_width
from tests.support.commands import FONTS, checkpoints
from tests.support.pictures import picture_folder
from tests.support.waiting import until

WORDS = ("--smoke-test", "--only", "Baseline*", "--folds", "2", "--set", "recipe.epochs=100", "--max-concurrent", "1",
         "--reader", "threads")  # fmt: skip
PULLING = "pulling folder:"


def table(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the sweep's command in this process, where it starts no Ray; return its table."""
    capsys.readouterr()
    assert launch("cifar_width", CELLS, PROTOCOL, parser("cifar_width", "").parse_args(words)) == ExitCode.DONE
    return capsys.readouterr().out.partition("\nresults ")[0]


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_sweep_on_s3_under_faults_loses_doubles_and_changes_nothing(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture_folder(tmp_path, "pictures", {"class0": 60, "class1": 60}, (32, 32))
    name = f"folder:{tmp_path / 'pictures'}"
    prepare(name, tmp_path / "prepared", size=32)
    push(tmp_path / "prepared", f"{bucket}/data")
    for folder in ("home", "calm", "wild"):
        (tmp_path / folder).mkdir()
    for variable, value in (FONTS | {"HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("CI", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sqlite_store.prepare(tmp_path / "wild/mlflow.db", print)
    shutil.copy(tmp_path / "wild/mlflow.db", tmp_path / "calm")

    # Undisturbed, by this process.
    with monkeypatch.context() as patched:
        patched.setattr(run, "_run_trials", train_here)
        calm = [*WORDS, "--dataset", name, "--data-dir", str(tmp_path / "prepared"), "--output", str(tmp_path / "calm")]
        wanted = table(calm, capsys)
    expected = outcome(Ledger.in_output(str(tmp_path / "calm")))
    assert len(expected) == 6

    words = [*WORDS, "--dataset", name, "--data-dir", str(tmp_path / "node"), "--data-source", f"{bucket}/data",
             "--price-per-gpu-hour", "2.5"]  # fmt: skip
    command = [sys.executable, "-m", "tests.support.held_width", *words]
    draw = random.Random(5)
    held = tmp_path / "held"
    monkeypatch.setenv(held_width.VARIABLE, str(held))
    with contextlib.closing(Stage(tmp_path / "wild", command, server=True, output=f"{bucket}/out")) as stage:

        def said() -> str:
            return (tmp_path / "wild/driver.log").read_text()

        def alive() -> None:
            assert stage.driver is not None
            assert stage.driver.poll() is None, said()

        def under_way() -> bool:
            return bool(stage.workers()) and bool(checkpoints(stage.ledger))

        def blow(fault: str) -> None:
            until(lambda: under_way() and strike(fault, stage, draw), fault, 600, alive, poll=0.5)

        def let_end(count: int) -> None:
            """Let so many trials end, and wait until they have."""
            (tmp_path / "news").write_text(str(count))
            (tmp_path / "news").rename(held)
            until(lambda: len(stage.ledger.results()) == count, f"{count} results", 600, alive)

        held.write_text("0")
        stage.start()
        for fault in ("damage checkpoint", "kill worker"):
            blow(fault)
        let_end(1)
        for fault in ("kill server", "kill driver"):
            blow(fault)
        assert len(stage.ledger.results()) == 1
        before = said()
        stage.start()
        let_end(2)
        blow("terminate driver")
        assert stage.driver is not None
        assert stage.driver.wait(600) == ExitCode.INTERRUPTED, said()
        assert len(stage.ledger.results()) == 2
        held.unlink()
        assert PULLING in before
        assert PULLING not in said().removeprefix(before), "the killed driver had pulled it"
        stage.finish(1200)
        assert "at 2.5 an hour" in said()
        address = f"http://127.0.0.1:{stage.port}"
        assert losses(stage.ledger, expected, lambda: runs_of(address)) == []
        assert table([*words, "--output", stage.output, "--tracking-uri", address], capsys) == wanted
    assert checkpoints(stage.ledger) == []
    assert stage.ledger.names("leases") == []
    monkeypatch.setattr("sys.argv", ["sweeps", "status", "--output", stage.output])
    assert verb() == 0
    assert "no driver runs" in capsys.readouterr().out


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
    with Lease(ledger, "s"), pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on"), Lease(ledger, "s"):
        pass
    assert driver(ledger, "s") is None
    ledger.write_json("leases/s.json", left)
    with Lease(ledger, "s"):
        assert (driver(ledger, "s") or {})["pid"] == os.getpid()
