"""What killed processes leave on a ledger: half-written files, and checkpoints of trials that are finished."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from sweeps.store.ledger import Ledger

HALF_WRITTEN: Final = re.compile(r"\..+\.\d+\.\d+\.(part|draft)")  # named after process and thread
AGE: Final = 300.0  # seconds, by the disk's own clock, after which no writer of such a file can still be at it


def remove_leftovers(ledger: Ledger) -> int:
    """Delete what no living process can need, and return how many files and folders that were.

    Another sweep may write to the ledger meanwhile. A trial with a result needs no checkpoint, and a kill between the
    two writes leaves one. On object storage nothing is half-written.
    """
    removed = 0
    for key in ledger.folders("checkpoints"):
        if ledger.result(key) is not None:
            ledger.delete(f"checkpoints/{key}")
            removed += 1
    if not ledger.local:
        return removed
    ledger.write("probe", b"")
    now = Path(ledger.path("probe")).stat().st_mtime
    ledger.delete("probe")
    for folder, _, names in os.walk(ledger.path("")):
        for name in names:
            if not HALF_WRITTEN.fullmatch(name):
                continue
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # its writer has just finished
                if now - path.lstat().st_mtime > AGE:
                    path.unlink()
                    removed += 1
    return removed
