"""A trial's net as a model of MLflow's: mlflow.pyfunc.load_model("runs:/RUN/model") loads it.

It is no pickle: a JSON file says what net it is, its weights are safetensors, and sweeps.training.predictor reads both.
"""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Mapping
from typing import Final

from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Json

FOLDER: Final = "model"  # of a run's artifacts
LOADER: Final = "sweeps.training.predictor"
WEIGHTS: Final = "weights.safetensors"


def with_model(trial: Trial, result: Json, contents: Mapping[str, bytes], run: str) -> dict[str, bytes]:
    """Return the files of a trial's run, its weights within a model of MLflow's; as they are for an older result."""
    pictures = result.get("pictures")
    if not pictures or WEIGHTS not in contents:
        return dict(contents)
    import mlflow

    others = {name: content for name, content in contents.items() if name != WEIGHTS}
    net = {"trial": trial.to_json(), "precision": result["precision"]} | dict(pictures)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(result["finished_ms"]) / 1000))
    flavour = {"loader_module": LOADER, "data": "data", "python_version": platform.python_version()}
    model = {
        "artifact_path": FOLDER,
        "flavors": {"python_function": flavour},
        "mlflow_version": mlflow.__version__,
        "model_uuid": uuid.uuid5(uuid.NAMESPACE_OID, run).hex,
        "run_id": run,
        "utc_time_created": when,
    }
    return others | {
        f"{FOLDER}/MLmodel": json.dumps(model, indent=1).encode(),  # JSON is YAML
        f"{FOLDER}/data/net.json": json.dumps(net, indent=1, sort_keys=True).encode(),
        f"{FOLDER}/data/{WEIGHTS}": contents[WEIGHTS],
    }
