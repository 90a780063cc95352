"""Dry run of a sweep: what would run, what is done, and why the run would be refused; nothing is written."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from crelu_data import availability
from crelu_data.cores import cores
from crelu_data.datasets import DataSet, dataset
from crelu_data.storage import unmounted_above
from crelu_models.model import Model
from crelu_models.spec import Net
from sweeps.cli.forecast import forecast_before_start, hours_per_training, workload
from sweeps.cli.options import ExitCode
from sweeps.cli.settings import Settings
from sweeps.cli.split_check import check_splits
from sweeps.execution.cluster_address import check_cluster
from sweeps.execution.resources import check_rank_batches, resolve_resources
from sweeps.experiment.model_facts import check_models, counted_parameters, seen_by, user_names
from sweeps.experiment.plan import Plan, TrialStatus, declared_sweep, plan, plan_to_json, state_heads
from sweeps.experiment.profiles import EMBEDDED
from sweeps.experiment.questions.expected_cost import expected_costs
from sweeps.experiment.questions.question import asked_cells
from sweeps.experiment.space import searched_models
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.trial import Trial
from sweeps.experiment.wording import count
from sweeps.store.lease import Drivers, driver, owner_text, trained_elsewhere
from sweeps.training.runtime import visible_gpus

NAMED: Final = 4  # cells at most whose finished trainings are named as left out


@availability.listed_once()
def dry_run(sweep: Sweep, asked: Sweep, settings: Settings) -> ExitCode:
    """Print what of a declared sweep would run, by the part that is `asked` for, and what is done; write nothing.

    Then say why the run would be refused, if it would.
    """
    sweep = with_counts(sweep, settings)
    asked = with_counts(asked, settings)
    fingerprints = availability.fingerprints(sweep.datasets, settings.data_dir)
    declared = plan(sweep, settings.ledger, fingerprints)
    today = plan(asked, settings.ledger, fingerprints)
    _no_models(today, settings)  # one process measures all models, for the counts too
    facts = _facts(declared, settings)
    if settings.display.json:
        states = {status.trial.key: status.state for status in (*declared.statuses, *today.statuses)}
        part = {"total": today.total, "states": states, "asked": [cell.label for cell in asked.cells]}
        print(json.dumps(plan_to_json(declared) | part, indent=1))
    else:
        _print_plan(declared, today, settings, facts)
    reason = next(filter(None, (check(today, settings) for check in REFUSALS)), "")
    if reason:
        print(f"error: {reason}", file=sys.stderr)
    return ExitCode.USAGE if reason else ExitCode.DONE


def with_counts(sweep: Sweep, settings: Settings) -> Sweep:
    """Return the sweep with what its search needs to count parameters, if it limits them.

    That is the number of classes of each data set, the side of its views, and the parameters of each model that may be
    chosen. They come from the pictures that are here or will be prepared and from the models' code, else from the plan
    of the last run. They are stored in the plan: a command without pictures and code refuses the same suggestions as
    the driver. A model that cannot be built has no count; that of a cell is refused later, with its reason.
    """
    search = sweep.protocol.search
    if search is None or "parameters" not in search.limits_by_name:
        return sweep
    classes: dict[str, int] = {}
    sides: dict[str, int] = {}
    counts: dict[str, int] = {}
    last = _last_declared(sweep.title, settings)
    if last is not None and last.protocol.search is not None:
        classes |= dict(last.protocol.search.classes)
        sides |= dict(last.protocol.search.sides)
        counts |= last.protocol.search.noted_counts
    for name in sweep.datasets:
        with suppress(ValueError, OSError):
            facts = availability.expected_pictures(name, settings.data_dir)[0]
            classes[name], sides[name] = facts.classes, facts.crop
    models = [
        (model, classes[cell.dataset])
        for cell in sweep.cells
        if isinstance(cell.net, Model) and cell.dataset in classes
        for model in searched_models(cell.net, search.axes)
    ]
    counts |= counted_parameters(models)
    counted = dataclasses.replace(
        search, classes=tuple(classes.items()), sides=tuple(sides.items()), counts=tuple(counts.items())
    )
    return dataclasses.replace(sweep, protocol=dataclasses.replace(sweep.protocol, search=counted))


def _last_declared(title: str, settings: Settings) -> Sweep | None:
    """Return a sweep as its last start declared it; None where there was none, or it cannot be read."""
    with suppress(ValueError, OSError):
        return declared_sweep(settings.ledger, title)[0]
    return None


def left_out(declared: Plan, settings: Settings) -> str:
    """Return which finished trainings of the last start a plan has no more; empty for none. In MLflow their runs stay.

    They are of cells that were taken off the page, of folds or a search that are no longer asked for, or of another
    page of this name. Those of a setting that a search has yet to choose, or a study of the rate, may be chosen again.
    """
    sweep = declared.sweep
    last = _last_declared(sweep.title, settings)
    if last is None or (last.cells, last.protocol) == (sweep.cells, sweep.protocol):
        return ""
    kept = {status.trial.key for status in declared.statuses}
    before = [status.trial for status in plan(last, settings.ledger, {}).statuses if status.result is not None]
    lost = [trial for trial in before if trial.key not in kept]
    if not lost:
        return ""
    by_label = Counter(trial.cell.label for trial in lost)
    open_places = set(map(_place_of, declared.pending))
    again = sum(_place_of(trial) in open_places for trial in lost)
    cells = ", ".join(f"{number} of {label}" for label, number in by_label.items())
    where = cells if len(by_label) <= NAMED else f"of {count(len(by_label), 'cell')}"
    number = len(lost)
    verb, they = ("is", "it stays") if number == 1 else ("are", "they stay")
    is_other = not {cell.label for cell in last.cells} & {cell.label for cell in sweep.cells}
    remedy = "; another page of this name needs an --output of its own" if is_other else ""
    if again:
        remedy = (
            f"; {again} of these {'counts' if again == 1 else 'count'} again if a search or study chooses the setting"
        )
    return (
        f"{count(number, 'finished training')} of the last start {verb} no part of this one ({where}): {they} on the "
        f"ledger, and table, report, status and MLflow's cells leave {'it' if number == 1 else 'them'} out{remedy}"
    )


def _place_of(trial: Trial) -> tuple[str, str, int, int, int]:
    """Return what a trial has in common with one of another setting that would take its place."""
    return trial.cell.key, trial.phase, trial.seed, trial.folds, trial.fold


def _print_plan(declared: Plan, today: Plan, settings: Settings, facts: Mapping[str, DataSet]) -> None:
    """Print the cells with their trials, what of them is to be trained, and the forecast."""
    if settings.display.banner:
        print(settings.display.banner)
    _print_cells(declared, today, facts)
    if today.pending:
        rate = "the learning rate is chosen, " if today.sweep.protocol.rates else ""
        print(f"later: what follows once {rate}a cell's search or a first phase is over")
    for status in today.statuses:
        if status.trial.key in today.studied:
            print(f"learning rate: {status.trial.cell.label} {status.trial.label}, {status.state}")
    for status in today.statuses:
        if status.why and status.state in ("new", "running", "failed"):
            print(f"{status.trial.cell.label} {status.trial.label}: {status.why}")
    for label, why in declared.given_up_sentences():
        print(f"{label}: {why} ({declared.remedy(label)})")
    if further := declared.seeds_text():
        print(further)
    if missing := left_out(declared, settings):
        print(missing)
    to_train = today.remaining
    share = f"{len(to_train)}{' of them' if today.total > 1 else ''} to train"
    print(f"{count(today.total, 'trial')}, {share}")
    for name in today.sweep.datasets:
        nets = [cell.net for cell in today.sweep.cells if cell.dataset == name]
        print(f"data: {name}{pictures_text(nets, facts[name]) if name in facts else ''}")
    pictures, operations = workload(today, to_train, facts)
    if pictures or operations:
        print(f"to train: {pictures:.3g} pictures seen, {operations:.3g} floating-point operations")
        print(forecast_before_start(today, settings, facts))
    if today.sweep.protocol.until:
        print("\n".join(question_costs(today, settings, facts)))


def pictures_text(nets: Sequence[Net | Model], facts: DataSet) -> str:
    """Return how many pictures a data set has for what, and at which side they are stored and seen by these nets."""
    with suppress(ValueError):  # the refusal of a net names what does not fit
        seen = " or ".join(map(str, sorted({seen_by(net, facts).crop for net in nets})))
        crop = "" if seen == str(facts.size) else f", nets see crops of {seen}"
        numbers = f"{facts.splits['train']:,} for training (searches hold out {facts.holdout:,})"
        return f": {numbers}, {facts.splits[facts.final]:,} for the test; stored at {facts.size} pixels{crop}"
    return ""


def question_costs(today: Plan, settings: Settings, facts: Mapping[str, DataSet]) -> Iterator[str]:
    """Yield the expected cost of a sweep until decided, a line for each case; search and other cells are left out.

    It is that of a sweep from its first training on: of one under way a line says what is decided already.
    """
    from sweeps.results.answers import answers_of_plan
    from sweeps.results.cell_numbers import printed_gains

    sweep = today.sweep
    design = today.sweep.protocol.design
    known = answers_of_plan(today, ())
    if known is not None and known.used:
        closed = sum(answer.decision != "open" for answer in known.answers)
        so_far = f"after {count(known.used, design.unit)} {closed} of {count(len(known.answers), 'question')}"
        if closed == len(known.answers):
            yield f"{so_far} closed: nothing more is trained for them"
            return
        yield f"{so_far} closed; what follows is from the first {design.unit} on"
    labels = asked_cells(sweep.questions)
    hours = hours_per_training(today, settings, labels, facts)
    units = count(design.most * len(labels), design.unit)
    cells = count(len(labels), "cell")
    least = f"{design.first} to " if design.first < design.most else ""
    yield (
        f"{count(len(sweep.questions), 'question')} of {cells}: {least}{design.most} {design.unit}s each, "
        f"{units} as a fixed design; likely, where {design.most} are as many as the margin takes:"
    )
    for expected in expected_costs(sweep.questions, design, printed_gains(sweep)):
        cost = f", {expected.trainings * hours:.3g} hours" if hours else ""
        units = f"{expected.trainings:>5.0f} {design.unit}s{cost}"
        yield f"  {expected.case:<13}  {units}, {expected.decided:.0%} of the questions decided"


def _print_cells(declared: Plan, today: Plan, facts: Mapping[str, DataSet]) -> None:
    """Print a row for each declared cell: its trials by state, and what is to be trained where it is asked for."""
    width = max(len(cell.label) for cell in declared.sweep.cells)
    shown = declared.states
    print(f"{'cell':<{width}}  trials {state_heads(shown)} later   epochs   pictures  operations")
    to_train: dict[str, list[tuple[Trial, int]]] = {}
    for trial, done in today.remaining:
        to_train.setdefault(trial.cell.key, []).append((trial, done))
    for cell in declared.sweep.cells:
        asked = cell not in today.sweep.others
        states = [status.state for status in (today if asked else declared).of(cell)]
        counts = [states.count(state) for state in shown]
        if not asked:
            row = "".join(f"{count or '.':>5}" for count in counts)
            studied = len(to_train.get(cell.key, ()))
            words = f", but for {count(studied, 'training')} of its learning rate" if studied else ""
            print(f"{cell.label:<{width}}  {len(states):>6} {row}      .   not asked for{words}")
            continue
        trials = to_train.get(cell.key, [])
        later = len(trials) - states.count("new") - states.count("running")
        row = "".join(f"{count or '.':>5}" for count in counts) + f"{later or '.':>6}"
        epochs = round(sum(today.epochs_left(trials, today.begun)))
        pictures, operations = (f"{value:.3g}" if value else "." for value in workload(today, trials, facts))
        total = len(states) + later
        print(f"{cell.label:<{width}}  {total:>6} {row}   {epochs or '.':>6} {pictures:>10} {operations:>11}")


# Checks of a run that write nothing: each returns why it would be refused, or nothing.


def absent_pictures(sweep: Sweep, settings: Settings) -> str:
    """Return which pictures of a sweep are not there and how they come; empty where they are, or are made on the way.

    Nothing is read for it, so that it may be asked before anything else.
    """
    try:
        for name in sweep.datasets:
            availability.check_present(name, settings.data_dir, settings.data_source)
    except ValueError as error:
        if settings.hosted or not isinstance(error, availability.NotPreparedError) or not _suits_demo(sweep, settings):
            return str(error)
        return f"{error}; or take embedded pictures: {settings.command.again('--profile', 'demo')}"
    return ""


def _suits_demo(sweep: Sweep, settings: Settings) -> bool:
    """Tell whether the same command would run as a demo: --only and --set may name what a demo does not have."""
    is_narrowed = any(word.startswith(("--only", "--set")) for word in settings.command.arguments)
    return not (settings.dataset or is_narrowed) and all(cell.dataset in EMBEDDED for cell in sweep.cells)


def _no_data(today: Plan, settings: Settings) -> str:
    if why := absent_pictures(today.sweep, settings):
        return why
    local = settings.address == "local"
    try:
        for name in today.sweep.datasets:
            availability.check_available(name, settings.data_dir, settings.data_source, pictures=local)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def unmounted_output(settings: Settings) -> str:
    """Return that the disk of the output folder is not mounted; empty where it is, and for a store elsewhere."""
    point = None if "://" in settings.output else unmounted_above(Path(settings.ledger.root))
    where = f"no disk is mounted at {point}, as /etc/fstab has it"
    return "" if point is None else f"cannot write to --output {settings.output}: {where}"


def unwritable_output(settings: Settings) -> str:
    """Return why the output cannot be written to, as a file that is gone at once shows it; empty where it can."""
    if "://" in settings.output:
        return ""  # a store elsewhere says so only when something is written
    if why := unmounted_output(settings):
        return why
    folder = Path(settings.ledger.root)
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        return f"cannot write to --output {settings.output}: {folder} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot write to --output {settings.output}: no permission in {folder}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"cannot write to --output {settings.output}: {error.strerror or error}"


def _not_writable(_: Plan, settings: Settings) -> str:
    return unwritable_output(settings)


def _no_cluster(today: Plan, settings: Settings) -> str:
    """Return why the cluster that is to train does not answer, or cannot be started here."""
    try:
        if today.to_do:
            check_cluster(settings.address)
    except ValueError as error:
        return str(error)
    return ""


def _holds_links(_: Plan, settings: Settings) -> str:
    try:
        settings.ledger.check_links()
    except ValueError as error:
        return str(error)
    return ""


def _driven(today: Plan, settings: Settings) -> str:
    other = driver(settings.ledger, today.sweep.title)
    if other is None:
        return ""
    return f"another driver works on this sweep: {owner_text(other)}"


def to_forget(today: Plan, settings: Settings) -> list[TrialStatus]:
    """Return the trials whose files --fresh and --retry-failed delete, to train them anew."""
    damaged = today.damaged if settings.retry_failed else {}
    return [status for status in today.asked_for if settings.fresh or status.trial.key in damaged]


def stale_results(today: Plan) -> list[TrialStatus]:
    """Return the trials that are asked for and whose results come from other code or data."""
    return [status for status in today.asked_for if status.state == "stale"]


def trained_now(statuses: Sequence[TrialStatus], today: Plan, settings: Settings) -> str:
    """Return why the files of these trials are not to be deleted: the driver of another sweep trains one of them."""
    keys = [status.trial.key for status in statuses]
    trained = trained_elsewhere(Drivers(settings.ledger), today.sweep.title, keys) if keys else {}
    for trial in (status.trial for status in statuses if status.trial.key in trained):
        flag = "--retry-failed" if trial.key in today.damaged else ""
        flag = "--fresh" if settings.fresh else flag
        way = f"leave out {flag}" if flag else "give --stale keep"
        name = f"{trial.cell.label} {trial.label}"
        return f"{name} is trained now by the driver of {trained[trial.key]}: end that, or {way}"
    return ""


def in_training(today: Plan, settings: Settings) -> str:
    """Return which trial that a flag asks to train anew the driver of another sweep trains now."""
    stale = stale_results(today) if settings.stale == "retrain" else []
    return trained_now([*to_forget(today, settings), *stale], today, settings)


def _no_resources(today: Plan, settings: Settings) -> str:
    """Return why this machine cannot run the trials; for a cluster only Ray knows."""
    if settings.address != "local" or not today.to_do:
        return ""
    facts = {
        name: availability.expected_pictures(name, settings.data_dir)[0] for name in _expected_names(today, settings)
    }
    trials = [trial for trial in (*today.to_do, *today.pending) if trial.cell.dataset in facts]
    machine = {"CPU": float(cores()), "GPU": float(visible_gpus())}
    try:
        check_rank_batches(trials, facts, resolve_resources(settings.resources, [machine], True).ranks)
    except ValueError as error:
        return str(error)
    return ""


def _no_splits(today: Plan, settings: Settings) -> str:
    """Return why the pictures that are there, or are made on the way, cannot be split as the trials need it."""
    expected = _expected_names(today, settings)
    try:
        check_splits((t for t in (*today.to_do, *today.pending) if t.cell.dataset in expected), settings.data_dir)
    except ValueError as error:
        return str(error)
    return ""


def _no_models(today: Plan, settings: Settings) -> str:
    """Return why a model cannot be built, or does not fit its pictures."""
    cells = [trial.cell for trial in (*today.to_do, *today.pending)]
    names = _expected_names(today, settings) if user_names(cell.net for cell in cells) else []
    try:
        facts = {name: availability.expected_pictures(name, settings.data_dir)[0] for name in names}
        check_models(cells, facts, settings.data_dir)
    except ValueError as error:
        return str(error)
    return ""


def _facts(declared: Plan, settings: Settings) -> dict[str, DataSet]:
    """Return the facts of the data sets that are known: prepared, published, or made on the way."""
    facts = {}
    counted = _expected_names(declared, settings)
    for name in declared.sweep.datasets:
        with suppress(ValueError, OSError):
            pictures = availability.expected_pictures(name, settings.data_dir)[0] if name in counted else None
            facts[name] = pictures or dataset(name, settings.data_dir)
    return facts


def _expected_names(today: Plan, settings: Settings) -> list[str]:
    """Return the data sets whose pictures can be counted: those that are there, or are made on the way."""
    present = availability.fingerprints(today.sweep.datasets, settings.data_dir)
    preparable = ("synthetic",) if settings.data_source else ("synthetic", "folder:")
    return [name for name in today.sweep.datasets if name in present or name.startswith(preparable)]


REFUSALS = (
    _not_writable,
    _holds_links,
    _no_cluster,
    _no_data,
    _driven,
    in_training,
    _no_splits,
    _no_resources,
    _no_models,
)
