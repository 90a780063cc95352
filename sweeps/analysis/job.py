"""The command line of the analysis jobs: find weights, compute what the ledger lacks, print it, send it to MLflow."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from crelu_data.streams import make_lasting
from crelu_models.command_line import Parser, nonnegative_int, python_command, sentence
from sweeps.analysis import sources, summary
from sweeps.analysis.compute import JobResult, JobSpec, cached, request_name, run_job
from sweeps.analysis.sources import Source
from sweeps.experiment.wording import count
from sweeps.report.progress_bar import progress_bar
from sweeps.results.analyses import STALE
from sweeps.store.ledger import Json, Ledger
from sweeps.store.logins import not_asked, own_store, same_store

if TYPE_CHECKING:
    from sweeps.training.runtime import RuntimeConfig

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
MEMORY = 2**32  # bytes that one analysis keeps within


class Job(NamedTuple):
    """An analysis by name, and the function that computes it (module:function).

    One whose nets see `pictures` is faster on a GPU; one that is `alone` makes sense without weights; one for
    `any_net` takes a file of weights whose net is not known.
    """

    name: str
    work: str
    pictures: bool = False
    alone: bool = False
    any_net: bool = False


def parser(job: Job, question: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m sweeps.analysis.NAME`, to which a job adds its options."""
    options = Parser(
        prog=python_command(f"sweeps.analysis.{job.name}"),
        description=question,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Results already there are kept, each request (samples, seed ...) apart; the report reads those of the "
        "defaults. Exit codes: 0 done, 1 some runs failed, 2 usage, data or nothing fits.",
        allow_abbrev=False,
    )
    what = options.add_argument_group("whose weights")
    what.add_argument("--run", metavar="RUN_ID", help="one finished run, by MLflow's run id or by its trial key")
    what.add_argument("--sweep", metavar="NAME", help="all finished runs of a sweep that the analysis fits")
    what.add_argument("--weights", metavar="FILE", help=f"anybody's weights, or {sources.TORCHVISION}")
    nets = "S2, S8, S3_crelu, alexnet ..." + (" (default: every tensor of four dimensions)" if job.any_net else "")
    what.add_argument("--net", default="", metavar="NAME", help=f"the net of --weights: {nets}")
    how = options.add_argument_group("how")
    how.add_argument("--layers", nargs="+", default=[], metavar="CONV", help="only these, e.g. conv1 conv2")
    how.add_argument(
        "--samples", type=nonnegative_int, default=0, metavar="N", help="pictures or draws (default: the paper's)"
    )
    how.add_argument(
        "--seed", type=nonnegative_int, default=0, metavar="N", help="of what is drawn at random (default 0)"
    )
    how.add_argument("--dataset", default="", metavar="NAME", help="pictures to look at (default: the run's own)")
    how.add_argument("--fresh", action="store_true", help="compute again what the ledger has")
    where = options.add_argument_group("where and with what")
    where.add_argument("--device", default="", metavar="NAME", help="cpu, cuda (default: cuda where there is one)")
    where.add_argument("--address", metavar="HOST", help="Ray cluster for many runs (default $RAY_ADDRESS, local)")
    where.add_argument("--output", default="outputs", metavar="DIR", help="where the ledger lies (default outputs)")
    where.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow (default $MLFLOW_TRACKING_URI, SQLite in --output)"
    )
    where.add_argument("--data-dir", metavar="DIR", help="the .beton files (default $CRELU_DATA)")
    where.add_argument("--reader", choices=("ffcv", "threads"), help="what decodes the pictures (default: FFCV)")
    where.add_argument("-q", "--quiet", action="store_true", help="only the table")
    return options


# Options that change no number; all others are part of what a result answers.
SHARED = (
    "run",
    "sweep",
    "weights",
    "net",
    "fresh",
    "device",
    "address",
    "output",
    "tracking_uri",
    "data_dir",
    "reader",
    "quiet",
)


def main(job: Job, parser: argparse.ArgumentParser) -> NoReturn:
    """Run the job as the command line says, and exit."""
    make_lasting()
    options = parser.parse_args()
    try:
        sys.exit(run_command(job, options, parser.parse_args([])))
    except (ValueError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(USAGE)


def run_command(job: Job, options: argparse.Namespace, defaults: argparse.Namespace) -> int:
    """Analyse the named weights, store the results on the ledger, print and send them; return the exit code."""
    asked = asked_of(options)
    spec = JobSpec(job.name, job.work, asked, options.fresh, request_name(asked, asked_of(defaults)))
    ledger = Ledger.in_output(options.output)
    chosen = find_sources(job, options, ledger)
    several = len(chosen) > 1 and not options.quiet
    results: dict[Source, JobResult] = {}
    with progress_bar(job.name, len(chosen), options.quiet) as begin:
        begin(count(len(chosen), "run"))
        for result in run_jobs(job, spec, chosen, options):
            results[result.source] = result
            begin(count(len(chosen), "run"))
            if several and (result.summary is not None or not result.not_applicable):
                print(f"{len(results)}/{len(chosen)} {_sentence(result)}", file=sys.stderr)
    # Which cells the analysis does not fit, once for all runs of a cell.
    misfits = Counter((r.source.cell, _reason(r)) for r in results.values() if r.not_applicable)
    for (cell, why), runs in misfits.items() if several else ():
        run_count = f" ({count(runs, 'run')})" if runs > 1 else ""
        print(f"not for {cell}{run_count}: {why}", file=sys.stderr)

    done = [(source, entry) for source in chosen if (entry := results[source].summary) is not None]
    failed = any(result.summary is None and not result.not_applicable for result in results.values())
    if not done and len(chosen) == 1:
        raise ValueError(results[chosen[0]].why)
    if not done and not failed:
        raise ValueError(f"{job.name} fits none of these {count(len(chosen), 'run')}")
    if done:
        # The ledger has no state in a summary: it changes with the data and the code.
        _show(ledger, options, [entry | {"state": source.state} for source, entry in done])
        _track(ledger, done, own_store(options.tracking_uri, ledger.output), options.quiet)
    return FAILED if failed else DONE


def _sentence(result: JobResult) -> str:
    """Return how one of several sources came out."""
    name = result.source.name
    return f"{name}: {result.summary['seconds']:.1f} s" if result.summary else f"failed on {name}: {_reason(result)}"


def _reason(result: JobResult) -> str:
    """Return why there is no summary, without the name of the run, which stands before it."""
    return result.why.removeprefix(f"{result.source.name}: ")


def _show(ledger: Ledger, options: argparse.Namespace, summaries: Sequence[Json]) -> None:
    """Print the table, the notes on it, and where the files lie."""
    print(summary.table(summaries), end="")
    for note in dict.fromkeys(note for entry in summaries for note in entry["notes"]):
        print(f"  {note}")
    if any(entry["state"] == STALE for entry in summaries):
        print(f"  {summary.STALE_NOTE}")
    if options.sweep:
        print(f"table      {summary.leave(ledger, options.sweep, summaries)} (and .parquet)")
    first = summaries[0]
    more = f" and {len(summaries) - 1} more" if len(summaries) > 1 else ""
    print(f"files      {ledger.path(first['folder'])}{more}")
    if first["request"]:
        print("           asked for other than the defaults, which alone the report and the claims read")
    home = first["folder"].removesuffix(f"/{first['request']}") if first["request"] else first["folder"]
    others = [name for name in ledger.folders(home) if name != first["request"]]
    if others:
        print(f"other      requests in {ledger.path(home)}: {', '.join(others)}")


# Sources and results ------------------------------------------------------------------------------------------


def find_sources(job: Job, options: argparse.Namespace, ledger: Ledger) -> list[Source]:
    """Return the weights that the options name; ValueError for none, or for more than one option that names some."""
    named = [name for name in ("run", "sweep", "weights") if getattr(options, name)]
    if job.alone and not named:
        return [Source()]
    if len(named) != 1:
        raise ValueError(f"{job.name} needs one of --run RUN_ID, --sweep NAME and --weights FILE, not {len(named)}")
    if options.net and named != ["weights"]:
        raise ValueError(f"--net is for --weights: a {named[0]} knows its net")
    if options.weights:
        return [sources.of_file(options.weights, options.net, options.dataset, any_net=job.any_net)]
    trials = [sources.of_run(ledger, options.run)] if options.run else sources.of_sweep(ledger, options.sweep)
    return [source._replace(dataset=options.dataset) for source in trials]


def asked_of(options: argparse.Namespace) -> Json:
    """Return the options that a result answers; lists sorted, as the order of layers changes nothing."""
    asked = {name: value for name, value in vars(options).items() if name not in SHARED}
    return {name: sorted(set(value)) if isinstance(value, list) else value for name, value in asked.items()}


def run_jobs(job: Job, spec: JobSpec, chosen: Sequence[Source], options: argparse.Namespace) -> Iterator[JobResult]:
    """Yield the result of each source as it is known, those on the ledger first.

    One is computed in this process, several as Ray tasks. ValueError for a device or a cluster that is not there.
    """
    ledger = Ledger.in_output(options.output)
    missing = []
    for source in chosen:
        result = cached(ledger, spec, source)
        if result is None:
            missing.append(source)
        else:
            yield result
    if len(missing) == 1 and not options.address:
        yield run_job(spec, missing[0], _runtime(options, _device(job, options)))
    elif missing:
        yield from _run_on_ray(job, spec, missing, options)


def _run_on_ray(job: Job, spec: JobSpec, missing: Sequence[Source], options: argparse.Namespace) -> Iterator[JobResult]:
    """Yield the results of these sources as Ray tasks end; a lost task is a result too."""
    from sweeps.execution import ray_runtime

    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if not options.quiet:
        print(f"{count(len(missing), 'run')} to analyse; Ray {address}", file=sys.stderr)
    try:
        gpus = ray_runtime.init_ray(address).get("GPU", 0)
        device = options.device or ("cuda" if job.pictures and gpus >= 1 else "cpu")
        if device.startswith("cuda") and gpus < 1:
            raise ValueError(f"no device {device!r} in the Ray cluster {address}: it has no GPU")
        cpus = ray_runtime.cpus_per_task(len(missing))
        runtime = dataclasses.replace(_runtime(options, device), workers=cpus, threads=cpus)
        ended = ray_runtime.map_tasks(
            lambda source: run_job(spec, source, runtime),
            missing,
            cpus=cpus,
            gpus=float(device.startswith("cuda")),
            memory=MEMORY,
        )
        for source, result in ended:
            yield JobResult(source, None, result) if isinstance(result, str) else result
    finally:
        ray_runtime.shutdown_ray()


def _device(job: Job, options: argparse.Namespace) -> str:
    """Return the device to compute on in this process; ValueError where it is not."""
    if not options.device and not job.pictures:
        return "cpu"
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {device!r} here: {str(error).splitlines()[0]}") from None
    return str(device)


def _runtime(options: argparse.Namespace, device: str) -> RuntimeConfig:
    from crelu_data.cores import cores
    from crelu_data.datasets import data_dir
    from crelu_data.load import default_reader
    from sweeps.training.runtime import RuntimeConfig

    reader = options.reader or default_reader()
    return RuntimeConfig(
        Ledger.in_output(options.output).root, str(data_dir(options.data_dir)), device, reader, max(1, cores() - 1)
    )


# MLflow -------------------------------------------------------------------------------------------------------


def _track(ledger: Ledger, done: Sequence[tuple[Source, Json]], store: str, quiet: bool) -> None:
    """Send tables, pictures and metrics to the MLflow runs; a failure there is told and costs nothing else.

    Only the user's own `store` is asked: a ledger of somebody else may name any.
    """
    sent = 0
    untracked = 0
    failure = ""
    for source, entry in done:
        note = ledger.read_json(f"tracked/{source.trial}.json") if source.trial else None
        if note is None:
            untracked += bool(source.trial)
            continue
        if not same_store(str(note.get("uri")), store):
            failure = not_asked(str(note.get("uri")))
            break
        try:
            sent += send(ledger, entry, store, str(note.get("run")))
        except Exception as error:  # of any kind, from a server or its client; the results are on the ledger
            failure = f"MLflow at {store} does not take them ({type(error).__name__}: {error})".splitlines()[0]
            break
    if quiet:
        return
    if failure:
        print(f"{failure}; the same command sends them", file=sys.stderr)
    if untracked:
        print(f"{untracked} of these runs not in MLflow yet: files on the ledger alone", file=sys.stderr)
    if sent:
        print(f"MLflow     {sent} run{'s have' if sent > 1 else ' has'} the tables and pictures under analysis/")


def send(ledger: Ledger, summary: Json, uri: str, run: str) -> bool:
    """Log the files of an analysis on an MLflow run, once, and of the defaults the metrics; return whether it did."""
    folder = summary["folder"]
    job = summary["job"]
    sent = {"uri": uri, "run": run, "finished_ms": summary["finished_ms"]}
    if ledger.read_json(f"{folder}/tracked.json") == sent:
        return False
    from sweeps.tracking.mlflow_client import log_files

    contents = {name: ledger.read(f"{folder}/{name}") for name in [*summary["files"], "summary.json"]}
    place = f"analysis/{job}/{summary['request']}".rstrip("/")
    files = {f"{place}/{name}": content for name, content in contents.items() if content is not None}
    # A run has one number of a name: that of the defaults.
    numbers = {} if summary["request"] else summary["metrics"]
    log_files(uri, run, files, {name: value for name, value in numbers.items() if math.isfinite(value)})
    ledger.write_note(f"{folder}/tracked.json", sent)
    return True
