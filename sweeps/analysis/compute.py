"""One analysis of one net: computed, or read from the ledger; its result, or why there is none."""

from __future__ import annotations

import hashlib
import json
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeps.analysis.sources import NotApplicableError, Source
from sweeps.results.analyses import SCHEMA, read_summary
from sweeps.store.ledger import Json, Ledger, checksum
from sweeps.store.tables import constant, parquet

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from sweeps.training.runtime import RuntimeConfig


class Findings(NamedTuple):
    """The results of one analysis of one net.

    `tables` are columns by file name, `pictures` PNG bytes by file name, `rows` the lines of the printed table,
    `metrics` what goes on the run, `notes` what a reader has to know.
    """

    tables: Mapping[str, Mapping[str, Any]]
    pictures: Mapping[str, bytes]
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()


class JobSpec(NamedTuple):
    """A job for any machine: its name, its function (module:function), its options, whether to do it again.

    `request` is the folder of these options below the job's own, "" for the defaults.
    """

    job: str
    work: str
    asked: Json
    fresh: bool
    request: str = ""


class JobResult(NamedTuple):
    """The result for one source: a summary, or why there is none; in a sweep a net may not be applicable."""

    source: Source
    summary: Json | None
    why: str = ""
    not_applicable: bool = False


def request_name(asked: Json, defaults: Json) -> str:
    """Return the name of a request: the options that differ from the defaults, and their hash; "" where none does."""
    differing = {name: value for name, value in asked.items() if value != defaults[name]}
    if not differing:
        return ""
    words = " ".join(f"{name} {json.dumps(value)}" for name, value in differing.items())
    digest = hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9.]+', '-', words)[:60].strip('-.')}-{digest}"


def run_job(spec: JobSpec, source: Source, runtime: RuntimeConfig) -> JobResult:
    """Return the result for one source; an error becomes its sentence, and a trace on the ledger.

    Arguments and result are plain values, so that this may be a task on another machine.
    """
    ledger = Ledger(runtime.ledger)
    folder = _folder(spec, source)
    try:
        return JobResult(source, analyse(spec, source, runtime))
    except NotApplicableError as error:
        ledger.write_json(f"{folder}/misfit.json", {"schema": SCHEMA, "asked": spec.asked, "why": str(error)})
        return JobResult(source, None, str(error), not_applicable=True)
    except (ValueError, OSError) as error:
        return JobResult(source, None, str(error))
    except Exception as error:  # of one run; the others go on
        first = (str(error) or type(error).__name__).splitlines()[0]
        ledger.write(f"{folder}/error.txt", traceback.format_exc().encode())
        return JobResult(source, None, f"{type(error).__name__}: {first} (trace: {ledger.path(folder)}/error.txt)")


def cached(ledger: Ledger, spec: JobSpec, source: Source) -> JobResult | None:
    """Return the ledger's result for a trial and these options, None where there is none."""
    if not source.trial:
        return None
    if (summary := _summary(ledger, spec, _home(source))) is not None:
        return JobResult(source, summary)
    misfit = None if spec.fresh else ledger.read_json(f"{_folder(spec, source)}/misfit.json")
    if misfit is None or misfit.get("schema") != SCHEMA or misfit.get("asked") != spec.asked:
        return None
    return JobResult(source, None, str(misfit.get("why", "")), not_applicable=True)


def _summary(ledger: Ledger, spec: JobSpec, home: str) -> Json | None:
    """Return the ledger's summary below a net's folder `home`, where it answers these options."""
    note = None if spec.fresh else read_summary(ledger, f"{home}/analysis", spec.job, spec.request)
    return note if note is not None and note.get("asked") == spec.asked else None


def analyse(spec: JobSpec, source: Source, runtime: RuntimeConfig) -> Json:
    """Return the summary of the job for one source, from the ledger where it has one for these options.

    Tables and pictures are written first and the summary last: a summary vouches for all of them.
    """
    # Torch is imported here, in the process that computes.
    from sweeps.analysis.weights import load

    ledger = Ledger(runtime.ledger)
    loaded = load(source, ledger)
    folder = f"{loaded.folder}/analysis/{_place(spec)}"
    if (summary := _summary(ledger, spec, loaded.folder)) is not None:
        return summary
    began = time.monotonic()
    module, _, name = spec.work.partition(":")
    findings: Findings = getattr(import_module(module), name)(loaded, runtime, spec.asked)
    names = {"net": loaded.label, "trial": source.trial, "dataset": loaded.dataset}
    summary = {
        "schema": SCHEMA,
        "job": spec.job,
        "folder": folder,
        "label": loaded.label,
        "cell": source.cell or loaded.label,
        "net": loaded.known.name if loaded.known else "",
        "dataset": loaded.dataset,
        "trial": source.trial,
        "asked": spec.asked,
        "request": spec.request,
        "rows": [dict(row) for row in findings.rows],
        "metrics": dict(findings.metrics),
        "notes": list(findings.notes),
        "files": _write(ledger, folder, findings, names),
        "device": runtime.device,
        "seconds": round(time.monotonic() - began, 3),
        "finished_ms": time.time_ns() // 1_000_000,
    }
    # Not sorted by name: the order of a row's columns is part of the table.
    checked = summary | {"check": checksum(summary)}
    ledger.write(f"{folder}/summary.json", json.dumps(checked, indent=1).encode())
    for note in ("error.txt", "misfit.json"):
        ledger.delete(f"{folder}/{note}")
    return summary


def _folder(spec: JobSpec, source: Source) -> str:
    return f"{_home(source)}/analysis/{_place(spec)}"


def _home(source: Source) -> str:
    """Return the folder of a net on the ledger."""
    return f"trials/{source.trial}" if source.trial else f"weights/{Path(source.file).stem or 'none'}"


def _place(spec: JobSpec) -> str:
    """Return the folder of a request among a net's analyses: the job's own for its defaults, else one below it."""
    return f"{spec.job}/{spec.request}" if spec.request else spec.job


def _write(ledger: Ledger, folder: str, findings: Findings, names: Mapping[str, str]) -> dict[str, str]:
    """Write tables and pictures while no summary vouches for them; return their SHA-256 by file name."""
    from sweeps.report.render.formats import comma_separated

    contents = {name: table(columns, names) for name, columns in findings.tables.items()} | dict(findings.pictures)
    # The printed rows, too, as a table that MLflow's page can show; all digits are in the summary.
    contents["summary.csv"] = comma_separated(
        [{name: _short(value) for name, value in row.items()} for row in findings.rows]
    )
    ledger.delete(f"{folder}/summary.json")
    for name, content in contents.items():
        ledger.write(f"{folder}/{name}", content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(columns: Mapping[str, Any], names: Mapping[str, str]) -> bytes:
    """Return columns of one length as Parquet, behind `names` in every row."""
    count = len(next(iter(columns.values())))
    return parquet({name: constant(value, count) for name, value in names.items()} | dict(columns))


def stacked(parts: Sequence[Mapping[str, ArrayLike]]) -> dict[str, NDArray[Any]]:
    """Return tables of the same columns as one, below each other; a single value stands for all rows of its part."""
    import numpy as np

    table = {}
    for name in parts[0]:
        columns = []
        for part in parts:
            value = part[name]
            rows = max(np.size(column) for column in part.values())
            columns.append(np.broadcast_to(np.asarray(value, object if isinstance(value, str) else None), rows))
        table[name] = np.concatenate(columns)
    return table
