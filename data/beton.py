"""The .beton format (FFCV's, version 2) of a square picture, a label and a checksum a record, in plain NumPy.

Layout: header, one descriptor a field, one metadata row a record, pages of picture bytes, allocation table.
The third field is ours: CRC-32 of the stored bytes, because FFCV's decoder ignores what a broken JPEG returns.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.datasets import Sidecar

Bytes = NDArray[np.uint8]

JPEG, RAW = 0, 1  # ffcv.fields.rgb_image.IMAGE_MODES
FIELDS = ("image", "label", "crc32")
_TYPE_IDS = (2, 1, 1)  # ffcv.types.TYPE_ID_HANDLER: an RGB image and two integers
_VERSION = 2
_LEAST_PAGE = 1 << 21

_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("count", "<u8"), ("table", "<u8")], align=True
)
_DESCRIPTOR = np.dtype([("type", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
_RECORD = np.dtype([("image", _IMAGE), ("label", "<i8"), ("crc32", "<i8")], align=True)
_ALLOCATION = np.dtype([("record", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_RECORDS_AT = _HEADER.itemsize + len(FIELDS) * _DESCRIPTOR.itemsize


class Index(NamedTuple):
    """Where the records of a file lie: arrays of n in record order, and the SHA-256 of all tables."""

    path: Path
    size: int
    jpeg: bool
    labels: NDArray[np.int64]
    crcs: NDArray[np.int64]
    pointers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    digest: str


def page_size(size: int) -> int:
    """Return the bytes of a page that holds any picture of side `size`: a power of two, 2 MiB at least."""
    return max(_LEAST_PAGE, 1 << (4 * size * size).bit_length())  # a JPEG of noise may take more than its pixels


def read_index(path: Path) -> Index:
    """Read the tables of a .beton file and check them; ValueError where they do not fit each other."""
    try:
        return _read_index(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a whole .beton file of this project: {error}") from None


def _read_index(path: Path) -> Index:
    records, allocations, table, digest = _tables(path)
    image, owners = records["image"], allocations["record"]
    size, mode = int(image["width"][0]), int(image["mode"][0])
    sizes = np.zeros(len(records), np.int64)
    fits = (image["mode"] == mode) & (image["width"] == size) & (image["height"] == size) & (mode in (JPEG, RAW))
    if (owners < len(records)).all():
        sizes[owners] = allocations["size"]
        fits[owners] &= allocations["pointer"] == image["pointer"][owners]
    pointers = image["pointer"].astype(np.int64)
    fits &= (pointers >= _RECORDS_AT) & (pointers <= table) & (sizes > 0) & (sizes <= table - pointers)
    if mode == RAW:
        fits &= sizes == 3 * size * size
    if not fits.all():
        raise ValueError(f"record {int(np.argmin(fits))} is of another kind or lies outside the file")
    labels, crcs = records["label"].astype(np.int64), records["crc32"].astype(np.int64)
    return Index(path, size, mode == JPEG, labels, crcs, pointers, sizes, digest)


def _tables(path: Path) -> tuple[Any, Any, int, str]:
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_RECORDS_AT)
        if len(head) < _RECORDS_AT:
            raise ValueError(f"it has {length} bytes and its head alone takes {_RECORDS_AT}")
        header = np.frombuffer(head, _HEADER, 1)[0]
        described = np.frombuffer(head, _DESCRIPTOR, len(FIELDS), _HEADER.itemsize)
        names = tuple(row["name"].tobytes().rstrip(b"\0").decode("ascii", "replace") for row in described)
        if header["version"] != _VERSION or header["fields"] != len(FIELDS) or names != FIELDS:
            raise ValueError(f"it has version {header['version']} and fields {names}, not {_VERSION} and {FIELDS}")
        count, table = int(header["count"]), int(header["table"])
        if count < 1 or _RECORDS_AT + count * _RECORD.itemsize > table:
            raise ValueError(f"it claims {count} records before byte {table}")
        if table + count * _ALLOCATION.itemsize != length:
            raise ValueError(f"it has {length} bytes, its tables say {table + count * _ALLOCATION.itemsize}")
        records = file.read(count * _RECORD.itemsize)
        file.seek(table)
        allocations = file.read()
    digest = hashlib.sha256(head + records + allocations).hexdigest()
    return np.frombuffer(records, _RECORD), np.frombuffer(allocations, _ALLOCATION), table, digest


def check_pair(sidecar: Sidecar, index: Index) -> None:
    """Raise ValueError unless the sidecar describes this very file (its length, its tables, its labels)."""
    pairs = {
        "length": (sidecar.file_bytes, index.path.stat().st_size),
        "size": (sidecar.size, index.size),
        "mode": (sidecar.mode, "jpeg" if index.jpeg else "raw"),
        "tables": (sidecar.index, index.digest),
        "labels": (
            sidecar.label_counts,
            tuple(np.bincount(index.labels, minlength=sidecar.classes).tolist()),
        ),
    }
    for what, (said, found) in pairs.items():
        if said != found:
            raise ValueError(
                f"{index.path} is not the file its sidecar describes ({what}: {said} there, {found} here); "
                f"python -m data prepare {sidecar.name} --fresh writes both again"
            )


def mapped(index: Index) -> Bytes:
    """Map the file into memory, read only: uint8 (file bytes,)."""
    return np.memmap(index.path, np.uint8, mode="r")


def damaged(index: Index, stored: Bytes, records: Iterable[int]) -> list[int]:
    """Return those records whose stored bytes do not have the checksum they were written with."""
    return [int(record) for record in records if zlib.crc32(stored_bytes(index, stored, record)) != index.crcs[record]]


def stored_bytes(index: Index, stored: Bytes, record: int) -> memoryview:
    """Return one record's bytes in the mapped file."""
    return stored[index.pointers[record] : index.pointers[record] + index.sizes[record]].data


def fingerprint(index: Index, alive: Callable[[], object] = lambda: None) -> str:
    """Return the SHA-256 of the stored pictures in record order, then of the labels; `alive` is called on the way."""
    stored, digest = mapped(index), hashlib.sha256()
    for record in range(len(index.labels)):
        if record % 10_000 == 0:
            alive()
        digest.update(stored_bytes(index, stored, record))
    digest.update(index.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def seal(path: Path) -> Index:
    """Fill in the checksums of a freshly written file, bring it to the disk and return its index."""
    index = read_index(path)
    stored = mapped(index)
    with path.open("r+b") as file:
        file.seek(_RECORDS_AT)
        records = np.frombuffer(file.read(len(index.labels) * _RECORD.itemsize), _RECORD).copy()
        records["crc32"] = [zlib.crc32(stored_bytes(index, stored, record)) for record in range(len(records))]
        file.seek(_RECORDS_AT)
        file.write(records.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return read_index(path)


def write(path: Path, count: int, pictures: Iterable[tuple[bytes, int]], size: int, jpeg: bool) -> None:
    """Write `count` encoded square pictures of `size` pixels with their labels as a .beton file without checksums.

    Serves where FFCV's own writer is not installed; both readers read either writer's files.
    """
    page = page_size(size)
    records, allocations = np.zeros(count, _RECORD), np.zeros(count, _ALLOCATION)
    at = -(-(_RECORDS_AT + records.nbytes) // page) * page
    with path.open("wb") as file:
        for record, (picture, label) in enumerate(pictures):
            assert len(picture) <= page
            if at // page != (at + len(picture) - 1) // page:  # no record of FFCV's crosses a page
                at = -(-at // page) * page
            file.seek(at)
            file.write(picture)
            records[record] = ((JPEG if jpeg else RAW, size, size, at), label, 0)
            allocations[record] = (record, at, len(picture))
            at += len(picture)
        table = -(-at // page) * page
        file.seek(table)
        file.write(allocations.tobytes())
        file.seek(0)
        file.write(_head(count, page, table) + records.tobytes())


def _head(count: int, page: int, table: int) -> bytes:
    header = np.zeros(1, _HEADER)
    header[0] = (_VERSION, len(FIELDS), page, count, table)
    described = np.zeros(len(FIELDS), _DESCRIPTOR)
    for row, name, kind in zip(described, FIELDS, _TYPE_IDS, strict=True):
        row["type"] = kind
        row["name"][: len(name)] = np.frombuffer(name.encode(), "<u1")
    return header.tobytes() + described.tobytes()
