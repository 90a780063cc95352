"""Check of this machine, or by --cluster of a cluster's security, on its head; by --file of a cluster's file, anywhere.

One line a finding; exit code 1 where something is wrong; nothing is changed. Of this machine it looks at all that a
sweep needs. Of a cluster it checks that Ray accepts its token and no other, that MLflow asks for its password and
answers only to its own host names, that only the necessary ports are open to other machines, that only their owner can
read the secrets, and that the cluster's file keeps the rules of docs/cluster.md.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import os
import shlex
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crelu_data.datasets import counted
from sweeps.ops.machine_check import Request, check_machine
from sweeps.ops.open_ports import listeners, open_to_network
from sweeps.store.ledger import Ledger

DEFAULT_OUTPUT = "outputs"
DASHBOARD, MLFLOW = "http://127.0.0.1:8265", "http://127.0.0.1:5000"
SECRETS = ("~/.ray/auth_token", "~/.ray/mlflow_password", "~/.mlflow/credentials", "~/ray_bootstrap_key.pem")
FILE = "~/ray_bootstrap_config.yaml"
GCS_PORT = 6379
CLIENT_PORT = 10001
MIN_LENGTH = 12  # characters of a secret


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cluster", action="store_true", help="check the cluster whose head this machine is")
    parser.add_argument("--file", metavar="YAML", help=f"check the cluster's file only, anywhere (default: {FILE} too)")
    parser.add_argument("--data-dir", metavar="DIR", help="the .beton files (default $CRELU_DATA)")
    parser.add_argument("--address", metavar="HOST", help="Ray cluster: auto, a host, or local (default $RAY_ADDRESS)")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow (default $MLFLOW_TRACKING_URI, or in --output)")


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 1 where something is wrong."""
    if not (options.cluster or options.file):
        output = Ledger.in_output(options.output).output
        is_default = options.output == DEFAULT_OUTPUT
        request = Request(output, options.data_dir, options.address, options.tracking_uri, is_default)
        return 0 if check_machine(request) else 1
    checks: dict[str, Callable[[], Iterator[str]]] = {}
    if options.cluster:
        checks = {
            "secrets": secrets,
            "listeners": lambda: iter(open_to_network(listeners())),
            "ray": ray,
            "mlflow": mlflow,
            "metadata": metadata,
        }
    file = Path(options.file or FILE).expanduser()
    checks["file"] = lambda: policy(read(file))
    total = 0
    for name, check in checks.items():
        findings = list(check())
        total += len(findings)
        for sentence in findings or ["as it should be"]:
            print(f"{name:<10} {'WRONG  ' if findings else 'ok     '} {sentence}")
    if total:
        print(
            f"{counted(total, 'finding')}: each WRONG above is open to others, or costs more, than it should",
            file=sys.stderr,
        )
    return 1 if total else 0


def read(file: Path) -> dict[str, Any]:
    """Return the file of a cluster; ValueError where there is none."""
    import yaml

    try:
        cluster = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is not there: --cluster is for a head that `ray up` has started") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}".replace("\n", " ")) from None
    if not isinstance(cluster, dict) or "provider" not in cluster:
        raise ValueError(f"{file} is no file of a cluster")
    return cluster


def secrets() -> Iterator[str]:
    """Yield each file of a secret that is missing, too short, or readable by others."""
    for name in SECRETS:
        path = Path(name).expanduser()
        if not path.exists():
            if name in SECRETS[:2]:
                yield f"{name} is not there"
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield f"{name} can be read by others (mode {mode:04o}): {shlex.join(['chmod', '600', str(path)])}"
        if name in SECRETS[:2] and len(path.read_text().strip()) < MIN_LENGTH:
            yield f"{name} holds less than {MIN_LENGTH} characters"


def answer(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> int:
    """Return the HTTP status of an address; 0 where nothing answers."""
    request = urllib.request.Request(url, headers=dict(headers or {}), method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):  # the second: what answers there does not speak HTTP
        return 0


def ray() -> Iterator[str]:
    """Yield how Ray accepts a missing or wrong token, or refuses the right one."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        yield "RAY_AUTH_MODE is not token in this shell: a Ray that it starts would ask for none"
    jobs = f"{DASHBOARD}/api/jobs/"
    token = _text("~/.ray/auth_token")
    if not answer(jobs):
        yield f"Ray's dashboard does not answer at {DASHBOARD}"
        return
    for who, headers in (("without a token", {}), ("with a wrong token", {"Authorization": f"Bearer {'0' * 64}"})):
        if (status := answer(jobs, headers)) not in (401, 403):
            yield f"Ray takes jobs {who}: {jobs} answers {status}"
    if (status := answer(jobs, {"Authorization": f"Bearer {token}"})) != 200:
        yield f"Ray does not take the token of ~/.ray/auth_token: {jobs} answers {status}"
    host = _own_address()
    try:
        socket.create_connection((host, GCS_PORT), timeout=5).close()
    except OSError:  # without this look Ray would try for a minute
        return
    # A stranger has no token: none in the environment, and a home directory without one.
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    stranger |= {"RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", f"{host}:{GCS_PORT}"]
    try:
        done = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        yield f"Ray's GCS at {host}:{GCS_PORT} answers nothing within two minutes"
        return
    if done.returncode == 0:
        yield "Ray's GCS shows its state without a token"


def _own_address() -> str:
    """Return the address by which other machines reach Ray's GCS: that of its client port."""
    clients = (listener for listener in listeners() if listener.port == CLIENT_PORT and not listener.is_loopback)
    address = next((listener.address for listener in clients), "127.0.0.1")
    return "127.0.0.1" if address in ("0.0.0.0", "::") else address


def mlflow() -> Iterator[str]:
    """Yield how MLflow accepts a missing or wrong password or a foreign host name, or refuses the right password."""
    runs = f"{MLFLOW}/api/2.0/mlflow/experiments/search?max_results=1"
    if not answer(f"{MLFLOW}/health"):
        yield f"MLflow does not answer at {MLFLOW}"
        return
    right, wrong = (_login(word) for word in (_text("~/.ray/mlflow_password"), "0" * 64))
    for who, headers in (("without a login", {}), ("with a wrong password", wrong)):
        if (status := answer(runs, headers)) != 401:
            yield f"MLflow shows its runs {who}: it answers {status}"
    if (status := answer(runs, right)) != 200:
        yield f"MLflow does not take the password of ~/.ray/mlflow_password: it answers {status}"
    if (status := answer(runs, right | {"Host": "rebound.example"})) != 403:
        yield f"MLflow answers {status} to a foreign name: any web page could reach it"


def _login(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()}


def _text(name: str) -> str:
    path = Path(name).expanduser()
    return path.read_text().strip() if path.exists() else ""


def metadata() -> Iterator[str]:
    """Yield a finding where the metadata service, which has the keys of this machine's role, asks for no session."""
    address = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
    if answer(f"{address}/latest/meta-data/") == 200:
        yield "the metadata service answers without a session (IMDSv1): MetadataOptions.HttpTokens: required"


def policy(cluster: Mapping[str, Any]) -> Iterator[str]:
    """Yield each rule of docs/cluster.md that the file of a cluster breaks."""
    starts = " ".join(cluster.get("head_start_ray_commands") or ())
    if "--dashboard-host=127.0.0.1" not in starts:
        yield "head_start_ray_commands: without --dashboard-host=127.0.0.1 Ray's default opens the dashboard to all"
    for name in ("setup_commands", "worker_start_ray_commands"):
        if not cluster.get(name):
            yield f"{name} is not written out: Ray's default installs another Ray"
    if "EDIT" in str([cluster.get("setup_commands"), cluster.get("available_node_types")]):
        yield "lines marked EDIT are not yours yet"
    places = [cluster["provider"].get("head_ip"), *(cluster["provider"].get("worker_ips") or ())]
    if any(str(place).startswith("192.0.2.") for place in places):
        yield "head_ip and worker_ips are those of an example: write your machines' addresses"
    if cluster["provider"].get("type") != "aws":
        return
    if cluster["provider"].get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes is not false: machines are only stopped, and their volumes go on costing"
    region = str(cluster["provider"].get("region"))
    zones = str(cluster["provider"].get("availability_zone") or region).split(",")
    if others := [zone for zone in zones if not zone.strip().startswith(region)]:
        yield f"provider.availability_zone: {', '.join(others)} is not in the region {region}"
    for name, kind in (cluster.get("available_node_types") or {}).items():
        yield from (f"{name}: {sentence}" for sentence in _machine(kind, name == cluster.get("head_node_type")))


def _machine(kind: Mapping[str, Any], head: bool) -> Iterator[str]:
    """Yield each rule that a type of machine breaks."""
    machine = kind.get("node_config") or {}
    resources = kind.get("resources") or {}
    if machine.get("MetadataOptions", {}).get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens is not required"
    if not machine.get("SecurityGroupIds"):
        yield "no SecurityGroupIds: Ray makes a group that is open to the world on port 22"
    if not machine.get("ImageId"):
        yield "no ImageId: Ray's own is of 2018"
    if not machine.get("IamInstanceProfile"):
        yield "no IamInstanceProfile"
    disks = [device.get("Ebs", {}) for device in machine.get("BlockDeviceMappings", ())]
    if not disks or not all(disk.get("Encrypted") and disk.get("DeleteOnTermination") for disk in disks):
        yield "its volumes are not encrypted, or outlive it"
    if head and (resources.get("CPU", 1) or resources.get("GPU", 0)):
        yield "trials may run on the head, beside driver, GCS and MLflow: resources {CPU: 0, GPU: 0}"
    if head and machine.get("InstanceMarketOptions"):
        yield "the head may be reclaimed"
    if not head and kind.get("min_workers", 0):
        yield f"min_workers {kind['min_workers']}: machines that nobody uses are paid for"
