"""Commands that the program prints: each is taken from real output and run, and does what its sentence says."""

import dataclasses
import errno
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from crelu_data import beton
from crelu_data.availability import expected_pictures, missing_message
from crelu_data.changes import check_whole
from crelu_data.datasets import SPLITS, Sidecar, beton_path, dataset, read_sidecar
from crelu_data.ffcv_patches import import_ffcv
from crelu_data.transfer import check_source, pull, push
from crelu_data.write import prepare
from crelu_models.model import Model
from sweeps.__main__ import parser as verb_parser
from sweeps.analysis.weights import LoadedNet, open_sample
from sweeps.cli import run
from sweeps.experiment.model_facts import seen_by
from sweeps.experiment.plan import Plan, current_plan
from sweeps.experiment.trial import Trial
from sweeps.ops import doctor, machine_check, mlflow_backup, mlflow_server
from sweeps.ops.machine_check import Request, pictures
from sweeps.store.ledger import Ledger
from sweeps.tracking.store_errors import trouble
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.splits import open_splits
from tests.support.empty_store import empty_store
from tests.support.one_worker import OneWorker
from tests.support.pictures import picture_folder
from tests.support.printed_commands import ROOT, printed, recorded
from tests.support.servers import free_port, wait_for_answer
from tests.support.shell_user import ShellUser
from tests.support.sweeps import CRELU

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries: a command's are nobody's
# It brings a sentence of the program's, is sent the command that was made for it at its place, and runs that.
Scenario = Generator[str, str, None]
SCENARIOS: dict[str, Callable[[ShellUser], Scenario]] = {}


def at(*places: str) -> Callable[[Callable[[ShellUser], Scenario]], Callable[[ShellUser], Scenario]]:
    """Note that a scenario runs the command of each of these places."""

    def note(scenario: Callable[[ShellUser], Scenario]) -> Callable[[ShellUser], Scenario]:
        SCENARIOS.update(dict.fromkeys(places, scenario))
        return scenario

    return note


@pytest.fixture
def user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> ShellUser:
    """Return a user at a shell."""
    store = partial(empty_store, tmp_path_factory)
    return ShellUser(tmp_path, monkeypatch, store, partial(request.getfixturevalue, "bucket"))


def refusal(work: Callable[[], object]) -> str:
    """Return the sentence of what raises ValueError."""
    with pytest.raises(ValueError, match=r".") as caught:
        work()
    return str(caught.value)


# Pictures: commands of crelu_data ---------------------------------------------------------------------------------

TINY = "synthetic:train=20,test=10"
PLAIN = ("--writer", "native", "--workers", "1")


def data_of(user: ShellUser, name: str = "my data") -> Path:
    """Return the user's folder of prepared pictures."""
    (user.folder / name).mkdir(exist_ok=True)
    return user.folder / name


def own_pictures(user: ShellUser) -> str:
    """Return the name of the set of the user's own pictures, and write those."""
    picture_folder(user.folder / "cats & dogs", "", {"cat": 20, "dog": 20}, (40, 40))
    return f"folder:{user.folder / 'cats & dogs'}"


def without(name: str, split: str, where: Path) -> None:
    """Take a prepared split away."""
    for suffix in (".beton", ".json"):
        beton_path(name, split, where).with_suffix(suffix).unlink()


def splits_of(name: str, where: Path) -> list[str]:
    """Return the splits of a set that are prepared."""
    return [split for split in SPLITS if beton_path(name, split, where).exists()]


@at("data/__main__.py _files crelu_data prepare")
def verified_before_prepared(user: ShellUser) -> Scenario:
    where = data_of(user)
    ask = ("crelu_data", "verify", TINY, "--data-dir", str(where))
    user.runs((yield user.asks(*ask, code=2)))
    assert "10 pictures are intact" in user.asks(*ask)


@at("data/__main__.py _verify crelu_data prepare")
def verified_after_a_file_is_gone(user: ShellUser) -> Scenario:
    where = data_of(user)
    prepare(TINY, where, writer="native", workers=1)
    beton_path(TINY, "test", where).unlink()
    ask = ("crelu_data", "verify", TINY, "--data-dir", str(where))
    user.runs((yield user.asks(*ask, code=2)))
    assert "10 pictures are intact" in user.asks(*ask)


@at("data/availability.py missing_message crelu_data prepare")
def missing_published_set(user: ShellUser) -> Scenario:
    images = user.folder / "my images"
    for split in ("train", "val"):
        picture_folder(images, split, {"cat": 3, "dog": 3}, (40, 40), "JPEG")
    user.patch.setenv("IMAGENET_DIR", str(images))
    user.patch.setattr("crelu_data.sources._imagenet_fault", lambda _: "")
    where = data_of(user)
    command = yield missing_message("imagenet:size=32", [where / "x"], where)
    user.patch.delenv("IMAGENET_DIR")  # in another shell
    user.runs(command)
    assert splits_of("imagenet:size=32", where) == ["train", "val"]


@at("data/changes.py check_unchanged crelu_data prepare --fresh")
def changed_pictures(user: ShellUser) -> Scenario:
    where, name = data_of(user), own_pictures(user)
    user.asks("crelu_data", "prepare", name, "--size", "20", "--seed", "7", "--data-dir", str(where), *PLAIN)
    shutil.copy(user.folder / "cats & dogs/cat/0.png", user.folder / "cats & dogs/cat/new.png")
    user.runs((yield user.asks("crelu_data", "verify", name, "--data-dir", str(where), code=2)))
    user.asks("crelu_data", "verify", name, "--data-dir", str(where))
    assert {(read(name, split, where).size, read(name, split, where).seed) for split in ("train", "test")} == {(20, 7)}


def read(name: str, split: str, where: Path) -> Sidecar:
    """Return the sidecar of a split."""
    return read_sidecar(beton_path(name, split, where).with_suffix(".json"))


@at("data/changes.py check_whole crelu_data prepare")
def set_without_a_split(user: ShellUser) -> Scenario:
    where, name = data_of(user), own_pictures(user)
    prepare(name, where, size=20, seed=7, writer="native", workers=1)
    without(name, "test", where)
    user.runs((yield refusal(lambda: check_whole(name, where))))
    check_whole(name, where)
    assert (read(name, "test", where).size, read(name, "test", where).seed) == (20, 7)


@at("data/datasets.py _folder crelu_data prepare")
def folder_that_is_not_prepared(user: ShellUser) -> Scenario:
    where, name = data_of(user), own_pictures(user)
    user.runs((yield refusal(lambda: dataset(name, where))))
    assert dataset(name, where).classes == 2


@at(
    "data/datasets.py remedy crelu_data prepare --fresh",
    "data/datasets.py remedy crelu_data pull SOURCE --fresh --data-dir",
)
def damaged_file(user: ShellUser) -> Scenario:
    where, name = data_of(user), own_pictures(user)
    shared = user.folder / "my shared"
    prepare(name, where, size=20, writer="native", workers=1)
    push(where, str(shared))
    file = beton_path(name, "train", where)
    content = bytearray(file.read_bytes())
    content[int(beton.read_index(file).pointers[0])] ^= 1
    file.write_bytes(content)
    verify = ("crelu_data", "verify", name, "--data-dir", str(where))
    command = yield user.asks("crelu_data", "push", str(user.folder / "other"), "--data-dir", str(where), code=2)
    user.asks(*verify, code=2)
    user.runs(command.replace(" SOURCE ", f" {shlex.quote(str(shared))} "))
    assert "20 pixels" not in user.asks(*verify)
    assert read(name, "train", where).size == 20


@at("data/datasets.py read_sidecar crelu_data prepare NAME")
def file_without_a_sidecar(user: ShellUser) -> Scenario:
    where = data_of(user)
    prepare(TINY, where, writer="native", workers=1)
    beton_path(TINY, "train", where).with_suffix(".json").unlink()
    command = yield user.asks("crelu_data", "info", TINY, "--data-dir", str(where), code=2)
    user.runs(command.replace(" NAME ", f" {TINY} "))
    user.asks("crelu_data", "info", TINY, "--data-dir", str(where))


@at("data/transfer.py _list_remote crelu_data push")
def storage_without_a_set(user: ShellUser) -> Scenario:
    shared, own = user.folder / "my shared", data_of(user, "own")
    shared.mkdir()
    prepare(TINY, own, writer="native", workers=1)
    user.patch.setenv("CRELU_DATA", str(own))
    pulls = ("crelu_data", "pull", str(shared), TINY, "--data-dir", str(data_of(user)))
    user.runs((yield user.asks(*pulls, code=2)))
    user.asks(*pulls)
    assert splits_of(TINY, data_of(user)) == ["train", "test"]


def own_pictures_name(user: ShellUser) -> str:
    """Return the name of the set of the user's own pictures."""
    return f"folder:{user.folder / 'cats & dogs'}"


def unlike(user: ShellUser) -> tuple[Path, Path]:
    """Return a storage and a folder whose sets of one name have other pictures."""
    shared, other = user.folder / "my shared", data_of(user, "other")
    name = own_pictures(user)
    prepare(name, other, size=20, writer="native", workers=1)
    push(other, str(shared))
    prepare(name, data_of(user), size=24, writer="native", workers=1)
    return shared, data_of(user)


@at("data/transfer.py _to_come crelu_data")
def storage_with_other_pictures(user: ShellUser) -> Scenario:
    shared, where = unlike(user)
    name = own_pictures_name(user)
    user.runs((yield refusal(lambda: check_source(str(shared), [name], where))))
    check_source(str(shared), [name], where)
    assert read(name, "train", where).size == 20


@at("data/transfer.py _to_come rm")
def storage_with_other_pictures_than_the_sidecars_of_a_driver(user: ShellUser) -> Scenario:
    shared, where = unlike(user)
    name = own_pictures_name(user)
    for split in ("train", "test"):
        beton_path(name, split, where).unlink()
    command = yield refusal(lambda: pull(str(shared), where, [name], pictures=False))
    subprocess.run(command, shell=True, check=True)
    pull(str(shared), where, [name], pictures=False)
    assert read(name, "test", where).size == 20


@at("data/transfer.py push crelu_data prepare")
def nothing_to_push(user: ShellUser) -> Scenario:
    pushes = ("crelu_data", "push", str(user.folder / "my shared"), TINY, "--data-dir", str(data_of(user)))
    user.runs((yield user.asks(*pushes, code=2)))
    user.asks(*pushes)
    assert splits_of(TINY, user.folder / "my shared") == ["train", "test"]


@at("data/transfer.py push crelu_data prepare (2)")
def half_to_push(user: ShellUser) -> Scenario:
    prepare(TINY, data_of(user), writer="native", workers=1)
    without(TINY, "test", data_of(user))
    pushes = ("crelu_data", "push", str(user.folder / "my shared"), "--data-dir", str(data_of(user)))
    user.runs((yield user.asks(*pushes, code=2)))
    user.asks(*pushes)
    assert splits_of(TINY, user.folder / "my shared") == ["train", "test"]


@at("sweeps/analysis/weights.py open_sample crelu_data prepare")
def analysis_without_pictures(user: ShellUser) -> Scenario:
    runtime = RuntimeConfig("", str(data_of(user)), reader="threads")
    net = LoadedNet("w", "none", None, TINY, {})
    user.runs((yield refusal(lambda: open_sample(net, runtime, 5, 0))))
    assert len(open_sample(net, runtime, 5, 0).indices) == 5


@at("sweeps/experiment/model_facts.py _at_side crelu_data prepare")
def model_of_another_side_than_pictures_to_be_prepared(user: ShellUser) -> Scenario:
    where, name = data_of(user), own_pictures(user)
    model = Model("a:b", size=16)
    user.runs((yield refusal(lambda: seen_by(model, expected_pictures(name, where)[0], where))))
    assert seen_by(model, dataset(name, where), where).crop == 16


@at("sweeps/experiment/model_facts.py _at_side crelu_data prepare --fresh")
def model_of_another_side(user: ShellUser) -> Scenario:
    where, name = data_of(user), own_pictures(user)
    prepare(name, where, size=20, seed=7, writer="native", workers=1)
    model = Model("a:b", size=36)
    user.runs((yield refusal(lambda: seen_by(model, dataset(name, where), where))))
    assert seen_by(model, dataset(name, where), where).crop == 36
    assert read(name, "train", where).seed == 7


@at("sweeps/ops/machine_check.py pictures crelu_data prepare --fresh")
def sidecar_without_its_file(user: ShellUser) -> Scenario:
    where = data_of(user)
    prepare(TINY, where, writer="native", workers=1)
    beton_path(TINY, "train", where).unlink()
    user.runs((yield next(pictures(Request(where, str(where)))).sentence))
    assert next(pictures(Request(where, str(where)))).state == "ok"


@at("sweeps/ops/machine_check.py pictures crelu_data prepare NAME")
def named_folder_without_pictures(user: ShellUser) -> Scenario:
    where = data_of(user)
    command = yield next(pictures(Request(where, str(where)))).sentence
    user.runs(command.replace(" NAME ", f" {TINY} "))
    assert next(pictures(Request(where, str(where)))).state == "ok"


@at("sweeps/training/splits.py open_splits crelu_data verify --data-dir")
def training_on_other_pictures(user: ShellUser) -> Scenario:
    where = data_of(user)
    prepare(TINY, where, writer="native", workers=1)
    trial = Trial(dataclasses.replace(CRELU, dataset=TINY))
    planned = RuntimeConfig("", str(where), fingerprint="another")
    command = yield refusal(lambda: open_splits(trial, planned))
    assert "20 pictures are intact" in user.runs(command)
    file = beton_path(TINY, "train", where)
    file.write_bytes(file.read_bytes()[:-1])
    assert command in refusal(lambda: open_splits(trial, planned))
    assert "it has" in user.runs(command, code=2)


# Sweeps -----------------------------------------------------------------------------------------------------------

PAGE = '''"""Is it so?"""
from sweeps import Cell, Float, Protocol, RateStudy, Search, main
from tests.support.rate_page import NET, PICTURES, RECIPE

LABEL = "-a_net's;mine"
main("mine", "Is it so?", [Cell(LABEL, NET, PICTURES, RECIPE)], PROTOCOL)
'''
OUTPUT = "my out"
TITLE = "mine"


def page(user: ShellUser, *more: str, protocol: str = "Protocol()", code: int = 0) -> str:
    """Run the user's page with further words; return what it says."""
    user.folder.joinpath("my page.py").write_text(PAGE.replace("PROTOCOL", protocol))
    if not (user.folder / OUTPUT).exists():
        user.keeps_runs_in(user.folder / OUTPUT / "mlflow.db")
    words = ["my page.py", "--output", OUTPUT, "--data-dir", "my data", "--profile", "paper", "--reader", "threads"]
    return user.says(sys.orig_argv[0], *words, *more, code=code)


def plan_of(user: ShellUser, title: str = TITLE) -> Plan:
    """Return the plan of the user's sweep as it is now."""
    return current_plan(Ledger.in_output(str(user.folder / OUTPUT)), title)


def done(user: ShellUser) -> int:
    """Return how many trials of the user's sweep are done."""
    return plan_of(user).count("done")


def runs_in(database: Path) -> int:
    """Return how many runs of trials MLflow has in a file."""
    with sqlite3.connect(database) as connection:
        of_trials = "select count(*) from tags t join runs r using (run_uuid) where t.key = 'trial.key'"
        (number,) = connection.execute(f"{of_trials} and r.lifecycle_stage = 'active'").fetchone()
    return int(number)


@at("sweeps/cli/summary.py _next_command again")
def budget_of_nothing(user: ShellUser) -> Scenario:
    user.runs((yield page(user, "--max-gpu-hours", "0", code=3)))
    assert done(user) == 1


@at("sweeps/cli/summary.py _next_command again (2)")
def budget_that_is_used_up(user: ShellUser) -> Scenario:
    command = yield page(user, "--seeds", "3", "--max-gpu-hours", "1e-9", code=3)
    begun = done(user)
    assert begun < 3
    user.runs(command, code=3)
    assert done(user) > begun


@at("sweeps/cli/summary.py _next_command again --retry-failed")
def failed_training(user: ShellUser) -> Scenario:
    page(user, "--max-gpu-hours", "0", code=3)
    ledger = Ledger.in_output(str(user.folder / OUTPUT))
    ledger.add_attempt(plan_of(user).statuses[0].trial.key, {"error": "ValueError: no", "final": True})
    user.runs((yield page(user, code=1)))
    assert done(user) == 1


@at("sweeps/cli/summary.py _next_command again (3)")
def tuner_that_ended_too_early(user: ShellUser) -> Scenario:
    with user.patch.context() as patch:
        patch.setattr(OneWorker, "fit", lambda _: None)
        said = page(user, code=1)
    user.runs((yield said))
    assert done(user) == 1


@at("sweeps/cli/summary.py _next_command again --seeds")
def sweep_of_one_seed(user: ShellUser) -> Scenario:
    user.runs((yield page(user)))
    assert done(user) == 3


@at("sweeps/cli/summary.py _next_command again without --smoke-test")
def smoke_test(user: ShellUser) -> Scenario:
    user.runs((yield page(user, "--smoke-test")))
    assert done(user) == 1


@at("sweeps/cli/summary.py _next_command sweeps explain --output")
def baseline_that_trains_at_no_rate(user: ShellUser) -> Scenario:
    rates = "Protocol(rates=RateStudy(LABEL, (1e12, 1e13, 1e14)))"
    said = user.runs((yield page(user, protocol=rates, code=1)))
    assert "given up" in said


@at("sweeps/cli/summary.py _next_command sweeps export ‹3›.zip --output")
def sweep_of_folds(user: ShellUser) -> Scenario:
    user.runs((yield page(user, protocol="Protocol(ablation=False, folds=2)")))
    assert "2 trainings done" in user.asks("sweeps", "report", "--from", f"{TITLE}.zip")


@at("sweeps/report/build.py export sweeps report --from")
def capsule(user: ShellUser) -> Scenario:
    page(user)
    file = user.folder / "my papers" / "its capsule.zip"
    file.parent.mkdir()
    user.runs((yield user.asks("sweeps", "export", TITLE, str(file), "--output", OUTPUT)))
    assert (file.parent / "reports" / TITLE / "report.html").exists()


def unusable(database: Path) -> None:
    """Put a file that is no database in the place of MLflow's store."""
    database.parent.mkdir(parents=True, exist_ok=True)
    database.write_bytes(b"no database " * 1000)


@at("sweeps/cli/run.py _run sweeps reconcile", "sweeps/cli/summary.py conclude sweeps reconcile")
def store_that_takes_no_runs(user: ShellUser) -> Scenario:
    database = user.folder / OUTPUT / "mlflow.db"
    unusable(database)
    command = yield page(user, code=4)
    user.keeps_runs_in(database)
    user.runs(command)
    assert runs_in(database) == 1


@at("sweeps/cli/verbs.py reconcile sweeps")
def store_that_takes_no_runs_later_either(user: ShellUser) -> Scenario:
    page(user)
    database = user.folder / "another.db"
    unusable(database)
    verb = ("sweeps", "reconcile", TITLE, "--output", OUTPUT, "--tracking-uri", f"sqlite:///{database}")
    command = yield user.asks(*verb, "--experiment", "one of mine", code=4)
    user.keeps_runs_in(database)
    user.runs(command)
    assert runs_in(database) == 1


@at("sweeps/report/build.py track sweeps")
def store_without_the_runs(user: ShellUser) -> Scenario:
    page(user)
    database = user.folder / OUTPUT / "mlflow.db"
    user.keeps_runs_in(database)
    command = yield user.asks("sweeps", "report", TITLE, "--output", OUTPUT, code=4)
    assert runs_in(database) == 0
    user.runs(command)
    assert runs_in(database) == 1
    assert "1 run with its rows" in user.asks("sweeps", "report", TITLE, "--output", OUTPUT)


@at("sweeps/cli/summary.py conclude sweeps report")
def store_that_takes_no_report(user: ShellUser) -> Scenario:
    with user.patch.context() as patch:
        patch.setattr("sweeps.tracking.cell_runs.publish_report", refuse)
        said = page(user, code=4)
    assert "1 run with its rows" in user.runs((yield said))


def refuse(*_: object) -> int:
    """Raise as a store that cannot be written to."""
    raise OSError(errno.EROFS, "Read-only file system")


@at("sweeps/cli/summary.py conclude again")
def store_that_takes_no_models(user: ShellUser) -> Scenario:
    with user.patch.context() as patch:
        patch.setattr("sweeps.tracking.registry.register", refuse)
        said = page(user, "--register", "my winners", code=4)
    assert "my winners has 1 winner of 1 cell, 1 new" in user.runs((yield said))


@at("sweeps/cli/summary.py _report sweeps report")
def output_that_is_no_folder(user: ShellUser) -> Scenario:
    database = user.folder / "runs.db"
    user.keeps_runs_in(database)
    uri = f"sqlite:///{database}"
    command = yield page(user, "--output", user.bucket(), "--tracking-uri", uri)
    assert "1 run with its rows" in user.runs(command)
    assert (user.folder / "report" / TITLE / "report.html").exists()


@at("sweeps/tracking/cell_runs.py _provisional_note python -m sweeps")
def cell_in_progress(user: ShellUser) -> Scenario:
    page(user, "--seeds", "3", "--max-gpu-hours", "1e-9", code=3)
    with sqlite3.connect(user.folder / OUTPUT / "mlflow.db") as connection:
        (note,) = connection.execute("select value from tags where key = 'mlflow.note.content'").fetchone()
    command = yield note
    user.patch.chdir(user.folder.parent)  # its reader is elsewhere
    user.runs(command.replace("python", shlex.quote(sys.orig_argv[0]), 1))


@at("sweeps/cli/dry_run.py absent_pictures again --profile demo")
def published_pictures_that_are_not_there(user: ShellUser) -> Scenario:
    words = ("--dry-run", "--profile", "mini", "--data-dir", str(data_of(user)), "--output", OUTPUT)
    user.runs((yield user.asks("sweeps.cifar_width", *words, code=2)))


@at("sweeps/cli/verbs.py show_pages sweeps.NAME")
def list_of_pages(user: ShellUser) -> Scenario:
    said = user.asks("sweeps", "list")
    command = yield said
    name = said.split()[0]
    assert "usage: " in user.runs(f"{command.replace('NAME', name)} --help")


def exported(user: ShellUser, storage: str) -> str:
    """Write the study of a sweep to a storage; return what is said."""
    page(user, protocol="Protocol(search=Search(1, space={'recipe.lr': Float(0.01, 0.1)}))")
    return user.asks("sweeps", "export-study", TITLE, "--storage", storage, "--output", OUTPUT)


@at("sweeps/cli/verbs.py export_study optuna-dashboard")
def studies_to_look_at(user: ShellUser) -> Scenario:
    asked = user.stand_in("optuna-dashboard")
    user.shell((yield exported(user, f"sqlite:///{user.folder}/my studies.db")))
    (storage,) = asked.read_text().splitlines()
    assert optuna.get_all_study_names(storage)


# A server of one process, without MLflow's eight for its evaluations.
SMALL = {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@at("sweeps/cli/summary.py print_summary ui --backend-store-uri")
def store_to_look_at(user: ShellUser) -> Scenario:
    command = yield page(user)
    port = free_port()
    environment = os.environ | SMALL | {"MLFLOW_PORT": str(port)}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, shell=True, env=environment, start_new_session=True, **silent) as server:
        try:
            wait_for_answer(f"http://127.0.0.1:{port}/health", server)
            experiments = MlflowClient(f"http://127.0.0.1:{port}").search_experiments()
            assert TITLE in {each.name for each in experiments}
        finally:
            os.killpg(server.pid, signal.SIGKILL)


# Other programs ---------------------------------------------------------------------------------------------------


def project(user: ShellUser) -> Path:
    """Return a checkout of the project whose environment is complete, as make takes it, and in which make only says."""
    folder = user.folder / "my project"
    (folder / ".venv").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv/.complete-cpu").touch()
    user.patch.setattr(machine_check, "ROOT", folder)
    user.patch.setenv("MAKEFLAGS", "n")
    return folder


def made(user: ShellUser, command: str) -> str:
    """Return what make would do."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


@at("sweeps/ops/machine_check.py libraries make -B setup")
def project_that_is_not_installed(user: ShellUser) -> Scenario:
    project(user)
    user.patch.setattr(machine_check, "PROJECT", "no-such-project")
    assert "requirements.lock" in made(user, (yield next(machine_check.libraries()).sentence))


@at("sweeps/ops/machine_check.py libraries make -B setup (2)")
def library_that_is_not_installed(user: ShellUser) -> Scenario:
    project(user)
    assert "requirements.lock" in made(user, (yield next(machine_check.libraries(["nosuchlibrary"])).sentence))


@at("sweeps/ops/machine_check.py libraries make -B setup (3)")
def library_of_another_version(user: ShellUser) -> Scenario:
    project(user)
    assert "requirements.lock" in made(user, (yield next(machine_check.libraries(["numpy>=99"])).sentence))


@at("sweeps/ops/machine_check.py torch_and_gpus make -B setup")
def torch_that_does_not_load(user: ShellUser) -> Scenario:
    project(user)
    facts = machine_check.TorchFacts("", "", (), "no such file")
    assert "requirements.lock" in made(user, (yield next(machine_check.torch_and_gpus(facts, None)).sentence))


@at("sweeps/ops/machine_check.py torch_and_gpus make -B setup (2)")
def torch_for_the_cpu_beside_a_gpu(user: ShellUser) -> Scenario:
    project(user)
    facts = machine_check.TorchFacts("2.14.0+cpu", "", ())
    done_by_make = made(user, (yield next(machine_check.torch_and_gpus(facts, ("NVIDIA H100",))).sentence))
    assert "--require-hashes requirements.lock" in done_by_make
    assert "cpu.lock" not in done_by_make


@at("sweeps/ops/mlflow_server.py password chmod 600")
def password_that_others_read(user: ShellUser) -> Scenario:
    file = user.folder / "my password"
    file.write_text("correct horse battery staple")
    file.chmod(0o644)
    options = verb_parser().parse_args(["serve", "--password-file", str(file)])
    user.shell((yield refusal(lambda: mlflow_server.password(options))))
    assert mlflow_server.password(options) == "correct horse battery staple"


@at("sweeps/ops/doctor.py secrets chmod 600")
def token_that_others_read(user: ShellUser) -> Scenario:
    user.patch.setenv("HOME", str(user.folder))
    (user.folder / ".ray").mkdir()
    for name in ("auth_token", "mlflow_password"):
        (user.folder / ".ray" / name).write_text("0" * 64)
        (user.folder / ".ray" / name).chmod(0o644 if name == "auth_token" else 0o600)
    user.shell((yield "\n".join(doctor.secrets())))
    assert [*doctor.secrets()] == []


@at("sweeps/ops/mlflow_backup.py _run_postgres apt-get install postgresql-client")
def machine_without_postgresql(user: ShellUser) -> Scenario:
    user.patch.setattr(shutil, "which", lambda _: None)
    asked = user.stand_in("apt-get")
    user.shell((yield refusal(lambda: mlflow_backup._run_postgres("pg_dump"))))
    assert asked.read_text().split() == ["install", "postgresql-client"]


@at("data/ffcv_patches.py import_ffcv pip install '.[ffcv]'")
def machine_without_ffcv(user: ShellUser) -> Scenario:
    with user.patch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        said = refusal(import_ffcv)
    asked = user.stand_in("pip")
    user.shell((yield said))
    assert asked.read_text().split() == ["install", ".[ffcv]"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("ffcv") for requirement in extras["ffcv"])


@at("sweeps/cli/verbs.py export_study pip install optuna-dashboard")
def machine_without_a_dashboard(user: ShellUser) -> Scenario:
    asked = user.stand_in("pip")
    user.shell((yield exported(user, f"sqlite:///{user.folder}/studies.db")))
    assert asked.read_text().split() == ["install", "optuna-dashboard"]


@at("sweeps/cli/run.py _lose_cluster ray up --restart-only FILE")
def cluster_that_has_gone(user: ShellUser) -> Scenario:
    from ray.scripts.scripts import cli as ray_commands  # it takes a second, as MLflow's does

    said: list[str] = []
    user.patch.setattr(run, "last_words", said.append)
    user.patch.setattr(os, "_exit", lambda _: None)
    run._lose_cluster(SimpleNamespace(__exit__=lambda *_: None), "Ray is gone")
    words = user.words((yield said[0]))
    asked = ray_commands.make_context("ray", words[1:])
    command = ray_commands.get_command(asked, words[1])
    assert command is not None
    assert command.make_context("up", words[2:]).params["restart_only"]


@at("sweeps/tracking/store_errors.py mlflow db upgrade URI")
def store_of_an_older_mlflow(user: ShellUser) -> Scenario:
    from mlflow.cli import cli as mlflow_commands

    database = user.folder / "runs.db"
    user.keeps_runs_in(database)
    command = yield str(trouble(MlflowException("Detected out-of-date database schema")))
    words = user.words(command.replace("URI", shlex.quote(f"sqlite:///{database}")))
    mlflow_commands.main(words[1:], standalone_mode=False)
    assert runs_in(database) == 0


PLACES = sorted({command.place for command in printed()})


@pytest.mark.parametrize("place", SCENARIOS)
def test_command_runs_as_it_is_printed_and_does_what_is_said(place: str, user: ShellUser) -> None:
    scenario = SCENARIOS[place](user)
    with recorded() as commands_made:
        said = next(scenario)
    commands = {each.command for each in commands_made if each.place == place and each.command in said}
    commands |= {each.text for each in printed() if each.place == place and each.text and each.text in said}
    assert len(commands) == 1, f"{place}: {[*commands]} in {said}"
    with pytest.raises(StopIteration):
        scenario.send(commands.pop())


def test_every_command_of_the_source_is_run() -> None:
    assert sorted(SCENARIOS) == PLACES


DRY_RUNS = re.compile(r"^    (python -m sweeps\.\w+ --dry-run(?: --only '[^']+')?)", re.MULTILINE)


@pytest.mark.parametrize("command", [line for path in sorted(ROOT.glob("sweeps/*.py"))
                                     for line in DRY_RUNS.findall(path.read_text())])  # fmt: skip
def test_dry_run_that_help_shows_runs_without_any_pictures(command: str, user: ShellUser) -> None:
    said = user.runs(command.replace("python", shlex.quote(sys.orig_argv[0]), 1))
    assert re.search(r"trials, \d+ of them to train", said)
