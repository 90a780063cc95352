"""Failures of trials on a worker, as the ledger keeps them."""

from __future__ import annotations

from crelu_models.named import user_line
from sweeps.store.ledger import Json, failed_attempt


def attempt_of(error: BaseException, *, final: bool) -> Json:
    """Return the record of a failed attempt: type and message of its error, the line of the user's code, the trace."""
    attempt = failed_attempt(error, final)
    line = user_line(error)
    if line and line not in attempt["error"]:
        attempt["error"] += f" ({line})"
    return attempt
