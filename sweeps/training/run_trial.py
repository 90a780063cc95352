"""Perform one trial: bind net, data, recipe and loop; keep its state on the ledger; commit its result.

No Ray, no Optuna, no MLflow: a test, a notebook or a bare GPU machine can call `perform`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.availability import fetch_dataset, fingerprint
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger, with_room
from sweeps.training.distributed import ALONE, Ranks
from sweeps.training.evaluate import BATCH, Errors, score, ten_crop_scores
from sweeps.training.loop import Diverged
from sweeps.training.result import TrialOutcome, commit_result
from sweeps.training.runtime import RuntimeConfig, hardware, keep_memory
from sweeps.training.shared_batches import LEARNED, TEST, PackContext, Steps
from sweeps.training.splits import open_splits
from sweeps.training.trainer import Report, Trainer

# Of a test picture that is stored larger than a net sees it: the centre, and the ten crops.
VIEWS = 11


def run_trial(
    trial: Trial, place: RuntimeConfig, report: Report, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
    """Train `trial` from where it stands to its committed result, and return that.

    `report(epoch, metrics)` is called for each epoch (1-based), once a checkpoint that holds it is durable;
    after a resume the epochs that were reported before are not reported again. Returns None, with the state saved,
    soon after `stop()` says so. ValueError for data or a checkpoint that do not fit, OSError for an unwritable ledger.
    """
    company = PackContext()
    turns = trial_steps(trial, place, report, stop, company)
    try:
        while True:
            next(turns)
    except StopIteration as end:
        result: dict[str, Any] | None = end.value
        return result
    finally:
        company.stream.close()


def trial_steps(
    trial: Trial,
    place: RuntimeConfig,
    report: Report,
    stop: Callable[[], bool],
    company: PackContext,
    ranks: Ranks = ALONE,
    short: str = "",
) -> Steps[dict[str, Any] | None]:
    """Do what `perform` does, giving way before each batch; in company memory that runs out is raised.

    A turn before the last one says that the training diverged and begins anew, its state saved. Of several `ranks`
    each calls this for itself, and memory that runs out is raised too; those that come next hear of it in `short`.
    """
    ledger = Ledger(place.ledger)
    done = ranks.broadcast_from_rank0(lambda: ledger.result(trial.key))
    if done is not None:
        return done
    if not ranks.broadcast_from_rank0(
        lambda: fetch_dataset(trial.cell.dataset, place.data_dir, place.data_source, stop)
    ):
        return None
    _reset(place)
    course = Trainer(trial, place, ledger, open_splits(trial, place), stop, company, ranks)
    if short:
        course.shrink(short)
        course.save()
    ranks.broadcast_from_rank0(lambda: ledger.write_json(f"trials/{trial.key}/trial.json", trial.to_json()))
    while True:
        try:
            if not (yield from course.run(report)):
                return None
            break
        except Diverged as error:
            if not course.restart(str(error)):
                break
        except RuntimeError as error:
            if not out_of_memory(error) or company.others_present() or ranks.size > 1:
                raise
            course.shrink(str(error))
    outcome = yield from _outcome(course)
    return ranks.broadcast_from_rank0(lambda: with_room(lambda: commit_result(ledger, trial, outcome), stop))


def out_of_memory(error: Exception) -> bool:
    """Return whether this is the device's or the host's memory running out."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _outcome(course: Trainer) -> Steps[TrialOutcome]:
    """Return what the finished course amounts to; here, and only here, the test pictures are opened."""
    if course.best and course.ending != "diverged":
        course.learner.model.load_state_dict(course.best)
    return TrialOutcome(
        history=tuple(course.history),
        events=tuple(course.events),
        restarts=course.restarts,
        ending=course.ending,
        seconds=course.seconds + 0.0,
        precision=course.precision,
        fingerprint=fingerprint(course.trial.cell.dataset, Path(course.config.data_dir)),
        hardware=hardware(course.device, course.config),
        classes=course.splits.facts.classes,
        ten_crops=course.splits.facts.crop < course.splits.facts.size,
        weights={name: value.detach().cpu() for name, value in course.learner.model.state_dict().items()},
        scores=(yield from _test_scores(course)),
        train=(yield from _train_errors(course)),
    )


def _test_scores(course: Trainer) -> Steps[dict[str, np.ndarray[Any, Any]]]:
    """Return ids, labels, and scores (n, c) over centre and, where the stored picture is larger, ten crops."""
    test, facts = course.splits.test, course.splits.facts
    if test is None or course.ending == "diverged":
        return {}
    parts: dict[str, list[np.ndarray[Any, Any]]] = {}
    model, precision = course.learner.model, course.precision
    own = course.ranks.batches(np.arange(len(test), dtype=np.int64), BATCH)
    views = VIEWS if facts.crop < facts.size else 1
    for first in range(0, views * -(-len(own) // BATCH), views):
        scores: list[Tensor] = []
        for number in range(first, first + views):
            yield course.position(TEST, number)
            batch, view = course.view(TEST, test, own, number, views)
            scores += score(model, [view], precision)
        found = {"id": batch.ids, "label": batch.labels, "centre": scores[0]}
        if views > 1:
            found["ten_softmax"], found["ten_score"] = ten_crop_scores(scores[1:])
        for name, value in found.items():
            parts.setdefault(name, []).append(value.cpu().numpy())
    return _in_order([found for found in course.ranks.all_gather(parts) if found])


def _in_order(gathered: list[dict[str, list[np.ndarray[Any, Any]]]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of all ranks' batches, by picture."""
    whole = {name: np.concatenate([value for found in gathered for value in found[name]]) for name in gathered[0]}
    rows = np.argsort(whole["id"])
    return {name: values[rows] for name, values in whole.items()}


def _train_errors(course: Trainer) -> Steps[Errors | None]:
    """Return the errors on everything the net learned from, in evaluation mode: the "train" column of Table 1."""
    if not course.phase.probe or not course.phase.test or course.ending == "diverged":
        return None
    return (yield from course.measure(LEARNED, course.splits.train_indices))[0]


def _reset(place: RuntimeConfig) -> None:
    """Bring the process to the same state whatever ran in it before."""
    keep_memory()
    torch.manual_seed(0)
    torch.set_num_threads(place.threads)
    torch.backends.cudnn.benchmark = not place.deterministic
    torch.backends.cudnn.deterministic = place.deterministic
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
