"""What one asks of sweeps from another terminal: python -m sweeps list | status | report | reconcile | ..."""

from __future__ import annotations

import argparse
import os
import sys

from sweeps.cli.status import status
from sweeps.cli.verbs import export_study, reconcile, show_pages, verify_resume
from sweeps.ops import doctor, mlflow_server, spot_notice
from sweeps.report import build


def main() -> int:
    """Do what the command line says and return the exit code: 0, or 2 where it cannot be done."""
    options = parser().parse_args()
    try:
        return int(options.verb(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m sweeps`."""
    found = argparse.ArgumentParser(prog="python -m sweeps", description=__doc__, allow_abbrev=False)
    verbs = found.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("list", help="the sweeps there are, and what each asks")
    verb.set_defaults(verb=show_pages)
    verb = verbs.add_parser("status", help="how far the sweeps of an output folder are")
    verb.add_argument("sweep", nargs="?", help="one of them (default: all)")
    verb.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(verb=status)
    verb = verbs.add_parser(
        "reconcile", help="bring MLflow to the ledger's state: complete, no doubles, statuses right"
    )
    verb.add_argument("sweep")
    verb.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"), metavar="URI")
    verb.add_argument("--experiment", default=os.environ.get("MLFLOW_EXPERIMENT_NAME"), metavar="NAME")
    verb.set_defaults(verb=reconcile)
    verb = verbs.add_parser("export-study", help="write the dropout studies to an Optuna storage, for a dashboard")
    verb.add_argument("sweep")
    verb.add_argument("--storage", required=True, metavar="URL", help="e.g. sqlite:///studies.db")
    verb.set_defaults(verb=export_study)
    verb = verbs.add_parser(
        "verify-resume", help="kill a real trial at random steps, and compare it with one left alone"
    )
    verb.add_argument("sweep", help="a sweep that has run, as status shows it")
    verb.add_argument("cell", nargs="?", help="one of its cells (default: the first)")
    verb.add_argument("--kills", type=int, default=5, metavar="N")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--data-dir", metavar="DIR")
    verb.add_argument("--device", default="cpu")
    verb.add_argument("--reader", choices=("ffcv", "threads"), default="ffcv")
    verb.set_defaults(verb=verify_resume)
    verb = verbs.add_parser("report", help="the table one may publish: page, Markdown, LaTeX, CSV, Parquet")
    build.arguments(verb)
    verb.set_defaults(verb=build.run)
    verb = verbs.add_parser("export", help="a sweep in one file, from which its report is rebuilt")
    build.export_arguments(verb)
    verb.set_defaults(verb=build.export)
    verb = verbs.add_parser("serve", help="MLflow's server over --output, for a cluster's head; its backup too")
    mlflow_server.arguments(verb)
    verb.set_defaults(verb=mlflow_server.run)
    verb = verbs.add_parser("doctor", help="whether a cluster is closed to the world: --cluster on its head")
    doctor.arguments(verb)
    verb.set_defaults(verb=doctor.run)
    verb = verbs.add_parser("watch-spot", help="tell Ray when EC2 reclaims this machine, on each worker of a cluster")
    spot_notice.arguments(verb)
    verb.set_defaults(verb=spot_notice.run)
    for parser in verbs.choices.values():
        parser.add_argument("--output", default="outputs", metavar="DIR", help="the sweeps' output (default outputs)")
    return found


if __name__ == "__main__":
    sys.exit(main())
