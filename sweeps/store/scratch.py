"""Scratch folders of this host: each belongs to a process, and goes with it or at the next start of another one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NAME: Final = "crelu-scratch-"
_held: dict[str, int] = {}  # the lock of each folder of this process: the kernel takes it away with the process


def make_scratch(kind: str) -> str:
    """Make a folder that this process owns until `remove_scratch`, or until it dies; delete those of dead processes."""
    _remove_abandoned()
    while True:
        folder = tempfile.mkdtemp(prefix=f"{NAME}{kind}-")
        lock = _locked(folder)
        if lock is None or _is_there(folder, lock):
            break
        os.close(lock)  # another process took it for abandoned before it was locked
    if lock is not None:
        _held[folder] = lock
    return folder


def remove_scratch(folder: str) -> None:
    """Delete a scratch folder, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = _held.pop(folder, None)
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """Yield a scratch folder, and delete it behind."""
    folder = make_scratch(kind)
    try:
        yield Path(folder)
    finally:
        remove_scratch(folder)


def _remove_abandoned() -> None:
    """Delete this user's scratch folders whose process has died. One that cannot be locked may be somebody's."""
    for path in Path(tempfile.gettempdir()).glob(f"{NAME}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.getuid() or path.is_symlink() or str(path) in _held:
                continue
            lock = _locked(str(path))
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _locked(folder: str) -> int | None:
    """Return the handle of a folder that this process has locked; None where another one has, or nobody can."""
    handle = -1
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle >= 0:
            os.close(handle)
        return None
    return handle


def _is_there(folder: str, handle: int) -> bool:
    """Return whether the folder of a handle still has this name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(folder), os.fstat(handle))
    return False
