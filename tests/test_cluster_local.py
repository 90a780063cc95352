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
from pathlib import Path

import pytest

from tests.support import hosts

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
GATEWAY, HEAD, WORKERS = "172.30.255.254", "172.30.0.10", ("172.30.0.11", "172.30.0.12")
LACKING = hosts.lacking()
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(LACKING) and not os.environ.get("CI"), reason=LACKING),
]
Ray = Callable[..., str]


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a folder that every host sees: /tmp is each one's own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="crelu-shared-") as folder:
        yield Path(folder)


@pytest.fixture
def site(tmp_path: Path, shared: Path) -> Iterator[tuple[hosts.Hosts, Ray, Path]]:
    """Start the hosts; yield them, what runs Ray's commands on the laptop, and the file with its lines filled in."""
    assert not LACKING, LACKING
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

    def ray(*words: str) -> str:
        done = subprocess.run(
            [str(BIN / "ray"), *words], cwd=ROOT, env=laptop, capture_output=True, text=True, timeout=240,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"ray {' '.join(words)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    with ExitStack() as stack:
        stack.enter_context(hosts.switch(f"{GATEWAY}/16"))
        made = hosts.Hosts(tmp_path / "hosts", ROOT, GATEWAY, {"CI": "true"})
        stack.callback(made.close)
        for address in (HEAD, *WORKERS):
            made.start(address, Path(f"{key}.pub").read_text())
        yield made, ray, file


def until(there: Callable[[], object], what: str, seconds: float = 180) -> None:
    ends = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < ends, f"{what}: not within {seconds:g} s"
        time.sleep(0.5)


def test_machines_one_has_train_a_sweep_and_are_left_as_they_were(
    site: tuple[hosts.Hosts, Ray, Path], shared: Path
) -> None:
    made, ray, file = site

    def on_head(command: str) -> str:
        return ray("exec", str(file), command)

    ray("up", "-y", "--no-config-cache", str(file))
    until(lambda: all(any("raylet" in line for line in made.processes(one)) for one in WORKERS), "Ray on both workers")
    until(lambda: "/4.0 CPU" in on_head("ray status"), "both workers have joined")
    sweep = ["python", "-m", "sweeps.imagenet_placement", "--smoke-test", "--seeds", "2", "--output", f"{shared}/out"]
    on_head(shlex.join(["ray", "job", "submit", "--submission-id", "sweep", "--", *sweep]))
    results = [json.loads(path.read_text()) for path in (shared / "out" / "ledger" / "results").iterdir()]
    assert [result["status"] for result in results] == ["finished"] * 4
    trained = {result["hardware"]["host"] for result in results}
    assert trained <= {f"host-{address.replace('.', '-')}" for address in WORKERS}, "none beside the driver"
    ray("down", "-y", str(file))
    until(lambda: not any("raylet" in line for line in made.processes(HEAD)), "Ray has left the head")
    until(lambda: not any("raylet" in line for one in WORKERS for line in made.processes(one)), "and the workers")
