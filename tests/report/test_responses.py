"""A search is named by the number that judges it, in the file and in the charts; no point of it is left out."""

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.experiment.metrics import TOP1
from sweeps.experiment.search import Search
from sweeps.experiment.space import Choice
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.report.charts import response_galleries
from sweeps.report.render import svg
from sweeps.report.render.chart import Point, Responses
from sweeps.report.render.document import Gallery
from sweeps.report.render.formats import comma_separated
from sweeps.report.tidy import tidy
from sweeps.results.evidence import SweepResults, read_sweep
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, Made, make

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def searched(folder: Path, made: Callable[[float], Made], objective: str = "", direction: str = "") -> SweepResults:
    """Return a sweep of one cell whose search tries each of the rates."""
    search = Search(len(RATES), sampler="grid", prune=False, space={"recipe.lr": Choice(*RATES)},
                    objective=objective, direction=direction)  # fmt: skip

    def outcome(trial: Trial) -> Made:
        return made(float(dict(trial.choices)["recipe.lr"])) if trial.phase == "holdout" else Made({TOP1: 12.0})

    ledger = Ledger(str(folder))
    make(ledger, Sweep("searched", "paper", (BASELINE,), Protocol(search=search)), outcome)
    return read_sweep(ledger, "searched")


def gallery_of(results: SweepResults) -> tuple[Gallery, Responses]:
    """Return the only gallery of responses, and its only chart."""
    (gallery,) = response_galleries(results)
    (figure,) = gallery.figures
    assert isinstance(figure.content, Responses)
    return gallery, figure.content


@pytest.mark.parametrize(
    ("objective", "name", "column"),
    [
        ("best/loss", "best/loss", "best_loss"),
        ("", "best/val_top1_err", "val_top1_err"),
        ("number", "number", None),
        ("value", "value", "value"),
    ],
)
def test_file_names_what_a_search_chose_by(tmp_path: Path, objective: str, name: str, column: str | None) -> None:
    results = searched(tmp_path, lambda rate: Made({name: 0.001 * rate}, curve=[20.0]), objective)
    lines = list(csv.DictReader(io.StringIO(comma_separated(tidy(results)["dropout"]).decode())))
    by_rate = {line["choices"]: line for line in lines}
    assert {line["objective"] for line in lines} == {name}
    assert float(by_rate["recipe.lr=0.05"]["value"]) == pytest.approx(0.00005)
    assert sorted(line["number"] for line in lines) == [*"012345"]
    if column:
        assert [line[column] for line in lines] == [line["value"] for line in lines]
    if objective:
        assert "val_top1_err" not in lines[0]


def test_words_under_the_pointer_have_the_digits_of_the_objective(tmp_path: Path) -> None:
    def made(rate: float) -> Made:
        return Made({"best/loss": 0.001 * rate, "best/gain": -rate}, curve=[20.0 + rate])

    small = gallery_of(searched(tmp_path / "loss", made, "best/loss"))[1]
    assert [point.tip for point in small.points if point.x == 1] == ["0.02: 0.00002000"]
    errors = gallery_of(searched(tmp_path / "error", made))[1]
    assert [point.tip for point in errors.points if point.x == 5] == ["0.5: 20.50"]
    gains = gallery_of(searched(tmp_path / "gain", made, "best/gain"))[1]
    assert [point.tip for point in gains.points if point.x == 5] == ["0.5: −0.5000"]


def test_points_beyond_the_frame_are_triangles_and_the_caption_counts_them(tmp_path: Path) -> None:
    def made(rate: float) -> Made:
        error = (10.0 if rate < 0.2 else 25.0) + rate
        return Made({"best/score": 100.0 - error}, curve=[error])

    gallery, chart = gallery_of(searched(tmp_path / "up", made))
    assert gallery.caption == "Triangles at the edge: 2 points beyond the frame, up to 25.50."
    drawn = svg.draw(chart, "")
    beyond = [point for point in chart.points if point.value > chart.high]
    assert sorted(point.tip for point in beyond) == ["0.2: 25.20", "0.5: 25.50"]
    assert re.findall(r'class="beyond ours" data-trials="(\w+)"><title>(.+?)<', drawn) == [
        (point.trials, point.tip) for point in beyond
    ]
    assert drawn.count("<circle") == len(RATES) - 2
    gallery, chart = gallery_of(searched(tmp_path / "down", made, "best/score", "maximize"))
    assert gallery.caption == "Triangles at the edge: 2 points beyond the frame, down to 74.50."
    assert svg.draw(chart, "").count('class="beyond ours"') == 2
    even = gallery_of(searched(tmp_path / "even", lambda rate: Made({}, curve=[10.0 + rate])))[0]
    assert even.caption == ""


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_frame_holds_all_points_where_half_of_them_have_the_best_value(tmp_path: Path, direction: str) -> None:
    sign = 1 if direction == "minimize" else -1
    results = searched(tmp_path, lambda rate: Made({"best/score": sign * 40.0 * (rate > 0.1)}), "best/score", direction)
    gallery, chart = gallery_of(results)
    assert gallery.caption == ""
    assert {point.value for point in chart.points} == {0.0, sign * 40.0}
    assert all(chart.low < point.value < chart.high for point in chart.points)


@pytest.mark.parametrize("objective", ["", "best/score"])
def test_search_is_drawn_within_its_frame_and_names_its_values(tmp_path: Path, objective: str) -> None:
    chart = gallery_of(
        searched(
            tmp_path, lambda rate: Made({"best/score": 10 + math.log(rate)}, curve=[10 + math.log(rate)]), objective
        )
    )[1]
    assert chart.y_label == (objective or "hold-out error, %")
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg.draw(chart, ""))
    assert len(circles) == len(RATES)
    for x, y, radius in ((float(x), float(y), float(radius)) for x, y, radius in circles):
        assert 30 + radius + 2 < x < 160 - radius - 2
        assert 22 + radius + 2 < y < 112 - radius - 2


def test_triangle_points_to_where_its_point_lies() -> None:
    points = [Point(9.0, x=2.0, kind="ours"), Point(-9.0, x=1.0, kind="open"), Point(0.5, x=1.0)]
    drawn = svg.draw(Responses(points, 0.0, 1.0, (1.0, 2.0), y_label="val f1"), "")
    assert re.findall(r'class="name">([^<]+)<', drawn) == ["val f1"]
    corners = {
        kind: [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", place)]
        for place, kind in re.findall(r'<path d="([^"]+)" class="beyond (\w+)"', drawn)
    }
    (left, base), (tip, edge), (right, _) = corners["ours"]
    assert (base, edge) == (29.0, 22.0)
    assert left < tip < right
    assert [y for _, y in corners["open"]] == [105.0, 112.0, 105.0]
    (circle,) = re.findall(r'<circle cx="([\d.]+)"', drawn)
    assert corners["open"][1][0] == float(circle)
