"""Summaries of analyses on the ledger: those that a table or a claim may read.

A job asked for its defaults, the paper's pictures and draws, leaves its files in trials/KEY/analysis/JOB. Asked for
anything else it leaves them in a folder of that request below, which nothing here reads.
"""

from __future__ import annotations

from typing import Final

from sweeps.store.ledger import Json, Ledger

# Goes up when a job's arithmetic or its files change, so that no old result is taken for a new one.
SCHEMA: Final = 3


def default_summaries(ledger: Ledger, key: str) -> dict[str, Json]:
    """Return by job the summaries of the analyses of a trial that were asked for their defaults."""
    folder = f"trials/{key}/analysis"
    summaries = {job: ledger.read_json(f"{folder}/{job}/summary.json") for job in ledger.folders(folder)}
    return {job: note for job, note in summaries.items() if note is not None and note.get("schema") == SCHEMA}
