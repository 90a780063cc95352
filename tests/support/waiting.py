"""Waits that end: with what was waited for, or with a sentence that says what did not come and why."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


def nothing() -> str:
    """Return no text: the default of what a wait checks and of what it adds to its reason."""
    return ""


def until(
    ready: Callable[[], Value],
    what: str,
    seconds: float,
    check: Callable[[], object] = nothing,
    state: Callable[[], str] = nothing,
    poll: float = 0.2,
) -> Value:
    """Return the first true value of `ready`.

    Raises AssertionError after `seconds`, with `state()` as the reason. `check` runs between two looks, `poll` seconds
    apart, and raises as soon as `ready` can no longer come true.
    """
    ends = time.monotonic() + seconds
    while True:
        value = ready()
        if value:
            return value
        check()
        assert time.monotonic() < ends, f"{what}: not within {seconds:g} s; last seen: {value!r}\n{state()}"
        time.sleep(poll)


def output(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    folder: Path,
    seconds: float,
    check: Callable[[], object] = nothing,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its code and its output, standard error included.

    Raises AssertionError after `seconds`, with what the command said so far, and as soon as `check` raises. The output
    goes to a file: a child that outlives the command, as SSH's shared connection does, does not hold it up.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )

        def said() -> str:
            return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")

        try:
            words = " ".join(map(str, command))
            until(lambda: process.poll() is not None, words, seconds, check, lambda: said()[-6000:])
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return subprocess.CompletedProcess(command, process.returncode, said())
