"""What the analysis jobs share: the command line, what is done already, files on the ledger, runs, the table."""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from data.datasets import cores, data_dir
from data.load import default_reader
from sweeps.analysis import finished
from sweeps.analysis.finished import Misfit, Source
from sweeps.ledger import Json, Ledger
from sweeps.sets import Place

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
# Raised when the arithmetic of a job changes, so that no old result is taken for a new one.
SCHEMA = 1


class Findings(NamedTuple):
    """What one analysis of one net found.

    `tables` are columns by file name, `pictures` PNG bytes by file name, `rows` the lines of the table that is shown,
    `metrics` what goes on the run, `notes` what a reader has to know.
    """

    tables: Mapping[str, Mapping[str, Any]]
    pictures: Mapping[str, bytes]
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """How one source came out: its summary, or why there is none; a misfit is no failure in a sweep."""

    source: Source
    summary: Json | None
    why: str = ""
    misfit: bool = False


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m sweeps.analysis.NAME`, to which a job adds its own options."""
    found = argparse.ArgumentParser(
        prog=f"python -m sweeps.analysis.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Results already there are kept. Exit codes: 0 done, 1 some runs failed, 2 usage, data or nothing fits.",
        allow_abbrev=False,
    )
    what = found.add_argument_group("whose weights")
    what.add_argument("--run", metavar="RUN_ID", help="one finished run, by MLflow's run id or by its trial key")
    what.add_argument("--sweep", metavar="NAME", help="all finished runs of a sweep that the analysis fits")
    what.add_argument("--weights", metavar="FILE", help=f"anybody's weights, or {finished.TORCHVISION}")
    what.add_argument("--net", default="", metavar="NAME", help="the net of --weights: S2, S8, S3_crelu, alexnet ...")
    how = found.add_argument_group("how")
    how.add_argument("--layers", nargs="+", default=[], metavar="CONV", help="only these, e.g. conv1 conv2")
    how.add_argument("--samples", type=whole, default=0, metavar="N", help="pictures or draws (default: the paper's)")
    how.add_argument("--seed", type=whole, default=0, metavar="N", help="of what is drawn at random (default 0)")
    how.add_argument("--dataset", default="", metavar="NAME", help="pictures to look at (default: the run's own)")
    how.add_argument("--fresh", action="store_true", help="redo what is there")
    where = found.add_argument_group("where and with what")
    where.add_argument("--device", default="", metavar="NAME", help="cpu, cuda (default: cuda where there is one)")
    where.add_argument("--output", default="outputs", metavar="DIR", help="where the ledger lies (default outputs)")
    where.add_argument("--data-dir", metavar="DIR", help="the .beton files (default $CRELU_DATA)")
    where.add_argument("--reader", choices=("ffcv", "threads"), help="what decodes the pictures (default: FFCV)")
    where.add_argument("-q", "--quiet", action="store_true", help="only the table")
    return found


def whole(word: str) -> int:
    """Return a whole number of at least 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number of at least 0, not {word!r}")
    return int(word)


SHARED = ("run", "sweep", "weights", "net", "fresh", "device", "output", "data_dir", "reader", "quiet")


def main(job: str, options: argparse.Namespace, alone: bool = False) -> NoReturn:
    """Do the job `job` as the options say, and exit; it needs no weights where it makes sense `alone`."""
    try:
        sys.exit(perform(job, options, alone))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.strerror or error} {error.filename or ''}".rstrip(), file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(USAGE)


def perform(job: str, options: argparse.Namespace, alone: bool = False) -> int:
    """Analyse what the options name, keep it on the ledger, show it, bring it to the runs; return the exit code."""
    place, ledger = _place(options), Ledger(_root(options.output))
    sources = _sources(job, options, ledger, alone)
    asked = {name: value for name, value in vars(options).items() if name not in SHARED}
    outcomes: list[Outcome] = []
    for outcome in each(job, sources, asked, place, options.fresh):
        outcomes.append(outcome)
        if not options.quiet:
            _tell(outcome, len(outcomes), len(sources))
    found = [outcome.summary for outcome in outcomes if outcome.summary is not None]
    if not found:
        raise ValueError(outcomes[0].why if len(outcomes) == 1 else f"{job} fits none of these {len(outcomes)} runs")
    print(table(found), end="")
    for sentence in dict.fromkeys(note for summary in found for note in summary["notes"]):
        print(f"  {sentence}")
    print(f"files      {ledger.path(found[0]['folder'])}" + (f" and {len(found) - 1} more" if len(found) > 1 else ""))
    _track(ledger, [outcome for outcome in outcomes if outcome.summary is not None], options.quiet)
    return FAILED if any(outcome.summary is None and not outcome.misfit for outcome in outcomes) else DONE


def _tell(outcome: Outcome, number: int, total: int) -> None:
    """Say on standard error how one of several sources came out, and of any why it did not."""
    if outcome.summary is None:
        print(f"{'not for' if outcome.misfit else 'failed on'} {outcome.why}", file=sys.stderr)
    elif total > 1:
        print(f"{number}/{total} {outcome.summary['label']}: {outcome.summary['seconds']:.1f} s", file=sys.stderr)


def each(job: str, sources: Sequence[Source], asked: Json, place: Place, fresh: bool) -> Iterator[Outcome]:
    """Yield the outcome of each source, in order: those that are there, and those that are computed now.

    All that passes here are plain values, so that what computes may be a task on another machine.
    """
    for source in sources:
        yield attempt(job, source, asked, place, fresh)


def attempt(job: str, source: Source, asked: Json, place: Place, fresh: bool) -> Outcome:
    """Return the outcome of one source; what does not fit or cannot be read is a sentence, not an error."""
    try:
        return Outcome(source, analyse(job, source, asked, place, fresh))
    except ValueError as error:
        return Outcome(source, None, str(error), isinstance(error, Misfit))


def analyse(job: str, source: Source, asked: Json, place: Place, fresh: bool) -> Json:
    """Return the summary of the job on one source, from the ledger where it is there and was asked for in this way.

    The tables and pictures are written first and the summary last: where there is a summary, all is there.
    """
    ledger = Ledger(place.ledger)
    if source.trial and not fresh:
        kept = _kept(ledger, f"trials/{source.trial}/analysis/{job}", asked)
        if kept is not None:
            return kept
    subject = finished.read(source, ledger)
    folder = f"{subject.folder}/analysis/{job}"
    kept = None if fresh else _kept(ledger, folder, asked)
    if kept is not None:
        return kept
    began = time.monotonic()
    found: Findings = import_module(f"sweeps.analysis.{job}").findings(subject, place, asked)
    names = {"net": subject.label, "trial": source.trial, "dataset": subject.dataset}
    summary = {
        "schema": SCHEMA,
        "job": job,
        "folder": folder,
        "label": subject.label,
        "net": subject.net.name,
        "dataset": subject.dataset,
        "trial": source.trial,
        "asked": asked,
        "rows": [dict(row) for row in found.rows],
        "metrics": dict(found.metrics),
        "notes": list(found.notes),
        "files": _written(ledger, folder, found, names),
        "device": place.device,
        "seconds": round(time.monotonic() - began, 3),
        "finished_ms": time.time_ns() // 1_000_000,
    }
    ledger.write_json(f"{folder}/summary.json", summary)
    return summary


def _written(ledger: Ledger, folder: str, found: Findings, names: Mapping[str, str]) -> dict[str, str]:
    """Write tables and pictures where no summary vouches for them yet; return their SHA-256 by file name."""
    contents = {name: parquet(columns, names) for name, columns in found.tables.items()} | dict(found.pictures)
    ledger.delete(f"{folder}/summary.json")
    for name, content in contents.items():
        ledger.write(f"{folder}/{name}", content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _kept(ledger: Ledger, folder: str, asked: Json) -> Json | None:
    """Return the summary in `folder` if it is of what is asked now."""
    summary = ledger.read_json(f"{folder}/summary.json")
    fits = summary is not None and summary.get("schema") == SCHEMA and summary.get("asked") == asked
    return summary if fits else None


def parquet(columns: Mapping[str, Any], constants: Mapping[str, str]) -> bytes:
    """Return columns (sequences or NumPy arrays of one length), behind `constants` in every row, as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(values) for name, values in columns.items()}
    count = len(next(iter(arrays.values())))
    same = {name: pa.array([value] * count).dictionary_encode() for name, value in constants.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(same | arrays), sink, compression="zstd")
    return sink.getvalue()


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns; a value that a row has not is None."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _place(options: argparse.Namespace) -> Place:
    """Return where and with what the job computes; ValueError for a device that is not here."""
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {device!r} here: {str(error).splitlines()[0]}") from None
    workers = max(1, cores() - 1)
    where = str(data_dir(options.data_dir))
    return Place(
        ledger=_root(options.output),
        data_dir=where,
        device=device,
        reader=options.reader or default_reader(),
        workers=workers,
    )


def _root(output: str) -> str:
    return f"{output if '://' in output else os.path.abspath(os.path.expanduser(output))}/ledger"


def _sources(job: str, options: argparse.Namespace, ledger: Ledger, alone: bool) -> list[Source]:
    given = [name for name in ("run", "sweep", "weights") if getattr(options, name)]
    if alone and not given:
        return [Source()]
    if len(given) != 1:
        raise ValueError(f"{job} needs one of --run RUN_ID, --sweep NAME and --weights FILE, not {len(given)}")
    if options.net and given != ["weights"]:
        raise ValueError(f"--net is for --weights: a {given[0]} knows its net")
    if options.weights:
        return [finished.of_file(options.weights, options.net, options.dataset)]
    found = [finished.of_run(ledger, options.run)] if options.run else finished.of_sweep(ledger, options.sweep)
    return [source._replace(dataset=options.dataset) for source in found]


# Runs ---------------------------------------------------------------------------------------------------------


def _track(ledger: Ledger, outcomes: Sequence[Outcome], quiet: bool) -> None:
    """Bring tables, pictures and metrics to the MLflow runs; what fails there is said and costs nothing else."""
    sent, untracked, away = 0, 0, ""
    for source, summary, *_ in outcomes:
        if summary is None or not source.trial or away:
            continue
        note = ledger.read_json(f"tracked/{source.trial}.json")
        if note is None:
            untracked += 1
            continue
        try:
            sent += send(ledger, summary, str(note["uri"]), str(note["run"]))
        except Exception as error:  # whatever a server or its client comes up with, the results are on the ledger
            away = f"MLflow at {note['uri']} does not take them ({type(error).__name__}: {error})".splitlines()[0]
    if away and not quiet:
        print(f"{away}; the same command sends them", file=sys.stderr)
    if untracked and not quiet:
        print(f"{untracked} of these runs are not in MLflow yet: their files are on the ledger alone", file=sys.stderr)
    if sent and not quiet:
        print(f"MLflow     {sent} runs have the tables and pictures under analysis/")


def send(ledger: Ledger, summary: Json, uri: str, run: str) -> bool:
    """Log the files and metrics of an analysis on an MLflow run, once; return whether that was still to do."""
    folder, job = summary["folder"], summary["job"]
    sent = {"uri": uri, "run": run, "finished_ms": summary["finished_ms"]}
    if ledger.read_json(f"{folder}/tracked.json") == sent:
        return False
    from sweeps.tracking import log_files

    contents = {name: ledger.read(f"{folder}/{name}") for name in [*summary["files"], "summary.json"]}
    files = {f"analysis/{job}/{name}": content for name, content in contents.items() if content is not None}
    log_files(uri, run, files, {name: value for name, value in summary["metrics"].items() if math.isfinite(value)})
    ledger.write_json(f"{folder}/tracked.json", sent)
    return True


# The table ----------------------------------------------------------------------------------------------------


def table(summaries: Sequence[Json]) -> str:
    """Return the rows of these summaries as text: a table for each kind of row, the net in the first column."""
    kinds: dict[tuple[str, ...], list[Json]] = {}
    for summary in summaries:
        for row in summary["rows"]:
            kind = tuple(name for name in row if not name.startswith("paper"))
            kinds.setdefault(kind, []).append({"net": summary["label"]} | row)
    return "\n".join(_drawn(rows, summaries[0]["job"]) for rows in kinds.values())


def _drawn(rows: Sequence[Json], title: str) -> str:
    """Return rows as a table as wide as it takes; the net is named where it changes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    names = list(columns(rows))
    for name in names:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    before = ""
    for row in rows:
        net = row["net"] if row["net"] != before else ""
        before = row["net"]
        shown.add_row(net, *(_text(row.get(name)) for name in names[1:]))
    sink = io.StringIO()
    Console(file=sink, width=400, no_color=True, highlight=False).print(shown)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
