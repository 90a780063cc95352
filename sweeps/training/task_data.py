"""Pictures of a trial as a training function gets them: a torch data set for each part, arrays, and our batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from crelu_data.augment import centre_view
from crelu_data.datasets import Ints
from crelu_data.load import Pictures
from sweeps.experiment.trial import PHASES, Trial
from sweeps.training.distributed import ALONE
from sweeps.training.evaluate import BATCH
from sweeps.training.shared_batches import BatchStream
from sweeps.training.splits import Splits
from sweeps.training.views import Views


class DataPart(Dataset[tuple[Tensor, int]]):
    """One part of a trial's pictures, as a torch data set of (uint8 picture (3, h, w), label).

    A picture is decoded by the process that asks for it, so that a DataLoader's workers may share a part.
    """

    def __init__(self, pictures: Pictures, indices: Ints, splits: Splits, alive: Callable[[], object]) -> None:
        """Take the pictures with these record numbers; `alive` is called before each batch."""
        self._pictures = pictures
        self._splits = splits
        self._alive = alive
        self.indices = indices
        self.labels: Ints = pictures.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        """Return a picture (3, h, w) and its label."""
        pixels = torch.from_numpy(self._pictures.picture(int(self.indices[number])))
        return pixels.permute(2, 0, 1), int(self.labels[number])

    def arrays(self) -> tuple[NDArray[np.uint8], Ints]:
        """Return all pictures (n, 3, h, w) and their labels (n,)."""
        batches = [batch.images.cpu().numpy() for batch in self._pictures.batches(self.indices, BATCH)]
        return np.concatenate(batches), self.labels

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield centre views (n, 3, crop, crop), normalised, with their labels (n,), in order and on the device."""
        sidecar = self._splits.train.sidecar
        for batch in self._pictures.batches(self.indices, size):
            self._alive()
            views = centre_view(batch.images, crop=self._splits.facts.crop, mean=sidecar.mean, std=sidecar.std)
            yield views, batch.labels


class TaskData:
    """Pictures of a trial for a training function: `train`, `held_out`, and `test` where the phase may open it."""

    def __init__(
        self,
        trial: Trial,
        splits: Splits,
        device: torch.device,
        alive: Callable[[], object],
        before_step: Callable[[int, int], None],
    ) -> None:
        """Divide the pictures as the trial's phase does; `before_step(epoch, step)` is called before each batch."""
        self._trial = trial
        self._splits = splits
        self._device = device
        self._alive = alive
        self._before_step = before_step
        facts = splits.facts
        self.classes = facts.classes
        self.size = facts.size
        self.crop = facts.crop
        self.mean, self.std = splits.train.sidecar.mean, splits.train.sidecar.std
        self.train = DataPart(splits.train, splits.train_indices, splits, alive)
        self.held_out = DataPart(splits.train, splits.val_indices, splits, alive)

    @property
    def has_test(self) -> bool:
        """Return whether this training may open the test set; a trial of a search may not."""
        return PHASES[self._trial.phase].test

    @property
    def test(self) -> DataPart:
        """Return the test set; ValueError in a training that chooses."""
        test = self._splits.test
        if test is None:
            raise ValueError(
                f"the test set is closed in a training of phase {self._trial.phase!r}, by which a search chooses: "
                f"ask data.has_test before data.test"
            )
        return DataPart(test, np.arange(len(test), dtype=np.int64), self._splits, self._alive)

    @property
    def steps(self) -> int:
        """Return how many batches an epoch of `batches` has."""
        return self._trial.recipe.steps(len(self._splits.train_indices))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the augmented training views (n, 3, crop, crop) and labels (n,) of an epoch, from batch `start` on.

        Order and augmentation are the recipe's, keyed by seed, epoch and picture: an epoch is the same on any host.
        """
        stream = BatchStream()
        views: Any = Views(self._trial, self._splits, stream, ALONE, self._device)
        try:
            for step, batch in enumerate(views.training(epoch, start), start):
                self._alive()
                self._before_step(epoch, step)
                yield batch
        finally:
            stream.close()
