"""Does the whole of an own ablation hold, with torchvision's resnet18 and a ViT on a folder of pictures?

    python -m benchmarks.own_nets --seed 0

A page of 25 lines in a folder with data.py, utils.py, models.py and train.py of the researcher's own: two nets, three
activations, a search of 20 points over the learning rate and the weight decay for each cell, two seeds, four trainings
in a pack. The command is killed twice (kill -9), each time at a moment that the seed draws, then runs to its end. Then
both nets with CReLU are proved to resume bit for bit. All of it is by the commands that a person types.

A row a check: what was checked, what was seen, and whether it holds. The exit code is 1 where one does not.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from sweeps.experiment.wording import count
from sweeps.store.ledger import Json
from tests.support.commands import wait_for
from tests.support.own_nets import (
    ACTIVATIONS,
    CELLS,
    NETS,
    SEEDS,
    WORDS,
    User,
    expected_effects,
    expected_factors,
)

Name = TypeVar("Name")  # of a row of the report

FACTORY, PLACES = "torchvision.models:resnet18", "layer*.*.relu"  # the eight places that end no block
EPOCHS = 8  # with four, half of resnet18's trainings stay at chance
POINTS = 20  # of a search: from there on the report tells how much each dimension counts
TRIALS = len(CELLS) * (POINTS + SEEDS)
AXES = ("recipe.lr", "recipe.weight_decay")
PATIENCE = 3600.0  # seconds
LATER = 5.0  # seconds at most between a number of results and the kill: it falls into the midst of a pack


class Check(NamedTuple):
    """What was checked, what was seen, and whether that is right."""

    what: str
    seen: str
    holds: bool


class Swept(NamedTuple):
    """What the last command of a sweep printed, its exit code and its seconds, and the results before each kill."""

    said: str
    code: int
    seconds: float
    kept: list[dict[str, Json]]


def sweep(user: User, draw: random.Random) -> Swept:
    """Run the page, kill it twice, and run it to its end."""
    kept = []
    began = time.monotonic()
    for first, last in ((1, TRIALS // 3), (TRIALS // 2, 9 * TRIALS // 10)):
        kill(user, draw.randint(first, last), draw.uniform(0, LATER))
        kept.append(user.ledger.results())
        print(f"killed after {count(len(kept[-1]), 'result')}, {time.monotonic() - began:.0f} s", flush=True)
    with user.start(*WORDS) as driver:
        said, errors = driver.communicate(timeout=PATIENCE)
    print(said if driver.returncode == 0 else errors, flush=True)
    return Swept(said, driver.returncode, time.monotonic() - began, kept)


def kill(user: User, number: int, later: float) -> None:
    """Run the page, and kill it some seconds after a number of results."""
    with user.start(*WORDS) as driver:
        wait_for(count(number, "result"), lambda: len(user.ledger.results()) >= number, driver, PATIENCE)
        time.sleep(later)
        driver.send_signal(signal.SIGKILL)


def checks(user: User, swept: Swept) -> Iterator[Check]:
    """Yield what holds of the sweep and of its report."""
    results = user.ledger.results()
    lines = len(user.page.splitlines())
    yield Check("lines of the page", str(lines), lines <= 25)
    yield Check("exit code after two kills", str(swept.code), swept.code == 0)
    told = f"{TRIALS} of {TRIALS} trials are done"
    states = Counter(result["status"] for result in results.values())
    whole = states["finished"] + states["pruned"] == TRIALS and told in swept.said
    yield Check("trainings that were pruned, or finished", f"{states['pruned']}, {states['finished']}", whole)
    for number, kept in zip(("first", "second"), swept.kept, strict=True):
        same = sum(results.get(key) == result for key, result in kept.items())
        yield Check(f"results before the {number} kill, unchanged", f"{same} of {len(kept)}", same == len(kept) > 0)
    errors = user.errors()
    effects = {row["row"]: float(row["difference"]) for row in rows(user.report / "effects.csv")}
    yield agreement("effects", effects, expected_effects(errors))
    factors = {(row["factors"], row["levels"]): float(row["difference"]) for row in rows(user.report / "factors.csv")}
    yield agreement("main effects and interactions", factors, expected_factors(errors))
    paired = {(row["n"], row["over"], row["reference"]) for row in rows(user.report / "effects.csv")}
    yield Check("pairs of an effect", f"{SEEDS} seeds", paired == {(str(SEEDS), "seeds", CELLS[0])})
    yield from importance_checks((user.report / "report.md").read_text(encoding="utf-8"))
    page = (user.report / "report.html").read_text(encoding="utf-8")
    drawn = {(cell, axis) for axis in AXES for cell in re.findall(rf"([\w ]+): hold-out error by {axis}", page)}
    yield Check(
        "charts of a cell's search", str(len(drawn)), drawn == {(cell, axis) for cell in CELLS for axis in AXES}
    )


def rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    import csv

    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def agreement(what: str, found: Mapping[Name, float], expected: Mapping[Name, float]) -> Check:
    """Return whether numbers of the report are those of the trainings on the ledger."""
    apart = max((abs(found.get(name, float("inf")) - value) for name, value in expected.items()), default=float("inf"))
    return Check(
        f"{what}, off at most", f"{apart:.1g} of {len(found)}", found.keys() == expected.keys() and apart < 1e-9
    )


def importance_checks(report: str) -> Iterator[Check]:
    """Yield whether the report has each cell's importance: shares of a hundred, or a dash and why."""
    found = dict(re.findall(r"^\| ([\w ]+) \| ((?:\d+ %|–) \| (?:\d+ %|–)) \|$", report, re.MULTILINE))
    for cell in CELLS:
        shares = [int(share) for share in re.findall(r"(\d+) %", found.get(cell, ""))]
        untold = found.get(cell) == "– | –" and "more than half of them have the worst one" in report
        told = len(shares) == len(AXES) and abs(sum(shares) - 100) <= 1
        yield Check(f"importance, {cell}", found.get(cell, "none").replace(" |", ","), told or untold)


def proofs(user: User) -> Iterator[Check]:
    """Yield whether both nets with CReLU are proved to resume bit for bit."""
    for net in NETS:
        label = f"{net} {ACTIVATIONS[-1]}"
        proof = user.prove(label)
        said, errors = proof.communicate(timeout=PATIENCE)
        proved = "weights, curves and scores are bit for bit those of a training without" in said
        yield Check(f"exit code of verify-resume, {label}", str(proof.returncode), proof.returncode == 0 and proved)
        if not proved:
            print(said, errors, flush=True)


def main() -> int:
    """Run the ablation, print what was checked, and return 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="draws the moments of the kills")
    parser.add_argument("--folder", type=Path, help="to keep the page and its output in (default: a scratch folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="own-nets-", ignore_cleanup_errors=True) as scratch:
        folder: Path = (options.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        user = User(folder, FACTORY, PLACES, POINTS, EPOCHS)
        swept = sweep(user, random.Random(options.seed))
        done = [*checks(user, swept), *proofs(user)]
    for check in done:
        print(f"{check.what:<45} {check.seen:<20} {'holds' if check.holds else 'DOES NOT HOLD'}")
    wrong = sum(not check.holds for check in done)
    print(f"{swept.seconds:.0f} s with two kills; {wrong} of {count(len(done), 'check')} do not hold")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
