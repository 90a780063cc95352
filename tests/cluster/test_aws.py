"""ray_cluster.yaml on a cloud of this machine: up, a sweep on spot workers, one reclaimed, down; and who is let in.

Ray is as it was installed and the file as it is shipped, but for what CHANGES says. EC2 is moto, an instance is a host
of namespaces with an sshd (support.hosts). Nothing here proves image, driver, quota, capacity, or what EC2's own group
lets through.
"""

import ast
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from sweeps.ops.open_ports import Listener, open_to_network
from tests.support import aws, hosts
from tests.support.waiting import nothing, output, until

Value = TypeVar("Value")
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
BUCKET = "crelu-on-this-machine"
STRANGERS = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
# The autoscaler looks at the cluster each second, and not each fifth; and trials, which on a machine of their own have
# the CPU for them although Ray gives them the least priority, do not wait here for all else that runs.
PACE = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_worker_niceness": "0"}
# What the test changes in the shipped file, all of it; the lines marked EDIT are filled in beside.
CHANGES: dict[tuple[str, ...], Any] = {
    ("provider", "use_internal_ips"): True,  # there are no public addresses
    ("auth", "ssh_user"): "root",
    ("max_workers",): 3,
    # No GPU here; one trial a machine.
    ("available_node_types", "gpu", "resources"): {"CPU": 1, "GPU": 0},
    ("available_node_types", "gpu_other", "resources"): {"CPU": 1, "GPU": 0},
    ("available_node_types", "gpu_on_demand", "resources"): {"CPU": 1, "GPU": 0},
    ("available_node_types", "gpu", "idle_timeout_s"): 10,  # minutes there
    ("available_node_types", "gpu_other", "idle_timeout_s"): 10,
}
LACKING = hosts.lacking()
pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(LACKING) and not os.environ.get("CI"), reason=LACKING),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


@dataclass
class Site:
    """A cluster that is up: its file, its laptop, its hosts."""

    file: Path
    code: Path
    laptop: dict[str, str]
    hosts: hosts.Hosts
    cloud: aws.Cloud
    began: float

    def ray(self, *words: str, seconds: float = 600) -> str:
        """Run a command of Ray's on the laptop and return its output; fail where it failed."""
        done = output([BIN / "ray", *words], self.laptop, self.code, seconds, self.cloud.check)
        assert done.returncode == 0, f"ray {' '.join(words)}\n{done.stdout[-9000:]}\n{self.log()}"
        return done.stdout

    def on_head(self, command: str, seconds: float = 300) -> str:
        """Run a command in a shell of the head, as `ray exec` does, and return its output; fail where it failed."""
        (pem,) = (Path(self.laptop["HOME"]) / ".ssh").glob("*.pem")
        shell = f"bash --login -c -i {shlex.quote(f'source ~/.bashrc; {command}')}"
        ssh = ["ssh", "-tt", "-i", pem, *STRANGERS, f"root@{self.address}", shell]
        done = output(ssh, self.laptop, self.code, seconds, self.cloud.check)
        assert done.returncode == 0, f"{command}\n{done.stdout[-9000:]}\n{self.log()}"
        return done.stdout

    def instances(self, *states: str, kind: str = "") -> list[dict[str, Any]]:
        """Return the instances in one of these states, of head or worker."""
        wanted = states or ("running",)
        present = [instance for instance in self.cloud.instances() if instance["State"]["Name"] in wanted]
        return [instance for instance in present if kind in (tags(instance)["ray-user-node-type"], "")]

    @cached_property
    def address(self) -> str:
        """Return the address of the head."""
        (head,) = self.instances(kind="head")
        return str(head["PrivateIpAddress"])

    def runs_on_head(self, command: str) -> bool:
        """Return whether a process of the head has a command line that begins so."""
        return any(line.startswith(command) for line in self.hosts.processes(self.address))

    def log(self) -> str:
        """Return what the cloud runs, and the end of the logs of cloud, autoscaler and sweep."""
        heads = self.instances("pending", "running", kind="head")
        home = self.hosts.home(heads[0]["PrivateIpAddress"]) if heads else Path("/nowhere")
        logs = home.parent.glob("tmp/ray/session_2*/logs/*")
        files = sorted(file for file in logs if file.name.startswith(("monitor", "job-driver")))
        running = [f"{tags(i)['ray-user-node-type']} {i['PrivateIpAddress']} {i['State']['Name']}"
                   for i in self.cloud.instances()]  # fmt: skip
        texts = [f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files]
        return "\n".join([f"--- instances: {', '.join(running)}", self.cloud.log(), *texts])

    def until(
        self, ready: Callable[[], Value], what: str, seconds: float = 600, check: Callable[[], object] = nothing
    ) -> Value:
        """Wait for something; fail with the logs where it does not come, at once where the cloud or `check` fails."""

        def checks() -> None:
            self.cloud.check()
            check()

        value = until(ready, what, seconds, checks, self.log, poll=0.5)
        self.note(what)
        return value

    def note(self, what: str) -> None:
        """Write down when something came about."""
        print(f"{time.monotonic() - self.began:6.1f} s  {what}", file=sys.stderr, flush=True)


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def shipped(edits: dict[str, str]) -> dict[str, Any]:
    """Return the shipped file with its EDIT lines filled in and CHANGES made."""
    text = (ROOT / "ray_cluster.yaml").read_text()
    for word, value in edits.items():
        assert word in text
        text = text.replace(word, value)
    config: dict[str, Any] = yaml.safe_load(text)
    for path, value in CHANGES.items():
        place = config
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
    return config


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Bring the cluster up; end everything afterwards, whatever happened."""
    assert not LACKING, LACKING
    # The environment is that of the hosts too, where nothing can be fetched.
    subprocess.run(["make", "-s", "setup"], cwd=ROOT, check=True)
    began = time.monotonic()
    folder = tmp_path_factory.mktemp("aws")
    home = folder / "laptop"
    home.mkdir()
    laptop = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | aws.environment(aws.LAPTOP)
    laptop |= {"HOME": str(home), "RAY_TMPDIR": str(folder), "TMPDIR": str(folder), "RAY_AUTH_MODE": "token",
               "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore", "CI": "true"}  # fmt: skip
    laptop["PATH"] = f"{BIN}:{laptop['PATH']}"

    def key() -> str:
        (pem,) = (home / ".ssh").glob("*.pem")
        return subprocess.run(["ssh-keygen", "-y", "-f", str(pem)], capture_output=True, text=True, check=True).stdout

    with ExitStack() as stack:
        stack.enter_context(hosts.switch(f"{aws.GATEWAY}/16", f"{aws.METADATA}/32"))
        machines = hosts.Hosts(folder / "hosts", ROOT, aws.GATEWAY, aws.environment() | PACE)
        cloud = stack.enter_context(aws.Cloud(folder, machines, key))
        prepare = [sys.executable, "clusters/prepare.py", "--bucket", BUCKET, "--ssh-from", "172.31.0.0/16",
                   "--image", "ami-12345678901234567"]  # fmt: skip
        prepared = output(prepare, laptop, ROOT, 120, cloud.check)
        assert prepared.returncode == 0, prepared.stdout
        (group,) = aws.client("ec2").describe_security_groups(GroupNames=["crelu"])["SecurityGroups"]
        file = folder / "ray_cluster.yaml"
        file.write_text(yaml.safe_dump(shipped({"sg-EDIT": group["GroupId"], "s3://EDIT": f"s3://{BUCKET}"})))
        site = Site(file, hosts.checkout(ROOT, home / "crelu"), laptop, machines, cloud, began)
        site.ray("up", "-y", "--no-config-cache", str(file))
        site.note("ray up has returned")
        yield site


def outside(site: Site, command: list[str], **changed: str) -> subprocess.CompletedProcess[str]:
    """Run a command on another machine of the network, that of the laptop, with neither token nor keys of its own."""
    stranger = {"PATH": site.laptop["PATH"], "HOME": "/nonexistent", "PYTHONWARNINGS": "ignore",
                "TMPDIR": site.laptop["TMPDIR"], "RAY_USAGE_STATS_ENABLED": "0"} | changed  # fmt: skip
    return subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)


def status(*words: str) -> str:
    """Return the command that says with which status a server answers; 000 where none does."""
    return f"{{ curl -s -m 10 -o /dev/null -w '%{{http_code}}\\n' {' '.join(words)} || true; }}"


def client_answers(address: str, token: str) -> str:
    """Return the status with which the Ray Client's server answers who has this token."""
    import grpc

    sent = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        try:
            # What it is asked for (0: the resources of the cluster) comes to an empty message.
            channel.unary_unary("/ray.rpc.RayletDriver/ClusterInfo")(b"", timeout=20, metadata=sent)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_nobody_is_let_in_without_token_or_password(site: Site) -> None:
    head = site.address
    secrets = {
        name: (Path(site.laptop["HOME"]) / ".ray" / name).read_text() for name in ("auth_token", "mlflow_password")
    }
    site.until(lambda: "401" in site.on_head(status("http://127.0.0.1:8265/api/jobs/")), "the dashboard answers")

    # From outside, dashboard and MLflow are not there at all; SSH, which is, wants its key.
    for port in (8265, 5000):
        assert outside(site, ["curl", "-sS", "-m", "10", f"http://{head}:{port}/"]).returncode == 7
    assert "Permission denied" in outside(site, ["ssh", *STRANGERS, f"root@{head}", "true"]).stderr

    # GCS and Ray Client, which the file cannot bind to loopback, take nobody without the token, nor with another.
    member = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets["auth_token"]}
    state = [str(BIN / "ray"), "status", "--address", f"{head}:6379"]
    assert outside(site, state, **member).returncode == 0
    for stranger in ({"RAY_AUTH_MODE": "disabled"}, member | {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = outside(site, state, **stranger)
        assert refused.returncode != 0, refused.stdout
        assert re.search(r"(?i)authenticat|token", refused.stderr + refused.stdout), refused.stderr[-2000:]
    answers = [client_answers(f"{head}:10001", token) for token in ("", "0" * 64, secrets["auth_token"])]
    # With the token it is another question: it has let in someone who has not said hello yet.
    assert answers == ["UNAUTHENTICATED", "UNAUTHENTICATED", "NOT_FOUND"]

    # On the head itself, behind the tunnel that a laptop may open, job submission and runs are asked for both.
    jobs, runs = (
        "http://127.0.0.1:8265/api/jobs/",
        "'http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1'",
    )
    post = f"-X POST -H 'Content-Type: application/json' -d '{{\"entrypoint\": \"touch /tmp/pwned\"}}' {jobs}"
    asked = [
        (jobs, 401), (post, 401), (f"-H 'Authorization: Bearer {'0' * 64}' {post}", 403),
        (f"-H \"Authorization: Bearer $(cat ~/.ray/auth_token)\" {jobs}", 200),
        (runs, 401), (f"-u admin:{'0' * 64} {runs}", 401), (f"-u admin:$(cat ~/.ray/mlflow_password) {runs}", 200),
        (f"-u admin:$(cat ~/.ray/mlflow_password) -H 'Host: rebound.example' {runs}", 403),
    ]  # fmt: skip
    said = site.on_head("; ".join(status(words) for words, _ in asked))
    assert re.findall(r"^(\d{3})\r?$", said, re.MULTILINE) == [str(code) for _, code in asked]
    assert not (site.hosts.home(head).parent / "tmp" / "pwned").exists()

    # No secret stands on a command line or in a log.
    for secret in secrets.values():
        assert not [line for line in site.hosts.processes(head) if secret in line]
        logs = site.hosts.home(head).parent.glob("tmp/ray/session_2*/logs/*.*")
        assert not [log.name for log in logs if secret in log.read_text(errors="replace")]


def test_listeners_are_those_that_are_known_and_the_doctor_sees_one_more(site: Site) -> None:
    code = (
        "from sweeps.ops.open_ports import listeners; "
        "print([[listener.port, listener.address, listener.command] for listener in listeners()])"
    )
    said = site.on_head(f"cd ~/crelu && python -c {shlex.quote(code)}")
    sockets = ast.literal_eval(next(line for line in said.splitlines() if line.startswith("[[")))
    bound = {port: address for port, address, _ in sockets}
    assert {port: bound[port] for port in (8265, 5000)} == {8265: "127.0.0.1", 5000: "127.0.0.1"}
    assert {22, 6379, 10001} <= bound.keys()
    assert open_to_network(Listener(address, port, command) for port, address, command in sockets) == []
    # What is bound to more than loopback: SSH, what was asked above, and metrics, which the group alone keeps from all.
    known = ("sshd", "gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent",
             "ray/dashboard/dashboard.py", "autoscaler/v2/monitor.py", "ray.util.client.server")  # fmt: skip
    others = [command for _, address, command in sockets if not address.startswith("127.")]
    assert {next((name for name in known if name in command), command) for command in others} == set(known)

    assert "WRONG" not in (well := site.on_head("python -m sweeps doctor --cluster")), well
    assert well.count(" ok ") == 6
    opened = (
        "chmod 644 ~/.ray/auth_token; python -m http.server 9999 --bind 0.0.0.0 >/dev/null 2>&1 & opened=$!;"
        " curl -s -o /dev/null --retry 60 --retry-delay 1 --retry-connrefused http://127.0.0.1:9999/;"
        " python -m sweeps doctor --cluster; echo code $?; kill $opened; chmod 600 ~/.ray/auth_token"
    )
    ill = site.on_head(opened)
    assert "code 1" in ill
    assert ill.count("WRONG") == 2 + 1, ill  # and the word of the last line
    assert "~/.ray/auth_token can be read by others (mode 0644)" in ill
    assert "listens on 0.0.0.0:9999" in ill


EPOCHS = 80
CELLS = ("Baseline", "AVR conv1-4", "CReLU conv1-4")
SWEEP = ["python", "-m", "sweeps.imagenet_placement", "--profile", "demo", "--only", *CELLS,
         "--set", f"recipe.epochs={EPOCHS}", "--output", f"s3://{BUCKET}/out"]  # fmt: skip


def written(site: Site) -> dict[str, list[tuple[int, str]]]:
    """Return of each trial the epochs after which it has saved its state, and from where, in order."""
    by_trial: dict[str, list[tuple[int, str]]] = {}
    for action, resource, address in aws.calls(site.cloud.calls, "crelu-worker"):
        saved = re.search(r"/out/ledger/checkpoints/(\w+)/(\d+)-\d+\.safetensors$", resource)
        if saved and action == "s3:PutObject" and (int(saved[2]), address) not in by_trial.get(saved[1], []):
            by_trial.setdefault(saved[1], []).append((int(saved[2]), address))
    return by_trial


def read(name: str) -> Any:
    """Return a JSON file of the ledger."""
    return json.load(aws.client("s3").get_object(Bucket=BUCKET, Key=f"out/ledger/{name}")["Body"])


def names(folder: str) -> list[str]:
    """Return the files of a folder of the ledger."""
    page = aws.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=f"out/ledger/{folder}/")
    return [entry["Key"].rpartition("/")[2] for entry in page.get("Contents", []) if not entry["Key"].endswith("/")]


def lasting(site: Site, command: str) -> Callable[[], None]:
    """Return a check that fails once a command of the head has come and gone: what it was to do does not come then."""
    seen = False

    def check() -> None:
        nonlocal seen
        running = site.runs_on_head(command)
        assert running or not seen, f"{command} has ended\n{site.log()}"
        seen = running

    return check


def test_sweep_grows_the_cluster_outlives_a_reclaimed_machine_and_leaves_nothing(site: Site) -> None:
    assert site.instances() == site.instances(kind="head")
    (head,) = site.instances()
    assert head["InstanceType"] == "m7i.large"
    submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "sweep", "--", *SWEEP]
    site.ray("exec", str(site.file), shlex.join(submit))
    site.note("the sweep is submitted")
    sweep = " ".join(SWEEP[:3])
    lasts = lasting(site, sweep)
    workers = site.until(
        lambda: up if len(up := site.instances(kind="gpu")) == 3 else None, "three workers run", check=lasts
    )
    assert {worker["InstanceLifecycle"] for worker in workers} == {"spot"}

    # The notice comes when a trial has saved its state once, the end when it has saved another.
    trial = site.until(lambda: next(iter(written(site)), ""), "a trial has saved its state", check=lasts)
    address = written(site)[trial][-1][1]
    (taken,) = (worker for worker in workers if worker["PrivateIpAddress"] == address)
    notice = {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))}
    (site.cloud.folder / "notices" / address).write_text(json.dumps(notice))
    log = site.hosts.home(address) / "watch-spot.log"
    known = "gives this machine no new trials"
    site.until(lambda: known in log.read_text(), "Ray knows that the machine will be taken", check=lasts)
    site.until(lambda: len(written(site)[trial]) >= 2, "the trial has saved its state again", check=lasts)
    assert f"{trial}.json" not in names("results"), "the trial was over before its machine was taken"
    aws.client("ec2").terminate_instances(InstanceIds=[taken["InstanceId"]])
    site.note(f"{address} is taken, after {written(site)[trial][-1]}")
    site.until(lambda: len(site.instances(kind="gpu")) == 3, "another worker runs", check=lasts)
    site.until(lambda: written(site)[trial][-1][1] != address, "the trial goes on elsewhere", check=lasts)
    for count in range(1, 4):
        site.until(lambda: len(names("results")) >= count, f"{count} results", check=lasts)  # noqa: B023
    site.until(lambda: not site.runs_on_head(sweep), "the sweep's process has ended")
    site.until(lambda: "Job 'sweep' succeeded" in site.on_head("ray job status sweep"), "the sweep has succeeded")

    saved = written(site)
    assert len(saved) == 3
    assert len({place for _, place in saved[trial]}) == 2, "it went on elsewhere"
    elsewhere = next(number for number, (_, place) in enumerate(saved[trial]) if place != address)
    assert saved[trial][elsewhere][0] - saved[trial][elsewhere - 1][0] in (0, 1), "from its last state"
    for key in saved:
        result = read(f"results/{key}.json")
        assert (result["status"], result["epochs"]) == ("finished", EPOCHS)
        assert [row["epoch"] for row in read(f"trials/{key}/history.json")] == list(range(1, EPOCHS + 1))
        assert names(f"attempts/{key}") == [], "to be taken is no failure"
    with closing(sqlite3.connect(site.hosts.home(head["PrivateIpAddress"]) / "mlflow" / "mlflow.db")) as base:
        rows = base.execute(
            "select t.value, r.status, count(distinct m.step), count(m.step) from runs r join tags t on"
            " t.run_uuid = r.run_uuid and t.key = 'trial.key' join metrics m on m.run_uuid = r.run_uuid and"
            " m.key = 'train/loss' where r.lifecycle_stage = 'active' group by r.run_uuid"
        ).fetchall()
    assert sorted(rows) == [(key, "FINISHED", EPOCHS, EPOCHS) for key in sorted(saved)]

    site.until(lambda: len(site.instances()) == 1, "idle workers are gone")
    assert site.instances() == site.instances(kind="head")
    for role in ("head", "worker"):
        asked = {(action, resource) for action, resource, _ in aws.calls(site.cloud.calls, f"crelu-{role}")}
        assert len(asked) > 3
        assert aws.refused(asked, json.loads((ROOT / "docs" / "iam" / f"{role}.json").read_text()
                                             .replace("BUCKET", BUCKET))) == set()  # fmt: skip
    site.ray("down", "-y", str(site.file))
    site.note("ray down has returned")
    site.until(lambda: not site.instances("pending", "running", "stopping", "stopped"), "all machines are terminated")
    site.until(lambda: not site.hosts.running, "their hosts are gone")
    namespace = os.readlink("/proc/thread-self/ns/net")

    def left() -> list[str]:
        return [line for place, line in hosts.commands() if place == namespace and re.match(r"ssh[ :]|ray", line)]

    site.until(lambda: not left(), "no connection is left")
