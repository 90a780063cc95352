"""Capsule of a sweep: one zip with all that its report is made of, which rebuilds the report byte by byte.

    capsule.json             sweep, question, standings, studies, provenance, the results of trials with a damaged
                             file, how many trials follow, the cells given up, and the SHA-256 of every other file
    plans/ questions/ results/ attempts/ tracked/
    trials/KEY/              trial.json, history.json, analysis/, tables/decisions.parquet
    votes/CELL/              decisions.parquet
    report/                  the page, Markdown, LaTeX, CSV and Parquet
    requirements.lock

Of scores, the larger part of a ledger, only the decisions are in it, one class a picture; weights are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from crelu_data.storage import sync_folder
from sweeps.results.decisions import Predictions
from sweeps.results.evidence import MANIFEST, SweepResults
from sweeps.results.provenance import LOCK
from sweeps.store.foreign import SWEEP_TITLE, relative
from sweeps.store.ledger import Json, Ledger
from sweeps.store.logins import without_login
from sweeps.store.scratch import scratch
from sweeps.store.tables import parquet

SCHEMA: Final = 2
FIRST_DAY: Final = (1980, 1, 1, 0, 0, 0)  # of a zip: equal contents give equal files
# Bytes that a capsule may unpack to: so many times its own, and as many more. Capsules of sweeps have 2 to 4 times.
RATIO: Final = 10
FLOOR: Final = 16 << 20
# The files of a capsule. None of them is a link, a program or a picture of any size; none lies elsewhere.
_KEY, _WORD = "[0-9a-f]+", "[A-Za-z0-9_][A-Za-z0-9_.-]*"
NAMES: Final = re.compile(
    rf"""requirements\.lock | (plans|prices|questions)/{SWEEP_TITLE.pattern}\.json | (results|tracked)/{_KEY}\.json
    | attempts/{_KEY}/{_WORD}\.json | paused/{_KEY}\.json | votes/{_KEY}/decisions\.parquet | report/(tables/)?{_WORD}
    | trials/{_KEY}/( (trial|history)\.json | tables/decisions\.parquet | analysis/{_WORD}/{_WORD} )""",
    re.VERBOSE,
)


def write(ledger: Ledger, results: SweepResults, report: Mapping[str, bytes], path: Path) -> int:
    """Write the capsule of a sweep, complete or not at all, and return its size in bytes."""
    contents = dict(_contents(ledger, results)) | {f"report/{name}": content for name, content in report.items()}
    manifest = _manifest(results) | {"files": {name: _digest(content) for name, content in sorted(contents.items())}}
    contents[MANIFEST] = _json(manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, content in sorted(contents.items()):
                archive.writestr(zipfile.ZipInfo(name, FIRST_DAY), content, zipfile.ZIP_DEFLATED)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def _manifest(results: SweepResults) -> Json:
    studies = {
        cell.cell.key: [([run.key for run in point.runs], point.value, point.passed_over) for point in cell.tried]
        for cell in results.cells
        if cell.tried
    }
    where_any = {
        "damaged": dict(results.damaged),
        "pending": {cell.cell.key: dict(cell.pending) for cell in results.cells if cell.pending},
        "given_up": dict(results.given_up),
        "begun": {run.key: run.seconds for run in results.runs if run.state == "running" and run.seconds},
    }
    return {
        "schema": SCHEMA,
        "sweep": results.title,
        "question": results.question,
        "standings": [(run.key, run.state, run.why) for run in results.runs],
        "studies": studies,
        "record": results.record,
    } | {name: value for name, value in where_any.items() if value}


def _contents(ledger: Ledger, results: SweepResults) -> Iterator[tuple[str, bytes]]:
    """Yield the files that the results of a sweep were read from, by name."""
    names = [f"{folder}/{results.title}.json" for folder in ("plans", "prices", "questions")]
    for run in results.runs:
        yield f"trials/{run.key}/trial.json", _json(run.trial.to_json())
        names += [f"tracked/{run.key}.json", *([f"paused/{run.key}.json"] if run.result is None else [])]
        if run.result is not None:  # one with a damaged file counts as failed, here too
            names += [f"results/{run.key}.json", f"trials/{run.key}/history.json"]
        names += [f"attempts/{run.key}/{name}" for name in ledger.names(f"attempts/{run.key}")]
        for job, summary in run.analyses.items():
            folder = f"trials/{run.key}/analysis/{job}"
            names += [f"{folder}/summary.json", *(f"{folder}/{name}" for name in summary["files"])]
        if run.decisions is not None:
            yield f"trials/{run.key}/tables/decisions.parquet", decisions_table(run.decisions)
    for cell_results in results.cells:
        if cell_results.vote is not None:
            yield f"votes/{cell_results.cell.key}/decisions.parquet", decisions_table(cell_results.vote)
    for name in names:
        content = ledger.read(name)
        if content is not None:
            yield name, _without_logins(content) if name.startswith("tracked/") else content
    lock = ledger.read("requirements.lock") or (LOCK.read_bytes() if LOCK.is_file() else None)
    if lock is not None:
        yield "requirements.lock", lock


def _without_logins(note: bytes) -> bytes:
    """Return the note of a run without a login in the addresses of its stores, which older notes hold."""
    try:
        bare = _bare(json.loads(note))
    except (ValueError, TypeError):
        return b"{}"
    bare.pop("check", None)  # that of the note with its login
    return _json(bare)


def _bare(note: Json) -> Json:
    sweeps = {"sweeps": {title: _bare(sweep) for title, sweep in note["sweeps"].items()}} if "sweeps" in note else {}
    return note | ({"uri": without_login(str(note["uri"]))} if "uri" in note else {}) | sweeps


def decisions_table(decisions: Predictions) -> bytes:
    """Return decisions as Parquet: id, label, and the class chosen by each kind of view or vote."""
    classes = {"label": decisions.labels, **decisions.chosen}
    columns = {"id": decisions.ids.astype(np.int32)} | {name: x.astype(np.int16) for name, x in classes.items()}
    return parquet(columns, {"schema": "decisions/1", "classes": str(decisions.classes)})


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Ledger]:
    """Yield the ledger that a capsule unpacks to, for as long as the block lasts.

    ValueError for a file that is no capsule, is damaged, or names a file outside of itself.
    """
    with scratch("capsule") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _unpack(archive, folder, path)
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise ValueError(f"{path} is no capsule: {error}") from None
        yield Ledger(str(folder))


def _unpack(archive: zipfile.ZipFile, folder: Path, path: Path) -> None:
    """Write the files that the manifest names, each by its digest, and no others."""
    room = _Room(FLOOR + RATIO * path.stat().st_size)
    try:
        content = _read(archive, MANIFEST, path, room)
        manifest = json.loads(content)
        schema = manifest["schema"]
        digests = dict(manifest["files"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, _TooLargeError):
            raise
        raise ValueError(f"{path} is no capsule: it has no {MANIFEST} that names its files") from None
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}; this version reads {SCHEMA}")
    (folder / MANIFEST).write_bytes(content)
    for name, digest in digests.items():
        if not NAMES.fullmatch(name):
            raise ValueError(f"{path} names {name[:200]!r}, which no capsule holds")
        try:
            content = _read(archive, name, path, room)
        except KeyError:
            raise ValueError(f"{path} has lost {name}") from None
        if _digest(content) != digest:
            raise ValueError(f"{path} is damaged: {name} is not what was put in")
        target = folder / relative(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if not any(name.startswith("plans/") for name in digests):
        raise ValueError(f"{path} is no capsule: it has the plan of no sweep")


class _TooLargeError(ValueError):
    """Error of a capsule that unpacks to more than any sweep's does."""


@dataclasses.dataclass
class _Room:
    """Bytes that a capsule may still unpack to."""

    left: int


def _read(archive: zipfile.ZipFile, name: str, path: Path, room: _Room) -> bytes:
    """Return the content of a file, which takes its `room`.

    KeyError where there is none, ValueError where the archive is damaged, the file is a link, or there is no room.
    """
    info = archive.getinfo(name)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ValueError(f"{path} holds {name} as a link, which no capsule does")
    try:
        with archive.open(info) as file:
            content = file.read(room.left + 1)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {name} cannot be read ({error})") from None
    room.left -= len(content)
    if room.left < 0:
        most = (FLOOR + RATIO * path.stat().st_size) >> 20
        raise _TooLargeError(f"{path} would unpack to more than {most} MiB, which no capsule of its size does")
    return content


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
