"""A run of a sweep, from its settings to its table: data, plan, lease, trials, MLflow, summary."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from crelu_data import availability
from crelu_data.datasets import DataSet, dataset
from crelu_data.interrupts import deferred_interrupts, hosted, last_words
from crelu_data.streams import shown_progress
from sweeps.cli.dry_run import (
    absent_pictures,
    in_training,
    left_out,
    stale_results,
    to_forget,
    trained_now,
    unwritable_output,
    with_counts,
)
from sweeps.cli.forecast import Forecast, compare, note_price, report_cost
from sweeps.cli.notify import Notifier
from sweeps.cli.options import ExitCode
from sweeps.cli.settings import Settings
from sweeps.cli.split_check import check_splits
from sweeps.cli.summary import Summary, conclude, reconcile_command
from sweeps.execution import packing
from sweeps.execution.cluster_address import check_cluster
from sweeps.execution.resources import (
    TrialResources,
    check_rank_batches,
    resolve_resources,
    why_unschedulable,
)
from sweeps.experiment.model_facts import check_models, user_names
from sweeps.experiment.plan import Plan, plan, plan_to_json, without_damaged
from sweeps.experiment.questions.registration import changes_of, contents, register
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Trial
from sweeps.experiment.user_code import page_folder, shipped_files
from sweeps.experiment.wording import count
from sweeps.results.evidence import READ
from sweeps.store.checkpoint_header import progress
from sweeps.store.integrity import note_damage
from sweeps.store.ledger import Json
from sweeps.store.leftovers import remove_leftovers
from sweeps.tracking.store_errors import place
from sweeps.training.runtime import RuntimeConfig

if TYPE_CHECKING:
    from sweeps.cli.live_view import LiveView
    from sweeps.execution.session import DriverState
    from sweeps.store.lease import Lease
    from sweeps.tracking.tracker import Tracker

STARTED_OVER = "CRELU_STARTED_OVER"  # how often this process has begun its command anew
HOURS_USED = "CRELU_HOURS_USED"  # hours of GPUs, or of workers on CPUs, that its command had used by then
MAX_STARTED_OVER = 3
# Seconds for MLflow at the end, after its last answer and in all: after an interrupt few, since the next start sends
# what is missing.
CLOSING, LEAVING = (120.0, math.inf), (5.0, 5.0)


def run_sweep(sweep: Sweep, asked: Sweep, settings: Settings) -> Summary:
    """Train the part of a declared sweep that is `asked` for, and return what all of it has come to.

    How it has ended is posted where --notify says.
    """
    with hosted(settings.hosted), Notifier(settings.notify, sweep.title, last_words) as notifier:
        summary = _run_under_lease(sweep, asked, settings, notifier)
        notifier.ended(summary.code, summary.asked)
    return summary


def _run_under_lease(sweep: Sweep, asked: Sweep, settings: Settings, notifier: Notifier) -> Summary:
    """Run a sweep as its driver; `notifier` is for the ends of the process that no exception reaches.

    A driver that has lost its lease posts nothing: it has to end at once, and another one drives the sweep.
    """
    from sweeps.store.lease import Lease, LeaseHeldError, LeaseLostError

    def tell(sentence: str) -> None:
        if not settings.display.quiet:
            print(folded(sentence), file=sys.stderr)

    settings = _without_what_is_done(settings)
    if why := absent_pictures(asked, settings) or unwritable_output(settings):
        raise ValueError(why)
    present = availability.fingerprints(asked.datasets, settings.data_dir)
    if len(present) < len(asked.datasets):
        check_cluster(settings.address)  # before pictures are prepared for it
    _check_writable(settings)
    if settings.display.banner:
        tell(settings.display.banner)
    facts = _ensure_datasets(asked, settings)
    sweep = with_counts(sweep, settings)
    asked = with_counts(asked, settings)
    fingerprints = availability.fingerprints(sweep.datasets, settings.data_dir)
    try:
        with Lease(settings.ledger, sweep.title, tell, _interrupt if settings.hosted else _end_at_once) as lease:
            settings = dataclasses.replace(
                settings,
                guard=lease.check,
                start_over=_give_up if settings.hosted else partial(_start_over, lease, post=notifier.post),
                lose_cluster=_give_up if settings.hosted else partial(_lose_cluster, lease, post=notifier.post),
            )
            with suppress(OSError):
                remove_leftovers(settings.ledger, sweep.title)
            today = _current_plan(asked, settings, fingerprints, tell)
            for status in today.statuses:
                if status.trial.key in today.damaged:
                    note_damage(settings.ledger, status.trial.key, status.why)
            to_train = (*today.to_do, *today.pending)
            declared = today if asked == sweep else plan(sweep, settings.ledger, fingerprints)
            check_splits(to_train, settings.data_dir)
            check_models((trial.cell for trial in to_train), facts, settings.data_dir)
            _register_questions(declared, settings, tell)
            if missing := left_out(declared, settings):
                tell(missing)
            settings.ledger.write_note(f"plans/{sweep.title}.json", plan_to_json(declared))
            note_price(sweep, settings)
            code, declared, today = _run(declared, today, settings, facts, fingerprints)
            lease.check()
            return conclude(declared, today, settings, facts | _known_datasets(sweep, settings), code)
    except (LeaseHeldError, LeaseLostError) as busy:
        raise ValueError(str(busy)) from None


def _without_what_is_done(settings: Settings) -> Settings:
    """Return the settings of a command that has begun anew without what it asks for once: that has been done."""
    if int(os.environ.get(STARTED_OVER, "0")) == 0:
        return settings
    return dataclasses.replace(settings, fresh=False, retry_failed=False, stale="keep")


def _register_questions(declared: Plan, settings: Settings, tell: Callable[[str], None]) -> None:
    """Write on the ledger what a sweep until decided sets out to decide, before it trains anything; tell of changes."""
    sweep = declared.sweep
    if not sweep.protocol.until:
        return
    now = contents(sweep.questions, sweep.cells, sweep.protocol.design)
    trained = sum(status.trial.cell.label in now["cells"] for status in declared.statuses if status.result is not None)
    register(settings.ledger, sweep.title, now, trained)
    for change in changes_of(settings.ledger, sweep.title):
        tell(f"questions: {change.sentence}; table, report and grade say so")


def _start_over(
    lease: Lease, reason: str, hours: float = 0.0, post: Callable[[ExitCode], None] = lambda _: None
) -> None:
    """Begin this command anew in this process, from a thread, where the main thread waits for a Ray that has died.

    The `hours` that it has used count on. What it asks for once, such as --fresh, is not done again.
    """
    from sweeps.execution import ray_runtime

    ray_runtime.kill_ray()
    lease.__exit__(None, None, None)
    times = int(os.environ.get(STARTED_OVER, "0")) + 1
    if times > MAX_STARTED_OVER:
        post(ExitCode.USAGE)
        _end_at_once(f"{reason}, for the {times}th time; the same command resumes")
    last_words(f"{reason}; starting over, trials go on from their checkpoints")
    os.environ[STARTED_OVER] = f"{times}"
    os.environ[HOURS_USED] = f"{hours}"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _lose_cluster(lease: Lease, reason: str, post: Callable[[ExitCode], None] = lambda _: None) -> None:
    """End this command, from a thread, where the cluster that it joined has gone: Ray would do it without a word."""
    lease.__exit__(None, None, None)
    remedy = "start the cluster again (ray up --restart-only FILE), then the same command resumes"
    post(ExitCode.CLUSTER)
    _end_at_once(f"{reason}; nothing is lost, trials go on from their checkpoints: {remedy}", ExitCode.CLUSTER)


def _end_at_once(reason: str, code: ExitCode = ExitCode.USAGE) -> None:
    """End this process without cleaning up, so that no thread writes on; the next driver handles it like a kill."""
    last_words(f"error: {reason}")
    os._exit(code)


def _give_up(reason: str, _: float = 0.0) -> None:
    """Stop a run in a user's process, from a thread, where the main thread waits for a Ray that has died."""
    from sweeps.execution import ray_runtime

    ray_runtime.kill_ray()
    _interrupt(reason)
    time.sleep(1.0)
    _interrupt(reason)  # the first one only asks the trials to stop


def _interrupt(reason: str) -> None:
    """Interrupt the main thread of a user's process, which is not ours to end."""
    last_words(f"{reason}; the same call resumes")
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # also while it waits in C


def _ensure_datasets(sweep: Sweep, settings: Settings) -> dict[str, DataSet]:
    """Return the facts of each data set, prepared where that can be done on the way."""

    def log(sentence: str) -> None:
        if not settings.display.quiet:
            print(sentence, file=sys.stderr)

    local = settings.address == "local"
    with shown_progress(settings.display.quiet) as progress:
        return {
            name: availability.ensure_dataset(name, settings.data_dir, log, settings.data_source, local, progress)
            for name in sweep.datasets
        }


def _known_datasets(sweep: Sweep, settings: Settings) -> dict[str, DataSet]:
    """Return the facts of the data sets that are known without preparing one."""
    known: dict[str, DataSet] = {}
    for name in sweep.datasets:
        with suppress(ValueError, OSError):
            known[name] = dataset(name, settings.data_dir)
    return known


def _current_plan(
    sweep: Sweep, settings: Settings, fingerprints: Mapping[str, str], tell: Callable[[str], None]
) -> Plan:
    """Return the plan after --fresh, --retry-failed and --stale have been obeyed.

    ValueError, with nothing deleted, where the driver of another sweep trains now what they would train anew.
    """
    ledger = settings.ledger
    today = plan(sweep, ledger, fingerprints)
    if why := in_training(today, settings):
        raise ValueError(why)
    anew = to_forget(today, settings)
    changed = bool(anew)
    for cell in today.sweep.cells:
        if settings.fresh:
            ledger.delete(f"insisted/{cell.key}")
        elif settings.retry_failed and today.is_cut_short(cell):
            ledger.write(f"insisted/{cell.key}", b"")
            changed = True
    for status in anew:
        if status.trial.key in today.damaged:
            tell(f"{status.trial.cell.label} {status.trial.label}: {status.why}; it is trained anew")
        ledger.forget(status.trial.key)
    for status in today.to_retry if settings.retry_failed else ():
        ledger.delete(f"attempts/{status.trial.key}")
        changed = True
    if changed:
        today = plan(sweep, ledger, fingerprints)
    if _forget_stale(today, settings):
        today = plan(sweep, ledger, fingerprints)
    return today


def _forget_stale(today: Plan, settings: Settings) -> bool:
    """Ask, or do as --stale says: return whether stale results were forgotten, to be trained anew.

    ValueError where the driver of another sweep trains one of them now.
    """
    stale = stale_results(today)
    if not stale or settings.stale == "keep":
        return False
    if settings.stale == "ask":
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        cells = len({status.trial.cell.key for status in stale})
        verb = "is" if len(stale) == 1 else "are"
        results = f"{count(len(stale), 'result')} of {count(cells, 'cell')}"
        print(f"{results} {verb} stale: {stale[0].why}.", file=sys.stderr)
        print("Train them anew? The present ones are lost then. [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return False
    if why := trained_now(stale, today, settings):
        raise ValueError(why)
    for status in stale:
        settings.ledger.forget(status.trial.key)
    return True


def _run(
    declared: Plan, today: Plan, settings: Settings, facts: Mapping[str, DataSet], fingerprints: dict[str, str]
) -> tuple[ExitCode, Plan, Plan]:
    """Train what today's plan lacks while a tracker brings MLflow up to date with all of the declared one.

    Return the exit code so far, and both plans as they are then.
    """
    from sweeps.cli.live_view import LiveView
    from sweeps.tracking.run_index import Store
    from sweeps.tracking.tracker import Tracker

    store = Store(settings.tracking_uri, settings.experiment, settings.artifacts, fingerprints)
    if today.to_do:
        check_cluster(settings.address)

    code = ExitCode.DONE
    live = sys.stdout.isatty() and "CI" not in os.environ
    quiet = settings.display.quiet or settings.display.json
    with LiveView(today, live, quiet, settings.ledger.root) as view:
        for status in today.statuses:
            if status.why and status.state in ("new", "running"):
                view.log(f"{status.trial.cell.label} {status.trial.label}: {status.why}")
            if status.state in ("running", "paused"):
                view.progress.resume(status.trial, progress(settings.ledger, status.trial.key))
        if begun := [status.trial for status in today.statuses if status.state == "running"]:
            view.log(view.progress.resumed(begun))
        tracker = Tracker(store, settings.ledger, declared.sweep, view.log)
        _register(tracker, declared)
        if today.to_do:
            with _ray_of(settings):
                code = _run_trials(today, settings, facts, fingerprints, view, tracker)
            is_all = today.sweep == declared.sweep
            today = plan(today.sweep, settings.ledger, fingerprints)
            if code == ExitCode.BUDGET and not (today.to_do or today.pending):  # the last epochs have used it up
                code = ExitCode.DONE
            declared = today if is_all else plan(declared.sweep, settings.ledger, fingerprints)
            _register(tracker, declared)
        known = declared.damaged.keys()
        declared, today = _read_files(declared, today, settings)
        if declared.damaged.keys() != known:  # MLflow shows them as finished
            _register(tracker, declared)
        view.waiting = tracker.waiting
        missing = tracker.close(*(LEAVING if code == ExitCode.INTERRUPTED else CLOSING))
    if missing and code == ExitCode.INTERRUPTED:
        print(f"{count(missing, 'run')} not in MLflow yet; the same command sends them", file=sys.stderr)
    elif missing:
        why = f" ({tracker.trouble})" if tracker.trouble.reason else ""
        print(f"{count(missing, 'run')} not in MLflow at {place(store.uri)} yet{why}", file=sys.stderr)
        print(f"mend that, then   {reconcile_command(declared.sweep, settings)}", file=sys.stderr)
        code = ExitCode.UNTRACKED if code == ExitCode.DONE else code
    return code, declared, today


def _read_files(declared: Plan, today: Plan, settings: Settings) -> tuple[Plan, Plan]:
    """Return both plans; a trial with a damaged file that a report reads counts as failed."""
    checked = without_damaged(declared, settings.ledger, READ)
    return checked, checked if today is declared else without_damaged(today, settings.ledger, READ)


@contextmanager
def _ray_of(settings: Settings) -> Iterator[None]:
    """Leave Ray at the end where the process goes on; a command's ends with it. ValueError where it has one already."""
    if not settings.hosted:
        yield
        return
    from sweeps.execution import ray_runtime

    ray_runtime.check_not_joined()
    try:
        yield
    finally:
        ray_runtime.shutdown_ray()


def _register(tracker: Tracker, plan: Plan) -> None:
    """Let the tracker compare MLflow with the trials of a plan; none of them trains now."""
    skipped = [status.trial.key for status in plan.statuses if status.state == "skipped"]
    tracker.register((status.trial for status in plan.statuses), skipped, plan.passed_over)


def _run_trials(
    today: Plan,
    settings: Settings,
    facts: Mapping[str, DataSet],
    fingerprints: dict[str, str],
    view: LiveView,
    tracker: Tracker,
) -> ExitCode:
    """Start or join Ray and run the trials; return the exit code that this led to."""
    from sweeps.cli.interrupts import GracefulInterrupt
    from sweeps.execution.watchdog import STOP_POLL

    doing = "starting Ray" if settings.address == "local" else f"joining Ray at {settings.address}"
    view.log(f"{count(len(today.to_do), 'trial')} to train; {doing}")
    with deferred_interrupts(doing, view.log) as check:
        from sweeps.execution import searcher, tuner
        from sweeps.execution.session import DriverState

        check()
        resources = _join_ray(today, settings, facts, view)
    tasks = {cell.task for cell in today.sweep.trained if cell.task}
    names = [*user_names(cell.net for cell in today.sweep.trained), *sorted(tasks)]
    config = RuntimeConfig(
        ledger=settings.ledger.root,
        data_dir=str(settings.data_dir),
        device=resources.device,
        reader=settings.reader,
        workers=resources.threads,
        threads=resources.threads,
        kernels=settings.kernels,
        data_source=settings.data_source,
        ranks=resources.ranks,
        code_folder=page_folder() if names else "",
        gpu_share=min(1.0, resources.gpus or 1.0),
    )
    forecast = Forecast(today, settings, facts, resources, searcher.max_concurrent(resources))
    view.progress.forecast = forecast
    trials: dict[str, Trial] = {}
    given_up: set[str] = set()  # labels of cells that the log names as given up

    def log_forecast() -> None:
        sentence = forecast.sentence(view.progress.remaining()) if settings.profile != "smoke" else ""
        if sentence:  # a smoke test is over before it would help
            view.log(sentence)

    def on_event(event: str, trial: Trial, news: Json) -> None:
        trials[trial.key] = trial
        forecast.running = len(state.started_at)
        forecast.workers = max(forecast.workers, forecast.running)
        view.on_event(event, trial, news, state.planned, state.pending)
        if event == "epoch" and forecast.is_settled():
            log_forecast()
        for label in state.given_up.keys() - given_up:
            given_up.add(label)
            view.log(f"{label}: {state.given_up[label]}")
        tracker.enqueue(trial, {"left": "KILLED", "paused": "SCHEDULED", "failed": "FAILED"}.get(event, "RUNNING"))

    def start_over(reason: str) -> None:
        settings.start_over(reason, state.hours())

    state = DriverState(
        sweep=today.sweep,
        ledger=settings.ledger,
        config=config,
        resources=resources,
        on_event=on_event,
        name=session_name(),
        fingerprints=fingerprints,
        shapes={name: (fact.classes, fact.crop) for name, fact in facts.items()},
        limits=settings.limits,
        shipped={} if settings.address == "local" else shipped_files(names),
        say=view.log,
        address=settings.address,
        lose_cluster=settings.lose_cluster,
        start_over=start_over,
        hours_before=float(os.environ.get(HOURS_USED, "0")),
    )
    _set_pack_policy(state, forecast, view)
    forecast.seconds_by_trial = state.seconds_by_trial
    log_forecast()
    view.hours = state.hours
    view.progress.decided = state.decided
    poll = STOP_POLL[settings.ledger.local]
    with GracefulInterrupt(state, view.log, settings.hosted, lambda: view.progress.saving(poll)) as interrupt:
        try:
            tuner.run_trials(state)
        except tuner.NoProgressError as error:
            view.log(f"giving up: {error}; -v shows all of it")
        finally:
            with suppress(OSError):  # of a disk that fails; the next start deletes what is left
                settings.ledger.delete(state.stop_mark)
            if settings.display.verbose:
                for trace in state.errors:
                    view.log(trace)
    if state.stop_reason:
        view.log(f"stopped: {state.stop_reason}")
    compare(forecast, [(trials[key], seconds) for key, seconds in state.seconds_by_trial.items()], view.log)
    report_cost(today.sweep, settings, state, view.log)
    if interrupt.caught:
        return ExitCode.INTERRUPTED
    return ExitCode.BUDGET if state.over_budget else ExitCode.DONE


def _join_ray(today: Plan, settings: Settings, facts: Mapping[str, DataSet], view: LiveView) -> TrialResources:
    """Start or join Ray and return the resources of each trial; ValueError where no machine can take a trial."""
    from sweeps.execution import ray_runtime, searcher

    available = ray_runtime.init_ray(settings.address)
    worker_types = ray_runtime.worker_types(ray_runtime.autoscaler())
    # A cluster that grows with its queue may have no machine yet.
    machines = [*ray_runtime.machines(), *(machine for machine, _ in worker_types)]
    resources = resolve_resources(settings.resources, machines, settings.address == "local")
    reason = why_unschedulable(resources, machines)
    if reason and worker_types:
        raise ValueError(reason)
    if reason:
        view.log(f"{reason}: trials wait for a machine that has as much")
    check_rank_batches((*today.to_do, *today.pending), facts, resources.ranks)
    if worker_types and not available.get("GPU" if resources.gpus else "CPU"):
        at_once = searcher.max_concurrent(resources)
        view.log(
            f"no machine for trials is up yet; the cluster starts as many as there are trials for, {at_once} at once"
        )
    hardware = ", ".join(f"{available[name]:g} {name}s" for name in ("CPU", "GPU") if available.get(name))
    view.where = f"Ray {settings.address}: {hardware}"
    return resources


def _set_pack_policy(state: DriverState, forecast: Forecast, view: LiveView) -> None:
    """Set how trials share their pictures: as asked for, or, once epochs have shown where that pays, there."""
    trials = forecast.plan.to_do
    limit = state.config.resident_bytes
    on_gpu = state.resources.gpus > 0
    pack = forecast.settings.resources.pack
    if pack is None:
        pack = "auto" if on_gpu else 1
    resident = frozenset(name for name, fact in forecast.facts.items() if packing.fits_on_device(fact, limit))
    if pack != "auto":
        fixed = packing.PackPolicy(pack, resident=resident, side_by_side=on_gpu)
        state.pack_policy = lambda: fixed
        return
    if state.config.ranks > 1:
        return
    shared = packing.shared_datasets(trials, resident)
    candidates = [trial for trial in trials if trial.cell.dataset in shared]
    announced = False

    def policy_now() -> packing.PackPolicy:
        nonlocal announced
        if on_gpu:
            return packing.policy_on_gpu(trials, forecast.throughputs, state.resources.gpus, resident)
        policy = packing.policy_from_throughput(candidates, forecast.throughputs)
        if policy.cells and not announced:
            cells = count(len(policy.cells), "cell")
            view.log(f"packs share their pictures in {cells}: reading them takes much of a step")
            announced = True
        return policy

    state.pack_policy = policy_now


def folded(sentence: str) -> str:
    """Return a sentence in lines that fit the terminal; as it is where standard error is none."""
    if not sys.stderr.isatty():
        return sentence
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(sentence, columns, break_long_words=False, break_on_hyphens=False)


def session_name() -> str:
    """Return the time and the process as the name of this driver's session."""
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"


def _check_writable(settings: Settings) -> None:
    """Raise ValueError where a trial of writing shows that the output cannot be written to."""
    try:
        settings.ledger.write("probe", b"")
        settings.ledger.delete("probe")
    except OSError as error:
        raise ValueError(f"cannot write to --output {settings.output}: {error.strerror or error}") from None
