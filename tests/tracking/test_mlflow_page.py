"""The page of the MLflow that is installed knows the private names by which an address opens our columns."""

import importlib.util
from pathlib import Path

import pytest

from sweeps.tracking.layout import VIEW, VIEW_COLUMNS, VIEW_KEY, VIEW_TAG, experiment_tags, table_address


@pytest.fixture(scope="module")
def page() -> str:
    """Return the scripts of MLflow's page."""
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    scripts = sorted(Path(spec.origin).parent.glob("server/js/build/static/js/*.js"))
    return "".join(path.read_text(encoding="utf-8") for path in scripts)


@pytest.mark.parametrize("name", [f'"{VIEW_TAG}"', f'"{VIEW_KEY}"', VIEW_COLUMNS])
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
