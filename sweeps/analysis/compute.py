"""One analysis of one net, from the ledger where it is there already: what it leaves, or why it came to nothing."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeps.analysis.sources import NotApplicable, Source
from sweeps.store.ledger import Json, Ledger
from sweeps.store.tables import constant, parquet

if TYPE_CHECKING:
    from sweeps.training.runtime import RuntimeConfig

# Raised when the arithmetic of a job changes, or what it leaves, so that no old result is taken for a new one.
SCHEMA = 2


class Findings(NamedTuple):
    """What one analysis of one net found.

    `tables` are columns by file name, `pictures` PNG bytes by file name, `rows` the lines of the table that is shown,
    `metrics` what goes on the run, `notes` what a reader has to know.
    """

    tables: Mapping[str, Mapping[str, Any]]
    pictures: Mapping[str, bytes]
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()


class JobSpec(NamedTuple):
    """A job as a machine is given it: its name, what computes it (module:function), what is asked, done or not."""

    job: str
    work: str
    asked: Json
    fresh: bool


class JobResult(NamedTuple):
    """How one source came out: its summary, or why there is none; a misfit is no failure in a sweep."""

    source: Source
    summary: Json | None
    why: str = ""
    not_applicable: bool = False


def run_job(errand: JobSpec, source: Source, place: RuntimeConfig) -> JobResult:
    """Return the outcome of one source; whatever goes wrong with it is a sentence, and an error's trace on the ledger.

    All that passes here are plain values, so that what computes may be a task on another machine.
    """
    ledger, folder = Ledger(place.ledger), f"{_folder(source)}/analysis/{errand.job}"
    try:
        return JobResult(source, analyse(errand, source, place))
    except NotApplicable as error:
        ledger.write_json(f"{folder}/misfit.json", {"schema": SCHEMA, "asked": errand.asked, "why": str(error)})
        return JobResult(source, None, str(error), not_applicable=True)
    except (ValueError, OSError) as error:
        return JobResult(source, None, str(error))
    except Exception as error:  # of one run; the others go on
        first = (str(error) or type(error).__name__).splitlines()[0]
        ledger.write(f"{folder}/error.txt", traceback.format_exc().encode())
        return JobResult(source, None, f"{type(error).__name__}: {first} (trace: {ledger.path(folder)}/error.txt)")


def cached(ledger: Ledger, errand: JobSpec, source: Source) -> JobResult | None:
    """Return the outcome of a trial that the ledger has already, of what is asked now; None where it is to be done."""
    if not source.trial:
        return None
    summary = _kept(ledger, errand, f"{_folder(source)}/analysis/{errand.job}/summary.json")
    if summary is not None:
        return JobResult(source, summary)
    misfit = _kept(ledger, errand, f"{_folder(source)}/analysis/{errand.job}/misfit.json")
    return None if misfit is None else JobResult(source, None, misfit["why"], not_applicable=True)


def _kept(ledger: Ledger, errand: JobSpec, name: str) -> Json | None:
    note = None if errand.fresh else ledger.read_json(name)
    fits = note is not None and note.get("schema") == SCHEMA and note.get("asked") == errand.asked
    return note if fits else None


def analyse(errand: JobSpec, source: Source, place: RuntimeConfig) -> Json:
    """Return the summary of the job on one source, from the ledger where it is there and was asked for in this way.

    The tables and pictures are written first and the summary last: where there is a summary, all is there.
    """
    # Torch is imported here, in the process that computes.
    from sweeps.analysis.weights import read

    ledger = Ledger(place.ledger)
    subject = read(source, ledger)
    folder = f"{subject.folder}/analysis/{errand.job}"
    there = _kept(ledger, errand, f"{folder}/summary.json")
    if there is not None:
        return there
    began = time.monotonic()
    module, _, name = errand.work.partition(":")
    found: Findings = getattr(import_module(module), name)(subject, place, errand.asked)
    names = {"net": subject.label, "trial": source.trial, "dataset": subject.dataset}
    summary = {
        "schema": SCHEMA,
        "job": errand.job,
        "folder": folder,
        "label": subject.label,
        "cell": source.cell or subject.label,
        "net": subject.net.name,
        "dataset": subject.dataset,
        "trial": source.trial,
        "asked": errand.asked,
        "rows": [dict(row) for row in found.rows],
        "metrics": dict(found.metrics),
        "notes": list(found.notes),
        "files": _written(ledger, folder, found, names),
        "device": place.device,
        "seconds": round(time.monotonic() - began, 3),
        "finished_ms": time.time_ns() // 1_000_000,
    }
    # Not sorted by name: the order of a row's columns is part of the table.
    ledger.write(f"{folder}/summary.json", json.dumps(summary, indent=1).encode())
    for note in ("error.txt", "misfit.json"):
        ledger.delete(f"{folder}/{note}")
    return summary


def _folder(source: Source) -> str:
    return f"trials/{source.trial}" if source.trial else f"weights/{Path(source.file).stem or 'none'}"


def _written(ledger: Ledger, folder: str, found: Findings, names: Mapping[str, str]) -> dict[str, str]:
    """Write tables and pictures where no summary vouches for them yet; return their SHA-256 by file name."""
    from sweeps.report.render.formats import comma_separated

    contents = {name: table(columns, names) for name, columns in found.tables.items()} | dict(found.pictures)
    # The rows that are shown, too, as a table that MLflow's page can show; all digits are in the summary.
    contents["summary.csv"] = comma_separated(
        [{name: _short(value) for name, value in row.items()} for row in found.rows]
    )
    ledger.delete(f"{folder}/summary.json")
    for name, content in contents.items():
        ledger.write(f"{folder}/{name}", content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(columns: Mapping[str, Any], names: Mapping[str, str]) -> bytes:
    """Return columns of one length as Parquet, behind `names` in every row."""
    count = len(next(iter(columns.values())))
    return parquet({name: constant(value, count) for name, value in names.items()} | dict(columns))
