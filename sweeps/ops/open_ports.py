"""Listening sockets of this machine, and those that other machines should not reach."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

# Ray's own processes. Without a token they answer with no more than metrics and that they live. They always bind to
# all addresses; the security group keeps the world out.
RAY = re.compile(r"raylet\b|gcs_server\b|ray::|(-\S+ )*(-m ray\.|\S*/ray/(dashboard|autoscaler|util|_private|core)/)")
LOOPBACK_ONLY = {8265: "Ray's dashboard, which runs jobs", 5000: "MLflow"}


class Listener(NamedTuple):
    """Listening TCP socket: address, port, and its process's command line (empty for processes of other users)."""

    address: str
    port: int
    command: str = ""

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine reaches it."""
        return ipaddress.ip_address(self.address).is_loopback


def listeners() -> list[Listener]:
    """Return the listening TCP sockets in this process's network, sorted by port."""
    import psutil  # the check of a machine tells that it is missing

    sockets = {
        Listener(_plain_address(connection.laddr.ip), connection.laddr.port, _command(connection.pid))
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
    }
    return sorted(sockets, key=lambda listener: (listener.port, listener.address))


def _plain_address(text: str) -> str:
    """Return an address; one of IPv4 that is mapped into IPv6 as IPv4."""
    address = ipaddress.ip_address(text)
    return str(getattr(address, "ipv4_mapped", None) or address)


def _command(pid: int | None) -> str:
    import psutil

    try:
        return " ".join(psutil.Process(pid).cmdline()).strip() if pid is not None else ""
    except psutil.Error:
        return ""


def open_to_network(sockets: Iterable[Listener]) -> list[str]:
    """Return a sentence for each listener that other machines reach and should not: all but SSH and Ray's own."""
    sentences = []
    for listener in sockets:
        place = f"{listener.address}:{listener.port}"
        if listener.is_loopback:
            continue
        if listener.port in LOOPBACK_ONLY:
            sentences.append(f"{LOOPBACK_ONLY[listener.port]}, listens on {place}: it belongs on 127.0.0.1")
        elif listener.port != 22 and not RAY.match(_program(listener.command)):
            process = listener.command[:80] or "a process of another user"
            sentences.append(f"{process} listens on {place}, which the cluster does not need")
    return sentences


def _program(command: str) -> str:
    """Return a command line from the name of its program on; without the interpreter where that is Python."""
    program, _, arguments = command.partition(" ")
    name = program.rpartition("/")[2]
    return arguments if name.startswith("python") else f"{name} {arguments}"
