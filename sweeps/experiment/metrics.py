"""Metric names, and the averages of a cell's test errors."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from sweeps.store.ledger import Json

ERROR: Final = "test_top1_err"

ERRORS: Final = re.compile(r"final/test_top\d+_err(_10crop)?")


def averages(tested: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """Return mean, standard error and count of each test error over a cell's trials, given as (phase, metrics).

    Losses stay on the trials' runs: each name here is a chart in the UI. Where a cell has folds they are what is
    averaged, as in the paper; its other trainings are then "single".
    """
    found: dict[str, float] = {}
    folds = any(phase == "fold" for phase, _ in tested)
    names = {name for _, metrics in tested for name in metrics if ERRORS.fullmatch(name)}
    for name in sorted(names):
        for fold in {False, folds}:
            values = [m[name] for phase, m in tested if name in m and (phase == "fold") == fold]
            base = f"agg/{name.removeprefix('final/')}" + ("_single" if folds and not fold else "")
            if values:
                found |= {f"{base}_mean": statistics.fmean(values), f"{base}_n": float(len(values))}
            if len(values) > 1:
                found[f"{base}_se"] = statistics.stdev(values) / math.sqrt(len(values))
    return found


def flags_of(result: Json) -> list[str]:
    """Return the marks a reader of the number must see."""
    marks = ["diverged"] if result["status"] == "diverged" else []
    return marks + ([f"restarted:{result['restarts']}"] if result["restarts"] else [])
