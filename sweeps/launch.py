"""The door of a sweep's page: `main`, which does what its command line asks for."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from crelu_data.streams import make_lasting
from crelu_models.command_line import sentence
from crelu_models.model import Model
from crelu_models.named import split_name
from sweeps.cli.command import Command
from sweeps.cli.garbage import collect_rarely
from sweeps.cli.interrupts import end_at_interrupt, impatient_interrupts
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import absolute_dataset, asked_part, declare, notes, settle
from sweeps.experiment.metrics import Metric
from sweeps.experiment.profiles import names_paper
from sweeps.experiment.questions.question import Question, check_questions
from sweeps.experiment.sweep import Protocol, Sweep, check_name
from sweeps.experiment.task_source import check_task
from sweeps.experiment.trial import Cell, cell_to_json
from sweeps.experiment.user_code import find_module
from sweeps.experiment.wording import is_line, question_of, unknown_name

if TYPE_CHECKING:
    from sweeps.report.loaded import Results

ABLATION = Protocol()


def main(
    name: str,
    question: str | None,
    cells: Sequence[Cell],
    protocol: Protocol = ABLATION,
    also: Mapping[str, Sequence[Cell]] = MappingProxyType({}),
    metric: Metric | None = None,
    of_paper: bool | None = None,
    questions: Sequence[Question] = (),
) -> NoReturn:
    """Run the sweep `name` as the command line says, and exit with one of `ExitCode`.

    `question` is the page's docstring, None where it has none: what --help says first. Its first sentence stands at the
    head of the report.

    `also` holds further groups of cells by name, each trained only where --also names it. A cell's `versus` names the
    cell with which the report compares it besides the first of its table. `metric` is the number by which all cells are
    compared, where they have a training function of their own; without it, each cell's own counts. `questions` are what
    --until-decided decides.

    A page `of_paper` (by default one with a cell of a table) is scaled down where its data or a GPU are missing, as a
    demo. Any other is trained as it is written.
    """
    make_lasting()
    collect_rarely()
    options = parser(name, question, tuple(also), Command.typed(f"sweeps.{name}").page).parse_args()
    # A preempted machine sends SIGTERM. It means what Ctrl-C means, also before there is anything to save, and in the
    # background of a script, where Ctrl-C is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        check_cells(name, cells, *also.values())
    except ValueError as error:
        refuse(str(error))
    try:
        cells = compared_by(metric, cells)
        also = {group: compared_by(metric, more) for group, more in also.items()}
        every = [*cells, *(cell for group in also.values() for cell in group)]
        check_references(name, every)
        check_code(every)
        check_decidable(name, questions, every, protocol)
        more = [cell for group in options.also for cell in also[group]]
        with impatient_interrupts():
            code = launch(name, (*cells, *more), protocol, options, of_paper, questions, question_of(question))
        end_at_interrupt(code)
        sys.exit(code)
    except (ValueError, OSError) as error:
        refuse(sentence(error))
    except KeyboardInterrupt:
        end_at_interrupt(ExitCode.INTERRUPTED)
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)


def compared_by(metric: Metric | None, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return cells with the page's metric, where it has one, and absolute paths; ValueError for one of our own loop."""
    cells = tuple(at_absolute_path(cell) for cell in cells)
    return cells if metric is None else tuple(replace(cell, metric=metric) for cell in cells)


def at_absolute_path(cell: Cell) -> Cell:
    """Return a cell with the path of its folder of pictures made absolute: workers run elsewhere."""
    return replace(cell, dataset=absolute_dataset(cell.dataset))


def run(
    name: str,
    cells: Sequence[Cell],
    protocol: Protocol = ABLATION,
    *,
    output: str | os.PathLike[str] = "outputs",
    profile: str = "",
    dataset: str = "",
    seeds: int = 0,
    only: Sequence[str] = (),
    flags: Sequence[str] = (),
    metric: Metric | None = None,
    questions: Sequence[Question] = (),
) -> Results:
    """Train what a sweep lacks, as `main` does, and return its results: for a notebook or a script.

    The words are those of the command line, and `flags` has any other of its options, such as ["--pack", "auto"].
    `metric` and `questions` are those of `main`. Ctrl-C lets running trials save their state and raises
    KeyboardInterrupt; the same call resumes. ValueError for what cannot be run. A trial that fails raises nothing: the
    table says so.
    """
    from sweeps.cli.run import run_sweep
    from sweeps.report.loaded import Results

    words = ["--output", os.fspath(output), *(["--profile", profile] if profile else [])]
    words += [*(["--dataset", dataset] if dataset else []), *(["--seeds", str(seeds)] if seeds else [])]
    words += ["--only", *only] if only else []
    options = _parsed(name, [*words, *flags])
    check_cells(name, cells)
    cells = compared_by(metric, cells)
    check_references(name, cells)
    check_code(cells)
    check_decidable(name, questions, cells, protocol)
    of_paper = names_paper(cells)
    settings = settle(cells, options, of_paper)
    sweep = declare(name, cells, protocol, options, settings, of_paper, questions)
    for line in notes(cells, protocol, options, settings, of_paper):
        print(line, file=sys.stderr)
    command = Command((sys.executable,), ())
    settings = replace(settings, experiment=settings.experiment or sweep.title, command=command, hosted=True)
    summary = run_sweep(sweep, asked_part(sweep, options), settings)
    if summary.code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt("running trials have saved their state; the same call resumes")
    results = Results(settings.output, sweep.title)
    if not settings.display.quiet:
        print(f"{results!r}; report {summary.page}", file=sys.stderr)
    return results


def _parsed(name: str, words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; ValueError where it is wrong, or asks for something else than a run."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            options = parser(name, "").parse_args(words)
    except SystemExit as ended:
        sentence = printed.getvalue().strip().rpartition("error: ")[2].partition("; all options:")[0]
        raise ValueError(sentence if ended.code else f"{' '.join(words)} asks for no run") from None
    for flag in ("list", "dry_run", "rehearse", "json"):
        if getattr(options, flag):
            raise ValueError(f"--{flag.replace('_', '-')} is for the command line: put the cells on a page")
    return options


def check_references(name: str, cells: Sequence[Cell]) -> None:
    """Raise ValueError where a cell asks to be compared with itself, a cell of other data, or none of the page."""
    labelled = {cell.label: cell for cell in cells}
    for cell in cells:
        if not cell.versus:
            continue
        if cell.versus not in labelled:
            raise ValueError(f"versus of {cell.label!r}: {unknown_name('cell', cell.versus, labelled, name)}")
        reference = labelled[cell.versus]
        if reference is cell:
            raise ValueError(f"versus of {cell.label!r} names the cell itself")
        if reference.dataset != cell.dataset:
            data = f"{cell.dataset} and {reference.dataset}"
            raise ValueError(f"versus of {cell.label!r}: {cell.versus!r} has other pictures ({data})")


def check_decidable(name: str, questions: Sequence[Question], cells: Sequence[Cell], protocol: Protocol) -> None:
    """Raise ValueError where a question cannot be asked of these cells, or nothing is trained that decides it."""
    check_questions(name, questions, cells)
    if questions and not protocol.trains_cells:
        raise ValueError(f"question {questions[0].text!r} needs seeds or folds: the protocol of {name} trains neither")


def check_cells(name: str, *groups: Sequence[Cell]) -> None:
    """Raise ValueError where a page hands over a name that no title can have, or something else than cells, or none.

    Also where a label or a level of a factor is no line of text, which no table or chart could show.
    """
    check_name(name)
    for cells in groups:
        if not isinstance(cells, Sequence) or not all(isinstance(cell, Cell) for cell in cells):
            raise ValueError(f"the cells of {name} are a list of Cell, as in [Cell(...), Cell(...)], not {cells!r:.80}")
    for cell in itertools.chain(*groups):
        for word in (cell.label, *(level for _, level in cell.factors if isinstance(level, str))):
            if not is_line(word):
                raise ValueError(f"the label of a cell, and a level in words, is one line of text, not {word!r:.80}")
    if not groups[0]:
        raise ValueError(f"{name} has no cell: it needs at least one")


def check_code(cells: Sequence[Cell]) -> None:
    """Raise ValueError where a cell names a training function, or a module of its net, that is not there."""
    for name in dict.fromkeys(name for cell in cells if isinstance(cell.net, Model) for name in cell.net.user_names):
        try:
            find_module(split_name(name)[0])
        except LookupError as error:
            raise ValueError(f"{name}: {error}") from None
    for task in dict.fromkeys(cell.task for cell in cells if cell.task):
        check_task(task)


def refuse(sentence: str) -> NoReturn:
    """Say why nothing was done, and exit 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(ExitCode.USAGE)


def launch(
    name: str,
    cells: tuple[Cell, ...],
    protocol: Protocol,
    options: argparse.Namespace,
    of_paper: bool | None = None,
    questions: Sequence[Question] = (),
    question: str = "",
) -> ExitCode:
    """Do what the options say and return the exit code; `of_paper` is that of `main`, `question` is a sentence."""
    if options.rehearse and options.dry_run:
        raise ValueError("--rehearse takes steps and --dry-run takes none: leave one out")
    of_paper = names_paper(cells) if of_paper is None else of_paper
    settings = settle(cells, options, of_paper)
    sweep = replace(declare(name, cells, protocol, options, settings, of_paper, questions), question=question)
    asked = asked_part(sweep, options)
    if options.list:
        return show_cells(asked, settings.display.json)
    for line in notes(cells, protocol, options, settings, of_paper):
        print(line, file=sys.stderr)
    if options.rehearse:
        from sweeps.cli.rehearse import rehearse_sweep

        return rehearse_sweep(asked, settings, options.rehearse)
    from sweeps.cli.dry_run import dry_run
    from sweeps.cli.run import run_sweep
    from sweeps.cli.summary import print_summary

    command = Command.typed(f"sweeps.{name}")
    settings = replace(settings, experiment=settings.experiment or sweep.title, command=command)
    if options.dry_run:
        return dry_run(sweep, asked, settings)
    summary = run_sweep(sweep, asked, settings)
    print_summary(summary, settings)
    return summary.code


def show_cells(sweep: Sweep, as_json: bool = False) -> ExitCode:
    """Print the cells of a sweep, one a line, or as JSON."""
    if as_json:
        print(json.dumps([{"key": cell.key} | cell_to_json(cell) for cell in sweep.cells], indent=1))
        return ExitCode.DONE
    width = max(len(cell.label) for cell in sweep.cells)
    for cell in sweep.cells:
        table = f"Table {cell.table}" if cell.table else ""
        what = f"{cell.net.name:<12} {cell.dataset}  {cell.recipe.name}  {table}"
        print(f"{cell.label:<{width}}  {cell.key}  {what}".rstrip())
    return ExitCode.DONE
