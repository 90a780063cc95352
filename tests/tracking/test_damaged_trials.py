"""A damaged file is said on its trial's run, counts in no average, and keeps no other trial out of MLflow."""

import hashlib
from pathlib import Path

import pytest

from sweeps.experiment.metrics import AVERAGE
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.store.ledger import Ledger
from sweeps.tracking.mlflow_runs import MlflowRuns, is_tracked
from sweeps.tracking.run_index import Store
from tests.support.sweeps import BASELINE
from tests.support.tracked import finish, runs

SWEEP = Sweep("cifar_width", "demo", (BASELINE,), Protocol(seeds=3))
TRIALS = [Trial(BASELINE, seed=seed) for seed in range(3)]


@pytest.mark.parametrize("name", ["history.json", "tables/scores.parquet", "trial.json"])
def test_damaged_trial_is_marked_and_the_others_are_sent(store: Store, ledger: Ledger, name: str) -> None:
    for trial in TRIALS:
        finish(ledger, trial, 10.0 * (1 + trial.seed))
        files = ("history.json", "tables/scores.parquet", "trial.json")
        digests = {file: ledger.sha256(f"trials/{trial.key}/{file}") for file in files}
        ledger.commit(trial.key, (ledger.result(trial.key) or {}) | {"files": digests})
    path = Path(ledger.path(f"trials/{TRIALS[1].key}/{name}"))
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    projection = MlflowRuns(store, ledger, SWEEP)
    assert [projection.sync_trial(trial, "KILLED") for trial in TRIALS] == [True, False, True]
    projection.sync_cell(BASELINE, TRIALS)
    runs_by_trial = {run.data.tags.get("trial.key", "cell"): run for run in runs(projection)}
    damaged, cell = runs_by_trial[TRIALS[1].key], runs_by_trial["cell"]
    assert damaged.info.status == "FAILED"
    assert damaged.data.tags["error"].startswith(f"trials/{TRIALS[1].key}/{name} is damaged")
    assert {runs_by_trial[TRIALS[seed].key].info.status for seed in (0, 2)} == {"FINISHED"}
    assert (cell.data.metrics[AVERAGE], cell.data.metrics["agg/test_top1_err_n"]) == (20.0, 2.0)
    assert not is_tracked(ledger, store, SWEEP.title, ledger.result(TRIALS[1].key) or {})
    assert TRIALS[1].key not in projection.outdated({trial.key: (trial, "KILLED") for trial in TRIALS})
    # Whole again, it is sent as any other.
    path.write_bytes(content)
    assert hashlib.sha256(content).hexdigest() == ledger.sha256(f"trials/{TRIALS[1].key}/{name}")
    assert projection.sync_trial(TRIALS[1], "KILLED")
    projection.sync_cell(BASELINE, TRIALS)
    (cell,) = (run for run in runs(projection) if "trial.key" not in run.data.tags)
    assert cell.data.metrics["agg/test_top1_err_n"] == 3.0
    assert cell.info.status == "FINISHED"
