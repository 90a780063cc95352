"""A driver that another one has replaced ends with 2 and a sentence, and leaves neither plan nor report behind."""

from pathlib import Path

import pytest

from sweeps.cifar_width import CELLS
from sweeps.cli import run
from sweeps.cli.options import parser
from sweeps.cli.run import run_sweep
from sweeps.cli.settings import asked_part, declare, settle
from sweeps.experiment.sweep import Protocol
from sweeps.report import build
from sweeps.report.render.document import Document
from sweeps.store.lease import LeaseLostError
from sweeps.store.ledger import Ledger
from sweeps.store.process import this_process

SMALL = "synthetic:size=32,classes=2,train=20,test=8"
REPORT = Document("", "", "", (), ())


def replaced(ledger: Ledger, title: str) -> None:
    """Give the lease of a sweep to another driver."""
    ledger.write_json(f"leases/{title}.json", {"owner": "another"} | this_process() | {"host": "elsewhere", "pid": 7})


@pytest.mark.parametrize("moment", ["plan", "_run", "after"])
def test_sweep_that_another_driver_has_taken_over(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--profile", "demo", "--output", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data"))
    options = parser("cifar_width", "").parse_args(words)
    settings = settle(CELLS, options)
    sweep = declare("cifar_width", CELLS, Protocol(), options, settings)
    ended = list[str]()
    monkeypatch.setattr(run, "_end_at_once", ended.append)
    known = run.plan
    late = "late"

    def train(*arguments: object) -> tuple[object, ...]:
        if moment != "plan":
            replaced(settings.ledger, sweep.title)
        if moment == "_run":
            arguments[2].ledger.write(late, b"")  # type: ignore[attr-defined]
        return run.ExitCode.DONE, arguments[0], arguments[1]

    def plan(*arguments: object) -> object:
        value = known(*arguments)  # type: ignore[arg-type]
        if moment == "plan":
            replaced(settings.ledger, sweep.title)
        return value

    monkeypatch.setattr(run, "_ensure_datasets", lambda sweep, settings: {})
    monkeypatch.setattr(run, "check_splits", lambda trials, folder: None)
    monkeypatch.setattr(run, "_run", train)
    monkeypatch.setattr(run, "plan", plan)
    with pytest.raises(ValueError, match="another driver has taken over this sweep: process 7 on elsewhere"):
        run_sweep(sweep, asked_part(sweep, options), settings)
    assert len(ended) == 1
    assert settings.ledger.read(late) is None
    assert (settings.ledger.read_json(f"plans/{sweep.title}.json") is None) == (moment == "plan")
    assert not (tmp_path / "out" / "reports").exists()
    assert capsys.readouterr().out == ""


def test_report_of_a_driver_that_was_replaced_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def guard() -> None:
        raise LeaseLostError

    ledger = Ledger(str(tmp_path / "ledger"), guard)
    monkeypatch.setattr(build, "read_sweep", lambda ledger, title: None)
    monkeypatch.setattr(build, "document", lambda ledger, results: REPORT)
    monkeypatch.setattr(build, "files", lambda report, tidy: {"report.html": b""})
    monkeypatch.setattr(build, "tidy", lambda results: None)
    with pytest.raises(LeaseLostError):
        build.make(ledger, "s", tmp_path / "reports", "")
    assert not (tmp_path / "reports").exists()
