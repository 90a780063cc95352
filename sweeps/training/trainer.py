"""A trial on its way from its first step to its last: what it has learned, measured and suffered so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from crelu_models.modules import build, initialise
from data.augment import centre_view, ten_views, training_view
from data.datasets import order
from data.load import Batch, Pictures
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.trial import PHASES, Trial
from sweeps.store import checkpoint
from sweeps.store.ledger import Ledger, with_room
from sweeps.training.data_time import DataTimer
from sweeps.training.distributed import Ranks
from sweeps.training.evaluate import BATCH, Errors, counts, dead, errors, precision_of, score
from sweeps.training.loop import Diverged, Learner, train
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import HELD_OUT, PROBE, STEP, PackContext, Position, Steps
from sweeps.training.splits import Indices, Splits

# Two epochs at the loss of chance are a dead net where they are hundreds of steps; fewer steps are a slow start.
SLOW_START = 400
# A checkpoint follows an epoch that comes this many times its own time after the one before. Where epochs are shorter
# than that, some go without: what a kill then costs is seconds, and saving takes about a hundredth of a trial.
SAVING_INTERVAL = 100

Report = Callable[[int, dict[str, float]], None]


class Trainer:
    """A trial on its way: learner, history and what happened to it; all of it survives in its checkpoint.

    With several ranks each has its course, and all take the same turns; the ledger is rank 0's.
    """

    def __init__(
        self,
        trial: Trial,
        place: RuntimeConfig,
        ledger: Ledger,
        sets: Splits,
        stop: Callable[[], bool],
        company: PackContext,
        ranks: Ranks,
    ) -> None:
        """Begin anew, or continue from the newest whole checkpoint; `stop()` says, to rank 0, when to leave.

        ValueError where a batch has fewer pictures than there are ranks.
        """
        self.trial, self.config, self.ledger, self.splits, self.stop = trial, place, ledger, sets, stop
        self.context, self.ranks = company, ranks
        trial.cell.recipe.shared(len(sets.train_indices), ranks.size)
        self.device = torch.device(place.device)
        self.data_timer = DataTimer(self.device, lambda: sets.train.decode_seconds)
        self.precision = precision_of(trial.cell.recipe.precision, self.device)
        self.phase = PHASES[trial.phase]
        self.target = _target(trial, ledger)
        self.micro_batches = 1
        self._load_checkpoint()

    def _load_checkpoint(self) -> None:
        """Take up the state of the newest whole checkpoint, or the initial one."""
        self.history: list[dict[str, float]] = []
        self.events: list[str] = []
        self.best: dict[str, Tensor] = {}
        self.restarts, self.seconds, self.flat, self.ending = 0, 0.0, 0, ""
        self.unsaved: list[dict[str, float]] = []  # rows of the history that no checkpoint holds yet
        self.saved_at, self.saving = time.monotonic(), 0.0
        saved, told = self.ranks.broadcast_from_rank0(self._newest_checkpoint)
        if saved is not None:
            state = saved.state
            self.history, self.events, self.ending = state["history"], state["events"], state["ending"]
            self.restarts, self.seconds, self.flat = state["restarts"], state["seconds"], state["flat"]
            self.micro_batches = max(self.micro_batches, state["parts"])
        self.events += told
        self.learner = self._learner()
        if saved is not None:
            self.learner.restore(saved.tensors, saved.state["epoch"], saved.state["step"])
            self.best = {name[5:]: value for name, value in saved.tensors.items() if name.startswith("best/")}

    def _newest_checkpoint(self) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """Return the newest checkpoint that can be gone on from, and what became of others."""
        saved, damaged = checkpoint.load(self.ledger, self.trial.key)
        told = [f"checkpoint {name} was damaged; the one before it was taken" for name in damaged]
        for name in damaged:
            self.ledger.delete(f"checkpoints/{self.trial.key}/{name}")
        if saved is not None and saved.state.get("code") != code_fingerprint(self.trial.cell.net):
            # Half a training by other code would be a result of neither.
            self.ledger.delete(f"checkpoints/{self.trial.key}")
            told.append(f"the code has changed since epoch {saved.state['epoch']}; begun anew")
            saved = None
        return saved, told

    def _learner(self) -> Learner:
        """Return the net at its initial weights, with this attempt's seed, on its device."""
        cell, seed = self.trial.cell, self.trial.restarted(self.restarts)
        model = build(self.trial.net, self.splits.facts.classes, self.splits.facts.crop)
        initialise(model, self.trial.net, cell.recipe.init, seed)
        model = self.ranks.convert_batchnorm(model)
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        learner = Learner(model, cell.recipe, seed=seed, steps=self.steps, precision=self.precision, ranks=self.ranks)
        learner.micro_batches = self.micro_batches
        return learner

    @property
    def steps(self) -> int:
        """Return the steps of one epoch."""
        return self.trial.cell.recipe.steps(len(self.splits.train_indices))

    def is_finished(self) -> bool:
        """Return whether the training has come to an end."""
        return self.ending != ""

    def run(self, report: Report) -> Steps[bool]:
        """Train to the end; return False where `stop()` ended it. Raises Diverged.

        Each epoch is reported once a checkpoint holds it: at its end, or, where epochs are short, with later ones.

        Gives way before each batch, when nothing is half done: whoever goes on with it may also leave it there.
        """
        began = self.context.clock()
        self.data_timer.start()
        if self.is_finished():
            return True
        yield from self._yield_step()
        for average in train(self.learner, self._batches):
            if average is not None:
                self.unsaved.append((yield from self._finish_epoch(average, self.context.clock() - began)))
                (worth,) = self.ranks.broadcast_flags(lambda: (self._epoch_checkpoint_due(),), 1)
                if worth and not self._save_and_report(report):
                    return False
                began = self.context.clock()
                self.data_timer.start()
                if self.is_finished():
                    return True
            due, leave = self.ranks.broadcast_flags(lambda: (self._timed_checkpoint_due(), self.stop()), 2)
            if (due or leave) and not self._save_and_report(report):
                return False
            if leave:
                return False
            yield from self._yield_step()
        self.ending = "schedule"
        return True

    def _save_and_report(self, report: Report) -> bool:
        """Save, and report the epochs that are safe now; False: the disk was full until `stop()`."""
        if not self.save():
            return False
        for row in self.unsaved:
            report(int(row["epoch"]), row)
        self.unsaved.clear()
        return True

    def _epoch_checkpoint_due(self) -> bool:
        """Return whether the end of an epoch is to be saved: the last one, or where saving is cheap beside it."""
        last = self.is_finished() or self.learner.epoch >= self.trial.cell.recipe.epochs
        return last or time.monotonic() - self.saved_at >= SAVING_INTERVAL * self.saving

    def _timed_checkpoint_due(self) -> bool:
        """Return whether it is time for a checkpoint within an epoch."""
        return time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes

    def _yield_step(self) -> Steps[None]:
        """Give way before the next step, where there is one."""
        if self.learner.epoch < self.trial.cell.recipe.epochs:
            yield self.position(STEP, self.learner.step_count)

    def position(self, stage: int, number: int) -> Position:
        """Return where the trial stands, about to take batch `number` of `stage`."""
        return Position(self.learner.epoch, stage, number)

    def _batches(self, epoch: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's training views of `epoch` from batch `step` on, with the labels of the whole batch."""
        for number in range(step, self.steps):
            yield self.data_timer.fetch(
                partial(self.context.stream.get, (STEP, epoch), number, partial(self._training_views, epoch)),
                shared=self.context.others_present(),
            )

    def _training_views(self, epoch: int, step: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Make the training views of `epoch` from batch `step` on."""
        recipe, facts, sidecar = self.trial.cell.recipe, self.splits.facts, self.splits.train.sidecar
        indices = order(self.trial.seed, epoch, self.splits.train_indices)[: self.steps * recipe.batch]
        rows = self.ranks.rows(min(recipe.batch, len(indices)))
        own = self.ranks.own_rows(indices, recipe.batch)
        labels = torch.from_numpy(self.splits.train.labels[indices]).to(self.device)
        for number, batch in enumerate(self.splits.train.batches(own, rows.stop - rows.start, start=step), step):
            yield (
                training_view(
                    batch.images,
                    batch.ids,
                    seed=self.trial.seed,
                    epoch=epoch,
                    crop=facts.crop,
                    flip=recipe.flip,
                    shift=recipe.shift,
                    lighting=recipe.lighting,
                    mean=sidecar.mean,
                    std=sidecar.std,
                    eigenvalues=sidecar.eigenvalues,
                    eigenvectors=sidecar.eigenvectors,
                ),
                labels[number * recipe.batch : (number + 1) * recipe.batch],
            )

    def _finish_epoch(self, average: Errors, seconds: float) -> Steps[dict[str, float]]:
        """Measure the held-out pictures, add the epoch's row to the history, and see how the net fares."""
        learner, trial = self.learner, self.trial
        row = {"epoch": float(learner.epoch), "time_ms": float(time.time_ns() // 1_000_000)}
        row |= _named("train", average)
        row["lr"] = trial.cell.recipe.learning_rate(learner.epoch - 1, 0, self.steps)
        row["sys/images_per_s"] = self.data_timer.batches * trial.cell.recipe.batch / max(seconds, 1e-9)
        if (data_share := self.data_timer.share()) is not None:
            row["sys/data_share"] = data_share
        lifeless = False
        if len(self.splits.val_indices):
            held_out, lifeless = yield from self.measure(HELD_OUT, self.splits.val_indices)
            row |= _named("val", held_out)
        if len(self.splits.probe_indices):
            row["probe/loss"] = (yield from self.measure(PROBE, self.splits.probe_indices))[0].loss
        self.seconds += seconds
        self.history.append(row)
        at_chance = abs(average.loss - math.log(self.splits.facts.classes)) < 1e-3
        self.flat = self.flat + 1 if at_chance else 0
        if lifeless or (self.flat >= 2 and self.flat * self.steps >= SLOW_START):
            raise Diverged(f"the net is dead after epoch {learner.epoch}: it gives every picture the same scores")
        self._keep_best(row)
        bars = self.trial.pruning_thresholds
        if learner.epoch <= len(bars) and min(past["val/top1_err"] for past in self.history) > bars[learner.epoch - 1]:
            self.ending = "pruned"
        if row.get("probe/loss", math.inf) <= self.target.loss or learner.epoch >= self.target.epoch:
            self.ending = "matched"
        return row

    def _keep_best(self, row: dict[str, float]) -> None:
        """Keep these weights where the phase wants those of the least held-out error (ties: least loss, later)."""
        if self.phase.select != "best" or not len(self.splits.val_indices):
            return
        best = min(self.history, key=lambda past: (past["val/top1_err"], past["val/loss"], -past["epoch"]))
        if best is row:
            self.best = {name: value.detach().clone() for name, value in self.learner.model.state_dict().items()}

    def measure(self, stage: int, indices: Indices) -> Steps[tuple[Errors, bool]]:
        """Return the centre-crop errors on `indices`, and whether every picture got the same scores."""
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        lifeless, own = True, self.ranks.batches(indices, BATCH)
        for number in range(-(-len(own) // BATCH)):
            yield self.position(stage, number)
            batch, centre = self.view(stage, self.splits.train, own, number)
            (scores,) = score(self.learner.model, [centre], self.precision)
            lifeless = lifeless and dead(scores)
            total += counts(scores, batch.labels)
        return errors(self.ranks.all_reduce_sum(total), len(indices)), self.ranks.all_true(lifeless)

    def view(
        self, stage: int, pictures: Pictures, indices: Indices, number: int, views: int = 1
    ) -> tuple[Batch, Tensor]:
        """Return the batch and the view `number` of an evaluation: of each batch its first `views`.

        The first is the centre; then come the four corners and the centre, each with its mirror image.
        """
        sidecar, crop = self.splits.train.sidecar, self.splits.facts.crop

        def made(start: int) -> Generator[tuple[Batch, Tensor], None, None]:
            first, skip = divmod(start, views)
            for batch in pictures.batches(indices, BATCH, start=first):
                centre = centre_view(batch.images, crop=crop, mean=sidecar.mean, std=sidecar.std)
                ten = ten_views(batch.images, crop=crop, mean=sidecar.mean, std=sidecar.std)
                for each in islice(chain([centre], ten), skip, views):
                    yield batch, each
                skip = 0

        return self.context.stream.get((stage, self.learner.epoch), number, made)

    def save(self) -> bool:
        """Write the checkpoint; it is durable when this returns True. False: the disk was full until `stop()`."""
        learner, key = self.learner, self.trial.key
        state = {
            "code": code_fingerprint(self.trial.cell.net),
            "epoch": learner.epoch,
            "step": learner.step_count,
            "history": self.history,
            "events": self.events,
            "restarts": self.restarts,
            "seconds": self.seconds,
            "flat": self.flat,
            "ending": self.ending,
            "parts": self.micro_batches,
        }
        tensors = learner.tensors() | {f"best/{name}": value for name, value in self.best.items()}
        whole = checkpoint.Checkpoint(tensors, state)

        def write() -> bool:
            checkpoint.save(self.ledger, key, learner.epoch, learner.step_count, whole)
            return True

        began = time.monotonic()
        saved = self.ranks.broadcast_from_rank0(lambda: with_room(write, self.stop) is not None)
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began
        return saved

    def shrink(self, error: str) -> None:
        """Go back to the last checkpoint and take each step in twice as many parts, which changes no gradient.

        ValueError where a step cannot be parted: batch norm ties it to its batch, or it has one picture a part.
        """
        batch, normed = self.trial.cell.recipe.batch, any("_bn" in name for name in self.learner.model.state_dict())
        if normed or 2 * self.micro_batches * self.ranks.size > batch:
            why = "batch norm ties a step to its whole batch" if normed else "a part is one picture already"
            raise ValueError(
                f"out of memory with batch {batch}, and {why}; give a trial more memory, or train another cell "
                f"by --set recipe.batch={max(1, batch // 2)} ({error.splitlines()[0][:200]})"
            )
        self.micro_batches *= 2
        del self.learner
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._load_checkpoint()
        self.events.append(f"out of memory: steps of batch {batch} are taken in {self.micro_batches} parts")

    def restart(self, reason: str) -> bool:
        """Begin again with another seed and return True; False where the recipe's restarts are used up."""
        self.events.append(reason)
        if self.restarts >= self.trial.cell.recipe.restarts:
            self.ending = "diverged"
            return False
        self.ranks.broadcast_from_rank0(lambda: self.ledger.delete(f"checkpoints/{self.trial.key}"))
        self.restarts += 1
        self.history, self.unsaved, self.best, self.flat = [], [], {}, 0
        self.learner = self._learner()
        self.save()
        return True


class Target(NamedTuple):
    """Where the second phase of Single stops: at this training loss, or after this epoch."""

    loss: float = -math.inf
    epoch: float = math.inf


def _target(trial: Trial, ledger: Ledger) -> Target:
    """Return where the trial stops, from its reference trial; ValueError where that has no result yet."""
    if trial.phase != "match" or trial.match == "none":
        return Target()
    reference = ledger.result(trial.reference)
    if reference is None:
        raise ValueError(f"trial {trial.key} needs the result of {trial.reference}, which is not there")
    found = reference["metrics"]
    if trial.match == "epoch":
        return Target(epoch=float(found["best/epoch"]))
    return Target(loss=float(found["best/probe_loss" if trial.match == "train_loss" else "best/val_loss"]))


def _named(prefix: str, values: Errors) -> dict[str, float]:
    """Return errors under their metric names."""
    return {
        f"{prefix}/loss": values.loss,
        f"{prefix}/top1_err": values.top1,
        f"{prefix}/top5_err": values.top5,
    }
