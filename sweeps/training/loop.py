"""The training loop, written out once. It knows torch, a net, a recipe, and batches; nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from crelu_models.modules import seed_dropout
from sweeps.experiment.recipe import Recipe
from sweeps.training.distributed import ALONE, Ranks
from sweeps.training.evaluate import Errors, autocast, errors, misses
from sweeps.training.optim import Optimiser

# Steps between two looks at whether the loss is still a number: each look waits for the device.
FINITE_CHECK_STEPS = 100


Batches = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]


class Diverged(Exception):
    """The loss of a training is no longer a number."""


class Learner:
    """One net while it learns: weights, optimiser and position, all of it in `tensors` and `position`.

    With several `ranks` each has a learner, and all call the same methods in the same order.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, *, seed: int, steps: int, precision: str, ranks: Ranks = ALONE
    ) -> None:
        """Begin at epoch 0, step 0 of `steps` an epoch; `model` is already initialised and on its device."""
        self.model, self.recipe, self.seed, self.steps, self.precision = model, recipe, seed, steps, precision
        self.ranks = ranks
        self.micro_batches = 1
        self.epoch = self.step_count = 0
        self.device = next(model.parameters()).device
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        # Scores and labels whose errors are counted together: for a hundred steps that costs as much as for one.
        self.uncounted: list[tuple[Tensor, Tensor]] = []
        self.optimiser = Optimiser(recipe, list(model.parameters()))

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step on this rank's rows of float pictures (n, 3, h, w) and on labels (n,), in micro-batches."""
        recipe, batch, rows = self.recipe, len(labels), self.ranks.rows(len(labels))
        labels = labels[rows]
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        size = -(-len(images) // self.micro_batches)
        for start in range(0, len(images), size):
            part, target = images[start : start + size], labels[start : start + size]
            seed_dropout(self.model, self.seed, self.epoch, self.step_count, rows.start + start, batch)
            with autocast(self.precision, self.device):
                scores = self.model(part)
            loss = functional.cross_entropy(scores.float(), target, reduction="sum")
            (loss / batch).backward()  # type: ignore[no-untyped-call]
            self.sums[0] += loss.detach()
            self.uncounted.append((scores.detach(), target))
        self.sums[3] += len(images)
        self.ranks.sum_gradients(self.model)
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimiser.step(recipe.learning_rate(self.epoch, self.step_count, self.steps), recipe.decay(self.epoch))
        self.step_count += 1
        if self.step_count % FINITE_CHECK_STEPS == 0:
            self.check_finite()

    def check_finite(self) -> None:
        """Raise Diverged where the loss of this epoch is no number."""
        self._finite(self._total())

    def _total(self) -> Tensor:
        """Return the sums of this epoch over all ranks: of losses, wrong top-1, wrong top-5, pictures."""
        if self.uncounted:
            scores, labels = (torch.cat(each) for each in zip(*self.uncounted, strict=True))
            self.sums[1:3] += misses(scores, labels)
            self.uncounted.clear()
        return self.ranks.all_reduce_sum(self.sums)

    def _finite(self, sums: Tensor) -> Tensor:
        if not torch.isfinite(sums[0]):
            raise Diverged(f"the training loss is not a number in epoch {self.epoch + 1}")
        return sums

    def end_epoch(self) -> Errors:
        """Move on to the next epoch and return the errors over this one's training batches."""
        sums = self._finite(self._total())
        average = errors(sums[:3], int(sums[3].item()))
        self.sums.zero_()
        self.epoch, self.step_count = self.epoch + 1, 0
        return average

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors a resumed training needs, by name; not copies."""
        state = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, values in self.optimiser.state.items():
            state |= {f"optimiser/{index}/{name}": value for index, value in enumerate(values)}
        return state | {"sums": self._total()}

    def restore(self, tensors: Mapping[str, Tensor], epoch: int, step: int) -> None:
        """Continue from `tensors` at (`epoch`, `step`); ValueError where they are not of this net and recipe."""
        model = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        try:
            self.model.load_state_dict(model)
        except RuntimeError as error:
            raise ValueError(f"this checkpoint is of another net: {error}") from None
        self.optimiser.restore(
            {name.removeprefix("optimiser/"): value for name, value in tensors.items() if name.startswith("optimiser/")}
        )
        self.sums.copy_(tensors["sums"] if self.ranks.is_rank0 else torch.zeros(4))
        self.uncounted.clear()
        self.epoch, self.step_count = epoch, step


def train(learner: Learner, batches: Batches) -> Iterator[Errors | None]:
    """Train to the end of the recipe; yield None after each step and the training errors after each epoch.

    `batches(epoch, step)` gives an epoch's batches from `step` on. Between two yields nothing is half done: the
    caller may evaluate, save `learner.tensors()`, or leave for good. Raises Diverged.
    """
    while learner.epoch < learner.recipe.epochs:
        for images, labels in batches(learner.epoch, learner.step_count):
            learner.step(images, labels)
            yield None
        yield learner.end_epoch()
