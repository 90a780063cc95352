"""File systems of pyarrow, local folders and s3://BUCKET/PREFIX ($AWS_ENDPOINT_URL names the server); file locks."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from crelu_models.command_line import FULL

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
    login = login_in(location)
    if login is not None and login.password is not None:
        raise ValueError(
            f"the address of {re.split('[/?#]', login.place)[0]} holds a key, which others would see: give it by "
            "$AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY, or by a profile or role"
        )
    try:
        system, path = fs.FileSystem.from_uri(location)
    except (ValueError, NotImplementedError) as error:
        bare = location if login is None else f"{login.scheme}://{login.place}"
        reason = str(error).replace(location, bare)
        raise ValueError(f"{bare} cannot be opened: {reason}; use a folder, or s3://BUCKET/PREFIX") from None
    return system, path.rstrip("/")


class Login(NamedTuple):
    """Login in an address: the scheme before it, its name and password, and all that follows it."""

    scheme: str
    name: str
    password: str | None
    place: str


# A password may hold any sign, as SQLAlchemy reads it: it ends at the @ before the host. In http://host:5000/a@b there
# is a port and no password; a bucket has no port, and of a database SQLAlchemy takes the same for a password.
_LOGIN = r"([A-Za-z][\w+.-]*)://([^:/?#\[\]]*)(?::{}(.*?))?@([^@/?#]*(?:[/?#].*)?)"
_LOGIN_OR_PORT = re.compile(_LOGIN.format(r"(?!\d*[/?#])"), re.DOTALL)
_LOGIN_FIRST = re.compile(_LOGIN.format(""), re.DOTALL)
_LOGINS_FIRST = ("s3", "gs", "gcs", "postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")


def login_in(address: str) -> Login | None:
    """Return the login in an address, None where it has none; an @ in a path is no login."""
    scheme = address.partition("://")[0].partition("+")[0].lower()
    match = (_LOGIN_FIRST if scheme in _LOGINS_FIRST else _LOGIN_OR_PORT).fullmatch(address)
    return Login(*match.groups()) if match else None


@contextmanager
def full_disk_named(folder: os.PathLike[str] | str) -> Iterator[None]:
    """Name the folder in the error of a full disk, which names no file where it comes from an open one."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = os.fspath(folder)
        raise


def sync_folder(folder: Path) -> None:
    """Make a file's new name in a folder last through a loss of power; a disk that cannot do that is left alone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, where they are missing, so that they last through a loss of power."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


_DEVICES: dict[Path, int] = {}  # the disk of each folder that this process has written to


def check_mounted(folder: Path) -> None:
    """Raise OSError (ENODEV) where the disk has gone that a folder was on when this process first wrote to it.

    Its mount point is an empty folder then, on the disk below: what is written there would be lost from sight once the
    disk is back. The same folder on another disk is taken where it is not empty: a disk that is mounted again.
    """
    above = folder
    while not above.exists():
        above = above.parent
    device = above.stat().st_dev
    known = _DEVICES.setdefault(folder, device)
    if device == known:
        return
    if above != folder or not any(folder.iterdir()):
        raise OSError(errno.ENODEV, "the disk of this folder has gone; it is waited for", str(folder))
    _DEVICES[folder] = device


def unmounted_above(folder: Path, table: Path = Path("/etc/fstab")) -> Path | None:
    """Return the folder at or above this one that the machine's table of disks names and where no disk is mounted."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    fields = [line.split() for line in lines if not line.lstrip().startswith("#")]
    points = {Path(words[1].replace("\\040", " ")) for words in fields if len(words) > 1 and words[1].startswith("/")}
    for point in (folder, *folder.parents):
        if point in points:
            return None if os.path.ismount(point) else point
    return None


@contextmanager
def exclusive_lock(lock: Path, alive: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock on a file, after any other process; the system frees it even where the process is killed.

    `alive` is called every 0.2 s while waiting, and may raise an exception to give up.
    """
    with lock.open("w") as file:
        while _is_locked_by_another(file):
            alive()
            time.sleep(0.2)
        yield


def _is_locked_by_another(file: IO[str]) -> bool:
    """Try to take the lock on a file, and return whether another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # some network disks have no locks
        return False
    return False
