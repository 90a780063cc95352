"""URIs and paths of files and folders of this machine; the URIs are as MLflow and SQLAlchemy read them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote

SCHEME = "sqlite:///"


def sqlite_uri(path: str) -> str:
    """Return the URI of a database file. A `?` would end the path, and a `%` begin a code: both are quoted."""
    return SCHEME + re.sub("[%?]", lambda sign: quote(sign[0]), path)


def sqlite_file(uri: str) -> Path | None:
    """Return the file that a URI names; None where it is none of SQLite."""
    return Path(unquote(uri.removeprefix(SCHEME).partition("?")[0])) if uri.startswith(SCHEME) else None


def folder_uri(folder: str) -> str:
    """Return a folder's path, or its URI where MLflow would misread the path; a URI as it is."""
    return f"file://{quote(folder)}" if "://" not in folder and re.search("[%?#]", folder) else folder


def local_path(place: str) -> str:
    """Return the path of a folder that is named by its path or its URI; any other URI as it is."""
    return unquote(place.removeprefix("file://")) if place.startswith("file://") else place


def artifacts_in(output: str) -> str:
    """Return where MLflow's artifacts are in an output folder."""
    return folder_uri(f"{output}/mlartifacts")


def reports_in(output: str) -> Path:
    """Return where the reports are in an output folder."""
    return Path(output).expanduser().absolute() / "reports"
