"""A trial that several ranks train is the trial that one device trains, within float error; ranks may die."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import UnsupportedOperation
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crelu_data.datasets import dataset
from crelu_data.write import prepare
from crelu_models.dropout import Dropout
from sweeps.cifar_width import CELLS
from sweeps.cli.options import parser
from sweeps.cli.settings import settle
from sweeps.execution import rank_processes
from sweeps.execution.failures import failure_signature, record_failure
from sweeps.execution.resources import (
    ResourceRequest,
    TrialResources,
    check_rank_batches,
    resolve_resources,
    why_unschedulable,
)
from sweeps.execution.worker import train_function
from sweeps.experiment.trial import PHASES, Trial
from sweeps.store.ledger import Ledger, failed_attempt
from sweeps.training.distributed import Ranks
from sweeps.training.run_trial import run_trial
from sweeps.training.runtime import RuntimeConfig
from tests.support.trials import SMALL, runtime_config, trial_of
from tests.support.waiting import until

# Ranks stay for the next trial of as many: the tests stand in the order in which few have to be started.

# With learning rates at which a net does not blow the order of its sums up: two threads in place of one differ as much.
FAMILIES = {"allconv with dropout": 1e-3, "VGG with batch norm": 3e-4, "All-CNN-B": 0.01, "All-CNN-B by Adam": 1e-4}
ERROR = 1e-3
TESTED = "synthetic:size=32,classes=4,train=100,test=600"


@pytest.fixture(scope="module")
def data(data: Path) -> Path:
    prepare(TESTED, data)
    return data


@pytest.fixture(scope="module", autouse=True)
def _dismissed() -> Iterator[None]:
    yield
    rank_processes.shutdown_ranks()


def exact(family: str, phase: str = "ablation", **changes: Any) -> Trial:
    """Return the family's trial in float32, where float error is small."""
    trial = trial_of(family, phase)
    recipe = dataclasses.replace(trial.cell.recipe, precision="fp32", **changes)
    return dataclasses.replace(trial, cell=dataclasses.replace(trial.cell, recipe=recipe))


def lost(trial: Trial, here: RuntimeConfig, rank: int, epoch: int = 1) -> None:
    """Kill a rank when it has reported an epoch, and check that the try ends and no process is left."""
    left: list[int] = []

    def kill(at: int, row: dict[str, float]) -> None:
        left.extend(process.pid for process in rank_processes._groups()[0].processes)
        if at == epoch:
            os.kill(left[rank], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patient:
        patient.setattr(rank_processes, "GRACE", 120.0)  # a killed process may take a moment to end
        with pytest.raises(RuntimeError, match=f"rank {rank} of {here.ranks} died .signal 9."):
            rank_processes.run_trial(trial, here, kill)
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[rank_processes.RankGroup]:
    """Return a group without ranks, in which no death is waited for."""
    monkeypatch.setattr(rank_processes, "GRACE", 0.0)
    group = rank_processes.RankGroup(0, "cpu")
    yield group
    group.kill()


@pytest.mark.parametrize(
    ("error", "kind", "is_last"),
    [
        (OSError(errno.EIO, "Input/output error"), "passing", [False, False]),
        (torch.AcceleratorError("CUDA error"), "passing", [False, False]),
        (MemoryError(), "passing", [False, False]),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "other", [False, True]),
        (UnsupportedOperation("not readable"), "final", [True, True]),  # an OSError and a ValueError
    ],
)
def test_error_of_a_rank_is_tried_again_as_that_of_one_process(
    error: Exception, kind: str, is_last: list[bool], group: rank_processes.RankGroup, tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path))
    last: dict[str, list[bool]] = {"rank": [], "process": []}
    for _ in range(2):
        failure = rank_processes._failed(1, error)
        assert failure.kind == kind
        with pytest.raises((ValueError, RuntimeError)) as raised:
            group._raise(failure)
        last["rank"].append(record_failure(ledger, "rank", raised.value))
        last["process"].append(record_failure(ledger, "process", error))
    assert last == {"rank": is_last, "process": is_last}


def test_lack_of_memory_in_a_rank_is_answered_where_smaller_parts_help() -> None:
    short = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
    assert rank_processes._failed(0, short) == (0, "memory", str(short), f"RuntimeError: {short}\n")


@pytest.mark.parametrize("step", ["send", "receive", "raise"])
def test_death_of_a_rank_may_come_again(step: str, group: rank_processes.RankGroup, tmp_path: Path) -> None:
    near, far = Pipe()
    far.close()
    process = subprocess.Popen(["sleep", "60"])
    process.kill()
    process.wait()
    group.size = 1
    group.pipes.append(near)
    group.processes.append(process)
    steps = {
        "send": lambda: group._send(near, "stop"),
        "receive": lambda: group._receive(near),
        "raise": lambda: group._raise(rank_processes._failed(1, RuntimeError("Connection closed by peer"))),
    }
    last = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"rank 0 of 1 died \(signal 9\)") as raised:
            steps[step]()
        last.append(record_failure(Ledger(str(tmp_path)), "k", raised.value))
    assert last == [False, False]


def history(trial: Trial, here: RuntimeConfig) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads((folder(trial, here) / "history.json").read_text())
    return [{name: row[name] for name in row if "sys/" not in name and name != "time_ms"} for row in rows]


def folder(trial: Trial, here: RuntimeConfig) -> Path:
    return Path(Ledger(here.ledger).path(f"trials/{trial.key}"))


def assert_same(trial: Trial, first: RuntimeConfig, second: RuntimeConfig) -> None:
    """Compare curves, weights, running statistics and scores of two ledgers, relative to their size."""
    weights, other = (safetensors.torch.load_file(folder(trial, at) / "weights.safetensors") for at in (first, second))
    assert weights.keys() == other.keys()
    for name in weights:
        apart = (weights[name].double() - other[name].double()).norm() / weights[name].double().norm().clamp_min(1e-3)
        assert apart < ERROR, f"{name} {apart}"
    for mine, theirs in zip(history(trial, first), history(trial, second), strict=True):
        assert mine == pytest.approx(theirs, abs=ERROR)
    tables = [folder(trial, at) / "tables/scores.parquet" for at in (first, second)]
    assert [path.exists() for path in tables] == [PHASES[trial.phase].test] * 2
    if PHASES[trial.phase].test:
        mine, theirs = (pq.read_table(path) for path in tables)
        assert mine["id"].to_pylist() == theirs["id"].to_pylist() == sorted(mine["id"].to_pylist())
        assert mine["label"] == theirs["label"]
        for name in set(mine.column_names) & {"centre", "ten_softmax", "ten_score"}:
            np.testing.assert_allclose(mine[name].to_pylist(), theirs[name].to_pylist(), atol=ERROR)


@pytest.mark.parametrize(("family", "lr"), [*FAMILIES.items()])
def test_two_ranks_end_as_one_device_does(family: str, lr: float, data: Path, tmp_path: Path) -> None:
    trial = exact(family, lr=lr)
    epochs = []
    one_rank, two_ranks = runtime_config(data, tmp_path / "one"), runtime_config(data, tmp_path / "two", ranks=2)
    alone = run_trial(trial, one_rank, lambda *_: None)
    result = rank_processes.run_trial(trial, two_ranks, lambda epoch, _: epochs.append(epoch))
    assert_same(trial, one_rank, two_ranks)
    assert epochs == [1, 2, 3]
    assert alone is not None
    assert result is not None
    assert (result["hardware"].get("ranks"), alone["hardware"].get("ranks")) == ("2", None)
    assert result["metrics"] == pytest.approx(alone["metrics"], abs=1e-3)


def test_stopped_ranks_save_where_they_are_and_stay_for_the_next_trial(data: Path, tmp_path: Path) -> None:
    trial = exact("allconv with dropout", lr=1e-3)
    here = runtime_config(data, tmp_path, ranks=2)
    told = []
    assert rank_processes.run_trial(trial, here, lambda epoch, _: told.append(epoch), lambda: bool(told)) is None
    (group,) = rank_processes._groups()
    saved = Ledger(here.ledger).names(f"checkpoints/{trial.key}")
    assert saved[-1] > "00001-00000000"
    assert rank_processes.run_trial(trial, here, lambda epoch, _: told.append(epoch)) is not None
    assert told == [1, 2, 3]
    assert rank_processes._groups() == [group]
    run_trial(trial, runtime_config(data, tmp_path / "one"), lambda *_: None)
    assert_same(trial, runtime_config(data, tmp_path / "one"), here)


def test_trial_whose_ranks_died_goes_on_with_any_number_of_ranks(data: Path, tmp_path: Path) -> None:
    trial = exact("VGG with batch norm", lr=3e-4)
    epochs = []
    one_rank = runtime_config(data, tmp_path / "one")
    here = runtime_config(data, tmp_path / "here", checkpoint_minutes=0.0, ranks=2)
    ledger = Ledger(here.ledger)
    run_trial(trial, one_rank, lambda *_: None)
    lost(trial, here, 0)  # the leader
    steps = iter([False] * 3 + [True])
    train_function("", 1)(trial, dataclasses.replace(here, ranks=1), lambda *_: None, lambda: next(steps))
    assert "00002" > ledger.names(f"checkpoints/{trial.key}")[-1] > "00001-00000000"  # one rank, stopped in epoch 2
    lost(trial, dataclasses.replace(here, ranks=3), 1, epoch=2)
    assert ledger.names(f"checkpoints/{trial.key}")[-1] >= "00002"
    later = dataclasses.replace(here, ranks=3)
    train_function("", 3)(trial, later, lambda epoch, _: epochs.append(epoch), lambda: False)
    assert epochs == [3]
    assert_same(trial, one_rank, here)


@pytest.mark.parametrize("phase", ["ablation", "holdout"])
def test_uneven_ranks_end_as_one_device_does(phase: str, data: Path, tmp_path: Path) -> None:
    # 19 pictures make 6, 6 and 7; the last four of an epoch 1, 1 and 2. The tested ones are three batches.
    trial = exact("allconv with dropout", phase, lr=1e-3, batch=19)
    if phase == "ablation":
        trial = dataclasses.replace(trial, cell=dataclasses.replace(trial.cell, dataset=TESTED))
    one_rank, three_ranks = (
        runtime_config(data, tmp_path / "one"),
        runtime_config(data, tmp_path / "three", ranks=3, resident_bytes=0),
    )
    run_trial(trial, one_rank, lambda *_: None)
    rank_processes.run_trial(trial, three_ranks, lambda *_: None)
    assert_same(trial, one_rank, three_ranks)
    assert "probe/loss" in history(trial, three_ranks)[0] or phase == "ablation"


def test_error_of_a_rank_is_told_with_its_own_trace(data: Path, tmp_path: Path) -> None:
    trial = exact("allconv with dropout", batch=1)
    here = runtime_config(data, tmp_path, ranks=3)
    said = r"a batch of 1 picture cannot be shared by 3 ranks \(batch 1 of 80"
    with pytest.raises(ValueError, match=said) as error:
        rank_processes.run_trial(trial, here, lambda *_: None)
    told = failed_attempt(error.value, final=True)
    assert "in trial_steps" in told["trace"]
    with pytest.raises(ValueError, match=said) as expected:
        trial.recipe.shared(80, 3)
    assert failure_signature(told) == failure_signature(failed_attempt(expected.value, final=True))


def test_ranks_of_a_killed_worker_end(data: Path, tmp_path: Path) -> None:
    code = (
        "import json, os, signal, sys\n"
        "from sweeps.execution import rank_processes\n"
        "from sweeps.training.runtime import RuntimeConfig\n"
        "from sweeps.experiment.trial import trial_from_json\n"
        "def die(epoch, row):\n"
        "    print(*(process.pid for process in rank_processes._groups()[0].processes), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "trial, config = (json.loads(word) for word in sys.argv[1:])\n"
        "rank_processes.run_trial(trial_from_json(trial), RuntimeConfig(**config), die)\n"
    )
    here = dataclasses.asdict(runtime_config(data, tmp_path, ranks=2))
    words = [sys.executable, "-c", code, json.dumps(exact("All-CNN-B").to_json()), json.dumps(here)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = done.stdout.split()
    assert len(pids) == 2
    until(lambda: not any(running(pid) for pid in pids), f"ranks {pids} have ended", 120, poll=0.05)


def running(pid: str) -> bool:
    """Return whether a process is there and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_last_batch_that_is_dropped_may_have_fewer_pictures_than_ranks() -> None:
    recipe = exact("VGG with batch norm", batch=33).cell.recipe
    recipe.shared(100, 33)  # its last batch is dropped
    with pytest.raises(ValueError, match=r"a batch of 33 pictures cannot be shared by 34 ranks .*recipe.batch"):
        recipe.shared(100, 34)


def test_ranks_whose_memory_runs_out_go_on_in_smaller_parts(data: Path, tmp_path: Path) -> None:
    trial = exact("allconv with dropout", lr=1e-3, epochs=1)
    here = runtime_config(data, tmp_path / "two", ranks=2)
    # In the ranks' own processes, a step of more than four pictures at once does not fit in the middle of an epoch.
    (tmp_path / "sitecustomize.py").write_text(SHORT)
    sys.path.insert(0, str(tmp_path))
    rank_processes.shutdown_ranks()
    try:
        result = rank_processes.run_trial(trial, here, lambda *_: None)
    finally:
        sys.path.remove(str(tmp_path))
        rank_processes.shutdown_ranks()
    assert result is not None
    assert [event for event in result["events"] if "parts" in event] == [
        "out of memory: steps of batch 16 are taken in 2 parts"
    ]
    run_trial(trial, runtime_config(data, tmp_path / "one"), lambda *_: None)
    assert_same(trial, runtime_config(data, tmp_path / "one"), here)


SHORT = """
import torch
from sweeps.training.loop import Learner

def limited(learner, images, labels, advance=Learner.step):
    if len(images) > 4 * learner.micro_batches and learner.step_count >= 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    advance(learner, images, labels)

Learner.step = limited
"""


@pytest.mark.parametrize("shape", [(16, 3, 8, 8), (15, 6, 1, 1), (9, 10)])
@pytest.mark.parametrize("last", [True, False])
def test_rows_of_a_batch_get_their_rows_of_its_dropout(shape: tuple[int, ...], last: bool) -> None:
    x = torch.ones(shape)
    if last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    layer = Dropout(0.4, "pool1").train()
    layer.seed(7)
    expected = layer(x)
    for ranks in (2, 3):
        for rank in range(ranks):
            rows = Ranks(rank, ranks).rows(shape[0])
            layer.seed(7, rows.start, shape[0])
            assert layer(x[rows]).equal(expected[rows])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7))
def test_ranks_part_what_there_is_evenly_and_leave_nothing_out(pictures: int, batch: int, size: int) -> None:
    indices = np.random.default_rng(pictures).permutation(pictures)
    ranks = [Ranks(rank, size) for rank in range(size)]
    shards = [rank.rows_of_batches(indices, batch) for rank in ranks]
    assert sorted(np.concatenate(shards)) == sorted(indices)
    for start in range(0, pictures, batch):
        step = indices[start : start + batch]
        rows = [step[rank.rows(len(step))] for rank in ranks]
        assert np.concatenate(rows).tolist() == step.tolist()
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
    batches = {tuple(indices[start : start + batch]) for start in range(0, pictures, batch)}
    evaluated = [rank.full_batches(indices, batch) for rank in ranks]
    assert {tuple(part[at : at + batch]) for part in evaluated for at in range(0, len(part), batch)} == batches
    assert sum(map(len, evaluated)) == pictures


def request(*words: str) -> ResourceRequest:
    return settle(CELLS, parser("cifar_width", "").parse_args(["--profile", "demo", *words])).resources


@pytest.mark.parametrize(
    ("words", "machine", "expected"),
    [
        ((), {"CPU": 2}, TrialResources(0.0, 1.0, 1)),
        ((), {"CPU": 8, "GPU": 2}, TrialResources(1.0, 1.0, 1)),
        (("--gpus-per-trial", "0.25"), {"CPU": 8, "GPU": 2}, TrialResources(0.25, 1.0, 1)),
        (("--gpus-per-trial", "2"), {"CPU": 8, "GPU": 2}, TrialResources(2.0, 2.0, 2)),
        (("--gpus-per-trial", "2", "--cpus-per-trial", "8"), {"CPU": 8, "GPU": 2}, TrialResources(2.0, 8.0, 2)),
        (("--ranks", "2"), {"CPU": 8, "GPU": 4}, TrialResources(2.0, 2.0, 2)),
        (("--ranks", "2"), {"CPU": 2}, TrialResources(0.0, 2.0, 2)),
        (("--ranks", "2", "--gpus-per-trial", "0"), {"CPU": 2, "GPU": 1}, TrialResources(0.0, 2.0, 2)),
    ],
)
def test_a_trial_is_given_what_the_flags_say(
    words: tuple[str, ...], machine: dict[str, float], expected: TrialResources
) -> None:
    assert resolve_resources(request(*words), [machine], True) == expected


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--gpus-per-trial", "2"), "this machine has 1 GPU$"),
        (("--gpus-per-trial", "1.5"), "1.5.*this machine has 1"),
        (("--ranks", "2"), "one rank a GPU.*--gpus-per-trial 0"),
        (("--cpus-per-trial", "5"), "--cpus-per-trial 5: this machine has 4 CPUs$"),
        (("--ranks", "9", "--gpus-per-trial", "0"), "9 ranks need a CPU each: this machine has 4 CPUs$"),
        (("--ranks", "2", "--gpus-per-trial", "0", "--pack", "3"), "--pack 3"),
    ],
)
def test_what_a_trial_cannot_be_given_is_a_sentence(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        resolve_resources(request(*words), [{"CPU": 4, "GPU": 1}], True)


def test_what_no_single_machine_of_a_cluster_has_is_told() -> None:
    head, single, pair = {"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}
    two = resolve_resources(request("--gpus-per-trial", "2"), [head, single, single], False)
    assert two == TrialResources(2.0, 2.0, 2)
    assert why_unschedulable(two, [head, single, pair]) == ""
    assert why_unschedulable(two, [head, single, single]) == (
        "a trial needs 2 GPUs and 2 CPUs of one machine, "
        "and the cluster's machines have 1 GPU and 8 CPUs, 0 GPUs and 0 CPUs"
    )
    wide = resolve_resources(request("--gpus-per-trial", "2", "--cpus-per-trial", "8"), [single, pair], False)
    assert "have 2 GPUs and 4 CPUs, 1 GPU and 8 CPUs" in why_unschedulable(wide, [single, pair])
    assert why_unschedulable(resolve_resources(request(), [], False), [{"CPU": 1.0}]) == ""
    assert why_unschedulable(TrialResources(0.0, 1.0, 1), []).endswith("have none")


def test_more_than_one_gpu_is_a_whole_number_of_them() -> None:
    with pytest.raises(ValueError, match="whole ones"):
        resolve_resources(request("--gpus-per-trial", "1.5"), [{"CPU": 4, "GPU": 4}], False)


def test_batches_that_ranks_cannot_share_are_refused_before_anything_is_trained() -> None:
    facts = {SMALL: dataset(SMALL)}
    check_rank_batches([exact("VGG with batch norm")], facts, 16)
    with pytest.raises(ValueError, match="VGG with batch norm: a batch of 16 pictures cannot be shared by 17 ranks"):
        check_rank_batches([exact("VGG with batch norm")], facts, 17)
    cell = exact("allconv with dropout", batch=49).cell
    check_rank_batches([Trial(cell, "fold", 0, fold=0, folds=3)], facts, 3)
    with pytest.raises(ValueError, match="a batch of 2 pictures cannot be shared by 3"):
        check_rank_batches([Trial(cell, "match", match="none", reference="k")], facts, 3)
