"""Words of the printed commands that mend MLflow; each command runs in any folder, as it is printed."""

from __future__ import annotations

import os
from contextlib import suppress

from sweeps.store.logins import own_store


def words_of_store(verb: str, title: str, output: str, uri: str) -> list[str]:
    """Return the words of a verb on a sweep's output folder and the MLflow store at `uri`."""
    words = [verb, title, "--output", output]
    with suppress(ValueError):  # the environment's store has a password that no client takes
        # Of a copy of the environment: a login that is found there is not for the store at `uri`.
        if uri == own_store(None, output, dict(os.environ)):
            return words
    return [*words, "--tracking-uri", uri]


def report_words(title: str, output: str, uri: str) -> list[str]:
    """Return the words of report, which writes it and sends it to the MLflow store at `uri`.

    That of an output which is no folder is written into the folder where the command runs.
    """
    return [*words_of_store("report", title, output, uri), *(["--to", "report"] if "://" in output else [])]


def reconcile_words(title: str, output: str, uri: str, experiment: str) -> list[str]:
    """Return the words of reconcile, which sends the runs of a sweep to an experiment of the store at `uri`.

    The experiment is always named: without its name they would go to the one that has runs of the sweep already.
    """
    return [*words_of_store("reconcile", title, output, uri), "--experiment", experiment]
