"""A proof of resumption whose training cannot be: its process says why in one line, which the command repeats."""

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps.execution import verify_resume, worker
from sweeps.experiment.task_source import TaskFailedError
from sweeps.experiment.trial import Trial
from sweeps.training.runtime import RuntimeConfig
from tests.support.sweeps import BASELINE

CONFIG = RuntimeConfig("", "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("cifar10 is\nnot prepared"), "cannot train: cifar10 is not prepared\n"),
        (OSError(28, "No space left", "ledger"), "cannot train: ledger: No space left\n"),
        (TaskFailedError(KeyError("lr"), True), "cannot train: KeyError: 'lr'\n"),
    ],
)
def test_process_that_cannot_train_says_why_in_a_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: Any) -> None:
        raise error

    order = {"trial": Trial(BASELINE).to_json(), "config": dataclasses.asdict(CONFIG)}
    monkeypatch.setattr(worker, "train_function", lambda *_: train)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(order)))
    with pytest.raises(SystemExit) as ended:
        verify_resume._child()
    assert ended.value.code == 2
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        ("echo step; echo 'cannot train: cifar10 is not prepared'", 2, "^cifar10 is not prepared$"),
        ("echo step", 3, "^the training ended with exit code 3$"),
    ],
)
def test_command_repeats_why_its_process_cannot_train(
    lines: str, code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ncat > /dev/null\n{lines}\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ValueError, match=expected):
        verify_resume.verify(Trial(BASELINE), CONFIG, str(tmp_path), 1, 0)
