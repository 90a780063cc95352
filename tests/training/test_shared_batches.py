"""A trial's batches are its own, whatever else takes batches from the same stream."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crelu_data.write import prepare
from sweeps.training import run_trial
from sweeps.training.distributed import ALONE
from sweeps.training.gpu.graphs import open_streams
from sweeps.training.shared_batches import HELD_OUT, PROBE, BatchStream, OneStream, T
from sweeps.training.splits import open_splits
from sweeps.training.views import Views
from tests.support.trials import SMALL, runtime_config, trial_of


def test_trials_of_other_seeds_on_one_stream_get_their_own_batches(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path)
    config = runtime_config(tmp_path, tmp_path)
    device = torch.device("cpu")
    first = trial_of("VGG with batch norm", "holdout")
    trials = [first, dataclasses.replace(first, seed=first.seed + 1)]
    alone = [Views(trial, open_splits(trial, config), BatchStream(), ALONE, device) for trial in trials]
    stream = BatchStream()
    together = [Views(trial, open_splits(trial, config), stream, ALONE, device) for trial in trials]

    # Steps of an epoch, in turn: each has the batches that it has alone, and they are not those of the other.
    rounds = list(zip(*(views.training(1, 0) for views in [*alone, *together]), strict=True))
    assert len(rounds) == alone[0].steps > 1
    for pair, other, shared_pair, shared_other in rounds:
        assert torch.equal(pair[0], shared_pair[0])
        assert torch.equal(pair[1], shared_pair[1])
        assert torch.equal(other[0], shared_other[0])
        assert not torch.equal(pair[0], other[0])

    # Evaluations of other pictures at the same place of the same epoch.
    splits = together[0].splits
    held_out, view = together[0].evaluation(HELD_OUT, 1, splits.train, splits.val_indices, 0)
    probe, other_view = together[0].evaluation(PROBE, 1, splits.train, splits.probe_indices, 0)
    assert held_out.ids.tolist() == splits.val_indices.tolist()
    assert probe.ids.tolist() == splits.probe_indices.tolist()
    assert not torch.equal(view[: len(other_view)], other_view[: len(view)])


def test_a_trial_alone_has_its_batches_made_on_the_streams_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they are copied and augmented while the step before is taken."""
    prepare(SMALL, tmp_path)
    trial = trial_of("allconv with dropout", "holdout")
    opened: list[torch.device] = []
    steps: list[str] = []

    class Noted(OneStream):
        def make(self, source: object, batch: Callable[[], T]) -> T:
            steps.append("make")
            return super().make(source, batch)

        def give(self, source: object, batch: object) -> None:
            steps.append("give")

    monkeypatch.setattr(run_trial, "open_streams", lambda device: opened.append(device) or Noted())
    assert run_trial.run_trial(trial, runtime_config(tmp_path, tmp_path / "a"), lambda *_: None) is not None
    assert opened == [torch.device("cpu")]
    assert len(steps) > 2 * trial.recipe.epochs
    assert steps == ["make", "give"] * (len(steps) // 2)


def test_a_cpu_has_one_stream() -> None:
    assert type(open_streams(torch.device("cpu"))) is OneStream
