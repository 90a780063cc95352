"""The command line that the analysis jobs share: whose weights, where, what is there; then doing it, and showing it."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from sweeps.analysis import sources, summary
from sweeps.analysis.compute import JobResult, JobSpec, cached, run_job
from sweeps.analysis.sources import Source
from sweeps.store.ledger import Json, Ledger

if TYPE_CHECKING:
    from sweeps.training.runtime import RuntimeConfig

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
MEMORY = 2**32  # bytes that one analysis keeps within


class Job(NamedTuple):
    """An analysis: its name, what computes it (module:function), whether nets see pictures in it, for which a GPU is
    good, and whether it makes sense `alone`, without weights.
    """

    name: str
    work: str
    pictures: bool = False
    alone: bool = False


def parser(job: Job, question: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m sweeps.analysis.NAME`, to which a job adds its own options."""
    found = argparse.ArgumentParser(
        prog=f"python -m sweeps.analysis.{job.name}",
        description=question,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Results already there are kept. Exit codes: 0 done, 1 some runs failed, 2 usage, data or nothing fits.",
        allow_abbrev=False,
    )
    what = found.add_argument_group("whose weights")
    what.add_argument("--run", metavar="RUN_ID", help="one finished run, by MLflow's run id or by its trial key")
    what.add_argument("--sweep", metavar="NAME", help="all finished runs of a sweep that the analysis fits")
    what.add_argument("--weights", metavar="FILE", help=f"anybody's weights, or {sources.TORCHVISION}")
    what.add_argument("--net", default="", metavar="NAME", help="the net of --weights: S2, S8, S3_crelu, alexnet ...")
    how = found.add_argument_group("how")
    how.add_argument("--layers", nargs="+", default=[], metavar="CONV", help="only these, e.g. conv1 conv2")
    how.add_argument("--samples", type=whole, default=0, metavar="N", help="pictures or draws (default: the paper's)")
    how.add_argument("--seed", type=whole, default=0, metavar="N", help="of what is drawn at random (default 0)")
    how.add_argument("--dataset", default="", metavar="NAME", help="pictures to look at (default: the run's own)")
    how.add_argument("--fresh", action="store_true", help="redo what is there")
    where = found.add_argument_group("where and with what")
    where.add_argument("--device", default="", metavar="NAME", help="cpu, cuda (default: cuda where there is one)")
    where.add_argument("--address", metavar="HOST", help="Ray cluster for many runs (default $RAY_ADDRESS, local)")
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


# What changes no number: all else is what was asked.
SHARED = ("run", "sweep", "weights", "net", "fresh", "device", "address", "output", "data_dir", "reader", "quiet")


def main(job: Job, parser: argparse.ArgumentParser) -> NoReturn:
    """Do the job as the command line says, and exit."""
    options = parser.parse_args()
    try:
        sys.exit(perform(job, options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.strerror or error} {error.filename or ''}".rstrip(), file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(USAGE)


def perform(job: Job, options: argparse.Namespace) -> int:
    """Analyse what the options name, keep it on the ledger, show it, bring it to the runs; return the exit code."""
    ledger = Ledger(_root(options.output))
    found = _sources(job, options, ledger)
    outcomes: dict[Source, JobResult] = {}
    for outcome in each(job, found, options):
        outcomes[outcome.source] = outcome
        if not options.quiet and len(found) > 1:
            _tell(outcome, len(outcomes), len(found))
    if not options.quiet and len(found) > 1:
        _tell_misfits(outcomes.values())
    done = [outcomes[source] for source in found if outcomes[source].summary is not None]
    failed = [outcome for outcome in outcomes.values() if outcome.summary is None and not outcome.not_applicable]
    if not done and len(found) == 1:
        raise ValueError(outcomes[found[0]].why)
    if not done and not failed:
        raise ValueError(f"{job.name} fits none of these {len(found)} runs")
    if done:
        _show(ledger, options, [outcome.summary for outcome in done if outcome.summary is not None])
        _track(ledger, done, options.quiet)
    return FAILED if failed else DONE


def _tell(outcome: JobResult, number: int, total: int) -> None:
    """Say on standard error how one of several sources came out."""
    if outcome.summary is not None:
        print(f"{number}/{total} {outcome.source.name}: {outcome.summary['seconds']:.1f} s", file=sys.stderr)
    elif not outcome.not_applicable:
        print(f"{number}/{total} failed on {outcome.source.name}: {_reason(outcome)}", file=sys.stderr)


def _tell_misfits(outcomes: Iterable[JobResult]) -> None:
    """Say on standard error which cells the analysis does not fit, and why, once for all their runs."""
    cells = Counter((outcome.source.cell, _reason(outcome)) for outcome in outcomes if outcome.not_applicable)
    for (cell, why), runs in cells.items():
        print(f"not for {cell}{f' ({runs} runs)' if runs > 1 else ''}: {why}", file=sys.stderr)


def _reason(outcome: JobResult) -> str:
    """Return why there is no summary, without the name of the run, which stands before it."""
    return outcome.why.removeprefix(f"{outcome.source.name}: ")


def _show(ledger: Ledger, options: argparse.Namespace, summaries: Sequence[Json]) -> None:
    """Print the table, what a reader has to know, and where all of it lies."""
    print(summary.table(summaries), end="")
    for sentence in dict.fromkeys(note for entry in summaries for note in entry["notes"]):
        print(f"  {sentence}")
    if options.sweep:
        print(f"table      {summary.leave(ledger, options.sweep, summaries)} (and .parquet)")
    more = f" and {len(summaries) - 1} more" if len(summaries) > 1 else ""
    print(f"files      {ledger.path(summaries[0]['folder'])}{more}")


# Which, and where -------------------------------------------------------------------------------------------------


def _sources(job: Job, options: argparse.Namespace, ledger: Ledger) -> list[Source]:
    given = [name for name in ("run", "sweep", "weights") if getattr(options, name)]
    if job.alone and not given:
        return [Source()]
    if len(given) != 1:
        raise ValueError(f"{job.name} needs one of --run RUN_ID, --sweep NAME and --weights FILE, not {len(given)}")
    if options.net and given != ["weights"]:
        raise ValueError(f"--net is for --weights: a {given[0]} knows its net")
    if options.weights:
        return [sources.of_file(options.weights, options.net, options.dataset)]
    found = [sources.of_run(ledger, options.run)] if options.run else sources.of_sweep(ledger, options.sweep)
    return [source._replace(dataset=options.dataset) for source in found]


def _root(output: str) -> str:
    return f"{output if '://' in output else os.path.abspath(os.path.expanduser(output))}/ledger"


def each(job: Job, found: Sequence[Source], options: argparse.Namespace) -> Iterator[JobResult]:
    """Yield the outcome of each source as it is known: first those on the ledger, then those that are computed now.

    One is computed here, several as tasks on the Ray cluster that is given, or on one started here. ValueError for a
    device or a cluster that is not there.
    """
    asked = {name: value for name, value in vars(options).items() if name not in SHARED}
    errand, ledger, lacking = JobSpec(job.name, job.work, asked, options.fresh), Ledger(_root(options.output)), []
    for source in found:
        outcome = cached(ledger, errand, source)
        if outcome is None:
            lacking.append(source)
        else:
            yield outcome
    if len(lacking) == 1 and not options.address:
        yield run_job(errand, lacking[0], _place(options, _device(job, options)))
    elif lacking:
        yield from _spread(job, errand, lacking, options)


def _spread(job: Job, errand: JobSpec, lacking: Sequence[Source], options: argparse.Namespace) -> Iterator[JobResult]:
    """Yield the outcomes of these sources as Ray tasks end; a lost one is an outcome too."""
    from sweeps.execution import ray_runtime

    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if not options.quiet:
        print(f"{len(lacking)} runs to analyse; Ray {address}", file=sys.stderr)
    try:
        gpus = ray_runtime.init_ray(address).get("GPU", 0)
        device = options.device or ("cuda" if job.pictures and gpus >= 1 else "cpu")
        if device.startswith("cuda") and gpus < 1:
            raise ValueError(f"no device {device!r} in the Ray cluster {address}: it has no GPU")
        cpus = ray_runtime.cpus_per_task(len(lacking))
        place = dataclasses.replace(_place(options, device), workers=cpus, threads=cpus)
        ended = ray_runtime.map_tasks(
            lambda source: run_job(errand, source, place),
            lacking,
            cpus=cpus,
            gpus=float(device.startswith("cuda")),
            memory=MEMORY,
        )
        for source, outcome in ended:
            yield JobResult(source, None, outcome) if isinstance(outcome, str) else outcome
    finally:
        ray_runtime.shutdown_ray()


def _device(job: Job, options: argparse.Namespace) -> str:
    """Return the device to compute on here; ValueError where it is not."""
    if not options.device and not job.pictures:
        return "cpu"
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {device!r} here: {str(error).splitlines()[0]}") from None
    return str(device)


def _place(options: argparse.Namespace, device: str) -> RuntimeConfig:
    from data.datasets import cores, data_dir
    from data.load import default_reader
    from sweeps.training.runtime import RuntimeConfig

    reader = options.reader or default_reader()
    return RuntimeConfig(_root(options.output), str(data_dir(options.data_dir)), device, reader, max(1, cores() - 1))


# Runs ---------------------------------------------------------------------------------------------------------


def _track(ledger: Ledger, outcomes: Sequence[JobResult], quiet: bool) -> None:
    """Bring tables, pictures and metrics to the MLflow runs; what fails there is said and costs nothing else."""
    sent, untracked, away = 0, 0, ""
    for source, entry, *_ in outcomes:
        if entry is None or not source.trial or away:
            continue
        note = ledger.read_json(f"tracked/{source.trial}.json")
        if note is None:
            untracked += 1
            continue
        try:
            sent += send(ledger, entry, str(note["uri"]), str(note["run"]))
        except Exception as error:  # whatever a server or its client comes up with, the results are on the ledger
            away = f"MLflow at {note['uri']} does not take them ({type(error).__name__}: {error})".splitlines()[0]
    if away and not quiet:
        print(f"{away}; the same command sends them", file=sys.stderr)
    if untracked and not quiet:
        print(f"{untracked} of these runs not in MLflow yet: files on the ledger alone", file=sys.stderr)
    if sent and not quiet:
        print(f"MLflow     {sent} run{'s have' if sent > 1 else ' has'} the tables and pictures under analysis/")


def send(ledger: Ledger, summary: Json, uri: str, run: str) -> bool:
    """Log the files and metrics of an analysis on an MLflow run, once; return whether that was still to do."""
    folder, job = summary["folder"], summary["job"]
    sent = {"uri": uri, "run": run, "finished_ms": summary["finished_ms"]}
    if ledger.read_json(f"{folder}/tracked.json") == sent:
        return False
    from sweeps.tracking.mlflow_runs import log_files

    contents = {name: ledger.read(f"{folder}/{name}") for name in [*summary["files"], "summary.json"]}
    files = {f"analysis/{job}/{name}": content for name, content in contents.items() if content is not None}
    log_files(uri, run, files, {name: value for name, value in summary["metrics"].items() if math.isfinite(value)})
    ledger.write_json(f"{folder}/tracked.json", sent)
    return True
