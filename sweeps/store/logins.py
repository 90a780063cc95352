"""Logins in addresses: taken out before an address is stored, printed or given to another process."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from sweeps.store.local_uris import sqlite_uri

# Variables from which the client of a store takes its login, by the address's scheme.
VARIABLES: Final = {
    "http": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "https": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "postgresql": ("PGUSER", "PGPASSWORD"),
}


def without_login(uri: str) -> str:
    """Return an address without the name and password in it; any other text as it is."""
    parts = _split(uri)
    if parts is None or "@" not in parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def without_password(uri: str) -> str:
    """Return an address without the password in it; the name stays, by which a database knows whom to ask for one."""
    parts = _split(uri)
    if parts is None or "@" not in parts.netloc:
        return uri
    login, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login.partition(':')[0]}@{host}").geturl()


def has_password(uri: str) -> bool:
    """Tell whether an address holds a password."""
    parts = _split(uri)
    return parts is not None and (":" in parts.netloc.rpartition("@")[0] or "password=" in parts.query)


def take_login(uri: str, environment: MutableMapping[str, str] = os.environ) -> str:
    """Return an address without its password, which goes to the environment of this process, where clients look.

    ValueError for a store whose client looks nowhere else.
    """
    parts = _split(uri)
    if parts is None or not has_password(uri):
        return uri
    scheme = parts.scheme.partition("+")[0]
    if scheme not in VARIABLES or "password=" in parts.query:
        where = parts._replace(query="").geturl()
        raise ValueError(
            f"the address {without_login(where)} was given with a password, which others would see: leave it to the "
            "store's own file of passwords"
        )
    name, password = VARIABLES[scheme]
    environment[name] = unquote(parts.username or "")
    environment[password] = unquote(parts.password or "")
    return without_login(uri) if scheme.startswith("http") else without_password(uri)


def own_store(flag: str | None, output: str, environment: MutableMapping[str, str] = os.environ) -> str:
    """Return the address of the user's own MLflow store, without a password.

    That is the flag's, $MLFLOW_TRACKING_URI's, or SQLite in a local output folder; empty where there is none. No other
    address gets the user's login. ValueError for a password in the flag, which every user of this host could read.
    """
    if flag and has_password(flag):
        raise ValueError(
            f"--tracking-uri {without_login(flag.partition('?')[0])} holds a password, which every user here could "
            "read: use $MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD"
        )
    uri = flag or take_login(environment.get("MLFLOW_TRACKING_URI", ""), environment)
    return uri or ("" if "://" in output else sqlite_uri(f"{output}/mlflow.db"))


def same_store(uri: str, other: str) -> bool:
    """Tell whether two addresses are of one store: with or without a login, or a slash at the end."""
    return without_login(uri).rstrip("/") == without_login(other).rstrip("/")


def _split(uri: str) -> SplitResult | None:
    """Return the parts of an address, None for a text that is none."""
    try:
        return urlsplit(uri) if "://" in uri else None
    except ValueError:
        return None
