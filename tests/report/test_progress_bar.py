"""The bar of long work: on a terminal and after a while alone, and gone at the end."""

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.__main__ import parser as verbs
from sweeps.analysis.theory import arguments as analysis
from sweeps.cli import run
from sweeps.cli.options import parser
from sweeps.cli.settings import settle
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.sweep import Sweep
from sweeps.report import progress_bar
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, Made, make
from tests.support.waiting import until


class Terminal(io.StringIO):
    """A terminal in memory."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return the terminal that standard error is from now on, where a bar does not wait."""
    sink = Terminal()
    monkeypatch.setattr(sys, "stderr", sink)
    monkeypatch.setattr(progress_bar, "PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CI", raising=False)
    return sink


def test_bar_names_the_part_and_counts_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with progress_bar.progress_bar("report on s", 3) as begin:
        begin("reading [b]trials")
        until(
            lambda: "report on s: reading [b]trials" in terminal.getvalue(),
            "the first part",
            60,
            state=terminal.getvalue,
            poll=0.02,
        )
        assert "0/3" in terminal.getvalue()
        begin("statistics")
        begin("pages")
        until(lambda: "pages" in terminal.getvalue() and "2/3" in terminal.getvalue(), "the last", 60, poll=0.02)
    assert terminal.getvalue().endswith("\x1b[2K"), "the bar is gone"


def test_short_work_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(progress_bar, "PATIENCE", 600.0)
    with progress_bar.progress_bar("report on s", 1) as begin:
        begin("reading")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("how", ["quiet", "CI", "file"])
def test_none_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    terminal = terminal_of(monkeypatch)
    if how == "CI":
        monkeypatch.setenv("CI", "1")
    if how == "file":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    with progress_bar.progress_bar("report on s", 1, quiet=how == "quiet") as begin:
        begin("reading")
    assert terminal.getvalue() == ""


def report(output: Path) -> None:
    """Write the report of a sweep."""
    options = verbs().parse_args(["report", "s-demo", "--output", str(output)])
    assert options.verb(options) == 0


def send(output: Path) -> None:
    """Send MLflow what it lacks of a sweep."""
    words = ["reconcile", "s-demo", "--output", str(output), "--tracking-uri", f"sqlite:///{output}/mlflow.db"]
    options = verbs().parse_args(words)
    assert options.verb(options) == 0


def analyse(output: Path) -> None:
    """Analyse without weights."""
    from sweeps.analysis.job import run_command
    from sweeps.analysis.theory import JOB

    words = ["--samples", "2", "--output", str(output), "--device", "cpu"]
    assert run_command(JOB, analysis().parse_args(words), analysis().parse_args([])) == 0


def prepare_pictures(output: Path) -> None:
    """Prepare the pictures that a sweep is without."""
    cell = dataclasses.replace(BASELINE, dataset="synthetic:train=200,test=10")
    words = ["--output", str(output), "--profile", "paper", "--data-dir", str(output / "data")]
    run._ensure_datasets(Sweep("s", "paper", (cell,)), settle((cell,), parser("s", "").parse_args(words)))


@pytest.mark.parametrize(
    ("work", "shown"),
    [(report, "report on s-demo"), (send, "sending to MLflow"), (analyse, "theory"), (prepare_pictures, "200/200")],
)
def test_each_long_work_has_a_bar_on_a_terminal(
    work: Callable[[Path], None], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Ledger.in_output(str(tmp_path)), Sweep("s", "demo", (BASELINE,)), lambda _: Made({TOP1: 9.5}))
    terminal = terminal_of(monkeypatch)
    work(tmp_path)
    assert shown in terminal.getvalue()
    assert "━" in terminal.getvalue()
