"""Execution of trials: Ray, the queue, workers, packs, ranks."""

import logging

# In a notebook Ray says, as it is imported, that ipywidgets are missing: nothing here shows any.
logging.getLogger("ray.widgets").setLevel(logging.CRITICAL)
