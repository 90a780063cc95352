"""The end of a sweep's run: its table, its report, where everything lies, what to type next."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crelu_data.datasets import DataSet
from sweeps.cli.command import without
from sweeps.cli.options import ExitCode
from sweeps.cli.settings import Settings
from sweeps.cli.status import current_answers
from sweeps.experiment.plan import Plan
from sweeps.experiment.sweep import Sweep
from sweeps.experiment.wording import count
from sweeps.store.local_uris import reports_in
from sweeps.tracking.verb_words import reconcile_words, report_words

if TYPE_CHECKING:
    from sweeps.report.build import Tracked
    from sweeps.report.render.document import Document
    from sweeps.report.terminal import TableRow

# Exit codes after which there is a report.
REPORTED = (ExitCode.DONE, ExitCode.FAILED, ExitCode.UNTRACKED)


class Summary(NamedTuple):
    """What a run has come to: the declared plan and the part that was asked for, the table, and where things lie.

    `results` and `page` are the paths of the trials' table and of the report's page, `tracked` is a sentence on MLflow,
    `mend` what sends MLflow what it lacks, empty where that is nothing.
    """

    plan: Plan
    asked: Plan
    rows: list[TableRow]
    results: str
    page: str
    tracked: str
    mend: str
    document: Document | None
    code: ExitCode


def conclude(plan: Plan, asked: Plan, settings: Settings, facts: Mapping[str, DataSet], code: ExitCode) -> Summary:
    """Write the results and the report of the declared plan, and return what there is to say.

    The exit code is that of the part that was `asked` for.
    """
    from sweeps.report import build, terminal

    rows = terminal.lines(plan, {name: fact.classes for name, fact in facts.items()}, settings.ledger)
    results = terminal.write_results(plan, settings.ledger, plan.sweep.title)
    mend = f"{reconcile_command(plan.sweep, settings)}   (MLflow lacks runs)" if code == ExitCode.UNTRACKED else ""
    unfinished = asked.to_retry or asked.to_do or asked.given_up
    if code in (ExitCode.DONE, ExitCode.UNTRACKED) and unfinished:
        code = ExitCode.FAILED
    document, report, (tracked, lacks) = (
        _report(plan.sweep, settings) if code in REPORTED else (None, "", build.NOT_ASKED)
    )
    if lacks and code == ExitCode.DONE:
        code, mend = ExitCode.UNTRACKED, f"{report_command(plan.sweep, settings)}   (MLflow lacks the report)"
    if settings.register and code in REPORTED:
        sentence, lacks = _register(plan, settings)
        tracked = "; ".join(filter(None, (tracked, sentence)))
        if lacks and code in (ExitCode.DONE, ExitCode.UNTRACKED):
            code, mend = ExitCode.UNTRACKED, f"{settings.command.again()}   (MLflow lacks registered models)"
    return Summary(plan, asked, rows, results, report, tracked, mend, document, code)


def _register(plan: Plan, settings: Settings) -> Tracked:
    """Register the winner of each cell in MLflow, and return what has become of that."""
    from sweeps.report import build
    from sweeps.tracking.registry import Candidate, aliases, register
    from sweeps.tracking.store_errors import trouble

    ledger = settings.ledger
    title = plan.sweep.title
    names = aliases([cell.label for cell in plan.sweep.cells])
    candidates = []
    # A training function of the user's leaves its files as they are, and no model of ours.
    cells = [cell for cell in plan.sweep.cells if not cell.task]
    if not cells:
        return build.Tracked(f"{settings.register} is not registered: a task leaves no model", lacks=False)
    for cell in cells:
        winner = plan.winner(cell)
        run = str(ledger.tracked(winner.key, title).get("run", "")) if winner is not None else ""
        if winner is not None and run:
            candidates.append(Candidate(names[cell.label], run, {"cell.label": cell.label, "trial.key": winner.key}))
    ledger.guard()
    try:
        new = register(settings.tracking_uri, settings.register, candidates)
    except Exception as error:  # of any kind, from a server or its client; the runs are there
        return build.Tracked(f"{settings.register} is not registered ({trouble(error)})", lacks=True)
    versions = count(len(candidates), "winner")
    return build.Tracked(f"{settings.register} has {versions} of {count(len(names), 'cell')}, {new} new", lacks=False)


def print_summary(summary: Summary, settings: Settings) -> None:
    """Print the table of a sweep, where everything lies, and what to type next.

    The counts are those of the part that was asked for.
    """
    from sweeps.report import factor_tables, terminal
    from sweeps.report.question_tables import text_lines

    plan, asked, rows, results, report, tracked, mend, document, code = summary
    display = settings.display
    decided = current_answers(settings.ledger, plan)
    if display.json:
        places = {"results": results, "report": report, "tracking_uri": settings.tracking_uri}
        questions = {"questions": decided.as_json()} if decided is not None else {}
        print(json.dumps(terminal.as_json(plan, rows) | questions | places | {"exit": code}, indent=1))
        return
    width = shutil.get_terminal_size((140, 40)).columns
    print(terminal.text(plan, rows, width, sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    for name, table in document.tables.items() if document is not None else ():
        if name.startswith("factors"):
            print("\n".join([*factor_tables.text_lines(table), ""]))
    _print_states(asked)
    if decided is not None:
        print("\n".join(text_lines(decided)))
    if further := plan.seeds_text():
        print(f"{further}.")
    if asked.sweep.others:
        print(f"not asked for: {', '.join(cell.label for cell in asked.sweep.others)}.")
    print(f"results   {results}")
    print(f"          {results.removesuffix('.parquet')}.csv")
    if report:
        print(f"report    {report}")
    if settings.tracking_uri.startswith("sqlite"):
        print(f"compare   {shlex.join([_mlflow_command(), 'ui', '--backend-store-uri', settings.tracking_uri])}")
    else:
        print(f"compare   {settings.tracking_uri}, experiment {settings.experiment}")
    if tracked:
        print(f"          {tracked}")
    print(_next_command(asked, settings, code, mend))


def _next_command(asked: Plan, settings: Settings, code: ExitCode, mend: str = "") -> str:
    """Return the line with the command to type next, as it runs."""
    command = settings.command
    sweep = asked.sweep
    protocol = sweep.protocol
    if code in (ExitCode.INTERRUPTED, ExitCode.BUDGET):
        if code == ExitCode.BUDGET and settings.limits.hours == 0:  # the same command would never train anything
            unlimited = replace(command, arguments=without(command.arguments, "--max-gpu-hours", 1))
            return f"resume    {unlimited.again()}   (with --max-gpu-hours 0 nothing is trained)"
        hint = "   (--max-gpu-hours counts from 0 again)" if code == ExitCode.BUDGET else ""
        return f"resume    {command.again()}{hint}"
    if asked.may_retry:
        return f"next      {command.again('--retry-failed')}"
    if asked.given_up:
        label = next(iter(asked.given_up))
        ends_options = ("--",) if label.startswith("-") else ()
        return f"next      {command.verb('explain', '--output', settings.output, *ends_options, sweep.title, label)}"
    if code == ExitCode.UNTRACKED:
        return f"next      {mend}"
    if code != ExitCode.DONE:
        return f"next      {command.again()}"
    if sweep.profile == "smoke":
        return f"next      {command.again(drop='--smoke-test')}   (the sweep itself)"
    if (protocol.ablation or protocol.single) and not protocol.until:
        gain = "standard errors" if asked.most_seeds == 1 else "smaller standard errors"
        return f"next      {command.again('--seeds', str(asked.most_seeds + 2))}   (for {gain})"
    return f"next      {command.verb('export', sweep.title, f'{sweep.title}.zip', '--output', settings.output)}"


def reconcile_command(sweep: Sweep, settings: Settings) -> str:
    """Return the command that sends MLflow what it lacks of a sweep."""
    words = reconcile_words(sweep.title, settings.output, settings.tracking_uri, settings.experiment)
    return settings.command.verb(*words)


def report_command(sweep: Sweep, settings: Settings) -> str:
    """Return the command that writes the report of a sweep anew and sends it to MLflow."""
    return settings.command.verb(*report_words(sweep.title, settings.output, settings.tracking_uri))


def _print_states(plan: Plan) -> None:
    """Print how many trials are done, and which failed or are stale, and why."""
    done, failed = plan.count("done", "stale"), plan.count("failed")
    paused = plan.count("paused")
    planned = count(plan.total, "trial")
    verb = "is" if plan.total == 1 else "are"
    waiting = f", {paused} paused by {'its' if paused == 1 else 'their'} search" if paused else ""
    print(f"{done} of {planned} {verb} done{waiting}{f', {failed} failed' if failed else ''}.")
    for status in plan.statuses:
        if status.state == "failed":
            state = "damaged" if plan.is_damaged(status) else "failed"
            way = plan.way("--retry-failed", "trains it anew", status) if status.trial.key in plan.further else ""
            why = "; ".join(filter(None, (status.why, way)))
            print(f"  {state}: {status.trial.cell.label} {status.trial.label}: {why}")
    for label, why in plan.given_up.items():
        skipped = sum(s.state == "skipped" and s.trial.cell.label == label for s in plan.statuses)
        head = f"skipped: {skipped} of {label}" if skipped else f"given up: {label}"
        print(f"  {head}: {why}; {plan.remedy(label)}.")
    for is_further in (False, True):
        stale = [s for s in plan.statuses if s.state == "stale" and (s.trial.key in plan.further) == is_further]
        if stale:
            verb, them = ("is", "it") if len(stale) == 1 else ("are", "them")
            way = plan.way("--stale retrain", f"trains {them} anew", *stale)
            print(f"{len(stale)} {verb} stale ({stale[0].why}); {way}.")


def _report(sweep: Sweep, settings: Settings) -> tuple[Document | None, str, Tracked]:
    """Write the report and put it on MLflow's runs; return it, its path or why it has none, and what MLflow has of it.

    A store that is no folder has none: its path is then the command that writes it.
    """
    from sweeps.report import build

    if "://" in settings.output:
        return None, report_command(sweep, settings), build.NOT_ASKED
    try:
        written = build.make(
            settings.ledger,
            sweep.title,
            reports_in(settings.output),
            settings.tracking_uri,
            settings.display.quiet or settings.display.json,
        )
    except ValueError as error:
        return None, f"none: {error}", build.NOT_ASKED
    return written.report, str(written.page), written.tracked


def _mlflow_command() -> str:
    """Return the mlflow command of this environment, as one would type it."""
    program = Path(sys.executable).with_name("mlflow")
    return os.path.relpath(program) if program.exists() else "mlflow"
