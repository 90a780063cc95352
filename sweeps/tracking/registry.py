"""Models of MLflow's registry: the winner of each cell as a version, found by an alias."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from sweeps.tracking.mlflow_client import connected
from sweeps.tracking.model_files import FOLDER

RESERVED = re.compile(r"v\d+|latest")  # words that MLflow takes for versions


class Candidate(NamedTuple):
    """A run whose model is to be a version, the alias by which it is found, and the tags of the version."""

    alias: str
    run: str
    tags: Mapping[str, str]


def aliases(labels: Sequence[str]) -> dict[str, str]:
    """Return an alias for each label of a sweep's cells, all of them different: crelu-x0-5 for "CReLU x0.5"."""
    names: dict[str, str] = {}
    for label in labels:
        word = re.sub(r"[^a-z0-9_]+", "-", label.lower()).strip("-") or "cell"
        word = f"cell-{word}" if RESERVED.fullmatch(word) else word
        alias = word
        number = 2
        while alias in names.values():
            alias = f"{word}-{number}"
            number += 1
        names[label] = alias
    return names


def register(uri: str, name: str, candidates: Sequence[Candidate]) -> int:
    """Give each candidate a version of a model and its alias, and return how many versions are new.

    A run that has a version keeps it. Raises what MLflow raises.
    """
    from mlflow.exceptions import MlflowException

    client = connected(uri)
    with suppress(MlflowException):  # it exists; whatever else is wrong the next call says
        client.create_registered_model(name)
    known = {version.run_id: version.version for version in client.search_model_versions(f"name='{name}'")}
    new = 0
    for candidate in candidates:
        version = known.get(candidate.run)
        if version is None:
            source = f"{client.get_run(candidate.run).info.artifact_uri}/{FOLDER}"
            created = client.create_model_version(name, source, candidate.run, tags=dict(candidate.tags))
            version = known[candidate.run] = created.version
            new += 1
        client.set_registered_model_alias(name, candidate.alias, version)
    return new
