"""From a decided sweep to its table: data there, plan read, lease taken, trials run, runs tracked, table shown."""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.datasets import DataSet, dataset
from sweeps import sharing
from sweeps.allot import allot, hardware, shareable
from sweeps.ledger import Ledger
from sweeps.plan import Plan, Sweep, declared, plan
from sweeps.price import Price, Speed, keep, known, money, operations, pictures, price, speed_key, total
from sweeps.ready import fingerprints_of, ready
from sweeps.trial import Trial

DONE, FAILED, BUDGET, INTERRUPTED = 0, 1, 3, 130


@dataclass(frozen=True)
class Choice:
    """What was decided from flags, environment and what is there: profile, data set, places."""

    profile: str
    dataset: str
    banner: str
    address: str
    data_dir: Path
    output: str
    data_source: str = ""


@dataclass(frozen=True)
class Errand:
    """A sweep with what was decided and asked for."""

    sweep: Sweep
    choice: Choice
    options: argparse.Namespace

    @property
    def ledger(self) -> Ledger:
        """Return the ledger in the output folder."""
        return Ledger(f"{self.choice.output}/ledger")

    @property
    def uri(self) -> str:
        """Return the MLflow tracking URI: flag, environment, SQLite in the output folder."""
        given = self.options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not given and "://" in self.choice.output:
            raise ValueError("an --output that is no local folder needs --tracking-uri or MLFLOW_TRACKING_URI")
        return given or f"sqlite:///{self.choice.output}/mlflow.db"

    @property
    def experiment(self) -> str:
        """Return the MLflow experiment: flag, environment, the sweep's name."""
        given = self.options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        return given or self.sweep.title


def dry_run(errand: Errand) -> int:
    """Print what would run and what is done; nothing is written."""
    found = plan(errand.sweep, errand.ledger, fingerprints_of(errand.sweep.datasets, errand.choice.data_dir))
    if errand.options.json:
        print(
            _json(declared(found) | {"total": found.total, "states": {s.trial.key: s.state for s in found.standings}})
        )
        return DONE
    if errand.choice.banner:
        print(errand.choice.banner)
    width = max(len(cell.label) for cell in errand.sweep.cells)
    print(f"{'cell':<{width}}  trials   new  run  done stale fail later   epochs   pictures  operations")
    to_train: dict[str, list[Trial]] = {}
    for trial in (*found.to_do, *found.to_come):
        to_train.setdefault(trial.cell.key, []).append(trial)
    for cell in errand.sweep.cells:
        states = [standing.state for standing in found.of(cell)]
        counts = [states.count(state) for state in ("new", "running", "done", "stale", "failed")]
        own = to_train.get(cell.key, [])
        later = len(own) - counts[0] - counts[1]
        row = "".join(f"{count or '.':>5}" for count in counts) + f"{later or '.':>6}"
        seen, arithmetic = (f"{value:.3g}" if value else "." for value in _work(own, errand.choice.data_dir))
        epochs = cell.recipe.epochs * len(own)
        print(f"{cell.label:<{width}}  {len(states) + later:>6} {row}   {epochs or '.':>6} {seen:>10} {arithmetic:>11}")
    if found.to_come:
        print("later: what follows once a cell's dropout is chosen, or a first phase is over")
    left = len(found.to_do) + len(found.to_come)
    print(f"{found.total} trials, {left} of them to train, data: {', '.join(errand.sweep.datasets)}")
    work = _work((*found.to_do, *found.to_come), errand.choice.data_dir)
    if any(work):
        print(f"to train: {work[0]:.3g} pictures seen, {work[1]:.3g} floating-point operations")
        print(_foretold(errand, found))
    return DONE


def _work(trials: Iterable[Trial], where: Path) -> tuple[float, float]:
    """Return the pictures and the operations of trials; zeros where a folder of theirs is not prepared yet."""
    seen = arithmetic = 0.0
    try:
        for trial in trials:
            facts = dataset(trial.cell.dataset, where)
            seen += sum(pictures(trial, facts))
            arithmetic += operations(trial, facts)
    except ValueError:
        return 0.0, 0.0
    return seen, arithmetic


def go(errand: Errand) -> int:
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
        name: ready(name, choice.data_dir, tell, choice.data_source, pictures=local) for name in errand.sweep.datasets
    }
    fingerprints = fingerprints_of(errand.sweep.datasets, errand.choice.data_dir)
    from sweeps.lease import Busy, Lease

    try:
        with Lease(ledger, errand.sweep.title):
            _prepare_ledger(errand, fingerprints)
            found = plan(errand.sweep, ledger, fingerprints)
            if _forget_stale(errand, found):
                found = plan(errand.sweep, ledger, fingerprints)
            ledger.write_json(f"plans/{errand.sweep.title}.json", declared(found))
            code = _run(errand, found, facts, fingerprints)
    except Busy as busy:
        raise ValueError(str(busy)) from None
    return _show(errand, facts, fingerprints, code)


def _prepare_ledger(errand: Errand, fingerprints: dict[str, str]) -> None:
    """Do what --fresh and --retry-failed ask for."""
    if not (errand.options.fresh or errand.options.retry_failed):
        return
    for standing in plan(errand.sweep, errand.ledger, fingerprints).standings:
        if errand.options.fresh:
            errand.ledger.forget(standing.trial.key)
        elif standing.state == "failed":
            errand.ledger.delete(f"attempts/{standing.trial.key}")


def _forget_stale(errand: Errand, found: Plan) -> bool:
    """Ask, or do as --stale says: return whether stale results were forgotten, to be trained anew."""
    stale = [standing for standing in found.standings if standing.state == "stale"]
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
    from sweeps.tracking import Store, Tracker, is_tracked

    ledger, options = errand.ledger, errand.options
    store = Store(errand.uri, errand.experiment, _artifacts(errand), fingerprints)
    behind = [
        standing.trial
        for standing in found.standings
        if standing.result is not None and not is_tracked(ledger, store, standing.result)
    ]
    if not found.to_do and not behind:
        return DONE
    from sweeps.view import View

    code = DONE
    with View(
        found, sys.stdout.isatty() and "CI" not in os.environ, options.quiet or options.json, ledger.root
    ) as view:
        tracker = Tracker(store, ledger, errand.sweep, view.say)
        tracker.know(standing.trial for standing in found.standings)
        for trial in behind:
            tracker.mark(trial)
        if found.to_do:
            code = _train(errand, found, facts, fingerprints, view, tracker)
        missing = tracker.close(20.0 if code == INTERRUPTED else 120.0)
        if missing:
            view.say(
                f"{missing} runs are not in MLflow at {store.uri} yet ({tracker.error}); the same command sends them"
            )
    return code


def _train(
    errand: Errand, found: Plan, facts: Mapping[str, DataSet], fingerprints: dict[str, str], view: Any, tracker: Any
) -> int:
    """Start or join Ray and drive the queue; return the exit code that this led to."""
    from sweeps import cluster, tasks
    from sweeps.sets import Place

    options, choice = errand.options, errand.choice
    view.say(f"{len(found.to_do)} trials to train; starting Ray")
    there, kinds = tasks.connect(choice.address), tasks.kinds(tasks.autoscaler())
    # A cluster that grows with its queue may have no machine yet.
    may = {name: sum(kind.get(name, 0) * count for kind, count in kinds) for name in ("CPU", "GPU")}
    may = {name: max(there.get(name, 0), more) for name, more in may.items()}
    given = allot(options, may, choice.address == "local")
    shareable((*found.to_do, *found.to_come), facts, given.ranks)
    place = Place(
        ledger=errand.ledger.root,
        data_dir=str(choice.data_dir),
        device=given.device,
        reader=options.reader,
        workers=given.threads,
        threads=given.threads,
        data_source=choice.data_source,
        ranks=given.ranks,
    )
    resources = cluster.Resources(given.cpus, given.gpus, options.max_concurrent)
    at_once = cluster.fits(resources)
    if kinds and not there.get("GPU" if given.gpus else "CPU"):
        view.say(
            f"no machine for trials is up yet; the cluster starts as many as there are trials for, {at_once} at once"
        )
    pricer, start = _forecast(errand, found, facts, place, resources, at_once, view)

    seen: dict[str, Trial] = {}

    def listen(event: str, trial: Trial, news: dict[str, Any]) -> None:
        seen[trial.key] = trial
        view.hear(event, trial, news, session.planned, session.to_come)
        tracker.mark(trial, {"left": "KILLED", "failed": "FAILED"}.get(event, "RUNNING"))

    session = cluster.Session(
        errand.sweep,
        errand.ledger,
        place,
        resources,
        listen,
        _stamp(),
        fingerprints,
        {name: (fact.classes, fact.crop) for name, fact in facts.items()},
        cluster.Limits(options.max_gpu_hours, 1 if options.fail_fast else options.max_failures),
        packs=_packs(errand, found, facts, place, resources, view),
    )
    view.hours = session.hours
    view.where = f"Ray {choice.address}: {_machines(there)}"
    with cluster.Interrupts(session, view.say) as interrupts:
        try:
            cluster.drive(session)
        except cluster.Fruitless as error:
            view.say(f"giving up: {error}; -v shows all of it")
        finally:
            errand.ledger.delete(session.stop_mark)
            if options.verbose:
                for trace in session.errors:
                    view.say(trace)
    if session.why:
        view.say(f"stopped: {session.why}")
    _compare(errand, pricer, start, [(seen[key], seconds) for key, seconds in session.took.items()], view)
    _bill(errand, session, view)
    if interrupts.caught:
        return INTERRUPTED
    return BUDGET if session.over_budget else DONE


def _forecast(
    errand: Errand, found: Plan, facts: Mapping[str, DataSet], place: Any, resources: Any, at_once: int, view: Any
) -> tuple[Callable[[Trial], Price | None], float]:
    """Measure what is not measured yet, say what the sweep will take; return what prices a trial, and all starts."""
    from sweeps import cluster

    ledger, here = errand.ledger, hardware(place.device, place.threads, place.ranks)
    keys = {cell.key: speed_key(cell, facts[cell.dataset], here) for cell in errand.sweep.cells}
    speeds = known(ledger, keys.values())
    lacking = {
        keys[cell.key]: (cell, facts[cell.dataset].classes, facts[cell.dataset].crop)
        for cell in {trial.cell.key: trial.cell for trial in found.to_do}.values()
        if keys[cell.key] not in speeds
    }
    if lacking and errand.choice.profile != "smoke":
        view.say(f"measuring the speed of {len(lacking)} nets")
        for key, speed in cluster.measure_speeds(lacking, place, resources).items():
            keep(ledger, key, speed)
            speeds[key] = speed
    pricer = _pricer(found, facts, speeds, keys)
    start = max((speed.start for speed in speeds.values()), default=0.0) * min(at_once, len(found.to_do))
    sentence = _sentence(errand, found, pricer, start, resources.gpus, at_once)
    if sentence:
        view.say(sentence)
    return pricer, start


def _machines(there: Mapping[str, float]) -> str:
    """Return what a cluster has."""
    return ", ".join(f"{there[name]:g} {name}s" for name in ("CPU", "GPU") if there.get(name))


def _pricer(
    found: Plan, facts: Mapping[str, DataSet], speeds: Mapping[str, Speed], keys: Mapping[str, str]
) -> Callable[[Trial], Price | None]:
    """Return what prices a trial by measured speeds; `keys` name the measurement of a cell."""
    # A second phase whose first is done takes about as many epochs as that did to its best.
    ends = {s.trial.key: int(s.result["metrics"].get("best/epoch", 0)) for s in found.standings if s.result is not None}

    def pricer(trial: Trial) -> Price | None:
        speed = speeds.get(keys.get(trial.cell.key, ""))
        return None if speed is None else price(trial, facts[trial.cell.dataset], speed, ends.get(trial.reference, 0))

    return pricer


def _sentence(
    errand: Errand,
    found: Plan,
    pricer: Callable[[Trial], Price | None],
    start: float,
    gpus: float,
    at_once: int,
) -> str:
    """Return what is left of a sweep in hours, with an interval, and in money where an hour has a price.

    Nothing where no net of it has been measured; `gpus` is a trial's share, 0 on CPUs.
    """
    prices = [price for trial in (*found.to_do, *found.to_come) if (price := pricer(trial)) is not None]
    if not prices:
        return ""
    whole, share = total([*prices, Price(start, start, start)]), gpus or 1.0
    hours = Price(*(share * seconds / 3600 for seconds in whole))
    cost = money(whole, errand.options.price_per_gpu_hour, share)
    return (
        f"forecast for {len(prices)} trials: {hours.likely:.3g} {'GPU-hours' if gpus else 'hours of trials'} "
        f"({hours.least:.3g} to {hours.most:.3g}), {whole.likely / at_once / 60:.1f} min with {at_once} at once"
        + (f", {cost}" if cost else "")
    )


def _foretold(errand: Errand, found: Plan) -> str:
    """Return the forecast from what has been measured on this machine before."""
    options, where = errand.options, errand.choice.data_dir
    cuda = options.gpus_per_trial != 0 and bool(glob.glob("/dev/nvidia[0-9]*"))
    gpus = (options.gpus_per_trial or max(1.0, options.ranks)) if cuda else 0.0
    asked = argparse.Namespace(**vars(options) | {"gpus_per_trial": gpus})
    given = allot(asked, {}, False)
    here = hardware(given.device, given.threads, given.ranks)
    facts = {name: dataset(name, where) for name in errand.sweep.datasets}
    keys = {cell.key: speed_key(cell, facts[cell.dataset], here) for cell in errand.sweep.cells}
    room = len(glob.glob("/dev/nvidia[0-9]*")) / gpus if cuda else (os.cpu_count() or 1)
    at_once = options.max_concurrent or max(1, int(room if cuda else room / max(given.cpus, 1e-9)))
    pricer = _pricer(found, facts, known(errand.ledger, keys.values()), keys)
    sentence = _sentence(errand, found, pricer, 0.0, gpus, at_once)
    return sentence or "no forecast: the speed of these nets is measured when the sweep first starts on a machine"


def _packs(
    errand: Errand, found: Plan, facts: Mapping[str, DataSet], place: Any, resources: Any, view: Any
) -> sharing.Packs:
    """Return how trials share their pictures: as asked for, or as measurement says that it pays."""
    from sweeps import cluster

    stay = frozenset(name for name, fact in facts.items() if sharing.resident(fact, place.resident_bytes))
    if errand.options.pack != "auto":
        return sharing.Packs(errand.options.pack, resident=stay)
    streams = sharing.shared(found.to_do, stay)
    if (
        place.ranks > 1
        or not streams
        or len(found.to_do) <= cluster.fits(resources)
        or errand.choice.profile == "smoke"
    ):
        return sharing.Packs()
    ledger, here = errand.ledger, hardware(place.device, place.threads, place.ranks)
    reading = f"{here} {place.reader} {resources.gpus:g}"
    makers = sharing.known(ledger, streams, reading)
    lacking = sorted(streams - makers.keys())
    if lacking:
        view.say(f"measuring how fast {', '.join(lacking)} can be read")
        makers |= cluster.measure_makers(lacking, place, resources)
        sharing.keep(ledger, makers, reading)
    keys = {cell.key: speed_key(cell, facts[cell.dataset], here) for cell in errand.sweep.cells}
    speeds = known(ledger, keys.values())
    learned = {key: speeds[name].train for key, name in keys.items() if name in speeds}
    packs = sharing.worthwhile(found.to_do, learned, makers, place.device)
    if packs.cells:
        view.say(f"{len(packs.cells)} cells share their pictures in packs: reading them takes much of a step")
    return packs


def _compare(
    errand: Errand,
    pricer: Callable[[Trial], Price | None],
    start: float,
    took: Sequence[tuple[Trial, float]],
    view: Any,
) -> None:
    """Say what the finished trials were priced at and what they took; keep both on the ledger."""
    done = [(seconds, found) for trial, seconds in took if errand.ledger.result(trial.key) and (found := pricer(trial))]
    if not done:
        return
    priced, actual = sum(found.likely for _, found in done) + start, sum(seconds for seconds, _ in done)
    off = f"{actual / priced - 1:+.0%}"
    view.say(f"{len(done)} trials: forecast {priced:.0f} s of trials, actual {actual:.0f} s ({off})")
    value = {"forecast_s": priced, "actual_s": actual, "trials": len(done)}
    errand.ledger.write_json(f"forecasts/{errand.sweep.title}-{_stamp()}.json", value)


def _bill(errand: Errand, session: Any, view: Any) -> None:
    """Say what the session cost, failed tries included, and note the price for the report."""
    hourly, seconds = errand.options.price_per_gpu_hour, session.hours() * 3600
    if hourly:
        view.say(f"this session used {seconds / 3600:.3g} hours, {money(Price(*[seconds] * 3), hourly)}")
        share = session.resources.gpus or 1.0
        errand.ledger.write_json(f"prices/{errand.sweep.title}.json", {"hourly": hourly, "share": share})


def _show(errand: Errand, facts: dict[str, DataSet], fingerprints: dict[str, str], code: int) -> int:
    """Print the table, where everything is, and what to type next; return the exit code."""
    from sweeps import table

    ledger, options = errand.ledger, errand.options
    found = plan(errand.sweep, ledger, fingerprints)
    rows = table.lines(found, {name: fact.classes for name, fact in facts.items()}, ledger)
    results = table.write_results(found, ledger, errand.sweep.title)
    failed = found.count("failed")
    if code == DONE and (failed or found.to_do):
        code = FAILED
    reported, tracked = _report(errand) if code in (DONE, FAILED) else ("", "")
    if options.json:
        places = {"results": results, "report": reported, "tracking_uri": errand.uri}
        print(_json(table.as_json(found, rows) | places | {"exit": code}))
        return code
    width = shutil.get_terminal_size((140, 40)).columns
    print(table.text(found, rows, width, sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    done = found.count("done", "stale")
    print(f"{done} of {len(found.standings)} trials are done{f', {failed} failed' if failed else ''}.")
    for standing in found.standings:
        if standing.state == "failed":
            print(f"  failed: {standing.trial.cell.label} {standing.trial.label}: {standing.why}")
    if found.count("stale"):
        print(f"{found.count('stale')} are stale ({next(s.why for s in found.standings if s.state == 'stale')}); "
              "--stale retrain trains them anew.")  # fmt: skip
    print(f"results   {results}")
    if reported:
        print(f"report    {reported}")
    if errand.uri.startswith("sqlite"):
        print(f"compare   {_mlflow()} ui --backend-store-uri {errand.uri}")
    else:
        print(f"compare   {errand.uri}, experiment {errand.experiment}")
    if tracked:
        print(f"          {tracked}")
    if code in (INTERRUPTED, BUDGET):
        print(f"resume    the same command{', with a larger --max-gpu-hours' if code == BUDGET else ''}")
    elif failed:
        print("next      the same command with --retry-failed")
    else:
        more = errand.sweep.protocol.seeds + 2
        print(f"next      python -m sweeps.{errand.sweep.name} --seeds {more}   (for standard errors)")
    return code


def _report(errand: Errand) -> tuple[str, str]:
    """Write the report and put it on MLflow's runs; return its path and where MLflow has it, or why there is none."""
    from sweeps.analysis import report

    if "://" in errand.choice.output:
        return f"python -m sweeps report {errand.sweep.title} --output {errand.choice.output} --to DIR", ""
    try:
        _, path, tracked = report.make(errand.ledger, errand.sweep.title, Path(errand.choice.output, "reports"))
    except ValueError as error:
        return f"none: {error}", ""
    return str(path), tracked


def _mlflow() -> str:
    """Return the mlflow command of this environment, as one would type it."""
    beside = Path(sys.executable).with_name("mlflow")
    return os.path.relpath(beside) if beside.exists() else "mlflow"


def _artifacts(errand: Errand) -> str:
    """Return where a new experiment of a store without a server keeps its artifacts."""
    return f"{errand.choice.output}/mlartifacts" if errand.uri.startswith("sqlite") else ""


def _stamp() -> str:
    """Return the time as the name of a session."""
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1)


def _writable(errand: Errand) -> None:
    """Raise ValueError where the output folder cannot be written to."""
    try:
        errand.ledger.write("probe", b"")
        errand.ledger.delete("probe")
    except OSError as error:
        raise ValueError(f"cannot write to --output {errand.choice.output}: {error.strerror or error}") from None
