"""Garbage collection of a command, which imports Ray, MLflow and SciPy, and holds nothing large itself.

At Python's thresholds the collector looks through all of their objects again and again: a seventh of the imports' time.
"""

import gc

THRESHOLDS = (100_000, 20, 100)  # some MiB may wait to be freed


def collect_rarely() -> None:
    """Let this process collect garbage a hundred times less often."""
    gc.set_threshold(*THRESHOLDS)
