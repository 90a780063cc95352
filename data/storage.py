"""File systems of pyarrow, local folders and s3://BUCKET/PREFIX ($AWS_ENDPOINT_URL names the server); file locks."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import fs as arrow_fs

Progress = Callable[[str, int, int], None]  # text, amount done, total


def no_progress(text: str, done: int, total: int) -> None:
    """Report nothing."""


def open_filesystem(location: str) -> tuple[arrow_fs.FileSystem, str]:
    """Return the file system of a folder or URI, and the path on it; ValueError for a URI that pyarrow cannot read.

    pyarrow is imported here, because a command that only declares or explains a sweep opens no file.
    """
    from pyarrow import fs

    if "://" not in location:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(location))
    try:
        system, path = fs.FileSystem.from_uri(location)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{location} cannot be opened: {error}; use a folder, or s3://BUCKET/PREFIX") from None
    return system, path.rstrip("/")


@contextmanager
def exclusive_lock(lock: Path, alive: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock on a file, after any other process; the system frees it even where the process is killed.

    `alive` is called every 0.2 s while waiting, and may raise an exception to give up.
    """
    with lock.open("w") as file:
        with suppress(OSError):  # some network disks have no locks
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    alive()
                    time.sleep(0.2)
        yield
