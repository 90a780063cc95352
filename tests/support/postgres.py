"""A private PostgreSQL in a temporary folder: on loopback alone, with a password, gone when it is left."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.support.servers import free_port


def programs() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, or None where none is installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    return installed[-1].parent if installed else None


class Postgres:
    """The server from enter to exit; clients find its password in `environment`. As root it runs as user postgres."""

    def __init__(self, bin: Path) -> None:
        """Make the folder, and a database cluster in it with the one user crelu."""
        self.bin = bin
        self.password = secrets.token_hex(16)
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        secret = self.folder / "password"
        secret.write_text(self.password)
        if os.getuid() == 0:
            for path in (self.folder, secret):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "--pgdata", f"{self.folder}/base", "--username=crelu", "--auth=scram-sha-256",
                  f"--pwfile={secret}", "--encoding=UTF8", "--locale=C")  # fmt: skip

    def _run(self, program: str, *words: str) -> None:
        lower = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        done = subprocess.run(
            [*lower, str(self.bin / program), *words],
            env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a client."""
        return os.environ | {"PGPASSWORD": self.password}

    def __enter__(self) -> Postgres:
        """Start the server."""
        listen = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder}"
        log, base = f"{self.folder}/log", f"{self.folder}/base"
        self._run("pg_ctl", "--pgdata", base, "--wait", f"--log={log}", f"--options={listen}", "start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server and take its folder away."""
        self._run("pg_ctl", "--pgdata", f"{self.folder}/base", "--wait", "--mode=immediate", "stop")
        shutil.rmtree(self.folder)

    def database(self, name: str) -> str:
        """Make a database and return its URI, which has no password in it."""
        self._run("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=crelu", name)
        return f"postgresql://crelu@127.0.0.1:{self.port}/{name}"

    @property
    def process(self) -> int:
        """Return the number of the server's first process."""
        return int((self.folder / "base" / "postmaster.pid").read_text().split()[0])
