"""A sweep with what was decided and asked for, and how one may end."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.experiment.plan import Sweep
from sweeps.store.ledger import Ledger

DONE, FAILED, BUDGET, INTERRUPTED = 0, 1, 3, 130


@dataclass(frozen=True)
class Choice:
    """What was decided from flags, environment and what is there: profile, data set, places."""

    profile: str
    dataset: str
    banner: str
    address: str
    data_dir: Path
    output: str
    data_source: str = ""


@dataclass(frozen=True)
class Errand:
    """A sweep with what was decided and asked for."""

    sweep: Sweep
    choice: Choice
    options: argparse.Namespace

    @property
    def ledger(self) -> Ledger:
        """Return the ledger in the output folder."""
        return Ledger(f"{self.choice.output}/ledger")

    @property
    def uri(self) -> str:
        """Return the MLflow tracking URI: flag, environment, SQLite in the output folder."""
        given = self.options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not given and "://" in self.choice.output:
            raise ValueError("an --output that is no local folder needs --tracking-uri or MLFLOW_TRACKING_URI")
        return given or f"sqlite:///{self.choice.output}/mlflow.db"

    @property
    def experiment(self) -> str:
        """Return the MLflow experiment: flag, environment, the sweep's name."""
        given = self.options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        return given or self.sweep.title


def stamp() -> str:
    """Return the time as the name of a session."""
    return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"


def as_json(value: Any) -> str:
    """Return what --json prints."""
    return json.dumps(value, indent=1)
