"""What cannot be read, imported or built on a worker is on the ledger at once, with the line of the user's code."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crelu_models.model import Model
from sweeps.execution.failures import attempt_of, failure_signature, record_failure
from sweeps.execution.tuner import train_assignment
from sweeps.execution.worker import work
from sweeps.experiment.recipe import VGG
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig
from tests.support.trials import SMALL, runtime_config
from tests.support.user_models import failing

RECIPE = dataclasses.replace(VGG, name="mine", epochs=1, batch=32, drop_last=False, init="own")


def assignment(trials: list[dict[str, Any]], runtime: RuntimeConfig, **changes: Any) -> Any:
    return {
        "key": "k", "pack": "p", "trials": [json.dumps(trial) for trial in trials],
        "runtime": dataclasses.asdict(runtime), "stop": "stops/s", "work": "", "probe": False, "pauses": {},
    } | changes  # fmt: skip


def trial_of(name: str, seed: int = 0) -> Trial:
    return Trial(Cell("a", Model(f"tests.support.user_models:{name}"), SMALL, RECIPE), seed=seed)


def only_attempt(ledger: str, key: str) -> dict[str, Any]:
    (attempt,) = Ledger(ledger).attempts(key)
    return attempt


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"schema": 99}, "ValueError: this trial has schema 99"),
        ({"seed": 1}, "ValueError: not a trial: its key is"),
        ({"cell": None}, "ValueError: not a cell"),
    ],
)
def test_a_trial_that_cannot_be_read_fails_at_once(
    changes: dict[str, Any], error: str, data: Path, tmp_path: Path
) -> None:
    here = runtime_config(data, tmp_path)
    trials = [trial_of("small", seed).to_json() | changes for seed in (0, 1)]
    work(assignment(trials[:1], here), lambda _: None)
    attempt = only_attempt(here.ledger, trials[0]["key"])
    assert attempt["error"].startswith(error)
    assert attempt["final"]
    assert "trial_from_json" in attempt["trace"]


def test_a_worker_that_lacks_a_module_says_so(data: Path, tmp_path: Path) -> None:
    here = runtime_config(data, tmp_path)
    trial = trial_of("small")
    work(assignment([trial.to_json()], here, work="not_there:train"), lambda _: None)
    assert only_attempt(here.ledger, trial.key)["error"].startswith("ModuleNotFoundError: No module named 'not_there'")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("failing", r"fails: KeyError: 'b4' (user_models.py, line "),
        ("ends", "fails: SystemExit: 4 (user_models.py, line "),
        ("smal", "has no 'smal'; did you mean 'small'?"),
    ],
)
@pytest.mark.parametrize("members", [1, 2])
def test_a_model_that_cannot_be_built_fails_at_once(
    name: str, error: str, members: int, data: Path, tmp_path: Path
) -> None:
    here = runtime_config(data, tmp_path)
    trials = [trial_of(name, seed) for seed in range(members)]
    work(assignment([trial.to_json() for trial in trials], here), lambda _: None)
    for trial in trials:
        attempt = only_attempt(here.ledger, trial.key)
        assert error in attempt["error"]
        assert attempt["final"]


def failures(ledger: Ledger, *errors: BaseException) -> list[bool]:
    """Return of each error of a trial, met one after the other at one place, whether it is the last one."""
    last = []
    for error in errors:
        try:
            raise error
        except BaseException as met:
            last.append(record_failure(ledger, "k", met))
    assert [attempt["final"] for attempt in ledger.attempts("k")][-len(last) :] == last
    return last


@pytest.mark.parametrize("error", [TypeError("none"), KeyError("x"), AssertionError(), NotImplementedError("later")])
def test_a_fault_of_the_program_is_not_tried_again(error: BaseException, tmp_path: Path) -> None:
    assert failures(Ledger(str(tmp_path)), error) == [True]


def test_an_error_that_comes_again_at_the_same_place_is_not_tried_a_third_time(tmp_path: Path) -> None:
    shapes, other = RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError("cuDNN is busy")
    assert failures(Ledger(f"{tmp_path}/same"), shapes, shapes) == [False, True]
    assert failures(Ledger(f"{tmp_path}/another"), shapes, other) == [False, False]
    ledger = Ledger(f"{tmp_path}/elsewhere")
    failures(ledger, shapes)
    ledger.add_attempt("k", ledger.attempts("k")[0] | {"where": "nets.py, line 7 in forward"})
    assert failures(ledger, shapes) == [False]


@pytest.mark.parametrize(
    "error",
    [OSError("disk"), MemoryError(), SystemExit(1), torch.OutOfMemoryError("no"), torch.AcceleratorError("CUDA error"),
     RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")],
)  # fmt: skip
def test_errors_of_memory_devices_and_files_may_pass(error: BaseException, tmp_path: Path) -> None:
    assert failures(Ledger(str(tmp_path)), error, error) == [False, False]


@pytest.mark.parametrize("members", [1, 2])
def test_a_fault_in_a_forward_pass_ends_its_trial_at_once(members: int, data: Path, tmp_path: Path) -> None:
    here = runtime_config(data, tmp_path)
    trials = [trial_of("late", seed) for seed in range(members)]
    work(assignment([trial.to_json() for trial in trials], here), lambda _: None)
    for trial in trials:
        attempt = only_attempt(here.ledger, trial.key)
        assert attempt["error"].startswith("TypeError: 'NoneType' object is not callable (user_models.py, line ")
        assert attempt["final"]
        assert failure_signature(attempt) == f"TypeError at {attempt['where']}"


@pytest.mark.parametrize(("name", "schema", "members"), [("late", 1, 1), ("late", 1, 2), ("small", 99, 1)])
def test_a_worker_waits_for_a_full_disk_before_its_first_step_and_to_record_a_failure(
    name: str, schema: int, members: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = runtime_config(data, tmp_path)
    trials = [trial_of(name, seed).to_json() for seed in range(members)]
    refused: set[str] = set()
    write = Ledger.write

    def full_at_first(ledger: Ledger, name: str, content: bytes) -> None:
        if name not in refused:
            refused.add(name)
            raise OSError(errno.ENOSPC, "No space left on device", name)
        write(ledger, name, content)

    monkeypatch.setattr(Ledger, "write", full_at_first)
    monkeypatch.setattr("sweeps.store.ledger.time.sleep", lambda _: None)
    work(assignment([trial | {"schema": schema} for trial in trials], here), lambda _: None)
    for trial in trials:
        assert only_attempt(here.ledger, trial["key"])["final"]
    assert refused


def test_an_error_names_the_line_of_the_users_code() -> None:
    with pytest.raises(KeyError) as caught:
        failing(5)
    attempt = attempt_of(caught.value, final=False)
    assert attempt["error"].startswith("KeyError: 'b5' (user_models.py, line ")
    assert attempt["error"].endswith(" in failing)")
    assert attempt_of(ValueError("ours"), final=True)["error"] == "ValueError: ours"


def test_shipped_code_is_found_on_a_worker(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    monkeypatch.setattr("sweeps.execution.tuner.tune.report", lambda _: None)
    source = (
        "from tests.support.user_models import small as made\ndef small(num_classes):\n    return made(num_classes)\n"
    )
    trial = Trial(Cell("a", Model("shipped_nets:small"), SMALL, RECIPE))
    here = runtime_config(data, tmp_path)
    train_assignment(assignment([trial.to_json()], here), shipped={"shipped_nets.py": source})
    assert Ledger(here.ledger).attempts(trial.key) == []
    assert Ledger(here.ledger).result(trial.key) is not None
