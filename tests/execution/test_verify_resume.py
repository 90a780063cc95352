"""A proof of resumption: what its process says line by line, and what of two trainings is compared."""

import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.execution import verify_resume, worker
from sweeps.experiment.task_source import TaskFailedError
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig
from tests.support.sweeps import BASELINE

CONFIG = RuntimeConfig("", "")
Printed = pytest.CaptureFixture[str]


@pytest.fixture
def printed(capfd: Printed) -> Iterator[Printed]:
    """Return what is printed, and give this process its standard output back, which a process of a proof puts away."""
    ours = os.dup(1)
    yield capfd
    os.dup2(ours, 1)
    os.close(ours)


def ordered(train: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the order to train by `train`."""
    order = {"trial": Trial(BASELINE).to_json(), "config": dataclasses.asdict(CONFIG)}
    monkeypatch.setattr(worker, "train_function", lambda *_: train)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(order)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("cifar10 is\nnot prepared"), "cannot train: cifar10 is not prepared\n"),
        (
            OSError(28, "No space left", "ledger"),
            "cannot train: ledger: No space left; make room there, then the same command goes on\n",
        ),
        (TaskFailedError(KeyError("lr"), True), "cannot train: KeyError: 'lr'\n"),
    ],
)
def test_process_that_cannot_train_says_why_in_a_line(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    def train(*_: Any) -> None:
        raise error

    ordered(train, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        verify_resume._child()
    assert ended.value.code == 2
    assert printed.readouterr().out == expected


def test_each_step_is_a_line_whatever_the_function_prints(monkeypatch: pytest.MonkeyPatch, printed: Printed) -> None:
    def train(trial: Trial, config: RuntimeConfig, report: object, stop: Callable[[], bool]) -> None:
        for _ in range(2):
            os.write(1, b"epoch 1 ")
            stop()

    ordered(train, monkeypatch)
    verify_resume._child()
    out, err = printed.readouterr()
    assert (out, err) == ("step\nstep\n", "epoch 1 epoch 1 ")


@pytest.mark.parametrize(
    ("files", "expected"),
    [({}, ["best.pt in run.folder"]), ({"files/best.pt": "2"}, ["best.pt in run.folder"]),
     ({"files/best.pt": "1"}, [])],
)  # fmt: skip
def test_a_file_of_a_function_that_differs_or_is_lost_is_named(
    files: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    trial = Trial(BASELINE)
    roots = [str(tmp_path / "whole"), str(tmp_path / "killed")]
    # The histories have times, and are compared without them.
    Ledger(roots[0]).commit(trial.key, {"files": {"history.json": "1", "files/best.pt": "1"}})
    Ledger(roots[1]).commit(trial.key, {"files": {"history.json": "2", **files}})
    assert verify_resume._differences(trial, *roots) == expected
    assert verify_resume._differences(trial, *reversed(roots)) == expected


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
