"""The doctor sees what is open: listeners of this machine, modes of secrets, a cluster's file."""

import copy
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sweeps.ops import doctor
from sweeps.ops.open_ports import Listener, listeners, open_to_network

ROOT = Path(__file__).resolve().parents[2]
RAYLET = "/home/ubuntu/crelu/.venv/lib/python3.12/site-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=x"
CLIENT = "/home/ubuntu/crelu/.venv/bin/python -m ray.util.client.server --address=10.0.0.1:6379"


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"),
                                                 (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")])  # fmt: skip
def test_listener_is_seen_with_its_address_and_process(family: int, address: str) -> None:
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with socket.socket(family) as made:
        made.bind((address, 0))
        made.listen()
        port = made.getsockname()[1]
        (listener,) = (entry for entry in listeners() if entry.port == port)
        assert listener.address == address
        assert listener.is_loopback == (address in ("127.0.0.1", "::1"))
        assert listener.command == " ".join(Path(f"/proc/{os.getpid()}/cmdline").read_text().split("\0")).strip()
    assert port not in {entry.port for entry in listeners()}


def test_only_ssh_and_rays_own_listen_to_others() -> None:
    right = [
        Listener("0.0.0.0", 22, "sshd: /usr/sbin/sshd -D"), Listener("::", 6379, "/x/ray/gcs_server --log_dir=y"),
        Listener("::", 41097, RAYLET), Listener("10.0.0.1", 37643, "ray::RuntimeEnvAgent"),
        Listener("10.0.0.1", 52365, "ray::DashboardAgent"), Listener("10.0.0.1", 10001, CLIENT),
        Listener("127.0.0.1", 8265, "/x/python /x/ray/dashboard/dashboard.py"), Listener("127.0.0.1", 5000, "python"),
        Listener("127.0.0.53", 53, ""),
    ]  # fmt: skip
    assert open_to_network(right) == []
    open_ = [Listener("0.0.0.0", 8265, "/x/python /x/ray/dashboard/dashboard.py"), Listener("10.0.0.1", 5000, "python"),
             Listener("::", 8888, "/x/python -m notebook"), Listener("0.0.0.0", 111, "")]  # fmt: skip
    dashboard, runs, notebook, unknown = open_to_network([*right, *open_])
    assert "runs jobs, listens on 0.0.0.0:8265" in dashboard
    assert "MLflow, listens on 10.0.0.1:5000" in runs
    assert "-m notebook listens on :::8888" in notebook
    assert "a process of another user listens on 0.0.0.0:111" in unknown


def shipped() -> dict[str, Any]:
    text = (ROOT / "ray_cluster.yaml").read_text().replace("sg-EDIT", "sg-0123").replace("s3://EDIT", "s3://mine")
    config: dict[str, Any] = yaml.safe_load(text)
    return copy.deepcopy(config)


def test_shipped_file_keeps_the_rules_once_its_lines_are_edited() -> None:
    assert list(doctor.policy(shipped())) == []
    assert list(doctor.policy(doctor.read(ROOT / "ray_cluster.yaml"))) == ["lines marked EDIT are not yours yet"]
    local = doctor.read(ROOT / "clusters" / "local.yaml")
    assert [sentence.partition(":")[0] for sentence in doctor.policy(local)] == [
        "head_ip and worker_ips are those of an example"
    ]
    local["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    assert list(doctor.policy(local)) == []
    elsewhere = shipped()
    elsewhere["provider"]["region"] = "us-east-1"
    assert next(iter(doctor.policy(elsewhere))).endswith("us-west-2c is not in the region us-east-1")
    assert [*doctor.policy({"provider": {"type": "aws", "cache_stopped_nodes": False}})]  # and no KeyError


@pytest.mark.parametrize(("path", "value", "said"), [
    (("head_start_ray_commands",), ["ray start --head --dashboard-host=0.0.0.0"], "opens the dashboard"),
    (("setup_commands",), [], "setup_commands is not written out"),
    (("provider", "cache_stopped_nodes"), True, "only stopped"),
    (("available_node_types", "gpu", "node_config", "MetadataOptions"), {}, "gpu: MetadataOptions.HttpTokens"),
    (("available_node_types", "gpu", "node_config", "SecurityGroupIds"), [], "gpu: no SecurityGroupIds"),
    (("available_node_types", "gpu", "node_config", "ImageId"), "", "gpu: no ImageId"),
    (("available_node_types", "gpu", "node_config", "IamInstanceProfile"), {}, "gpu: no IamInstanceProfile"),
    (("available_node_types", "gpu", "node_config", "BlockDeviceMappings"), [{"Ebs": {"Encrypted": False}}], "volumes"),
    (("available_node_types", "gpu", "min_workers"), 1, "gpu: min_workers 1"),
    (("available_node_types", "head", "resources"), {"CPU": 2}, "head: trials may run on the head"),
    (("available_node_types", "head", "node_config", "InstanceMarketOptions"), {"MarketType": "spot"}, "reclaimed"),
])  # fmt: skip
def test_file_that_breaks_a_rule_is_told_of_it(path: tuple[str, ...], value: object, said: str) -> None:
    config = shipped()
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (sentence,) = doctor.policy(config)
    assert said in sentence


def test_secret_that_others_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(doctor.secrets()) == ["~/.ray/auth_token is not there", "~/.ray/mlflow_password is not there"]
    (tmp_path / ".ray").mkdir()
    for name, text in (("auth_token", "0" * 64), ("mlflow_password", "short")):
        (tmp_path / ".ray" / name).write_text(text)
        (tmp_path / ".ray" / name).chmod(0o600)
    assert list(doctor.secrets()) == ["~/.ray/mlflow_password holds less than 12 characters"]
    (tmp_path / ".ray" / "mlflow_password").write_text("0" * 64)
    (tmp_path / ".ray" / "auth_token").chmod(0o644)  # as Ray itself writes it
    assert list(doctor.secrets()) == [
        f"~/.ray/auth_token can be read by others (mode 0644): chmod 600 {tmp_path}/.ray/auth_token"
    ]


class Answer(BaseHTTPRequestHandler):
    """A server that answers everybody as `statuses` says, by the header that it looks at."""

    statuses: dict[str, int]

    def do_GET(self) -> None:
        status = self.statuses.get("health", 200) if self.path == "/health" else self._status()
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _status(self) -> int:
        if self.headers["Host"] == "rebound.example" and "rebound" in self.statuses:
            return self.statuses["rebound"]
        return self.statuses.get(self.headers.get("Authorization", ""), self.statuses["else"])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def answering(statuses: dict[str, int]) -> Iterator[str]:
    kind = type("Kind", (Answer,), {"statuses": statuses})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    for name in ("auth_token", "mlflow_password"):
        (tmp_path / ".ray" / name).write_text("1" * 64)
    return tmp_path


def test_mlflow_that_lets_anybody_in_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor._login("1" * 64)["Authorization"]
    for statuses, said in (
        ({right: 200, "else": 401, "rebound": 403}, []),
        ({right: 200, "else": 200, "rebound": 403}, ["without a login", "with a wrong password"]),
        ({right: 200, "else": 401}, ["foreign name"]),
        ({"else": 401, "rebound": 403}, ["does not take the password"]),
    ):
        with answering(statuses) as address:
            monkeypatch.setattr(doctor, "MLFLOW", address)
            sentences = list(doctor.mlflow())
        assert len(sentences) == len(said), sentences
        assert all(word in sentence for word, sentence in zip(said, sentences, strict=True))
    assert "does not answer" in next(doctor.mlflow())


def test_ray_that_takes_jobs_of_anybody_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(doctor, "_own_address", lambda: "127.0.0.1")
    monkeypatch.setattr(doctor, "GCS_PORT", 9)  # nobody there: it tells nothing
    token = f"Bearer {'1' * 64}"
    for statuses, said in (
        ({token: 200, "else": 401}, []),
        ({"else": 200}, ["jobs without a token", "jobs with a wrong token"]),
        ({"else": 403}, ["does not take the token"]),
    ):
        with answering(statuses) as address:
            monkeypatch.setattr(doctor, "DASHBOARD", address)
            sentences = list(doctor.ray())
        assert len(sentences) == len(said), sentences
        assert all(word in sentence for word, sentence in zip(said, sentences, strict=True))
    monkeypatch.delenv("RAY_AUTH_MODE")
    shell, silent = doctor.ray()
    assert "RAY_AUTH_MODE is not token" in shell
    assert "does not answer" in silent


def test_metadata_without_a_session_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, count in ((200, 1), (401, 0)):
        with answering({"else": status}) as address:
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
            assert len(list(doctor.metadata())) == count


def test_doctor_fails_loudly(tmp_path: Path) -> None:
    def asked(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sweeps", "doctor", *words]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}
        )

    wrong = asked("--file", "ray_cluster.yaml")
    assert wrong.returncode == 1
    assert wrong.stdout == "file       WRONG   lines marked EDIT are not yours yet\n"
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "clusters" / "local.yaml").read_text().replace("192.0.2.", "10.0.0."))
    assert asked("--file", "clusters/local.yaml").returncode == 1
    assert asked("--file", str(mine)).returncode == 0
    for words in (("--file", "nowhere.yaml"), ("--file", "pyproject.toml")):
        refused = asked(*words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr


def test_sockets_of_other_users_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").mkdir()
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  1000 0 4711\n"
    listening, connected = line.format("0100A8C0:1F90", "0A"), line.format("0100A8C0:1F91", "01")
    (tmp_path / "net" / "tcp").write_text(head + listening + connected)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert listeners() == [Listener("192.168.0.1", 8080, "")]


def test_address_of_a_socket_for_both_families_is_of_its_own() -> None:
    """A socket of IPv6 that is bound to an address of IPv4 is seen under that."""
    with socket.socket(socket.AF_INET6) as both:
        try:
            both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            both.bind(("::ffff:127.0.0.1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        both.listen()
        (listener,) = (listener for listener in listeners() if listener.port == both.getsockname()[1])
        assert (listener.address, listener.is_loopback) == ("127.0.0.1", True)
