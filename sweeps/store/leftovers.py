"""Leftovers of killed processes on a ledger: half-written files, checkpoints of finished trials, words to workers."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from sweeps.store.lease import Drivers
from sweeps.store.ledger import Ledger

HALF_WRITTEN: Final = re.compile(r"\..+\.\d+\.\d+\.(part|draft)")  # named after process and thread
TO_WORKERS: Final = ("packs", "stops")  # folders of what a driver and its workers tell each other while both live
STACK: Final = ".hang"  # ends the name of the file with the stack of a pack that hung
KEY: Final = re.compile(r"\w+")  # of a trial; somebody else may have written the file that names it
AGE: Final = 300.0  # seconds, by the disk's own clock, after which no writer of such a file can still be at it


def remove_leftovers(ledger: Ledger, sweep: str) -> int:
    """Delete what no living process can need, and return how many files and folders that were.

    This process drives `sweep` and has no workers yet. Another sweep may write to the ledger meanwhile. A trial with a
    result needs no checkpoint, and a kill between the two writes leaves one. On object storage nothing is half-written.
    """
    removed = _remove_words(ledger, sweep)
    for key in ledger.folders("checkpoints"):
        if ledger.result(key) is not None:
            ledger.delete(f"checkpoints/{key}")
            removed += 1
    if not ledger.local:
        return removed
    probe = f".probe.{os.getpid()}.{threading.get_ident()}.part"  # no other driver deletes it meanwhile
    ledger.write(probe, b"")
    now = Path(ledger.path(probe)).stat().st_mtime
    ledger.delete(probe)
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


def _remove_words(ledger: Ledger, sweep: str) -> int:
    """Delete messages between dead drivers and their workers, but none while another driver may live."""
    words = [f"{folder}/{name}" for folder in TO_WORKERS for name in ledger.names(folder)]
    titles = (
        {name.removesuffix(".json") for name in ledger.names("leases") if name.endswith(".json")} if words else set()
    )
    drivers = Drivers(ledger)
    if any(drivers.look(title) is not None for title in sorted(titles - {sweep})):
        return 0
    for word in words:
        _remove_word(ledger, word)
    return len(words)


def trial_stack(key: str) -> str:
    """Return the ledger's name of the file that gets the stack of a process when the trial that it trains hangs."""
    return f"trials/{key}/hang.txt"


def pack_stack(pack: str) -> str:
    """Return the ledger's name of the file that gets the stack of a pack's process when it hangs."""
    return f"packs/{pack}{STACK}"


def remove_pack(ledger: Ledger, pack: str) -> None:
    """Delete what the workers of a pack that runs no more have noted; only on a disk do they leave a stack."""
    if ledger.local:
        _remove_word(ledger, pack_stack(pack))
    _remove_word(ledger, f"packs/{pack}.json")


def _remove_word(ledger: Ledger, word: str) -> None:
    """Delete a message between a driver and its workers; the stack of a pack that hung goes to the trial it names.

    There the next worker of that trial finds it.
    """
    if word.endswith(STACK):
        content = ledger.read(word) or b""
        first_line, _, stack = content.decode(errors="replace").partition("\n")
        key = first_line.strip()
        if stack and KEY.fullmatch(key):
            ledger.write(trial_stack(key), content)
    ledger.delete(word)
