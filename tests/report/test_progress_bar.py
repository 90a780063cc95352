"""The bar of long work: on a terminal and after a while alone, and gone at the end."""

import io
import sys

import pytest

from sweeps.report import progress_bar
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
