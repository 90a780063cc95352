"""MLflow server for a cluster's head or a desk, with safe defaults: python -m sweeps serve.

It listens on this machine only, asks for a password, answers only to its own host names, and keeps its database and
artifacts in --output, where sweeps without a server put theirs: earlier runs are shown. The process becomes
`mlflow server` and ends with it. Over a network without TLS the password is sent in clear text: prefer a tunnel.

The admin's name is admin. The password comes from $MLFLOW_AUTH_ADMIN_PASSWORD or --password-file, never from the
command line, and is set when the server first starts. Clients give it by $MLFLOW_TRACKING_USERNAME and
$MLFLOW_TRACKING_PASSWORD. The password of PostgreSQL comes from $PGPASSWORD, $PGPASSFILE or ~/.pgpass.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
import shlex
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sweeps.ops import mlflow_backup
from sweeps.store.local_uris import folder_uri, sqlite_uri
from sweeps.store.logins import has_password

ADMIN = "admin"
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
MIN_LENGTH = 12  # characters of a password, MLflow's own rule
# A browser at the other end of a tunnel uses these host names.
LOCAL_NAMES = ("localhost", "127.0.0.1", "localhost:*", "127.0.0.1:*")


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of a server; `users` is its database of names and passwords, None for no login."""

    store: str
    artifacts: str
    users: Path | None
    host: str = "127.0.0.1"
    port: int = 5000
    allowed: tuple[str, ...] = LOCAL_NAMES
    workers: int = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
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
    """Become the server, or back up or restore its data; ValueError for unsafe or impossible options."""
    server = resolve(options)
    if options.backup:
        print(mlflow_backup.write(options.backup, server.store, server.artifacts, _users(options)))
    elif options.restore:
        print(mlflow_backup.restore(options.restore, server.store, server.artifacts, _users(options)))
    else:
        exec_server(server, password(options) if server.users else "")
    return 0


def exec_server(server: ServerConfig, admin: str) -> NoReturn:
    """Become the server; no other user of this machine may read its files."""
    environment = server_environment(server, admin)
    command = server_command(server)
    login = f"user {ADMIN}" if server.users else "no login"
    where = f"{server.store}, artifacts in {server.artifacts}"
    print(f"MLflow at http://{server.host}:{server.port} ({login}): {where}", file=sys.stderr, flush=True)
    if not is_loopback(server.host):
        print("note: without TLS the password travels in clear; let only a private network reach it", file=sys.stderr)
    os.umask(0o077)
    os.execve(command[0], command, environment)


def resolve(options: argparse.Namespace) -> ServerConfig:
    """Return the server that the options ask for; ValueError for an unsafe one."""
    if "://" in options.output and not (options.store and options.artifacts):
        raise ValueError(f"the server's database cannot lie in {options.output}: give --store and --artifacts")
    output = os.path.abspath(os.path.expanduser(options.output))
    store = options.store or sqlite_uri(f"{output}/mlflow.db")
    kind = store.partition(":")[0].partition("+")[0]
    if kind not in ("sqlite", "postgresql"):
        raise ValueError(f"--store {store.partition('@')[2] or store}: sqlite:///FILE or postgresql://USER@HOST/NAME")
    if has_password(store):
        raise ValueError("--store holds a password, which every user here could read: use $PGPASSWORD or ~/.pgpass")
    if options.no_auth and not is_loopback(options.host):
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
        allowed=(*LOCAL_NAMES, options.host, f"{options.host}:{options.port}", *names),
        workers=options.workers,
    )


def _users(options: argparse.Namespace) -> Path:
    """Return the database of users, beside the runs' own or in the output folder."""
    folder = "outputs" if "://" in options.output else os.path.expanduser(options.output)
    return Path(folder).absolute() / "mlflow-users.db"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def password(options: argparse.Namespace) -> str:
    """Return the admin's password; ValueError where there is none, it is short, or others can read it."""
    if options.password_file:
        path = Path(options.password_file).expanduser()
        where, mode = str(path), path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            close = shlex.join(["chmod", "600", str(path)])
            raise ValueError(f"{path} can be read by others (mode {mode & 0o777:04o}): {close}")
        secret = path.read_text(encoding="utf-8").strip("\r\n")
    else:
        where, secret = f"${PASSWORD}", os.environ.get(PASSWORD, "")
        if not secret:
            raise ValueError(f"no password for the admin: set ${PASSWORD}, or --password-file FILE; or --no-auth here")
    if len(secret) < MIN_LENGTH:
        raise ValueError(f"the password in {where} has {len(secret)} characters; MLflow asks for {MIN_LENGTH}")
    return secret


def server_environment(server: ServerConfig, admin: str) -> dict[str, str]:
    """Return the environment of the server: its secrets, which a command line would show, and services turned off.

    ValueError where the users' database has another password for the admin.
    """
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": server.store,
        # Its evaluation jobs, which no sweep uses, are eight processes of 160 MB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment.pop(PASSWORD, None)
    if server.users is None:
        return environment
    server.users.parent.mkdir(parents=True, exist_ok=True)
    _check_password(server.users, admin)
    key, settings = server.users.with_suffix(".key"), server.users.with_suffix(".ini")
    if not key.exists():
        _write_private(key, secrets.token_hex(32))
    # MLflow remembers a checked password for a minute: the check takes longer than most requests.
    users = sqlite_uri(str(server.users)).replace("%", "%%")  # as a file of this kind writes it
    _write_private(settings, f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users}\n"
                             f"admin_username = {ADMIN}\nauth_cache_ttl_seconds = 60\n")  # fmt: skip
    return environment | {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        PASSWORD: admin,
    }


def _write_private(path: Path, text: str) -> None:
    """Write a file that no other user can read."""
    with suppress(FileNotFoundError):
        path.unlink()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _check_password(users: Path, admin: str) -> None:
    """Raise ValueError where the admin has another password already: MLflow would go on with that one."""
    if not users.exists():
        os.close(os.open(users, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return
    from werkzeug.security import check_password_hash

    hashed = mlflow_backup.password_hash(users, ADMIN)
    if hashed is not None and not check_password_hash(hashed, admin):
        raise ValueError(f"the admin in {users} has another password than the one given; give that one, or change "
                         "it there by MLflow's update_user_password")  # fmt: skip


def server_command(server: ServerConfig) -> list[str]:
    """Return the command line of the server, which holds no secret."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", server.host, "--port", str(server.port),
        "--workers", str(server.workers), "--allowed-hosts", ",".join(server.allowed),
        "--serve-artifacts", "--artifacts-destination", folder_uri(server.artifacts),
        *(["--app-name", "basic-auth"] if server.users else []),
    ]  # fmt: skip
