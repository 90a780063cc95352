"""The model on a trial's run: MLflow loads it, and its errors are those of the table to the last digit."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from crelu_data.augment import centre_view
from crelu_models.from_factory import build_model
from crelu_models.model import Model
from crelu_models.tensors import full_state
from sweeps.experiment.code_fingerprint import cell_fingerprint
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns
from sweeps.tracking.model_files import archive, with_model
from sweeps.tracking.registry import Candidate, aliases, register
from sweeps.tracking.run_index import Store
from sweeps.training.predictor import Predictor
from sweeps.training.run_trial import run_trial
from sweeps.training.splits import open_splits
from tests.support import user_models
from tests.support.trials import runtime_config, trial_of

FACTS = {"classes": 4, "crop": 64, "mean": [0.5] * 3, "std": [0.2] * 3, "precision": "fp32"}
WEIGHTS = safetensors.torch.save({"x": torch.zeros(1)})


def test_model_of_a_run_scores_as_the_test_did_and_its_winner_is_registered(
    data: Path, empty: Path, tmp_path: Path
) -> None:
    base = trial_of("All-CNN-B")
    config = runtime_config(data, tmp_path / "ledger")
    short = dataclasses.replace(base.cell, recipe=dataclasses.replace(base.cell.recipe, epochs=1))
    trial = dataclasses.replace(base, cell=short)
    ledger = Ledger(config.ledger)
    result = run_trial(trial, config, lambda *_: None)
    assert result is not None
    shutil.copy(empty, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sweep = Sweep("small", "demo", (trial.cell,), Protocol())
    runs = MlflowRuns(Store(uri, "small", (tmp_path / "artifacts").as_uri()), ledger, sweep)
    assert runs.sync_trial(trial, "RUNNING")
    run = runs.runs[trial.key]
    candidate = Candidate("all-cnn", run, {"trial.key": trial.key})
    assert register(uri, "small-nets", [candidate]) == 1
    assert register(uri, "small-nets", [candidate]) == 0
    mlflow.set_tracking_uri(uri)
    try:
        names = (f"runs:/{run}/model", "models:/small-nets@all-cnn")
        models = [mlflow.pyfunc.load_model(name) for name in names]
        nets = [mlflow.pytorch.load_model(name) for name in names]
        facts = mlflow.models.get_model_info(names[1]).metadata
    finally:
        mlflow.set_tracking_uri(None)
    test = open_splits(trial, config).test
    assert test is not None
    (batch,) = test.batches(np.arange(len(test)), 250)
    table = pq.read_table(Path(ledger.path(f"trials/{trial.key}/tables/scores.parquet")))
    for model in models:
        scores = model.predict(batch.images.permute(0, 2, 3, 1).numpy())
        np.testing.assert_array_equal(scores, np.stack(table["centre"].to_numpy()))
        wrong = 100 * float(np.mean(scores.argmax(1) != batch.labels.numpy()))
        assert wrong == result["metrics"]["final/test_top1_err"]
    assert isinstance(models[0].get_raw_model(), torch.nn.Module)
    precision = facts.pop("precision")
    facts.pop("classes")
    for net in nets:
        assert isinstance(net, torch.nn.Module)
        assert not net.training
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            answers = net(centre_view(batch.images, **facts)).argmax(1)
        assert 100 * float((answers != batch.labels).double().mean()) == result["metrics"]["final/test_top1_err"]
    with pytest.raises(ValueError, match=r"bytes of shape \(n, h, h, 3\), not uint8 of shape \(12, 3"):
        Predictor(next(tmp_path.rglob("model/data"))).predict(batch.images.numpy()[:12])


def test_aliases_are_words_that_mlflow_takes_and_all_different() -> None:
    labels = ["CReLU x0.5", "crelu x0,5", "v2", "latest", "?"]
    assert list(aliases(labels).values()) == ["crelu-x0-5", "crelu-x0-5-2", "cell-v2", "cell-latest", "cell"]


def test_a_result_without_the_facts_of_its_pictures_keeps_its_weights_where_they_were() -> None:
    contents = {"weights.safetensors": b"w", "trial.json": b"{}"}
    trial = trial_of("All-CNN-B")
    assert with_model(trial, {"finished_ms": 0}, contents, "run") == contents


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    trial = trial_of("All-CNN-B")
    (tmp_path / "model.pth").write_bytes(archive(FACTS | {"trial": trial.to_json()}, WEIGHTS))
    with pytest.raises(ValueError, match=f"these weights are not of trial {trial.key}"):
        Predictor(tmp_path)


def test_a_model_has_the_users_code_that_trained_it_and_none_that_has_changed_since() -> None:
    base = trial_of("All-CNN-B")
    model = Model("tests.support.user_models:small", size=32)
    trial = dataclasses.replace(base, cell=dataclasses.replace(base.cell, net=model))
    result = {"pictures": {name: FACTS[name] for name in ("classes", "crop", "mean", "std")}, "precision": "fp32"}
    result |= {"finished_ms": 0, "hardware": {"torch": torch.__version__}, "code": cell_fingerprint(trial.cell)}
    files = with_model(trial, result, {"weights.safetensors": WEIGHTS}, "run")
    source = Path(user_models.__file__).read_bytes()
    assert files["model/code/tests/support/user_models.py"] == source
    assert {flavour["code"] for flavour in json.loads(files["model/MLmodel"])["flavors"].values()} == {"code"}
    changed = with_model(trial, result | {"code": "another"}, {"weights.safetensors": WEIGHTS}, "run")
    assert [name for name in changed if name.startswith("model/code")] == []


def test_a_model_of_two_precisions_scores_in_that_of_its_test() -> None:
    trial = trial_of("All-CNN-B")
    result = {"pictures": {name: FACTS[name] for name in ("classes", "crop", "mean", "std")}, "code": "c"}
    result |= {"precision": "bf16, fp32", "finished_ms": 0, "hardware": {}}
    files = with_model(trial, result, {"weights.safetensors": WEIGHTS}, "run")
    assert json.loads(files["model/MLmodel"])["metadata"]["precision"] == "fp32"


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_model_has_what_its_factory_drew_for_the_training_and_what_no_state_holds(
    restarts: int, tmp_path: Path
) -> None:
    base = trial_of("All-CNN-B")
    trial = dataclasses.replace(base, cell=dataclasses.replace(base.cell, net=Model("tests.support.user_models:own")))
    trained = build_model(trial.net, 4, trial.restarted(restarts))  # type: ignore[arg-type]
    trained.seen += 5  # type: ignore[operator]
    result = {"pictures": {name: FACTS[name] for name in ("classes", "crop", "mean", "std")}, "code": "c"}
    result |= {"precision": "fp32", "finished_ms": 0, "hardware": {}, "restarts": restarts}
    weights = safetensors.torch.save(full_state(trained))
    files = with_model(trial, result, {"weights.safetensors": weights}, "run")
    (tmp_path / "model.pth").write_bytes(files["model/data/model.pth"])
    net = Predictor(tmp_path).net
    assert torch.equal(net.order, trained.order)
    assert torch.equal(net.head.weight, trained.head.weight)
    assert net.seen == 5


def test_a_model_is_written_without_torch() -> None:
    command = (
        "import sys; from sweeps.tracking.model_files import archive; archive({}, b''); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "False\n"
