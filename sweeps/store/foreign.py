"""Names and texts from a file that somebody else may have written: checked before a path or a screen gets them.

A ledger, a capsule and a backup may write nothing to the reader's machine, terminal or browser. A name has to be a
known one below its folder. A text loses its control characters, and with them each escape sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Files of a finished trial, in its folder.
TRIAL_FILES: Final = frozenset({"trial.json", "history.json", "weights.safetensors", "tables/scores.parquet"})
TASK_FILES: Final = "files/"  # how the names of those begin that a training function writes to run.folder
ANALYSIS_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(parquet|csv|png)")
SWEEP_TITLE: Final = re.compile(r"\w[\w.=,+@-]*")
# C0 and C1 without tab and newline, delete, and the marks that turn the direction of writing.
CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# A JSON file without these bytes has no control character in any text: most files, at the speed of a search.
SUSPECT: Final = re.compile(
    rb"\\[bfr]|\\u00[0189]|\\u007[fF]|\\u06|\\u20|\x7f|\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]"
)


def relative(name: str) -> str:
    """Return a name below a folder; ValueError for an absolute one, and for one that leads out or is no plain name."""
    parts = name.split("/")
    if CONTROL.search(name) or "\\" in name or "\n" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:200]!r} is no name of a file below its folder")
    return name


def is_trial_file(name: str) -> bool:
    """Tell whether a name, below the folder of a trial, may be that of a file of its result."""
    if not name.startswith(TASK_FILES):
        return name in TRIAL_FILES
    try:
        name.encode()  # a file system takes bytes that are no text, a store does not
        relative(name)
    except ValueError:
        return False
    return True


def known_trial_files(files: object) -> bool:
    """Tell whether the list of a result's files, with their digests, names files of a trial and no others."""
    return isinstance(files, dict) and all(
        is_trial_file(name) and isinstance(digest, str) for name, digest in files.items()
    )


def known_analysis_files(files: object) -> bool:
    """Tell whether the list of an analysis's files names tables and pictures of its folder and nothing else."""
    return isinstance(files, dict | list) and all(
        isinstance(name, str) and ANALYSIS_FILE.fullmatch(name) for name in files
    )


def printable(text: str) -> str:
    r"""Return a text with its control characters spelt out: an escape sequence is seen as \x1b[2J, and does nothing."""
    return CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def printable_json(content: bytes, value: T) -> T:
    """Return the value that `content` holds as JSON with every text and name in it printable."""
    if not SUSPECT.search(content):
        return value
    shown: T = _printable(value)
    return shown


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(name): _printable(part) for name, part in value.items()}
    if isinstance(value, Iterable):
        return [_printable(part) for part in value]
    return value
