"""Servers of this machine that tests start: ports, waits until they answer, the way to an S3."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

from tests.support.waiting import until

# Below the kernel's ports for outgoing connections and above Ray's for workers: no other program takes one by chance.
PORTS = range(20_000, 32_000)
_drawn = random.Random(os.getpid())


class TextHandler(BaseHTTPRequestHandler):
    """Handler of requests that answers with a code and a text, and logs nothing."""

    def answer(self, code: int, text: str) -> None:
        """Send the answer."""
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


def free_port() -> int:
    """Return a port that nobody listens on, drawn anew in each process, so that tests side by side do not collide."""
    while True:
        port = _drawn.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for_answer(address: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until a server answers at an address; fail where its process ends first or the time is over."""

    def answers() -> bool:
        with suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return True
        return False

    def alive() -> None:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"

    until(answers, f"an answer from {address}", seconds, alive, poll=0.1)


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the variables that lead a program to an S3 of this machine."""
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "made", "AWS_SECRET_ACCESS_KEY": "up",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
