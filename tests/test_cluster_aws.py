"""ray_cluster.yaml on a cloud of this machine: up, a sweep on spot workers, one reclaimed, down; and who is let in.

Ray is as it was installed and the file as it is shipped, but for what CHANGES says. EC2 is moto, an instance is a host
of namespaces with an sshd (tests.hosts). Nothing here proves image, driver, quota, capacity, or what EC2's own group
lets through.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aws
import hosts
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
BUCKET = "crelu-on-this-machine"
# What the test changes in the shipped file, all of it; the lines marked EDIT are filled in beside.
WORKER = {"resources": {"CPU": 1}, "idle_timeout_s": 12}
CHANGES: dict[tuple[str, ...], Any] = {
    ("provider", "use_internal_ips"): True,  # there are no public addresses
    ("auth", "ssh_user"): "root",
    ("max_workers",): 3,
    ("available_node_types", "gpu", "resources"): {"CPU": 1},  # no GPU here
    ("available_node_types", "gpu_other", "resources"): {"CPU": 1},
    ("available_node_types", "gpu_on_demand", "resources"): {"CPU": 1},
    ("available_node_types", "gpu", "idle_timeout_s"): 10,  # minutes there
    ("available_node_types", "gpu_other", "idle_timeout_s"): 10,
}
LACKING = hosts.lacking()
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(LACKING) and not os.environ.get("CI"), reason=LACKING),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


@dataclass
class Site:
    """A cluster that is up: its file, its laptop, its hosts."""

    file: Path
    laptop: dict[str, str]
    hosts: hosts.Hosts
    calls: Path
    began: float

    def ray(self, *words: str, seconds: float = 240) -> str:
        """Run a command of Ray's on the laptop and return what it said; fail where it failed."""
        done = subprocess.run(
            [str(BIN / "ray"), *words], cwd=ROOT, env=self.laptop, capture_output=True, text=True, timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"ray {' '.join(words)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}\n{self.log()}"
        )
        return done.stdout + done.stderr

    def on_head(self, command: str, seconds: float = 240) -> str:
        """Run a command on the head, as `ray exec` does."""
        return self.ray("exec", str(self.file), command, seconds=seconds)

    def instances(self, *states: str, kind: str = "") -> list[dict[str, Any]]:
        """Return the instances in one of these states, of head or worker."""
        found = aws.instances(aws.client("ec2"))
        found = [one for one in found if one["State"]["Name"] in (states or ("running",))]
        return [one for one in found if kind in (tags(one)["ray-node-type"], "")]

    def log(self) -> str:
        """Return the end of the autoscaler's log."""
        heads = self.instances(kind="head")
        home = self.hosts.home(heads[0]["PrivateIpAddress"]) if heads else Path("/nowhere")
        files = sorted(home.parent.glob("tmp/ray/session_latest/logs/monitor*"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)

    def until(self, there: Callable[[], object], what: str, seconds: float = 240) -> Any:
        """Wait for something; fail with the autoscaler's log where it does not come."""
        ends = time.monotonic() + seconds
        while not (found := there()):
            assert time.monotonic() < ends, f"{what}: not within {seconds:g} s\n{self.log()}"
            time.sleep(0.3)
        print(f"{time.monotonic() - self.began:6.1f} s  {what}", file=sys.stderr, flush=True)
        return found


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


def shipped(edits: dict[str, str]) -> dict[str, Any]:
    """Return the shipped file with its EDIT lines filled in and CHANGES made."""
    text = (ROOT / "ray_cluster.yaml").read_text()
    for word, value in edits.items():
        assert word in text
        text = text.replace(word, value)
    found: dict[str, Any] = yaml.safe_load(text)
    for path, value in CHANGES.items():
        place = found
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Bring the cluster up; end everything afterwards, whatever happened."""
    assert not LACKING, LACKING
    began, folder = time.monotonic(), tmp_path_factory.mktemp("aws")
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
        made = hosts.Hosts(folder / "hosts", ROOT, aws.GATEWAY, aws.environment())
        calls = stack.enter_context(aws.cloud(folder, made, key))
        prepare = [sys.executable, "clusters/prepare.py", "--bucket", BUCKET, "--ssh-from", "172.31.0.0/16",
                   "--image", "ami-12345678901234567"]  # fmt: skip
        subprocess.run(prepare, cwd=ROOT, env=laptop, check=True, capture_output=True)
        (group,) = aws.client("ec2").describe_security_groups(GroupNames=["crelu"])["SecurityGroups"]
        file = folder / "ray_cluster.yaml"
        file.write_text(yaml.safe_dump(shipped({"sg-EDIT": group["GroupId"], "s3://EDIT": f"s3://{BUCKET}"})))
        found = Site(file, laptop, made, calls, began)
        found.ray("up", "-y", "--no-config-cache", str(file))
        print(f"{time.monotonic() - began:6.1f} s  ray up has returned", file=sys.stderr, flush=True)
        yield found


def test_cluster_is_up(site: Site) -> None:
    print(site.on_head("ray status; ls -la ~ ~/.ray; ss -ltnp"))
