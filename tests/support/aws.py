"""EC2, IAM, SSM and S3 of this machine: moto answers, hosts of tests.hosts run, each call is noted with its role.

As a program it is the cloud: moto's server and the metadata service that each instance asks (IMDSv2 alone), on the
switch of whoever starts it. `Cloud` is the other side: it starts a host for each instance that runs, and stops it when
the instance ends.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

GATEWAY, METADATA, PORT = "172.31.255.254", "169.254.169.254", 5000
ENDPOINT, REGION, ACCOUNT = f"http://{GATEWAY}:{PORT}", "us-west-2", "123456789012"
LAPTOP = "AKIALAPTOP"
KEYS = re.compile(r"<Key>([^<]*)</Key>")  # of a request to delete many objects


def environment(key: str = "") -> dict[str, str]:
    """Return the variables by which a program finds this cloud; with a key for a laptop, which has no role."""
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "made-up", "AWS_EC2_METADATA_DISABLED": "true"}
    return {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_DEFAULT_REGION": REGION} | (keys if key else {})


def noted(log: Path) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what wraps a WSGI application to write each call down: the caller's key, action, resource, address."""
    file, lock = log.open("a", buffering=1), threading.Lock()

    def wrapping(application: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(environ: dict[str, Any], start: Any) -> Any:
            size, lines = int(environ.get("CONTENT_LENGTH") or 0), []
            signed = re.search(r"Credential=(\w+)/\d+/[\w-]+/(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
            # Bodies of files are not kept in memory twice.
            if signed and signed[2] != "s3":
                body = environ["wsgi.input"].read(size) if size else b""
                # moto starts MinCount machines, EC2 as many as it has, up to MaxCount.
                most = re.search(rb"\bMaxCount=(\d+)", body)
                body = re.sub(rb"\bMinCount=\d+", b"MinCount=" + most[1], body) if most else body
                environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
                target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
                action = target or parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
                line = [signed[1], f"{signed[2]}:{action}", "*"]
            elif signed:
                action, resource = on_s3(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
                line = [signed[1], action, resource]
                if resource.endswith("/"):  # many at once: IAM asks for each
                    body = environ["wsgi.input"].read(size)
                    environ["wsgi.input"] = io.BytesIO(body)
                    lines += [[signed[1], action, resource + key] for key in KEYS.findall(body.decode())]
            else:
                line = ["nobody", environ["REQUEST_METHOD"], environ["PATH_INFO"]]
            with lock:
                for each in lines or [line]:
                    file.write(json.dumps([*each, environ["REMOTE_ADDR"]]) + "\n")
            return application(environ, start)

        return wrapped

    return wrapping


def on_s3(method: str, path: str, query: str) -> tuple[str, str]:
    """Return the action that IAM asks for, and its resource, for a request to S3."""
    _, bucket, key = (path + "//").split("/", 2)
    key = key.rstrip("/") if key.strip("/") else ""
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


class Metadata(BaseHTTPRequestHandler):
    """What a machine is told of itself: the keys of its role, and whether it is about to be reclaimed."""

    notices: Path

    def do_PUT(self) -> None:
        self._say(200 if self.path == "/latest/api/token" else 404, "made-up-session")

    def do_GET(self) -> None:
        host, path = self.client_address[0], self.path.removeprefix("/latest/meta-data/").rstrip("/")
        if self.headers["X-aws-ec2-metadata-token"] != "made-up-session":
            self._say(401, "")
        elif path == "spot/instance-action":
            notice = self.notices / host
            self._say(200, notice.read_text()) if notice.exists() else self._say(404, "")
        elif path == "placement/region":
            self._say(200, REGION)
        elif path == "iam/security-credentials":
            self._say(200, role(host))
        elif path.startswith("iam/security-credentials/"):
            # As long as EC2's own: tools ask anew shortly before the end.
            ends = datetime.now(UTC) + timedelta(hours=6)
            keys = {"AccessKeyId": "ASIA" + role(host).replace("-", "").upper(), "SecretAccessKey": "made-up",
                    "Token": "made-up", "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "Code": "Success",
                    "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z"}  # fmt: skip
            self._say(200, json.dumps(keys))
        else:
            self._say(404, "")

    def _say(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def client(service: str) -> Any:
    """Return a client of the cloud with the laptop's keys."""
    import boto3

    keys = {"aws_access_key_id": LAPTOP, "aws_secret_access_key": "made-up"}
    return boto3.client(service, region_name=REGION, endpoint_url=ENDPOINT, **keys)


def instances(ec2: Any) -> list[dict[str, Any]]:
    """Return all instances there are and were."""
    return [found for page in ec2.describe_instances()["Reservations"] for found in page["Instances"]]


_roles: dict[str, str] = {}


def role(host: str) -> str:
    """Return the name of the role of the machine at an address; looked up once, while all of its like run."""
    if host not in _roles:
        for started in client("ec2").describe_instances()["Reservations"]:
            # Of machines that one call has started moto gives the profile to the first alone, and only while it runs.
            profile = started["Instances"][0].get("IamInstanceProfile")
            if profile:
                name = profile["Arn"].rpartition("/")[2]
                _roles.update({found["PrivateIpAddress"]: name for found in started["Instances"]})
    return _roles[host]


def serve(folder: Path) -> None:
    """Be the cloud until the end of the process."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    Metadata.notices = folder / "notices"
    Metadata.notices.mkdir()
    metadata = ThreadingHTTPServer((METADATA, 80), Metadata)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    application = noted(folder / "calls.jsonl")(DomainDispatcherApplication(create_backend_app))
    make_server(GATEWAY, PORT, application, threaded=True).serve_forever()


@contextmanager
def cloud(folder: Path, hosts: Any, key: Callable[[], str]) -> Iterator[Path]:
    """From enter to exit: the cloud, and a host for each of its instances that runs; yield the list of calls.

    `key` returns the public key that an instance lets in, as EC2 would put it there.
    """
    log = (folder / "cloud.log").open("wb")
    server = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=log, stderr=log)
    over, failed = threading.Event(), []

    def follow() -> None:
        ec2 = client("ec2")
        try:
            while not over.is_set():
                up = {i["PrivateIpAddress"] for i in instances(ec2) if i["State"]["Name"] == "running"}
                for address in hosts.running.keys() - up:
                    hosts.stop(address)
                for address in up - hosts.running.keys():
                    hosts.start(address, key())
                over.wait(0.5)
        except Exception as error:
            failed.append(error)
        finally:
            hosts.close()

    # Hosts die with the thread that starts them.
    following = threading.Thread(target=follow)
    try:
        ends = time.monotonic() + 120
        while True:
            assert server.poll() is None, (folder / "cloud.log").read_text()
            assert time.monotonic() < ends, "moto does not answer"
            with suppress(OSError):
                import urllib.request

                urllib.request.urlopen(f"{ENDPOINT}/moto-api/", timeout=5).close()
                break
            time.sleep(0.2)
        following.start()
        yield folder / "calls.jsonl"
    finally:
        over.set()
        if following.is_alive():
            following.join()
        server.kill()
        server.wait()
        log.close()
    assert not failed, failed[0]


def calls(log: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield action, resource and the machine's address of what the role of this name has asked for, in order."""
    key = "ASIA" + name.replace("-", "").upper()
    for line in log.read_text().splitlines():
        who, action, resource, address = json.loads(line)
        if who == key:
            yield action, resource, address


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
