"""The command line of a sweep, run as a user runs it: in processes of its own, with a home of its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sweeps.store.ledger import Ledger
from tests.support.waiting import until

# In a home without its list of fonts matplotlib looks through all of the machine's for seconds.
FONTS = {"MPLCONFIGDIR": os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}")}


def command(folder: Path, *arguments: str, sweep: str = "imagenet_placement") -> list[str]:
    """Return the command of a sweep whose output is below `folder`."""
    return [sys.executable, "-m", f"sweeps.{sweep}", *arguments, "--output", str(folder / "out")]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user who has set nothing, with a home below `folder`."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    # Warnings of Ray and MLflow in this Python version are none of the sweep's.
    quiet = {"PYTHONWARNINGS": "ignore", "CI": "true", "COLUMNS": "140"}
    return inherited | {"HOME": str(home)} | FONTS | quiet | more


def call(folder: Path, *arguments: str, seconds: float = 400, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, timeout=seconds, env=environment(folder, **more)
    )


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command; its lines come through pipes."""
    return subprocess.Popen(
        command(folder, *arguments), env=environment(folder), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(what: str, ready: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Wait until `ready()` is true; fail where the process ends first or the time is over."""

    def alive() -> None:
        assert process.poll() is None, f"{what}: the command ended with {process.returncode}\n{process.communicate()}"

    until(ready, what, seconds, alive, poll=0.05)


def ranks_below(folder: Path) -> list[int]:
    """Return the ranks that a command with its home in `folder` has started."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = str(folder).encode() in (process / "environ").read_bytes()
            if ours and b"sweeps.execution.rank_processes" in (process / "cmdline").read_bytes():
                pids.append(int(process.name))
    return sorted(pids)


def checkpoints(ledger: Ledger) -> list[str]:
    """Return the names of all checkpoints on a ledger."""
    return [name for key in ledger.folders("checkpoints") for name in ledger.names(f"checkpoints/{key}")]


def child_runs(database: Path) -> dict[str, tuple[str, str, int]]:
    """Return trial key -> (run, status, number of train/loss points) of the runs that are not deleted."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select t.value, r.run_uuid, r.status, (select count(*) from metrics m where m.run_uuid = r.run_uuid and"
            " m.key = 'train/loss') from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'trial.key'"
            " where r.lifecycle_stage = 'active'"
        ).fetchall()
    assert len({row[0] for row in rows}) == len(rows), "a trial has two runs"
    return {key: (run, status, points) for key, run, status, points in rows}
