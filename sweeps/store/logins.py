"""Logins in addresses: taken out before an address is stored, printed or given to another process."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import MutableMapping
from typing import Final
from urllib.parse import unquote

from crelu_data.storage import login_in
from sweeps.store.local_uris import sqlite_uri

# Variables from which the client of a store takes its login, by the address's scheme.
VARIABLES: Final = {
    "http": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "https": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "postgresql": ("PGUSER", "PGPASSWORD"),
}
_PASSWORD: Final = re.compile(r"(?:passw(?:or)?d|pwd|secret)\w*=", re.IGNORECASE)  # in options and in those of ODBC


def without_login(uri: str) -> str:
    """Return an address without the name and password in it; any other text as it is."""
    login = login_in(uri)
    return _without_options(uri if login is None else f"{login.scheme}://{login.place}")


def without_password(uri: str) -> str:
    """Return an address without the password in it; the name stays, by which a database knows whom to ask for one."""
    login = login_in(uri)
    return _without_options(uri if login is None else f"{login.scheme}://{login.name}@{login.place}")


def has_password(uri: str) -> bool:
    """Tell whether an address holds a password."""
    login = login_in(uri)
    return (login is not None and login.password is not None) or without_password(uri) != uri


def take_login(uri: str, environment: MutableMapping[str, str] = os.environ) -> str:
    """Return an address without its password, which goes to the environment of this process, where clients look.

    ValueError for a store whose client looks nowhere else.
    """
    if not has_password(uri):
        return uri
    login = login_in(uri)
    scheme = uri.partition("://")[0].partition("+")[0].lower()
    if login is None or scheme not in VARIABLES or not without_login(uri).endswith(login.place):
        raise ValueError(
            f"the address {without_login(uri).partition('?')[0]} was given with a password, which others would see: "
            "leave it to the store's own file of passwords"
        )
    name, password = VARIABLES[scheme]
    environment[name] = unquote(login.name)
    environment[password] = unquote(login.password or "")
    return without_login(uri) if scheme.startswith("http") else without_password(uri)


def own_store(flag: str | None, output: str, environment: MutableMapping[str, str] = os.environ) -> str:
    """Return the address of the user's own MLflow store, without a password.

    That is the flag's, $MLFLOW_TRACKING_URI's, or SQLite in a local output folder; empty where there is none. No other
    address gets the user's login. ValueError for a password in the flag, which every user of this host could read.
    """
    if flag and has_password(flag):
        raise ValueError(
            f"--tracking-uri {without_login(flag).partition('?')[0]} holds a password, which every user here could "
            "read: use $MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD"
        )
    uri = flag or take_login(environment.get("MLFLOW_TRACKING_URI", ""), environment)
    return uri or ("" if "://" in output else sqlite_uri(f"{output}/mlflow.db"))


def same_store(uri: str, other: str) -> bool:
    """Tell whether two addresses are of one store: with or without a login, or a slash at the end."""
    return without_login(uri).rstrip("/") == without_login(other).rstrip("/")


def not_asked(uri: str) -> str:
    """Return that the runs lie in a store which the user has not named, and the option that names it."""
    name = without_login(uri)
    return f"the runs lie in {name}, which was not asked: --tracking-uri {shlex.quote(name)} says it is yours"


def _without_options(uri: str) -> str:
    """Return an address without those options after its ? that are passwords, such as MySQL's passwd."""
    place, _, query = uri.partition("?")
    options = query.split("&")
    harmless = [option for option in options if not _PASSWORD.search(unquote(option))]
    if len(harmless) == len(options) or "://" not in uri:
        return uri
    return f"{place}?{'&'.join(harmless)}" if harmless else place
