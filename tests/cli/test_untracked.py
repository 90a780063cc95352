"""A sweep that is trained and that MLflow does not take ends with 4, and with the command that mends it."""

import dataclasses
import errno
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from sweeps.__main__ import main
from sweeps.__main__ import parser as verb_parser
from sweeps.cli import run
from sweeps.cli.command import Command
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import Settings, settle
from sweeps.cli.summary import conclude, print_summary, reconcile_command
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.plan import Plan, plan, plan_to_json
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.report.build import NOT_ASKED
from sweeps.store.integrity import noted_damage
from sweeps.tracking.cell_runs import Published
from sweeps.tracking.verb_words import words_of_store
from tests.support.sweeps import BASELINE, Made, finish

SWEEP = Sweep("part", "paper", (BASELINE,), Protocol(seeds=2))


def settings_of(output: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Settings:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = parser("part", "").parse_args(["--profile", "paper", "--output", str(output), *words])
    settings = settle(SWEEP.cells, options)
    experiment = settings.experiment or SWEEP.title
    return dataclasses.replace(settings, experiment=experiment, command=Command(("python", "-m", "page"), ()))


@pytest.mark.parametrize("broken", ["damaged", "a folder", "a closed port", "a folder of files"])
@pytest.mark.parametrize(("failed", "code"), [(0, ExitCode.UNTRACKED), (1, ExitCode.FAILED)])
def test_training_that_is_done_and_not_in_mlflow_is_4(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    failed: int,
    code: ExitCode,
) -> None:
    output = tmp_path / "it's 50% of?"
    output.mkdir()
    words: Sequence[str] = ()
    if broken == "damaged":
        (output / "mlflow.db").write_bytes(b"no database " * 1000)
    elif broken == "a folder":
        (output / "mlflow.db").mkdir()
    else:
        address = "http://127.0.0.1:9" if broken == "a closed port" else str(output / "mlruns")
        words = ("--tracking-uri", address, "--experiment", "an own one")
    settings = settings_of(output, monkeypatch, *words)
    trials = expand(SWEEP, {})
    for trial in trials[failed:]:
        finish(settings.ledger, trial, Made({TOP1: 10.0}))
    for trial in trials[:failed]:
        settings.ledger.add_attempt(trial.key, {"error": "ValueError: no", "final": True})
    today = plan(SWEEP, settings.ledger, {})
    assert today.to_do == []
    settings.ledger.write_json(f"plans/{SWEEP.title}.json", plan_to_json(today))
    first, declared, today = run._run(today, today, settings, {}, {})
    assert first == ExitCode.UNTRACKED
    command = reconcile_command(SWEEP, settings)
    told = capsys.readouterr().err
    assert command in told
    assert "not in MLflow" in told
    assert "Traceback" not in told
    expected = ["--output", str(output), *(words or ("--experiment", SWEEP.title))]
    assert shlex.split(command)[-len(expected) :] == expected
    ended = conclude(declared, today, settings, {}, first)
    print_summary(ended, settings)
    assert ended.code == code
    shown = capsys.readouterr().out
    assert "10.00" in shown
    assert (command in shown) is (code == ExitCode.UNTRACKED)
    assert (output / "reports" / SWEEP.title / "report.html").exists()


def finished(settings: Settings) -> Plan:
    """Write a finished sweep whose runs the ledger notes as complete in the settings' store; return its plan."""
    for trial in expand(SWEEP, {}):
        finish(settings.ledger, trial, Made({TOP1: 10.0}))
        note = {"uri": settings.tracking_uri, "experiment": settings.experiment, "run": "r"}
        settings.ledger.write_note(f"tracked/{trial.key}.json", note | {"sweeps": {SWEEP.title: note}})
    today = plan(SWEEP, settings.ledger, {})
    settings.ledger.write_json(f"plans/{SWEEP.title}.json", plan_to_json(today))
    return today


@pytest.mark.parametrize("broken", ["damaged", "deleted", "without the runs"])
def test_report_that_mlflow_does_not_take_is_4_with_the_command_that_sends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    settings = settings_of(tmp_path / "it's", monkeypatch)
    today = finished(settings)
    if broken == "damaged":
        (tmp_path / "it's/mlflow.db").write_bytes(b"no database " * 1000)
    elif broken == "without the runs":
        (tmp_path / "it's/mlflow.db").touch()
        monkeypatch.setattr("sweeps.tracking.cell_runs.publish_report", lambda *_: Published("", 0, 0))
    ended = conclude(today, today, settings, {}, ExitCode.DONE)
    print_summary(ended, settings)
    last = capsys.readouterr().out.splitlines()[-1]
    assert ended.code == ExitCode.UNTRACKED
    assert last.endswith("(MLflow lacks the report)")
    words = shlex.split(last.removeprefix("next").partition("   (")[0])
    assert words[-4:] == ["report", SWEEP.title, "--output", str(tmp_path / "it's")]
    monkeypatch.setattr("sys.argv", ["sweeps", *words[-4:]])
    assert main() == ExitCode.UNTRACKED


@pytest.mark.parametrize(
    ("variable", "asked", "experiment"),
    [
        ("", (), SWEEP.title),
        ("", ("--experiment", "mine"), "mine"),
        ("mine", (), "mine"),
        ("mine", ("--experiment", SWEEP.title), SWEEP.title),
    ],
)
def test_printed_reconcile_sends_the_runs_to_the_experiment_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, asked: tuple[str, ...], experiment: str
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", variable)
    monkeypatch.setattr("sweeps.tracking.cell_runs.publish_report", lambda *_: Published("", 0, 0))
    settings = settings_of(tmp_path / "it's", monkeypatch, *asked)
    today = finished(settings)
    (tmp_path / "it's/mlflow.db").touch()
    told = conclude(today, today, settings, {}, ExitCode.DONE).tracked
    of_report = shlex.split(told.partition("none of the runs is in MLflow; ")[2].removesuffix(" sends them"))
    expected = ["-m", "sweeps", "reconcile", SWEEP.title, "--output", str(tmp_path / "it's")]
    expected += ["--experiment", experiment]
    assert of_report[1:] == shlex.split(reconcile_command(SWEEP, settings))[1:] == expected
    assert verb_parser().parse_args(expected[2:]).experiment == settings.experiment


def test_words_of_a_command_take_no_login_of_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    for uri in ("https://me:secret@host", "mysql://me:secret@host/x"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        words = words_of_store("report", "s", "/out", "http://other")
        assert words == ["report", "s", "--output", "/out", "--tracking-uri", "http://other"]
        assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_report_of_runs_in_a_store_that_was_not_asked_is_no_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path / "out", monkeypatch)
    today = finished(dataclasses.replace(settings, tracking_uri="sqlite:////somewhere/else.db"))
    assert conclude(today, today, settings, {}, ExitCode.DONE).code == ExitCode.DONE


def test_models_that_mlflow_does_not_register_are_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("sweeps.tracking.registry.register", refuse)
    monkeypatch.setattr("sweeps.report.build.track", lambda *_: NOT_ASKED)
    settings = settings_of(tmp_path / "out", monkeypatch, "--register", "winners")
    ended = conclude(finished(settings), plan(SWEEP, settings.ledger, {}), settings, {}, ExitCode.DONE)
    print_summary(ended, settings)
    assert ended.code == ExitCode.UNTRACKED
    said = capsys.readouterr().out
    assert "winners is not registered (it cannot be written to" in said
    assert said.splitlines()[-1] == f"next      {settings.command.again()}   (MLflow lacks registered models)"


@pytest.mark.parametrize("damaged", [False, True])
def test_damage_that_the_end_of_a_sweep_sees_goes_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    settings = settings_of(tmp_path / "out", monkeypatch)
    today = finished(settings)
    known: list[set[str]] = []  # what the ledger notes as damaged whenever the runs are compared with it

    class Recorder:
        def __init__(self, *_: object) -> None:
            pass

        def register(self, *_: object) -> None:
            known.append(set(noted_damage(settings.ledger)))

        def waiting(self) -> int:
            return 0

        def close(self, *_: float) -> int:
            return 0

    monkeypatch.setattr("sweeps.tracking.tracker.Tracker", Recorder)
    key = today.statuses[0].trial.key
    if damaged:
        settings.ledger.write(f"trials/{key}/history.json", b"[{")
    _, declared, asked = run._run(today, today, settings, {}, {})
    assert known == ([set(), {key}] if damaged else [set()])
    assert declared is asked
    assert declared.count("failed") == int(damaged)
