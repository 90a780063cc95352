"""A user at a shell: commands as they are typed or printed, in a folder with a space, run in this process.

A shell makes the words of each, so that a quote which is missing is noticed. A process of their own would take the two
seconds of every import.
"""

from __future__ import annotations

import io
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from crelu_data.__main__ import main as data_main
from sweeps.__main__ import main as verbs_main
from sweeps.cli import run
from sweeps.execution import tuner
from sweeps.execution.resources import TrialResources
from tests.support.commands import environment
from tests.support.one_worker import OneWorker

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "RAY_ADDRESS", "CRELU_DATA", "CRELU_DATA_SOURCE",
             "IMAGENET_DIR", "CRELU_NOTIFY")  # fmt: skip


class ShellUser:
    """A user with a home, in a folder of their own; all that a command says is returned."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, store: Callable[[], Path],
                 bucket: Callable[[], str]) -> None:  # fmt: skip
        """Move this process into the user's folder; `store` gives MLflow's empty store, `bucket` a place on S3."""
        self.folder = home / "my folder"
        self.folder.mkdir()
        self.patch = patch
        self.store = store
        self.bucket = bucket
        for name, value in environment(home).items():
            patch.setenv(name, value)
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.chdir(self.folder)
        patch.setattr(run, "_join_ray", lambda *_: TrialResources(max_concurrent=1))
        patch.setattr(tuner, "_tuner", OneWorker)

    def words(self, command: str) -> list[str]:
        """Return the words that a shell makes of a command."""
        made = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
        assert not made.stderr
        return made.stdout.split("\0")[:-1]

    def runs(self, command: str, code: int = 0) -> str:
        """Run a command, which must end with this code; return what it says."""
        return self.says(*self.words(command), code=code)

    def says(self, *words: str, code: int = 0) -> str:
        """Run words of a command, which must end with this code; return what it says."""
        assert words[0] == sys.orig_argv[0], words
        module, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
        self.patch.setattr(sys, "argv", [module, *arguments])
        self.patch.setattr(sys, "orig_argv", list(words))
        heard = io.StringIO()
        with redirect_stdout(heard), redirect_stderr(heard):
            ended = _ended(module)
        assert ended == code, f"{ended}: {heard.getvalue()}"
        return heard.getvalue()

    def asks(self, module: str, *words: str, code: int = 0) -> str:
        """Run a module with these words."""
        return self.says(sys.orig_argv[0], "-m", module, *words, code=code)

    def shell(self, command: str) -> None:
        """Run a command of another program by a shell, which must end with 0."""
        ended = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr

    def stand_in(self, program: str) -> Path:
        """Put a program first on $PATH that does nothing but write its words, one a line, to the returned file."""
        folder = self.folder / "programs"
        folder.mkdir(exist_ok=True)
        (folder / program).write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0 was asked"\n')
        (folder / program).chmod(0o755)
        self.patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return folder / f"{program} was asked"

    def keeps_runs_in(self, database: Path) -> None:
        """Put MLflow's empty store where the user's runs are to go: making one takes seconds."""
        database.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.store(), database)


def _ended(module: str) -> object:
    """Run a module with sys.argv and return its exit code."""
    try:
        if module == "crelu_data":
            return data_main(sys.argv[1:])
        if module == "sweeps":
            return verbs_main()
        runpy.run_path(module, run_name="__main__") if module.endswith(".py") else runpy.run_module(
            module, run_name="__main__"
        )
    except SystemExit as end:
        return end.code
    return 0
