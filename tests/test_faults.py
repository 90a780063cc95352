"""The short forms of the benches of faults: a few dozen, drawn with a fixed seed, of which none loses anything."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import faults_bits
from benchmarks.faults_files import MODES, rounds, sites
from sweeps.cifar_vgg import CELLS
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.store.ledger import Ledger
from tests.support.empty_store import empty_store
from tests.support.sweeps import Made, make

ROOT = Path(__file__).parents[1]


def bench(*words: str) -> str:
    """Return what a bench prints; it ends with 1 where something was lost or a message untrue."""
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("gcc"), reason="the library that makes calls fail is compiled by gcc")
def test_failing_calls_of_files_lose_nothing() -> None:
    parts = ("trial", "prepare", "backup", "restore", "driver")
    said = bench("benchmarks.faults_files", "--part", *parts, "--draw", "2", "--seed", "11")
    rows = re.findall(r"^\| (\w+)[^|]*\| \d+ \| ([\w ]+) \| (\d+) \|.* 0 \| 0 \|$", said, re.MULTILINE)
    assert {part for part, _, _ in rows} == set(parts)
    assert {mode for _, mode, _ in rows} == set(MODES)
    assert sum(int(faults) for _, _, faults in rows) == 6 * 2


@pytest.mark.timeout(900)
def test_lost_requests_lose_nothing() -> None:
    said = bench("benchmarks.faults_requests", "--part", "s3", "--first", "7", "--every", "25")
    assert re.findall(r"^\| S3 \| (\w+) \| \d+ \| (\d) \|.* 0 \| 0 \|$", said, re.MULTILINE) == [
        ("request", "3"),
        ("answer", "3"),
    ]


def made_ledger(folder: Path) -> Ledger:
    """Return the ledger of a sweep that was never trained, each file with its digest."""
    ledger = Ledger.in_output(str(folder / "out"))
    sweep = Sweep("cifar_vgg", "paper", CELLS[:2], Protocol(seeds=1))
    make(ledger, sweep, lambda _: Made({"final/test_top1_err": 9.0}))
    for key, result in ledger.results().items():
        digests = {name: ledger.sha256(f"trials/{key}/{name}") for name in result["files"]}
        ledger.commit(key, result | {"files": digests})
    ledger.delete("tracked")  # made-up notes of runs, without the checksum that the tracker gives them
    return ledger


@pytest.mark.filterwarnings("ignore")
def test_flipped_bits_are_told_healed_or_harmless(tmp_path_factory: pytest.TempPathFactory) -> None:
    def made(folder: Path) -> Ledger:
        shutil.copy(empty_store(tmp_path_factory), folder / "empty.db")
        return made_ledger(folder)

    rows = dict(faults_bits.run(1, 5, made))
    assert {"results", "plans", "trials/…/history.json", "trials/…/trial.json"} <= rows.keys()
    ended = {name: dict(counts) for name, counts in rows.items()}
    assert not [how for counts in rows.values() for how in counts if how.startswith(("silent", "crash"))], ended


def test_calls_are_grouped_by_their_sites_and_each_site_has_its_turn() -> None:
    notes = "1\tledger.py:10 < run.py:5 open .json\n2\tledger.py:11 write \n3\tledger.py:11 write \n" + "".join(
        f"{number}\tledger.py:11 write \n" for number in range(4, 9)
    )
    groups = sites(notes)
    assert groups == [[1], [2, 3, 4, 5, 6, 7, 8]]
    modes = list(MODES)
    faults = list(rounds(groups, modes))
    assert len(faults) == len(set(faults)) == 8 + 3 * 8
    assert {call for call, _ in faults} == {1, 2, 5, 8}
    assert [1 if call == 1 else 2 for call, _ in faults[:16]] == [1, 2] * 8
    assert faults[0][1] != faults[1][1]
