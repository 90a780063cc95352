"""The training loop, written out once. It knows torch, a net, a recipe, and batches; nothing else."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from crelu_models.modules import seed_dropout
from sweeps.evaluate import Errors, autocast, errors, misses
from sweeps.ranks import ALONE, Ranks
from sweeps.recipe import Recipe

# Steps between two looks at whether the loss is still a number: each look waits for the device.
LOOK = 100

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma and Ba, 2015

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h

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
        self.parts = 1
        self.epoch = self.step = 0
        self.device = next(model.parameters()).device
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        # Scores and labels whose errors are counted together: for a hundred steps that costs as much as for one.
        self.uncounted: list[tuple[Tensor, Tensor]] = []
        self.optimiser = Optimiser(recipe, list(model.parameters()))

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """Take one step on this rank's rows of float pictures (n, 3, h, w) and on labels (n,), in micro-batches."""
        recipe, batch, rows = self.recipe, len(labels), self.ranks.rows(len(labels))
        labels = labels[rows]
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        size = -(-len(images) // self.parts)
        for start in range(0, len(images), size):
            part, target = images[start : start + size], labels[start : start + size]
            seed_dropout(self.model, self.seed, self.epoch, self.step, rows.start + start, batch)
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
        self.optimiser.step(recipe.learning_rate(self.epoch, self.step, self.steps), recipe.decay(self.epoch))
        self.step += 1
        if self.step % LOOK == 0:
            self.look()

    def look(self) -> None:
        """Raise Diverged where the loss of this epoch is no number."""
        self._finite(self._total())

    def _total(self) -> Tensor:
        """Return the sums of this epoch over all ranks: of losses, wrong top-1, wrong top-5, pictures."""
        if self.uncounted:
            scores, labels = (torch.cat(each) for each in zip(*self.uncounted, strict=True))
            self.sums[1:3] += misses(scores, labels)
            self.uncounted.clear()
        return self.ranks.total(self.sums)

    def _finite(self, sums: Tensor) -> Tensor:
        if not torch.isfinite(sums[0]):
            raise Diverged(f"the training loss is not a number in epoch {self.epoch + 1}")
        return sums

    def end_epoch(self) -> Errors:
        """Move on to the next epoch and return the errors over this one's training batches."""
        sums = self._finite(self._total())
        average = errors(sums[:3], int(sums[3].item()))
        self.sums.zero_()
        self.epoch, self.step = self.epoch + 1, 0
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
        self.sums.copy_(tensors["sums"] if self.ranks.lead else torch.zeros(4))
        self.uncounted.clear()
        self.epoch, self.step = epoch, step


def train(learner: Learner, batches: Batches) -> Iterator[Errors | None]:
    """Train to the end of the recipe; yield None after each step and the training errors after each epoch.

    `batches(epoch, step)` gives an epoch's batches from `step` on. Between two yields nothing is half done: the
    caller may evaluate, save `learner.tensors()`, or leave for good. Raises Diverged.
    """
    while learner.epoch < learner.recipe.epochs:
        for images, labels in batches(learner.epoch, learner.step):
            learner.advance(images, labels)
            yield None
        yield learner.end_epoch()


def keep_memory() -> None:
    """Let this process keep the memory of tensors that are gone for the next ones, where its C library can.

    glibc maps each tensor of more than 32 MiB anew, and the system clears its pages one by one at the first touch: on a
    CPU a tenth of a training step, and several times what an activation itself costs.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_MAX, 0)
        set_option(_TRIM_THRESHOLD, (1 << 31) - 1)


class Optimiser:
    """SGD with momentum, or Adam, by torch's fused steps; weight decay is coupled, on biases too (Torch7's habit).

    `state` holds its tensors by name, one a parameter, from the first step on. torch.optim's own classes load torch's
    compiler, a second of every worker's start, and take longer to gather what a step is about than these tensors.
    """

    def __init__(self, recipe: Recipe, parameters: list[nn.Parameter]) -> None:
        """Prepare to step all `parameters`."""
        self.recipe, self.parameters = recipe, parameters
        self.state: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        """Move every parameter along its gradient, by this learning rate and weight decay."""
        parameters: list[Tensor] = [*self.parameters]
        gradients = [each.grad for each in parameters if each.grad is not None]
        assert len(gradients) == len(parameters), "every parameter has its part in the scores"
        if self.recipe.optimiser == "adam":
            self._adam(parameters, gradients, rate, decay)
        else:
            self._sgd(parameters, gradients, rate, decay)

    def _adam(self, parameters: list[Tensor], gradients: list[Tensor], rate: float, decay: float) -> None:
        if not self.state:
            self.state["step"] = [torch.zeros((), device=each.device) for each in parameters]
            self.state |= {name: [torch.zeros_like(each) for each in parameters] for name in ("exp_avg", "exp_avg_sq")}
        steps, means, squares = self.state["step"], self.state["exp_avg"], self.state["exp_avg_sq"]
        adam(
            parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False, beta1=BETAS[0],
            beta2=BETAS[1], lr=rate, weight_decay=decay, eps=EPSILON, maximize=False,
        )  # fmt: skip

    def _sgd(self, parameters: list[Tensor], gradients: list[Tensor], rate: float, decay: float) -> None:
        # Without buffers this is the first step, which begins them with the gradients.
        buffers: list[Tensor | None] = [*self.state.get("momentum_buffer", [None] * len(parameters))]
        sgd(
            parameters, gradients, buffers, fused=True, weight_decay=decay, momentum=self.recipe.momentum, lr=rate,
            dampening=self.recipe.dampening, nesterov=False, maximize=False,
        )  # fmt: skip
        if self.recipe.momentum:
            self.state["momentum_buffer"] = [each for each in buffers if each is not None]

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the tensors of a checkpoint, by index/name; buffers take their parameter's layout."""
        names = sorted({name.partition("/")[2] for name in tensors})
        self.state = {name: [] for name in names}
        for name in names:
            for index, parameter in enumerate(self.parameters):
                value = tensors[f"{index}/{name}"]
                same = value.shape == parameter.shape  # Adam's count of steps is a scalar
                there = torch.empty_like(parameter).copy_(value) if same else value.to(parameter.device)
                self.state[name].append(there.detach())
