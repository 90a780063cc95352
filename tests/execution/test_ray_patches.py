"""Ray still has the private code and the settings that `ray_runtime` changes; where it has not, these fail first."""

import importlib
import importlib.util
import inspect
from pathlib import Path
from unittest.mock import Mock

import pytest

from sweeps.execution import ray_runtime
from sweeps.execution.ray_runtime import TUNE_SETTINGS, UNUSED_SERVICES

NODE = inspect.getsource(importlib.import_module("ray._private.node"))
# Where Ray reads each setting; a setting that nobody reads has no effect, and says nothing.
READERS = {
    "RAY_USAGE_STATS_ENABLED": "ray._common.usage.usage_constants",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "ray._private.accelerators.accelerator",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "ray._private.ray_constants",
    "RAY_AIR_NEW_OUTPUT": "ray.tune.experimental.output",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "ray.train.constants",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "ray.tune.utils.callback",
    "TUNE_DISABLE_SIGINT_HANDLER": "ray.tune.tune",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "ray.tune.execution.tune_controller",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "ray.tune.execution.experiment_state",
}

COMPILED = ("task_oom_retries", "prestart_worker_first_driver")  # read by Ray's compiled part alone


def node_class() -> type:
    return importlib.import_module("ray._private.node").Node  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", UNUSED_SERVICES)
def test_service_is_started_by_a_method_whose_value_nobody_uses(name: str) -> None:
    method = vars(node_class())[name]
    assert inspect.isfunction(method)
    parameters = [*inspect.signature(method).parameters.values()][1:]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    assert not [line for line in inspect.getsource(method).splitlines() if line.strip().startswith("return ")]
    calls = [line.strip() for line in NODE.splitlines() if f"self.{name}(" in line]
    assert calls == [call for call in calls if call.startswith(f"self.{name}(")], "its value is used"
    assert len(calls) == 1


def test_services_do_nothing_while_ray_starts_and_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: getattr(node_class(), name) for name in UNUSED_SERVICES}
    with ray_runtime._without_services():
        for name in UNUSED_SERVICES:
            assert getattr(node_class(), name) is not before[name]
            assert getattr(node_class(), name)(Mock(), include_dashboard=False, raise_on_failure=True) is None
    assert {name: getattr(node_class(), name) for name in UNUSED_SERVICES} == before
    monkeypatch.delattr(node_class(), "start_monitor")
    with pytest.raises(AttributeError), ray_runtime._without_services():
        pass


def test_every_setting_is_read_by_ray() -> None:
    assert {*ray_runtime.RAY_SETTINGS} | {*TUNE_SETTINGS} == {*READERS} | {f"RAY_{name}" for name in COMPILED}
    for name, module in READERS.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        assert spec.origin is not None
        assert name in Path(spec.origin).read_text(), f"{module} no longer reads {name}"


def test_limit_on_retries_is_known_to_rays_compiled_part() -> None:
    folder = Path(inspect.getfile(ray_runtime.ray)).parent
    raylet = (folder / "core/src/ray/raylet/raylet").read_bytes()
    assert [name for name in COMPILED if name.encode() not in raylet] == []


def test_drain_is_a_command_of_rays_command_line() -> None:
    command = importlib.import_module("ray.scripts.scripts").drain_node
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= flags
    (reason,) = (parameter for parameter in command.params if "--reason" in parameter.opts)
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices


def test_ray_sets_its_signal_handlers_by_the_one_function_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = importlib.import_module("ray._private.utils")
    assert [*inspect.signature(utils.set_sigterm_handler).parameters] == ["sigterm_handler"]
    for name in ("ray._private.node", "ray._private.worker"):
        source = inspect.getsource(importlib.import_module(name))
        assert "ray._private.utils.set_sigterm_handler(sigterm_handler)" in source
        assert "signal.signal(signal.SIGTERM" not in source
    seen: list[object] = []
    monkeypatch.setattr(utils, "set_sigterm_handler", seen.append)
    with ray_runtime._without_signal_handlers():
        utils.set_sigterm_handler("Ray's")
    utils.set_sigterm_handler("after")
    assert seen == ["after"]


def test_workers_name_the_raylet_that_started_them() -> None:
    folder = Path(inspect.getfile(ray_runtime.ray)).parent
    assert b"RAY_RAYLET_PID" in (folder / "core/src/ray/raylet/raylet").read_bytes()


def test_a_node_knows_which_of_its_processes_are_dead() -> None:
    assert {"dead_processes", "live_processes", "get_resource_and_label_spec"} <= {*vars(node_class())}
    assert "PROCESS_TYPE_RAYLET] = [process_info]" in NODE
    worker = importlib.import_module("ray._private.worker")
    assert "_global_node" in vars(worker)
