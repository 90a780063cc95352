"""A dry run ends with 2 where the run would be refused, says why, and writes nothing."""

import dataclasses
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from crelu_data import sources
from crelu_data.availability import check_present, expected_pictures
from crelu_data.datasets import DataSet, beton_path
from crelu_data.folders import Listing, list_pictures
from crelu_data.write import prepare
from crelu_models.model import Model
from crelu_models.tables import S2
from sweeps.cifar_width import CELLS, QUESTIONS
from sweeps.cli import run
from sweeps.cli.command import Command
from sweeps.cli.dry_run import absent_pictures, dry_run, left_out, pictures_text, question_costs, with_counts
from sweeps.cli.options import ExitCode, parser
from sweeps.cli.settings import Settings, absolute_dataset, asked_part, changed_protocol, declare, settle
from sweeps.experiment.cell_trials import expand
from sweeps.experiment.metrics import HELD_OUT, TOP1
from sweeps.experiment.plan import Plan, current_plan, plan, plan_to_json
from sweeps.experiment.profiles import on_dataset
from sweeps.experiment.rates import RateStudy
from sweeps.experiment.recipe import ALLCONV
from sweeps.experiment.search import Search
from sweeps.experiment.space import Float, Int
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Cell
from sweeps.launch import compared_by
from sweeps.results.cell_numbers import printed_gains
from sweeps.store.lease import Drivers, Lease, claim
from sweeps.store.ledger import Ledger
from tests.support.pictures import picture_folder
from tests.support.questions import SWEEP as UNTIL_DECIDED
from tests.support.questions import error_of
from tests.support.sweeps import Made, finish, make

SMALL = "synthetic:size=32,classes=2,train=20,test=8"


PLAIN = Protocol()


def ended(folder: Path, *words: str, protocol: Protocol = PLAIN) -> ExitCode:
    """Return the exit code of a dry run whose output and data lie below `folder`, which must stay as it was."""
    words = (*words, "--output", str(folder / "out"), "--data-dir", str(folder / "data"))
    options = parser("cifar_width", "").parse_args(words)
    settings = settle(CELLS, options)
    before = sorted(folder.rglob("*"))
    sweep = declare("cifar_width", CELLS, protocol, options, settings)
    code = dry_run(sweep, asked_part(sweep, options), settings)
    assert sorted(folder.rglob("*")) == before
    return code


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_data_that_are_not_there(more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(tmp_path, "--profile", "paper", *more) == ExitCode.USAGE == 2
    shown, said = capsys.readouterr()
    assert "Baseline cifar10" in shown
    assert "cifar10 is not prepared: looked for cifar10-train.beton and cifar10-test.beton" in said
    assert ended(tmp_path, "--profile", "demo", *more) == ExitCode.DONE
    assert capsys.readouterr().err == ""


def test_folder_that_is_not_there_or_holds_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--profile", "mini", "--dataset", f"folder:{tmp_path}/pictures")
    assert ended(tmp_path, *words) == ExitCode.USAGE
    assert f"error: no folder {tmp_path}/pictures" in capsys.readouterr().err
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    assert ended(tmp_path, *words) == ExitCode.USAGE
    assert "at least two classes are needed" in capsys.readouterr().err
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(exist_ok=True)
        for number in range(5):
            Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    capsys.readouterr()
    assert ended(tmp_path, *words) == ExitCode.DONE
    # A folder is counted before it is prepared.
    said = capsys.readouterr().out
    sizes = "8 for training (searches hold out 1), 2 for the test; stored at 32 pixels"
    assert f"data: folder:{tmp_path}/pictures: {sizes}\n" in said
    assert "pictures seen, " in said


@pytest.mark.parametrize(("side", "seen"), [(0, "48 pixels"), (32, "48 pixels, nets see crops of 32")])
def test_sides_of_pictures_are_those_that_the_nets_take(side: int, seen: str) -> None:
    facts = DataSet("folder:pictures", 2, 48, 48, {"train": 1234, "val": 56}, "val", 246)
    nets = (Model("torchvision.models:resnet18", size=side),)
    numbers = "1,234 for training (searches hold out 246), 56 for the test"
    assert pictures_text(nets, facts) == f": {numbers}; stored at {seen}"
    assert pictures_text((Model("torchvision.models:resnet18", size=16),), facts) == ""


def test_source_that_does_not_hold_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    assert ended(tmp_path, "--profile", "paper", "--data-source", str(tmp_path / "source")) == ExitCode.USAGE
    assert "holds no prepared files of cifar10" in capsys.readouterr().err


def test_study_of_the_learning_rate_is_part_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = Protocol(rates=RateStudy("Baseline *", (0.1, 0.05)))
    words = ("--profile", "mini", "--dataset", SMALL, "--only", "CReLU*")
    assert ended(tmp_path, *words, protocol=protocol) == ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    studied = [line for line in lines if line.startswith("learning rate: ")]
    assert studied == [f"learning rate: Baseline embedded s0 holdout lr={rate:g}, new" for rate in (0.1, 0.05)]
    assert "later: what follows once the learning rate is chosen, a cell's search or a first phase is over" in lines
    assert "4 trials, 4 of them to train" in "\n".join(lines)  # two rates, then one training of each of two cells


def test_damaged_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(SMALL, tmp_path / "data", workers=1)
    words = ("--profile", "mini", "--dataset", SMALL)
    assert ended(tmp_path, *words) == ExitCode.DONE
    path = beton_path(SMALL, "train", tmp_path / "data")
    path.write_bytes(path.read_bytes()[:-100])
    assert ended(tmp_path, *words) == ExitCode.USAGE
    assert path.name in capsys.readouterr().err


def test_questions_on_a_folder_that_is_not_prepared_yet_have_a_price_without_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    cells = [cell for cell in CELLS if cell.dataset == "cifar10"]
    words = ("--profile", "mini", "--dataset", f"folder:{tmp_path}/pictures", "--until-decided", "4")
    options = parser("cifar_width", "").parse_args(
        [*words, "--output", f"{tmp_path}/out", "--data-dir", f"{tmp_path}/d"]
    )
    settings = settle(cells, options)
    sweep = declare("cifar_width", cells, Protocol(), options, settings, questions=QUESTIONS)
    assert dry_run(sweep, asked_part(sweep, options), settings) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "no difference" in shown
    assert "hours" not in shown.partition("no difference")[2].partition("\n")[0]


def test_baseline_that_is_not_asked_for_trains_for_its_learning_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--profile", "mini", "--dataset", SMALL, "--only", "CReLU*")
    assert ended(tmp_path, *words, protocol=Protocol(rates=RateStudy("Baseline *", (0.25, 0.1)))) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "not asked for, but for 2 trainings of its learning rate\n" in shown


def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert ended(tmp_path, "--profile", "demo") == ExitCode.USAGE
    assert f"cannot write to --output {tmp_path}/out" in capsys.readouterr().err


def test_sweep_that_is_driven_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Lease(Ledger(str(tmp_path / "out" / "ledger")), "cifar_width-demo"):
        assert ended(tmp_path, "--profile", "demo") == ExitCode.USAGE
    assert "another driver works on this sweep" in capsys.readouterr().err
    assert ended(tmp_path, "--profile", "demo") == ExitCode.DONE


def test_trial_that_another_sweep_trains_now_is_not_to_be_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--profile", "demo", "--output", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data"))
    options = parser("cifar_width", "").parse_args(words)
    settings = settle(CELLS, options)
    trial = expand(declare("cifar_width", CELLS, PLAIN, options, settings), {})[0]
    with Lease(settings.ledger, "other"):
        assert claim(Drivers(settings.ledger), "other", trial.key)
        assert ended(tmp_path, "--profile", "demo") == ExitCode.DONE
        assert ended(tmp_path, "--profile", "demo", "--fresh") == ExitCode.USAGE
    sentence = "is trained now by the driver of other: end that, or leave out --fresh"
    assert f"error: {trial.cell.label} {trial.label} {sentence}\n" in capsys.readouterr().err
    assert ended(tmp_path, "--profile", "demo", "--fresh") == ExitCode.DONE


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--cpus-per-trial", "5000"), "this machine has"),
        (("--gpus-per-trial", "900"), "this machine has"),
        (("--ranks", "21", "--gpus-per-trial", "0", "--cpus-per-trial", "1"), "ranks"),
    ],
)
def test_resources_that_this_machine_lacks(
    words: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(SMALL, tmp_path / "data", workers=1)
    assert ended(tmp_path, "--profile", "mini", "--dataset", SMALL, *words) == ExitCode.USAGE
    assert why in capsys.readouterr().err


def test_temporary_folder_with_too_long_a_name_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + 90 * "x")
    assert ended(tmp_path, "--profile", "demo", "--address", "local") == ExitCode.USAGE
    assert "error: TMPDIR is 52 bytes too long for Ray's sockets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "dataset", "offered"),
    [
        ((), "cifar10", True),
        (("--seeds", "2"), "cifar10", True),
        (("--only", "Baseline*"), "cifar10", False),
        (("--only=Baseline*",), "cifar10", False),
        (("--set", "dataset=cifar100"), "cifar10", False),
        (("--set", "recipe.nesterov=true"), "cifar10", False),  # the demo's recipe is Adam's
        (("--dataset", "cifar100"), "cifar10", False),
        ((), "imagenet:size=64", False),
    ],
)
def test_embedded_pictures_are_offered_where_the_same_command_takes_them(
    words: tuple[str, ...], dataset: str, offered: bool, tmp_path: Path
) -> None:
    cells = [Cell("Baseline", S2, dataset, ALLCONV)]
    places = ("--profile", "paper", "--output", f"{tmp_path}/out", "--data-dir", f"{tmp_path}/data")
    options = parser("page", "").parse_args([*words, *places])
    command = Command(("python", "page.py"), (*words, *places))
    settings = dataclasses.replace(settle(cells, options, False), command=command)
    sweep = declare("page", cells, Protocol(), options, settings, False)
    why = absent_pictures(asked_part(sweep, options), settings)
    assert "is not prepared" in why
    assert ("or take embedded pictures: python page.py " in why) == offered


def test_cluster_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--profile", "demo", "--address", "127.0.0.1:1")
    assert ended(tmp_path, *words) == ExitCode.USAGE
    assert "error: no Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["trials", "tracked", "place.json"])
def test_link_in_the_ledger(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out/ledger").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/ledger" / name).symlink_to(tmp_path / "elsewhere")
    assert ended(tmp_path, "--profile", "demo") == ExitCode.USAGE
    assert f"{name} is a link, which no ledger holds: put what it points to in its place" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["a/../a/pics", "a/./pics", "a//pics/"])
def test_folder_has_one_name_however_it_is_typed(typed: str, tmp_path: Path) -> None:
    assert absolute_dataset(f"folder:{tmp_path}/{typed}") == f"folder:{tmp_path}/a/pics"


def test_relative_folder_of_a_page_is_below_the_folder_in_which_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its absolute path is in the key: so the same page, typed elsewhere, is of other pictures."""
    keys = {}
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        typed = [on_dataset(CELLS[0], f"folder:{path}") for path in ("pics", f"{tmp_path}/{name}/pics")]
        relative, absolute = compared_by(None, typed)
        assert relative == absolute == typed[1]  # the key of an absolute path is as it was
        keys[name] = relative.key
        with pytest.raises(ValueError, match=f"no folder {tmp_path}/{name}/pics: .* in which the command is typed$"):
            check_present(relative.dataset, tmp_path / "data")
    assert keys["here"] != keys["there"]


def test_paper_s_pages_ask_its_claims_and_are_priced_by_its_numbers() -> None:
    expected = {
        "cifar_width": [0.81, 0.48, 0.76, -0.06, 4.76, 2.97, 2.32, 1.28],
        "cifar_vgg": [0.45, 0.45, 0.45, 1.84, 2.48, 2.6],
        "imagenet_placement": [1.99, 1.36, 0.88, 0.69],
    }
    for page in expected:
        module = import_module(f"sweeps.{page}")
        protocol = getattr(module, "PROTOCOL", PLAIN)
        options = parser(page, "").parse_args(["--profile", "paper", "--until-decided", "10"])
        sweep = declare(page, module.CELLS, protocol, options, settle(module.CELLS, options), True, module.QUESTIONS)
        gains = printed_gains(sweep)
        assert [round(gain, 2) for gain in gains] == expected[page]
        assert len({question.text for question in sweep.questions}) == len(gains)
        shorter = [dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, epochs=3)) for cell in sweep.cells]
        assert printed_gains(dataclasses.replace(sweep, cells=tuple(shorter))) == []


def test_questions_on_other_data_name_those_and_folds_are_as_many_as_the_profile_has() -> None:
    module = import_module("sweeps.cifar_width")
    options = parser("cifar_width", "").parse_args(["--profile", "demo", "--until-decided", "10"])
    settings = settle(module.CELLS, options)
    sweep = declare("cifar_width", module.CELLS, module.PROTOCOL, options, settings, True, module.QUESTIONS)
    texts = [f"{cell} beats {rival} on embedded" for cell, rival in module.COMPARED]
    assert [question.text for question in sweep.questions] == texts
    assert sweep.questions[0].labels == ("CReLU embedded", "Baseline embedded")
    assert (sweep.protocol.until, sweep.protocol.folds) == (3, 3)
    assert printed_gains(sweep) == []
    assert "until decided, at most: 10 -> 3" in changed_protocol(module.PROTOCOL, sweep.protocol, options)
    more = parser("cifar_width", "").parse_args(["--profile", "demo", "--until-decided", "10", "--folds", "4"])
    with pytest.raises(ValueError, match="at most its 4 folds, not 10"):
        declare("cifar_width", module.CELLS, module.PROTOCOL, more, settings, True, module.QUESTIONS)


def limited(folder: Path) -> tuple[str, Settings, Sweep]:
    """Return a folder of two classes, the settings of a command whose data lie elsewhere, and its limited search."""
    picture_folder(folder, "pics", {"a": 5, "b": 5}, (72, 72))
    name = f"folder:{folder}/pics"
    places = ("--output", str(folder / "out"), "--data-dir", str(folder / "data"))
    options = parser("cifar_width", "").parse_args(["--profile", "mini", "--dataset", name, *places])
    settings = settle(CELLS, options)
    protocol = Protocol(search=Search(2, limits={"parameters": 1e9}))
    return name, settings, declare("cifar_width", CELLS[:1], protocol, options, settings)


def shapes_of(sweep: Sweep) -> dict[str, tuple[int, int]]:
    """Return what a search has noted of each data set: its classes, and the side of its views."""
    search = sweep.protocol.search
    assert search is not None
    sides = dict(search.sides)
    return {name: (classes, sides[name]) for name, classes in search.classes}


def test_limit_on_parameters_is_by_the_pictures_here_then_by_what_the_last_run_has_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, settings, sweep = limited(tmp_path)
    assert shapes_of(sweep) == {}
    shown = dataclasses.replace(settings, display=dataclasses.replace(settings.display, json=True))
    dry_run(sweep, sweep, shown)
    noted = json.loads(capsys.readouterr().out)["protocol"]["search"]
    assert (noted["classes"], noted["sides"]) == ({name: 2}, {name: 64})
    counted = with_counts(sweep, settings)
    assert shapes_of(counted) == {name: (2, 64)}
    shutil.rmtree(tmp_path / "pics")
    assert shapes_of(with_counts(sweep, settings)) == {}
    settings.ledger.write_json(f"plans/{sweep.title}.json", plan_to_json(Plan(counted, ())))
    assert shapes_of(with_counts(sweep, settings)) == {name: (2, 64)}
    assert shapes_of(current_plan(settings.ledger, sweep.title).sweep) == {name: (2, 64)}


def test_folder_is_listed_once_by_a_dry_run_and_anew_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    walks: list[Path] = []

    def counting(root: Path, *arguments: Any, **options: Any) -> Listing:
        walks.append(root)
        return list_pictures(root, *arguments, **options)

    monkeypatch.setattr(sources, "list_pictures", counting)
    name, settings, sweep = limited(tmp_path)
    for classes, trained in ((2, 8), (3, 12)):
        walks.clear()
        assert dry_run(sweep, sweep, settings) == ExitCode.DONE
        assert walks == [tmp_path / "pics"]
        assert f": {trained} for training" in capsys.readouterr().out
        picture_folder(tmp_path, "pics", {f"after {trained}": 5}, (72, 72))
        assert expected_pictures(name, settings.data_dir)[0].classes == classes + 1


NETS = """from torch import nn

def deep(num_classes, depth):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *[nn.Linear(3, 3) for _ in range(depth)],
                         nn.Linear(3, num_classes))
"""


def test_limit_on_parameters_of_a_model_is_by_its_code_then_by_what_the_last_run_has_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "limited_nets.py").write_text(NETS)
    cell = Cell("deep", Model("limited_nets:deep", depth=3), SMALL, dataclasses.replace(ALLCONV, init="own"))
    space = {"model.depth": Int(1, 3)}
    protocol = Protocol(search=Search(2, "grid", space=space, limits={"parameters": 35}))
    options = parser("limits", "").parse_args(["--profile", "paper", "--output", str(tmp_path / "out")])
    settings = settle((cell,), options)
    sweep = declare("limits", (cell,), protocol, options, settings)
    counted = with_counts(sweep, settings)
    assert sorted(noted_counts(counted).values()) == [20, 32, 44]
    assert dry_run(sweep, sweep, settings) == ExitCode.DONE
    settings.ledger.write_json(f"plans/{sweep.title}.json", plan_to_json(Plan(counted, ())))
    (tmp_path / "limited_nets.py").write_text("import no_such_module\n")
    anew: dict[object, object] = {}  # as a process that begins
    monkeypatch.setattr("sweeps.experiment.model_facts._known", lambda: anew)
    assert noted_counts(with_counts(sweep, settings)) == noted_counts(counted)
    assert dry_run(sweep, sweep, settings) == ExitCode.USAGE
    error = "limited_nets does not import: ModuleNotFoundError: No module named 'no_such_module'"
    assert error in capsys.readouterr().err
    depths = {dict(trial.choices)["model.depth"] for trial in current_plan(settings.ledger, sweep.title).to_do}
    assert depths == {1, 2}  # without the code too, and the cell's own depth of 3 is too large


def noted_counts(sweep: Sweep) -> dict[str, int]:
    search = sweep.protocol.search
    assert search is not None
    return search.noted_counts


def test_run_notes_the_classes_before_its_first_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings, sweep = limited(tmp_path)
    planned: list[Sweep] = []

    def planning(asked: Sweep, *_: object) -> Plan:
        planned.append(asked)
        raise ValueError("that is all")

    monkeypatch.setattr(run, "_ensure_datasets", lambda *_: {})
    monkeypatch.setattr(run, "_current_plan", planning)
    with pytest.raises(ValueError, match="that is all"):
        run.run_sweep(sweep, sweep, settings)
    assert [shapes_of(asked) for asked in planned] == [{name: (2, 64)}]


@pytest.mark.parametrize(
    ("labels", "folds", "seeds", "what"),
    [
        (("a", "b"), 2, 1, ""),
        (("a", "b"), 2, 2, ""),
        (("b", "a"), 2, 1, ""),  # in another order, and with another name for the same cell
        (
            ("a", "b"),
            0,
            1,
            "4 finished trainings of the last start are no part of this one (2 of a, 2 of b): they stay",
        ),
        (
            ("a", "b"),
            3,
            1,
            "4 finished trainings of the last start are no part of this one (2 of a, 2 of b): they stay",
        ),
        (("a",), 2, 1, "3 finished trainings of the last start are no part of this one (3 of b): they stay"),
        (("c",), 2, 1, "6 finished trainings of the last start are no part of this one (3 of a, 3 of b): they stay"),
    ],
)
def test_what_the_last_start_had_and_this_one_has_no_more_is_told(
    labels: tuple[str, ...], folds: int, seeds: int, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nets = {"a": S2, "b": S2.avr(1), "c": S2.avr(2)}
    cells = {label: Cell(label, net, SMALL, ALLCONV) for label, net in nets.items()}
    words = ["--profile", "paper", "--output", str(tmp_path), "--data-dir", str(tmp_path)]
    settings = settle(tuple(cells.values()), parser("s", "").parse_args(words))
    assert left_out(plan(Sweep("s", "paper", tuple(cells.values())), settings.ledger, {}), settings) == ""
    make(settings.ledger, Sweep("s", "paper", (cells["a"], cells["b"]), Protocol(folds=2)), lambda _: Made({TOP1: 9.0}))
    sweep = Sweep("s", "paper", tuple(cells[label] for label in labels), Protocol(seeds=seeds, folds=folds))
    dry_run(sweep, sweep, settings)
    told = next((line for line in capsys.readouterr().out.splitlines() if "the last start" in line), "")
    assert told.startswith(what)
    assert bool(told) == bool(what)
    assert ("--output of its own" in told) == (labels == ("c",))
    monkeypatch.setattr(run, "_run", ends)
    with pytest.raises(InterruptedError):
        run.run_sweep(sweep, sweep, settings)
    assert (told in capsys.readouterr().err) if told else ("the last start" not in capsys.readouterr().err)
    assert left_out(plan(sweep, settings.ledger, {}), settings) == ""  # it is the last start now


def test_trainings_of_a_setting_that_a_search_may_choose_again_are_told_as_such(tmp_path: Path) -> None:
    cells = (Cell("a", S2, SMALL, ALLCONV), Cell("b", S2.avr(1), SMALL, ALLCONV))
    settings = settle(cells, parser("s", "").parse_args(["--output", str(tmp_path), "--data-dir", str(tmp_path)]))
    make(settings.ledger, Sweep("s", "paper", cells, Protocol(seeds=2)), lambda _: Made({TOP1: 9.0}))
    before = settings.ledger.results().keys()
    search = Search(3, "random", space={"recipe.lr": Float(1e-3, 1, log=True)})
    sweep = Sweep("s", "paper", cells[:1], Protocol(seeds=2, search=search))
    told = left_out(plan(sweep, settings.ledger, {}), settings)
    assert "(2 of a, 2 of b): they stay" in told
    assert told.endswith(
        "status and MLflow's cells leave them out; 2 of these count again if a search or study chooses the setting"
    )
    # The first point of the search is the cell's own setting, and wins.
    make(settings.ledger, sweep, lambda trial: Made({HELD_OUT: 9.0 if trial.recipe == ALLCONV else 10.0}))
    statuses = plan(sweep, settings.ledger, {}).statuses
    assert len(before & {status.trial.key for status in statuses}) == 2


def ends(*_: object) -> None:
    raise InterruptedError


def test_sweep_until_decided_is_not_priced_once_all_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.cli.dry_run.hours_per_training", lambda *_: 1.0)
    ledger = Ledger(str(tmp_path))
    settings = cast(Settings, None)

    def lines() -> list[str]:
        return list(question_costs(plan(UNTIL_DECIDED, ledger, {}), settings, {}))

    assert lines()[0].startswith("2 questions of 3 cells: ")
    first = plan(UNTIL_DECIDED, ledger, {}).to_do[0]
    finish(ledger, first, Made({TOP1: error_of(first)}))
    told = lines()
    assert told[0] == "after 1 seed 0 of 2 questions closed; what follows is from the first seed on"
    assert told[1].startswith("2 questions of 3 cells: ")
    make(ledger, UNTIL_DECIDED, lambda trial: Made({TOP1: error_of(trial)}))
    (told_at_last,) = lines()
    assert told_at_last.endswith(" seeds 2 of 2 questions closed: nothing more is trained for them")
