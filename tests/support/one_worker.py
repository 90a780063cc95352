"""A sweep's command in this process, with one worker in place of Ray's: all else is the command's own."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from sweeps.cli import run
from sweeps.execution import tuner
from sweeps.execution.messages import Message
from sweeps.execution.resources import TrialResources
from sweeps.execution.searcher import LedgerSearcher
from sweeps.execution.session import DriverState
from sweeps.execution.worker import work
from tests.support.commands import environment


class OneWorker:
    """Tuner that trains what its searcher suggests, one assignment after the other."""

    def __init__(self, searcher: LedgerSearcher, session: DriverState, folder: str) -> None:
        """Take over the searcher of a session; nothing is written to the folder."""
        self.searcher = searcher
        self.session = session
        self.folder = folder

    def fit(self) -> None:
        """Train until the searcher has nothing more."""
        for number in itertools.count():
            name = f"worker-{number}"
            assignment = self.searcher.suggest(name)
            if assignment == "FINISHED":
                return
            assert assignment is not None, "the searcher waits, and nothing runs"
            self.searcher.trial_started(name)
            work(assignment, self._listener(name))
            self.searcher.on_trial_complete(name)

    def _listener(self, name: str) -> Callable[[Message], None]:
        return lambda message: self.searcher.on_trial_result(name, {"news": [message]})


def command_here(
    main: Callable[[], object], words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[object, str, str]:
    """Run a page's `main` with these words and a home below `folder`; return its exit code and both outputs."""
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS", "CRELU_DATA", "CRELU_DATA_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(run, "_join_ray", lambda *_: TrialResources(max_concurrent=1))
    monkeypatch.setattr(tuner, "_tuner", OneWorker)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main()
    return end.value.code, out.getvalue(), err.getvalue()
