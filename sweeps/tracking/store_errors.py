"""Errors of MLflow stores: what each means, whether it passes by itself, and what to do."""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from sweeps.store.local_uris import sqlite_file
from sweeps.store.logins import without_login

LOGIN: Final = "give the right $MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD"
# Errors that do not pass by themselves: what their texts hold, what it means, what to do. The first that fits counts.
LASTING: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "maintenance mode",
        "MLflow no longer takes a folder of files as its store",
        "name a server or sqlite:///FILE by --tracking-uri",
    ),
    (
        "out-of-date database schema|Can't locate revision",
        "its tables are of another version of MLflow",
        "use that version; or, where it is the older one, back up and run `mlflow db upgrade URI`",
    ),
    (
        "file is not a database|disk image is malformed",
        "the file is damaged",
        "move it away, or put a backup in its place",
    ),
    (
        "unable to open database file|Not a directory|Is a directory|Permission denied|No such file",
        "it cannot be opened",
        "look at its folder and the permissions there",
    ),
    ("readonly database|Read-only file system", "it cannot be written to", "look at its permissions"),
    (
        "UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED|error code 401|authentication failed|no password supplied",
        "it refuses the login",
        LOGIN,
    ),
    ("PERMISSION_DENIED|error code 403", "it does not let this user or this name of its host in", LOGIN),
    (
        "ENDPOINT_NOT_FOUND|error code 404|not in a valid JSON format",
        "what answers there is no MLflow server",
        "look at the address",
    ),
    ("CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER", "its certificate is not trusted", "look at the address"),
    ("Connection refused", "nothing listens there", "start the server"),
    ("resolve|Name or service not known", "there is no such host", "look at the address"),
    ("unsupported URI|NoSuchModuleError|ModuleNotFoundError|InvalidUrl", "MLflow knows no such store",
     "name a server or sqlite:///FILE by --tracking-uri"),
)  # fmt: skip

# The same of errors that may pass.
PASSING: Final[tuple[tuple[str, str], ...]] = (
    (r"too many (5\d\d|429) error responses", r"it answers with error \1"),
    ("timed out|timeout", "it gives no answer in time"),
    ("disk is full|No space left", "its disk is full"),
    ("database is locked", "another process holds its file"),
    ("disk I/O error|Input/output error", "its disk fails"),
)


class Trouble(NamedTuple):
    """Trouble with a store: why it takes no runs, whether that lasts, and what to do about it."""

    reason: str
    lasts: bool
    remedy: str = ""

    def __str__(self) -> str:
        """Return reason and remedy as one sentence."""
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def trouble(error: BaseException) -> Trouble:
    """Return what an error of MLflow, its client or its database means."""
    text = _text(error)
    if (closed := _closed_file(error)) is not None:
        return Trouble(f"{closed} cannot be opened", True, "look at the permissions there")
    for pattern, reason, remedy in LASTING:
        if re.search(pattern, text):
            return Trouble(reason, True, remedy)
    for pattern, reason in PASSING:
        if match := re.search(pattern, text):
            return Trouble(match.expand(reason), False)
    first = str(error).strip().partition("\n")[0]
    return Trouble(f"{type(error).__name__}: {first[:200]}".rstrip(": "), False)


def _closed_file(error: BaseException) -> str | None:
    """Return the file or folder that an error or one of its causes names as closed to this user."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError) and cause.filename:
            return os.fsdecode(cause.filename)
        cause = cause.__cause__
    return None


def _text(error: BaseException) -> str:
    """Return the names and texts of an error and its causes, and MLflow's code of it."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 9:
        texts.append(f"{type(cause).__name__} {getattr(cause, 'error_code', '')} {cause}")
        cause = cause.__cause__
    return "\n".join(texts)


def place(uri: str) -> str:
    """Return where a store is, for people: a file, or an address without its login."""
    file = sqlite_file(uri)
    return str(file) if file is not None else without_login(uri)
