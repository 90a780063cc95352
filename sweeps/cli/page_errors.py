"""Errors of a page before it runs: a cell, search or net that cannot be is a sentence with the page's line."""

from __future__ import annotations

import os
import re
import sys
from types import TracebackType
from typing import Final, NamedTuple

from crelu_data.interrupts import explain_interrupt
from crelu_models.command_line import sentence
from sweeps.cli.options import ExitCode

OURS: Final = ("sweeps", "crelu_models", "crelu_data")
# A call of ours with other arguments than it has: Cell.__init__() got an unexpected keyword argument 'nett'.
CALL: Final = re.compile(r"(\w+)(\.__(init|new)__)?\(\) (missing|got|takes) ")


class SourceLine(NamedTuple):
    """One line of a program: its module, file and number."""

    module: str
    file: str
    number: int

    @property
    def is_ours(self) -> bool:
        """Return whether it is a line of this project, and not of the page, which may lie in sweeps/."""
        return self.module.partition(".")[0] in OURS


def explain_page_errors() -> None:
    """Let an error that ends a page be explained, unless the program has its own way with errors."""
    if sys.excepthook in (sys.__excepthook__, explain_interrupt):
        sys.excepthook = _explain


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what is wrong with a page, and end with 2; any other error has its traceback."""
    if isinstance(error, ValueError | TypeError) and (line := page_line(error, trace)) is not None:
        print(f"error: {os.path.relpath(line.file)}, line {line.number}: {sentence(error)}", file=sys.stderr)
        raise SystemExit(ExitCode.USAGE)
    explain_interrupt(kind, error, trace)


def page_line(error: Exception, trace: TracebackType | None) -> SourceLine | None:
    """Return the page's line behind an error of ours; None for any other error."""
    lines: list[SourceLine] = []
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        lines.append(SourceLine(module, trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    page = next((line for line in reversed(lines) if not line.is_ours), None)
    if page is None:
        return None
    if isinstance(error, TypeError):  # raised by the call itself, in the page's line
        import sweeps

        call = CALL.match(str(error))
        return page if call is not None and call[1] in sweeps.__all__ else None
    return page if lines[-1].is_ours else None
