"""Agreement of MLflow with the ledger after its store was lost, replaced or disturbed.

    python -m benchmarks.mlflow_agreement

A smoke test trains two cells with one seed, then with a second one, by the real command. Then something befalls the
store or the ledger, and one of two commands follows: `python -m sweeps reconcile`, or the sweep's own command again.
An MLflow server then shows the store, and its answers are compared with the ledger by REST: one run for each
trial with its numbers, the points of its curve and its files, one finished run for each cell, and no other run. Where
that is not so the command has to end with 4 and say why. A trial with a damaged file has to show as failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.faults_files import last_line
from benchmarks.faults_requests import differing_runs, rest, started
from sweeps.store.ledger import Ledger
from tests.support.servers import free_port

TITLE: Final = "imagenet_placement-smoke"
COMMANDS: Final = {
    "reconcile": ("sweeps", "reconcile", TITLE),
    "the sweep's command": ("sweeps.imagenet_placement", "--smoke-test", "--seeds", "2", "--reader", "threads"),
}
UNTRACKED: Final = 4  # the exit code of a command that could not bring MLflow up to date


class World(NamedTuple):
    """Output folder of the sweep, a store of it with one seed, and the copy from which each case begins."""

    output: Path
    older: Path
    template: Path

    @property
    def database(self) -> Path:
        """Return the file of the store."""
        return self.output / "mlflow.db"

    def fresh(self) -> None:
        """Bring the output folder to where each case begins, at the same place."""
        for path in self.output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.template, self.output, dirs_exist_ok=True)


# What befalls it; each returns the keys of the trials that it damages


def nothing(_: World) -> set[str]:
    """Leave all as it is."""
    return set()


def delete_store(world: World) -> set[str]:
    """Delete the store with its files."""
    world.database.unlink()
    shutil.rmtree(world.output / "mlartifacts")
    return set()


def restore_older(world: World) -> set[str]:
    """Put back the store as it was after the first seed."""
    shutil.copy(world.older, world.database)
    return set()


def add_ghosts(world: World) -> set[str]:
    """Add a second run of a trial and of a cell, a run of a trial that no plan has, and one that was never made."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{world.database}")
    (experiment,) = (each.experiment_id for each in client.search_experiments() if each.name == TITLE)
    runs = client.search_runs([experiment])
    trial = next(run for run in runs if "trial.key" in run.data.tags)
    cell = next(run for run in runs if "trial.key" not in run.data.tags)
    for tags in (trial.data.tags, cell.data.tags, trial.data.tags | {"trial.key": "f" * 20}):
        user_tags = {name: value for name, value in tags.items() if not name.startswith("mlflow.")}
        ghost = client.create_run(experiment, tags=user_tags)
        client.log_param(ghost.info.run_id, "recipe/epochs", "7")
    client.create_run(experiment, tags={k: v for k, v in trial.data.tags.items() if not k.startswith("mlflow.")})
    return set()


def add_cell(world: World) -> set[str]:
    """Add the run of a cell that the page no longer has, as an earlier version of the page left it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{world.database}")
    (experiment,) = (each.experiment_id for each in client.search_experiments() if each.name == TITLE)
    cell = next(run for run in client.search_runs([experiment]) if "trial.key" not in run.data.tags)
    tags = {name: value for name, value in cell.data.tags.items() if not name.startswith("mlflow.")}
    run = client.create_run(experiment, tags=tags | {"cell.key": "f" * 20}).info.run_id
    client.log_param(run, "epochs", "7")
    client.log_metric(run, "agg/test_top1_err_mean", 12.0)
    return set()


def leave_cell_unfinished(world: World) -> set[str]:
    """Let the run of a cell be as a killed driver leaves it: running, without numbers."""
    with closing(sqlite3.connect(world.database)) as base:
        trials = "select run_uuid from tags where key = 'trial.key'"
        cells = f"select run_uuid from tags where key = 'cell.key' and run_uuid not in ({trials})"
        (run,) = base.execute(f"{cells} limit 1").fetchone()
        base.execute("update runs set status = 'RUNNING', end_time = null where run_uuid = ?", (run,))
        base.execute("delete from metrics where run_uuid = ?", (run,))
        base.execute("delete from latest_metrics where run_uuid = ?", (run,))
        base.commit()
    return set()


def leave_trial_unfinished(world: World) -> set[str]:
    """Let the run of a trial be as a killed driver leaves it, and take its note from the ledger."""
    with closing(sqlite3.connect(world.database)) as base:
        run, key = base.execute("select run_uuid, value from tags where key = 'trial.key' limit 1").fetchone()
        base.execute("update runs set status = 'RUNNING', end_time = null where run_uuid = ?", (run,))
        base.execute("delete from metrics where run_uuid = ? and key like 'final/%'", (run,))
        base.execute("delete from latest_metrics where run_uuid = ? and key like 'final/%'", (run,))
        base.commit()
    (world.output / f"ledger/tracked/{key}.json").unlink()
    return set()


def damage_history(world: World) -> set[str]:
    """Flip a bit in the history of a trial."""
    path = min(world.output.glob("ledger/trials/*/history.json"))
    content = path.read_bytes()
    path.write_bytes(bytes([content[0], content[1] ^ 1]) + content[2:])
    return {path.parent.name}


def garble_store(world: World) -> set[str]:
    """Overwrite the store with what is no database."""
    world.database.write_bytes(b"no database " * 1000)
    return set()


CASES: Final[dict[str, Callable[[World], set[str]]]] = {
    "nothing": nothing,
    "store deleted": delete_store,
    "older backup restored": restore_older,
    "ghost runs added": add_ghosts,
    "cell taken off the page": add_cell,
    "unfinished run of a cell": leave_cell_unfinished,
    "unfinished run of a trial": leave_trial_unfinished,
    "bit of a history flipped": damage_history,
    "store is no database": garble_store,
}


# The bench


def command(output: Path, *words: str) -> tuple[int, str]:
    """Run a module of this project on an output folder; return its exit code and what it said."""
    arguments = [sys.executable, "-m", *words, "--output", str(output)]
    if words[0] != "sweeps":
        arguments += ["--data-dir", str(output.parent / "data")]
    environment = os.environ | {"CI": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def trained(folder: Path) -> World:
    """Train the sweep, and keep the store that it had after its first seed."""
    world = World(folder / "out", folder / "older.db", folder / "whole")
    module, smoke, *_ = COMMANDS["the sweep's command"]
    for seeds in ("1", "2"):
        code, words = command(world.output, module, smoke, "--seeds", seeds, "--reader", "threads")
        if code:
            raise ValueError(f"the sweep ends with {code}:\n{words}")
        if seeds == "1":
            shutil.copy(world.database, world.older)
    shutil.copytree(world.output, world.template)
    return world


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address of an MLflow server, and the file of its store, which a test may write anew."""
    from sweeps.tracking.sqlite_store import prepare

    folder.mkdir()
    prepare(folder / "mlflow.db", print)
    port = free_port()
    words = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1", "--port", str(port),
             "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]  # fmt: skip
    with started(words, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}", folder / "mlflow.db"


def differences(world: World, backend: str, shown: Path, damaged: set[str]) -> list[str]:
    """Return how what a server shows of the store differs from the ledger."""
    if not world.database.exists():
        return ["there is no store"]
    try:
        with closing(sqlite3.connect(world.database)) as source, closing(sqlite3.connect(shown)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        return [f"{error}"]
    mismatches = list(differing_runs(backend, TITLE, Ledger.in_output(str(world.output)), damaged))
    ids = [each["experiment_id"] for each in rest(backend, "experiments/search", max_results=100)["experiments"]]
    for run in rest(backend, "runs/search", experiment_ids=ids, max_results=1000).get("runs", []):
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}  # type: ignore[index, call-overload]
        if "trial.key" not in tags and run["info"]["status"] == "RUNNING":  # type: ignore[index, call-overload]
            mismatches.append(f"the run of cell {tags.get('cell.key', '?')} is RUNNING")
    return mismatches


def main() -> int:
    """Print a row for each case and command; return 1 where MLflow differs in the end, and that was not said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    options = parser.parse_args()
    bad = 0
    rows = []
    with tempfile.TemporaryDirectory(prefix="agreement-") as name:
        world = trained(Path(name))
        with served(Path(name) / "server") as (backend, shown):
            for case in options.cases:
                for label, words in COMMANDS.items():
                    world.fresh()
                    # In a process of its own: SQLAlchemy keeps a store's file open, which the next case replaces.
                    with ProcessPoolExecutor(1, get_context("spawn")) as process:
                        damaged = process.submit(CASES[case], world).result()
                    before = differences(world, backend, shown, damaged)
                    code, said = command(world.output, *words)
                    after = differences(world, backend, shown, damaged)
                    why = next((line for line in said.splitlines() if "MLflow" in line), last_line(said))
                    is_true = "Traceback" not in said and (code == UNTRACKED if after else code != UNTRACKED)
                    bad += not is_true
                    verdict = "equal" if not after else f"exit 4: {why}" if is_true else f"UNTRUE: {after[:2]}, {why}"
                    rows.append(f"| {case} | {label} | {len(before)} | {code} | {len(after)} | {verdict} |")
                    print(rows[-1], flush=True)
    print("| what befell it | then | differences | exit code | differences after | MLflow and the ledger |")
    print("|---|---|---:|---:|---:|---|", *rows, sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
