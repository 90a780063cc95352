"""Address of a Ray cluster: whether something of Ray answers there, asked before Ray itself tries for ten minutes.

Also whether a cluster on this machine would have room for the names of its sockets. Nothing here imports Ray.
"""

from __future__ import annotations

import os
import socket

from sweeps.experiment.wording import count

ANSWER_SECONDS = 4.0  # for the connection, and once more for the first answer
DEFAULT_PORTS = {"ray://": 10001}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # a client's first words in HTTP/2, which gRPC speaks
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # an empty frame of settings
SETTINGS_TYPE = 4
SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest below Ray's folder
SOCKET_BYTES = 107  # that the name of a socket may have


def check_cluster(address: str) -> None:
    """Raise ValueError where no Ray cluster answers at an address or, for "local", none can be started here."""
    if address == "local":
        check_temporary_folder()
    else:
        check_answers(address)


def check_temporary_folder() -> None:
    """Raise ValueError where the folder for Ray's sockets has too long a name for a socket."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    folder = os.environ.get(name) or "/tmp"
    excess = len(os.fsencode(os.path.join(folder, SOCKET))) - SOCKET_BYTES
    if excess > 0:
        raise ValueError(
            f"{name} is {count(excess, 'byte')} too long for Ray's sockets: {folder}; set RAY_TMPDIR to a folder with "
            f"a short name, as in RAY_TMPDIR=/tmp"
        )


def check_answers(address: str, seconds: float = ANSWER_SECONDS) -> None:
    """Raise ValueError, with the address, where no gRPC server answers at it within a few seconds.

    `auto` stands for $RAY_ADDRESS, as for Ray; without that variable only Ray knows what it stands for.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        return
    host, port = _host_and_port(address)
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                _read_settings(connection)
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address}: {_reason(error)}") from None


def _host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of host:port, [host]:port or ray://host[:port]; ValueError for anything else."""
    scheme = next((scheme for scheme in DEFAULT_PORTS if address.startswith(scheme)), "")
    name = address.removeprefix(scheme).partition("/")[0]
    host, _, port = name.rpartition(":")
    if scheme and not host:
        host, port = name, str(DEFAULT_PORTS[scheme])
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{address!r} is no address of a Ray cluster: HOST:PORT, ray://HOST:PORT, auto or local")
    return host, int(port)


def _read_settings(connection: socket.socket) -> None:
    """Raise OSError where the other side does not begin as a gRPC server does, with a frame of settings."""
    connection.sendall(PREFACE + SETTINGS)
    header = b""
    while len(header) < len(SETTINGS):
        part = connection.recv(len(SETTINGS) - len(header))
        if not part:
            raise OSError("it closes the connection, as no gRPC server does")
        header += part
    if header[3] != SETTINGS_TYPE:
        raise OSError("what answers is no gRPC server")


def _reason(error: OSError) -> str:
    """Return why there is no answer, in words."""
    return "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
