"""Files in FFCV's .beton format, version 2, in plain NumPy: a square picture, a label and a checksum per record.

Layout: header, one descriptor per field, one metadata row per record, pages of picture bytes, allocation table.
The third field is ours, a CRC-32 of the stored bytes, because FFCV's decoder ignores errors of broken JPEGs.
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

from crelu_data.cores import map_in_threads
from crelu_data.datasets import Sidecar, counted, read_sidecar, remedy, write_sidecar

Bytes = NDArray[np.uint8]

JPEG, RAW = 0, 1  # ffcv.fields.rgb_image.IMAGE_MODES
FIELDS = ("image", "label", "crc32")
_TYPE_IDS = (2, 1, 1)  # ffcv.types.TYPE_ID_HANDLER: an RGB image and two integers
_VERSION = 2
_MIN_PAGE = 1 << 21
_PART = 1000  # records whose checksums a thread makes at a time

_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("count", "<u8"), ("table", "<u8")], align=True
)
_DESCRIPTOR = np.dtype([("type", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
_RECORD = np.dtype([("image", _IMAGE), ("label", "<i8"), ("crc32", "<i8")], align=True)
_ALLOCATION = np.dtype([("record", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_RECORDS_AT = _HEADER.itemsize + len(FIELDS) * _DESCRIPTOR.itemsize


class Index(NamedTuple):
    """Positions of the records in a file: arrays (n,) in record order, and the SHA-256 of all tables."""

    path: Path
    size: int
    jpeg: bool
    labels: NDArray[np.int64]
    crcs: NDArray[np.int64]
    pointers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    digest: str


def page_size(size: int) -> int:
    """Return the page size in bytes for pictures of side `size`: a power of two, at least 2 MiB."""
    return max(_MIN_PAGE, 1 << (4 * size * size).bit_length())  # a JPEG of noise may be larger than its pixels


def read_index(path: Path) -> Index:
    """Read and check the tables of a .beton file; ValueError where it is missing or they contradict each other."""
    try:
        return _read_index(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a complete .beton file of this project: {error}") from None


def _read_index(path: Path) -> Index:
    records, allocations, table, digest = _tables(path)
    image = records["image"]
    owners = allocations["record"]
    size = int(image["width"][0])
    mode = int(image["mode"][0])
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
        raise ValueError(f"record {int(np.argmin(fits))} has another size or mode, or lies outside the file")
    labels = records["label"].astype(np.int64)
    crcs = records["crc32"].astype(np.int64)
    return Index(path, size, mode == JPEG, labels, crcs, pointers, sizes, digest)


def _tables(path: Path) -> tuple[Any, Any, int, str]:
    """Return the metadata rows, the allocation table and its position, and the SHA-256 of all tables."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_RECORDS_AT)
        if len(head) < _RECORDS_AT:
            raise ValueError(f"it has {counted(length, 'byte')}, fewer than the {_RECORDS_AT} of a header")
        header = np.frombuffer(head, _HEADER, 1)[0]
        described = np.frombuffer(head, _DESCRIPTOR, len(FIELDS), _HEADER.itemsize)
        names = tuple(row["name"].tobytes().rstrip(b"\0").decode("ascii", "replace") for row in described)
        if header["version"] != _VERSION or header["fields"] != len(FIELDS) or names != FIELDS:
            raise ValueError(f"it has version {header['version']} and fields {names}, expected {_VERSION} and {FIELDS}")
        count = int(header["count"])
        table = int(header["table"])
        if count < 1 or _RECORDS_AT + count * _RECORD.itemsize > table:
            raise ValueError(f"its header has {count} records before byte {table}")
        if table + count * _ALLOCATION.itemsize != length:
            raise ValueError(f"it has {length} bytes, by its tables {table + count * _ALLOCATION.itemsize}")
        records = file.read(count * _RECORD.itemsize)
        file.seek(table)
        allocations = file.read()
    digest = hashlib.sha256(head + records + allocations).hexdigest()
    return np.frombuffer(records, _RECORD), np.frombuffer(allocations, _ALLOCATION), table, digest


def check_pair(sidecar: Sidecar, index: Index) -> None:
    """Raise ValueError unless the sidecar describes this file: its length, size, mode, tables and labels."""
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
    for fact, (expected, actual) in pairs.items():
        if expected != actual:
            raise ValueError(
                f"{index.path} does not match its sidecar ({fact}: {actual}, by the sidecar {expected}); "
                f"{remedy(sidecar, index.path.parent)}"
            )


def read_pair(path: Path) -> tuple[Sidecar, Index]:
    """Read a .beton file's sidecar and tables; ValueError where one is damaged or they do not match."""
    sidecar = read_sidecar(path.with_suffix(".json"))
    index = read_index(path)
    check_pair(sidecar, index)
    return sidecar, index


def publish(partial: Path, path: Path, sidecar: Sidecar) -> None:
    """Give a finished file its name, and write its sidecar.

    The sidecar comes first: after a crash in between the pair does not match, so it never passes for complete.
    """
    write_sidecar(path.with_suffix(".json"), sidecar)
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def unpublish(path: Path) -> None:
    """Delete a file and its sidecar, where they exist: the sidecar first, so that no half passes for complete."""
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def mapped(index: Index) -> Bytes:
    """Return the file mapped into memory, read only: uint8 (bytes,)."""
    return np.memmap(index.path, np.uint8, mode="r")


def damaged(index: Index, stored: Bytes, records: Iterable[int]) -> list[int]:
    """Return the records whose stored bytes contradict their checksum."""
    return [int(record) for record in records if _checksum(index, stored, record) != index.crcs[record]]


def _checksum(index: Index, stored: Bytes, record: int) -> int:
    """Return the CRC-32 of a record's bytes."""
    return zlib.crc32(stored_bytes(index, stored, record))


def stored_bytes(index: Index, stored: Bytes, record: int) -> memoryview:
    """Return the bytes of a record in the mapped file."""
    return stored[index.pointers[record] : index.pointers[record] + index.sizes[record]].data


def fingerprint(index: Index, alive: Callable[[], object] = lambda: None) -> str:
    """Return the SHA-256 of the stored pictures in record order and the labels; `alive` may raise to give up."""
    stored = mapped(index)
    digest = hashlib.sha256()
    for record in range(len(index.labels)):
        if record % 10_000 == 0:
            alive()
        digest.update(stored_bytes(index, stored, record))
    digest.update(index.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def seal(path: Path, workers: int = 1) -> Index:
    """Write the checksums, made by so many threads, into a new file, flush it to disk and return its index."""
    index = read_index(path)
    stored = mapped(index)
    with path.open("r+b") as file:
        file.seek(_RECORDS_AT)
        content = bytearray(file.read(len(index.labels) * _RECORD.itemsize))
        records = np.frombuffer(content, _RECORD)  # a copy's padding could be any bytes
        parts = np.array_split(np.arange(len(records)), -(-len(records) // _PART))
        checksums = map_in_threads(lambda part: [_checksum(index, stored, record) for record in part], parts, workers)
        records["crc32"] = [checksum for part in checksums for checksum in part]
        file.seek(_RECORDS_AT)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return read_index(path)


def write(path: Path, count: int, pictures: Iterable[tuple[bytes, int]], size: int, jpeg: bool) -> None:
    """Write a .beton file without checksums from `count` encoded square pictures of `size` pixels and their labels.

    It needs no FFCV; both readers read the files of either writer.
    """
    page = page_size(size)
    records = np.zeros(count, _RECORD)
    allocations = np.zeros(count, _ALLOCATION)
    position = -(-(_RECORDS_AT + records.nbytes) // page) * page
    with path.open("wb") as file:
        for record, (picture, label) in enumerate(pictures):
            assert len(picture) <= page
            if position // page != (position + len(picture) - 1) // page:  # in FFCV's files no record crosses a page
                position = -(-position // page) * page
            file.seek(position)
            file.write(picture)
            records[record] = ((JPEG if jpeg else RAW, size, size, position), label, 0)
            allocations[record] = (record, position, len(picture))
            position += len(picture)
        table = -(-position // page) * page
        file.seek(table)
        file.write(allocations.tobytes())
        file.seek(0)
        file.write(_head(count, page, table) + records.tobytes())


def _head(count: int, page: int, table: int) -> bytes:
    """Return the header and the descriptors of the fields."""
    header = np.zeros(1, _HEADER)
    header[0] = (_VERSION, len(FIELDS), page, count, table)
    described = np.zeros(len(FIELDS), _DESCRIPTOR)
    for row, name, kind in zip(described, FIELDS, _TYPE_IDS, strict=True):
        row["type"] = kind
        row["name"][: len(name)] = np.frombuffer(name.encode(), "<u1")
    return header.tobytes() + described.tobytes()
