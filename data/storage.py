"""Files on whatever pyarrow.fs knows: local folders, s3://BUCKET/PREFIX ($AWS_ENDPOINT_URL names any S3), and locks."""

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


def open_filesystem(where: str) -> tuple[arrow_fs.FileSystem, str]:
    """Return the file system of a folder or URI, and the path there; ValueError for a URI that cannot be one.

    pyarrow is imported with the first file: what only declares and explains a sweep needs none.
    """
    from pyarrow import fs

    if "://" not in where:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(where))
    try:
        system, path = fs.FileSystem.from_uri(where)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{where} is no place that can be read: {error}; a folder, or s3://BUCKET/PREFIX") from None
    return system, path.rstrip("/")


@contextmanager
def exclusive_lock(lock: Path, alive: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Wait for any other process that holds the lock; it is freed however its holder dies.

    `alive` is called now and then while waiting, and may raise to give up.
    """
    with lock.open("w") as file:
        with suppress(OSError):  # a network disk without locks
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    alive()
                    time.sleep(0.2)
        yield
