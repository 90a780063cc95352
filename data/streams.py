"""Standard streams that stop no command: signs that they cannot encode are spelled, and a closed stream is let go.

Progress is shown on them as a bar, or as lines where nobody sits at a terminal.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from crelu_data.storage import Progress, no_progress
from crelu_models.command_line import FULL

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Signs of tables and reports for terminals that have no others than ASCII's.
SPELLED: Final = {"±": "+-", "†": "+", "‡": "++", "–": "-", "—": "-", "−": "-", "·": "|", "×": "x", "…": "...",
                  "≥": ">=", "≤": "<=", "→": "->", "“": '"', "”": '"', "’": "'"}  # fmt: skip
EVERY: Final = 5.0  # seconds between lines of progress where the output is not a terminal
LEAST: Final = 1.0  # seconds of a part before which its speed is not told
HANDLER: Final = "crelu.spelled"
GONE: Final = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)  # errors of a stream that nobody reads any more


def spell(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for signs that a stream cannot encode, and where it goes on; another error is raised."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def in_ascii(text: str) -> str:
    """Return a text as it is spelled where a stream has no other signs than ASCII's."""
    return "".join(sign if sign.isascii() else _spelled(sign) for sign in text)


def _spelled(sign: str) -> str:
    """Return what stands for a sign: its like in ASCII, or its number."""
    return SPELLED.get(sign) or sign.encode("ascii", "backslashreplace").decode()


class _Lasting(io.RawIOBase):
    """Stream that drops what is written to it once its reader has gone."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.is_gone = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return not self.is_gone and os.isatty(self.descriptor)

    def write(self, content: ReadableBuffer) -> int:
        size = memoryview(content).nbytes
        if self.is_gone:
            return size
        try:
            return os.write(self.descriptor, content)
        except OSError as error:
            if error.errno not in (*GONE, *FULL):
                raise
            self.is_gone = error.errno in GONE
            return size


def make_lasting() -> None:
    """Let no print of this process fail for its signs, or for a standard stream that was closed."""
    codecs.register_error(HANDLER, spell)
    sys.stdout = _lasting(sys.stdout)
    sys.stderr = _lasting(sys.stderr)


def _lasting(stream: TextIO | None) -> TextIO:
    """Return a stream that lasts in place of one; one that is no file of the system stays."""
    if stream is None:  # it was closed before this process began
        return open(os.devnull, "w", encoding="utf-8")  # as long as the process
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    stream.flush()
    is_line_buffered = stream.isatty() or stream is sys.stderr
    raw = io.BufferedWriter(_Lasting(descriptor))
    return io.TextIOWrapper(raw, stream.encoding, HANDLER, line_buffering=is_line_buffered)


@contextmanager
def shown_progress(quiet: bool = False) -> Iterator[Progress]:
    """Yield a function that shows progress: a bar on a terminal, a line every few seconds elsewhere, if not `quiet`."""
    if quiet:
        yield no_progress
        return
    if not sys.stderr.isatty() or os.environ.get("CI"):
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:,.0f}/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(text: str, done: int, total: int) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=total, rate=0.0)
            task = bars.tasks[tasks[text]]
            bars.update(task.id, completed=done, total=total, rate=task.finished_speed or task.speed or 0.0)

        yield report


def _lines() -> Progress:
    """Return a function that prints a line of progress every few seconds."""
    starts: dict[str, float] = {}
    last = time.monotonic()

    def report(text: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        starts.setdefault(text, now)
        if now - last >= EVERY:
            last = now
            seconds = now - starts[text]
            rate = done / seconds if seconds >= LEAST else 0.0
            speed = f", {rate:,.0f}/s, {(total - done) / rate:,.0f} s left" if rate else ""
            print(f"{text}: {done:,} of {total:,}{speed}", file=sys.stderr, flush=True)

    return report
