"""Capsule of a sweep: one zip with all that its report is made of, which rebuilds the report byte by byte.

    capsule.json             sweep, question, standings, studies, provenance, and the SHA-256 of every other file
    plans/ results/ attempts/ tracked/
    trials/KEY/              trial.json, history.json, analysis/, tables/decisions.parquet
    votes/CELL/              decisions.parquet
    report/                  the page, Markdown, LaTeX, CSV and Parquet
    requirements.lock

Of scores, the larger part of a ledger, only the decisions are in it, one class a picture; weights are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from sweeps.results.decisions import Predictions
from sweeps.results.evidence import MANIFEST, SweepResults
from sweeps.results.provenance import LOCK
from sweeps.store.ledger import Json, Ledger
from sweeps.store.tables import parquet

SCHEMA: Final = 2
FIRST_DAY: Final = (1980, 1, 1, 0, 0, 0)  # of a zip: equal contents give equal files
LARGEST: Final = 8 << 30  # bytes that a capsule may unpack to


def write(ledger: Ledger, survey: SweepResults, report: Mapping[str, bytes], path: Path) -> int:
    """Write the capsule of a sweep, complete or not at all, and return its size in bytes."""
    contents = dict(_contents(ledger, survey)) | {f"report/{name}": content for name, content in report.items()}
    manifest = _manifest(survey) | {"files": {name: _digest(content) for name, content in sorted(contents.items())}}
    contents[MANIFEST] = _json(manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, content in sorted(contents.items()):
                archive.writestr(zipfile.ZipInfo(name, FIRST_DAY), content, zipfile.ZIP_DEFLATED)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def _manifest(survey: SweepResults) -> Json:
    studies = {
        cell.cell.key: [([run.key for run in point.runs], point.value, point.pruned_early) for point in cell.tried]
        for cell in survey.cells
        if cell.tried
    }
    return {
        "schema": SCHEMA,
        "sweep": survey.title,
        "question": survey.question,
        "standings": [(run.key, run.state, run.why) for run in survey.runs],
        "studies": studies,
        "record": survey.record,
    }


def _contents(ledger: Ledger, survey: SweepResults) -> Iterator[tuple[str, bytes]]:
    """Yield the files that the results of a sweep were read from, by name."""
    names = [f"plans/{survey.title}.json", f"prices/{survey.title}.json"]
    for run in survey.runs:
        yield f"trials/{run.key}/trial.json", _json(run.trial.to_json())
        names += [f"results/{run.key}.json", f"tracked/{run.key}.json", f"trials/{run.key}/history.json"]
        names += [f"attempts/{run.key}/{name}" for name in ledger.names(f"attempts/{run.key}")]
        for job, summary in run.analyses.items():
            folder = f"trials/{run.key}/analysis/{job}"
            names += [f"{folder}/summary.json", *(f"{folder}/{name}" for name in summary["files"])]
        if run.decisions is not None:
            yield f"trials/{run.key}/tables/decisions.parquet", decisions_table(run.decisions)
    for results in survey.cells:
        if results.vote is not None:
            yield f"votes/{results.cell.key}/decisions.parquet", decisions_table(results.vote)
    for name in names:
        content = ledger.read(name)
        if content is not None:
            yield name, content
    lock = ledger.read("requirements.lock") or (LOCK.read_bytes() if LOCK.is_file() else None)
    if lock is not None:
        yield "requirements.lock", lock


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
    with tempfile.TemporaryDirectory(prefix="capsule-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _unpack(archive, Path(folder), path)
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise ValueError(f"{path} is no capsule: {error}") from None
        yield Ledger(folder)


def _unpack(archive: zipfile.ZipFile, folder: Path, path: Path) -> None:
    """Write the files that the manifest names, each by its digest, and no others."""
    try:
        manifest = json.loads(_read(archive, MANIFEST, path))
        schema, digests = manifest["schema"], dict(manifest["files"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no capsule: it has no {MANIFEST} that names its files") from None
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}; this version reads {SCHEMA}")
    if sum(info.file_size for info in archive.infolist()) > LARGEST:
        raise ValueError(f"{path} would unpack to more than {LARGEST >> 30} GiB, which no capsule does")
    (folder / MANIFEST).write_bytes(_read(archive, MANIFEST, path))
    for name, digest in digests.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or name == MANIFEST:
            raise ValueError(f"{path} names {name!r}, which lies outside of it")
        try:
            content = _read(archive, name, path)
        except KeyError:
            raise ValueError(f"{path} has lost {name}") from None
        if _digest(content) != digest:
            raise ValueError(f"{path} is damaged: {name} is not what was put in")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """Return the content of a file; KeyError where there is none, ValueError where the archive is damaged."""
    try:
        return archive.read(name)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {name} cannot be read ({error})") from None


def _json(value: Json) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
