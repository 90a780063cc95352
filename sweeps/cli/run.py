"""From a decided sweep to its table: data there, plan read, lease taken, trials run, runs tracked, table shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data import availability
from data.availability import ensure_dataset
from data.datasets import DataSet
from sweeps.cli.forecast import Forecast, compare, foretold, report_cost, workload
from sweeps.cli.settings import BUDGET, DONE, INTERRUPTED, Errand, as_json, stamp
from sweeps.cli.summary import print_summary
from sweeps.execution import packing, throughput
from sweeps.execution.price import Speed
from sweeps.execution.resources import check_rank_batches, hardware_key, resolve_resources, why_unschedulable
from sweeps.experiment.plan import Plan, plan, plan_to_json
from sweeps.experiment.trial import Trial
from sweeps.training.runtime import RuntimeConfig

if TYPE_CHECKING:
    from sweeps.execution.session import DriverState


def dry_run(errand: Errand) -> int:
    """Print what would run and what is done; nothing is written."""
    found = plan(errand.sweep, errand.ledger, availability.fingerprints(errand.sweep.datasets, errand.choice.data_dir))
    if errand.options.json:
        print(
            as_json(
                plan_to_json(found) | {"total": found.total, "states": {s.trial.key: s.state for s in found.statuses}}
            )
        )
        return DONE
    if errand.choice.banner:
        print(errand.choice.banner)
    width = max(len(cell.label) for cell in errand.sweep.cells)
    print(f"{'cell':<{width}}  trials   new  run  done stale fail later   epochs   pictures  operations")
    to_train: dict[str, list[Trial]] = {}
    for trial in (*found.to_do, *found.pending):
        to_train.setdefault(trial.cell.key, []).append(trial)
    for cell in errand.sweep.cells:
        states = [standing.state for standing in found.of(cell)]
        counts = [states.count(state) for state in ("new", "running", "done", "stale", "failed")]
        own = to_train.get(cell.key, [])
        later = len(own) - counts[0] - counts[1]
        row = "".join(f"{count or '.':>5}" for count in counts) + f"{later or '.':>6}"
        seen, arithmetic = (f"{value:.3g}" if value else "." for value in workload(own, errand.choice.data_dir))
        epochs = cell.recipe.epochs * len(own)
        print(f"{cell.label:<{width}}  {len(states) + later:>6} {row}   {epochs or '.':>6} {seen:>10} {arithmetic:>11}")
    if found.pending:
        print("later: what follows once a cell's dropout is chosen, or a first phase is over")
    left = len(found.to_do) + len(found.pending)
    print(f"{found.total} trials, {left} of them to train, data: {', '.join(errand.sweep.datasets)}")
    work = workload((*found.to_do, *found.pending), errand.choice.data_dir)
    if any(work):
        print(f"to train: {work[0]:.3g} pictures seen, {work[1]:.3g} floating-point operations")
        print(foretold(errand, found))
    return DONE


def run_sweep(errand: Errand) -> int:
    """Run the sweep to its table and return the exit code."""
    options, ledger = errand.options, errand.ledger
    if errand.choice.banner and not options.quiet:
        print(errand.choice.banner, file=sys.stderr)
    _writable(errand)

    def tell(sentence: str) -> None:
        if not options.quiet:
            print(sentence, file=sys.stderr)

    choice, local = errand.choice, errand.choice.address == "local"
    facts = {
        name: ensure_dataset(name, choice.data_dir, tell, choice.data_source, pictures=local)
        for name in errand.sweep.datasets
    }
    fingerprints = availability.fingerprints(errand.sweep.datasets, errand.choice.data_dir)
    from sweeps.store.lease import Busy, Lease

    try:
        with Lease(ledger, errand.sweep.title):
            _prepare_ledger(errand, fingerprints)
            found = plan(errand.sweep, ledger, fingerprints)
            if _forget_stale(errand, found):
                found = plan(errand.sweep, ledger, fingerprints)
            ledger.write_json(f"plans/{errand.sweep.title}.json", plan_to_json(found))
            code = _run(errand, found, facts, fingerprints)
    except Busy as busy:
        raise ValueError(str(busy)) from None
    return print_summary(errand, facts, fingerprints, code)


def _prepare_ledger(errand: Errand, fingerprints: dict[str, str]) -> None:
    """Do what --fresh and --retry-failed ask for."""
    if not (errand.options.fresh or errand.options.retry_failed):
        return
    for standing in plan(errand.sweep, errand.ledger, fingerprints).statuses:
        if errand.options.fresh:
            errand.ledger.forget(standing.trial.key)
        elif standing.state == "failed":
            errand.ledger.delete(f"attempts/{standing.trial.key}")


def _forget_stale(errand: Errand, found: Plan) -> bool:
    """Ask, or do as --stale says: return whether stale results were forgotten, to be trained anew."""
    stale = [standing for standing in found.statuses if standing.state == "stale"]
    wanted = errand.options.stale
    if not stale or wanted == "keep":
        return False
    if wanted == "ask" and not errand.options.yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        cells = len({standing.trial.cell.key for standing in stale})
        print(f"{len(stale)} results of {cells} cells are stale: {stale[0].why}.", file=sys.stderr)
        print("Train them anew? What they were is lost then. [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return False
    for standing in stale:
        errand.ledger.forget(standing.trial.key)
    return True


def _run(errand: Errand, found: Plan, facts: Mapping[str, DataSet], fingerprints: dict[str, str]) -> int:
    """Train what is to be trained, keeping MLflow at the ledger's word; return the exit code so far."""
    from sweeps.tracking.mlflow_runs import Store, is_tracked
    from sweeps.tracking.tracker import Tracker

    ledger, options = errand.ledger, errand.options
    store = Store(errand.uri, errand.experiment, _artifacts(errand), fingerprints)
    behind = [
        standing.trial
        for standing in found.statuses
        if standing.result is not None and not is_tracked(ledger, store, standing.result)
    ]
    if not found.to_do and not behind:
        return DONE
    from sweeps.cli.live_view import LiveView

    code = DONE
    with LiveView(
        found, sys.stdout.isatty() and "CI" not in os.environ, options.quiet or options.json, ledger.root
    ) as view:
        tracker = Tracker(store, ledger, errand.sweep, view.log)
        tracker.register(standing.trial for standing in found.statuses)
        for trial in behind:
            tracker.enqueue(trial)
        if found.to_do:
            code = _run_trials(errand, found, facts, fingerprints, view, tracker)
        missing = tracker.close(20.0 if code == INTERRUPTED else 120.0)
        if missing:
            view.log(
                f"{missing} runs are not in MLflow at {store.uri} yet ({tracker.error}); the same command sends them"
            )
    return code


def _run_trials(
    errand: Errand, found: Plan, facts: Mapping[str, DataSet], fingerprints: dict[str, str], view: Any, tracker: Any
) -> int:
    """Start or join Ray and drive the queue; return the exit code that this led to."""
    from sweeps.cli.interrupts import GracefulInterrupt
    from sweeps.execution import ray_runtime, tuner
    from sweeps.execution.resources import Resources
    from sweeps.execution.session import DriverState, Limits

    options, choice = errand.options, errand.choice
    view.log(f"{len(found.to_do)} trials to train; starting Ray")
    there, kinds = ray_runtime.init_ray(choice.address), ray_runtime.worker_types(ray_runtime.autoscaler())
    # A cluster that grows with its queue may have no machine yet.
    machines = [*ray_runtime.machines(), *(kind for kind, _ in kinds)]
    given = resolve_resources(options, machines, choice.address == "local")
    if short := why_unschedulable(given, machines):
        if kinds:
            raise ValueError(short)
        view.log(f"{short}: trials wait for a machine that has as much")
    check_rank_batches((*found.to_do, *found.pending), facts, given.ranks)
    place = RuntimeConfig(
        ledger=errand.ledger.root,
        data_dir=str(choice.data_dir),
        device=given.device,
        reader=options.reader,
        workers=given.threads,
        threads=given.threads,
        deterministic=options.kernels == "exact",
        data_source=choice.data_source,
        ranks=given.ranks,
    )
    resources = Resources(given.cpus, given.gpus, options.max_concurrent)
    at_once = tuner.max_concurrent(resources)
    if kinds and not there.get("GPU" if given.gpus else "CPU"):
        view.log(
            f"no machine for trials is up yet; the cluster starts as many as there are trials for, {at_once} at once"
        )
    here = hardware_key(place.device, place.threads, place.ranks)
    forecast = Forecast(errand, found, facts, here, resources.gpus, at_once)
    seen: dict[str, Trial] = {}

    def listen(event: str, trial: Trial, news: dict[str, Any]) -> None:
        seen[trial.key] = trial
        view.on_event(event, trial, news, session.planned, session.pending)
        tracker.enqueue(trial, {"left": "KILLED", "failed": "FAILED"}.get(event, "RUNNING"))

    session = DriverState(
        errand.sweep,
        errand.ledger,
        place,
        resources,
        listen,
        stamp(),
        fingerprints,
        {name: (fact.classes, fact.crop) for name, fact in facts.items()},
        Limits(options.max_gpu_hours, 1 if options.fail_fast else options.max_failures),
    )
    _plan_measurements(session, forecast, view)
    view.hours = session.hours
    view.where = f"Ray {choice.address}: {_machines(there)}"
    with GracefulInterrupt(session, view.log) as interrupts:
        try:
            tuner.run_trials(session)
        except tuner.NoProgressError as error:
            view.log(f"giving up: {error}; -v shows all of it")
        finally:
            errand.ledger.delete(session.stop_mark)
            if options.verbose:
                for trace in session.errors:
                    view.log(trace)
    if session.stop_reason:
        view.log(f"stopped: {session.stop_reason}")
    compare(forecast, [(seen[key], seconds) for key, seconds in session.seconds_by_trial.items()], view)
    report_cost(errand, session, view)
    if interrupts.caught:
        return INTERRUPTED
    return BUDGET if session.over_budget else DONE


def _machines(there: Mapping[str, float]) -> str:
    """Return what a cluster has."""
    return ", ".join(f"{there[name]:g} {name}s" for name in ("CPU", "GPU") if there.get(name))


def _plan_measurements(session: DriverState, forecast: Forecast, view: Any) -> None:
    """Set how trials share their pictures, as asked for or as pays; give the session what is to be measured first."""
    from sweeps.execution.throughput import Gauge

    errand, facts, place, gpus = forecast.errand, forecast.facts, session.config, session.resources.gpus
    trials, smoke, streams = forecast.plan.to_do, errand.choice.profile == "smoke", set[str]()
    stay = frozenset(name for name, fact in facts.items() if packing.fits_on_device(fact, place.resident_bytes))
    if errand.options.pack != "auto":
        session.pack_policy = packing.PackPolicy(errand.options.pack, resident=stay)
    elif place.ranks == 1 and len(trials) > forecast.at_once and not smoke:
        streams = packing.shared_datasets(trials, stay)
    reading = f"{forecast.here} {place.reader} {gpus:g}"
    makers = throughput.known(errand.ledger, streams, reading)

    def found(speeds: Mapping[str, Speed], read: Mapping[str, throughput.Maker]) -> None:
        forecast.learn(speeds, len(session.gauge.starts) if session.gauge else 0)
        throughput.keep(errand.ledger, read, reading)
        if streams:
            session.pack_policy = packing.policy_from_throughput(
                trials, forecast.rates(), {**makers, **read}, place.device
            )
        if cells := session.pack_policy.cells:
            view.log(f"{len(cells)} cells share their pictures in packs: reading them takes much of a step")
        if sentence := forecast.sentence(forecast.start()):
            view.log(sentence)

    nets, unread = {} if smoke else forecast.lacking(), sorted(streams - makers.keys())
    if not nets and not unread:
        found({}, {})
        return
    what = [f"the speed of {len(nets)} nets"] if nets else []
    what += [f"how fast {', '.join(unread)} can be read"] if unread else []
    view.log(f"measuring {' and '.join(what)}")
    session.gauge = Gauge(nets, unread, found, forecast.at_once, first=bool(streams), share=gpus or 1.0)


def _artifacts(errand: Errand) -> str:
    """Return where a new experiment of a store without a server keeps its artifacts."""
    return f"{errand.choice.output}/mlartifacts" if errand.uri.startswith("sqlite") else ""


def _writable(errand: Errand) -> None:
    """Raise ValueError where the output folder cannot be written to."""
    try:
        errand.ledger.write("probe", b"")
        errand.ledger.delete("probe")
    except OSError as error:
        raise ValueError(f"cannot write to --output {errand.choice.output}: {error.strerror or error}") from None
