"""A joined cluster that goes is said at once and, where it stays away, ends the command before Ray does so unsaid."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.cli import run
from sweeps.cli.options import ExitCode
from sweeps.execution import cluster_watch, ray_runtime
from sweeps.execution.cluster_watch import ClusterWatch

AWAY = "no Ray cluster answers at head:6379: Connection refused"


class Looks:
    """What a watch sees, look by look, a second apart by its clock; the last is seen from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seen: str) -> None:
        self.seen = seen
        self.numbers = itertools.count()  # the main thread may look too
        self.now = 0
        self.done = threading.Event()
        monkeypatch.setattr(cluster_watch, "time", SimpleNamespace(monotonic=lambda: float(self.now), sleep=time.sleep))

    def __call__(self) -> str:
        self.now = next(self.numbers)
        if self.now + 1 < len(self.seen):
            return self.seen[self.now]
        self.done.set()
        return self.seen[-1]


def test_cluster_that_comes_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said, ended = list[str](), list[str]()
    looks = Looks(monkeypatch, "", AWAY, AWAY, "", AWAY, "")
    with ClusterWatch(looks, said.append, ended.append, poll=0.001, patience=1.5):
        assert looks.done.wait(120)
    assert said == [f"{AWAY}; waiting for it", "the Ray cluster answers again"] * 2
    assert ended == []


def test_cluster_that_stays_away_ends_the_command_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said, ended = list[str](), list[str]()
    looks = Looks(monkeypatch, AWAY)
    with ClusterWatch(looks, said.append, ended.append, poll=0.001, patience=5.0) as watch:
        watch.wait()
        watch.thread.join(120)
        watch.wait()  # of a watch that is over nobody waits for anything
    assert said == [f"{AWAY}; waiting for it"]
    assert ended == [AWAY]


def test_times_of_several_absences_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[str]()
    looks = Looks(monkeypatch, *[AWAY, ""] * 30)
    with ClusterWatch(looks, lambda _: None, ended.append, poll=0.001, patience=20.0):
        assert looks.done.wait(120)
    assert ended == []


def test_command_ends_before_ray_would_end_it() -> None:
    assert cluster_watch.PATIENCE + 2 * cluster_watch.POLL + 2 * 4 < 60  # two looks, each of which may wait 4 s


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[str]:
    """Yield a socket at which something listens."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "raylet"))
        server.listen()
        yield str(tmp_path / "raylet")


def test_absent_is_a_cluster_without_its_head_or_without_the_raylet_here(
    monkeypatch: pytest.MonkeyPatch, raylet: str, tmp_path: Path
) -> None:
    asked = list[str]()
    node = SimpleNamespace(gcs_address="10.0.0.1:6379", raylet_socket_name=raylet)
    monkeypatch.setattr(ray_runtime.ray._private.worker, "_global_node", node)
    monkeypatch.setattr(ray_runtime, "check_answers", asked.append)
    assert ray_runtime.absence("auto") == ray_runtime.absence("10.0.0.2:6379") == ""
    assert asked == ["10.0.0.1:6379", "10.0.0.2:6379"]
    node.raylet_socket_name = str(tmp_path / "dead")
    assert "raylet of this machine" in ray_runtime.absence("auto")

    def refuse(address: str) -> None:
        raise ValueError(f"no Ray cluster answers at {address}: refused")

    monkeypatch.setattr(ray_runtime, "check_answers", refuse)
    assert ray_runtime.absence("auto") == "no Ray cluster answers at 10.0.0.1:6379: refused"


def test_command_that_lost_its_cluster_gives_the_lease_back_and_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[object] = []
    lease = SimpleNamespace(__exit__=lambda *_: steps.append("lease"))
    monkeypatch.setattr(run.os, "_exit", steps.append)
    run._lose_cluster(lease, AWAY)  # type: ignore[arg-type]
    assert steps == ["lease", ExitCode.CLUSTER]
    said = capfd.readouterr().err.strip()
    assert said.startswith(f"error: {AWAY}; nothing is lost")
    assert "ray up --restart-only" in said
    assert len(said.splitlines()) == 1
