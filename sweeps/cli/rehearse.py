"""Rehearsal of a sweep: each distinct cell takes its first steps, and its row says whether it would train."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from crelu_data import availability
from crelu_data.cores import cores
from crelu_data.streams import shown_progress
from sweeps.cli.options import ExitCode
from sweeps.cli.settings import Settings
from sweeps.experiment.cell_trials import OWN_RATE, rate_choices
from sweeps.experiment.plan import has_failed
from sweeps.experiment.rates import RateChoice
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.wording import count
from sweeps.store.ledger import Json, Ledger
from sweeps.training.runtime import RuntimeConfig

if TYPE_CHECKING:
    from sweeps.training.rehearsal import Progress, Rehearsal

PAUSE = 20.0  # seconds between two lines on the progress of a cell


def rehearse_sweep(sweep: Sweep, settings: Settings, steps: int) -> ExitCode:
    """Rehearse the cells of a sweep, print a row for each as it is done, and return FAILED where one would not train.

    ValueError where pictures are asked for that are not there.
    """
    from sweeps.training.rehearsal import rehearse
    from sweeps.training.runtime import available_device

    cells = {cell.key: cell for cell in sweep.cells}
    tasks = [cell.label for cell in cells.values() if cell.task]
    if tasks:
        raise ValueError(f"--rehearse takes steps of our own loop, and {tasks[0]!r} has a task: try it by --smoke-test")
    pictures = {name: _pictures(name, settings) for name in sweep.datasets}
    rates = _rate_choices(sweep, settings.ledger)
    for sentence in () if settings.display.quiet else rate_sentences(sweep, rates):
        print(sentence, file=sys.stderr)
    threads = cores()
    config = RuntimeConfig(
        ledger="",
        data_dir=str(settings.data_dir),
        device="cpu" if settings.resources.gpus == 0 else available_device(),
        reader=settings.reader,
        workers=threads,
        threads=threads,
        kernels=settings.kernels,
        data_source=settings.data_source,
    )
    quiet = settings.display.json
    width = max(len(cell.label) for cell in cells.values())
    if not quiet:
        print(f"{count(len(cells), 'cell')}, {count(steps, 'step')} each, on {config.device}")
        print(f"{'cell':<{width}}  {HEAD}", flush=True)
    done: list[Rehearsal] = []
    try:
        for cell in cells.values():
            report = _reporter(cell.label, steps, settings.display.quiet)
            rate = rates.get(cell.key, OWN_RATE).rate or 0.0
            done.append(rehearse(cell, steps, config, pictures[cell.dataset], report, rate))
            if not quiet:
                print(f"{cell.label:<{width}}  {row(done[-1])}", flush=True)
    except KeyboardInterrupt:
        share = f"{len(done)} of {count(len(cells), 'cell')}"
        print(f"interrupted after {share}; a rehearsal keeps nothing", file=sys.stderr)
        return ExitCode.INTERRUPTED
    if quiet:
        print(json.dumps([as_json(rehearsal) for rehearsal in done], indent=1))
    faults = [rehearsal for rehearsal in done if rehearsal.is_fault]
    names = ", ".join(f"{rehearsal.label} ({rehearsal.words})" for rehearsal in faults)
    if faults:
        print(f"{len(faults)} of {count(len(done), 'cell')} would not train: {names}", file=sys.stderr)
    return ExitCode.FAILED if faults else ExitCode.DONE


def _rate_choices(sweep: Sweep, ledger: Ledger) -> dict[str, RateChoice]:
    """Return by cell key the learning rate that a study chooses, as the ledger has it; no more than that is read."""
    tried = {trial.key for choice in rate_choices(sweep, {}, ()).values() for trial in choice.trials}
    if not tried:
        return {}
    results, _ = ledger.read_results(tried)
    return rate_choices(sweep, results, {key for key, tries in ledger.failed().items() if has_failed(tries)})


def rate_sentences(sweep: Sweep, choices: Mapping[str, RateChoice]) -> Iterator[str]:
    """Yield at which learning rate the cells are rehearsed for which a study chooses, and how to take another one."""
    study = sweep.protocol.rates
    if study is None:
        return
    rated = [(choices[cell.key], cell.recipe.lr) for cell in sweep.cells if cell.key in choices]
    for (rate, why, own), n in Counter((choice.rate, choice.why, own) for choice, own in rated).items():
        cells = f"{count(n, 'cell')} rehearsed at"
        others = sorted(set(study.rates) - {own}, reverse=True)
        if rate is not None:
            yield f"{cells} the learning rate that the study chose, {rate:g}"
        elif why:
            yield f"{why}: {cells} the recipe's, {own:g}; add --set recipe.lr=RATE to rehearse another one"
        elif others:
            rates = ", ".join(f"{each:g}" for each in study.rates)
            yield (
                f"{cells} the recipe's learning rate, {own:g}: the study has yet to choose one of {rates}; "
                f"add --set recipe.lr={others[0]:g} to rehearse that one"
            )


HEAD = (
    f"{'loss first':>10} {'last':>7} {'error':>7}  {'norm max':>8} {'median':>8} {'memory':>9} {'images/s':>9}  verdict"
)


def row(rehearsal: Rehearsal) -> str:
    """Return the numbers of a rehearsed cell as a row under HEAD."""
    return (
        f"{rehearsal.first_loss:>10.3f} {rehearsal.last_loss:>7.3f} {rehearsal.error:>5.1f} %  "
        f"{rehearsal.largest_norm:>8.3g} {rehearsal.median_norm:>8.3g} {rehearsal.memory / 2**20:>5.0f} MiB "
        f"{rehearsal.images_per_s:>9.4g}  {rehearsal.words}"
    )


def as_json(rehearsal: Rehearsal) -> Json:
    """Return a rehearsed cell as JSON, None for a number that is not finite."""
    numbers = {name: value for name, value in rehearsal._asdict().items() if name != "losses"}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in numbers.items()
    }


def _pictures(name: str, settings: Settings) -> str:
    """Return the data set to rehearse on in place of `name`: itself where it is there, else embedded pictures."""
    from sweeps.training.rehearsal import stand_in

    def log(sentence: str) -> None:
        if not settings.display.quiet:
            print(sentence, file=sys.stderr)

    present = name in availability.fingerprints([name], settings.data_dir)
    embedded = "" if present or settings.data_source else stand_in(name)
    if embedded:
        log(f"{name} is not in {settings.data_dir}: embedded pictures of its size and classes take its place")
    with shown_progress(settings.display.quiet) as progress:
        availability.ensure_dataset(embedded or name, settings.data_dir, log, settings.data_source, progress=progress)
    return embedded or name


def _reporter(label: str, steps: int, quiet: bool) -> Progress:
    """Return a function that prints a line on a cell's progress now and then, on a terminal."""
    shown = not quiet and sys.stderr.isatty()
    last = time.monotonic()

    def report(done: int, loss: float, images_per_s: float) -> None:
        nonlocal last
        if shown and done < steps and time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            print(f"{label}: step {done} of {steps}, loss {loss:.3f}, {images_per_s:.4g} images/s", file=sys.stderr)

    return report
