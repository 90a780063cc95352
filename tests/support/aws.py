"""EC2, IAM, SSM and S3 of this machine: moto answers, hosts of support.hosts run, each call is noted with its role.

As a program it is the cloud: moto's server and the metadata service that each instance asks (IMDSv2 alone), on the
switch of its parent. `Cloud` is the other side: it starts a host for each instance that runs, and stops it when the
instance ends. Calls may fail as they do on AWS, and a test may order it: they are tried again.
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.support.servers import TextHandler
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.hosts import Hosts

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
GATEWAY, METADATA = "172.31.255.254", "169.254.169.254"
PORT = 5000
ENDPOINT = f"http://{GATEWAY}:{PORT}"
REGION = "us-west-2"
ACCOUNT = "123456789012"
LAPTOP = "AKIALAPTOP"
ROOT = Path(__file__).resolve().parents[2]
KEYS = re.compile(r"<Key>([^<]*)</Key>")  # of a request to delete many objects


def environment(key: str = "") -> dict[str, str]:
    """Return the variables by which a program finds this cloud; with a key for a laptop, which has no role."""
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "made-up", "AWS_EC2_METADATA_DISABLED": "true"}
    return {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_DEFAULT_REGION": REGION} | (keys if key else {})


class Front:
    """WSGI application before moto's: it notes each call, lets moto answer them in turn, and says errors as AWS does.

    moto changes its state from several threads without a lock, and then fails now and then ("dictionary changed size
    during iteration"). Its page for that is one that botocore cannot parse and so does not try again; a 5xx without a
    body is tried again by every client.
    """

    def __init__(self, application: Application, folder: Path) -> None:
        self.application = application
        self.faults = folder / "faults"
        self.log = (folder / "calls.jsonl").open("a", buffering=1)
        self.lock = threading.Lock()
        self.changes = folder / "changes"

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        # All of the body first: a host that loses its power in the midst of one holds up nobody else.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(*([] if environ.get("wsgi.input_terminated") else [length]))
        if len(body) < length:
            start("400 Bad Request", [("Content-Length", "0")])
            return [b""]
        calls, body = described(environ, body)
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "wsgi.input_terminated": True}
        with self.lock:
            for call in calls:
                self.log.write(json.dumps([*call, environ["REMOTE_ADDR"]]) + "\n")
            if self._is_to_fail(calls[0][1]):
                status, headers, answer = "500 ordered by the test", [], b""
            else:
                status, headers, answer = self._answer(environ)
                if calls[0][1].startswith("ec2:") and not calls[0][1].startswith("ec2:Describe"):
                    self.changes.open("a").close()
                    os.utime(self.changes)
        if int(status.split()[0]) >= 500:
            print(f"{status}: {calls[0]}: {answer[:2000]!r}", file=sys.stderr, flush=True)
            headers, answer = [("Content-Length", "0")], b""
        start(status, headers)
        return [answer]

    def _answer(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        started: list[Any] = []
        answer = self.application(environ, lambda *words: started.append(words))
        return started[-1][0], started[-1][1], b"".join(answer)

    def _is_to_fail(self, action: str) -> bool:
        """Return whether a test has ordered that this call fails: the file says how many still do."""
        order = self.faults / action
        left = int(order.read_text()) if order.exists() else 0
        if left:
            order_faults(self.faults, action, left - 1)
        return left > 0


def order_faults(folder: Path, action: str, count: int) -> None:
    """Write down how many of the next calls of an action fail; a reader never sees half of it."""
    (folder / f".{action}").write_text(str(count))
    (folder / f".{action}").replace(folder / action)


def described(environ: dict[str, Any], body: bytes) -> tuple[list[list[str]], bytes]:
    """Return the calls of one request, each as key, action and resource, and the body to hand on."""
    signed = re.search(r"Credential=(\w+)/\d+/[\w-]+/(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
    if not signed:
        return [["nobody", environ["REQUEST_METHOD"], environ["PATH_INFO"]]], body
    if signed[2] != "s3":
        # moto starts MinCount machines, EC2 as many as it has, up to MaxCount.
        most = re.search(rb"\bMaxCount=(\d+)", body)
        body = re.sub(rb"\bMinCount=\d+", b"MinCount=" + most[1], body) if most else body
        target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        action = target or parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
        return [[signed[1], f"{signed[2]}:{action}", "*"]], body
    action, resource = on_s3(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
    if not resource.endswith("/"):
        return [[signed[1], action, resource]], body
    # Many at once: IAM asks for each.
    keys = KEYS.findall(body.decode())
    return [[signed[1], action, resource + key] for key in keys or [""]], body


def on_s3(method: str, path: str, query: str) -> tuple[str, str]:
    """Return the action that IAM asks for, and its resource, for a request to S3."""
    _, bucket, key = (path + "//").split("/", 2)
    key = key.removesuffix("//") if key.strip("/") else ""  # a slash of its own is part of a key: a folder's mark
    resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    words = parse_qs(query, keep_blank_values=True)
    if not key:
        actions = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket", "POST": "DeleteObject"}
        if method == "POST" and "delete" in words:
            return "s3:DeleteObject", f"{resource}/"
        if "uploads" in words:
            return "s3:ListBucketMultipartUploads", resource
        return f"s3:{actions[method]}", resource
    if method == "DELETE" and "uploadId" in words:
        return "s3:AbortMultipartUpload", resource
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}.get(
        method, "s3:PutObject"
    ), resource


def refused(calls: Iterable[tuple[str, str]], policy: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the calls that a policy does not allow, by action and on S3 by resource; conditions are left out."""
    allowed = []
    for statement in policy["Statement"]:
        actions, resources = statement["Action"], statement["Resource"]
        actions, resources = ([word] if isinstance(word, str) else word for word in (actions, resources))
        allowed += [(action, resource) for action in actions for resource in resources]
    return {
        (action, resource)
        for action, resource in calls
        if not any(action == may and (resource == "*" or fnmatch.fnmatchcase(resource, on)) for may, on in allowed)
    }


def role_key(name: str) -> str:
    """Return the id of the key that the machines of a role have, by which calls are told apart."""
    return "ASIA" + name.replace("-", "").upper()


class Metadata(TextHandler, BaseHTTPRequestHandler):
    """What a machine is told of itself: the keys of its role, and whether it is about to be reclaimed."""

    folder: Path

    def do_PUT(self) -> None:
        self.answer(200 if self.path == "/latest/api/token" else 404, "made-up-session")

    def do_GET(self) -> None:
        host = self.client_address[0]
        path = self.path.removeprefix("/latest/meta-data/").rstrip("/")
        if self.headers["X-aws-ec2-metadata-token"] != "made-up-session":
            self.answer(401, "")
        elif path == "spot/instance-action":
            self._say_file(self.folder / "notices" / host)
        elif path == "placement/region":
            self.answer(200, REGION)
        elif path == "iam/security-credentials":
            self._say_file(self.folder / "roles" / host)
        elif path.startswith("iam/security-credentials/"):
            # As long as EC2's own: tools ask anew shortly before the end.
            ends = datetime.now(UTC) + timedelta(hours=6)
            keys = {"AccessKeyId": role_key(path.rpartition("/")[2]), "SecretAccessKey": "made-up", "Token": "made-up",
                    "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "Code": "Success", "Type": "AWS-HMAC",
                    "LastUpdated": "2026-01-01T00:00:00Z"}  # fmt: skip
            self.answer(200, json.dumps(keys))
        else:
            self.answer(404, "")

    def _say_file(self, file: Path) -> None:
        self.answer(200, file.read_text()) if file.exists() else self.answer(404, "")


@cache
def client(service: str, attempts: int = 6) -> Any:
    """Return the client of the cloud with the laptop's keys; a call that fails for a moment has so many attempts."""
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": LAPTOP, "aws_secret_access_key": "made-up"}
    config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, connect_timeout=10, read_timeout=30)
    return boto3.client(service, region_name=REGION, endpoint_url=ENDPOINT, config=config, **keys)


def instances(ec2: Any) -> list[dict[str, Any]]:
    """Return all present and past instances."""
    # Of machines that one call has started moto gives the profile to the first alone.
    pages = [page["Instances"] for page in ec2.describe_instances()["Reservations"]]
    return [{"IamInstanceProfile": page[0].get("IamInstanceProfile")} | instance for page in pages for instance in page]


def is_passing(error: Exception) -> bool:
    """Return whether a call that failed with this error may succeed the next time."""
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.parsers import ResponseParserError

    if isinstance(error, ClientError):
        return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500)
    return isinstance(error, HTTPClientError | ResponseParserError)


def serve(folder: Path) -> None:
    """Be the cloud until the end of the process."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Handler whose log has the errors alone: calls.jsonl has every call."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    Metadata.folder = folder
    metadata = ThreadingHTTPServer((METADATA, 80), Metadata)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    application = Front(DomainDispatcherApplication(create_backend_app), folder)
    make_server(GATEWAY, PORT, application, threaded=True, request_handler=Quiet).serve_forever()


class Cloud:
    """The cloud from enter to exit: its server, and a thread that starts and stops a host for each instance.

    `check` raises as soon as either has ended; each wait on something of the cloud calls it. `key` returns the public
    key that an instance lets in, as EC2 would put it there.
    """

    def __init__(self, folder: Path, hosts: Hosts, key: Callable[[], str], patience: float = 60) -> None:
        self.folder = folder
        self.hosts = hosts
        self.key = key
        self.patience = patience
        self.calls, self.changes = folder / "calls.jsonl", folder / "changes"
        self.failure = ""
        self._lock = threading.Lock()
        self._present: list[dict[str, Any]] = []
        self._changed = -1
        self._asked = 0.0
        self._over = threading.Event()
        # Hosts die with the thread that starts them.
        self._following = threading.Thread(target=self._follow, name="instances")

    def __enter__(self) -> Cloud:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        reason = self._reason()
        self.stop()
        # The error of a test that has failed already stands: its wait has named this reason.
        assert kind or not reason, reason

    def start(self) -> None:
        """Start the server, wait until it answers, and follow its instances."""
        for name in ("notices", "roles", "faults"):
            (self.folder / name).mkdir()
        command = [sys.executable, "-m", "tests.support.aws", str(self.folder)]
        with (self.folder / "cloud.log").open("wb") as log:
            self.server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            until(self._answers, "moto answers", 120, self.check, self.log)
            self._following.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the thread, and with it the hosts, and then the server."""
        self._over.set()
        if self._following.is_alive():
            self._following.join()
        self.server.kill()
        self.server.wait()

    def _answers(self) -> bool:
        with suppress(OSError):
            urllib.request.urlopen(f"{ENDPOINT}/moto-api/", timeout=5).close()
            return True
        return False

    def _reason(self) -> str:
        """Return why nothing that happens on this cloud can be waited for any more; empty while it is well."""
        # The server first: without it the thread ends as well.
        if self.server.poll() is not None:
            return f"moto's server has ended with {self.server.returncode}\n{self.log()}"
        if self.failure:
            return f"the thread that follows the instances has ended: {self.failure}\n{self.log()}"
        return ""

    def check(self) -> None:
        """Raise AssertionError with the reason where the server or the thread has ended."""
        reason = self._reason()
        assert not reason, reason

    def log(self) -> str:
        """Return the end of what the server has written, which is its errors."""
        return "--- cloud.log\n" + (self.folder / "cloud.log").read_text(errors="replace")[-4000:]

    def order_faults(self, action: str, count: int) -> None:
        """Let the next calls of an action fail with a 500; actions are written as `ec2:DescribeInstances`."""
        order_faults(self.folder / "faults", action, count)

    def instances(self, attempts: int = 6) -> list[dict[str, Any]]:
        """Return all present and past instances; moto is asked after each call that may have changed one."""
        with self._lock:
            changed = self.changes.stat().st_mtime_ns if self.changes.exists() else 0
            if changed != self._changed or time.monotonic() > self._asked + 5:
                self._present = instances(client("ec2", attempts))
                self._changed = changed
                self._asked = time.monotonic()
            return self._present

    def _follow(self) -> None:
        """Be the thread; note in `failure` what has ended it."""
        try:
            with closing(self.hosts):
                self._keep_up()
        except BaseException:
            self.failure = traceback.format_exc()

    def _keep_up(self) -> None:
        """Start and stop hosts as instances come and go; raise what fails for longer than `patience`, or for good."""
        failing_since = 0.0
        while not self._over.wait(0.1):
            try:
                present = self.instances(attempts=1)
            except Exception as error:
                failing_since = failing_since or time.monotonic()
                if not is_passing(error) or time.monotonic() > failing_since + self.patience:
                    raise
            else:
                failing_since = 0.0
                self._match({each["PrivateIpAddress"]: each for each in present if each["State"]["Name"] == "running"})

    def _match(self, running: dict[str, dict[str, Any]]) -> None:
        """Stop the hosts whose instances have ended, start those of new ones, and check that all others live."""
        for address in self.hosts.running.keys() - running.keys():
            self.hosts.stop(address)
        self.hosts.check()
        for address in running.keys() - self.hosts.running.keys():
            profile = running[address]["IamInstanceProfile"]
            if profile:
                (self.folder / "roles" / address).write_text(profile["Arn"].rpartition("/")[2])
            self.hosts.start(address, self.key())


def calls(log: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield action, resource and the machine's address of what the role of this name has asked for, in order."""
    key = role_key(name)
    for line in log.read_text().splitlines():
        if line.startswith(f'["{key}"'):
            _, action, resource, address = json.loads(line)
            yield action, resource, address


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
