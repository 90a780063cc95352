"""A trial's net as a model of MLflow's: mlflow.pyfunc and mlflow.pytorch load it from runs:/RUN/model.

It is no pickle, and the driver writes it without torch. `model.pth` is an archive as torch.load takes one, in which a
line of JSON that says what net it is and its weights as safetensors stand where a pickle would. MLflow hands torch.load
the module that reads archives in place of Python's pickle: sweeps.training.predictor, which also serves mlflow.pyfunc.
"""

from __future__ import annotations

import io
import json
import platform
import time
import uuid
import zipfile
from collections.abc import Mapping
from typing import Final

from crelu_models.model import Model
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.metrics import precisions
from sweeps.experiment.trial import Trial
from sweeps.experiment.user_code import shipped_files
from sweeps.store.ledger import Json

FOLDER: Final = "model"  # of a run's artifacts
LOADER: Final = "sweeps.training.predictor"
WEIGHTS: Final = "weights.safetensors"
DATA: Final = "data"
CODE: Final = "code"


def with_model(trial: Trial, result: Json, contents: Mapping[str, bytes], run: str) -> dict[str, bytes]:
    """Return the files of a trial's run, its weights within a model of MLflow's; as they are for an older result."""
    pictures = result.get("pictures")
    if not pictures or WEIGHTS not in contents:
        return dict(contents)
    import mlflow

    others = {name: content for name, content in contents.items() if name != WEIGHTS}
    net: Json = {"trial": trial.to_json(), "precision": precisions(result)[-1]} | dict(pictures)
    if result.get("restarts"):
        net["restarts"] = result["restarts"]  # of the training: each has other draws of a model's factory
    code = users_code(trial, str(result["code"]))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(result["finished_ms"]) / 1000))
    with_code = {"code": CODE} if code else {}
    flavours = {
        "python_function": {"loader_module": LOADER, "data": DATA, "python_version": platform.python_version()},
        "pytorch": {"model_data": DATA, "pytorch_version": result["hardware"].get("torch", "")},
    }
    model = {
        "artifact_path": FOLDER,
        "flavors": {name: flavour | with_code for name, flavour in flavours.items()},
        "metadata": {name: net[name] for name in ("classes", "crop", "mean", "std", "precision")},
        "mlflow_version": mlflow.__version__,
        "model_uuid": uuid.uuid5(uuid.NAMESPACE_OID, run).hex,
        "run_id": run,
        "utc_time_created": when,
    }
    files = {
        "MLmodel": json.dumps(model, indent=1).encode(),  # JSON is YAML
        f"{DATA}/model.pth": archive(net, contents[WEIGHTS]),
        f"{DATA}/pickle_module_info.txt": LOADER.encode(),
        **{f"{CODE}/{name}": text.encode() for name, text in code.items()},
    }
    return others | {f"{FOLDER}/{name}": content for name, content in files.items()}


def archive(net: Json, weights: bytes) -> bytes:
    """Return an archive for torch.load of what a net is and its weights as safetensors."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(zipfile.ZipInfo("model/version"), b"3")
        file.writestr(zipfile.ZipInfo("model/data.pkl"), json.dumps(net, sort_keys=True).encode() + b"\n" + weights)
    return content.getvalue()


def users_code(trial: Trial, code: str) -> dict[str, str]:
    """Return the user's files behind a trial's model, by path; none where those it was trained by are not here."""
    net = trial.net
    if not isinstance(net, Model) or cell_fingerprint(trial.cell) != code:
        return {}
    return shipped_files(net.user_names)
