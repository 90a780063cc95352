"""The import law: a module imports only from rows above its own, and each library has its one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("crelu_models", "data", "sweeps")
# fmt: off
ROWS = (
    ("crelu_models.spec", "crelu_models.kernels", "data.datasets", "data.synthetic", "data.storage",
     "sweeps.recipe", "sweeps.place", "sweeps.analysis.paper", "sweeps.analysis.drawing", "sweeps.analysis.style"),
    ("crelu_models.tables", "crelu_models.activations", "crelu_models.sources", "data.beton", "data.sources",
     "data.augment", "sweeps.evaluate", "sweeps.ledger", "sweeps.backup", "sweeps.ranks", "sweeps.stream",
     "sweeps.tasks", "sweeps.exposure",
     "sweeps.analysis.statistics", "sweeps.analysis.picture", "sweeps.analysis.cgls"),
    ("crelu_models.modules", "data.ffcv_patches", "data.transfer", "sweeps.serve", "sweeps.progress", "sweeps.trial",
     "sweeps.lease", "sweeps.spot", "sweeps.doctor", "sweeps.analysis.capture", "sweeps.analysis.decisions"),
    ("data.load",),
    ("crelu_models", "data.write", "sweeps.train", "sweeps.search", "sweeps.profile", "sweeps.sets", "sweeps.outcome",
     "sweeps.checkpoint", "sweeps.look", "sweeps.analysis.provenance"),
    ("sweeps.course", "sweeps.plan", "sweeps.price", "sweeps.ready", "sweeps.worker"),
    ("sweeps.perform", "sweeps.sharing", "sweeps.tracking", "sweeps.table", "sweeps.view",
     "sweeps.allot", "sweeps.errand", "sweeps.analysis.sources", "sweeps.analysis.evidence"),
    ("sweeps.crew",),
    ("sweeps.gauge",),
    ("sweeps.session", "sweeps.pack", "sweeps.verify", "sweeps.analysis.finished",
     "sweeps.analysis.document", "sweeps.analysis.measures", "sweeps.analysis.capsule"),
    ("sweeps.cluster", "sweeps.analysis.patches", "sweeps.analysis.marks",
     "sweeps.analysis.contrasts", "sweeps.analysis.deviations",
     "sweeps.analysis.records", "sweeps.analysis.formats", "sweeps.analysis.page"),
    ("sweeps.forecast", "sweeps.analysis.verdicts",
     "sweeps.analysis.results", "sweeps.analysis.figures", "sweeps.analysis.attempt"),
    ("sweeps.analysis.effects", "sweeps.analysis.claims", "sweeps.analysis.tidy", "sweeps.analysis.overview",
     "sweeps.analysis.mates", "sweeps.analysis.firing", "sweeps.analysis.recovery", "sweeps.analysis.phases",
     "sweeps.analysis.theorems", "sweeps.analysis.notes"),
    ("sweeps.analysis.contents", "sweeps.analysis.job"),
    ("sweeps.analysis.report", "sweeps.analysis.pairing", "sweeps.analysis.invariance",
     "sweeps.analysis.reconstruction", "sweeps.analysis.outgoing", "sweeps.analysis.theory"),
    ("sweeps.ending",),
    ("sweeps.drive",),
    ("sweeps.launch",),
    ("sweeps.imagenet_placement", "sweeps.cifar_width", "sweeps.cifar_vgg", "sweeps.full_grid", "data.__main__"),
    ("sweeps.imagenet_dropout",),
    ("sweeps.__main__",),
)
# fmt: on
# Packages that hold no code of their own.
BARE = ("data", "sweeps", "sweeps.analysis")
DOORS = {
    "ray": {"sweeps.cluster", "sweeps.tasks"},
    "mlflow": {"sweeps.tracking"},
    "optuna": {"sweeps.search"},
    "ffcv": {"data.ffcv_patches"},
    "simplejpeg": {"data.load"},
    "numba": {"crelu_models.kernels", "data.ffcv_patches"},
}
LIGHT = {"crelu_models.spec", "crelu_models.sources", "crelu_models.tables", "sweeps.recipe", "sweeps.analysis.paper"}


def modules() -> dict[str, Path]:
    """Return our modules by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Return every module name that the file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = modules()
ROW = {name: number for number, row in enumerate(ROWS) for name in row}


def test_every_module_has_a_row() -> None:
    assert set(MODULES) - set(BARE) == set(ROW), "add a new module to the law, take a gone one out"


@pytest.mark.parametrize("name", sorted(ROW))
def test_module_imports_only_from_rows_above(name: str) -> None:
    wrong = [other for other in imported(MODULES[name]) if other in ROW and other != name and ROW[other] >= ROW[name]]
    # A package's own lazy re-exports reach down, and importing crelu_models.spec imports the package.
    assert not [other for other in wrong if not name.startswith(other + ".")]


@pytest.mark.parametrize("library", sorted(DOORS))
def test_library_has_its_doors_alone(library: str) -> None:
    users = {name for name, path in MODULES.items() if any(m.split(".")[0] == library for m in imported(path))}
    assert users <= DOORS[library]


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_tables_and_recipes_need_only_the_standard_library(name: str) -> None:
    outside = {m.split(".")[0] for m in imported(MODULES[name])} - set(sys.stdlib_module_names) - set(PACKAGES)
    assert not outside


def test_driver_has_no_torch() -> None:
    mine = "drive, ending, forecast, gauge, sharing, cluster, session, tracking, view, table"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, mlflow\nfrom sweeps import {mine}\nsys.exit('torch' in sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr or "torch takes a second to import, and half a GiB"


def test_no_file_has_a_name_that_says_nothing() -> None:
    banned = {"utils", "common", "helpers", "misc", "config", "types"}
    assert not banned & {name.rsplit(".", 1)[-1] for name in MODULES}
