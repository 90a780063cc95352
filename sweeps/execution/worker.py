"""What a worker does with a trial or a pack: perform it, watch over it, put what goes wrong on the ledger. No Ray."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable

from sweeps.execution.watchdog import Notify, Watchdog, stop_signal
from sweeps.experiment.trial import Trial, trial_from_json
from sweeps.store.ledger import Json, Ledger, failed_attempt
from sweeps.training.runtime import RuntimeConfig


def work(config: Json, tell: Notify) -> None:
    """Perform the trials in the queue's `config`; failures go to the ledger, and those that may pass are raised too.

    `tell` hears {"key", "epoch", "row"} of each epoch; of a pack also {"key", "over"} when a member is gone.
    """
    trials, place = [trial_from_json(json.loads(text)) for text in config["trials"]], RuntimeConfig(**config["place"])
    ledger = Ledger(place.ledger)
    stop = stop_signal(ledger, config["stop"])
    if len(trials) > 1:
        _work_on_pack(config["pack"], trials, place, tell, stop)
        return
    (trial,) = trials

    def report(epoch: int, row: dict[str, float]) -> None:
        tell({"key": trial.key, "epoch": epoch, "row": row})

    try:
        with Watchdog(ledger, [trial.key], place.hang_seconds) as watch:
            # Torch is imported here, in the worker alone: the driver never pays for it.
            module, _, name = config["work"].partition(":")
            getattr(importlib.import_module(module), name)(trial, place, report, watch.wrap(stop))
    except ValueError as error:
        ledger.add_attempt(trial.key, failed_attempt(error, final=True))
    except Exception as error:
        ledger.add_attempt(trial.key, failed_attempt(error, final=False))
        raise


def _work_on_pack(name: str, trials: list[Trial], place: RuntimeConfig, tell: Notify, stop: Callable[[], bool]) -> None:
    """Perform trials side by side; a try after a dead process takes only those that had not left the one before."""
    pack = importlib.import_module("sweeps.execution.pack")
    ledger, note = Ledger(place.ledger), f"packs/{name}.json"
    left = set((ledger.read_json(note) or {}).get("left", []))

    def told(news: Json) -> None:
        if "over" in news:
            # Noted first: once the queue has heard of it, the trial may train elsewhere.
            left.add(news["key"])
            ledger.write_json(note, {"left": sorted(left)})
        tell(news)

    staying = [trial for trial in trials if trial.key not in left]
    with Watchdog(ledger, [trial.key for trial in staying], place.hang_seconds) as watch:
        # A member that the process before died of does not take the others with it again.
        suspects = [trial for trial in staying if ledger.attempts(trial.key)]
        for trial in suspects:
            told({"key": trial.key, "epoch": 0, "over": True, "fits": 0})
        pack.perform_pack(
            [trial for trial in staying if trial not in suspects], place, told, watch.wrap(stop), watch.set_current
        )
