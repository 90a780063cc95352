"""Ray: a cluster joined or started here, what its machines have, and plain calls as its tasks.

All settings of Ray and Tune, and all patches of Ray's private code, stand in this file. Where a new Ray no longer has
what they change, tests/execution/test_ray_patches.py fails first.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psutil

from data.cores import cores

# Ray reads these when it is imported.
os.environ.update(
    RAY_SETTINGS := {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Retries of a task that has filled its machine's memory; Ray's default is no limit.
        "RAY_task_oom_retries": "1",
        # All lines: a thread of Ray prints the news of lost processes on standard output at any time.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
    }
)

import ray
from ray._private.node import Node

Json = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")

# Tune reads these when it is imported.
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Methods of Ray's private Node that start parts which a sweep on one machine does not use: the autoscaler, the
# forwarding of workers' logs, the dashboard's server. Without them Ray starts and ends 1.7 s sooner and leaves trials
# the CPU time that they take. Each is replaced by a method that does nothing and returns None, as Ray's own do.
UNUSED_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
AUTOSCALER = "~/ray_bootstrap_config.yaml"  # on a head that `ray up` has started
RETRIES = 2  # of a task whose process or node is lost
LIVENESS_POLL = 2.0  # seconds between two looks at Ray's processes while tasks run


class RayDiedError(BaseException):
    """A process of the Ray that was started here has died.

    No Exception: Tune would clean up first after one, by calls to a Ray that no longer answers.
    """


# The cluster --------------------------------------------------------------------------------------------------------


def init_ray(address: str, cpus: int = 0) -> dict[str, float]:
    """Join the Ray cluster at `address`, or start one here ("local"), and return its resources.

    ValueError where none answers, or none can be started.
    """
    silent = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _without_signal_handlers():
        if address == "local":
            _start(num_cpus=cpus or cores(), include_dashboard=False, **silent)
        else:
            try:
                ray.init(address, **silent)
            except (ConnectionError, RuntimeError) as error:
                raise ValueError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None
    atexit.unregister(_exit)
    atexit.register(_exit)
    return dict(ray.cluster_resources())


def _start(**options: Any) -> None:
    """Start Ray here; twice, since on a very busy machine Ray may wait in vain for its own processes."""
    for last in (False, True):
        try:
            with _without_services():
                ray.init("local", **options)
            return
        except Exception as error:
            ray.shutdown()
            if last:
                raise ValueError(
                    f"Ray does not start on this machine, which may be too busy or short of memory or disk: "
                    f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
                ) from None


@contextmanager
def _without_services() -> Iterator[None]:
    """Let a Ray that starts here leave out UNUSED_SERVICES."""
    methods = {name: getattr(Node, name) for name in UNUSED_SERVICES}
    for name in methods:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


@contextmanager
def _without_signal_handlers() -> Iterator[None]:
    """Keep the caller's SIGTERM handler: Ray's two end the process from inside Ray's code."""
    genuine = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = genuine


def _exit() -> None:
    """Leave the cluster as this process ends, half a second sooner than Ray's own exit, which waits for logs.

    Nothing is garbage-collected then, which would take a second.
    """
    if "triton" not in sys.modules:  # its bindings print a page about objects that were not collected
        gc.freeze()
    shutdown_ray()


def shutdown_ray() -> None:
    """Leave the cluster, with an end to its tasks and, where it was started here, to itself."""
    ray.shutdown()


def death() -> str:
    """Return which process of the Ray started here has died, as a sentence; empty where none has.

    Raylet and GCS are looked at: the raylet ends with each of its agents. Of a cluster that was joined Ray itself tells.
    """
    node = ray._private.worker._global_node
    for name, process in node.dead_processes() if node is not None else ():
        code = process.poll()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"Ray's {name} has died ({how})"
    return ""


def check_alive() -> None:
    """Raise RayDiedError where a process of the Ray that was started here has died."""
    sentence = death()
    if sentence:
        raise RayDiedError(sentence)


def restart_ray() -> None:
    """Start Ray here anew in place of one that has died. ValueError where none starts.

    Its workers are killed first: one that lived on would train the same trial as its successor.
    """
    node = ray._private.worker._global_node
    cpus = int(node.get_resource_and_label_spec().num_cpus)
    raylets = [info.process.pid for info in node.all_processes.get("raylet", ())]
    for _, process in node.live_processes():
        process.kill()
    _kill_children(raylets)
    shutdown_ray()
    init_ray("local", cpus)


def _kill_children(raylets: Sequence[int]) -> None:
    """Kill the processes that these raylets have started, known by a variable that Ray gives them."""
    marks = {f"{raylet}" for raylet in raylets}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_RAYLET_PID") in marks:
                process.kill()


def drain(reason: str, seconds: int) -> None:
    """Tell the cluster that this machine is taken away in `seconds`, so that its loss counts as nobody's failure.

    ValueError where no cluster answers or it refuses.
    """
    init_ray("auto")
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), context.gcs_address
    shutdown_ray()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason,
        "--deadline-remaining-seconds", str(seconds),
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"Ray did not drain node {node}: {(done.stderr or done.stdout).strip()[-300:]}")


# Its machines -------------------------------------------------------------------------------------------------------


def machines() -> list[dict[str, float]]:
    """Return the resources of each machine that is up."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def autoscaler() -> Json:
    """Return the autoscaler's file of the cluster joined; empty where there is none, and off the head."""
    file = os.path.expanduser(AUTOSCALER)
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if not os.path.exists(file) or head != ray.util.get_node_ip_address():
        return {}
    import yaml

    with open(file, encoding="utf-8") as stream:
        cluster: Json = yaml.safe_load(stream)
    return cluster


def worker_types(file: Mapping[str, Any]) -> list[tuple[dict[str, float], int]]:
    """Return the types of worker in an autoscaler's file: a machine's resources, and how many there may be."""
    most, types = int(file.get("max_workers") or 0), []
    for name, kind in (file.get("available_node_types") or {}).items():
        count = min(most, int(kind.get("max_workers", most)))
        if name != file.get("head_node_type") and count > 0:
            resources = {key: float(value) for key, value in (kind.get("resources") or {}).items()}
            types.append((resources, count))
    return types


def max_slots(file: Mapping[str, Any], cpus: float, gpus: float) -> int:
    """Return how many tasks of so many CPUs and GPUs run at once when an autoscaler has started all machines it may."""
    machines_left, total = int(file.get("max_workers") or 0), 0
    by_slots = sorted(((slots(kind, cpus, gpus), count) for kind, count in worker_types(file)), reverse=True)
    for slots_each, count in by_slots:
        total += slots_each * min(count, machines_left)
        machines_left -= min(count, machines_left)
    return total


def slots(machine: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many tasks of so many CPUs and GPUs a machine runs at once."""
    needs = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need}
    # 0.3 goes three times into 0.9, although binary fractions say 2.99.
    return min((int(machine.get(name, 0.0) / need + 1e-9) for name, need in needs.items()), default=1)


# Plain calls as tasks -----------------------------------------------------------------------------------------------


def cpus_per_task(items: int) -> int:
    """Return how many CPUs each of so many tasks may have for all to run at once: at least 1, at most a node's."""
    nodes = [cpus for machine in machines() if (cpus := machine.get("CPU", 0)) >= 1] or [1]
    return max(1, int(min(min(nodes), sum(nodes) // items)))


def map_tasks(
    function: Callable[[T], R], items: Sequence[T], *, cpus: float = 1, gpus: float = 0, memory: int = 0
) -> Iterator[tuple[T, R | str]]:
    """Call `function` on each item as a Ray task; yield items with their values, in the order they end.

    A task has `cpus`, `gpus` and `memory` bytes of its node to itself, at most what the largest node has. The value of
    a task that raises or is lost, with its process or its node, is a sentence; the others go on.
    """
    most = max((machine.get("memory", 0) for machine in machines()), default=0)
    needs: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "memory": int(min(memory, most)) or None}
    task = ray.remote(max_retries=RETRIES, **needs)(function)
    waiting = {task.remote(item): item for item in items}
    while waiting:
        value: R | str
        arrived, _ = ray.wait([*waiting], num_returns=1, timeout=LIVENESS_POLL)
        if not arrived:
            sentence = death()
            if sentence:
                yield from ((item, sentence) for item in waiting.values())
                return
            continue
        (ready,) = arrived
        try:
            value = ray.get(ready)
        except Exception as error:
            value = error_text(error)
        yield waiting.pop(ready), value


def error_text(error: Exception) -> str:
    """Return as a sentence why a task has no value: the function's own error, or how Ray lost it."""
    error = getattr(error, "cause", None) or error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
