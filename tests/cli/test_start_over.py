"""A command that a dead Ray holds begins anew in its process: with its words, without its lease, and not for ever."""

import os
import sys
from pathlib import Path

import pytest

from sweeps.cli import run
from sweeps.execution import ray_runtime
from sweeps.store.lease import Lease, LeaseHeldError
from sweeps.store.ledger import Ledger


class Ended(BaseException):
    """The process has ended, or has become another program."""


@pytest.mark.parametrize("before", ["", "1", "2"])
def test_the_command_begins_anew_with_its_lease_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], before: str
) -> None:
    order = list[str]()
    ledger = Ledger(str(tmp_path))

    def execv(program: str, words: list[str]) -> None:
        order.append("exec")
        assert (program, words) == (sys.executable, [sys.executable, "-m", "sweeps.page", "--output", "a b"])
        with Lease(ledger, "s"):
            order.append("lease is free")
        raise Ended

    if before:
        monkeypatch.setenv(run.STARTED_OVER, before)
    else:
        monkeypatch.delenv(run.STARTED_OVER, raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "sweeps.page", "--output", "a b"])
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(ray_runtime, "kill_ray", lambda: order.append("kill"))
    lease = Lease(ledger, "s").__enter__()
    with pytest.raises(LeaseHeldError):
        Lease(ledger, "s").__enter__()
    with pytest.raises(Ended):
        run._start_over(lease, "Ray's gcs_server has died")
    assert order == ["kill", "exec", "lease is free"]
    assert os.environ[run.STARTED_OVER] == f"{int(before or 0) + 1}"
    assert "Ray's gcs_server has died; starting over, trials go on" in capfd.readouterr().err


def test_the_fourth_time_the_command_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def end(reason: str) -> None:
        ended.append(reason)
        raise Ended

    monkeypatch.setenv(run.STARTED_OVER, "3")
    monkeypatch.setattr(run, "_end_at_once", end)
    monkeypatch.setattr(ray_runtime, "kill_ray", lambda: None)
    with pytest.raises(Ended):
        run._start_over(Lease(Ledger(str(tmp_path)), "s").__enter__(), "Ray's raylet has died")
    assert ended == ["Ray's raylet has died, for the 4th time; the same command resumes"]
