"""Whether a Ray cluster answers is known within seconds, by a look that needs no Ray."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from sweeps.execution.cluster_address import PREFACE, SETTINGS, check_answers

PATIENCE = 120.0  # seconds in which those that answer do so on any machine


@contextmanager
def server(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Serve one connection of this machine by `answer`, and yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Yield a port at which nothing listens, and which nobody else is given meanwhile."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield int(unused.getsockname()[1])


class InParts(socket.socket):
    """Connection whose answers arrive three bytes at a time."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(size, 3), flags)


def grpc(connection: socket.socket) -> None:
    """Answer as Ray's GCS does, once the client has said its preface."""
    words = connection.recv(100)
    assert words.startswith(PREFACE)
    connection.sendall(SETTINGS[:2] + b"\x06" + SETTINGS[3:] + bytes(6))
    with suppress(ConnectionResetError):
        connection.recv(100)


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_what_speaks_grpc_may_be_a_cluster(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.create_connection

    def in_parts(address: tuple[str, int], timeout: float) -> InParts:
        connection = InParts(fileno=connect(address, timeout=timeout).detach())
        connection.settimeout(timeout)
        return connection

    monkeypatch.setattr(socket, "create_connection", in_parts)
    with server(grpc) as address:
        check_answers(form.format(address), PATIENCE)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "[127.0.0.1]:{}", "ray://127.0.0.1:{}"])
def test_a_closed_port_is_refused_with_the_address(form: str, closed_port: int) -> None:
    address = form.format(closed_port)
    with pytest.raises(ValueError, match=r"^no Ray cluster answers at .*: Connection refused$") as error:
        check_answers(address)
    assert address in str(error.value)


def http_server(connection: socket.socket) -> None:
    """Answer as an HTTP server does to what it cannot read."""
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")


def test_what_is_no_grpc_server_or_says_nothing_is_refused_in_time() -> None:
    http = "what answers is no gRPC server$"
    with server(http_server) as address, pytest.raises(ValueError, match=http):
        check_answers(address, PATIENCE)
    closing = "it closes the connection, as no gRPC server does$"
    with server(lambda c: c.recv(100)) as address, pytest.raises(ValueError, match=closing):
        check_answers(address, PATIENCE)
    over = threading.Event()
    with server(lambda _: over.wait(PATIENCE)) as address:  # a process that is stopped, or a machine that swaps
        try:
            with pytest.raises(ValueError, match=rf"answers at {address}: no answer in time"):
                check_answers(address, 0.2)
        finally:
            over.set()


@pytest.mark.parametrize("address", ["127.0.0.1", "head:", ":6379", "head:port", "head:99999", "http://head", "ray://"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(ValueError, match="is no address of a Ray cluster: HOST:PORT"):
        check_answers(address)


def test_auto_is_the_address_of_the_environment(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_answers("auto")
    check_answers("local")
    address = f"127.0.0.1:{closed_port}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=rf"no Ray cluster answers at {address}"):
        check_answers("auto")


def test_under_tls_a_connection_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with server(lambda c: c.recv(1)) as address:
        check_answers(address, PATIENCE)
