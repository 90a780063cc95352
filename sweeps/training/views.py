"""Views of a trial's pictures as its net sees them: augmented for training, centre and ten crops for evaluation.

Trials of a pack share a stream of batches. Each asks for a batch by all that decides its content, so what shares a
stream changes how long a batch takes and never what it holds.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice

import torch
from torch import Tensor
from torch.nn import functional

from crelu_data.augment import centre_view, mixed, mixing_shares, ten_views, training_view
from crelu_data.datasets import Ints, order
from crelu_data.load import Batch, Pictures
from sweeps.experiment.trial import Trial
from sweeps.training.distributed import Ranks
from sweeps.training.evaluate import BATCH
from sweeps.training.shared_batches import STEP, BatchStream, StreamKey, stream_key
from sweeps.training.splits import Splits

# Of a test picture that is stored larger than a net sees it: the centre, and ten crops.
TEST_VIEWS = 11
# Bytes of training views that are made at once of pictures on the device. A view is some sixty small operations; those
# of a GPU take longer to begin than to end on a single batch. A CPU makes them fastest where they stay in its cache.
VIEW_BYTES = {"cuda": 64 << 20, "cpu": 4 << 20}


@dataclass(frozen=True)
class Views:
    """Source of a trial's batches, for its rank, on its device."""

    trial: Trial
    splits: Splits
    stream: BatchStream
    ranks: Ranks
    device: torch.device

    @cached_property
    def key(self) -> StreamKey:
        """Return what decides the trial's batches."""
        return stream_key(self.trial)

    @cached_property
    def steps(self) -> int:
        """Return the steps of an epoch of training."""
        return self.trial.recipe.steps(len(self.splits.train_indices))

    def training(self, epoch: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's views of each batch of `epoch` from `step` on, with the labels of the whole batch."""
        for number in range(step, self.steps):
            yield self.stream.get((self.key, STEP, epoch), number, partial(self._training, epoch))

    def _training(self, epoch: int, step: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        recipe = self.trial.recipe
        train = self.splits.train
        sidecar = train.sidecar
        indices = order(self.trial.seed, epoch, self.splits.train_indices)[: self.steps * recipe.batch]
        rows = self.ranks.rows(min(recipe.batch, len(indices)))
        local = self.ranks.rows_of_batches(indices, recipe.batch)
        labels = torch.from_numpy(train.labels[indices]).to(self.device)
        count = rows.stop - rows.start
        number = step
        for block in train.batches(local[step * count :], count * self._steps_at_once(count)):
            views = training_view(
                block.images,
                block.ids,
                seed=self.trial.seed,
                epoch=epoch,
                crop=self.splits.facts.crop,
                flip=recipe.flip,
                shift=recipe.shift,
                lighting=recipe.lighting,
                resized_crop=recipe.resized_crop,
                rand_augment=recipe.rand_augment,
                rand_magnitude=recipe.rand_magnitude,
                mean=sidecar.mean,
                std=sidecar.std,
                eigenvalues=sidecar.eigenvalues,
                eigenvectors=sidecar.eigenvectors,
            )
            for view in torch.split(views, count):
                part = slice(number * recipe.batch, (number + 1) * recipe.batch)
                yield self._mixed(epoch, view, labels[part], indices[part]) if recipe.mixup else (view, labels[part])
                number += 1

    def _mixed(self, epoch: int, view: Tensor, labels: Tensor, indices: Ints) -> tuple[Tensor, Tensor]:
        """Return a batch mixed in pairs: this rank's views, and the shares of the classes of the whole batch."""
        seed = self.trial.seed
        alpha = self.trial.recipe.mixup
        shares = mixing_shares(torch.from_numpy(indices), seed=seed, epoch=epoch, alpha=alpha).to(self.device)
        classes = functional.one_hot(labels, self.splits.facts.classes).float()
        return mixed(view, shares[self.ranks.rows(len(shares))]), mixed(classes, shares)

    def _steps_at_once(self, count: int) -> int:
        """Return for how many steps of `count` pictures views are made at once, one where each batch is decoded.

        Lighting takes products of matrices, whose last bits may differ with the number of rows; so do resized crops on
        a GPU.
        """
        recipe = self.trial.recipe
        if not self.splits.train.resident or recipe.lighting or recipe.resized_crop:
            return 1
        return max(1, VIEW_BYTES[self.device.type] // (12 * count * self.splits.facts.crop**2))

    def evaluation(
        self, stage: int, epoch: int, pictures: Pictures, indices: Ints, number: int, views: int = 1
    ) -> tuple[Batch, Tensor]:
        """Return view `number` of an evaluation and its batch; every batch has `views` of them in turn.

        The first is the centre; the others are the four corners and the centre, each with its mirror image.
        """
        batches = partial(self._evaluation, pictures, indices, views)
        return self.stream.get((self.key, stage, epoch), number, batches)

    def _evaluation(
        self, pictures: Pictures, indices: Ints, views: int, start: int
    ) -> Generator[tuple[Batch, Tensor], None, None]:
        # Mean and deviation are those of the training pictures, for test pictures too.
        sidecar = self.splits.train.sidecar
        crop = self.splits.facts.crop
        first, skip = divmod(start, views)
        for batch in pictures.batches(indices, BATCH, start=first):
            centre = centre_view(batch.images, crop=crop, mean=sidecar.mean, std=sidecar.std)
            ten = ten_views(batch.images, crop=crop, mean=sidecar.mean, std=sidecar.std)
            for view in islice(chain([centre], ten), skip, views):
                yield batch, view
            skip = 0
