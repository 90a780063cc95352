"""clusters/local.yaml on three hosts of this machine: up, a sweep on the two workers, down; by Ray as installed."""

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support import hosts
from tests.support.waiting import output, until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GATEWAY = "172.30.255.254"
HEAD = "172.30.0.10"
WORKERS = ("172.30.0.11", "172.30.0.12")
LACKING = hosts.lacking()
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(LACKING) and not os.environ.get("CI"), reason=LACKING),
]
# As in test_aws.py: the autoscaler looks each second, and trials have the priority of all else on this machine.
PACE = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_worker_niceness": "0"}
Value = TypeVar("Value")


@dataclass
class Site:
    """Hosts and the file of their cluster, and the laptop on which Ray's commands run."""

    file: Path
    code: Path
    laptop: dict[str, str]
    hosts: hosts.Hosts
    began: float

    def ray(self, *words: str) -> str:
        """Run a command of Ray's on the laptop and return its output; fail where it failed."""
        done = output([BIN / "ray", *words], self.laptop, self.code, 900, self.hosts.check)
        assert done.returncode == 0, f"ray {' '.join(words)}\n{done.stdout[-9000:]}\n{self.log()}"
        return done.stdout

    def has_raylet(self, address: str) -> bool:
        """Return whether Ray runs on a host."""
        return any("raylet" in line for line in self.hosts.processes(address))

    def log(self) -> str:
        """Return the end of the autoscaler's logs."""
        files = sorted(self.hosts.home(HEAD).parent.glob("tmp/ray/session_2*/logs/monitor*"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)

    def until(self, ready: Callable[[], Value], what: str, seconds: float = 600) -> Value:
        """Wait for something; fail with the logs where it does not come, at once where a host has ended."""
        value = until(ready, what, seconds, self.hosts.check, self.log)
        self.note(what)
        return value

    def note(self, what: str) -> None:
        """Write down when something came about."""
        print(f"{time.monotonic() - self.began:6.1f} s  {what}", file=sys.stderr, flush=True)


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a folder that every host sees: /tmp is each one's own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="crelu-shared-") as folder:
        yield Path(folder)


@pytest.fixture
def site(tmp_path: Path, shared: Path) -> Iterator[Site]:
    """Start the hosts, and fill in the lines of the file that are to edit."""
    assert not LACKING, LACKING
    began = time.monotonic()
    subprocess.run(["make", "-s", "setup"], cwd=ROOT, check=True)
    home = tmp_path / "laptop"
    (home / ".ray").mkdir(parents=True)
    for name in ("auth_token", "mlflow_password"):
        (home / ".ray" / name).touch(0o600)
        (home / ".ray" / name).write_text(secrets.token_hex(32))
    key = home / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    text = (ROOT / "clusters" / "local.yaml").read_text()
    for mine, theirs in {
        "192.0.2.10 ": f"{HEAD} ", "[192.0.2.11, 192.0.2.12]": f"[{', '.join(WORKERS)}]",
        "ssh_user: ubuntu": "ssh_user: root", "~/.ssh/id_ed25519": str(key), "/mnt/shared/crelu": str(shared),
    }.items():  # fmt: skip
        assert text.count(mine) == 1, mine
        text = text.replace(mine, theirs)
    file = tmp_path / "local.yaml"
    file.write_text(text)
    laptop = {name: os.environ[name] for name in ("LANG",) if name in os.environ} | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(home), "TMPDIR": str(tmp_path), "RAY_TMPDIR": str(tmp_path),
        "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore", "CI": "true",
        "RAY_UP_enable_autoscaler_v2": "0",
    }  # fmt: skip

    with ExitStack() as stack:
        stack.enter_context(hosts.switch(f"{GATEWAY}/16"))
        machines = hosts.Hosts(tmp_path / "hosts", ROOT, GATEWAY, {"CI": "true"} | PACE)
        stack.callback(machines.close)
        for address in (HEAD, *WORKERS):
            machines.start(address, Path(f"{key}.pub").read_text())
        yield Site(file, hosts.checkout(ROOT, home / "crelu"), laptop, machines, began)


def test_machines_one_has_train_a_sweep_and_are_left_as_they_were(site: Site, shared: Path) -> None:
    site.ray("up", "-y", "--no-config-cache", str(site.file))
    site.note("ray up has returned")
    for worker in WORKERS:
        site.until(lambda: site.has_raylet(worker), f"Ray runs on {worker}")  # noqa: B023
    site.until(lambda: "/4.0 CPU" in site.ray("exec", str(site.file), "ray status"), "both workers have joined")
    sweep = ["python", "-m", "sweeps.imagenet_placement", "--smoke-test", "--seeds", "2", "--output", f"{shared}/out"]
    submit = ["ray", "job", "submit", "--submission-id", "sweep", "--", *sweep]
    site.ray("exec", str(site.file), shlex.join(submit))
    site.note("the sweep has ended")
    results = [json.loads(path.read_text()) for path in (shared / "out" / "ledger" / "results").iterdir()]
    assert [result["status"] for result in results] == ["finished"] * 4
    trained = {result["hardware"]["host"] for result in results}
    assert trained <= {f"host-{address.replace('.', '-')}" for address in WORKERS}, "none beside the driver"
    site.ray("down", "-y", str(site.file))
    site.note("ray down has returned")
    for address in (HEAD, *WORKERS):
        site.until(lambda: not site.has_raylet(address), f"Ray has left {address}")  # noqa: B023
