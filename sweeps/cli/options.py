"""The options of a sweep's command line."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from enum import IntEnum

from sweeps.experiment.profiles import PROFILES
from sweeps.experiment.search import SAMPLERS
from sweeps.experiment.trial import MATCHES

PRICE = "CRELU_PRICE_PER_GPU_HOUR"


class ExitCode(IntEnum):
    """Exit codes of a sweep's command, as its --help lists them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    BUDGET = 3
    INTERRUPTED = 130


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
