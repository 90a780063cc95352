# PYTHON_ARGCOMPLETE_OK
"""Verbs for sweeps that have run or are running: python -m sweeps list | status | explain | report | ..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from crelu_data.streams import make_lasting
from crelu_models.command_line import Parser, add_version, positive_int, python_command, sentence
from sweeps.cli import explain
from sweeps.cli.garbage import collect_rarely
from sweeps.cli.status import status
from sweeps.cli.verbs import export_study, reconcile, show_pages, verify_resume
from sweeps.ops import doctor, mlflow_server, spot_notice
from sweeps.report import build, grade_page

SCRIPT = "crelu-sweeps"  # as pyproject.toml installs it


def main() -> int:
    """Do what the command line says and return the exit code: 0, or 2 where it cannot be done."""
    make_lasting()
    collect_rarely()
    options = parser(called()).parse_args()
    try:
        return int(options.verb(options))
    except (ValueError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def called() -> str:
    """Return the words that called this program: those of an installed script, or of its module."""
    name = Path(sys.argv[0]).name
    return name if name == SCRIPT else python_command("sweeps")


def parser(program: str = "python -m sweeps") -> argparse.ArgumentParser:
    """Return the parser of the verbs."""
    parser = Parser(prog=program, description=__doc__, allow_abbrev=False)
    add_version(parser)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, (run, add_arguments, text) in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        verb.set_defaults(verb=run)
        add_arguments(verb)
        verb.add_argument(
            "--output", default=doctor.DEFAULT_OUTPUT, metavar="DIR", help="the sweeps' output (default outputs)"
        )
    return parser


def _no_arguments(verb: argparse.ArgumentParser) -> None:
    """Add no options."""


def _status_arguments(verb: argparse.ArgumentParser) -> None:
    """Add the options of status."""
    verb.add_argument("sweep", nargs="?", help="one of them (default: all)")
    verb.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    verb.add_argument("--json", action="store_true", help="as JSON")


def _reconcile_arguments(verb: argparse.ArgumentParser) -> None:
    """Add the options of reconcile."""
    verb.add_argument("sweep", help="a sweep that has run, as status shows it")
    verb.add_argument("--tracking-uri", metavar="URI", help="MLflow (default $MLFLOW_TRACKING_URI, SQLite in --output)")
    verb.add_argument("--experiment", metavar="NAME",
                      help="MLflow experiment (default: that of its runs; before it has any, "
                           "$MLFLOW_EXPERIMENT_NAME or the sweep's name)")  # fmt: skip


def _export_study_arguments(verb: argparse.ArgumentParser) -> None:
    """Add the options of export-study."""
    verb.add_argument("sweep", help="a sweep that has run, as status shows it")
    verb.add_argument("--storage", required=True, metavar="URL", help="e.g. sqlite:///studies.db")


def _verify_resume_arguments(verb: argparse.ArgumentParser) -> None:
    """Add the options of verify-resume."""
    verb.add_argument("sweep", help="a sweep that has run, as status shows it")
    verb.add_argument("cell", nargs="?", help="one of its cells (default: the first)")
    verb.add_argument("--kills", type=positive_int, default=5, metavar="N",
                      help="how often to kill the trial (default 5)")  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, help="seed of the steps at which it is killed (default 0)")
    verb.add_argument("--data-dir", metavar="DIR", help="the .beton files (default $CRELU_DATA)")
    verb.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default cpu)")
    verb.add_argument("--reader", choices=("ffcv", "threads"), help="decoder (default ffcv where it is installed)")


Verb = tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None], str]
# By name: the function that does it, the one that adds its options, and its help.
VERBS: Mapping[str, Verb] = {
    "list": (show_pages, _no_arguments, "the sweeps that have a page, and the question of each"),
    "status": (status, _status_arguments, "how far the sweeps of an output folder are"),
    "explain": (explain.explain, explain.arguments, "what a cell or trial is, where it stands and why, its files"),
    "reconcile": (reconcile, _reconcile_arguments, "send MLflow what it lacks, the report too, and delete doubles"),
    "export-study": (export_study, _export_study_arguments, "write the studies to an Optuna storage, for a dashboard"),
    "verify-resume": (verify_resume, _verify_resume_arguments,
                      "kill a real trial at random steps, and compare it with an undisturbed one"),
    "report": (build.run, build.arguments, "the table one may publish: page, Markdown, LaTeX, CSV, Parquet"),
    "grade": (grade_page.run, grade_page.arguments, "how much of a paper has been reproduced, part by part"),
    "export": (build.export, build.export_arguments, "a sweep in one file, from which its report is rebuilt"),
    "serve": (mlflow_server.run, mlflow_server.arguments, "MLflow's server over --output, and its backup"),
    "doctor": (doctor.run, doctor.arguments, "check this machine; by --cluster: is a cluster closed to the world?"),
    "watch-spot": (spot_notice.run, spot_notice.arguments, "tell Ray when EC2 reclaims this machine"),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
