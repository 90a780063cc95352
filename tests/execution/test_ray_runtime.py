"""Plain calls as Ray tasks: what comes of those that end, and of those that are lost."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def printed(code: str) -> Any:
    """Return what `code` prints, as JSON, run by a Python of its own."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-c", code]
    process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_a_task_that_is_lost_is_a_sentence_and_the_others_go_on() -> None:
    code = (
        "import json, os, time\n"
        "from sweeps.execution import ray_runtime\n"
        "def square(n):\n"
        "    if n == 2: os._exit(1)\n"
        "    if n == 3: raise KeyError('three')\n"
        "    return n * n\n"
        "ray_runtime.RETRIES = 0\n"
        "ray_runtime.init_ray('local', 2)\n"
        "parts = ray_runtime.cpus_per_task(9), ray_runtime.cpus_per_task(1)\n"
        "results = [*parts, sorted(ray_runtime.map_tasks(square, [1, 2, 3, 4], memory=2**60))]\n"
        "time.sleep(2)  # for what Ray may print of the lost one\n"
        "ray_runtime.shutdown_ray()\n"
        "print(json.dumps(results))\n"
    )
    small, large, ((_, first), (_, lost), (_, raised), (_, last)) = printed(code)
    assert (small, large, first, last) == (1, 2, 1, 16)
    assert lost.startswith("WorkerCrashedError: ")
    assert raised == "KeyError: 'three'"


def test_queue_is_as_wide_as_the_cluster_may_grow() -> None:
    from sweeps.execution.ray_runtime import max_slots, slots, worker_types

    assert [slots({"CPU": 8.0, "GPU": 1.0}, *needs) for needs in ((1, 1), (1, 0.3), (3, 0), (9, 0), (1, 2))] == [
        1, 3, 2, 0, 0,
    ]  # fmt: skip
    gpu, small = {"CPU": 8, "GPU": 1}, {"CPU": 2}
    kinds_of = {
        "head": {"resources": {"CPU": 64, "GPU": 8}, "max_workers": 9},
        "small": {"resources": small, "max_workers": 5},
        "gpu": {"resources": gpu, "max_workers": 2},
        "never": {"resources": gpu, "max_workers": 0},
        "any": {"resources": small},
    }
    file = {"max_workers": 4, "head_node_type": "head", "available_node_types": kinds_of}
    assert worker_types(file) == [({"CPU": 2.0}, 4), ({"CPU": 8.0, "GPU": 1.0}, 2), ({"CPU": 2.0}, 4)]
    # Two of the large ones, and what is left of four of the small ones.
    assert max_slots(file, 1, 0) == 2 * 8 + 2 * 2
    assert max_slots(file, 1, 0.5) == 2 * 2
    assert max_slots(file, 3, 0) == 2 * 2
    assert max_slots({}, 1, 0) == max_slots({"max_workers": 0} | {}, 1, 0) == 0


def test_a_ray_that_does_not_start_is_tried_twice_and_then_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.execution import ray_runtime

    tried: list[str] = []

    def init(address: str, **options: object) -> None:
        tried.append(address)
        if len(tried) < 4:
            raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray_runtime.ray, "init", init)
    monkeypatch.setattr(ray_runtime.ray, "shutdown", lambda: tried.append("shut down"))
    monkeypatch.setattr(ray_runtime.ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ValueError, match=r"does not start on this machine.*timed out during startup\.$"):
        ray_runtime.init_ray("local")
    assert tried == ["local", "shut down"] * 2
    tried.append("and a busy moment later")
    assert ray_runtime.init_ray("local") == {"CPU": 2.0}


def unused(*_: object, **__: object) -> None:
    pytest.fail("Ray is asked for nothing")


@pytest.mark.parametrize(
    ("names", "excess"),
    [
        ({"TMPDIR": "/" + 38 * "x"}, 0),
        ({"TMPDIR": "/" + 39 * "x"}, 1),
        ({"TMPDIR": "/" + 90 * "x"}, 52),
        ({"TMPDIR": "/" + 18 * "é" + "xxxx"}, 2),  # bytes count, not letters
        ({"TMPDIR": "/" + 90 * "x", "RAY_TMPDIR": "/tmp"}, 0),
        ({"TMPDIR": "/tmp", "RAY_TMPDIR": "/" + 50 * "x"}, 12),
        ({}, 0),
    ],
)
def test_a_folder_too_long_for_sockets_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, names: dict[str, str], excess: int
) -> None:
    from sweeps.execution import cluster_address, ray_runtime

    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in names.items():
        monkeypatch.setenv(name, folder)
    if not excess:
        cluster_address.check_temporary_folder()
        return
    monkeypatch.setattr(ray_runtime.ray, "init", unused)
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in names else "TMPDIR"
    sentence = rf"^{name} is {excess} bytes? too long for Ray's sockets: {names[name]}; .* as in RAY_TMPDIR=/tmp$"
    with pytest.raises(ValueError, match=sentence):
        ray_runtime.init_ray("local")


def test_sockets_of_a_folder_just_short_enough_are_taken_by_ray() -> None:
    from ray._private.utils import validate_socket_filepath

    from sweeps.execution.cluster_address import SOCKET, SOCKET_BYTES

    longest = "/" + (SOCKET_BYTES - len(SOCKET) - 2) * "x"
    validate_socket_filepath(f"{longest}/{SOCKET}")
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath(f"{longest}x/{SOCKET}")


@pytest.mark.parametrize(("free", "said"), [(64, True), (0, True), (74, True), (75, False), (4096, False)])
def test_little_shared_memory_is_named_where_ray_does_not_start(
    monkeypatch: pytest.MonkeyPatch, free: int, said: bool
) -> None:
    from sweeps.execution import ray_runtime

    def init(*_: object, **__: object) -> None:
        raise OSError("no space left")

    state = SimpleNamespace(f_bavail=free << 8, f_frsize=1 << 12)
    monkeypatch.setattr(ray_runtime.os, "statvfs", lambda _: state)
    monkeypatch.setattr(ray_runtime.ray, "init", init)
    monkeypatch.setattr(ray_runtime.ray, "shutdown", lambda: None)
    with pytest.raises(ValueError, match="no space left") as error:
        ray_runtime.init_ray("local")
    remedy = f"; /dev/shm has only {free} MiB free: in a container, start it with --shm-size=1g"
    assert str(error.value).endswith(remedy if said else "no space left")


def test_a_cluster_that_wants_a_token_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.execution import ray_runtime

    def init(*_: object, **__: object) -> None:
        raise ray_runtime.AuthenticationError("InvalidAuthToken")

    monkeypatch.setattr(ray_runtime, "check_answers", lambda _: None)
    monkeypatch.setattr(ray_runtime.ray, "init", init)
    with pytest.raises(ValueError, match=r"^the Ray cluster at head:6379 asks for a token .* RAY_AUTH_MODE=token$"):
        ray_runtime.init_ray("head:6379")


@pytest.mark.parametrize("kind", [ConnectionError, RuntimeError])
def test_a_cluster_that_answers_and_lets_nobody_in_may_want_a_token(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    from sweeps.execution import ray_runtime

    def init(*_: object, **__: object) -> None:
        raise kind("Failed to connect to Ray cluster at 10.0.0.1:6379\nand more")

    monkeypatch.setattr(ray_runtime, "check_answers", lambda _: None)
    monkeypatch.setattr(ray_runtime.ray, "init", init)
    sentence = (
        r"^no Ray cluster answers at head:6379: Failed to .* 10\.0\.0\.1:6379; if it asks for a token, copy .*=token$"
    )
    with pytest.raises(ValueError, match=sentence):
        ray_runtime.init_ray("head:6379")


def test_the_address_of_a_cluster_that_has_ended_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.execution import ray_runtime

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        stale = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(ray_runtime, "get_ray_address_from_environment", lambda *_: stale)
    monkeypatch.setattr(ray_runtime.ray, "init", unused)
    for address in ("auto", stale):
        with pytest.raises(ValueError, match=f"no Ray cluster answers at {stale}: Connection refused"):
            ray_runtime.init_ray(address)


def test_as_many_trials_run_at_once_as_there_are_cores_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.execution import ray_runtime

    asked: list[object] = []
    monkeypatch.setattr(ray_runtime.ray, "init", lambda _, **options: asked.append(options["num_cpus"]))
    monkeypatch.setattr(ray_runtime.ray, "cluster_resources", dict)
    for usable in (1, 3, 64):
        monkeypatch.setattr(ray_runtime, "cores", lambda usable=usable: usable)
        ray_runtime.init_ray("local")
    ray_runtime.init_ray("local", 5)
    assert asked == [1, 3, 64, 5]


@pytest.mark.parametrize(("chosen", "names"), [("-1", []), ("0,-1", ["0"]), ("1,0", ["1", "0"]), (None, None)])
def test_a_gpu_that_is_hidden_from_cuda_is_none_of_rays(
    chosen: str | None, names: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    from sweeps.execution import ray_runtime

    seen: list[object] = []
    look = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids
    monkeypatch.setattr(ray_runtime.ray, "init", lambda *_, **__: seen.append(look()))
    monkeypatch.setattr(ray_runtime.ray, "cluster_resources", dict)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    ray_runtime.init_ray("local", 1)
    assert seen == [names]


def test_a_ray_that_is_started_here_has_no_spare_parts_and_is_left_at_once() -> None:
    code = (
        "import atexit, gc, json, os, pathlib, signal\n"
        "from sweeps.execution import ray_runtime\n"
        "import ray\n"
        "def leave(): print(json.dumps([sorted(parts), same, ray.is_initialized(), gc.get_freeze_count() > 0]))\n"
        "atexit.register(leave)  # after our own exit, and before Ray's\n"
        "signal.signal(signal.SIGTERM, ours := lambda *_: None)\n"
        "ray_runtime.init_ray('local', 1)\n"
        "session = ray._private.worker._global_node.get_session_dir_path()\n"
        "words = [p.read_bytes().decode().split('\\0') for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')]\n"
        "parts = {os.path.basename(w) for line in words if any(session in w for w in line) for w in line[:4]}\n"
        "same = signal.getsignal(signal.SIGTERM) is ours\n"
    )
    parts, same_handler, ray_is_there, frozen = printed(code)
    assert {"raylet", "gcs_server"} <= set(parts)
    assert not {"monitor.py", "log_monitor.py", "dashboard.py"} & set(parts)
    assert same_handler, "Ray's handler of SIGTERM ends the process from inside Ray's code"
    assert not ray_is_there, "Ray's own exit waits for logs"
    assert frozen, "all objects are collected at the exit"
