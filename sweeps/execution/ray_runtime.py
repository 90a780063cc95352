"""Ray: a cluster joined or started here, what its machines have, and plain calls as its tasks.

All settings of Ray and Tune, and all patches of Ray's private code, stand in this file. Where a new Ray no longer has
what they change, tests/execution/test_ray_patches.py fails first.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psutil

from crelu_data.cores import cores

# Ray reads these when it is imported.
os.environ.update(
    RAY_SETTINGS := {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Retries of a task that has filled its machine's memory; Ray's default is no limit.
        "RAY_task_oom_retries": "1",
        # Without this, Ray starts a worker per core in advance. No task of ours could use one.
        "RAY_prestart_worker_first_driver": "0",
        # All lines: a thread of Ray prints the news of lost processes on standard output at any time.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
    }
)

import ray
from ray._private.node import Node
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import AuthenticationError

from sweeps.execution.cluster_address import check_answers, check_temporary_folder
from sweeps.training.runtime import VISIBLE, named_gpus

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
SHARED_MEMORY = "/dev/shm"
LEAST_SHARED_MEMORY = 75 << 20  # bytes: the smallest store of objects that Ray starts
TOKEN = "copy the cluster's ~/.ray/auth_token to this machine and set RAY_AUTH_MODE=token"
DRAINING = 20.0  # seconds for Ray to drain a node; of a notice's two minutes enough are left to try again
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
            _join(address, **silent)
    atexit.unregister(_exit)
    atexit.register(_exit)
    return dict(ray.cluster_resources())


def check_not_joined() -> None:
    """Raise ValueError where this process has a Ray of its own, which would end with the sweep's."""
    if ray.is_initialized():
        raise ValueError("this process has joined a Ray already: call ray.shutdown() first")


def _join(address: str, **options: Any) -> None:
    """Join the cluster at `address`; ValueError where none answers, or none that lets us in."""
    try:
        # A cluster that has ended leaves its address in a file, which Ray believes for ten minutes.
        check_answers(get_ray_address_from_environment("auto", None) if address == "auto" else address)
        ray.init(address, **options)
    except AuthenticationError:
        raise ValueError(
            f"the Ray cluster at {address} asks for a token that this machine does not have: {TOKEN}"
        ) from None
    except (ConnectionError, RuntimeError) as error:
        # Something answers there, or check_answers would have raised: Ray says of a wrong token no more than this.
        reason = str(error).splitlines()[0]
        raise ValueError(f"no Ray cluster answers at {address}: {reason}; if it asks for a token, {TOKEN}") from None


def _start(**options: Any) -> None:
    """Start Ray here; twice, since on a very busy machine Ray may wait in vain for its own processes."""
    check_temporary_folder()
    if VISIBLE in os.environ:  # Ray counts every name as a GPU, and would give trials one by the name of -1
        os.environ[VISIBLE] = ",".join(named_gpus(os.environ[VISIBLE]))
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
                    f"{(str(error).strip() or type(error).__name__).splitlines()[0]}{_shared_memory_remedy()}"
                ) from None


def _shared_memory_remedy() -> str:
    """Return what helps where there is little shared memory, as the end of a sentence; empty where there is enough."""
    try:
        state = os.statvfs(SHARED_MEMORY)
        free = state.f_bavail * state.f_frsize
    except OSError:
        free = 0
    sentence = why_too_little(free)
    return f"; {sentence}" if sentence else ""


def why_too_little(free: int) -> str:
    """Return the sentence that so many free bytes of shared memory are too few for Ray; empty where they are enough."""
    if free >= LEAST_SHARED_MEMORY:
        return ""
    return f"{SHARED_MEMORY} has only {free >> 20} MiB free: in a container, start it with --shm-size=1g"


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

    Raylet and GCS are looked at: the raylet ends with each of its agents. A cluster that was joined has none of them.
    """
    node = ray._private.worker._global_node
    for name, process in node.dead_processes() if node is not None else ():
        code = process.poll()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"Ray's {name} has died ({how})"
    return ""


def absence(address: str) -> str:
    """Return that the cluster joined at `address` is not there, as a sentence; empty where it answers.

    Asked are the head, and where this machine is one of the cluster's, its raylet: without it no call is answered.
    """
    node = ray._private.worker._global_node
    where = node.gcs_address if node is not None and address == "auto" else address
    try:
        check_answers(where)
    except ValueError as error:
        return str(error)
    raylet = node.raylet_socket_name if node is not None else ""
    if raylet and not _accepts(raylet):
        return f"Ray's raylet of this machine, which belongs to the cluster at {where}, has died"
    return ""


def _accepts(name: str) -> bool:
    """Tell whether a process listens at a socket of this machine."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(name)
        except OSError:
            return False
    return True


def check_alive() -> None:
    """Raise RayDiedError where a process of the Ray that was started here has died."""
    sentence = death()
    if sentence:
        raise RayDiedError(sentence)


def restart_ray() -> None:
    """Start Ray here anew in place of one that has died. ValueError where none starts."""
    node = ray._private.worker._global_node
    cpus = int(node.get_resource_and_label_spec().num_cpus)
    family = _family(node)
    shutdown_ray()
    _kill(family)
    init_ray("local", cpus)


def kill_ray() -> None:
    """Kill all processes of the Ray that was started here, without a word to any of them."""
    node = ray._private.worker._global_node
    if node is not None:
        _kill(_family(node))
        for _, process in node.live_processes():
            process.kill()


def _family(node: Node) -> frozenset[str]:
    """Return the processes that have started a node's workers and agents, as those know them."""
    return frozenset(f"{info.process.pid}" for info in node.all_processes.get("raylet", ()))


def _kill(family: frozenset[str]) -> None:
    """Kill the workers and agents of these raylets, known by a variable that Ray gives them.

    A worker that lived on would train the same trial as its successor.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_RAYLET_PID") in family:
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
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=DRAINING
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"Ray did not drain node {node} within {DRAINING:.0f} s") from None
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
    most = int(file.get("max_workers") or 0)
    types = []
    for name, kind in (file.get("available_node_types") or {}).items():
        count = min(most, int(kind.get("max_workers", most)))
        if name != file.get("head_node_type") and count > 0:
            resources = {key: float(value) for key, value in (kind.get("resources") or {}).items()}
            types.append((resources, count))
    return types


def max_slots(file: Mapping[str, Any], cpus: float, gpus: float) -> int:
    """Return how many tasks of so many CPUs and GPUs run at once when an autoscaler has started all machines it may."""
    machines_left = int(file.get("max_workers") or 0)
    total = 0
    by_slots = sorted(((slots(kind, cpus, gpus), most) for kind, most in worker_types(file)), reverse=True)
    for slots_each, most in by_slots:
        total += slots_each * min(most, machines_left)
        machines_left -= min(most, machines_left)
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
