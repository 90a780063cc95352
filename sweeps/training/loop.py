"""Training loop, written out once. It knows torch, a net, a recipe and batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from crelu_models.draws import Draws
from crelu_models.dropout import dropout_generators, renew_generators, seed_dropout
from crelu_models.spec import seed_from
from crelu_models.tensors import full_state, load_full_state
from sweeps.experiment.recipe import Recipe
from sweeps.training.distributed import ALONE, NoBatchNorm, Ranks, constant_buffers
from sweeps.training.evaluate import Errors, autocast, autocast_type, errors, misses, score
from sweeps.training.gpu.casts import CastNet
from sweeps.training.gpu.compiled import Compiled
from sweeps.training.gpu.graphs import Call, Graphs
from sweeps.training.gpu.race import Race
from sweeps.training.optim import Optimiser

# Steps between two checks that the loss is finite: each waits for the device.
FINITE_CHECK_STEPS = 100

# From (epoch, step) to the batches of that epoch from that step on: float views of this rank's rows (n, 3, h, w), and
# the labels of the whole batch (n,), or its shares of the classes (n, c) where pictures are mixed.
Batches = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]


class DivergedError(Exception):
    """The loss of a training is not finite."""

    ending = "diverged"


class DeadError(DivergedError):
    """The net of a training gives all pictures the same class, or has the loss of guessing, and learns no more."""

    ending = "dead"


# Endings of trainings that came to nothing: their numbers are those of guessing.
LOST = (DivergedError.ending, DeadError.ending)


class Learner:
    """Net in training: weights, optimiser and position, all of them in `tensors`, `epoch` and `step_count`.

    Each of several `ranks` has a learner, and all call the same methods in the same order.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        seed: int,
        steps: int,
        precision: str,
        ranks: Ranks = ALONE,
        graphs: Graphs | None = None,
        foreign: bool = False,
        compiles: bool = False,
    ) -> None:
        """Begin at epoch 0, step 0 of `steps` per epoch; `model` is initialised and on its device.

        Steps and scores are replayed from `graphs` where these can record; with `compiles` the net of the steps is
        compiled where that makes them faster. A `foreign` model may draw randomness besides dropout.
        """
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.steps = steps
        self.precision = precision
        self.ranks = ranks
        self.graphs = graphs or Graphs(None)
        self.micro_batches = 1
        # Norm of the last step's gradient before clipping, where the recipe clips or `measures_norm` is set.
        self.measures_norm = False
        self.gradient_norm: Tensor | None = None
        self.epoch = 0
        self.step_count = 0
        self.device = next(model.parameters()).device
        # Of this epoch and rank: losses, wrong top-1, wrong top-5, pictures.
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        # Scores and labels whose errors are counted together: for a hundred steps that costs as much as for one.
        self.uncounted: list[tuple[Tensor, Tensor]] = []
        # Learning rate of a step: recordings read it. A GPU's fused optimisers take no other type.
        self.rate = torch.zeros((), dtype=torch.float32 if self.device.type == "cuda" else torch.float64)
        self.rate = self.rate.to(self.device)
        can_record = self.graphs.recorder is not None
        # Of a step that may be recorded: the net, and where it races the net that is compiled.
        self.net = CastNet(model, autocast_type(precision) if can_record else None)
        self.compiled: CastNet | None = None
        self.race = Race(self.graphs, self._whole_step, self._compiled_step) if compiles and can_record else None
        self.optimiser = Optimiser(recipe, [value for value in model.parameters() if value.requires_grad])
        self.draws = Draws(seed, self.device) if foreign else None
        self.is_watched = False  # for batch norm by function, and for buffers that a part of a batch changes
        self.is_compared = False  # between ranks, after a step
        # Net with the average of the weights after each step; it is the one that is evaluated, where a recipe has it.
        self.averaged = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None

    @property
    def evaluated(self) -> nn.Module:
        """Return the net that is evaluated: the one in training, or that with the averaged weights."""
        return self.model if self.averaged is None else self.averaged

    @torch.no_grad()
    def _average(self, share: float) -> None:
        """Move the averaged weights by this share towards the present ones; statistics of batch norm are copied."""
        if self.averaged is None:
            return
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), share)
        for average, value in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            average.copy_(value)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take a step on this rank's pictures (n, 3, h, w) of a batch with these labels, in micro-batches."""
        recipe = self.recipe
        batch = len(labels)
        rows = self.ranks.rows(batch)
        labels = labels[rows]
        self.model.train()
        self.rate.fill_(recipe.learning_rate(self.epoch, self.step_count, self.steps))
        if self.graphs.recorder is not None and self.micro_batches == 1:
            take = partial(self._take, images, labels)
            if self.race is not None and batch == recipe.batch:
                scores = self.race.take(take, self._remaining(batch))
            else:
                scores = take(self._whole_step)
            self.uncounted.append((scores, labels))
        else:
            self.model.zero_grad(set_to_none=True)
            size = -(-len(images) // self.micro_batches)
            for start in range(0, len(images), size):
                part = images[start : start + size]
                target = labels[start : start + size]
                first = rows.start + start
                seed_dropout(self.model, self.seed, self.epoch, self.step_count, first, batch, len(part))
                with self._drawing(first, len(part) < batch), self._normalising(len(part) < batch):
                    self.uncounted.append((self._add_gradients(part, target, batch, self.model), target))
            self.ranks.sum_gradients(self.model)
            self._update()
        if not self.is_compared:
            self._compare_ranks()
        self._average(1 - recipe.ema if self.epoch or self.step_count else 1.0)
        self.step_count += 1
        if self.step_count % FINITE_CHECK_STEPS == 0:
            self.check_finite()

    def _compare_ranks(self) -> None:
        """Raise ValueError where the ranks of a foreign model have come to hold other buffers."""
        self.is_compared = True
        if self.draws is not None:
            self.ranks.compare_buffers(self.model)

    def _remaining(self, batch: int) -> int:
        """Return how many steps on a batch of this size are to come: an epoch has one shorter than the others."""
        epochs = self.recipe.epochs - self.epoch
        return epochs * self.steps - self.step_count if batch == self.recipe.batch else epochs

    def _take(self, images: Tensor, labels: Tensor, form: Call) -> Tensor:
        """Take a step by one form of it, replayed from a graph where that pays; return the scores."""
        seed_dropout(self.model, self.seed, self.epoch, self.step_count, 0, len(labels))
        scores = self.graphs.call(
            form,
            images,
            labels,
            remaining=self._remaining(len(labels)),
            constants=self.recipe.decay(self.epoch),
            generators=dropout_generators(self.model),
            renew=partial(renew_generators, self.model),
            optional=form == self._compiled_step,
        )
        assert scores is not None
        return scores

    def _whole_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take a step in one part and return the scores; all that changes between two steps is in tensors."""
        return self._step_by(self.net, images, labels)

    def _compiled_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take the same step by the net that is compiled."""
        if self.compiled is None:
            self.compiled = CastNet(Compiled(self.model), autocast_type(self.precision))
        return self._step_by(self.compiled, images, labels)

    def _step_by(self, net: CastNet, images: Tensor, labels: Tensor) -> Tensor:
        """Take a step by one form of the net."""
        self.model.zero_grad(set_to_none=True)
        scores = self._add_gradients(images, labels, len(labels), net)
        net.give_gradients()
        self._update()
        return scores

    def _add_gradients(self, images: Tensor, labels: Tensor, batch: int, net: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the gradients of these pictures' share of the mean cross-entropy over a batch; return the scores."""
        with autocast(self.precision, self.device):
            scores = net(images)
        smoothing = self.recipe.label_smoothing
        loss = functional.cross_entropy(scores.float(), labels, reduction="sum", label_smoothing=smoothing)
        (loss / batch).backward()  # type: ignore[no-untyped-call]
        self.sums[0] += loss.detach()
        self.sums[3] += len(images)
        return scores.detach()

    def _update(self) -> None:
        """Move the weights along the gradients, cut where the recipe says."""
        recipe = self.recipe
        for value in self.optimiser.parameters:  # a part that this step left out learns nothing from it
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        if recipe.clip_norm or self.measures_norm:
            gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
            self.gradient_norm = nn.utils.get_total_norm(gradients)
            if recipe.clip_norm:
                nn.utils.clip_grads_with_norm_(self.model.parameters(), recipe.clip_norm, self.gradient_norm)
        self.optimiser.step(self.rate, recipe.decay(self.epoch))

    def scores(self, view: Tensor, remaining: int, stage: int = 0, number: int = 0) -> Tensor:
        """Return the class scores (n, c) of float pictures in evaluation mode; `remaining` such calls are to come.

        What a foreign model draws is keyed by the epoch and by the `number` of the view in a `stage` of evaluation.
        """
        self.evaluated.eval()
        with self._drawing_scores(stage, number):
            scores = self.graphs.call(self._scores, view, remaining=remaining)
        assert scores is not None
        return scores

    def _scores(self, view: Tensor) -> Tensor:
        """Return the scores of one batch."""
        (scores,) = score(self.evaluated, [view], self.precision)
        return scores

    def _drawing(self, first: int, is_part: bool) -> AbstractContextManager[object]:
        """Return the context of a forward pass, in which a foreign model's own draws are keyed and watched."""
        if self.draws is None:
            return nullcontext()
        return self.draws.keyed(self.epoch, self.step_count, first, is_part)

    def _drawing_scores(self, stage: int, number: int) -> AbstractContextManager[object]:
        """Return the context of an evaluation, in which a foreign model's own draws and its dropout are keyed."""
        if self.draws is None:
            return nullcontext()
        seed_dropout(self.evaluated, seed_from("scores", self.seed, stage, number), self.epoch, 0)
        return self.draws.keyed_scores(self.epoch, stage, number)

    def _normalising(self, is_part: bool) -> AbstractContextManager[object]:
        """Return the context of a forward pass; the first of a foreign model on a part of a batch is watched."""
        if self.draws is None or self.is_watched or not is_part:
            return nullcontext()
        self.is_watched = True
        watches = ExitStack()
        if self.micro_batches > 1:
            watches.enter_context(constant_buffers(self.model))
        watches.enter_context(NoBatchNorm())
        return watches

    @property
    def steps_by(self) -> str:
        """Return how steps were taken, for the record of a trial."""
        mode = self.graphs.mode(self._whole_step)
        return f"{mode}; {self.race.verdict}" if self.race is not None and self.race.verdict else mode

    @property
    def unkeyed(self) -> str:
        """Return what the model has drawn that no key decides, as a sentence; empty for nothing."""
        return self.draws.unkeyed if self.draws is not None else ""

    def check_finite(self) -> Tensor:
        """Return the sums of this epoch over all ranks; DivergedError where the loss is not finite."""
        sums = self._total()
        if not torch.isfinite(sums[0]):
            raise DivergedError(f"the training loss is not a number in epoch {self.epoch + 1}")
        return sums

    def _total(self) -> Tensor:
        """Return the sums of this epoch over all ranks, after counting the errors of recent steps."""
        if self.uncounted:
            scores, labels = (torch.cat(parts) for parts in zip(*self.uncounted, strict=True))
            self.sums[1:3] += misses(scores, labels)
            self.uncounted.clear()
        return self.ranks.all_reduce_sum(self.sums)

    def end_epoch(self) -> Errors:
        """Move to the next epoch and return the errors over the training batches of this one."""
        sums = self.check_finite()
        self._compare_ranks()  # a buffer may change in later steps only
        average = errors(sums[:3], int(sums[3].item()))
        self.sums.zero_()
        self.epoch += 1
        self.step_count = 0
        return average

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed training needs, by name; not copies."""
        state = {f"model/{name}": tensor for name, tensor in full_state(self.model).items()}
        for name, values in self.optimiser.state.items():
            state |= {f"optimiser/{index}/{name}": value for index, value in enumerate(values)}
        if self.averaged is not None:
            state |= {f"averaged/{name}": value for name, value in self.averaged.named_parameters()}
        return state | {"sums": self._total()}

    def restore(self, tensors: Mapping[str, Tensor], epoch: int, step: int) -> None:
        """Continue from `tensors` at (`epoch`, `step`); ValueError where they are of another net."""
        try:
            load_full_state(self.model, _under("model/", tensors))
        except RuntimeError as error:
            raise ValueError(f"this checkpoint is of another net: {error}") from None
        self.optimiser.restore(_under("optimiser/", tensors))
        if self.averaged is not None:
            # Weights that are tied have several names in a state, and are saved under the first of them.
            load_full_state(self.averaged, full_state(self.model))
            weights = dict(self.averaged.named_parameters())
            with torch.no_grad():
                for name, value in _under("averaged/", tensors).items():
                    weights[name].copy_(value)
        self.graphs.clear()  # they read the buffers of before
        # The saved sums are those of all ranks.
        self.sums.copy_(tensors["sums"] if self.ranks.is_rank0 else torch.zeros(4))
        self.uncounted.clear()
        self.epoch = epoch
        self.step_count = step


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def train(learner: Learner, batches: Batches) -> Iterator[Errors | None]:
    """Train to the end of the recipe; yield None after each step and the training errors after each epoch.

    At each yield the state is consistent: the caller may evaluate, save `learner.tensors()`, or stop. Raises
    DivergedError.
    """
    while learner.epoch < learner.recipe.epochs:
        for images, labels in batches(learner.epoch, learner.step_count):
            learner.step(images, labels)
            yield None
        yield learner.end_epoch()
