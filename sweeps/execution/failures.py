"""Failures of trials on a worker, as the ledger keeps them, and which of them are not worth another try."""

from __future__ import annotations

import re
from pathlib import Path

from crelu_models.named import user_line
from sweeps.store.ledger import Json, Ledger, failed_attempt

PACKAGES = Path(__file__).resolve().parents[2]  # holds sweeps, data and crelu_models
TRACE_LINE = re.compile(r'File "(?:[^"]*/)?((?:sweeps|crelu_data|data|crelu_models)/[\w/]+\.py)", line (\d+)')
# Faults of a program: a training computes the same again, and so would meet the same again.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)


class PassingRankError(RuntimeError):
    """Death of a rank, or an error of one that may pass where it is raised in the worker's own process."""


# Errors of memory, disks, networks and machines, which may pass; a worker that is told to end raises SystemExit.
PASSING = (OSError, MemoryError, SystemExit, PassingRankError)


def record_failure(ledger: Ledger, key: str, error: BaseException, *, is_fault: bool = False) -> bool:
    """Record a failed attempt of trial `key`, and return whether it is the last one.

    A fault is, by its type or because someone says so. So is an error that the attempt before met at the same place,
    unless it is one of memory, of a device or of files.
    """
    attempt = attempt_of(error, final=is_fault or isinstance(error, FAULTS))
    earlier = ledger.attempts(key)
    if not attempt["final"] and not may_pass(error):
        attempt["final"] = bool(earlier) and _is_same(attempt, earlier[-1])
    ledger.add_attempt(key, attempt)
    return bool(attempt["final"])


def attempt_of(error: BaseException, *, final: bool) -> Json:
    """Return the record of a failed attempt: type and message of its error, the line of the user's code, the trace."""
    attempt = failed_attempt(error, final)
    line = user_line(error)
    if line and line not in attempt["error"]:
        attempt["error"] += f" ({line})"
    return attempt | ({"where": line} if line else {})


def failure_signature(attempt: Json) -> str:
    """Return the type of an error and the innermost line of our code or of the user's: together they name a fault.

    Our files are known by their paths within the packages, so that workers and installations elsewhere give the same.
    """
    kind = str(attempt.get("error", "")).partition(":")[0]
    if attempt.get("where"):  # in the user's code
        return f"{kind} at {attempt['where']}"
    trace = str(attempt.get("trace", ""))
    lines = [(file, number) for file, number in TRACE_LINE.findall(trace) if (PACKAGES / file).is_file()]
    if not lines:
        return kind
    # The stack of a process that hung begins with its innermost line.
    file, number = lines[0] if "most recent call first" in trace else lines[-1]
    return f"{kind} at {file}:{number}"


def _is_same(attempt: Json, other: Json) -> bool:
    return attempt["error"] == other.get("error") and failure_signature(attempt) == failure_signature(other)


def may_pass(error: BaseException) -> bool:
    """Return whether an error is of memory, a device, files or a machine: another try may not meet it."""
    from sweeps.training.run_trial import device_failed, out_of_memory

    return isinstance(error, PASSING) or device_failed(error) or out_of_memory(error)
