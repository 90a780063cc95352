"""EC2's notice of a reclaimed machine is read from a metadata service of this machine, and reaches Ray."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sweeps.ops import spot_notice
from sweeps.ops.spot_notice import Metadata, NoMetadataError, seconds_to_termination, watch
from tests.support.servers import TextHandler, free_port
from tests.support.waiting import output, until

ACTION = "/latest/meta-data/spot/instance-action"


class Service(ThreadingHTTPServer):
    """A metadata service that answers as IMDSv2 does: nothing without the token of a session that still lasts."""

    said: str | None = None
    token = "first"
    asked = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(TextHandler, BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200 if right else 400, self.server.token)

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.headers["X-aws-ec2-metadata-token"] != self.server.token:
            self.answer(401, "")
        elif self.path == ACTION and self.server.said is not None:
            self.answer(200, self.server.said)
        else:
            self.answer(404, "")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(spot_notice, "ANSWER", 300.0)
    with Service(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_notice_is_read_with_a_token_that_is_renewed(service: Service) -> None:
    metadata = Metadata(service.address)
    assert seconds_to_termination(metadata, 0.0) is None
    service.token = "second"  # the session of the first is over
    service.said = json.dumps({"action": "terminate", "time": "2026-01-02T03:04:05Z"})
    assert seconds_to_termination(metadata, 1767323045.0 - 119) == 119
    assert metadata.token == "second"
    assert seconds_to_termination(metadata, 1767323045.0 + 5) == 0, "it is late, and taken all the same"


@pytest.mark.parametrize("said", ["", "gone", "[]", '{"action": "stop"}', '{"action": "stop", "time": 5}'])
def test_notice_that_is_not_understood_is_one(service: Service, said: str) -> None:
    service.said = said
    assert seconds_to_termination(Metadata(service.address), time.time()) == 120


def test_ray_is_told_once_and_again_where_it_did_not_hear(service: Service) -> None:
    told: list[int] = []

    def drain(seconds: int) -> None:
        told.append(seconds)
        if len(told) < 3:
            raise ValueError("no cluster answers")

    watching = threading.Thread(target=watch, args=(Metadata(service.address), drain, 0.02))
    watching.start()

    def runs() -> None:
        assert watching.is_alive(), "the thread that watches has ended"

    until(lambda: service.asked >= 5, "five questions to the service", 300, runs, poll=0.01)
    assert told == []
    service.said = json.dumps({"action": "terminate", "time": "2026-01-02T03:04:05Z"})
    watching.join(300)
    assert not watching.is_alive()
    assert told == [0, 0, 0]


def test_machine_that_is_none_of_ec2s_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_notice, "PATIENCE", 0.0)
    with pytest.raises(ValueError, match=r"no machine of EC2's: http://127\.0\.0\.1:9 does not answer"):
        watch(Metadata("http://127.0.0.1:9"), lambda seconds: None, 0.01)


def test_service_that_refuses_everything_is_no_notice(service: Service) -> None:
    metadata = Metadata(f"{service.address}/elsewhere")
    with pytest.raises(NoMetadataError):
        metadata.read("spot/instance-action")


# The command with more seconds for Ray to drain a node: one that has lost its raylet is not drained once more.
WATCH_SPOT = """
import sys
from sweeps.__main__ import main
from sweeps.execution import ray_runtime
ray_runtime.DRAINING = 400.0
sys.exit(main())
"""


def test_watch_spot_drains_the_node_of_its_machine(service: Service) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:  # a socket's path is short
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{port}"}
        environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = service.address
        # A head without its helpers: workers, autoscaler, log monitor.
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0",
               "--no-monitor", "--include-log-monitor=false",
               "--include-dashboard=false", f"--port={port}", f"--temp-dir={folder}",
               "--object-store-memory=80000000"]  # fmt: skip
        # The notice is there before the cluster is: what Ray does not hear is said again.
        service.said = json.dumps({"action": "terminate", "time": "2099-01-02T03:04:05Z"})
        log = Path(folder) / "ray.log"
        with log.open("wb") as file, subprocess.Popen(ray, env=environment, stdout=file, stderr=file) as head:

            def runs() -> None:
                assert head.poll() is None, f"Ray ended with {head.returncode}\n{log.read_text()[-4000:]}"

            try:
                command = [sys.executable, "-c", WATCH_SPOT, "watch-spot", "--every", "0.2"]
                done = output(command, environment, Path.cwd(), 600, runs)
                assert (done.returncode, "gives this machine no new trials" in done.stdout) == (0, True), done.stdout
                logs = Path(folder) / "session_latest/logs"

                def is_logged() -> bool:
                    said = "".join(path.read_text() for path in (logs / "raylet.out", logs / "gcs_server.out"))
                    return "DRAIN_NODE_REASON_PREEMPTION" in said and "EC2 reclaims this spot machine" in said

                until(is_logged, "reason and message of the drain in Ray's logs", 120)
            finally:
                head.terminate()
