"""Plain calls as Ray tasks: what comes of those that end, and of those that are lost."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def printed(code: str) -> Any:
    """Return what `code` prints, as JSON, run by a Python of its own."""
    given = os.environ | {"PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=given, timeout=400, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


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
        "found = [*parts, sorted(ray_runtime.map_tasks(square, [1, 2, 3, 4], memory=2**60))]\n"
        "time.sleep(2)  # for what Ray may print of the lost one\n"
        "ray_runtime.shutdown_ray()\n"
        "print(json.dumps(found))\n"
    )
    small, large, ((_, one), (_, lost), (_, raised), (_, four)) = printed(code)
    assert (small, large, one, four) == (1, 2, 1, 16)
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


def test_a_ray_that_is_started_here_has_no_spare_parts_and_is_left_at_once() -> None:
    code = (
        "import json, os, time, pathlib, signal\n"
        "from sweeps.execution import ray_runtime\n"
        "import ray\n"
        "signal.signal(signal.SIGTERM, ours := lambda *_: None)\n"
        "ray_runtime.init_ray('local', 1)\n"
        "session = ray._private.worker._global_node.get_session_dir_path()\n"
        "words = [p.read_bytes().decode().split('\\0') for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')]\n"
        "parts = {os.path.basename(w) for line in words if any(session in w for w in line) for w in line[:4]}\n"
        "print(json.dumps([sorted(parts), signal.getsignal(signal.SIGTERM) is ours, time.time()]))\n"
    )
    parts, same_handler, last = printed(code)
    ended = time.time()
    assert {"raylet", "gcs_server"} <= set(parts)
    assert not {"monitor.py", "log_monitor.py", "dashboard.py"} & set(parts)
    assert same_handler, "Ray's handler of SIGTERM ends the process from inside Ray's code"
    assert ended - last < 20
