"""The page of the MLflow that is installed knows the private names by which an address opens our columns."""

import importlib.util
import json
from pathlib import Path

import pytest

from sweeps.tracking.layout import (
    COLOUR,
    VIEW,
    VIEW_COLUMNS,
    VIEW_KEY,
    VIEW_ORDER,
    VIEW_TAG,
    VIEW_WIDTHS,
    experiment_tags,
    table_address,
)


@pytest.fixture(scope="module")
def page() -> str:
    """Return the scripts of MLflow's page."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    scripts = sorted(Path(spec.origin).parent.glob("server/js/build/static/js/*.js"))
    return "".join(path.read_text(encoding="utf-8") for path in scripts)


@pytest.mark.parametrize(
    "name",
    [f'"{VIEW_TAG}"', f'"{VIEW_KEY}"', f'"{COLOUR}"', *(f'"{key}"' for key in (VIEW_COLUMNS, VIEW_ORDER, VIEW_WIDTHS))],
)
def test_page_reads_shared_views_by_these_names(page: str, name: str) -> None:
    assert name in page


def test_page_reads_the_other_tags_and_routes(page: str) -> None:
    kind, metric = "mlflow.experimentKind", "mlflow.experiment.primaryMetric.name"
    assert {kind, metric} < experiment_tags().keys()
    for name in (kind, experiment_tags()[kind], metric, "/compare-runs"):
        assert name in page


def test_address_names_the_view_that_the_experiment_carries() -> None:
    key = table_address("7").partition(f"{VIEW_KEY}=")[2]
    assert key == VIEW
    assert f"{VIEW_TAG}{key}" in experiment_tags()


def test_columns_stand_in_our_order_as_wide_as_their_headings() -> None:
    view = json.loads(experiment_tags()[f"{VIEW_TAG}{VIEW}"])
    assert view[VIEW_ORDER] == view[VIEW_COLUMNS]
    assert view[VIEW_ORDER][0] == "metrics.`agg/test_top1_err_mean`"
    assert view[VIEW_WIDTHS].keys() == set(view[VIEW_ORDER])
    assert view[VIEW_WIDTHS]["metrics.`agg/test_top1_err_single_mean`"] == 262  # 29 letters
    assert view[VIEW_WIDTHS]["params.`lr`"] == 59
