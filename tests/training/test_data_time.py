"""The share of an epoch's time that its batches take, by processor time: a busy host changes it little."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crelu_data.datasets import dataset
from sweeps.execution.pack import perform_pack
from sweeps.store.ledger import Json, Ledger
from sweeps.training import data_time
from sweeps.training.data_time import DataTimer
from sweeps.training.loop import Learner
from sweeps.training.run_trial import run_trial, trial_steps
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import PackContext, drain
from tests.support.trials import SMALL, Killed, StepClock, runtime_config, trial_of


class Clocks:
    """Clocks of a process, in the place of the module `time`; a test moves them."""

    def __init__(self) -> None:
        self.thread = self.process = self.wall = 0.0

    def compute(self, seconds: float) -> None:
        """Use the processor for so many seconds of its time, on a host that is as busy with something else."""
        self.thread += seconds
        self.process += seconds
        self.wall += 2 * seconds

    def compute_elsewhere(self, seconds: float) -> None:
        """Use the processor in another thread."""
        self.process += seconds
        self.wall += 2 * seconds

    def wait(self, seconds: float) -> None:
        self.wall += seconds

    def thread_time(self) -> float:
        return self.thread

    def process_time(self) -> float:
        return self.process

    def perf_counter(self) -> float:
        return self.wall

    monotonic = perf_counter


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Return the clocks by which a timer measures."""
    clocks = Clocks()
    monkeypatch.setattr(data_time, "time", clocks)
    return clocks


def epoch(timer: DataTimer, get: Callable[[], object], step: Callable[[], object], shared: bool = False) -> None:
    for _ in range(5):
        timer.fetch(get, shared)
        step()


def test_share_is_the_batches_part_of_processor_time(clocks: Clocks) -> None:
    timer = DataTimer(torch.device("cpu"), lambda: 0.0)
    epoch(timer, lambda: clocks.compute(0.03), lambda: clocks.compute(0.01))
    assert timer.share() == pytest.approx(0.75)
    timer.start()
    epoch(timer, lambda: None, lambda: clocks.compute(0.01))
    assert timer.share() == 0.0
    timer.start()
    # To wait uses no processor, and says nothing of what a pack saves.
    epoch(timer, lambda: clocks.wait(0.03), lambda: clocks.compute(0.01))
    assert timer.share() == 0.0


def test_first_batch_of_a_process_and_its_step_are_not_counted(clocks: Clocks) -> None:
    timer = DataTimer(torch.device("cpu"), lambda: 0.0, clocks.monotonic)
    steps = iter([0.2, *[0.01] * 9])
    epoch(timer, lambda: clocks.compute(0.03), lambda: clocks.compute(next(steps)))
    assert timer.share() == pytest.approx(0.75)
    assert timer.speed() == pytest.approx(1 / 0.08)
    timer.start()
    epoch(timer, lambda: clocks.compute(0.02), lambda: clocks.compute(next(steps)))
    assert timer.speed() == pytest.approx(1 / 0.06)


def test_training_of_a_single_batch_has_its_speed(clocks: Clocks) -> None:
    timer = DataTimer(torch.device("cpu"), lambda: 0.0, clocks.monotonic)
    timer.fetch(lambda: clocks.compute(0.5), shared=False)
    assert timer.speed() == pytest.approx(1.0)


def test_decoder_in_other_threads_counts(clocks: Clocks) -> None:
    seconds = [0.0]
    timer = DataTimer(torch.device("cpu"), lambda: seconds[0])
    clocks.compute_elsewhere(0.05)
    seconds[0] += 0.05
    clocks.compute(0.05)
    assert timer.share() == pytest.approx(0.5)


def test_batches_that_others_take_too_have_no_share() -> None:
    timer = DataTimer(torch.device("cpu"), lambda: 0.0)
    timer.fetch(lambda: 1, shared=False)
    timer.fetch(lambda: 2, shared=True)
    timer.fetch(lambda: 3, shared=False)
    assert timer.share() is None
    timer.start()
    assert timer.share() is not None


def test_steps_are_queued_on_a_gpu_eight_ahead_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been copied to it leaves the page-locked memory only then."""
    reached: list[int] = []

    class Event:
        def __init__(self, number: int) -> None:
            self.number = number

        def synchronize(self) -> None:
            reached.append(self.number)

        def elapsed_time(self, _later: "Event") -> float:
            return 1.0

    numbers = itertools.count()
    monkeypatch.setattr(data_time, "_event", lambda: Event(next(numbers) // 2))
    timer = DataTimer(torch.device("cuda"), lambda: 0.0)
    timer.is_warm = True
    for batch in range(20):
        timer.fetch(lambda: None, shared=False)
        assert reached == list(range(batch - 7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_waits_only_for_batches_that_come_after_its_step() -> None:
    big = torch.randn(8192, 8192, device="cuda")

    def step() -> None:
        for _ in range(3):
            big @ big

    timer = DataTimer(torch.device("cuda"), lambda: 0.0)
    epoch(timer, lambda: None, step)
    quick = timer.share()
    timer.start()
    epoch(timer, lambda: time.sleep(1.0), step)
    slow = timer.share()
    assert quick is not None
    assert slow is not None
    assert quick < 0.1 < 0.5 < slow


def shares(ledger: Path, key: str) -> list[float | None]:
    rows = json.loads(Ledger(str(ledger)).read(f"trials/{key}/history.json") or b"[]")
    return [row.get("sys/data_share") for row in rows]


@pytest.mark.parametrize("reader", ["ffcv", "threads"])
def test_decoding_jpeg_is_counted_and_gathering_pixels_is_none(
    reader: str, data: Path, tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def timed(learner: Learner, images: Tensor, labels: Tensor) -> None:
        clocks.compute(1.0)  # all that this thread's clock counts; the decoder's threads have their own
        step(learner, images, labels)

    monkeypatch.setattr(Learner, "step", timed)
    trial = trial_of("All-CNN-B")
    for name, resident in (("decoded", 0), ("gathered", 2 << 30)):
        run_trial(trial, runtime_config(data, tmp_path / name, reader=reader, resident_bytes=resident), lambda *_: None)
    decoded, gathered = (shares(tmp_path / name, trial.key)[1:] for name in ("decoded", "gathered"))
    assert len(decoded) == 2
    assert all(share is not None and 0 < share < 1 for share in decoded)
    assert gathered == [0.0, 0.0]


def test_rows_of_a_pack_have_no_share_while_it_has_several_members(data: Path, tmp_path: Path) -> None:
    trials = [trial_of("allconv with dropout"), trial_of("allconv with dropout", "holdout")]
    news: list[Json] = []
    perform_pack(trials, runtime_config(data, tmp_path), news.append)
    rows = [event["row"] for event in news if "row" in event]
    assert len(rows) == 6
    assert "sys/data_share" not in rows[0]
    assert all(row["sys/cpu_cores"] > 0 < row["sys/memory_mib"] for row in rows)


def test_speed_is_of_the_steps_that_were_taken_since_the_start_but_for_the_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StepClock(monkeypatch)

    def speeds(here: RuntimeConfig, stop: Callable[[], bool] = lambda: False) -> list[float]:
        """Train by a clock that counts steps, to the pictures per second of the epochs."""
        rows: list[dict[str, float]] = []
        context = PackContext(clock=clock)
        drain(trial_steps(trial, here, lambda _, row: rows.append(row), stop, context))
        return [row["sys/images_per_s"] for row in rows]

    def kill() -> bool:
        if clock.taken == 5:
            raise Killed
        return False

    trial = trial_of("allconv with dropout")
    recipe = trial.recipe
    clock.first = 100
    assert speeds(runtime_config(data, tmp_path / "whole")) == [recipe.batch] * recipe.epochs
    clock.taken = 0
    steps = recipe.steps(dataset(SMALL).splits["train"] - dataset(SMALL).holdout)
    here = runtime_config(data, tmp_path, checkpoint_minutes=0.0)
    with pytest.raises(Killed):
        speeds(here, kill)
    saved = Ledger(here.ledger).names(f"checkpoints/{trial.key}")[-1]
    begun = int(saved.partition("-")[2].partition(".")[0])
    assert 0 < begun < steps
    assert speeds(here) == [recipe.batch] * recipe.epochs
