"""Trainer of one trial, from its first step to its last; all of its state is in its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crelu_data.datasets import DataSet, Ints
from crelu_models import activations
from crelu_models.draws import APPROXIMATE
from crelu_models.from_factory import build_model
from crelu_models.model import Model
from crelu_models.modules import build, initialise
from crelu_models.spec import Net
from crelu_models.tensors import full_state, to_channels_last
from sweeps.experiment.code_fingerprint import code_fingerprint
from sweeps.experiment.metrics import has_diverged
from sweeps.experiment.trial import PHASES, Trial
from sweeps.store import checkpoint
from sweeps.store.ledger import Ledger, with_room
from sweeps.training.data_time import DataTimer
from sweeps.training.distributed import ALONE, Ranks
from sweeps.training.evaluate import (
    BATCH,
    Errors,
    Row,
    beats,
    best_epoch,
    chance,
    choices,
    counts,
    dead,
    errors,
    precision_of,
)
from sweeps.training.gpu.graphs import Graphs, open_graphs
from sweeps.training.loop import DeadError, Learner, train
from sweeps.training.runtime import RuntimeConfig, SystemUse, device_in_words
from sweeps.training.shared_batches import HELD_OUT, PROBE, STEP, PackContext, Position, Steps
from sweeps.training.splits import Splits
from sweeps.training.views import Views

# Epochs at chance, two or more, are a dead net where they have this many steps together; fewer are a slow start.
# Table 1's nets at a quarter of their width, by steps of batch 32 on embedded pictures: He init, lr .01, clipped at
# norm 1 Baseline, Double, CReLU and AVR leave chance after 260, 240, 220 and 880, CReLU half not within 300; by Adam
# at .002 Baseline and Double after 140 and 180, AVR not within 300.
SLOW_START = 4000
# A training of fewer steps says nothing of its net where it ends at chance.
SHORTEST = 100
# A loss within this share of that of guessing is at chance; an epoch that learns nothing wanders by less.
JITTER = 0.01
# How a training goes on where its state was saved on another machine or with other flags.
ANOTHER_PRECISION = "in {now}, since this machine does not compute in {last}, in which it began"
ANOTHER_DEVICE = "with {now}, and no longer with {last}"
ANOTHER_DECODER = "with JPEG decoded by {now}, and no longer by {last}"

# Called with the number of an epoch (1-based) and its row of the history.
Report = Callable[[int, Row], None]


class Evaluation(NamedTuple):
    """Errors on a number of pictures, and whether all of them, two or more, got the same scores or the same class."""

    errors: Errors
    pictures: int
    same_scores: bool
    same_class: bool


@dataclass
class TrainingState:
    """Plain state of a training beside its learner, as a checkpoint holds it.

    `flat` counts the last epochs at chance. `ending` is "" while the training goes on. A step is taken in
    `parts` micro-batches. `precisions` are those that it has computed in, `devices` those that it has computed on, in
    words, and `decoders` those of its pictures, "" where they are stored as pixels; the present ones are last.
    """

    history: list[Row] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    restarts: int = 0
    seconds: float = 0.0
    flat: int = 0
    ending: str = ""
    parts: int = 1
    precisions: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)


class Trainer:
    """One trial in training: its learner, its state and its best weights.

    Each of several ranks has a trainer, and all take the same steps. The ledger is used by rank 0 alone.
    """

    def __init__(
        self,
        trial: Trial,
        config: RuntimeConfig,
        ledger: Ledger,
        splits: Splits,
        stop: Callable[[], bool],
        context: PackContext,
        ranks: Ranks,
    ) -> None:
        """Begin, or continue from the newest intact checkpoint; rank 0 asks `stop()` when to leave.

        ValueError where a batch has fewer pictures than there are ranks.
        """
        trial.recipe.shared(len(splits.train_indices), ranks.size)
        self.trial = trial
        self.config = config
        self.ledger = ledger
        self.splits = splits
        self.stop = stop
        self.context = context
        self.ranks = ranks
        self.device = torch.device(config.device)
        self.phase = PHASES[trial.phase]
        self.chance = chance(splits.train.sidecar.label_counts)
        self.target = _target(trial, ledger)
        self.code = code_fingerprint(trial.cell.net)
        self.views = Views(trial, splits, context.stream, ranks, self.device)
        self.data_timer = DataTimer(self.device, lambda: splits.train.decode_seconds, context.clock)
        self.system_use = SystemUse(self.device)
        # An attempt that ended the process may have been a graph's, or that of a kernel of ours: the next goes without.
        failed = ranks.broadcast_from_rank0(lambda: bool(ledger.attempts(trial.key)))
        activations.takes_kernels = activations.takes_kernels and not failed
        self.no_graphs = "an attempt has failed before" if failed else ""
        self._load_checkpoint()

    def _load_checkpoint(self, parts: int = 1) -> None:
        """Take the state of the newest intact checkpoint, or the initial one, with at least this many micro-batches."""
        saved, events = self.ranks.broadcast_from_rank0(
            lambda: checkpoint.resume(self.ledger, self.trial.key, self.code)
        )
        self.state = TrainingState()
        if saved is not None:
            known = {name: saved.state[name] for name in vars(self.state) if name in saved.state}
            self.state = TrainingState(**known)
        self.state.parts = max(parts, self.state.parts)
        self.state.events += events
        self._settle_on_device()
        self.counted_to = self.context.clock()  # the time up to which the state's seconds count
        self.best: dict[str, Tensor] = {}
        self.unsaved: list[Row] = []  # rows of the history that no checkpoint holds yet
        self.cadence = checkpoint.Cadence(self.config.checkpoint_minutes)
        self.graphs = open_graphs(self.device, self._why_no_graphs())
        self.learner = self._learner()
        if saved is not None:
            self.learner.restore(saved.tensors, saved.state["epoch"], saved.state["step"])
            self.best = {name[5:]: value for name, value in saved.tensors.items() if name.startswith("best/")}

    def _settle_on_device(self) -> None:
        """Keep the earlier precision where this device has it; note another one, or another device or decoder."""
        state = self.state
        used = state.precisions
        native = precision_of(self.trial.recipe.precision, self.device)
        self.precision = used[-1] if used and used[-1] in ("fp32", native) else native
        device = device_in_words(self.device, self.config)
        state.events += note_change(used, self.precision, len(state.history), ANOTHER_PRECISION)
        state.events += note_change(state.devices, device, len(state.history), ANOTHER_DEVICE)
        decoder = self.splits.train.decoder
        state.events += note_change(state.decoders, decoder, len(state.history), ANOTHER_DECODER)

    def _learner(self) -> Learner:
        """Return the net at its initial weights, with the seed of this attempt, on its device."""
        seed = self.trial.restarted(self.state.restarts)
        self.graphs.clear()
        steps = self.views.steps
        learner = new_learner(
            self.trial,
            self.splits.facts,
            seed,
            steps,
            self.device,
            self.ranks,
            self.graphs,
            self.precision,
            compiles=self.config.kernels == "fastest",
        )
        learner.micro_batches = self.state.parts
        return learner

    def _why_no_graphs(self) -> str:
        """Return why steps are not replayed from CUDA graphs on a GPU; "" where they may be."""
        if isinstance(self.trial.net, Model):
            return "the net is a model, whose own draws no recording can key"
        if not self.config.graphs or self.no_graphs:
            return self.no_graphs or "not asked for"
        if self.ranks.size > 1:
            return f"{self.ranks.size} ranks exchange messages within a step"
        if self.state.parts > 1:
            return f"a step is taken in {self.state.parts} parts"
        return ""

    def is_finished(self) -> bool:
        """Return whether the training has come to an end."""
        return self.state.ending != ""

    def is_paused(self) -> bool:
        """Return whether the training has reached the epoch at which it pauses."""
        return 0 < self.config.pause_at <= self.learner.epoch < self.trial.recipe.epochs

    def run(self, report: Report) -> Steps[bool]:
        """Train to the end; return False where `stop()` or a pause ended it before. Raises DivergedError.

        An epoch is reported once a checkpoint holds it: at its end or, where epochs are short, with later ones.

        Yields before each batch, when the state is consistent, so the caller may stop there.
        """
        if self.is_finished() or self.is_paused():
            return self.is_finished()
        self.counted_to = self.context.clock()
        self.data_timer.start()
        yield from self._yield_step()
        for average in train(self.learner, self._batches):
            # End of an epoch: measure it, then save and report it, or leave that to a later checkpoint.
            if average is not None:
                self._count_seconds()
                row = yield from self._finish_epoch(average)
                self.unsaved.append(row)
                (epoch_due,) = self.ranks.broadcast_flags(lambda: (self._epoch_is_due(),), 1)
                if epoch_due and not self._save_and_report(report):
                    return False
                self.counted_to = self.context.clock()
                self.data_timer.start()
                if self.is_finished() or self.is_paused():
                    return self.is_finished()
            self._note_draws()
            # After each step: save now and then, and leave when asked to, with the state saved.
            step_due, leave = self.ranks.broadcast_flags(lambda: (self.cadence.step_is_due(), self.stop()), 2)
            if (step_due or leave) and not self._save_and_report(report):
                return False
            if leave:
                return False
            yield from self._yield_step()
        self.state.ending = "schedule"
        return True

    def _note_draws(self) -> None:
        """Note among the events what the model has drawn that no key decides."""
        if self.learner.unkeyed and self.learner.unkeyed not in self.state.events:
            self.state.events.append(self.learner.unkeyed)

    def _count_seconds(self) -> None:
        """Add the time since the last count to the seconds of the training."""
        now = self.context.clock()
        self.state.seconds += now - self.counted_to
        self.counted_to = now

    def _batches(self, epoch: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training views of `epoch` from batch `step` on, timed."""
        views = self.views.training(epoch, step)
        for _ in range(step, self.views.steps):
            yield self.data_timer.fetch(partial(next, views), shared=self.context.others_present())

    def _save_and_report(self, report: Report) -> bool:
        """Save, and report the epochs that are now durable; False where `stop()` ended the wait for a full disk."""
        if not self.save():
            return False
        for row in self.unsaved:
            report(int(row["epoch"]), row)
        self.unsaved.clear()
        return True

    def _epoch_is_due(self) -> bool:
        """Return whether the end of this epoch is saved: the last is, and others where saving is cheap."""
        last = self.is_finished() or self.is_paused() or self.learner.epoch >= self.trial.recipe.epochs
        return last or self.cadence.epoch_is_due()

    def _yield_step(self) -> Steps[None]:
        """Yield before the next step, where there is one."""
        if self.learner.epoch < self.trial.recipe.epochs:
            yield self.position(STEP, self.learner.step_count)

    def position(self, stage: int, number: int) -> Position:
        """Return the position before batch `number` of `stage`."""
        return Position(self.learner.epoch, stage, number)

    def _finish_epoch(self, average: Errors) -> Steps[Row]:
        """Evaluate the net after an epoch, add the row to the history and return it; sets `ending` where it ends.

        DeadError where the net is dead.
        """
        learner = self.learner
        trial = self.trial
        state = self.state
        steps = self.views.steps
        # The row: training errors as summed during the epoch, then what is measured in evaluation mode.
        row = {"epoch": float(learner.epoch), "time_ms": float(time.time_ns() // 1_000_000)}
        row |= _named("train", average)
        row["lr"] = trial.recipe.learning_rate(learner.epoch - 1, 0, steps)
        row["sys/images_per_s"] = self.data_timer.speed() * trial.recipe.batch
        if (data_share := self.data_timer.share()) is not None:
            row["sys/data_share"] = data_share
        row |= self.system_use.row()
        evaluations: list[Evaluation] = []
        if len(self.splits.val_indices):
            evaluations.append((yield from self.measure(HELD_OUT, self.splits.val_indices)))
            row |= _named("val", evaluations[0].errors)
        if len(self.splits.probe_indices):
            evaluations.append((yield from self.measure(PROBE, self.splits.probe_indices)))
            row["probe/loss"] = evaluations[-1].errors.loss
        self.counted_to = self.context.clock()  # evaluations are no part of the seconds
        state.history.append(row)
        self._note_draws()
        # The best weights, and the ends before the schedule's.
        if self.phase.select == "best" and len(self.splits.val_indices) and best_epoch(state.history) is row:
            self.best = {name: value.detach().clone() for name, value in full_state(learner.evaluated).items()}
        if learner.epoch <= len(trial.pruning_thresholds):
            least = min(past["val/top1_err"] for past in state.history)
            if least > trial.pruning_thresholds[learner.epoch - 1]:
                state.ending = "pruned"
        if row.get("probe/loss", math.inf) <= self.target.loss or learner.epoch >= self.target.epoch:
            state.ending = "matched"
        self._check_alive(average, evaluations)
        return row

    def _check_alive(self, average: Errors, evaluations: Sequence[Evaluation]) -> None:
        """Raise DeadError where the net is dead, or at chance for long, or at chance when its training ends."""
        state = self.state
        epoch = self.learner.epoch
        stays = at_chance(average, len(self.splits.train_indices), evaluations, self.chance)
        state.flat = state.flat + 1 if stays else 0
        if any(evaluation.same_scores for evaluation in evaluations):
            raise DeadError(f"the net is dead after epoch {epoch}: it gives every picture the same scores")
        ends = state.ending == "matched" or (epoch >= self.trial.recipe.epochs and state.ending == "")
        long = state.flat >= 2 and state.flat * self.views.steps >= SLOW_START
        if stays and (long or (ends and epoch * self.views.steps >= SHORTEST)):
            same = "gives every picture the same class" if evaluations[0].same_class else "is no better than guessing"
            raise DeadError(
                f"the net is at chance after epoch {epoch}: it {same}, and its training loss is {average.loss:.4f} "
                f"(guessing: {self.chance.loss:.4f})"
            )

    def measure(self, stage: int, indices: Ints) -> Steps[Evaluation]:
        """Return the centre-crop errors on training pictures, and whether all of them got the same scores or class."""
        classes = self.splits.facts.classes
        total = torch.zeros(3 + classes, dtype=torch.float64, device=self.device)
        lifeless = True
        local = self.ranks.full_batches(indices, BATCH)
        for number in range(-(-len(local) // BATCH)):
            yield self.position(stage, number)
            batch, view = self.views.evaluation(stage, self.learner.epoch, self.splits.train, local, number)
            scores = self.scores(view, -(-len(local) // BATCH), stage, number)
            lifeless = lifeless and dead(scores)
            total[:3] += counts(scores, batch.labels)
            total[3:] += choices(scores, classes)
        total = self.ranks.all_reduce_sum(total)
        classes_chosen = int((total[3:] > 0).sum())
        return Evaluation(
            errors(total[:3], len(indices)),
            len(indices),
            self.ranks.all_true(lifeless),
            classes_chosen == 1 < len(indices),
        )

    def scores(self, view: Tensor, batches: int, stage: int, number: int, views: int = 1) -> Tensor:
        """Return the scores (n, c) of pictures in evaluation mode, of an evaluation in so many batches.

        They are view `number` of this rank in a `stage` in which each batch has so many `views`.
        """
        epochs = max(1, self.trial.recipe.epochs - self.learner.epoch)
        batch, place = divmod(number, views)
        number = (batch * self.ranks.size + self.ranks.rank) * views + place  # over all ranks
        # Full batches are all alike; each evaluation has a single short one.
        return self.learner.scores(view, epochs * (batches if len(view) == BATCH else views), stage, number)

    def save(self) -> bool:
        """Write a durable checkpoint and return True; False where `stop()` ended the wait for a full disk."""
        learner = self.learner
        self._count_seconds()
        state = {"code": self.code, "epoch": learner.epoch, "step": learner.step_count, **vars(self.state)}
        tensors = learner.tensors() | {f"best/{name}": value for name, value in self.best.items()}
        content = checkpoint.Checkpoint(tensors, state)

        def write() -> bool:
            checkpoint.save(self.ledger, self.trial.key, learner.epoch, learner.step_count, content)
            return True

        began = time.monotonic()
        saved = self.ranks.broadcast_from_rank0(lambda: with_room(write, self.stop) is not None)
        self.cadence.saved(began)
        return saved

    def pause(self) -> bool:
        """Note on the ledger where the trial has paused, and return True; False where `stop()` ended the wait."""
        curve = [row[self.trial.cell.metric.row] for row in self.state.history]
        record = {"epoch": len(curve), "curve": curve, "seconds": self.state.seconds, "code": self.code}

        def write() -> bool:
            self.ledger.pause(self.trial.key, record)
            return True

        return self.ranks.broadcast_from_rank0(lambda: with_room(write, self.stop) is not None)

    def shrink(self, error: str) -> None:
        """Return to the last checkpoint and take each step in twice as many micro-batches, with the same gradient.

        Where graphs hold memory of their own, they are given up first. ValueError where neither is possible: batch norm
        needs its whole batch, or a micro-batch is one picture.
        """
        if self.graphs.replays:
            self.no_graphs = "memory ran out"
            del self.learner
            self._free_memory()
            self._load_checkpoint()
            return
        batch = self.trial.recipe.batch
        parts = 2 * self.state.parts
        normed = any(isinstance(layer, _BatchNorm) for layer in self.learner.model.modules())
        if normed or parts * self.ranks.size > batch:
            why = "batch norm ties a step to its whole batch" if normed else "a part is one picture already"
            raise ValueError(
                f"out of memory with batch {batch}, and {why}; give a trial more memory, or train another cell "
                f"by --set recipe.batch={max(1, batch // 2)} ({error.splitlines()[0][:200]})"
            )
        # The learner's memory is free before the next one is built.
        del self.learner
        self._free_memory()
        self._load_checkpoint(parts)
        self.state.events.append(f"out of memory: steps of batch {batch} are taken in {self.state.parts} parts")

    def _free_memory(self) -> None:
        """Return to the device what recordings and freed tensors held."""
        self.graphs.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def restart(self, reason: str, ending: str) -> bool:
        """Begin again with another seed and return True; False, with this `ending`, where no restart is left."""
        state = self.state
        self._count_seconds()
        state.events.append(reason)
        if state.restarts >= self.trial.recipe.restarts:
            state.ending = ending
            return False
        self.ranks.broadcast_from_rank0(lambda: self.ledger.delete(f"checkpoints/{self.trial.key}"))
        state.restarts += 1
        state.history = []
        state.flat = 0
        state.ending = ""
        state.precisions = []
        state.devices = []
        state.decoders = []
        self._settle_on_device()
        self.unsaved = []
        self.best = {}
        self.learner = self._learner()
        self.save()
        return True


def note_change(used: list[str], now: str, epochs: int, words: str) -> list[str]:
    """Add the precision, device or decoder of `now` to those `used`; return an event where it is not the last of them.

    `epochs` are behind the training. `words` end the sentence, with places for `now` and for that last one.
    """
    last = used[-1:]
    if last == [now]:
        return []
    used.append(now)
    if not last:
        return []
    how = words.format(now=now, last=last[0])
    return [f"{APPROXIMATE}: after epoch {epochs} the training goes on {how}"]


def new_learner(
    trial: Trial,
    facts: DataSet,
    seed: int,
    steps: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    graphs: Graphs | None = None,
    precision: str = "",
    compiles: bool = False,
) -> Learner:
    """Return a trial's net at the initial weights of `seed`, on `device`, with `steps` in an epoch.

    Without a `precision` it computes in the recipe's; with `compiles` it is compiled where that is faster.
    """
    recipe = trial.recipe
    model = ranks.convert_batchnorm(initial_module(trial.net, facts, recipe.init, seed))
    model = to_channels_last(model, device)
    precision = precision or precision_of(recipe.precision, device)
    foreign = isinstance(trial.net, Model)
    return Learner(
        model,
        recipe,
        seed=seed,
        steps=steps,
        precision=precision,
        ranks=ranks,
        graphs=graphs,
        foreign=foreign,
        compiles=compiles,
    )


def initial_module(net: Net | Model, facts: DataSet, init: str, seed: int) -> nn.Module:
    """Return a net's modules at the initial weights of `seed`: by `init`, or a model's own, drawn by its factory."""
    if isinstance(net, Model):
        return build_model(net, facts.classes, seed)
    module = build(net, facts.classes, facts.crop)
    initialise(module, net, init, seed)
    return module


def at_chance(train: Errors, pictures: int, evaluations: Sequence[Evaluation], guessing: Errors) -> bool:
    """Return whether an epoch over so many pictures, and the evaluations after it, show nothing learned.

    Neither is its loss below that of guessing, nor its error or that of an evaluation. Dropout may keep the first two
    there, and batch norm the last, while a net learns. Of pictures of a single class nothing can be said.
    """
    learned = (
        train.loss < (1 - JITTER) * guessing.loss
        or beats(train.top1, pictures, guessing)
        or any(beats(evaluation.errors.top1, evaluation.pictures, guessing) for evaluation in evaluations)
    )
    return guessing.top1 > 0 and not learned


class Target(NamedTuple):
    """End of Single's second phase: at this training loss, or after this epoch."""

    loss: float = -math.inf
    epoch: float = math.inf


def _target(trial: Trial, ledger: Ledger) -> Target:
    """Return where a trial stops, from its reference trial; ValueError where that has no result yet.

    A reference that diverged or died has no loss to reach: the trial is trained to the end of its schedule.
    """
    if trial.phase != "match" or trial.match == "none":
        return Target()
    reference = ledger.result(trial.reference)
    if reference is None:
        raise ValueError(f"trial {trial.key} needs the result of {trial.reference}, which is not there")
    if has_diverged(reference):
        return Target()
    metrics = reference["metrics"]
    if trial.match == "epoch":
        return Target(epoch=float(metrics["best/epoch"]))
    return Target(loss=float(metrics["best/probe_loss" if trial.match == "train_loss" else "best/val_loss"]))


def _named(prefix: str, values: Errors) -> Row:
    """Return errors under their metric names."""
    return {
        f"{prefix}/loss": values.loss,
        f"{prefix}/top1_err": values.top1,
        f"{prefix}/top5_err": values.top5,
    }
