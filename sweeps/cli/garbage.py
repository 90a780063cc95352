"""Garbage collector thresholds of a command.

The imports of Ray, MLflow and SciPy create many objects that last. At Python's thresholds the collector scans them
repeatedly, which takes a seventh of the time of the imports.
"""

import gc

THRESHOLDS = (100_000, 20, 100)  # garbage of a few MiB may remain


def collect_rarely() -> None:
    """Let this process collect garbage a hundred times less often."""
    gc.set_threshold(*THRESHOLDS)
