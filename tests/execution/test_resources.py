"""Resources of a trial, as its ranks share them."""

import pytest

from sweeps.execution.resources import TrialResources


@pytest.mark.parametrize(
    ("cpus", "ranks", "threads"), [(1.0, 1, 1), (4.0, 1, 4), (4.0, 2, 2), (7.0, 2, 3), (2.0, 3, 1), (0.5, 1, 1)]
)
def test_ranks_share_the_cpus_of_a_trial(cpus: float, ranks: int, threads: int) -> None:
    assert TrialResources(cpus=cpus, ranks=ranks).threads == threads
