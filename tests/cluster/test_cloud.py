"""The cloud of the clusters' tests itself: a call that fails is tried again, a part that ends says so at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from tests.support import aws, hosts
from tests.support.waiting import until

LACKING = hosts.lacking()
pytestmark = [
    pytest.mark.skipif(bool(LACKING) and not os.environ.get("CI"), reason=LACKING),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
IMAGE = {"ImageId": "ami-12345678901234567", "MinCount": 1, "MaxCount": 1}
# werkzeug's page for what moto raises; botocore takes it for XML.
PAGE = b"<!doctype html>\n<html lang=en>\n<title>500 Internal Server Error</title>\n<h1>Internal Server Error</h1>\n"


class Lights(hosts.Hosts):
    """Hosts that only note that they were started, or fail as a test says."""

    start_error = check_error = ""

    def start(self, address: str, key: str) -> None:
        assert not self.start_error, self.start_error
        self.running[address] = None  # type: ignore[assignment]

    def stop(self, address: str) -> None:
        self.running.pop(address)

    def check(self) -> None:
        assert not self.check_error, self.check_error


@pytest.fixture
def lights(tmp_path: Path) -> Lights:
    return Lights(tmp_path / "hosts", tmp_path, aws.GATEWAY)


@pytest.fixture
def cloud(tmp_path: Path, lights: Lights) -> Iterator[aws.Cloud]:
    """Yield a cloud whose end is looked at by the test."""
    aws.client.cache_clear()
    with hosts.switch(f"{aws.GATEWAY}/16", f"{aws.METADATA}/32"):
        cloud = aws.Cloud(tmp_path, lights, lambda: "key", patience=600)
        cloud.start()
        yield cloud
        cloud.stop()
    aws.client.cache_clear()


def run_instance() -> str:
    (instance,) = aws.client("ec2").run_instances(**IMAGE)["Instances"]
    return str(instance["PrivateIpAddress"])


def faults(cloud: aws.Cloud, action: str) -> int:
    """Return how many calls of an action are still to fail."""
    return int((cloud.folder / "faults" / action).read_text())


def test_calls_that_answer_500_are_tried_again(cloud: aws.Cloud, lights: Lights) -> None:
    first = run_instance()
    until(lambda: lights.running.keys() == {first}, "a host", 300, cloud.check)
    cloud.order_faults("ec2:DescribeInstances", 3)
    cloud.order_faults("ec2:RunInstances", 2)
    second = run_instance()
    until(lambda: lights.running.keys() == {first, second}, "two hosts", 300, cloud.check)
    assert faults(cloud, "ec2:DescribeInstances") == faults(cloud, "ec2:RunInstances") == 0
    assert cloud.log().count("500 ordered by the test") == 5
    cloud.check()


def test_page_that_botocore_cannot_parse_does_not_end_the_thread(
    tmp_path: Path, lights: Lights, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Page:
        def stream(self) -> Iterator[bytes]:
            yield PAGE

    injected: list[float] = []

    def inject(request: object, **_: object) -> AWSResponse | None:
        if threading.current_thread().name != "instances" or len(injected) == 2:
            return None
        injected.append(time.monotonic())
        return AWSResponse(aws.ENDPOINT, 500, {"content-type": "text/html"}, Page())

    aws.client.cache_clear()
    with hosts.switch(f"{aws.GATEWAY}/16", f"{aws.METADATA}/32"):
        aws.client("ec2", 1).meta.events.register("before-send.ec2.DescribeInstances", inject)
        with aws.Cloud(tmp_path, lights, lambda: "key") as cloud:
            address = run_instance()
            until(lambda: lights.running.keys() == {address}, "a host", 300, cloud.check)
            assert len(injected) == 2
    aws.client.cache_clear()


@pytest.mark.parametrize("fault", ["host does not start", "host has ended", "moto fails for longer than one waits"])
def test_thread_that_ends_is_reported_at_once_with_its_reason(
    cloud: aws.Cloud, lights: Lights, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = {"PrivateIpAddress": "172.31.0.1", "State": {"Name": "running"}, "IamInstanceProfile": None}
    if fault == "host does not start":
        lights.start_error = reason = "no sshd on this host"
    elif fault == "host has ended":
        lights.check_error = reason = "its power is gone"
    else:
        monkeypatch.setattr(cloud, "patience", 2)
        cloud.order_faults("ec2:DescribeInstances", 1_000_000)
        reason = "500.* when calling the DescribeInstances operation"
    if fault.startswith("host"):
        monkeypatch.setattr(aws, "instances", lambda ec2: [instance])
    with pytest.raises(AssertionError, match=f"(?s)thread that follows the instances has ended.*{reason}"):
        until(lambda: False, "what never comes", 300, cloud.check)


def test_server_that_ends_is_reported_at_once(cloud: aws.Cloud) -> None:
    cloud.server.kill()
    with pytest.raises(AssertionError, match="moto's server has ended with -9"):
        until(lambda: False, "what never comes", 300, cloud.check)


def test_error_of_the_caller_is_not_tried_again(cloud: aws.Cloud) -> None:
    with pytest.raises(ClientError) as refused:
        aws.client("ssm").get_parameter(Name="/nothing")
    assert not aws.is_passing(refused.value)
    assert sum("ssm:GetParameter" in line for line in cloud.calls.read_text().splitlines()) == 1
