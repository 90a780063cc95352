"""Ctrl-C of a sweep: a word at once on any terminal, with what is saved and how long that takes; no traceback."""

import io
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.cli import run as cli_run
from sweeps.cli.interrupts import GracefulInterrupt
from sweeps.cli.live_view import LiveView, SweepProgress
from sweeps.experiment.plan import Plan, plan
from sweeps.experiment.sweep import Protocol
from sweeps.store.ledger import Ledger
from sweeps.tracking.tracker import Tracker
from tests.support.sweeps import BASELINE, CRELU, unsearched
from tests.support.waiting import until


class Terminal(io.StringIO):
    """A terminal in memory."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def today(tmp_path: Path) -> Plan:
    return plan(unsearched("s", (BASELINE, CRELU), Protocol()), Ledger(str(tmp_path)), {})


def test_answer_says_how_many_trials_are_saved_and_how_long_that_takes(today: Plan) -> None:
    progress = SweepProgress(today)
    assert progress.saving(0.5) == "no trial trains now"
    first, second = today.to_do
    progress.apply("started", first, {})
    assert progress.saving(0.5) == "saving 1 trial, about 3 s"
    progress.apply("started", second, {})
    # The look for the signal, a batch at the speed of the slower trial, and the writing.
    speed = second.recipe.batch / 6.2
    progress.apply("epoch", second, {"epoch": 1, "val/top1_err": 50.0, "sys/images_per_s": speed})
    progress.apply("epoch", first, {"epoch": 1, "val/top1_err": 50.0, "sys/images_per_s": 100 * speed})
    assert progress.saving(0.5) == "saving 2 trials, about 8 s"
    said: list[str] = []
    state: Any = SimpleNamespace(stop=lambda: None)
    with GracefulInterrupt(state, said.append, saving=lambda: progress.saving(5.0)):
        signal.raise_signal(signal.SIGINT)
    assert said == [
        "stopping: saving 2 trials, about 13 s (once more to end at once); the same command resumes",
    ]


def test_word_is_on_the_terminal_at_once(today: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", sink)
    monkeypatch.setattr("sweeps.cli.live_view.TICK", 600.0)
    monkeypatch.setenv("COLUMNS", "80")
    with LiveView(today, live=True, quiet=False) as view:
        # In the middle of an event the handler may wait for no lock of the view.
        with view.lock:
            view.log("stopping: a word")
        until(lambda: "stopping: a word" in sink.getvalue(), "the word", 60, poll=0.02)


def test_word_in_the_middle_of_another_print_is_said(
    today: Plan, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    view = LiveView(today, live=False, quiet=False)
    monkeypatch.setattr("builtins.print", refuse)
    view.log("stopping: a word")
    monkeypatch.undo()
    assert capfd.readouterr().err.endswith("stopping: a word\n")


@pytest.mark.parametrize(("code", "word"), [(0, "all is written"), (130, "the same command resumes")])
def test_interrupt_while_a_command_leaves_ends_it_without_a_traceback(code: int, word: str) -> None:
    script = (
        "import atexit, os, signal, sys\n"
        "from sweeps.cli.interrupts import end_at_interrupt\n"
        "from sweeps.cli.options import ExitCode\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), print('went on', flush=True)))\n"
        f"end_at_interrupt(ExitCode({code}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.strip() == f"ended at once, as asked; {word}"


def test_tracker_that_sends_on_and_on_is_left_after_the_time_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[float] = []
    clock = 100.0

    def join(seconds: float) -> None:
        joined.append(seconds)
        nonlocal clock
        tracker.sent += 1
        clock += 2.0

    monkeypatch.setattr("sweeps.tracking.tracker.time", SimpleNamespace(monotonic=lambda: clock))
    tracker: Any = SimpleNamespace(
        changed=threading.Condition(), closing_since=None, sent=0, queued={"a": None}, cells={}, compared=True,
        thread=SimpleNamespace(is_alive=lambda: True, join=join),
    )  # fmt: skip
    assert Tracker.close(tracker, 4.0, 5.0) == 1
    assert joined == [4.0, 3.0, 1.0]


def test_sentence_before_the_view_folds_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    sentence = "a sentence of three lines --on-a-terminal"
    assert cli_run.folded(sentence) == sentence
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert cli_run.folded(sentence).splitlines() == ["a sentence of three", "lines", "--on-a-terminal"]


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("-m", 130, "ended, as asked; nothing had begun"),
        ("/bin/crelu-sweeps", 130, "ended, as asked"),
        ("-c", -2, "Tra"),
    ],
)
def test_interrupt_among_the_imports_of_a_command_has_no_traceback(program: str, code: int, words: str) -> None:
    script = (
        f"import os, signal, sys; sys.argv = [{program!r}]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background ignores it\n"
        "import sweeps\n"
        "os.kill(os.getpid(), signal.SIGINT)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.strip().startswith(words)
    assert ("Traceback" in ended.stderr) == (program == "-c")
