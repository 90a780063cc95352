"""Standard streams that stop no command: signs that they cannot encode are spelled, and a closed stream is let go."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Signs of tables and reports for terminals that have no others than ASCII's.
SPELLED: Final = {"±": "+-", "†": "+", "‡": "++", "–": "-", "—": "-", "−": "-", "·": "|", "×": "x", "…": "...",
                  "≥": ">=", "≤": "<=", "→": "->", "“": '"', "”": '"', "’": "'"}  # fmt: skip
HANDLER: Final = "crelu.spelled"
FULL: Final = (errno.ENOSPC, errno.EDQUOT)  # errors of a stream whose next line may find room again
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
