"""A training function of the user's: what it is handed, what it may report and return, how it resumes and fails."""

import dataclasses
import json
import math
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crelu_models.model import Model
from sweeps.execution.worker import _train_one
from sweeps.experiment.metrics import Metric, flags_of
from sweeps.experiment.task_source import TaskFailedError
from sweeps.experiment.trial import Trial
from sweeps.store.integrity import lost_files
from sweeps.store.ledger import Ledger
from sweeps.training.task import run_task
from sweeps.training.task_state import pack, unpack
from tests.support import own_tasks
from tests.support.trials import Killed, runtime_config, trial_of

RIGHT = Metric("test/right", better="higher")


def task_trial(
    task: str,
    phase: str = "ablation",
    metric: Metric = RIGHT,
    family: str = "allconv with dropout",
    **changes: Any,
) -> Trial:
    """Return a trial that a function of the support's trains for three epochs."""
    trial = trial_of(family, phase)
    recipe = dataclasses.replace(trial.cell.recipe, restarts=1)
    cell = dataclasses.replace(trial.cell, recipe=recipe, task=f"tests.support.own_tasks:{task}", metric=metric)
    return dataclasses.replace(trial, cell=cell, **changes)


def trained(trial: Trial, data: Path, ledger: Path, rows: list[Any] | None = None) -> dict[str, Any]:
    """Return the result of a trial by its function."""
    report = (lambda epoch, row: rows.append((epoch, row))) if rows is not None else (lambda *_: None)
    result = run_task(trial, runtime_config(data, ledger), report)
    assert result is not None
    return result


def numbers(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "time_ms" and "sys/" not in name} for row in rows]


def test_killed_loop_goes_on_from_its_checkpoint_with_its_generators(data: Path, tmp_path: Path) -> None:
    expected = trained(task_trial("train"), data, tmp_path / "whole")
    trial = task_trial("killed")
    with pytest.raises(Killed):
        run_task(trial, runtime_config(data, tmp_path / "killed"), lambda *_: None)
    rows: list[Any] = []
    result = trained(trial, data, tmp_path / "killed", rows)
    histories = [
        json.loads((tmp_path / name / "trials" / key / "history.json").read_text())
        for name, key in (("whole", expected["key"]), ("killed", result["key"]))
    ]
    assert numbers(histories[0]) == numbers(histories[1])
    assert [epoch for epoch, _ in rows] == [3]
    assert all(row["sys/cpu_cores"] > 0 < row["sys/memory_mib"] for history in histories for row in history)
    assert expected["metrics"] == result["metrics"]
    assert expected["files"]["weights.safetensors"] != ""
    assert (expected["resume"], expected["resumed"], flags_of(expected)) == ("approximate", 0, [])
    assert (result["resume"], result["resumed"], flags_of(result)) == ("approximate", 1, ["resume=approximate"])
    assert (tmp_path / "whole" / "trials" / expected["key"] / "files" / "notes.txt").read_text() == trial.label


@pytest.mark.parametrize(
    ("family", "changes", "before"),
    [
        ("allconv with dropout", {"ranks": 2}, "a CPU (2 ranks)"),
        ("All-CNN-B", {"reader": "ffcv"}, "JPEG decoded by threads, and no longer by ffcv"),
    ],
)
def test_a_function_that_goes_on_with_other_ranks_or_pixels_is_not_exact_whatever_it_says(
    family: str, changes: dict[str, Any], before: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes.get("reader") == "ffcv":
        pytest.importorskip("ffcv")

    def killed_exactly(trial: Any, data: Any, run: Any) -> dict[str, Any]:
        run.exact()
        return own_tasks.killed(trial, data, run)

    monkeypatch.setattr(own_tasks, "raises", killed_exactly)
    trial = task_trial("raises", family=family)
    with pytest.raises(Killed):
        run_task(trial, runtime_config(data, tmp_path, **changes), lambda *_: None)
    result = trained(trial, data, tmp_path)
    assert (result["resume"], flags_of(result)) == ("approximate", ["resume=approximate"])
    assert before in [result["hardware"].get("before"), *(event[-len(before) :] for event in result["events"])]


def test_trial_whose_function_leaves_files_is_done_and_a_lost_one_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def leaves_files(trial: Any, data: Any, run: Any) -> dict[str, float]:
        calls.append(trial.label)
        (run.folder / "plots").mkdir()
        (run.folder / "plots" / "what is new.png").write_bytes(b"PNG")
        (run.folder / ".hidden").write_bytes(b"")
        return {"test/right": 0.5}

    monkeypatch.setattr(own_tasks, "raises", leaves_files)
    ledger = Ledger(str(tmp_path))
    trial = task_trial("raises")
    result = trained(trial, data, tmp_path)
    assert {"files/plots/what is new.png", "files/.hidden"} < result["files"].keys()
    done = ledger.result(trial.key)
    assert done is not None
    assert trained(trial, data, tmp_path) == done
    assert len(calls) == 1
    assert lost_files(ledger, {trial.key: done}) == {}
    ledger.delete(f"trials/{trial.key}/files/plots")
    missing = f"trials/{trial.key}/files/plots/what is new.png is missing"
    assert lost_files(ledger, {trial.key: done}) == {trial.key: missing}


@pytest.mark.parametrize("name", [b"a\\b", b"a\nb", b"\xff", b"a\nb/c"])
def test_file_of_a_function_that_no_store_takes_is_said(
    name: bytes, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaves_a_file(trial: Any, data: Any, run: Any) -> dict[str, float]:
        path = run.folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        return {"test/right": 0.5}

    monkeypatch.setattr(own_tasks, "raises", leaves_a_file)
    with pytest.raises(ValueError, match=r"into run\.folder whose name no store takes: ") as caught:
        trained(task_trial("raises"), data, tmp_path)
    assert str(caught.value).endswith(f": {os.fsdecode(name)!r}")


def test_function_that_says_so_resumes_exactly(data: Path, tmp_path: Path) -> None:
    result = trained(task_trial("train_exactly"), data, tmp_path)
    assert result["resume"] == "said to be exact"
    assert flags_of(result | {"resumed": 1}) == []


def test_best_of_a_metric_whose_higher_values_are_better(data: Path, tmp_path: Path) -> None:
    own_tasks.VALUES |= {"rows": [{"val/right": x} for x in (0.1, 0.4, 0.3)], "returned": {"test/right": 1}}
    result = trained(task_trial("values"), data, tmp_path)
    assert result["metrics"] == {"best/epoch": 2.0, "best/val_right": 0.4, "final/test_right": 1.0}
    lower = trained(task_trial("values", metric=Metric("test/right")), data, tmp_path)
    assert lower["metrics"]["best/val_right"] == 0.1


@pytest.mark.parametrize(
    ("above", "status", "epochs"),
    [((-1.0, -1.0, -1.0), "finished", 3), ((-1.0, 0.03, 0.0), "pruned", 2), ((-1.0, 0.01, 0.05), "pruned", 3)],
)
def test_search_trial_worse_than_its_thresholds_is_pruned(
    above: tuple[float, ...], status: str, epochs: int, data: Path, tmp_path: Path
) -> None:
    """The values are those of a metric to be high: a level, .02 above it and .04 above it."""
    trial = task_trial("scores", "holdout")
    level = len(trial.net.rows) / 100
    pruned = dataclasses.replace(trial, pruning_thresholds=tuple(level + value for value in above))
    result = trained(pruned, data, tmp_path)
    assert (result["status"], result["epochs"]) == (status, epochs)
    assert result["curve"] == pytest.approx([level, level + 0.02, level + 0.04][:epochs])
    assert result["metrics"]["best/val_right"] == max(result["curve"])


def test_test_set_is_closed_where_a_search_chooses(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_tasks.VALUES |= {"rows": [{"val/right": 0.5}], "returned": {"test/right": 1.0}}
    with pytest.raises(ValueError, match=r"returned 'test/right' from a training by which a search chooses"):
        trained(task_trial("values", "holdout"), data, tmp_path)
    monkeypatch.setattr(own_tasks, "raises", lambda trial, data, run: data.test)
    with pytest.raises(TaskFailedError, match="the test set is closed in a training of phase 'holdout'"):
        trained(task_trial("raises", "holdout"), data, tmp_path)


@pytest.mark.parametrize(
    ("rows", "returned", "sentence"),
    [
        ([], {"test/other": 1}, "returned no 'test/right', the page's metric, but 'test/other'"),
        ([], None, "returns a dictionary of numbers, such as {'val/f1': 0.8}, not None"),
        ([], {"test/right": "good"}, "returns a number as 'test/right', not 'good'"),
        ([], {"test/right": [1, 2]}, r"returns a number as 'test/right', not \[1, 2\]"),
        ([], {"right": 1}, "returns numbers called PART/NAME, such as val/f1, not 'right'"),
        ([], {"final/test_right": 1}, "returns numbers called PART/NAME, such as val/f1, not 'final/test_right'"),
        ([{"test/right": 1}], {}, "run.report takes no test/right: the test set is opened once, at the end"),
        ([{"val/right": None}], {}, "run.report takes a number as 'val/right', not None"),
        ([3.0], {}, "run.report takes a dictionary of numbers, such as {'val/f1': 0.8}, not 3.0"),
    ],
)
def test_what_cannot_be_reported_or_returned_is_said(
    rows: list[Any], returned: Any, sentence: str, data: Path, tmp_path: Path
) -> None:
    own_tasks.VALUES |= {"rows": rows, "returned": returned}
    with pytest.raises((ValueError, TaskFailedError), match=sentence.replace("{", r"\{").replace("}", r"\}")):
        trained(task_trial("values"), data, tmp_path)


def test_search_needs_the_held_out_value_of_each_epoch(data: Path, tmp_path: Path) -> None:
    own_tasks.VALUES |= {"rows": [{"train/loss": 1}], "returned": {}}
    sentence = "run.report has no 'val/right', by which a search chooses, but 'train/loss'"
    with pytest.raises(TaskFailedError, match=sentence):
        trained(task_trial("values", "holdout"), data, tmp_path)
    own_tasks.VALUES |= {"rows": [], "returned": None}
    with pytest.raises(ValueError, match="neither reported nor returned 'val/right', by which a search chooses"):
        trained(task_trial("values", "holdout"), data, tmp_path)
    own_tasks.VALUES |= {"returned": {"val/right": np.float32(0.75)}}
    assert trained(task_trial("values", "holdout"), data, tmp_path)["metrics"]["best/val_right"] == 0.75


def test_epochs_are_reported_once_and_in_order(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(trial: Any, data: Any, run: Any) -> None:
        for epoch in run.epochs():
            run.report(epoch, {"val/right": 1})
            run.report(epoch, {"val/right": 1})

    def never(trial: Any, data: Any, run: Any) -> None:
        list(run.epochs())

    for function, sentence in ((twice, "run.report is for epoch 1 now, not 0"), (never, "epoch 0 has ended with")):
        monkeypatch.setattr(own_tasks, "raises", function)
        with pytest.raises(TaskFailedError, match=sentence):
            trained(task_trial("raises"), data, tmp_path)


def test_number_that_is_none_is_a_divergence_and_begins_anew_with_another_seed(data: Path, tmp_path: Path) -> None:
    result = trained(task_trial("nan_at_first"), data, tmp_path)
    assert (result["status"], result["restarts"]) == ("finished", 1)
    assert result["events"] == ["val/right is not a number in epoch 1"]
    assert result["metrics"]["final/test_right"] == 0.25


@pytest.mark.parametrize(("chance", "counted"), [(None, {}), (0.25, {"final/test_right": 0.25})])
def test_lost_training_counts_with_the_metrics_chance_alone(
    chance: float | None, counted: dict[str, float], data: Path, tmp_path: Path
) -> None:
    trial = task_trial("swallows", metric=dataclasses.replace(RIGHT, chance=chance))
    result = trained(trial, data, tmp_path)
    assert (result["status"], result["ending"], result["restarts"]) == ("diverged", "diverged", 1)
    assert result["metrics"] == counted
    assert result["events"] == ["val/right is inf in epoch 1"] * 2


def test_returned_number_that_is_none_is_a_divergence_too(data: Path, tmp_path: Path) -> None:
    own_tasks.VALUES |= {"rows": [], "returned": {"test/right": math.nan}}
    assert trained(task_trial("values"), data, tmp_path)["status"] == "diverged"


def test_number_too_large_for_any_metric_is_a_divergence_that_says_so(data: Path, tmp_path: Path) -> None:
    own_tasks.VALUES |= {"rows": [], "returned": {"test/right": 0.5, "test/operations": -3.6e13}}
    result = trained(task_trial("values"), data, tmp_path)
    assert result["status"] == "diverged"
    assert result["events"] == ["test/operations is -3.6e+13, beyond 1e+12, in what was returned"] * 2
    own_tasks.VALUES |= {"returned": {"test/right": 0.5, "test/operations": 1e12}}
    assert trained(task_trial("values"), data, tmp_path / "next")["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "final"),
    [(KeyError("f1"), True), (ValueError("no"), True), (SystemExit(3), True), (NotImplementedError("later"), True),
     (RuntimeError("CUDA"), False), (OSError("disk"), False)],
)  # fmt: skip
def test_error_of_a_function_is_kept_with_its_line(
    error: BaseException, final: bool, data: Path, tmp_path: Path
) -> None:
    own_tasks.VALUES["error"] = error
    trial = task_trial("raises")
    arguments = (trial, run_task, runtime_config(data, tmp_path), lambda _: None, lambda: False, False)
    if final:
        _train_one(*arguments)
    else:
        with pytest.raises(RuntimeError) as caught:
            _train_one(*arguments)
        assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    (attempt,) = Ledger(str(tmp_path)).attempts(trial.key)
    line = next(n for n, text in enumerate(Path(own_tasks.__file__).read_text().splitlines(), 1) if "raise VAL" in text)
    assert attempt["error"] == f"{type(error).__name__}: {error} (own_tasks.py, line {line} in raises)"
    assert (attempt["final"], attempt["where"]) == (final, f"own_tasks.py, line {line} in raises")


def test_asked_to_stop_it_ends_at_an_epoch_and_commits_nothing(data: Path, tmp_path: Path) -> None:
    asked = iter([False] * 12 + [True] * 1000)
    config = runtime_config(data, tmp_path)
    trial = task_trial("train")
    rows: list[int] = []
    assert run_task(trial, config, lambda epoch, _: rows.append(epoch), lambda: next(asked)) is None
    assert Ledger(str(tmp_path)).result(trial.key) is None
    assert rows
    assert rows[-1] < 3
    assert trained(trial, data, tmp_path)["epochs"] == 3


def test_error_of_a_function_that_is_told_to_end_is_no_failure(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    ledger = Ledger(str(tmp_path))
    trial = task_trial("raises")
    searched = task_trial("raises", "holdout")

    def has_no_epoch(trial: Any, data: Any, run: Any) -> dict[str, float]:
        told.append(True)
        scores = [0.5 for _ in run.epochs()]
        return {"test/right": max(scores)}

    def exits(trial: Any, data: Any, run: Any) -> dict[str, float]:
        told.append(True)
        for epoch in range(trial.recipe.epochs):
            if run.stop:
                raise SystemExit(1)
            run.report(epoch, {"val/right": 0.5})
        return {}

    for function in (has_no_epoch, exits):
        told.clear()
        monkeypatch.setattr(own_tasks, "raises", function)
        _train_one(trial, run_task, runtime_config(data, tmp_path), lambda *_: None, lambda: bool(told), False)
        assert (ledger.attempts(trial.key), ledger.result(trial.key)) == ([], None)
    assert run_task(searched, runtime_config(data, tmp_path, pause_at=1), lambda *_: None) is None
    assert (ledger.paused_at(searched.key) or {})["epoch"] == 1
    pruned = dataclasses.replace(searched, pruning_thresholds=(0.9,))
    assert trained(pruned, data, tmp_path)["status"] == "pruned"


def test_net_that_was_edited_is_trained_as_it_is_now_by_a_function_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tests.support.own_tasks", own_tasks)  # all modules of the user's are dropped
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import torch\ndef a(num_classes):\n    net = torch.nn.Linear(1, 1)\n    net.value = {}\n    return net\n"
    page = "def train(trial, data, run):\n    return {'test/right': trial.model().value}\n"
    (tmp_path / "page_edited.py").write_text(page)
    trial = task_trial("raises")
    recipe = dataclasses.replace(trial.cell.recipe, init="own", restarts=0)
    net = Model("nets_edited:a")
    cell = dataclasses.replace(trial.cell, net=net, recipe=recipe, task="page_edited:train")
    results = []
    for seed, value in enumerate((0.5, 0.125)):
        (tmp_path / "nets_edited.py").write_text(text.format(value))
        results.append(trained(dataclasses.replace(trial, cell=cell, seed=seed), data, tmp_path / "out"))
    assert [result["metrics"]["final/test_right"] for result in results] == [0.5, 0.125]
    assert results[0]["code"] != results[1]["code"]


def test_pictures_come_as_a_data_set_as_arrays_and_as_our_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def look(trial: Any, data: Any, run: Any) -> dict[str, float]:
        pictures, labels = data.train.arrays()
        picture, label = data.train[5]
        seen["same"] = np.array_equal(pictures[5], picture.numpy()) and labels[5] == label
        loader = torch.utils.data.DataLoader(data.train, batch_size=16, num_workers=1)
        seen["loaded"] = next(iter(loader))[0].shape
        seen["parts"] = (len(data.train), len(data.held_out), len(data.test))
        batches = list(data.batches(1))
        seen["steps"] = (len(batches), data.steps)
        seen["again"] = torch.equal(batches[2][0], next(data.batches(1, start=2))[0])
        seen["labels"] = [int(y) for _, y in data.held_out.batches() for y in y] == list(data.held_out.labels)
        return {"test/right": 0.0}

    monkeypatch.setattr(own_tasks, "raises", look)
    trained(task_trial("raises"), data, tmp_path)
    assert seen["same"]
    assert seen["again"]
    assert seen["labels"]
    assert seen["loaded"] == (16, 3, 32, 32)
    train, held_out, test = seen["parts"]
    assert (train + held_out, test) == (100, 24)
    assert seen["steps"] == (-(-train // 16), -(-train // 16))


def test_state_is_what_it_was() -> None:
    net = torch.nn.Linear(2, 3)
    optimiser = torch.optim.AdamW(net.parameters(), 0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    state = {
        "optimiser": optimiser.state_dict(), "numbers": [1, 2.5, True, None, math.inf, 2**70], 3: ("a", (1,)),
        "array": np.arange(4.0), "scalar": np.float32(0.5), "tied": [net.weight, net.weight],
    }  # fmt: skip
    packed, tensors = pack(state)
    again = unpack(json.loads(json.dumps(packed)), tensors)
    torch.testing.assert_close(again["optimiser"], state["optimiser"])
    assert again["numbers"] == state["numbers"]
    assert again[3] == ("a", (1,))
    assert np.array_equal(again["array"], np.arange(4.0))
    assert again["scalar"] == 0.5
    with pytest.raises(ValueError, match=r"not the Linear at state\['net'\]\[0\]: hand it what its state_dict"):
        pack({"net": [net]})
