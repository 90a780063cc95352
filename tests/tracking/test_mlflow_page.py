"""The page of the MLflow that is installed knows the private names by which an address opens our columns and charts."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sweeps.experiment.metrics import PARAMETERS, PERCENT, Metric
from sweeps.tracking.layout import (
    CHART_MODE,
    COLOUR,
    CURVES,
    VIEW,
    VIEW_CHARTS,
    VIEW_COLUMNS,
    VIEW_KEY,
    VIEW_ORDER,
    VIEW_SECTIONS,
    VIEW_TAG,
    VIEW_WIDTHS,
    charts_address,
    columns,
    experiment_tags,
    table_address,
)

F1 = Metric("test/f1", better="higher")


def view_of(name: str, metric: Metric = PERCENT) -> dict[str, Any]:
    """Return a view that the experiment carries."""
    (text,) = (text for tag, text in experiment_tags(metric).items() if tag.startswith(f"{VIEW_TAG}{name}"))
    view: dict[str, Any] = json.loads(text)
    return view


@pytest.fixture(scope="module")
def page() -> str:
    """Return the scripts of MLflow's page."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    scripts = sorted(Path(spec.origin).parent.glob("server/js/build/static/js/*.js"))
    return "".join(path.read_text(encoding="utf-8") for path in scripts)


@pytest.mark.parametrize("name", [VIEW_TAG, VIEW_KEY, COLOUR, *dict.fromkeys([*view_of(VIEW), *view_of(CURVES)])])
def test_page_reads_shared_views_by_these_names(page: str, name: str) -> None:
    assert f'"{name}"' in page


def test_page_reads_charts_sections_and_groups_by_these_names(page: str) -> None:
    view = view_of(CURVES)
    parts = [*view[VIEW_CHARTS], *view[VIEW_SECTIONS], view["groupBy"], *view["groupBy"]["groupByKeys"]]
    for key in {key for part in parts for key in part}:
        assert re.search(rf"\b{key}\b", page), key
    words = {chart["type"] for chart in view[VIEW_CHARTS]} | {view[VIEW_SECTIONS][-1]["name"], view["runsHiddenMode"]}
    words |= {view[VIEW_CHARTS][1]["xaxis"]["type"], view["groupBy"]["aggregateFunction"]}
    for word in words | set(CHART_MODE.split("=")):
        assert f'"{word}"' in page, word


def test_page_reads_the_other_tags_and_routes(page: str) -> None:
    kind, metric = "mlflow.experimentKind", "mlflow.experiment.primaryMetric.name"
    assert {kind, metric} < experiment_tags().keys()
    for name in (kind, experiment_tags()[kind], metric, "/compare-runs"):
        assert name in page


@pytest.mark.parametrize("metric", [PERCENT, F1])
def test_addresses_name_the_views_that_the_experiment_carries_for_a_metric(metric: Metric) -> None:
    keys = [address("7", metric).partition(f"{VIEW_KEY}=")[2] for address in (table_address, charts_address)]
    assert keys[1].endswith(f"&{CHART_MODE}")
    views = [experiment_tags(metric)[f"{VIEW_TAG}{key.removesuffix(f'&{CHART_MODE}')}"] for key in keys]
    assert views == [json.dumps(view_of(VIEW, metric)), json.dumps(view_of(CURVES, metric))]
    if metric == PERCENT:
        assert keys == [VIEW, f"{CURVES}&{CHART_MODE}"]  # as they stand in notes of before


def test_table_opens_with_trials_below_their_cells_and_the_charts_with_all_of_them() -> None:
    table, curves = view_of(VIEW), view_of(CURVES)
    # The page puts trials below their cells only where it sorts by date, as it does by itself, and does not group.
    assert not {"orderByKey", "groupBy"} & table.keys()
    assert [group["groupByData"] for group in curves["groupBy"]["groupByKeys"]] == ["cell"]
    assert curves["useGroupedValuesInCharts"] is False  # a line a training
    assert table["runsHiddenMode"] == curves["runsHiddenMode"] == "SHOW_ALL"
    # Its chart of curves stays while no cell is unfolded, and says so.
    assert table["hideEmptyCharts"] is False
    assert table[VIEW_SECTIONS][1]["name"] == "Unfold a cell: hold-out % by epoch"
    assert {key: curves[key] for key in (VIEW_COLUMNS, VIEW_ORDER, VIEW_WIDTHS, VIEW_CHARTS)} == {
        key: table[key] for key in (VIEW_COLUMNS, VIEW_ORDER, VIEW_WIDTHS, VIEW_CHARTS)
    }


@pytest.mark.parametrize(
    ("metric", "mean", "row", "headings"),
    [
        (PERCENT, "agg/test_top1_err_mean", "val/top1_err",
         ["Cells: test error %, lower is better", "Trainings: hold-out % by epoch"]),
        (F1, "agg/test_f1_mean", "val/f1", ["Cells: test f1, higher is better", "Trainings: val f1 by epoch"]),
    ],
)  # fmt: skip
def test_charts_are_of_the_metric_and_all_others_are_folded(
    metric: Metric, mean: str, row: str, headings: list[str]
) -> None:
    view = view_of(CURVES, metric)
    bars, points, lines = view[VIEW_CHARTS]
    assert (bars["type"], bars["metricKey"]) == ("BAR", mean)
    assert (points["type"], points["xaxis"]["key"], points["yaxis"]["key"]) == ("SCATTER", PARAMETERS, mean)
    assert (lines["type"], lines["metricKey"], lines["selectedMetricKeys"]) == ("LINE", row, [row])
    unfolded = {section["uuid"]: section["name"] for section in view[VIEW_SECTIONS] if section["display"]}
    assert [*unfolded.values()] == headings
    assert {chart["metricSectionId"] for chart in view[VIEW_CHARTS]} == unfolded.keys()
    assert view["isAccordionReordered"] is True  # so sections keep this order
    folded = {section["name"] for section in view[VIEW_SECTIONS] if not section["display"]}
    assert {name.partition("/")[0] for name in columns(metric)} | {"sys", "train", "val"} <= folded


@pytest.mark.parametrize("metric", [PERCENT, F1])
def test_tags_are_short_enough_for_an_older_server(metric: Metric) -> None:
    assert max(map(len, experiment_tags(metric).values())) <= 5000  # letters; those of 3.17 take 20,000


def test_columns_stand_in_our_order_as_wide_as_their_headings() -> None:
    view = json.loads(experiment_tags()[f"{VIEW_TAG}{VIEW}"])
    assert view[VIEW_ORDER] == view[VIEW_COLUMNS]
    assert view[VIEW_ORDER][0] == "metrics.`agg/test_top1_err_mean`"
    assert view[VIEW_WIDTHS].keys() == set(view[VIEW_ORDER])
    assert view[VIEW_WIDTHS]["metrics.`agg/test_top1_err_single_mean`"] == 262  # 29 letters
    assert view[VIEW_WIDTHS]["params.`lr`"] == 59
