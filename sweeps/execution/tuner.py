"""Driver of Ray Tune: a searcher that suggests what the plan lacks, and a loop that starts a Tuner anew when one ends.

The ledger alone decides: a trial is done when its result is on the ledger. Tune's own word does not count. Each start,
and each restart after an error, builds a fresh Tuner.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial

from sweeps.execution import ray_runtime
from sweeps.execution.cluster_watch import ClusterWatch
from sweeps.execution.messages import Assignment, Message
from sweeps.execution.searcher import LedgerSearcher, max_concurrent
from sweeps.execution.session import DriverState
from sweeps.execution.worker import work
from sweeps.experiment.plan import (
    MAX_ATTEMPTS,
)
from sweeps.experiment.user_code import unpacked
from sweeps.store.scratch import make_scratch, remove_scratch

os.environ.update(ray_runtime.TUNE_SETTINGS)

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial as TuneTrial

MAX_FRUITLESS_SESSIONS = 3  # Tuners in a row without a finished epoch, after which the driver gives up
STUCK_SECONDS = 10.0  # for which a Tuner may hold on to a Ray that has died


class NoProgressError(Exception):
    """Error of a Ray that ended several Tuners in a row before anything was trained."""


def train_assignment(config: Assignment, shipped: Mapping[str, str]) -> None:
    """Train an assignment on a worker, with the user's files that were `shipped`, and report each message to Tune."""
    if shipped:
        config["runtime"]["code_folder"] = unpacked(shipped)

    def notify(message: Message) -> None:
        # In a list, since Tune makes columns of dictionaries within a result.
        tune.report({"news": [message]})

    work(config, notify)


def run_trials(session: DriverState) -> None:
    """Run trials until each is done or has failed, or the session is told to stop; NoProgressError where Ray fails.

    Ray may end a Tuner at any time (the memory monitor, a lost node, an error in a hook); a new one continues.
    """
    if session.address == "local":
        _run_tuners(session, lambda: None)
        return
    look = partial(ray_runtime.absence, session.address)
    with ClusterWatch(look, session.say, session.lose_cluster) as watch:
        _run_tuners(session, watch.wait)


def _run_tuners(session: DriverState, wait_for_ray: Callable[[], None]) -> None:
    fruitless = 0
    while not session.stopping:
        searcher = LedgerSearcher(session)
        epochs_before = session.epochs
        if not searcher.waiting:
            return
        folder = make_scratch("tune")
        try:
            # Tune prints on standard output at every verbosity; the live view keeps its own handle of the terminal.
            with open(os.devnull, "w") as nothing, redirect_stdout(nothing), StuckWatch(session.start_over):
                _tuner(searcher, session, folder).fit()
        except ray_runtime.RayDiedError as error:
            session.errors.append(str(error))
            _replace_ray(session, str(error))
        except Exception as error:
            session.errors.append("".join(traceback.format_exception(error)))
            time.sleep(1.0)
            wait_for_ray()
        finally:
            remove_scratch(folder)
        fruitless = 0 if session.epochs > epochs_before else fruitless + 1
        if fruitless >= MAX_FRUITLESS_SESSIONS:
            last = session.errors[-1].strip().splitlines()[-1] if session.errors else "no error was seen"
            raise NoProgressError(f"{MAX_FRUITLESS_SESSIONS} sessions in a row brought nothing: {last}")


def _replace_ray(session: DriverState, why: str) -> None:
    """Start Ray anew after one of its processes has died, unless the session is stopping; say so."""
    if session.stopping:
        session.say(f"{why}; trials go on from their checkpoints with the next command")
        return
    session.say(f"{why}; starting Ray anew, trials go on from their checkpoints")
    try:
        ray_runtime.restart_ray()
    except ValueError as error:
        raise NoProgressError(f"{why}; {error}") from None


class StuckWatch:
    """Watch beside a Tuner: where Ray has died and the Tuner does not leave, a call to the dead Ray holds it for good.

    Ray's own code would end this process after a minute. `start_over`, which gets the reason, has to do it before, in
    this thread: the main thread handles neither exceptions nor signals meanwhile.
    """

    def __init__(self, start_over: Callable[[str], None], poll: float = 1.0, patience: float = STUCK_SECONDS) -> None:
        """Look every `poll` seconds, and call `start_over` once Ray has been dead for `patience` seconds."""
        self.start_over = start_over
        self.poll = poll
        self.patience = patience
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)

    def __enter__(self) -> StuckWatch:
        """Start to watch."""
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more: the Tuner has left."""
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        dead_since = 0.0
        while not self.over.wait(self.poll):
            why = ray_runtime.death()
            now = time.monotonic()
            dead_since = (dead_since or now) if why else 0.0
            if why and now - dead_since >= self.patience:
                self.start_over(why)
                return


def _tuner(searcher: LedgerSearcher, session: DriverState, folder: str) -> tune.Tuner:
    """Return a Tuner over the queue; nothing in its folder is needed later."""
    resources = session.resources
    needs = {"cpu": resources.cpus} | ({"gpu": resources.gpus} if resources.gpus else {})
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(train_assignment, shipped=session.shipped), needs),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=max_concurrent(resources),
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=session.name,
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=MAX_ATTEMPTS - 1),
            verbose=0,
            # In a notebook Tune's own choice is as silent, but clears the cell's output first, our live table with it.
            progress_reporter=tune.CLIReporter(),
            callbacks=[StartCallback(searcher)],
        ),
    )


def _name(trial: TuneTrial) -> str:
    return str(trial.config.get("key", trial.trial_id))


def _last_error(trial: TuneTrial) -> object:
    """Return the error that ended a trial's last run; None where Tune has kept none.

    One that cannot be read, since its class is not here, is replaced by the error of reading it. Tune's own reader
    looks for its file in the folder of results, to which it has not been copied yet.
    """
    path = trial.pickled_error_file
    if not path or not os.path.exists(path):
        return None
    try:
        with open(path, "rb") as file:
            return pickle.load(file)
    except Exception as unreadable:  # raised within Tune's hooks it would end the other trials too
        return unreadable


class StartCallback(tune.Callback):  # type: ignore[misc]
    """Callback that tells the searcher when a trial gets its machine or loses it; Tune itself tells it only of results.

    Beside it, a look at each step of Tune whether Ray is alive, and whether the workers have yet to be told to stop.
    """

    def __init__(self, searcher: LedgerSearcher) -> None:
        """Tell this searcher."""
        self.searcher = searcher

    def on_step_begin(self, **_: object) -> None:
        """Leave Tune where Ray has died; where the session stops and the store was away, tell the workers again."""
        ray_runtime.check_alive()
        if self.searcher.session.stopping:
            self.searcher.session.stop()

    def on_trial_recover(self, trial: TuneTrial, **_: object) -> None:
        """Tell it of a trial that waits for a machine once more, and whether its process has died."""
        self.searcher.trial_stopped(trial.trial_id)
        if isinstance(_last_error(trial), RayActorError):
            self.searcher.worker_died(trial.trial_id)

    def on_trial_start(self, trial: TuneTrial, **_: object) -> None:
        """Tell it, and how to read the error that may end the trial's worker."""
        self.searcher.last_errors[trial.trial_id] = partial(_last_error, trial)
        self.searcher.trial_started(trial.trial_id)
