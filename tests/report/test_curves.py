"""Curves of trainings that measure only some of their epochs: each value stands at its own."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sweeps.experiment.metrics import TOP1
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report.charts import curve_gallery
from sweeps.report.render import svg
from sweeps.report.render.chart import Curves
from sweeps.report.tidy import tidy
from sweeps.results.cell_numbers import groups
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.results.marks import under_trained
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, Made, make


def measured(folder: Path, *histories: Mapping[int, float]) -> SweepResults:
    """Return a sweep of one cell whose seeds have these held-out errors, by epoch."""
    ledger = Ledger(str(folder))
    make(ledger, Sweep("gaps", "paper", (BASELINE,), Protocol(seeds=len(histories))), lambda _: Made({TOP1: 20.0}))
    for seed, errors in enumerate(histories):
        rows = [
            {"epoch": float(epoch), "train/loss": 1.0} | ({"val/top1_err": errors[epoch]} if epoch in errors else {})
            for epoch in range(1, max(errors) + 1)
        ]
        ledger.write(f"trials/{Trial(BASELINE, seed=seed).key}/history.json", json.dumps(rows).encode())
    return read_sweep(ledger, "gaps")


def drawn(results: SweepResults) -> Curves:
    """Return the chart of the first row's curves."""
    gallery = curve_gallery(groups(results)[0])
    assert gallery is not None
    content = gallery.figures[0].content
    assert isinstance(content, Curves)
    return content


SEVERAL = ({5: 50.0, 10: 40.0, 15: 30.0}, {2: 90.0, 10: 44.0, 20: 20.0})


def test_curves_file_numbers_the_epochs_that_were_measured(tmp_path: Path) -> None:
    rows = tidy(measured(tmp_path, *SEVERAL))["curves"]
    assert [(row["epoch"], row["val_top1_err"]) for row in rows] == [pair for part in SEVERAL for pair in part.items()]


def test_runs_of_different_gaps_are_averaged_at_the_same_epochs(tmp_path: Path) -> None:
    chart = drawn(measured(tmp_path, *SEVERAL))
    assert chart.ours.epochs.tolist() == [5, 10, 15, 20]  # at 2 one of them has no value yet
    # The second is on the line between its epochs 2 and 10, and 10 and 20; the first stays where it ended.
    first, second = np.array([50.0, 40.0, 30.0, 30.0]), np.array([72.75, 44.0, 32.0, 20.0])
    assert chart.ours.mean == pytest.approx((first + second) / 2)
    assert chart.ours.low == pytest.approx(np.minimum(first, second))
    assert chart.ours.high == pytest.approx(np.maximum(first, second))
    (path,) = re.findall(r'<path d="([^"]+)" class="ours line"', svg.draw(chart, ""))
    places = [float(place) for place in re.findall(r"([\d.]+) [\d.]+", path)]
    assert places == pytest.approx([30 + 180 * (epoch - 1) / 19 for epoch in (5, 10, 15, 20)], abs=0.1)  # of 1 to 20


def test_first_tenth_of_the_epochs_sets_no_scale(tmp_path: Path) -> None:
    chart = drawn(measured(tmp_path, {1: 95.0, 20: 40.0, 40: 30.0}))
    assert (chart.low, chart.high) == (pytest.approx(30 - 0.4), pytest.approx(40 + 0.4))


def test_curve_that_came_to_rest_long_ago_is_not_under_trained(tmp_path: Path) -> None:
    results = measured(tmp_path, {1: 40.0, 2: 30.0, 3: 20.0, 50: 19.9})
    assert not under_trained(results.cells[0])
