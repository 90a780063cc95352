"""A whole sweep by its command line: real Ray, real .beton files, real MLflow; killed, resumed, told to end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sweeps.experiment.trial import trial_from_json
from sweeps.store.lease import driver
from sweeps.store.ledger import Ledger
from sweeps.training.run_trial import run_trial
from sweeps.training.runtime import RuntimeConfig
from tests.support.commands import (
    call,
    child_runs,
    command,
    environment,
    started,
    wait_for,
)
from tests.support.trials import artifact_hashes

EPOCHS = 10
SMALL = ["--smoke-test", "--set", f"recipe.epochs={EPOCHS}", "--pack", "2", "--max-concurrent", "1"]

# In Ray's workers, a training that has saved a state waits while both trials have one, until it may go on.
HELD = """
import pathlib, sys, time

if any("default_worker" in word for word in sys.orig_argv):
    from sweeps.store import checkpoint

    def save(ledger, *rest, save=checkpoint.save):
        save(ledger, *rest)
        ends = time.monotonic() + 250
        while len(ledger.folders("checkpoints")) == 2 and time.monotonic() < ends:
            if pathlib.Path(__file__).with_name("go").exists():
                break
            time.sleep(0.05)

    checkpoint.save = save
"""

# What a command starts, and what it imports that is heavy, is noted.
NOTED = """
import pathlib, sys

notes = pathlib.Path(__file__).with_name("notes").open("a", 1)

def note(event, words):
    if event == "subprocess.Popen" or (event == "import" and words[0] in ("ray", "torch")):
        notes.write(f"{event} {words[0]}\\n")

sys.addaudithook(note)
"""


def site(folder: Path, code: str) -> Path:
    """Return a folder that, on PYTHONPATH, has every Python begin with this code."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return folder


def test_sweep_survives_a_kill_ends_in_a_pack_and_says_when_it_is_done(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "out" / "ledger"))
    held = site(tmp_path / "held", HELD)
    user = environment(tmp_path, PYTHONPATH=str(held))
    with subprocess.Popen(command(tmp_path, *SMALL), env=user, stderr=subprocess.PIPE, text=True) as first:
        # One worker, so the second trial has a checkpoint before the first is done only where they are a pack.
        wait_for("a checkpoint of both trials", lambda: len(ledger.folders("checkpoints")) == 2, first)
        first.send_signal(signal.SIGKILL)
    assert ledger.results() == {}

    # Both end in a pack, each as if it had trained alone and undisturbed.
    words = command(tmp_path, *SMALL, "--json")
    with subprocess.Popen(words, env=user, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second:
        # The killed driver's workers may live for a moment longer: what counts is that the second one drives.
        title = f"imagenet_placement-smoke-recipe.epochs={EPOCHS}"
        wait_for("the lease", lambda: (driver(ledger, title) or {}).get("pid") == second.pid, second)
        busy = call(tmp_path, *SMALL)
        assert busy.returncode == 2
        assert f"process {second.pid}" in busy.stderr
        (held / "go").touch()
        said, errors = second.communicate(timeout=300)
        assert second.returncode == 0, errors
    assert not ledger.names("packs")
    pictures = str(tmp_path / "home" / ".cache" / "crelu-sweeps" / "data")
    for key in ledger.results():
        trial = trial_from_json(ledger.read_json(f"trials/{key}/trial.json"))
        run_trial(trial, RuntimeConfig(str(tmp_path / "alone"), pictures), lambda *_: None)
        assert artifact_hashes(tmp_path / "alone", trial) == artifact_hashes(Path(ledger.root), trial)
    table = json.loads(said)
    others = dict.fromkeys(("new", "running", "paused", "stale", "failed", "skipped", "pending"), 0)
    assert table["trials"] == others | {"done": 2}
    runs = child_runs(tmp_path / "out" / "mlflow.db")
    assert sorted(runs) == sorted(ledger.results())
    assert [(status, points) for _, status, points in runs.values()] == [("FINISHED", EPOCHS)] * 2
    for run, _, _ in runs.values():
        (folder,) = (tmp_path / "out" / "mlartifacts").glob(f"{run}/artifacts")
        assert {path.name for path in folder.rglob("*") if path.is_file()} == {
            "trial.json", "history.json", "scores.parquet", "MLmodel", "model.pth", "pickle_module_info.txt",
        }  # fmt: skip

    noted = site(tmp_path / "noted", NOTED)
    last = call(tmp_path, *SMALL, PYTHONPATH=str(noted))
    assert last.returncode == 0
    assert "2 of 2 trials are done" in last.stdout
    assert "Ray" not in last.stderr
    assert "ray" not in (noted / "notes").read_text()
    assert child_runs(tmp_path / "out" / "mlflow.db") == runs


@pytest.mark.parametrize(("seconds", "number"), [(0.2, signal.SIGTERM), (3.0, signal.SIGINT)])
def test_a_sweep_that_is_told_to_end_while_it_starts_says_how_to_go_on(
    tmp_path: Path, seconds: float, number: signal.Signals
) -> None:
    # Trained for longer than it takes to be told to end, however late.
    with started(tmp_path, "--smoke-test", "--set", "recipe.epochs=20000") as process:
        assert process.stderr is not None
        said = ""
        while "starting Ray" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        time.sleep(seconds)
        process.send_signal(number)
        said += process.communicate(timeout=300)[1]
    assert process.returncode == 130, said
    assert "the same command resumes" in said
    assert "***" not in said
    assert "Traceback" not in said


def refused(folder: Path, arguments: Sequence[str], *words: str, **more: str) -> None:
    """Check that the command ends with exit code 2 and one sentence with these words, and leaves nothing."""
    process = call(folder, *arguments, **more)
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    assert "error: " in process.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in process.stderr
    assert not (folder / "out" / "ledger" / "results").exists()


def test_unknown_cell_field_value_and_data_set_are_sentences(tmp_path: Path) -> None:
    refused(tmp_path, ["--profile", "demo", "--only", "CReLU conv1_4"], "'CReLU conv1-4'")
    refused(tmp_path, ["--profile", "demo", "--set", "recipe.epoch=3"], "recipe.epochs")
    refused(tmp_path, ["--profile", "demo", "--set", "recipe.epochs=many"], "recipe.epochs", "'many'")
    refused(tmp_path, ["--profile", "demo", "--set", "recipe.epochs=0"], "at least 1")
    refused(tmp_path, ["--dataset", "imagnet"], "imagenet")
    refused(tmp_path, ["--seeds", "none"], "whole number")


def test_configured_data_that_are_missing_are_never_replaced(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    noted = site(tmp_path / "noted", NOTED)
    refused(
        tmp_path,
        ["--data-dir", str(empty)],
        "imagenet-train.beton",
        "python -m crelu_data prepare imagenet",
        str(empty),
        PYTHONPATH=str(noted),
    )
    assert (noted / "notes").read_text() == "", "nothing was started"
    refused(tmp_path, [], "python -m crelu_data prepare imagenet", CRELU_DATA=str(empty))
    refused(tmp_path, [], "--source", IMAGENET_DIR=str(empty))
    refused(tmp_path, ["--address", "10.1.2.3:6379"], "--profile demo")


def test_output_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    refused(tmp_path, ["--smoke-test"], "--output")


def test_damaged_pictures_are_refused_before_anything_starts(tmp_path: Path) -> None:
    from crelu_data.datasets import beton_path
    from crelu_data.write import prepare
    from sweeps.experiment.profiles import SMOKE

    where = tmp_path / "data"
    prepare(SMOKE, where)
    path = beton_path(SMOKE, "train", where)
    content = path.read_bytes()
    for damaged in (content[:-100], content[: len(content) // 2] + b"\x55" + content[len(content) // 2 + 1 :]):
        path.write_bytes(damaged)
        refused(tmp_path, ["--smoke-test", "--data-dir", str(where)], path.name)


def test_list_and_dry_run_import_nothing_heavy_and_write_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_module('sweeps.' + sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'torchvision', 'ffcv', 'optuna', 'scipy', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    for flag in ("--help", "--list", "--dry-run"):
        arguments = [sys.executable, "-c", code, "imagenet_placement", flag, "--output", str(tmp_path / "out")]
        process = subprocess.run(arguments, capture_output=True, text=True, env=environment(tmp_path), timeout=300)
        assert process.returncode == 0, process.stderr
        assert "CReLU" in process.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--help"], ["report", "--help"], ["export", "--help"], ["list"]])
def test_verbs_explain_themselves_without_anything_heavy(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        "try:\n"
        "    runpy.run_module('sweeps', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'ffcv', 'optuna', 'scipy', 'pyarrow', 'matplotlib', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, *words]
    process = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), timeout=300)
    assert process.returncode == 0, process.stderr
    assert "sweep" in process.stdout


def test_set_changes_the_cells_and_their_keys(tmp_path: Path) -> None:
    plain = call(tmp_path, "--profile", "demo", "--list").stdout
    longer = call(tmp_path, "--profile", "demo", "--list", "--set", "recipe.epochs=13").stdout
    assert len(plain.splitlines()) == len(longer.splitlines()) == 9
    assert not set(plain.split()) & {word for word in longer.split() if len(word) == 20 and word.isalnum()}
