"""What fails in a trial: memory, disk, a hang. Each is survived, or said with what would fit."""

import errno
import gc
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from sweeps.execution import watchdog
from sweeps.execution.failures import failure_signature
from sweeps.execution.watchdog import Watchdog
from sweeps.store.ledger import Ledger, is_away, with_room
from sweeps.store.leftovers import trial_stack
from sweeps.training.loop import Learner
from sweeps.training.run_trial import out_of_memory, run_trial
from sweeps.training.trainer import Trainer
from tests.support.trials import Hashes, artifact_hashes, runtime_config, trial_of


def short_of_memory(monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    """Let a step of more than `fits` pictures at once run out of memory in the middle of an epoch."""
    advance = Learner.step

    def limited(self: Learner, images: torch.Tensor, labels: torch.Tensor) -> None:
        if len(images) > fits * self.micro_batches and self.step_count >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        advance(self, images, labels)

    monkeypatch.setattr(Learner, "step", limited)


def test_step_that_does_not_fit_is_taken_in_parts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_of("All-CNN-B by Adam")
    expected = run_trial(trial, runtime_config(data, tmp_path / "whole"), lambda *_: None)
    short_of_memory(monkeypatch, 4)
    result = run_trial(trial, runtime_config(data, tmp_path / "parts"), lambda *_: None)
    assert expected is not None
    assert result is not None
    assert any("in 4 parts" in event for event in result["events"])
    weights = [
        safetensors.torch.load_file(Ledger(str(tmp_path / name)).path(f"trials/{trial.key}/weights.safetensors"))
        for name in ("whole", "parts")
    ]
    assert result["epochs"] == expected["epochs"]
    # The same gradients summed in another order, in bf16 where the processor has it.
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=0.02), name


def test_memory_of_a_step_that_did_not_fit_is_free_before_the_net_is_built_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    left: list[bool] = []
    load = Trainer._load_checkpoint

    def limited(self: Learner, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self.micro_batches == 1:
            scores = self.model(images)
            made.append(weakref.ref(scores))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        advance(self, images, labels)

    def loaded(self: Trainer, parts: int = 1) -> None:
        left.extend(scores() is not None for scores in made)
        load(self, parts)

    advance = Learner.step
    monkeypatch.setattr(Learner, "step", limited)
    monkeypatch.setattr(Trainer, "_load_checkpoint", loaded)
    gc.collect()
    gc.disable()
    try:
        run_trial(trial_of("All-CNN-B by Adam"), runtime_config(data, tmp_path), lambda *_: None)
    finally:
        gc.enable()
    assert left == [False]


def test_net_with_batch_norm_that_does_not_fit_says_what_would(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 4)
    with pytest.raises(ValueError, match=r"batch 16.*batch norm.*recipe.batch=8"):
        run_trial(trial_of("VGG with batch norm"), runtime_config(data, tmp_path), lambda *_: None)


def test_memory_that_a_cpu_lacks_is_known_by_what_torch_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory with batch 16 (DefaultCPUAllocator: can't allocate memory)"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors_and_from_what_quotes_it(error: Exception, is_short: bool) -> None:
    assert out_of_memory(error) == is_short


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_trial_waits_while_the_disk_is_full_or_fails_and_ends_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Hashes, code: int
) -> None:
    trial = trial_of("allconv with dropout")
    expected = uninterrupted(trial)
    sync = os.fsync
    calls = iter(range(10**6))

    def full_for_a_while(file: int) -> None:
        if 2 <= next(calls) < 5:
            raise OSError(code, os.strerror(code))
        sync(file)

    monkeypatch.setattr(os, "fsync", full_for_a_while)
    assert run_trial(trial, runtime_config(data, tmp_path / "full"), lambda *_: None) is not None
    assert artifact_hashes(tmp_path / "full", trial) == expected


def test_wait_for_room_ends_when_told_to_and_other_errors_pass() -> None:
    def fail(code: int) -> None:
        raise OSError(code, os.strerror(code))

    for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN):
        assert with_room(partial(fail, code), lambda: True) is None
    with pytest.raises(OSError, match="Read-only"):
        with_room(lambda: fail(errno.EROFS), lambda: True)


OF_A_BUCKET = "When uploading part for key 'k' in bucket 'b': AWS Error {} during PutObject operation: no more is known"


@pytest.mark.parametrize("kind", ["NETWORK_CONNECTION", "SLOW_DOWN", "UNKNOWN (HTTP status 503)"])
def test_bucket_that_does_not_answer_is_waited_for_and_ends_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls = iter(range(10**6))

    def away_at_first(*_: object) -> list[str]:
        if next(calls) < 1:
            raise OSError(OF_A_BUCKET.format(kind))
        return ["s"]

    assert with_room(away_at_first, lambda: True) is None
    assert with_room(away_at_first, lambda: True) == ["s"]
    calls = iter(range(10**6))
    monkeypatch.setattr(Ledger, "names", away_at_first)
    monkeypatch.setattr(watchdog, "STOP_POLL", {True: -1.0})
    stop = watchdog.stop_signal(Ledger(str(tmp_path)), "stops/s")
    assert [stop(), stop()] == [False, True]


@pytest.mark.parametrize("kind", ["ACCESS_DENIED", "UNKNOWN (HTTP status 400)"])
def test_bucket_that_refuses_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def refuse(*_: object) -> list[str]:
        raise OSError(OF_A_BUCKET.format(kind))

    monkeypatch.setattr(Ledger, "names", refuse)
    with pytest.raises(OSError, match="AWS Error"):
        with_room(refuse, lambda: True)
    stop = watchdog.stop_signal(Ledger(str(tmp_path)), "stops/s")
    with pytest.raises(OSError, match="AWS Error"):
        stop()


def test_pyarrow_says_of_a_bucket_that_does_not_answer_what_is_looked_for() -> None:
    from pyarrow import fs

    system = fs.S3FileSystem(
        access_key="x",
        secret_key="x",
        region="us-east-1",
        scheme="http",
        endpoint_override="127.0.0.1:9",
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    with pytest.raises(OSError, match="AWS Error") as caught, system.open_output_stream("b/k") as stream:
        stream.write(b"x")
    assert caught.value.errno is None
    assert is_away(caught.value)


@pytest.mark.parametrize("sign", ["step", "member"])
@pytest.mark.parametrize(("seconds", "oldest"), [(30.0, 4.0), (1800.0, 11.0)])
def test_signs_of_life_put_the_end_of_a_worker_off(
    sign: str, seconds: float, oldest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    armed: list[tuple[float, float]] = []  # when, for how long

    def arm(seconds: float, exit: bool, file: object) -> None:
        assert exit
        armed.append((now, seconds))

    faults = SimpleNamespace(dump_traceback_later=arm, cancel_dump_traceback_later=lambda: None)
    monkeypatch.setattr(watchdog, "faulthandler", faults)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now))
    with Watchdog(Ledger(str(tmp_path)), ["k", "l"], seconds) as watch:
        alive = watch.wrap(lambda: False)
        for number in range(60):
            now += 1.0
            if sign == "step":
                assert not alive()
            else:
                watch.set_current("kl"[number % 2])
            when, until = armed[-1]
            assert until == seconds
            assert now - when < oldest
    assert len(armed) <= 1 + 60 / (oldest - 1), "to arm at each step takes time"


def test_hung_worker_ends_and_its_stack_is_the_next_trys_record(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom sweeps.execution.watchdog import Watchdog\nfrom sweeps.store.ledger import Ledger\n"
        "watch = Watchdog(Ledger(sys.argv[1]), ['k'], 600.0).__enter__()\nalive = watch.wrap(lambda: False)\n"
        "alive()\nprint('alive', flush=True)\n\n"
        "def stuck():\n    watch.seconds = 1.0\n    watch.__enter__()\n    time.sleep(600)\n\nstuck()\n"
    )
    # Stuck for longer than this test waits, and for longer than the watch allows from then on.
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.stdout == "alive\n"
    assert done.returncode == 1
    ledger = Ledger(str(tmp_path))
    with Watchdog(ledger, ["k"], 1800.0):
        pass
    (attempt,) = ledger.attempts("k")
    assert attempt["error"].startswith("Hang: no step for")
    assert "stuck" in attempt["trace"]
    assert not attempt["final"]


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_trial_that_did_not_hang_keeps_no_file_of_a_hang(tmp_path: Path, error: type[Exception] | None) -> None:
    ledger = Ledger(str(tmp_path))
    file = tmp_path / trial_stack("k")
    with nullcontext() if error is None else pytest.raises(error), Watchdog(ledger, ["k"], 1800.0):
        assert file.read_text().strip() == "k"
        if error is not None:
            raise error
    assert not file.exists()
    # Two processes train the trial, since the first was taken for dead. Each deletes its own file only.
    first = Watchdog(ledger, ["k"], 1800.0)
    with Watchdog(ledger, ["k"], 1800.0):
        first.__exit__()
        assert file.exists()
    assert not file.exists()
    with Watchdog(ledger, ["k"], 1800.0) as hung:
        hung.file.write(b"stack")
    assert file.read_text().endswith("\nstack")
    # Nor does one that was killed alone, and ends in a pack.
    alone = Watchdog(ledger, ["other"], 1800.0)
    alone.file.close()
    with Watchdog(ledger, ["k", "other"], 1800.0, pack="p"):
        pass
    assert not (tmp_path / trial_stack("other")).exists()


def test_same_error_at_the_same_place_is_one_signature() -> None:
    trace = 'Traceback\n  File "/a/b/data/load.py", line 7, in read\n    x\nValueError: record 5'
    other = trace.replace("line 7", "line 8")
    attempt = {"error": "ValueError: record 5 of x", "trace": trace}
    assert failure_signature(attempt) == failure_signature(attempt | {"error": "ValueError: record 6 of y"})
    assert failure_signature(attempt) != failure_signature(attempt | {"trace": other})
    assert failure_signature(attempt) != failure_signature(attempt | {"error": "OSError: record 5"})
