"""A command that a dead Ray holds begins anew in its process: with its words, without its lease, and not for ever."""

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crelu_data.datasets import dataset
from sweeps.cli import run, summary
from sweeps.cli.live_view import LiveView
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import Settings, settle
from sweeps.execution import ray_runtime, tuner
from sweeps.execution.resources import TrialResources
from sweeps.execution.session import DriverState
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import plan
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.report.build import NOT_ASKED
from sweeps.store.lease import Lease, LeaseHeldError
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, Made, finish


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

    for name in (run.STARTED_OVER, run.HOURS_USED):
        monkeypatch.setenv(name, before)  # the end of the test takes away what the command sets
        if not before:
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "sweeps.page", "--output", "a b"])
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(ray_runtime, "kill_ray", lambda: order.append("kill"))
    lease = Lease(ledger, "s").__enter__()
    with pytest.raises(LeaseHeldError):
        Lease(ledger, "s").__enter__()
    with pytest.raises(Ended):
        run._start_over(lease, "Ray's gcs_server has died", 1.25)
    assert os.environ[run.HOURS_USED] == "1.25"
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


def settings_of(folder: Path, *words: str) -> Settings:
    """Return the settings of a command whose output is below `folder`."""
    options = parser("s", "").parse_args(["--output", str(folder / "out"), "--profile", "paper", *words])
    return settle((BASELINE,), options)


@pytest.mark.parametrize("flag", ["--fresh", "--retry-failed", "--yes"])
@pytest.mark.parametrize("times", ["0", "1"])
def test_what_the_command_asks_for_once_is_not_done_again_when_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, times: str
) -> None:
    monkeypatch.setenv(run.STARTED_OVER, times)
    monkeypatch.setattr(run, "_run", lambda declared, today, *_: (ExitCode.DONE, declared, today))
    monkeypatch.setattr(run, "_ensure_datasets", lambda *_: {})
    monkeypatch.setattr(run, "check_splits", lambda *_: None)
    monkeypatch.setattr(run, "absent_pictures", lambda *_: "")
    monkeypatch.setattr(summary, "_report", lambda *_: (None, "", NOT_ASKED))
    settings = settings_of(tmp_path, flag)
    ledger = settings.ledger
    sweep = Sweep("s", "paper", (BASELINE,), Protocol(seeds=2))
    first, second = expand(sweep, {})
    finish(ledger, first, Made({TOP1: 50.0}))
    ledger.commit(first.key, (ledger.result(first.key) or {}) | {"code": "older"})
    ledger.add_attempt(second.key, {"error": "ValueError: no", "final": True})
    run.run_sweep(sweep, sweep, settings)
    left = ledger.attempts(second.key) if flag == "--retry-failed" else ledger.result(first.key)
    assert bool(left) == (times == "1")


def test_hours_of_a_command_that_begins_anew_count_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, float]] = []

    def lose_ray(state: DriverState) -> None:
        state.lost_seconds = 1800.0
        state.start_over("Ray has died")

    monkeypatch.setenv(run.HOURS_USED, "2.5")
    monkeypatch.setattr(run, "_join_ray", lambda *_: TrialResources(max_concurrent=1))
    monkeypatch.setattr(tuner, "run_trials", lose_ray)
    settings = dataclasses.replace(
        settings_of(tmp_path), start_over=lambda reason, hours: heard.append((reason, hours))
    )
    today = plan(Sweep("s", "paper", (BASELINE,), Protocol()), settings.ledger, {})
    tracker: Any = SimpleNamespace(enqueue=lambda *_: None)
    with LiveView(today, False, True) as view:
        run._run_trials(today, settings, {"cifar10": dataset("cifar10", settings.data_dir)}, {}, view, tracker)
    assert heard == [("Ray has died", 3.0)]
