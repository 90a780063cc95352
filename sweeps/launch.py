"""The command line that every sweep shares: what is asked, whether it can be done, then doing it."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, get_type_hints

from sweeps.experiment.plan import Protocol, Sweep, unknown
from sweeps.experiment.profiles import PROFILES, scaled
from sweeps.experiment.recipe import Recipe
from sweeps.experiment.search import SAMPLERS, Search
from sweeps.experiment.trial import MATCHES, Cell

DONE, USAGE, INTERRUPTED = 0, 2, 130
ABLATION = Protocol()
PRICE = "CRELU_PRICE_PER_GPU_HOUR"


def main(
    name: str,
    question: str,
    cells: Sequence[Cell],
    protocol: Protocol = ABLATION,
    also: Mapping[str, Sequence[Cell]] = MappingProxyType({}),
) -> NoReturn:
    """Run the sweep `name` as the command line says, and exit: 0 done, 1 failed cells, 2 usage or data, 130 stopped.

    `also` holds further groups of cells by name, each trained only where --also names it.
    """
    options = parser(name, question, tuple(also)).parse_args()
    # A preempted machine's signal is Ctrl-C's equal, also before there is anything to save.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        more = [cell for group in options.also for cell in also[group]]
        sys.exit(launch(name, (*cells, *more), protocol, options))
    except ValueError as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)


def refuse(sentence: str) -> NoReturn:
    """Say why nothing was done, and exit 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(USAGE)


def parser(name: str, question: str, groups: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of `python -m sweeps.NAME`."""
    found = argparse.ArgumentParser(
        prog=f"python -m sweeps.{name}",
        description=question.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The same command again resumes. Exit codes: 0 all cells done, 1 finished with failed cells, "
        "2 usage, configuration or data, 3 budget reached, 130 interrupted.",
        allow_abbrev=False,
    )
    what = found.add_argument_group("what to run")
    what.add_argument("--list", action="store_true", help="show the cells and leave")
    what.add_argument("--dry-run", action="store_true", help="show what would run and what is done, and leave")
    what.add_argument("--smoke-test", action="store_true", help="two tiny cells, seconds on a CPU")
    what.add_argument(
        "--profile", choices=PROFILES[:3], help="scale: the paper's, or smaller (default: by what is there)"
    )
    what.add_argument(
        "--dataset", metavar="NAME", help="train on this: imagenet, cifar10, cifar100, synthetic, folder:PATH"
    )
    what.add_argument(
        "--only", nargs="+", default=[], metavar="GLOB", help="only cells that fit; '!GLOB': all but those"
    )
    what.add_argument("--also", nargs="+", default=[], choices=groups, metavar="GROUP",
                      help=f"further cells: {', '.join(groups)}" if groups else argparse.SUPPRESS)  # fmt: skip
    what.add_argument("--seeds", type=positive, default=0, metavar="N", help="trainings per cell")
    what.add_argument("--folds", type=whole, metavar="K", help="folds, where the sweep has folds; 0: none")
    what.add_argument("--search-trials", type=whole, metavar="N", help="dropout trials per cell; 0: no search")
    what.add_argument("--search-folds", type=whole, metavar="K",
                      help="judge a dropout by K folds, the hopeless by fewer; 0: by the hold-out")  # fmt: skip
    what.add_argument("--sampler", choices=SAMPLERS, help="what suggests dropout (default: the sweep's own, tpe)")
    what.add_argument("--match", choices=MATCHES, help="what the second phase of Single stops at (default train_loss)")
    what.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                      help="change a field of every cell, e.g. recipe.epochs=10")  # fmt: skip
    what.add_argument("--fresh", action="store_true", help="forget the results of these cells and train them anew")
    what.add_argument("--retry-failed", action="store_true", help="try again what failed")
    what.add_argument("--stale", choices=("ask", "keep", "retrain"), default="ask",
                      help="results of other code or data (default: ask on a terminal, else keep)")  # fmt: skip
    what.add_argument("--yes", action="store_true", help="answer each question with yes: retrain what is stale")
    what.add_argument("--resume", action="store_true", help="accepted; the same command always resumes")
    where = found.add_argument_group("where and with what")
    where.add_argument(
        "--data-dir", metavar="DIR", help="the .beton files (default $CRELU_DATA, ~/.cache/crelu-sweeps/data)"
    )
    where.add_argument("--data-source", metavar="URI",
                       help="where a machine pulls from what it lacks (default $CRELU_DATA_SOURCE)")  # fmt: skip
    where.add_argument(
        "--output", default="outputs", metavar="DIR", help="ledger, results and the MLflow store (default outputs)"
    )
    where.add_argument(
        "--address",
        default=None,
        metavar="HOST",
        help="Ray cluster: auto, a host, or local (default $RAY_ADDRESS, local)",
    )
    where.add_argument(
        "--gpus-per-trial",
        type=fraction,
        default=None,
        metavar="G",
        help="e.g. 0.25, or 2 that share each batch (default: 1 where there are GPUs)",
    )
    where.add_argument("--ranks", type=positive, default=0, metavar="N",
                       help="processes that share each batch of a trial (default: one a GPU, on CPUs one)")  # fmt: skip
    where.add_argument("--cpus-per-trial", type=fraction, default=1.0, metavar="C", help="(default 1)")
    where.add_argument(
        "--max-concurrent", type=positive, default=0, metavar="N", help="trials at once (default: as many as fit)"
    )
    where.add_argument("--pack", type=pack, default=1, metavar="off|auto|N",
                       help="trials of one worker that share pictures (auto: where it pays; default: off)")  # fmt: skip
    where.add_argument("--kernels", choices=("exact", "fastest"), default="exact",
                       help="on a GPU: exact resumes bit for bit, fastest does not (default exact)")  # fmt: skip
    where.add_argument("--reader", choices=("ffcv", "threads"), default="ffcv", help="what decodes the pictures")
    where.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow (default $MLFLOW_TRACKING_URI, SQLite in --output)"
    )
    where.add_argument("--experiment", metavar="NAME", help="MLflow experiment (default: the sweep's name)")
    ends = found.add_argument_group("when to stop")
    ends.add_argument(
        "--max-gpu-hours", type=fraction, default=math.inf, metavar="H", help="save, leave and exit 3 then"
    )
    ends.add_argument("--price-per-gpu-hour", type=fraction, default=os.environ.get(PRICE, "0"), metavar="X",
                      help=f"tell the forecast, the end and the report in money too (default ${PRICE})")  # fmt: skip
    ends.add_argument("--max-failures", type=positive, default=10**6, metavar="N", help="stop after N failed trials")
    ends.add_argument("--fail-fast", action="store_true", help="stop at the first failed trial")
    shown = found.add_argument_group("what to show")
    shown.add_argument("--json", action="store_true", help="the table as JSON on standard output")
    shown.add_argument("-q", "--quiet", action="store_true", help="only the table")
    shown.add_argument("-v", "--verbose", action="store_true", help="also what Ray and the supervisor met")
    return found


def pack(word: str) -> str | int:
    """Return "auto", or how many trials a pack may have: off is 1."""
    if word == "auto":
        return word
    if word == "off":
        return 1
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"off, auto, or a whole number of at least 1, not {word!r}")
    return int(word)


def whole(word: str) -> int:
    """Return a whole number of at least 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number of at least 0, not {word!r}")
    return int(word)


def positive(word: str) -> int:
    """Return a whole number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {word!r}")
    return int(word)


def fraction(word: str) -> float:
    """Return a number of at least 0."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"a number of at least 0, not {word!r}")
    return value


def decide(name: str, cells: Sequence[Cell], options: argparse.Namespace) -> Any:
    """Return the profile and data set to run with; ValueError where real data were asked for and are not there.

    Never falls back from a configured place to embedded pictures: on a cluster with a bad mount that would burn
    GPUs on toy data.
    """
    from data.datasets import data_dir
    from sweeps.cli.settings import Choice

    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    output = options.output if "://" in options.output else os.path.abspath(os.path.expanduser(options.output))
    place = data_dir(options.data_dir)
    own = cells[0].dataset
    source = options.data_source or os.environ.get("CRELU_DATA_SOURCE") or ""
    source = source if not source or "://" in source else os.path.abspath(os.path.expanduser(source))
    configured = bool(options.data_dir or os.environ.get("CRELU_DATA") or os.environ.get("IMAGENET_DIR") or source)

    def chosen(profile: str, dataset: str = "", banner: str = "") -> Any:
        return Choice(profile, dataset, banner, address, place, output, source)

    if options.smoke_test:
        return chosen("smoke", options.dataset or "", "smoke test: two tiny cells on embedded pictures")
    if options.profile == "demo" and not options.dataset:
        return chosen("demo", banner=DEMO)
    if options.dataset:
        dataset = absolute(options.dataset)
        small = options.profile is None and address == "local" and not glob.glob("/dev/nvidia[0-9]*")
        banner = (
            "no GPU here: the demo's small nets and short recipes (--profile paper for the paper's)" if small else ""
        )
        return chosen(options.profile or ("demo" if small else "paper"), dataset, banner)
    there = (place / f"{own}-train.beton").exists()
    if there or configured or options.profile:
        return chosen(options.profile or "paper")
    if address != "local":
        raise ValueError(
            f"a cluster was given, but no data: say where {own} lies by --data-dir, --data-source or CRELU_DATA, "
            f"or ask for embedded pictures by --profile demo"
        )
    return chosen("demo", banner=DEMO)


DEMO = "demo: embedded pictures, small nets, a short recipe; it shows how things work, not what CReLU is worth"


def absolute(dataset: str) -> str:
    """Return the name of a data set with the path of a folder made absolute."""
    kind, _, rest = dataset.partition(":")
    return f"folder:{Path(rest).expanduser().absolute()}" if kind == "folder" and rest else dataset


def declare(name: str, cells: Sequence[Cell], protocol: Protocol, options: argparse.Namespace, choice: Any) -> Sweep:
    """Return the Sweep that was asked for; ValueError for a cell or field that does not exist."""
    if choice.profile in ("demo", "smoke"):
        # Every data set would be embedded pictures: one of them shows as much as all.
        cells = [cell for cell in cells if cell.dataset == cells[0].dataset]
    if options.smoke_test:
        cells = (cells[0], cells[-1])
    changed = [change(scaled(cell, choice.profile, choice.dataset), options.set) for cell in cells]
    sweep = Sweep(name, choice.profile, tuple(changed), asked(protocol, choice.profile, options))
    return sweep.only(options.only) if options.only else sweep


def asked(protocol: Protocol, profile: str, options: argparse.Namespace) -> Protocol:
    """Return the protocol as the profile scales it and the flags say."""
    small = profile in ("demo", "smoke")
    search, folds = protocol.search, min(protocol.folds, 3) if small else protocol.folds
    if search is not None and small:
        search = dataclasses.replace(search, trials=min(search.trials, 3), wave=3)
    if options.search_trials is not None and search is not None:
        search = dataclasses.replace(search, trials=options.search_trials) if options.search_trials else None
    if options.search_trials and protocol.search is None:
        search = Search(options.search_trials)
    if search is not None:
        ways = {"sampler": options.sampler, "folds": options.search_folds}
        search = dataclasses.replace(search, **{name: way for name, way in ways.items() if way is not None})
    elif options.sampler or options.search_folds:
        raise ValueError("--sampler and --search-folds are for a search; say its size by --search-trials")
    if options.match and not protocol.single:
        raise ValueError("--match is for the Single protocol, which this sweep does not follow")
    return dataclasses.replace(
        protocol,
        match=options.match or protocol.match,
        seeds=options.seeds or (1 if small else protocol.seeds),
        folds=protocol.folds and (folds if options.folds is None else options.folds),
        search=search,
    )


def change(cell: Cell, settings: Sequence[str]) -> Cell:
    """Return `cell` with FIELD=VALUE settings applied; ValueError for an unknown field or a value of another kind."""
    fields = {f"recipe.{field.name}": field.name for field in dataclasses.fields(Recipe) if field.name != "stages"}
    for setting in settings:
        name, equals, word = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, not {setting!r}")
        if name == "dataset":
            cell = dataclasses.replace(cell, dataset=absolute(word))
        elif name == "net.final_activation":
            cell = dataclasses.replace(cell, net=cell.net.final_activation(word))
        elif name in fields:
            value = parsed(get_type_hints(Recipe)[fields[name]], word, name)
            recipe = dataclasses.replace(cell.recipe, **{fields[name]: value})
            cell = dataclasses.replace(cell, recipe=recipe)
        else:
            raise ValueError(unknown("field", name, ["dataset", "net.final_activation", *fields], "a cell"))
    return cell


def parsed(kind: type, word: str, name: str) -> Any:
    """Return `word` as a value of `kind`; ValueError where it is none."""
    if kind is bool:
        if word.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name} is true or false, not {word!r}")
        return word.lower() in ("true", "1")
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{name} is of type {kind.__name__}, not {word!r}") from None


def launch(name: str, cells: tuple[Cell, ...], protocol: Protocol, options: argparse.Namespace) -> int:
    """Do what the options say and return the exit code."""
    choice = decide(name, cells, options)
    sweep = declare(name, cells, protocol, options, choice)
    if options.list:
        return show_cells(sweep)
    from sweeps.cli.run import dry_run, go
    from sweeps.cli.settings import Errand

    errand = Errand(sweep, choice, options)
    return dry_run(errand) if options.dry_run else go(errand)


def show_cells(sweep: Sweep) -> int:
    """Print the cells of a sweep, one a line."""
    width = max(len(cell.label) for cell in sweep.cells)
    for cell in sweep.cells:
        table = f"Table {cell.table}" if cell.table else ""
        what = f"{cell.net.name:<12} {cell.dataset}  {cell.recipe.name}  {table}"
        print(f"{cell.label:<{width}}  {cell.key}  {what}".rstrip())
    return DONE
