"""A machine that lacks pictures gets them: from the source, or made anew; a driver needs their sidecars alone."""

import dataclasses
import os
import shutil
from pathlib import Path
from types import FunctionType

import pytest

from crelu_data.availability import check_available, ensure_dataset, fetch_dataset, fingerprint, fingerprints
from crelu_data.datasets import beton_path
from crelu_data.transfer import pull, push
from crelu_data.write import prepare
from crelu_models.tables import S2
from sweeps.execution import rank_processes
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.trial import Cell, Trial
from sweeps.store.ledger import Ledger
from sweeps.training.run_trial import run_trial
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.task import run_task
from tests.support.pictures import picture_folder

EMBEDDED = "synthetic:train=64,test=32"


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    picture_folder(folder, "all", {"class0": 40, "class1": 40}, (32, 32))
    return f"folder:{folder / 'all'}"


@pytest.fixture(scope="module")
def source(name: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    prepared, shared = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("shared")
    prepare(name, prepared, size=32, writer="native")
    push(prepared, str(shared))
    return str(shared)


def suffixes(where: Path) -> set[str]:
    return {Path(file).suffix for file in os.listdir(where) if not file.endswith(".lock")}


def test_worker_pulls_what_the_driver_only_read_of(name: str, source: str, tmp_path: Path) -> None:
    said: list[str] = []
    facts = ensure_dataset(name, tmp_path / "head", said.append, source, pictures=False)
    assert (facts.classes, sum(facts.splits.values())) == (2, 80)
    assert suffixes(tmp_path / "head") == {".json"}
    assert said == [f"reading what {source} has of {name}"]
    planned = fingerprints([name], tmp_path / "head")[name]

    recipe = dataclasses.replace(ALLCONV, epochs=1, batch=16)
    trial = Trial(Cell("pulled", S2.width(0.125), name, recipe))
    place = RuntimeConfig(str(tmp_path / "ledger"), str(tmp_path / "node"), reader="threads", fingerprint=planned)
    with pytest.raises(ValueError, match="is not prepared"):
        run_trial(trial, place, lambda *_: None)
    result = run_trial(trial, dataclasses.replace(place, data_source=source), lambda *_: None)
    assert result is not None
    assert result["fingerprint"] == planned
    assert suffixes(tmp_path / "node") == {".beton", ".json"}
    assert Ledger(place.ledger).result(trial.key) is not None


def test_source_whose_pictures_changed_is_said_before_anything_trains(name: str, source: str, tmp_path: Path) -> None:
    shared = shutil.copytree(source, tmp_path / "shared")
    head = tmp_path / "head"
    for _ in range(2):
        ensure_dataset(name, head, print, str(shared), pictures=False)
    check_available(name, head, str(shared), pictures=False)
    before = fingerprint(name, head)
    prepare(name, tmp_path / "other", size=16, writer="native", workers=1)
    push(tmp_path / "other", str(shared), fresh=True)
    sidecars = " ".join(f"{head}/{beton_path(name, split, head).stem}.json" for split in ("train", "test"))
    for check in (
        lambda: ensure_dataset(name, head, print, str(shared), pictures=False),
        lambda: check_available(name, head, str(shared), pictures=False),
    ):
        with pytest.raises(
            ValueError, match=rf"holds other pictures .* than {shared} .*; to take those: rm {sidecars}$"
        ):
            check()
    assert fingerprint(name, head) == before
    pull(source, tmp_path / "whole")
    with pytest.raises(ValueError, match=rf"; \S+ -m crelu_data pull {shared} {name} --fresh --data-dir"):
        check_available(name, tmp_path / "whole", str(shared), pictures=False)
    for path in head.glob("*.json"):
        path.unlink()
    ensure_dataset(name, head, print, str(shared), pictures=False)
    assert fingerprint(name, head) == fingerprint(name, tmp_path / "other")


def test_source_that_does_not_answer_or_lacks_a_set_stops_no_head_that_knows_it(
    name: str, source: str, tmp_path: Path
) -> None:
    said: list[str] = []
    head = tmp_path / "head"
    (tmp_path / "empty").mkdir()
    ensure_dataset(name, head, said.append, source, pictures=False)
    for elsewhere in (str(tmp_path / "empty"), str(tmp_path / "nowhere")):
        said.clear()
        ensure_dataset(name, head, said.append, elsewhere, pictures=False)
        assert said[1].endswith(f"; what {head} says of {name} is taken")
        check_available(name, head, elsewhere, pictures=False)
        with pytest.raises(ValueError, match="holds no prepared files"):
            ensure_dataset(name, tmp_path / "new", print, elsewhere, pictures=False)
        with pytest.raises(ValueError, match="holds no prepared files"):
            check_available(name, tmp_path / "new", elsewhere, pictures=False)


def test_driver_on_its_own_machine_pulls_all_of_it_once(name: str, source: str, tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        ensure_dataset(name, tmp_path, said.append, source)
    assert said == [f"pulling {name} from {source} to {tmp_path}"]
    assert suffixes(tmp_path) == {".beton", ".json"}


def test_trial_that_is_told_to_stop_leaves_before_its_pictures_are_there(
    name: str, source: str, tmp_path: Path
) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return True

    assert not fetch_dataset(name, str(tmp_path), source, stop)
    assert asked
    assert not list(tmp_path.glob("*.beton"))
    assert fetch_dataset(name, str(tmp_path), source)
    assert suffixes(tmp_path) == {".beton", ".json"}
    assert fetch_dataset(name, str(tmp_path), source, stop)  # they are there: nobody is asked


def test_machine_with_the_old_pictures_takes_those_that_the_sweep_was_planned_with(
    name: str, source: str, tmp_path: Path
) -> None:
    shared = shutil.copytree(source, tmp_path / "shared")
    node = tmp_path / "node"
    pull(source, node)
    before = fingerprint(name, node)
    prepare(name, tmp_path / "other", size=16, writer="native", workers=1)
    push(tmp_path / "other", str(shared), fresh=True)
    planned = fingerprint(name, tmp_path / "other")
    assert fetch_dataset(name, str(node), str(shared))
    assert fetch_dataset(name, str(node), str(shared), wanted="of neither")
    assert fetch_dataset(name, str(node), str(tmp_path / "nothing"), wanted="of neither")
    assert not fetch_dataset(name, str(node), str(shared), lambda: True, planned)
    assert fingerprint(name, node) == before
    train = beton_path(name, "train", node)
    with train.open("rb") as used:
        assert fetch_dataset(name, str(node), str(shared), wanted=planned)
        assert used.read() == beton_path(name, "train", Path(source)).read_bytes()
    assert fingerprint(name, node) == planned
    # Killed after the sidecar had been replaced and before the pictures were.
    shutil.copy(beton_path(name, "train", Path(source)), train)
    assert fetch_dataset(name, str(node), str(shared), wanted=planned)
    assert train.read_bytes() == beton_path(name, "train", shared).read_bytes()


@pytest.mark.parametrize("train", [run_trial, rank_processes.run_trial, run_task])
def test_each_way_to_train_asks_for_the_planned_pictures(
    train: FunctionType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def fetch(*arguments: object) -> bool:
        asked.append(arguments[-1])
        return False

    monkeypatch.setitem(train.__globals__, "fetch_dataset", fetch)
    trial = Trial(Cell("asked", S2.width(0.125), EMBEDDED, ALLCONV))
    place = RuntimeConfig(str(tmp_path / "ledger"), str(tmp_path), fingerprint="the planned ones")
    assert train(trial, place, lambda *_: None) is None
    assert asked == ["the planned ones"]


def test_embedded_pictures_are_made_by_whoever_lacks_them(tmp_path: Path) -> None:
    for machine in ("head", "node"):
        assert fetch_dataset(EMBEDDED, str(tmp_path / machine), "")
    head, node = (fingerprints([EMBEDDED], tmp_path / machine) for machine in ("head", "node"))
    assert head == node != {}


def test_source_that_lacks_the_set_is_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prepared files of folder"):
        ensure_dataset(name, tmp_path / "head", print, str(tmp_path / "empty"))
