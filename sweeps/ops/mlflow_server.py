"""MLflow's server for a cluster's head or for a desk, with the choices made that are safe: python -m sweeps serve.

It listens on this machine alone, asks for a password, knows the names it is called by, and keeps database and
artifacts in --output, where sweeps without a server put theirs: what is there already is shown. The process becomes
`mlflow server` and ends with it. Over a network without TLS the password travels in clear: prefer a tunnel.

The admin is called admin; the password comes from $MLFLOW_AUTH_ADMIN_PASSWORD or --password-file, never from the
command line, and counts when the server first starts. Clients say it by $MLFLOW_TRACKING_USERNAME and
$MLFLOW_TRACKING_PASSWORD. A password for PostgreSQL is libpq's affair: $PGPASSWORD, $PGPASSFILE or ~/.pgpass.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
import sqlite3
import stat
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from sweeps.ops import mlflow_backup

ADMIN = "admin"
LEAST = 12  # characters of a password, MLflow's own rule
# Through a tunnel a browser names the near end of it.
NEAR = ("localhost", "127.0.0.1", "localhost:*", "127.0.0.1:*")
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"


@dataclass(frozen=True)
class ServerConfig:
    """What the server keeps and whom it answers; `users` is the database of names and passwords, or None: no login."""

    store: str
    artifacts: str
    users: Path | None
    host: str = "127.0.0.1"
    port: int = 5000
    allowed: tuple[str, ...] = NEAR
    workers: int = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--store", metavar="URI",
                        help="sqlite:///FILE or postgresql://USER@HOST/NAME (default: SQLite in --output)")  # fmt: skip
    parser.add_argument("--artifacts", metavar="URI", help="a folder or s3://BUCKET/PREFIX (default: in --output)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that answer (default 1)")
    parser.add_argument("--allowed-hosts", metavar="NAMES",
                        help="names it may be called by, with commas: 'head.internal:5000,10.0.0.*'")  # fmt: skip
    parser.add_argument("--password-file", metavar="FILE", help=f"mode 0600 (default: ${PASSWORD})")
    parser.add_argument("--no-auth", action="store_true", help="no login; on the loopback address alone")
    parser.add_argument("--backup", metavar="FILE.tar",
                        help="write database, users and artifacts there (a path or s3://...), and leave; the server"
                             " may run meanwhile")  # fmt: skip
    parser.add_argument("--restore", metavar="FILE.tar", help="bring back what --backup wrote, where nothing is yet")


def run(options: argparse.Namespace) -> int:
    """Become the server, or back up or restore what it keeps; ValueError for what is not safe or cannot be."""
    server = resolve(options)
    if options.backup:
        print(mlflow_backup.write(options.backup, server.store, server.artifacts, _users(options)))
    elif options.restore:
        print(mlflow_backup.restore(options.restore, server.store, server.artifacts, _users(options)))
    else:
        exec_server(server, password(options) if server.users else "")
    return 0


def exec_server(server: ServerConfig, admin: str) -> NoReturn:
    """Become the server, whose files nobody else on this machine reads."""
    environment, command = environment_of(server, admin), command_of(server)
    login = f"user {ADMIN}" if server.users else "no login"
    where = f"{server.store}, artifacts in {server.artifacts}"
    print(f"MLflow at http://{server.host}:{server.port} ({login}): {where}", file=sys.stderr, flush=True)
    if not loopback(server.host):
        print("note: without TLS the password travels in clear; let only a private network reach it", file=sys.stderr)
    os.umask(0o077)
    os.execve(command[0], command, environment)


def resolve(options: argparse.Namespace) -> ServerConfig:
    """Return what was asked for, completed; ValueError for what is not safe."""
    if "://" in options.output and not (options.store and options.artifacts):
        raise ValueError(f"the server's database cannot lie in {options.output}: give --store and --artifacts")
    output = os.path.abspath(os.path.expanduser(options.output))
    store = options.store or f"sqlite:///{output}/mlflow.db"
    kind, parts = store.partition(":")[0].partition("+")[0], urlsplit(store)
    if kind not in ("sqlite", "postgresql"):
        raise ValueError(f"--store {store.partition('@')[2] or store}: sqlite:///FILE or postgresql://USER@HOST/NAME")
    if parts.password:
        raise ValueError("--store holds a password, which every user here could read: use $PGPASSWORD or ~/.pgpass")
    if options.no_auth and not loopback(options.host):
        raise ValueError(f"--no-auth with --host {options.host}: without a login only the loopback address may listen")
    if not 1 <= options.port <= 65535 or options.workers < 1:
        raise ValueError(f"--port {options.port} --workers {options.workers}: a port of 1 to 65535, 1 worker or more")
    names = tuple(name.strip() for name in (options.allowed_hosts or "").split(",") if name.strip())
    if options.host in ("0.0.0.0", "::") and not names:
        raise ValueError(f"--host {options.host}: say by --allowed-hosts by which names or addresses it may be called")
    artifacts = options.artifacts or f"{output}/mlartifacts"
    return ServerConfig(
        store=store,
        artifacts=artifacts if "://" in artifacts else os.path.abspath(os.path.expanduser(artifacts)),
        users=None if options.no_auth else _users(options),
        host=options.host,
        port=options.port,
        allowed=(*NEAR, options.host, f"{options.host}:{options.port}", *names),
        workers=options.workers,
    )


def _users(options: argparse.Namespace) -> Path:
    """Return the database of users, beside the runs' own or in the output folder."""
    folder = "outputs" if "://" in options.output else os.path.expanduser(options.output)
    return Path(folder).absolute() / "mlflow-users.db"


def loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def password(options: argparse.Namespace) -> str:
    """Return the admin's password; ValueError where there is none, it is short, or others can read it."""
    if not options.password_file:
        found = os.environ.get(PASSWORD, "")
        where = f"${PASSWORD}"
        if not found:
            raise ValueError(f"no password for the admin: set ${PASSWORD}, or --password-file FILE; or --no-auth here")
    else:
        path = Path(options.password_file).expanduser()
        where, mode = str(path), path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ValueError(f"{path} can be read by others (mode {mode & 0o777:04o}): chmod 600 {path}")
        found = path.read_text(encoding="utf-8").strip("\r\n")
    if len(found) < LEAST:
        raise ValueError(f"the password in {where} has {len(found)} characters; MLflow asks for {LEAST}")
    return found


def environment_of(server: ServerConfig, admin: str) -> dict[str, str]:
    """Return the environment of the server: what others must not read on a command line, and what it need not run.

    ValueError where the users' database has another password for the admin.
    """
    found = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": server.store,
        # Its evaluation jobs, which no sweep uses, are eight processes of 160 MB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    found.pop(PASSWORD, None)
    if server.users is None:
        return found
    server.users.parent.mkdir(parents=True, exist_ok=True)
    _known(server.users, admin)
    key, settings = server.users.with_suffix(".key"), server.users.with_suffix(".ini")
    if not key.exists():
        _private(key, secrets.token_hex(32))
    # A checked password is remembered for a minute: the check takes longer than most answers.
    _private(settings, f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{server.users}\n"
                       f"admin_username = {ADMIN}\nauth_cache_ttl_seconds = 60\n")  # fmt: skip
    return found | {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        PASSWORD: admin,
    }


def _private(path: Path, text: str) -> None:
    """Write a file that nobody else reads."""
    with suppress(FileNotFoundError):
        path.unlink()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _known(users: Path, admin: str) -> None:
    """Raise ValueError where the admin is there with another password: MLflow would go on with the old one."""
    if not users.exists():
        os.close(os.open(users, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return
    with closing(sqlite3.connect(users)) as base, suppress(sqlite3.OperationalError):  # no table yet
        row = base.execute("select password_hash from users where username = ?", (ADMIN,)).fetchone()
        from werkzeug.security import check_password_hash

        if row is not None and not check_password_hash(row[0], admin):
            raise ValueError(f"the admin in {users} has another password than the one given; give that one, or change "
                             "it there by MLflow's update_user_password")  # fmt: skip


def command_of(server: ServerConfig) -> list[str]:
    """Return the command line of the server; nothing on it is a secret."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", server.host, "--port", str(server.port),
        "--workers", str(server.workers), "--allowed-hosts", ",".join(server.allowed),
        "--serve-artifacts", "--artifacts-destination", server.artifacts,
        *(["--app-name", "basic-auth"] if server.users else []),
    ]  # fmt: skip
