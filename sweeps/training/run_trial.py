"""One trial from its data to its committed result: net, pictures, recipe and loop joined, state kept on the ledger.

Ray, Optuna and MLflow are not needed: a test, a notebook or a bare GPU machine can call `run_trial`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from crelu_data.availability import fetch_dataset
from crelu_models import activations
from crelu_models.tensors import full_state, load_full_state
from sweeps.experiment.code_fingerprint import names_of
from sweeps.experiment.trial import Trial
from sweeps.experiment.user_code import drop_edited, use_folder
from sweeps.store.ledger import Json, Ledger, with_room
from sweeps.training.distributed import ALONE, Ranks
from sweeps.training.evaluate import BATCH, Errors, ten_crop_scores, wrong_guesses
from sweeps.training.gpu.graphs import open_streams
from sweeps.training.loop import LOST, DivergedError
from sweeps.training.result import Scores, TrialOutcome, commit_result
from sweeps.training.runtime import RuntimeConfig, hardware, keep_memory
from sweeps.training.shared_batches import LEARNED, TEST, BatchStream, PackContext, Steps, drain
from sweeps.training.splits import Splits, open_splits
from sweeps.training.trainer import Report, Trainer
from sweeps.training.views import TEST_VIEWS

# What torch says where a CPU's memory has run out: on Linux and macOS, and on Windows.
NO_MEMORY: Final = ("can't allocate memory", "not enough memory")
# What CUDA, Triton, cuBLAS and cuDNN say where a GPU's has run out: torch's allocator alone has an error of its own for
# that.
NO_GPU_MEMORY: Final = ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
                        "DEVICE_ALLOCATION_FAILED")  # fmt: skip
# What Triton, cuBLAS and cuDNN say where the device has failed: torch alone has an error of its own for that.
DEVICE_FAILED: Final = ("Triton Error [CUDA]", "_STATUS_EXECUTION_FAILED", "_STATUS_INTERNAL_ERROR",
                        "_STATUS_MAPPING_ERROR")  # fmt: skip


def run_trial(
    trial: Trial, config: RuntimeConfig, report: Report, stop: Callable[[], bool] = lambda: False
) -> Json | None:
    """Train `trial` from its last checkpoint to its committed result, and return that.

    `report(epoch, row)` is called for each epoch (1-based) once a checkpoint that holds it is durable; a resumed trial
    does not report epochs again. Returns None, with the state saved, soon after `stop()` is true or, with a note on
    the ledger, after epoch `config.pause_at`. ValueError for data or a checkpoint that do not fit, OSError for an
    unwritable ledger.
    """
    context = PackContext(BatchStream(open_streams(torch.device(config.device))))
    try:
        return drain(trial_steps(trial, config, report, stop, context))
    finally:
        context.stream.close()


def trial_steps(
    trial: Trial,
    config: RuntimeConfig,
    report: Report,
    stop: Callable[[], bool],
    context: PackContext,
    ranks: Ranks = ALONE,
    memory_error: str = "",
) -> Steps[Json | None]:
    """Do what `run_trial` does, and yield the position before each batch.

    A position before the last one says that the training diverged and begins anew, with its state saved. An error of
    memory is raised where others in the pack can make room. Of several `ranks` each calls this for itself; an error
    of memory is raised there too, and `memory_error` tells it to the ranks that continue.
    """
    # A committed result stands; and pictures that are not here are fetched by one rank for all.
    ledger = Ledger(config.ledger)
    committed = ranks.broadcast_from_rank0(lambda: ledger.result(trial.key))
    if committed is not None:
        return committed
    if not ranks.broadcast_from_rank0(
        lambda: fetch_dataset(trial.cell.dataset, config.data_dir, config.data_source, stop, config.fingerprint)
    ):
        return None
    reset_process(config)
    splits = open_splits(trial, config)
    drop_edited(names_of(trial.cell))
    trainer = Trainer(trial, config, ledger, splits, stop, context, ranks)
    if memory_error:
        trainer.shrink(memory_error)
        trainer.save()

    def write() -> bool:
        ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json())
        return True

    if not ranks.broadcast_from_rank0(lambda: with_room(write, stop) is not None):
        return None
    # Train to an end: again with another seed after a divergence, in smaller parts where memory runs out.
    while True:
        ran_out = ""
        try:
            if not (yield from trainer.run(report)):
                if trainer.is_paused():
                    trainer.pause()
                return None
            break
        except DivergedError as error:
            if not trainer.restart(str(error), error.ending):
                break
        except RuntimeError as error:
            if not out_of_memory(error) or context.others_present() or ranks.size > 1:
                raise
            ran_out = str(error)
        if ran_out:  # after the error, whose trace holds what the step has made
            trainer.shrink(ran_out)
    outcome = yield from _outcome(trainer)
    return ranks.broadcast_from_rank0(lambda: with_room(lambda: commit_result(ledger, trial, outcome), stop))


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device's or the host's memory has run out.

    The ValueError of a net that fits in no smaller parts quotes such an error, and is none itself.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in (*NO_MEMORY, *NO_GPU_MEMORY))


def device_failed(error: BaseException) -> bool:
    """Return whether an error says that the device itself has failed: this process may get no more results of it."""
    if out_of_memory(error):
        return False
    is_named = any(words in str(error) for words in DEVICE_FAILED)
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and is_named)


def _outcome(trainer: Trainer) -> Steps[TrialOutcome]:
    """Return what a finished training comes to, with the best weights where the phase selects them.

    The test pictures are evaluated here and nowhere else.
    """
    state = trainer.state
    # A GPU that could not record a step trained as exactly, and more slowly.
    failure = trainer.graphs.failure
    if trainer.best and state.ending not in LOST:
        load_full_state(trainer.learner.evaluated, trainer.best)
    return TrialOutcome(
        history=tuple(state.history),
        events=(*state.events, *([f"no CUDA graph: {failure}"] if failure else [])),
        restarts=state.restarts,
        ending=state.ending,
        seconds=state.seconds,
        precision=", ".join(state.precisions),
        fingerprint=trainer.splits.fingerprint,
        code=trainer.code,
        hardware=hardware(
            trainer.device, trainer.config, ", ".join(state.decoders), trainer.learner.steps_by, state.devices[:-1]
        ),
        chance=trainer.chance,
        test_chance=_test_chance(trainer.splits),
        ten_crops=trainer.splits.facts.crop < trainer.splits.facts.size,
        weights={name: value.detach().cpu() for name, value in full_state(trainer.learner.evaluated).items()},
        scores=(yield from _test_scores(trainer)),
        train=(yield from _train_errors(trainer)),
        train_pictures=len(trainer.splits.train),
        partial=trainer.splits.partial,
        parameters=sum(value.numel() for value in trainer.learner.model.parameters()),
        pictures=_facts(trainer.splits),
    )


def _test_chance(splits: Splits) -> tuple[float, float]:
    """Return the top-1 and the top-5 error of guessing on the test pictures; without any, on those of the training."""
    learned = splits.train.sidecar.label_counts
    return wrong_guesses(learned, learned if splits.test is None else splits.test.sidecar.label_counts)


def _facts(splits: Splits) -> Json:
    """Return what a net needs beside its weights to take pictures as the test does."""
    sidecar = splits.train.sidecar
    facts = {"classes": splits.facts.classes, "crop": splits.facts.crop}
    return facts | {"mean": list(sidecar.mean), "std": list(sidecar.std)}


def _test_scores(trainer: Trainer) -> Steps[Scores]:
    """Return ids, labels, and scores (n, c) over the centre and, where stored pictures are larger, ten crops."""
    test = trainer.splits.test
    facts = trainer.splits.facts
    if test is None or trainer.state.ending in LOST:
        return {}
    batches: list[Scores] = []
    local = trainer.ranks.full_batches(np.arange(len(test), dtype=np.int64), BATCH)
    views = TEST_VIEWS if facts.crop < facts.size else 1
    for first in range(0, views * -(-len(local) // BATCH), views):
        scores: list[torch.Tensor] = []
        for number in range(first, first + views):
            yield trainer.position(TEST, number)
            batch, view = trainer.views.evaluation(TEST, trainer.learner.epoch, test, local, number, views)
            scores.append(trainer.scores(view, views * -(-len(local) // BATCH), TEST, number, views))
        columns = {"id": batch.ids, "label": batch.labels, "centre": scores[0]}
        if views > 1:
            columns["ten_softmax"], columns["ten_score"] = ten_crop_scores(scores[1:])
        batches.append({name: value.cpu().numpy() for name, value in columns.items()})
    gathered = [columns for rank in trainer.ranks.all_gather(batches) for columns in rank]
    return _in_order(gathered)


def _in_order(batches: list[dict[str, np.ndarray[Any, Any]]]) -> Scores:
    """Return the columns of all batches, by picture."""
    joined = {name: np.concatenate([columns[name] for columns in batches]) for name in batches[0]}
    rows = np.argsort(joined["id"])
    return {name: values[rows] for name, values in joined.items()}


def _train_errors(trainer: Trainer) -> Steps[Errors | None]:
    """Return the errors on all training pictures in evaluation mode: the "train" column of Table 1."""
    if not trainer.phase.probe or not trainer.phase.test or trainer.state.ending in LOST:
        return None
    train = yield from trainer.measure(LEARNED, trainer.splits.train_indices)
    return train.errors


def reset_process(config: RuntimeConfig) -> None:
    """Set the state of this process that decides bits, independent of what ran in it before."""
    use_folder(config.code_folder)
    keep_memory()
    torch.manual_seed(0)
    torch.set_num_threads(config.threads)
    torch.backends.cudnn.benchmark = config.kernels == "fastest"
    torch.backends.cudnn.deterministic = config.kernels != "fastest"
    activations.takes_kernels = config.kernels != "torch"
