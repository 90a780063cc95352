"""Summaries of analyses on the ledger: those that a table or a claim may read.

A job asked for its defaults, the paper's pictures and draws, leaves its files in trials/KEY/analysis/JOB. Asked for
anything else it leaves them in a folder of that request below, which nothing here reads.

An analysis of a training that is stale counts where no current training of its cell has been analysed (`preferred`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from sweeps.store.foreign import known_analysis_files
from sweeps.store.ledger import Json, Ledger

# Goes up when a job's arithmetic or its files change, so that no old result is taken for a new one.
SCHEMA: Final = 4
STALE: Final = "stale"  # the state of a training whose data or code have changed since
Analysis = TypeVar("Analysis")


def preferred(analysed: Iterable[Analysis], state: Callable[[Analysis], str]) -> tuple[Analysis, ...]:
    """Return the analyses of one cell that are shown, averaged and compared: the current ones, all if none is."""
    every = tuple(analysed)
    return tuple(analysis for analysis in every if state(analysis) != STALE) or every


def default_summaries(ledger: Ledger, key: str) -> dict[str, Json]:
    """Return by job the summaries of the analyses of a trial that were asked for their defaults."""
    folder = f"trials/{key}/analysis"
    summaries = {job: read_summary(ledger, folder, job) for job in ledger.folders(folder)}
    return {job: note for job, note in summaries.items() if note is not None}


def damaged_analysis(ledger: Ledger, key: str) -> str:
    """Return which file of a trial's analyses is not what the job wrote, empty for none."""
    folder = f"trials/{key}/analysis"
    notes = ((job, _written(ledger, f"{folder}/{job}", job)) for job in ledger.folders(folder))
    sentences = (damaged_file(ledger, f"{folder}/{job}", note) for job, note in notes if note is not None)
    return next(filter(None, sentences), "")


def damaged_file(ledger: Ledger, place: str, note: Json) -> str:
    """Return which file of the analysis in `place` is not what its summary says; older summaries have no digests."""
    files = note["files"] if isinstance(note["files"], dict) else {}
    for name, digest in files.items():
        actual = ledger.sha256(f"{place}/{name}") if digest else digest
        if actual != digest:
            fault = "missing" if actual is None else "damaged: its SHA-256 is not the one in the summary beside it"
            return f"{place}/{name} is {fault}"
    return ""


def read_summary(ledger: Ledger, folder: str, job: str, request: str = "") -> Json | None:
    """Return the summary of a job, and a request to it, below the folder of a net's analyses.

    None where there is none, it or a file of it is damaged, it is of another version or place, or names files that no
    job writes: by these names files are read, packed and sent.
    """
    place = f"{folder}/{job}/{request}".rstrip("/")
    note = _written(ledger, place, job, request)
    return note if note is not None and not damaged_file(ledger, place, note) else None


def _written(ledger: Ledger, place: str, job: str, request: str = "") -> Json | None:
    """Return the summary in `place`; the files that it lists are not looked at."""
    note = ledger.read_json(f"{place}/summary.json")
    if note is None or note.get("schema") != SCHEMA or note.get("job") != job:
        return None
    at_home = (note.get("folder", place), note.get("request", request)) == (place, request)
    return note if at_home and known_analysis_files(note.get("files")) else None
