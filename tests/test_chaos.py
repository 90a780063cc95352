"""The short form of benchmarks/chaos.py: a sweep under faults ends with the table of one left alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1800)
def test_sweep_under_faults_loses_doubles_and_changes_nothing() -> None:
    faults = ("kill driver", "kill worker", "kill server", "damage checkpoint", "terminate driver")
    command = [sys.executable, "-m", "benchmarks.chaos", "--rounds", "4", "--seed", "5", "--epochs", "4"]
    done = subprocess.run(
        [*command, "--pause", "2", "6", "--faults", *faults],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=1750,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    struck = re.findall(r"^ +\d+ s  (\w+ \w+) +(\d+)/14 trials$", done.stdout, re.MULTILINE)
    assert len(struck) == 4
    assert int(struck[0][1]) < 14  # the faults met a sweep under way
    assert "14 trials, each with one finished run" in done.stdout
