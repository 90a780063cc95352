"""The share of an epoch's time that its batches take, by processor time: a busy host changes it little."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crelu_data.datasets import dataset
from sweeps.execution.pack import perform_pack
from sweeps.store.checkpoint_header import progress
from sweeps.store.ledger import Json, Ledger
from sweeps.training.data_time import DataTimer
from sweeps.training.run_trial import run_trial
from tests.support.trials import SMALL, Killed, runtime_config, trial_of


def compute(seconds: float) -> None:
    """Use the processor for so many seconds of its time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def epoch(timer: DataTimer, get: Callable[[], object], step: Callable[[], object], shared: bool = False) -> None:
    for _ in range(5):
        timer.fetch(get, shared)
        step()


def test_share_is_the_batches_part_of_processor_time() -> None:
    timer = DataTimer(torch.device("cpu"), lambda: 0.0)
    epoch(timer, lambda: compute(0.03), lambda: compute(0.01))
    assert timer.share() == pytest.approx(0.75, abs=0.05)
    timer.start()
    epoch(timer, lambda: None, lambda: compute(0.01))
    assert timer.share() == pytest.approx(0.0, abs=0.02)
    timer.start()
    # To wait uses no processor, and says nothing of what a pack saves.
    epoch(timer, lambda: time.sleep(0.03), lambda: compute(0.01))
    assert timer.share() == pytest.approx(0.0, abs=0.1)


def test_first_step_of_a_process_which_compiles_kernels_is_not_counted() -> None:
    timer = DataTimer(torch.device("cpu"), lambda: 0.0)
    steps = iter([0.2, *[0.01] * 9])
    epoch(timer, lambda: compute(0.03), lambda: compute(next(steps)))
    assert timer.share() == pytest.approx(0.75, abs=0.05)
    assert timer.batches == 5


def test_decoder_in_other_threads_counts() -> None:
    seconds = [0.0]

    def decode() -> None:
        began = time.thread_time()
        compute(0.05)
        seconds[0] += time.thread_time() - began

    timer = DataTimer(torch.device("cpu"), lambda: seconds[0])
    thread = threading.Thread(target=decode)
    thread.start()
    compute(0.05)
    thread.join()
    assert timer.share() == pytest.approx(0.5, abs=0.05)


def test_batches_that_others_take_too_have_no_share() -> None:
    timer = DataTimer(torch.device("cpu"), lambda: 0.0)
    timer.fetch(lambda: 1, shared=False)
    timer.fetch(lambda: 2, shared=True)
    timer.fetch(lambda: 3, shared=False)
    assert timer.share() is None
    timer.start()
    assert timer.share() is not None


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
def test_decoding_jpeg_takes_more_of_an_epoch_than_gathering_pixels(reader: str, data: Path, tmp_path: Path) -> None:
    trial = trial_of("All-CNN-B")
    for name, resident in (("decoded", 0), ("gathered", 2 << 30)):
        run_trial(trial, runtime_config(data, tmp_path / name, reader=reader, resident_bytes=resident), lambda *_: None)
    decoded, gathered = (shares(tmp_path / name, trial.key)[1:] for name in ("decoded", "gathered"))
    assert len(decoded) == 2
    for decode_share, gather_share in zip(decoded, gathered, strict=True):
        assert decode_share is not None
        assert gather_share is not None
        assert 0 < gather_share < decode_share < 1


def test_rows_of_a_pack_have_no_share_while_it_has_several_members(data: Path, tmp_path: Path) -> None:
    trials = [trial_of("allconv with dropout"), trial_of("allconv with dropout", "holdout")]
    news: list[Json] = []
    perform_pack(trials, runtime_config(data, tmp_path), news.append)
    rows = [event["row"] for event in news if "row" in event]
    assert len(rows) == 6
    assert "sys/data_share" not in rows[0]


def test_speed_of_a_resumed_epoch_is_of_the_steps_that_were_taken_since(data: Path, tmp_path: Path) -> None:
    trial = trial_of("allconv with dropout")
    steps = iter(range(4))

    def kill() -> bool:
        if next(steps, None) is None:
            raise Killed
        return False

    here = runtime_config(data, tmp_path, checkpoint_minutes=0.0)
    with pytest.raises(Killed):
        run_trial(trial, here, lambda *_: None, kill)
    (*_, saved) = Ledger(here.ledger).names(f"checkpoints/{trial.key}")
    before = float((progress(Ledger(here.ledger), trial.key) or {})["seconds"])
    taken = int(saved.partition("-")[2].partition(".")[0])
    rows: list[dict[str, float]] = []
    result = run_trial(trial, here, lambda _, row: rows.append(row))
    assert result is not None
    steps_of_epoch = trial.cell.recipe.steps(dataset(SMALL).splits["train"] - dataset(SMALL).holdout)
    batch = 16
    later = sum(steps_of_epoch * batch / row["sys/images_per_s"] for row in rows[1:])
    first = (result["seconds"] - before - later) * rows[0]["sys/images_per_s"]
    assert 0 < taken < steps_of_epoch
    assert before > 0
    assert first == pytest.approx((steps_of_epoch - taken) * batch, rel=0.3)  # saves take time too
