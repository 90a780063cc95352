"""Ray, joined or started here, and plain calls as its tasks."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

# Read by Ray when it is imported.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Of a task that has filled its machine's memory; Ray would try for ever.
        "RAY_task_oom_retries": "1",
        # Not one line of a lost process on standard output, where a thread of Ray's prints it whenever it hears of it.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
    }
)

import ray
from ray._private.node import Node

Json = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")

# Parts of a head that a sweep on one machine has no use for: what starts machines, what forwards the workers' logs, and
# what a dashboard would ask. Without them Ray is up and gone 1.7 s sooner, and leaves trials the CPU that they take.
UNUSED_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
AUTOSCALER = "~/ray_bootstrap_config.yaml"  # on a head that `ray up` has started
RETRIES = 2  # of a task whose process or node is gone


def init_ray(address: str, cpus: int = 0) -> dict[str, float]:
    """Join the Ray cluster at `address`, or start one here ("local"), and return its resources.

    ValueError where none answers, or none can be started.
    """
    silent = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _without_signal_handlers():
        if address == "local":
            _start(num_cpus=cpus or os.cpu_count(), include_dashboard=False, **silent)
        else:
            try:
                ray.init(address, **silent)
            except (ConnectionError, RuntimeError) as error:
                raise ValueError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None
    atexit.unregister(_end)
    atexit.register(_end)
    return dict(ray.cluster_resources())


def _end() -> None:
    """Leave the cluster as this process ends, sooner than Ray does by itself, which waits half a second for logs.

    What is left is no garbage to be looked for: that would take a second.
    """
    if "triton" not in sys.modules:  # whose bindings print a page on what was not collected
        gc.freeze()
    shutdown_ray()


def _start(**options: Any) -> None:
    """Start Ray here; a machine that is very busy gets a second chance, since Ray waits for its parts half a minute."""
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
    """Have a Ray that is started here do without the parts in SPARED."""
    kept = {name: getattr(Node, name) for name in UNUSED_SERVICES if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(Node, name, start)


@contextmanager
def _without_signal_handlers() -> Iterator[None]:
    """Keep the caller's SIGTERM handler: Ray's two end the process from inside Ray's code."""
    genuine = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = genuine


def shutdown_ray() -> None:
    """Leave the cluster, and end it where it was started here; tasks that still run are ended."""
    ray.shutdown()


def drain(why: str, seconds: int) -> None:
    """Tell the cluster that this process's machine is taken in `seconds`: nobody's failure is what is lost there.

    ValueError where no cluster answers or it refuses.
    """
    init_ray("auto")
    here = ray.get_runtime_context()
    node, address = here.get_node_id(), here.gcs_address
    shutdown_ray()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", why,
        "--deadline-remaining-seconds", str(seconds),
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"Ray did not drain node {node}: {(done.stderr or done.stdout).strip()[-300:]}")


def autoscaler() -> Json:
    """Return the autoscaler's file of the cluster joined; empty where none scales it.

    It lies on the head alone: elsewhere a driver knows of no machine but those that are up.
    """
    file = os.path.expanduser(AUTOSCALER)
    here = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if not os.path.exists(file) or here != ray.util.get_node_ip_address():
        return {}
    import yaml

    with open(file, encoding="utf-8") as stream:
        found: Json = yaml.safe_load(stream)
    return found


def worker_types(file: Mapping[str, Any]) -> list[tuple[dict[str, float], int]]:
    """Return the kinds of worker in an autoscaler's file: what a machine has, and how many there may be."""
    most, found = int(file.get("max_workers") or 0), []
    for name, kind in (file.get("available_node_types") or {}).items():
        count = min(most, int(kind.get("max_workers", most)))
        if name != file.get("head_node_type") and count > 0:
            resources = {key: float(value) for key, value in (kind.get("resources") or {}).items()}
            found.append((resources, count))
    return found


def max_slots(file: Mapping[str, Any], cpus: float, gpus: float) -> int:
    """Return how many tasks of so many CPUs and GPUs run at once when an autoscaler has started all it may."""
    left, found = int(file.get("max_workers") or 0), 0
    for places, count in sorted(((slots(kind, cpus, gpus), count) for kind, count in worker_types(file)), reverse=True):
        found += places * min(count, left)
        left -= min(count, left)
    return found


def slots(machine: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many tasks of so many CPUs and GPUs a machine takes at once."""
    needs = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need}
    # 0.3 goes three times into 0.9, whatever binary fractions say.
    return min((int(machine.get(name, 0.0) / need + 1e-9) for name, need in needs.items()), default=1)


def machines() -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster that is up."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def cpus_per_task(items: int) -> int:
    """Return how many CPUs each of so many tasks may have for all to run at once: at least 1, at most a node's."""
    nodes = [cpus for machine in machines() if (cpus := machine.get("CPU", 0)) >= 1] or [1]
    return max(1, int(min(min(nodes), sum(nodes) // items)))


def map_tasks(
    function: Callable[[T], R], items: Sequence[T], *, cpus: float = 1, gpus: float = 0, memory: int = 0
) -> Iterator[tuple[T, R | str]]:
    """Call `function` on each item as a Ray task; yield items with what came of them, in the order they end.

    A task has `cpus`, `gpus` and `memory` bytes of its node to itself, at most what the largest node has. One that
    raises or is lost, with its process or its node, comes to a sentence; the others go on.
    """
    most = max((machine.get("memory", 0) for machine in machines()), default=0)
    needs: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "memory": int(min(memory, most)) or None}
    task = ray.remote(max_retries=RETRIES, **needs)(function)
    waiting = {task.remote(item): item for item in items}
    while waiting:
        value: R | str
        (ready,), _ = ray.wait([*waiting], num_returns=1)
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
