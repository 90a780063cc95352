"""Execution of trials: Ray, the queue, workers, packs, ranks."""
