"""Reports of sweeps: their finished trials as page, Markdown, LaTeX, CSV and Parquet.

    python -m sweeps report                      every sweep of the output folder, and an index of them
    python -m sweeps report SWEEP --to DIR       one of them, written there
    python -m sweeps report SWEEP --watch        written again as trials end; --open shows it in the browser
    python -m sweeps report --check README.md    exit 1 where a table in it no longer matches the store
    python -m sweeps report --from FILE.zip      from a capsule: no GPU, no torch, no Ray, no server
    python -m sweeps export SWEEP FILE.zip       the capsule: all that a report is made of, and the report

It reads the ledger alone, trains nothing, and writes files. Those of an output folder's sweep also go to the MLflow
run of one of its cells; each cell's run links them, with its row of the table as its note. A store that does not take
them costs one sentence and exit code 4.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import socket
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from crelu_models.command_line import Parser, python_command
from sweeps.experiment.wording import count
from sweeps.report import grade_page, index_page
from sweeps.report.contents import document
from sweeps.report.files import write_atomically
from sweeps.report.mlflow_notes import pages
from sweeps.report.progress_bar import progress_bar
from sweeps.report.render.document import Document
from sweeps.report.render.formats import blocks, comma_separated, markdown, markdown_table, parquet, same
from sweeps.report.render.html import page
from sweeps.report.render.latex import latex
from sweeps.report.tidy import tidy
from sweeps.results import capsule
from sweeps.results.evidence import MANIFEST, SweepResults, read_sweep, readable_titles
from sweeps.results.grade import grade
from sweeps.results.reproduction_trees import TREES
from sweeps.store.foreign import printable
from sweeps.store.lease import Drivers
from sweeps.store.ledger import Ledger
from sweeps.store.local_uris import reports_in, sqlite_file
from sweeps.store.logins import not_asked, own_store, same_store
from sweeps.tracking.layout import Owner, table_address
from sweeps.tracking.store_errors import trouble
from sweeps.tracking.verb_words import reconcile_words

DONE, DIFFERS, UNTRACKED = 0, 1, 4
POLL = 2.0  # seconds between two looks at a ledger that is watched
ROWS = ("numbers", "effects", "factors", "claims", "printed", "curves", "dropout", "runs")
KINDS = ("csv", "parquet")


class Tracked(NamedTuple):
    """State of a report in MLflow: where to look or why it is not there, and whether the user's own store lacks it."""

    sentence: str
    lacks: bool


NOT_ASKED = Tracked("", lacks=False)


class WrittenReport(NamedTuple):
    """A report that has been written: the results in it, its document, the path of its page, what MLflow has of it."""

    results: SweepResults
    report: Document
    page: Path
    tracked: Tracked


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`; --output is every verb's."""
    parser.add_argument("sweep", nargs="?", help="one of the output folder's sweeps (default: all, and an index)")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--watch", action="store_true", help="write it again as trials end, until Ctrl-C")
    parser.add_argument("--check", metavar="FILE", help="compare the tables in a Markdown document with the store")
    parser.add_argument("--from", dest="capsule", metavar="FILE.zip", help="read a capsule, not the output folder")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow (default $MLFLOW_TRACKING_URI, SQLite in --output)"
    )
    parser.add_argument("--to", metavar="DIR", help="write here (default OUTPUT/reports; beside a capsule)")


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`; --output is every verb's."""
    parser.add_argument("sweep", help="one of the output folder's sweeps")
    parser.add_argument("file", metavar="FILE.zip", help="the capsule to write")


def run(options: argparse.Namespace) -> int:
    """Write the reports that were asked for, or check a document; return the exit code.

    ValueError for a sweep or table that is not there, and for a cell whose dropout was chosen on test data.
    """
    if options.check and (options.open or options.watch):
        raise ValueError("--check writes no page: leave --open and --watch out")
    if options.capsule and options.watch:
        raise ValueError("--watch is for an output, where trials end: a capsule does not change")
    with source(options) as ledger:
        if options.check:
            return check(ledger, Path(options.check))
        to = Path(options.to or (Path(options.capsule).parent / "reports" if options.capsule else _reports(options)))
        # While it is watched the sweep's own command sends the report, at its end.
        is_sent = not (options.capsule or options.watch)
        store = own_store(options.tracking_uri, ledger.output) if is_sent else ""
        before = _ledger_state(ledger)
        path, code = write_all(ledger, options.sweep, to, store)
        if options.open and not webbrowser.open(path.absolute().as_uri()):
            print(f"no browser is at hand here: open {path}", file=sys.stderr)
        if options.watch:
            watch(ledger, options.sweep, to, before)
    return code


def write_all(ledger: Ledger, sweep: str | None, to: Path, store: str) -> tuple[Path, int]:
    """Write the report of a sweep, or of all and their index; return the page to look at, and the exit code."""
    written: list[WrittenReport] = []
    path = to
    code = DONE
    readable, left_out = readable_titles(ledger, sweep)
    for title in readable:
        written_report = make(ledger, title, to, store)
        written.append(written_report)
        path = written_report.page
        print(summary(written_report.report))
        print(f"report     {path}")
        if written_report.tracked.sentence:
            print(f"MLflow     {written_report.tracked.sentence}")
        code = UNTRACKED if written_report.tracked.lacks else code
    if sweep is None and ledger.read_json(MANIFEST) is None:
        path = write_index(ledger, written, to)
        print(f"index      {path}")
    for sentence in left_out:
        print(sentence, file=sys.stderr)
    return path, code or bool(left_out)


def write_index(ledger: Ledger, written: Sequence[WrittenReport], to: Path) -> Path:
    """Write the index of reports under `to`, and the paper's grade where a row of it has run; return its path."""
    driving = Drivers(ledger).now([written_report.results.title for written_report in written])
    all_results = [written_report.results for written_report in written]
    graded = None
    if any(cell_results.cell.table for results in all_results for cell_results in results.cells):
        graded = grade(TREES["crelu"], all_results)
        grade_page.write(graded, all_results, to / "grade")
    sweeps = [
        index_page.Reported(written_report.results, written_report.report, driving[written_report.results.title])
        for written_report in written
    ]
    path = to / index_page.PAGE
    write_atomically(path, page(index_page.index_document(sweeps, graded)).encode())
    return path


def watch(ledger: Ledger, sweep: str | None, to: Path, before: object) -> None:
    """Write the report again as trials end, fail or pause, until Ctrl-C; `before` is the state of the ledger so far."""
    print("watching; the page is written again as trials end, until Ctrl-C", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(POLL)
            now = _ledger_state(ledger)
            if now != before:
                before = now
                write_all(ledger, sweep, to, "")
    print("no longer watched; the page stays", file=sys.stderr)


def _ledger_state(ledger: Ledger) -> object:
    """Return what changes on a ledger when a trial ends, fails or pauses, or a sweep is declared."""
    attempts = {key: ledger.names(f"attempts/{key}") for key in ledger.folders("attempts")}
    return ledger.names("plans"), ledger.names("results"), ledger.names("paused"), attempts


def make(ledger: Ledger, title: str, to: Path, store: str, quiet: bool = False) -> WrittenReport:
    """Write a sweep's report under `to` and put it on its runs in the user's own MLflow `store`, where there is one.

    `quiet` shows no bar. ValueError as for `run`.
    """
    with progress_bar(f"report on {title}", 5, quiet) as begin:
        begin("reading trials")
        results = read_sweep(ledger, title)
        begin("statistics")
        report = document(ledger, results)
        begin("pages")
        # Matplotlib takes a second to import: --check does without it.
        from sweeps.report.render import figures

        drawn = figures.drawn(report)
        contents = files(drawn, tidy(results))
        ledger.guard()
        path = write(contents, to / title)[0]
        begin("figures")
        figures.write(drawn, to / title / figures.FOLDER)
        begin("sending to MLflow")
        return WrittenReport(results, report, path, track(ledger, results, contents, store) if store else NOT_ASKED)


def track(ledger: Ledger, results: SweepResults, contents: Mapping[str, bytes], store: str) -> Tracked:
    """Put a report on the MLflow runs of a sweep's cells, and return what MLflow has of it.

    The ledger's notes name stores, but a ledger may be somebody else's: only `store`, which the user has named, is
    asked, and gets the login.
    """
    notes = [ledger.tracked(run.key, results.title) for run in results.runs if run.mlflow]
    stores = dict.fromkeys((str(note.get("uri")), str(note.get("experiment"))) for note in notes if note)
    sentences = []
    lacks = False
    for uri, experiment in stores:
        if not same_store(uri, store):
            sentences.append(not_asked(uri))
            continue
        if not _answers(store):
            sentences.append(f"{store} is not there: its runs are without this report; the same command sends it")
            lacks = True
            continue
        from sweeps.tracking.cell_runs import publish_report

        try:
            owner = Owner(ledger.identity, results.title)
            ledger.guard()
            number, runs, _ = publish_report(store, experiment, owner, contents, partial(pages, results))
        except Exception as error:  # of any kind, from a server or its client; the files are written
            sentences.append(f"{store} does not take the report ({trouble(error)}); the same command sends it")
            lacks = True
            continue
        lacks = lacks or not runs
        server = store if store.startswith("http") else "http://127.0.0.1:5000"
        if runs:
            address = table_address(number, results.sweep.metric)
            sentences.append(f"{count(runs, 'run')} with its rows: {server}/{address}")
        else:
            words = reconcile_words(results.title, ledger.output, store, experiment)
            command = python_command("sweeps", *words)
            sentences.append(f"none of the runs is in MLflow; {command} sends them")
    return Tracked("; ".join(filter(None, sentences)), lacks)


def _answers(uri: str) -> bool:
    """Tell whether a store answers, without the minutes that MLflow's client would wait."""
    if (file := sqlite_file(uri)) is not None:
        return file.is_file()
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or address.hostname is None:
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname, port), 5.0):
            return True
    except OSError:
        return False


def export(options: argparse.Namespace) -> int:
    """Write the capsule of a sweep and return the exit code."""
    ledger = Ledger.in_output(options.output)
    results = read_sweep(ledger, options.sweep)
    contents = files(document(ledger, results), tidy(results))
    size = capsule.write(ledger, results, contents, Path(options.file))
    print(f"{options.file}: {results.title}, {count(len(results.runs), 'trial')}, {size / 1e6:.1f} MB")
    print(f"to look at it: {python_command('sweeps', 'report', '--from', options.file)}")
    return DONE


@contextlib.contextmanager
def source(options: argparse.Namespace) -> Iterator[Ledger]:
    """Yield the ledger of the output folder, or that of a capsule.

    A capsule whose digests fit may still hold values that no sweep writes: any error of theirs becomes a ValueError,
    and each names the capsule.
    """
    if not options.capsule:
        yield Ledger.in_output(options.output)
        return
    unpacked = ""
    try:
        with capsule.opened(Path(options.capsule)) as ledger:
            unpacked = ledger.root
            yield ledger
    except ValueError as error:
        why = str(error).replace(unpacked, options.capsule) if unpacked else str(error)
        named = options.capsule in why
        raise ValueError(why if named else f"{options.capsule}: {why.splitlines()[0][:200]}") from error
    except (ArithmeticError, AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{options.capsule} holds what no sweep writes ({why})") from error


def files(report: Document, rows: Mapping[str, list[dict[str, object]]]) -> dict[str, bytes]:
    """Return the files of a report by name: page, Markdown, LaTeX, and the numbers as CSV and Parquet."""
    contents = {"report.html": page(report).encode(), "report.md": markdown(report).encode()}
    contents |= {name: text.encode() for name, text in latex(report).items()}
    for name, lines in rows.items():
        contents |= {f"{name}.csv": comma_separated(lines), f"{name}.parquet": parquet(lines, f"{name}/1")}
    return contents


def write(contents: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files into a folder, delete an earlier report's others, and return the paths."""
    for old in [*folder.glob("tables/*.tex"), *(folder / f"{name}.{kind}" for name in ROWS for kind in KINDS)]:
        if str(old.relative_to(folder)) not in contents:
            old.unlink(missing_ok=True)
    paths = []
    for name, content in contents.items():
        paths.append(folder / name)
        write_atomically(paths[-1], content)
    return paths


def summary(report: Document) -> str:
    """Return the head of a report as one line a tile."""
    tiles = (f"  {tile.value} {tile.label}" + (f" ({tile.sub})" if tile.sub else "") for tile in report.tiles)
    return "\n".join([report.title, *tiles])


def check(ledger: Ledger, path: Path) -> int:
    """Compare each marked table of a Markdown document with the store, say what differs, and return the exit code."""
    marked = blocks(path.read_text(encoding="utf-8"))
    if not marked:
        raise ValueError(f"{path} has no table to check: paste one from report.md, with the markers around it")
    reports: dict[str, Document] = {}
    wrong = 0
    for title, name, content in marked:
        if title not in reports:
            reports[title] = document(ledger, read_sweep(ledger, title))
        table = reports[title].tables.get(name)
        if table is None:
            raise ValueError(f"{title} has no table {name!r}; it has {', '.join(reports[title].tables)}")
        now = markdown_table(table)
        if not same(content, now):
            wrong += 1
            print(f"{path}: {title} {name} no longer matches the store", file=sys.stderr)
            lines = difflib.unified_diff(content.splitlines(), now.splitlines(), "document", "store", lineterm="", n=0)
            print(printable("\n".join(list(lines)[:20])), file=sys.stderr)
    match = "matches" if len(marked) == 1 else "match"
    print(f"{path}: {len(marked) - wrong} of {count(len(marked), 'table')} {match} the store")
    return DIFFERS if wrong else DONE


def _reports(options: argparse.Namespace) -> Path:
    if "://" in options.output:
        raise ValueError(f"--output {options.output} is no local folder: say by --to where the report goes")
    return reports_in(options.output)


if __name__ == "__main__":
    _parser: argparse.ArgumentParser = Parser(prog="python -m sweeps.report.build")
    arguments(_parser)
    _parser.add_argument("--output", default="outputs", metavar="DIR")
    try:
        sys.exit(run(_parser.parse_args()))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
