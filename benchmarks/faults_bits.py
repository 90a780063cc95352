"""What does one flipped bit in a ledger do? Every kind of its files, bits at random: told, healed, harmless or silent.

    python -m benchmarks.faults_bits --flips 20 --seed 0

A smoke test makes a ledger; files that it lacks (a lease, a claim, a failed try, a checkpoint, a pack, a forecast, a
price) are added as the code writes them. The table for people, results-SWEEP.parquet, is read by nothing here. For each
flip the ledger is read by all that reads it: status, report, capsule, MLflow (a new store each time), the queue's plan,
the checkpoint of a trial, the lease. What they say is compared with what they said before:

- harmless: all say the same;
- told: one refuses with a sentence, or says that something is damaged;
- healed: the trial is to be trained anew, an older checkpoint is taken, or the next driver writes the file anew;
- left out: less is said, and nothing that is not so (a price, a try);
- silent: something else is said, without a word; crash: an exception that is no sentence. Both are faults.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from sweeps.cli.status import text
from sweeps.experiment.plan import current_plan
from sweeps.report import build
from sweeps.report.tidy import tidy
from sweeps.results import capsule
from sweeps.results.evidence import read_sweep, titles
from sweeps.store import checkpoint
from sweeps.store.checkpoint import Checkpoint
from sweeps.store.lease import Drivers, Lease, _drives, claim
from sweeps.store.ledger import Ledger, failed_attempt
from sweeps.store.process import Host
from sweeps.tracking.mlflow_runs import MlflowRuns, Store

Said = dict[str, str]  # by reader
COLUMNS = ("told", "healed", "left out", "harmless", "silent", "crash")
TOLD = ("damaged", "cannot be read", "checksum", "was changed", "has changed")
# What is read of files that a driver writes again within seconds. At worst two train one trial, to the same bytes.
REWRITTEN = {"lease", "claim", "pack"}


class Still(Host):
    """This host, whose clock stands: a lease that was written at the start does not grow old."""

    def __init__(self) -> None:
        """Stop the clock."""
        self.began = Host().now()

    def now(self) -> float:
        """Return when this program began."""
        return self.began


STILL = Still()
UNFINISHED = "0" * 20  # key of a trial that has a checkpoint and a failed try


def made(folder: Path) -> Ledger:
    """Return a ledger with every kind of file, and an empty store of MLflow beside it."""
    command = [sys.executable, "-m", "sweeps.imagenet_placement", "--smoke-test", "--output", str(folder / "out")]
    subprocess.run([*command, "--price-per-gpu-hour", "2"], check=True, capture_output=True)
    ledger = Ledger.in_output(str(folder / "out"))
    (title,) = titles(ledger)
    with Lease(ledger, "another"):
        content = ledger.read("leases/another.json") or b""
        claim(Drivers(ledger), "another", UNFINISHED)
    ledger.write("leases/another.json", content)
    ledger.add_attempt(UNFINISHED, failed_attempt(ValueError("made"), final=False))
    for step in (1, 2):
        tensors = {"a": torch.arange(64.0) * step}
        checkpoint.save(ledger, UNFINISHED, 1, step, Checkpoint(tensors, {"step": step}))
    ledger.write_note("packs/made.json", {"left": [UNFINISHED]})
    if not ledger.names("forecasts"):
        ledger.write_note(f"forecasts/{title}-made.json", {"seconds": 1.0, "actual": 2.0})
    _empty_store(folder / "empty.db")
    return ledger


def _empty_store(path: Path) -> None:
    """Make an empty store of MLflow, whose tables take a second or two."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{path}").search_experiments()


def digest(value: object) -> str:
    """Return a digest of bytes or of a value's words."""
    content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def readers(ledger: Ledger, folder: Path) -> dict[str, Callable[[], str]]:
    """Return what reads a ledger; each returns all that it makes of it as words."""
    title = titles(ledger)[0]

    def report() -> str:
        results = read_sweep(ledger, title)
        return build.markdown(build.document(ledger, results)) + repr(tidy(results))

    def packed() -> str:
        results = read_sweep(ledger, title)
        capsule.write(ledger, results, {}, folder / "capsule.zip")
        return digest((folder / "capsule.zip").read_bytes())

    def tracked() -> str:
        # Of a copy: what MLflow has is noted on the ledger.
        shutil.copytree(ledger.root, folder / "copy" / "ledger")
        copy = Ledger(str(folder / "copy" / "ledger"))
        # Under a name of its own: MLflow keeps the connection to a store that it has opened.
        database = folder / f"{time.monotonic_ns()}.db"
        shutil.copy(folder.parent / "empty.db", database)
        store = Store(f"sqlite:///{database}", title, str(folder / "artifacts"))
        plan = current_plan(copy, title)
        runs = MlflowRuns(store, copy, plan.sweep)
        trials = [status.trial for status in plan.statuses if status.result is not None]
        for trial in trials:
            runs.sync_trial(trial, "FINISHED")
        logged = runs.client.search_runs([runs.experiment])
        words: list[Any] = sorted((sorted(run.data.metrics.items()), sorted(_stable(run.data.tags))) for run in logged)
        files = sorted((path.name, digest(path.read_bytes())) for path in folder.rglob("artifacts/*/artifacts/**/*")
                       if path.is_file())  # fmt: skip
        return repr((words, files))

    def queue() -> str:
        plan = current_plan(ledger, title)
        return repr([(status.trial.key, status.state) for status in plan.statuses])

    def resumed() -> str:
        state, damaged = checkpoint.load(ledger, UNFINISHED)
        return f"{digest(state)} {'damaged: ' * bool(damaged)}{damaged}"

    return {
        "status": lambda: text(current_plan(ledger, title), None),
        "queue": queue,
        "report": report,
        "capsule": packed,
        "mlflow": tracked,
        "checkpoint": resumed,
        "attempts": lambda: "\n".join(map(repr, itertools.chain.from_iterable(ledger.failed().values()))),
        "lease": lambda: repr(Drivers(ledger, STILL).look("another") is not None),
        "claim": lambda: repr(_drives(Drivers(ledger, STILL), ledger.read_json(f"claims/{UNFINISHED}.json") or {})),
        "identity": lambda: ledger.identity,
        "pack": lambda: repr(ledger.read_json("packs/made.json")),
    }


def _stable(tags: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in tags.items()
        if not name.startswith("mlflow.") and "time" not in name and "ledger" not in name
    ]


def said(ledger: Ledger, folder: Path) -> tuple[Said, str]:
    """Return what each reader says, and the sentences in which they refused or warned."""
    words: Said = {}
    told = StringIO()
    with redirect_stderr(told), redirect_stdout(told):
        try:
            reading = readers(ledger, folder)
        except (ValueError, OSError) as error:
            return {"all": "refused"}, f"{error}"
        for name, read in reading.items():
            try:
                words[name] = read()
            except (ValueError, OSError) as error:
                words[name] = "refused"
                print(f"refused: {error}")
            except Exception as error:
                words[name] = f"crash: {type(error).__name__}: {error}"
    return words, told.getvalue()


def verdict(before: Said, after: Said, told: str) -> str:
    """Return what a flip has done, with the readers that it misled."""
    changed = [name for name in after if after[name] != before.get(name)]
    crashed = [name for name in changed if after[name].startswith("crash")]
    if crashed:
        return f"crash ({', '.join(crashed)}: {after[crashed[0]][7:90]})"
    if "refused" in told or any(word in told for word in TOLD):
        return "told"
    if not changed:
        return "harmless"
    if any(word in after[name] and word not in before.get(name, "") for name in changed for word in TOLD):
        return "told"
    if "queue" in after and after["queue"] != before["queue"] and "'new'" in after["queue"]:
        return "healed"  # to be trained anew
    if set(changed) <= REWRITTEN:
        return "healed"
    if all(set(_pieces(after[name])) <= set(_pieces(before[name])) for name in changed):
        return "left out"
    return f"silent ({', '.join(changed)})"


def _pieces(words: str) -> list[str]:
    """Return lines and values of what a reader said, to compare them as sets."""
    return [piece for piece in re.split(r"[\n,|]", words) if piece.strip()]


def kind(name: str) -> str:
    """Return a file's kind: its name without keys and times."""
    folder, *rest = name.split("/")
    return folder if not rest else f"{folder}/…/{name.partition('/')[2].partition('/')[2]}" if len(rest) > 1 else folder


def run(flips: int, seed: int, make: Callable[[Path], Ledger] = made) -> list[tuple[str, Counter[str]]]:
    """Return how often flips in each kind of file of the ledger that `make` makes ended how."""
    draw = random.Random(seed)
    rows: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="bits-") as scratch:
        source = make(Path(scratch))
        root = Path(source.root)
        names: dict[str, list[str]] = {}
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_file() and path.stat().st_size and not path.name.endswith((".lock", ".txt")):
                names.setdefault(kind(name), []).append(name)
        before, told = said(source, _fresh(Path(scratch)))
        assert "refused" not in told, told
        for each, candidates in names.items():
            rows[each] = Counter()
            for _ in range(flips):
                target = root / draw.choice(candidates)
                content = target.read_bytes()
                place, bit = draw.randrange(len(content)), draw.randrange(8)
                flipped = bytearray(content)
                flipped[place] ^= 1 << bit
                target.write_bytes(flipped)
                after, words = said(Ledger(source.root), _fresh(Path(scratch)))
                target.write_bytes(content)
                rows[each][verdict(before, after, words)] += 1
    return list(rows.items())


def _fresh(folder: Path) -> Path:
    """Return an empty folder below `folder`."""
    shutil.rmtree(folder / "read", ignore_errors=True)
    (folder / "read").mkdir()
    return folder / "read"


def main() -> int:
    """Print the table; return 1 where a flip was silent or a crash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=20, help="in each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    rows = run(options.flips, options.seed)
    print(f"| file | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    bad = 0
    for name, counts in rows:
        columns = {word: sum(n for how, n in counts.items() if how.startswith(word))
                   for word in COLUMNS}  # fmt: skip
        bad += columns["silent"] + columns["crash"]
        print(f"| {name} | {' | '.join(str(n) for n in columns.values())} |")
    for name, counts in rows:
        for how, n in counts.items():
            if how.startswith(("silent", "crash")):
                print(f"{name}: {n} {how}")
    print(f"{time.perf_counter() - began:.0f} s")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
