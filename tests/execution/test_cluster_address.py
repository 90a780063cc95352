"""Whether a Ray cluster answers is known within seconds, by a look that needs no Ray."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from sweeps.execution.cluster_address import PREFACE, SETTINGS, check_answers


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


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def grpc(connection: socket.socket) -> None:
    """Answer as Ray's GCS does, in two parts, once the client has said its preface."""
    words = connection.recv(100)
    assert words.startswith(PREFACE)
    frame = SETTINGS[:2] + b"\x06" + SETTINGS[3:] + bytes(6)
    connection.sendall(frame[:3])
    time.sleep(0.05)
    connection.sendall(frame[3:])
    with suppress(ConnectionResetError):
        connection.recv(100)


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_what_speaks_grpc_may_be_a_cluster(form: str) -> None:
    with server(grpc) as address:
        check_answers(form.format(address))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "[127.0.0.1]:{}", "ray://127.0.0.1:{}"])
def test_a_closed_port_is_refused_with_the_address(form: str) -> None:
    address = form.format(closed_port())
    with pytest.raises(ValueError, match=r"^no Ray cluster answers at .*: Connection refused$") as error:
        check_answers(address)
    assert address in str(error.value)


def test_what_is_no_grpc_server_or_says_nothing_is_refused_in_time() -> None:
    http = "what answers is no gRPC server$"
    with server(lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\n")) as address, pytest.raises(ValueError, match=http):
        check_answers(address)
    closing = "it closes the connection, as no gRPC server does$"
    with server(lambda c: c.recv(100)) as address, pytest.raises(ValueError, match=closing):
        check_answers(address)
    over = threading.Event()
    with server(lambda _: over.wait(10)) as address:  # a process that is stopped, or a machine that swaps
        began = time.monotonic()
        with pytest.raises(ValueError, match=rf"answers at {address}: no answer in time"):
            check_answers(address, 0.2)
        over.set()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("address", ["127.0.0.1", "head:", ":6379", "head:port", "head:99999", "http://head", "ray://"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(ValueError, match="is no address of a Ray cluster: HOST:PORT"):
        check_answers(address)


def test_auto_is_the_address_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_answers("auto")
    check_answers("local")
    address = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=rf"no Ray cluster answers at {address}"):
        check_answers("auto")


def test_under_tls_a_connection_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with server(lambda c: c.recv(1)) as address:
        check_answers(address)
