"""Options of a sweep's command line, and its exit codes."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from enum import IntEnum
from typing import get_args

from crelu_models.command_line import Parser, add_version, nonnegative_int, positive_int
from sweeps.experiment.profiles import PROFILES
from sweeps.experiment.sampling import SAMPLERS
from sweeps.experiment.trial import MATCHES
from sweeps.training.runtime import Kernels

REHEARSED = 300  # steps of a rehearsal
PRICE = "CRELU_PRICE_PER_GPU_HOUR"
MOST = 1e6  # GPUs or CPUs of a trial, or a price: an infinite one makes no sense


class ExitCode(IntEnum):
    """Exit codes of a sweep's command, as its --help lists them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    BUDGET = 3
    UNTRACKED = 4
    CLUSTER = 5
    INTERRUPTED = 130


def parser(name: str, question: str | None, groups: Sequence[str] = (), program: str = "") -> argparse.ArgumentParser:
    """Return the parser of a page, called by the words `program` (default: python -m sweeps.NAME).

    `groups` are further cells that --also may name.
    """
    parser = Parser(
        prog=program or f"python -m sweeps.{name}",
        description=(question or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The same command again resumes. Exit codes: 0 all cells done, 1 finished with failed cells or, after "
        "--rehearse, with cells that would not train, 2 usage, configuration or data, 3 budget reached, "
        "4 all cells done but MLflow lacks runs or the report, 5 the Ray cluster that was joined has gone, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    add_version(parser)
    _add_cells(parser, groups)
    _add_resources(parser)
    _add_limits(parser)
    _add_display(parser)
    return parser


# fmt: off
def _add_cells(parser: argparse.ArgumentParser, groups: Sequence[str]) -> None:
    """Add the options that say what is trained."""
    add = parser.add_argument_group("what to run").add_argument
    add("--list", action="store_true", help="show the cells, with --json as JSON, and leave")
    add("--dry-run", action="store_true", help="show what would run and what is done, and leave")
    add("--rehearse", nargs="?", type=positive_int, const=REHEARSED, default=0, metavar="STEPS",
        help=f"train each cell for some steps (default {REHEARSED}), say whether it learns, and leave")
    add("--smoke-test", action="store_true", help="two tiny cells at most, seconds on a CPU")
    add("--profile", choices=PROFILES[:3], help="scale: the paper's, or smaller (default: the data decide)")
    add("--dataset", metavar="NAME", help="train on this: imagenet, cifar10, cifar100, synthetic, folder:PATH")
    add("--only", nargs="+", default=[], metavar="GLOB", help="only matching cells; '!GLOB': all but those")
    add("--also", nargs="+", default=[], choices=groups, metavar="GROUP",
        help=f"further cells: {', '.join(groups)}" if groups else argparse.SUPPRESS)
    add("--seeds", type=positive_int, default=0, metavar="N", help="trainings per cell")
    add("--until-decided", type=positive_int, default=0, metavar="N",
        help="add seeds, or folds, until the page's questions are decided, N a cell at most")
    add("--folds", type=nonnegative_int, metavar="K", help="folds, where the sweep has folds; 0: none")
    add("--search-trials", type=nonnegative_int, metavar="N", help="search trials per cell; 0: no search")
    add("--search-folds", type=nonnegative_int, metavar="K",
        help="judge a suggestion by K folds, a hopeless one by fewer; 0: by the hold-out")
    add("--halving", type=nonnegative_int, metavar="N",
        help="pause search trials at rungs; one in N goes on to the next; 0: train all as they come")
    add("--sampler", choices=SAMPLERS, help="sampler of the search (default: the sweep's own, tpe)")
    add("--match", choices=MATCHES, help="where the second phase of Single stops (default train_loss)")
    add("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
        help="change a field of every cell, e.g. recipe.epochs=10")
    add("--fresh", action="store_true", help="forget the results of these cells and train them anew")
    add("--retry-failed", action="store_true", help="try again what failed")
    add("--stale", choices=("ask", "keep", "retrain"), default="ask",
        help="results of other code or data (default: ask on a terminal, else keep)")
    add("--yes", action="store_true", help="answer each question with yes: retrain what is stale")
    add("--resume", action="store_true", help="accepted; the same command always resumes")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where trials run, and on what."""
    add = parser.add_argument_group("where and with what").add_argument
    add("--data-dir", metavar="DIR", help="the .beton files (default $CRELU_DATA, ~/.cache/crelu-sweeps/data)")
    add("--data-source", metavar="URI", help="source of missing .beton files (default $CRELU_DATA_SOURCE)")
    add("--output", default="outputs", metavar="DIR", help="ledger, results and MLflow's store (default outputs)")
    add("--address", metavar="HOST", help="Ray cluster: auto, a host, or local (default $RAY_ADDRESS, local)")
    add("--gpus-per-trial", type=nonnegative_float, metavar="G",
        help="e.g. 0.25, or 2 that share each batch (default: 1 where there are GPUs)")
    add("--ranks", type=positive_int, default=0, metavar="N",
        help="processes that share each batch of a trial (default: one per GPU, on CPUs one)")
    add("--cpus-per-trial", type=nonnegative_float, default=1.0, metavar="C", help="CPUs of a trial (default 1)")
    add("--max-concurrent", type=positive_int, default=0, metavar="N", help="trials at once (default: as many as fit)")
    add("--pack", type=pack_size, metavar="off|auto|N",
        help="trials of one worker side by side (auto: where it pays; default: auto on a GPU, else off)")
    add("--kernels", choices=get_args(Kernels), default="exact",
        help="on a GPU: exact resumes bit for bit, fastest does not, torch is exact without kernels of ours")
    add("--reader", choices=("ffcv", "threads", "nvjpeg", "both"), default="ffcv",
        help="decoder of the pictures; nvjpeg is the GPU's, both it and threads: trials of their own (default ffcv)")
    add("--tracking-uri", metavar="URI", help="MLflow (default $MLFLOW_TRACKING_URI, SQLite in --output)")
    add("--experiment", metavar="NAME", help="MLflow experiment (default: the sweep's name)")
    add("--register", metavar="NAME",
        help="register the winner of each cell as a version of this model in MLflow, its alias the cell's label")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options that say when a sweep ends early, and its price."""
    add = parser.add_argument_group("when to stop").add_argument
    add("--max-gpu-hours", type=hours, default=math.inf, metavar="H",
        help="save, leave and exit 3 once this command has used H")
    add("--price-per-gpu-hour", type=nonnegative_float, default=os.environ.get(PRICE, "0"), metavar="X",
        help=f"show forecast, end and report in money too (default ${PRICE})")
    add("--max-failures", type=positive_int, default=10**6, metavar="N", help="stop after N failed trials")
    add("--fail-fast", action="store_true", help="stop at the first failed trial")


def _add_display(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is shown."""
    add = parser.add_argument_group("what to show").add_argument
    add("--json", action="store_true", help="the table as JSON on standard output")
    add("--notify", metavar="URL",
        help="post JSON there when the sweep has ended, failed or needs you (default $CRELU_NOTIFY)")
    add("-q", "--quiet", action="store_true", help="only the table")
    add("-v", "--verbose", action="store_true", help="also errors that Ray and the driver recovered from")
# fmt: on


def pack_size(word: str) -> str | int:
    """Return "auto", or how many trials a pack may have: off is 1."""
    if word == "auto":
        return word
    if word == "off":
        return 1
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"off, auto, or a whole number of at least 1, not {word!r}")
    return int(word)


def nonnegative_float(word: str) -> float:
    """Return a number of at least 0 and below MOST."""
    value = hours(word)
    if value >= MOST:
        raise argparse.ArgumentTypeError(f"a number below {MOST:,.0f}, not {word!r}")
    return value


def hours(word: str) -> float:
    """Return a number of at least 0, which may be infinite."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"a number of at least 0, not {word!r}")
    return value
