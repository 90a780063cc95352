"""Files of leases: one small file that several drivers may write at once, on a disk, on S3 and on any other store."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

from sweeps.store.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 1024  # bytes of a lease on a disk, at least: a beat overwrites it in place


class Content(NamedTuple):
    """Content of a lease's file, and a tag that changes with every write."""

    text: bytes
    tag: str


class LeaseFile(Protocol):
    """File of a lease. `create`, `replace` and `beat` return its new tag, or None where another writer was faster."""

    @property
    def compares(self) -> bool:
        """Return whether the store itself refuses a `replace` or a `beat` whose tag is no longer the file's."""

    @property
    def creates_once(self) -> bool:
        """Return whether of two that `create` at once one is refused."""

    @property
    def overwrites(self) -> bool:
        """Return whether a late `beat` may write over the lease of another driver."""

    def read(self) -> Content | None:
        """Return the content now, or None where there is no file."""

    def create(self, text: bytes) -> str | None:
        """Write the file where there is none."""

    def replace(self, text: bytes, tag: str) -> str | None:
        """Write over the lease of a dead driver."""

    def beat(self, text: bytes, tag: str) -> str | None:
        """Write over a lease of one's own."""

    def remove(self, tag: str) -> None:
        """Delete a lease of one's own."""

    def close(self) -> None:
        """Release the file, which stays."""


def lease_file(ledger: Ledger, name: str) -> LeaseFile:
    """Return the file of a lease on the store that a ledger lies on."""
    if ledger.local:
        return DiskFile(Path(ledger.path(name)))
    if ledger.root.startswith("s3://"):
        return S3File(ledger, name)
    return StoreFile(ledger, name)


class DiskFile:
    """Lease on a disk. A beat goes to the file that this driver made, even if another one has its name by now."""

    compares = False
    creates_once = True
    overwrites = False

    def __init__(self, path: Path) -> None:
        """Prepare to read and write the lease at `path`."""
        self.path = path
        self.handle: int | None = None
        self.size = SIZE

    def read(self) -> Content | None:
        """Return the content now; the file is opened, which asks a network disk anew."""
        try:
            with open(self.path, "rb") as stream:
                text = stream.read()
                status = os.fstat(stream.fileno())
        except FileNotFoundError:
            if self.handle is not None and not self.path.parent.is_dir():
                raise  # the disk is gone, and not the lease
            return None
        return Content(text, f"{status.st_ino}-{status.st_mtime_ns}-{hashlib.sha256(text).hexdigest()[:16]}")

    def create(self, text: bytes) -> str | None:
        """Write the file where there is none: a link to a whole file, or an exclusive open where links are unknown."""
        draft = self._draft(text)
        try:
            os.link(draft, self.path)
        except FileExistsError:
            self.close()
            return None
        except OSError:
            self.close()
            try:
                self._open(self.path, text)
            except FileExistsError:
                return None
        finally:
            draft.unlink(missing_ok=True)
        return self._tag()

    def replace(self, text: bytes, tag: str) -> str | None:
        """Write over the lease of a dead driver; of two that do so at once, the last has it."""
        draft = self._draft(text)
        try:
            now = self.read()
            if now is None or now.tag != tag:
                self.close()
                return None
            os.replace(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)
        return self._tag()

    def beat(self, text: bytes, tag: str) -> str | None:  # noqa: ARG002
        """Write into the file that this driver made; a full disk still takes its new time."""
        if self.handle is None:  # a `replace` was refused
            return None
        try:
            os.pwrite(self.handle, text.ljust(self.size), 0)
            os.fsync(self.handle)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return None  # a disk that was mounted again no longer knows the handle
            os.utime(self.handle)
        now = self.read()
        return now.tag if now is not None and self._is_open(now) else None

    def remove(self, tag: str) -> None:  # noqa: ARG002
        """Delete the file where it is still this driver's."""
        try:
            now = self.read()
            if now is not None and self._is_open(now):
                self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def _draft(self, text: bytes) -> Path:
        """Write a file under a name that no other thread uses, and keep it open."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.{threading.get_ident()}.draft")
        draft.unlink(missing_ok=True)
        try:
            self._open(draft, text)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft

    def _open(self, path: Path, text: bytes) -> None:
        """Create the file at `path`, keep it open and write `text` to it."""
        self.close()
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.size = max(SIZE, 2 * len(text))
        os.pwrite(self.handle, text.ljust(self.size), 0)
        os.fsync(self.handle)

    def _tag(self) -> str | None:
        """Return the tag of the file, or None where it is not the one that is open here."""
        now = self.read()
        if now is None or not self._is_open(now):
            self.close()
            return None
        return now.tag

    def _is_open(self, now: Content) -> bool:
        """Return whether the file is the one that is open here."""
        try:
            return self.handle is not None and now.tag.startswith(f"{os.fstat(self.handle).st_ino}-")
        except OSError:  # a network disk no longer has that one
            return False

    def close(self) -> None:
        """Release the file, which stays."""
        handle, self.handle = self.handle, None
        if handle is not None:
            with suppress(OSError):
                os.close(handle)


class S3File:
    """Lease on S3 by conditional writes: If-None-Match for a new one, If-Match with the ETag for a known one."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        """Prepare to read and write the lease `name`."""
        self.ledger = ledger
        self.name = name
        self.compares = True
        bucket, _, key = ledger.path(name).partition("/")
        self.place = {"Bucket": bucket, "Key": key}
        self._client: Any = None

    @property
    def creates_once(self) -> bool:
        """Return whether of two that `create` at once one is refused."""
        return self.compares

    @property
    def overwrites(self) -> bool:
        """Return whether a late `beat` may write over the lease of another driver."""
        return not self.compares

    @property
    def client(self) -> Any:
        """Return the client of the S3 that the ledger's URI names, as pyarrow takes it."""
        if self._client is None:
            self._client = s3_client(self.ledger.root)
        return self._client

    def read(self) -> Content | None:
        """Return the content now, or None where there is no such object."""

        def get() -> Content:
            answer = self.client.get_object(**self.place)
            return Content(answer["Body"].read(), answer["ETag"])

        content: Content | None = self._ask(get, ("NoSuchKey", "404"))
        return content

    def create(self, text: bytes) -> str | None:
        """Write the object where there is none; a store that ignores the condition is found out by a second try."""
        tag = self._put(text, IfNoneMatch="*")
        if tag is not None and self.compares and self._put(text, IfNoneMatch="*") is not None:
            self.compares = False
        if tag is None or self.compares:
            return tag
        now = self.read()
        return now.tag if now else None

    def replace(self, text: bytes, tag: str) -> str | None:
        """Write over the lease of a dead driver, unless somebody has written since."""
        new = self._put(text, IfMatch=tag)
        if new is not None and self.compares and self._put(text, IfMatch=tag) is not None:
            self.compares = False
        return new

    def beat(self, text: bytes, tag: str) -> str | None:
        """Write over a lease of one's own, unless somebody has written since."""
        return self._put(text, IfMatch=tag)

    def remove(self, tag: str) -> None:
        """Delete the object, unless somebody has written since."""
        now = self.read()
        if now is not None and now.tag == tag:
            self._ask(lambda: self.client.delete_object(**self.place, IfMatch=tag), REFUSED)

    def close(self) -> None:
        """Release nothing: the client is shared."""

    def _put(self, text: bytes, **condition: str) -> str | None:
        """Write the object under a condition and return its ETag, or None where the condition does not hold."""

        def put(more: dict[str, str]) -> Any:
            return self.client.put_object(**self.place, Body=text, **more)

        try:
            answer = self._ask(lambda: put(condition), REFUSED)
        except NoConditionsError:
            self.compares = False
            now = self.read()
            if (now is not None) if "IfNoneMatch" in condition else (now is None or now.tag != condition["IfMatch"]):
                return None
            answer = self._ask(lambda: put({}), ())
        return None if answer is None else str(answer["ETag"])

    def _ask(self, call: Callable[[], Any], refused: tuple[str, ...]) -> Any:
        """Return the answer of S3, None for one of the codes `refused`; OSError where none comes."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in refused:
                return None
            if code in ("NotImplemented", "501"):
                raise NoConditionsError(str(error)) from None
            raise OSError(errno.EIO, f"{self.ledger.root}: {error}") from None
        except BotoCoreError as error:
            raise OSError(errno.EIO, f"{self.ledger.root}: {error}") from None


# What S3 says where a condition does not hold; two conditional writes at once are a conflict.
REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404")


class NoConditionsError(OSError):
    """Error of a store without conditional writes."""


def s3_client(uri: str) -> Any:
    """Return boto3's client of the S3 that a URI of pyarrow names, with its keys and its server where it has any."""
    parts = urlsplit(uri)
    words = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    server = words.get("endpoint_override", "")
    if server and "://" not in server:
        server = f"{words.get('scheme', 'https')}://{server}"
    server = server or os.environ.get("AWS_ENDPOINT_URL_S3", "") or os.environ.get("AWS_ENDPOINT_URL", "")
    return _client(words.get("region"), server, parts.username, parts.password)


@cache
def _client(region: str | None, server: str, key: str | None, secret: str | None) -> Any:
    """Return a client of S3, the same for every file there: to make one takes a tenth of a second."""
    import boto3
    from botocore.config import Config

    # Short: a beat that does not come through is tried again by the next one.
    config = Config(
        connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3},
        s3={"addressing_style": "path" if server else "auto"},
    )  # fmt: skip
    return boto3.session.Session().client(
        "s3",
        region_name=region,
        endpoint_url=server or None,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=config,
    )


class StoreFile:
    """Lease on a store without conditional writes that we know of: of two that write at once, the last has it."""

    compares = False
    creates_once = False
    overwrites = True

    def __init__(self, ledger: Ledger, name: str) -> None:
        """Prepare to read and write the lease `name`."""
        self.ledger = ledger
        self.name = name

    def read(self) -> Content | None:
        """Return the content now, or None where there is no file."""
        text = self.ledger.read(self.name)
        return None if text is None else Content(text, hashlib.sha256(text).hexdigest())

    def create(self, text: bytes) -> str | None:
        """Write the file where there is none."""
        if self.read() is not None:
            return None
        return self._write(text)

    def replace(self, text: bytes, tag: str) -> str | None:
        """Write over the lease of a dead driver."""
        now = self.read()
        return self._write(text) if now is not None and now.tag == tag else None

    def beat(self, text: bytes, tag: str) -> str | None:
        """Write over a lease of one's own."""
        return self.replace(text, tag)

    def remove(self, tag: str) -> None:
        """Delete a lease of one's own."""
        now = self.read()
        if now is not None and now.tag == tag:
            self.ledger.delete(self.name)

    def close(self) -> None:
        """Release nothing."""

    def _write(self, text: bytes) -> str:
        self.ledger.write(self.name, text)
        return hashlib.sha256(text).hexdigest()
