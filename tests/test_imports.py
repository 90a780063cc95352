"""The import law: rooms import in one direction, without a circle, and each library has one door."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("crelu_models", "crelu_data", "sweeps")
# What a room may import from, besides itself. The pages and their door stand in "sweeps" itself.
ROOMS: Mapping[str, tuple[str, ...]] = {
    "crelu_models": (),
    "crelu_data": ("crelu_models",),
    "sweeps.store": ("crelu_data",),
    "sweeps.experiment": ("crelu_models", "crelu_data", "sweeps.store"),
    "sweeps.training": ("crelu_models", "crelu_data", "sweeps.store", "sweeps.experiment"),
    "sweeps.execution": ("crelu_models", "crelu_data", "sweeps.store", "sweeps.experiment", "sweeps.training"),
    "sweeps.tracking": ("crelu_models", "crelu_data", "sweeps.store", "sweeps.experiment"),
    "sweeps.results": ("crelu_models", "crelu_data", "sweeps.store", "sweeps.experiment"),
    "sweeps.report": (
        "crelu_models", "crelu_data", "sweeps.store", "sweeps.experiment", "sweeps.results", "sweeps.tracking",
    ),
    "sweeps.analysis": (
        "crelu_models", "crelu_data", "sweeps.store", "sweeps.experiment", "sweeps.training", "sweeps.execution",
        "sweeps.tracking", "sweeps.results", "sweeps.report",
    ),
    "sweeps.ops": ("crelu_models", "crelu_data", "sweeps.store", "sweeps.execution", "sweeps.tracking"),
    "sweeps.cli": (
        "crelu_models", "crelu_data", "sweeps.store", "sweeps.experiment", "sweeps.training", "sweeps.execution",
        "sweeps.tracking", "sweeps.results", "sweeps.report",
    ),
    "sweeps": ("crelu_models", "crelu_data", "sweeps.experiment", "sweeps.results", "sweeps.report", "sweeps.ops",
               "sweeps.cli"),
}  # fmt: skip
# The room, or the module, that alone may import a library.
DOORS: Mapping[str, tuple[str, ...]] = {
    "ray": ("sweeps.execution",),
    "mlflow": ("sweeps.tracking",),
    "optuna": ("sweeps.experiment.sampling",),
    "ffcv": ("crelu_data.ffcv_patches", "crelu_data.decoders.ffcv_stage"),
    "simplejpeg": ("crelu_data",),
    "numba": ("crelu_models.kernels", "crelu_data.ffcv_patches", "crelu_data.decoders.ffcv_stage"),
    "triton": ("crelu_models.gpu",),
    "torch": (
        "crelu_models",
        "crelu_data",
        "sweeps.store.checkpoint",
        "sweeps.training",
        "sweeps.execution",
        "sweeps.analysis",
        "sweeps.cli.verbs",
    ),
    "matplotlib": ("sweeps.report.render.plots", "sweeps.report.render.svg", "sweeps.report.render.figures"),
    "pandas": ("sweeps.report.loaded",),
    "IPython": ("sweeps.report.notebook",),
}
# Names that a module writes down and does not import: MLflow imports this one where it loads a model.
WRITTEN = {("sweeps.tracking.model_files", "sweeps.training.predictor")}
LIGHT = (
    "crelu_models.spec",
    "crelu_models.sources",
    "crelu_models.tables",
    "sweeps.experiment.recipe",
    "sweeps.results.paper",
)
NAME = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+(:\w+)?")


@cache
def modules() -> dict[str, Path]:
    """Return our modules by dotted name."""
    names = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def room_of(module: str) -> str:
    """Return the innermost room that holds a module."""
    return max((room for room in ROOMS if module == room or module.startswith(f"{room}.")), key=len)


def named(node: ast.AST) -> Iterator[str]:
    """Yield the modules that a node imports, or names in a string as import_module and workers take them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        yield node.module or ""
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
        yield node.value.partition(":")[0]


def imported(source: str, known: Mapping[str, object]) -> tuple[set[str], set[str]]:
    """Return our modules that a source names, and the other top-level packages."""
    names = {name for node in ast.walk(ast.parse(source)) for name in named(node)}
    ours = {name for name in names if name in known}
    return ours, {name.partition(".")[0] for name in names} - set(PACKAGES)


@cache
def graph() -> dict[str, tuple[set[str], set[str]]]:
    """Return what each module imports: each file is read once."""
    return {name: imported(path.read_text(), modules()) for name, path in modules().items()}


def broken(imports: Mapping[str, tuple[set[str], set[str]]]) -> list[str]:
    """Return each breach of the law as a sentence."""
    wrong = []
    for module, (ours, libraries) in imports.items():
        room = room_of(module)
        for other in sorted(ours):
            # An __init__ holds only what it exports lazily; what is taken from it is named too.
            is_allowed = room_of(other) in (room, *ROOMS[room]) or (module, other) in WRITTEN
            if not is_allowed and modules()[other].name != "__init__.py":
                wrong.append(f"{module} imports {other}: {room} may not import {room_of(other)}")
        for library in sorted(libraries & DOORS.keys()):
            if not any(module == door or module.startswith(f"{door}.") for door in DOORS[library]):
                wrong.append(f"{module} imports {library}, whose door is {' and '.join(DOORS[library])}")
    edges = {module: {other for other in ours if other != module and not module.startswith(f"{other}.")
                      and modules().get(other, Path()).name != "__init__.py"}
             for module, (ours, _) in imports.items()}  # fmt: skip
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        wrong.append(f"a circle: {' <- '.join(error.args[1])}")
    return wrong


def test_rooms_have_one_direction() -> None:
    TopologicalSorter(ROOMS).prepare()
    assert {room_of(module) for module in modules()} == set(ROOMS)


def test_law_holds() -> None:
    assert broken(graph()) == []


@pytest.mark.parametrize(
    ("module", "line", "sentence"),
    [
        ("sweeps.store.lease", "from sweeps.cli.run import dry_run", "sweeps.store may not import sweeps.cli"),
        ("sweeps.training.loop", "def later():\n    import mlflow", "imports mlflow, whose door is sweeps.tracking"),
        ("sweeps.experiment.trial", "from importlib import import_module\nimport_module('sweeps.experiment.plan')",
         "a circle"),
        ("sweeps.experiment.recipe", "WORK = 'sweeps.training.loop:train'", "may not import sweeps.training"),
        ("crelu_data.load", "import ray", "imports ray, whose door is sweeps.execution"),
    ],
)  # fmt: skip
def test_planted_breach_is_seen(module: str, line: str, sentence: str) -> None:
    source = f"{modules()[module].read_text()}\n{line}\n"
    assert any(sentence in breach for breach in broken({**graph(), module: imported(source, modules())}))


@pytest.mark.parametrize("name", LIGHT)
def test_tables_and_recipes_need_only_the_standard_library(name: str) -> None:
    assert not graph()[name][1] - set(sys.stdlib_module_names)


def test_driver_has_no_torch() -> None:
    code = (
        "import sys, mlflow\n"
        "import sweeps.cli.run, sweeps.cli.live_view, sweeps.cli.summary, sweeps.cli.forecast, sweeps.execution.tuner\n"
        "import sweeps.report.terminal, sweeps.tracking.tracker\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch takes a second to import, and half a GiB"


def test_no_file_has_a_name_that_says_nothing() -> None:
    banned = {"utils", "common", "helpers", "misc", "config", "types"}
    assert not banned & {name.rsplit(".", 1)[-1] for name in modules()}


def test_the_top_of_sweeps_holds_pages_and_their_door_alone() -> None:
    assert len(list((ROOT / "sweeps").glob("*.py"))) <= 8
    for folder in {path.parent for path in modules().values()}:
        assert len(list(folder.glob("*.py"))) <= 20, folder


@pytest.mark.parametrize(
    ("line", "heavy"),
    [
        ("from sweeps import ALLCONV, Cell, Protocol, Search, main", {"torch", "ray", "mlflow", "optuna", "numpy"}),
        ("from crelu_models import S8, PAPER", {"torch", "numpy", "numba"}),
        (
            "import sweeps.imagenet_placement, sweeps.cifar_width, sweeps.full_grid",
            {"torch", "ray", "mlflow", "optuna"},
        ),
    ],
)
def test_what_a_page_imports_is_light(line: str, heavy: set[str]) -> None:
    code = f"import sys\n{line}\nprint(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


OF_BENCHMARKS = ("test_mutations", "test_faults", "test_chaos", "test_benchmark_nets", "test_first_hour")


def test_tests_import_their_support_and_no_other_test() -> None:
    files = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    names = {f"tests.{path.stem}" if path.parent == ROOT / "tests" else f"tests.{path.parent.name}.{path.stem}": path
             for path in files}  # fmt: skip
    assert len(names) > 50
    for path, source in files.items():
        ours, libraries = imported(source, names)
        assert "benchmarks" not in libraries or path.stem in OF_BENCHMARKS, path
        allowed = {f"tests.{path.parent.name}.{path.stem}"}  # a process of its own may run what the file holds
        assert not {name for name in ours if not name.startswith("tests.support")} - allowed, path


def test_a_page_beside_files_of_common_names_finds_ours(tmp_path: Path) -> None:
    for name in ("data", "utils", "models", "train"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the researcher is imported')\n")
    (tmp_path / "page.py").write_text(
        "from crelu_models.tables import S2\n"
        "from sweeps import ALLCONV, Cell, Protocol, main\n"
        "if __name__ == '__main__':\n"
        "    main('mine', 'Mine.', [Cell('Baseline', S2, 'cifar10', ALLCONV)], Protocol(seeds=1))\n"
    )
    command = [sys.executable, "-W", "ignore", "page.py", "--profile", "demo", "--dry-run", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is imported" not in done.stderr


def test_the_checkout_keeps_its_word_for_the_commands_of_the_pictures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "data", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.match(r"usage: \S*python\S* -m crelu_data ", done.stdout)
