"""A net's source text changes where the code that it runs changes, and nowhere else."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import crelu_models
from crelu_models import activations
from crelu_models.activations import KINDS
from crelu_models.dropout import seed_dropout
from crelu_models.modules import ENERGY, build, initialise
from crelu_models.sources import source_of
from crelu_models.spec import CHANNEL_FACTOR, Conv, Linear, Net
from crelu_models.tables import PAPER, S2, S4

PACKAGE = Path(crelu_models.__file__).parent
# The paper's nets, and one with each activation on all convs, so without ReLU.
NETS = PAPER | {f"all {kind}": S2.activation(kind, *range(1, 8)) for kind in CHANNEL_FACTOR}


def kinds(net: Net) -> set[str]:
    return {row.act for row in net.rows if isinstance(row, Conv | Linear)}


def changed(tmp_path: Path, file: str, old: str, new: str) -> set[str]:
    """Return the names of the nets whose source changes with this edit of a copy of the package."""
    folder = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
    (folder / file).write_text(text.replace(old, new))
    ast.parse((folder / file).read_text())
    return {name for name, net in NETS.items() if source_of(net, folder) != source_of(net)}


def using(*acts: str) -> set[str]:
    return {name for name, net in NETS.items() if kinds(net) & set(acts)}


TWO_PHASES = ("crelu", "antirectifier")


@pytest.mark.parametrize(
    ("file", "old", "new", "acts"),
    [
        ("activations.py", '"relu": lambda _: nn.ReLU()', '"relu": lambda _: nn.ReLU6()', ["relu"]),
        ("modules.py", '"relu": 0.5', '"relu": 0.25', ["relu"]),
        ("spec.py", '"relu": 1', '"relu": 2', ["relu"]),
        ("activations.py", "nn.PReLU(channels, init=0.25)", "nn.PReLU(channels, init=0.5)", ["prelu"]),
        ("activations.py", "return x.abs()", "return x.abs() + 0", ["avr"]),
        ("activations.py", "x - x.mean(1, keepdim=True)", "x - x.mean(1, keepdim=True) / 2", ["antirectifier"]),
        ("activations.py", "self.inner(-x)", "self.inner(x)", ["crelu_leaky", "concat_elu"]),
        ("activations.py", "return torch.cat([x, x.neg()], 1).relu_()", "return torch.cat([x, x], 1)", TWO_PHASES),
        ("activations.py", "return up - down, None", "return up + down, None", TWO_PHASES),
        ("activations.py", "PART = 2 << 20", "PART = 2 << 19", TWO_PHASES),
        ("activations.py", "torch.ops.aten.threshold_backward", "torch.ops.aten.hardtanh_backward", TWO_PHASES),
        ("kernels.py", "above = nonzero & ~value", "above = nonzero", TWO_PHASES),
        ("kernels.py", "0x7F800000", "0x7F900000", TWO_PHASES),
        ("kernels.py", "from numba import carray, types", "from numba import farray as carray, types", TWO_PHASES),
    ],
)
def test_an_edit_of_an_activation_changes_exactly_the_nets_that_use_it(
    file: str, old: str, new: str, acts: list[str], tmp_path: Path
) -> None:
    expected = using(*acts)
    assert expected
    assert expected != set(NETS)
    assert changed(tmp_path, file, old, new) == expected


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("modules.py", "PICTURE_ENERGY = 0.5", "PICTURE_ENERGY = 1.0"),
        ("modules.py", "BN_EPS, BN_MOMENTUM = 1e-3, 0.1", "BN_EPS, BN_MOMENTUM = 1e-5, 0.1"),
        ("modules.py", "nn.MaxPool2d if row.kind", "nn.AvgPool2d if row.kind"),
        ("chain.py", "pool.dilation != 1", "pool.dilation != 2"),
        ("gpu/activations.py", "SLOPE = 1 / 100", "SLOPE = 1 / 50"),
        ("dropout.py", "mask * (1 / (1 - rate))", "mask"),
        ("modules.py", 'seed_from("weights", seed, row.name)', 'seed_from("weights", seed)'),
        ("modules.py", "scale = math.sqrt(2 / fan_out)", "scale = math.sqrt(1 / fan_out)"),
        ("modules.py", "from torch import Tensor, nn", "from torch import Tensor\nfrom torch.ao import nn"),
        ("spec.py", "digest_size=8", "digest_size=9"),
        ("spec.py", "inputs = channels * before**2 if", "inputs = channels * before if"),
        ("spec.py", "side = max(windows - late, 0)", "side = max(windows, 0)"),
        ("spec.py", "if not isinstance(row, Drop)]", "if row]"),
        ("spec.py", "pad: int = 0\n    bn", "pad: int = 1\n    bn"),
    ],
)
def test_an_edit_of_what_all_nets_run_changes_all(file: str, old: str, new: str, tmp_path: Path) -> None:
    assert changed(tmp_path, file, old, new) == set(NETS)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tables.py", "S3_DOUBLE = S2.width(2)", "S3_DOUBLE = S2.width(3)"),
        ("spec.py", '(layer.row.act == "prelu")', "0"),
        ("spec.py", "layer.weights * layer.side**2", "layer.weights"),
        ("spec.py", 'PRINTED = {"relu": "ReLU"', 'PRINTED = {"relu": "relu"'),
        ("spec.py", "{'dropout':9}", "{'drop':9}"),
        ("spec.py", "a net has at least 1 class", "nets have classes"),
        ("spec.py", "0 < factor < float", "1 < factor < float"),
        ("spec.py", "min(row.kernel, row.stride) > 0", "row.pad"),
        ("spec.py", 'ALIASES = {"maxmin": "crelu"', 'ALIASES = {"maxout": "crelu", "maxmin": "crelu"'),
        ("modules.py", '"""Modules of a net', '"""The modules of a net'),
        ("modules.py", "# cifar.torch's batch norm.", "# Batch norm of cifar.torch."),
        ("modules.py", "the module has no layer", "there is no layer"),
        ("modules.py", "def _pool(row: Pool) -> nn.Module:", "def _pool(row):"),
        ("kernels.py", '"""Loops of CReLU', '"""The loops of CReLU'),
        ("__init__.py", "_LAZY = {", "_MORE = 1\n_LAZY = {"),
        ("sources.py", "Return the names that", "Give the names that"),
    ],
)
def test_an_edit_that_computes_nothing_changes_no_net(file: str, old: str, new: str, tmp_path: Path) -> None:
    assert changed(tmp_path, file, old, new) == set()


def test_a_new_activation_changes_no_net(tmp_path: Path) -> None:
    folder = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    edits = {
        "activations.py": [
            ('    "elu": lambda', '    "mish": lambda _: Mish(3.0),\n    "elu": lambda'),
            ("\n\n# Constructors", "\n\nclass Mish(nn.Module):\n    slope = math.e\n\n\n# Constructors"),
            ("import math\n", "import math\nimport cmath\n"),
        ],
        "spec.py": [('    "elu": 1,', '    "mish": 1,\n    "elu": 1,')],
        "modules.py": [('    "elu": 0.6449,', '    "mish": 0.6,\n    "elu": 0.6449,')],
    }
    for file, pairs in edits.items():
        text = (folder / file).read_text()
        for old, new in pairs:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (folder / file).write_text(text)
    assert [name for name, net in NETS.items() if source_of(net, folder) != source_of(net)] == []


def test_another_order_of_definitions_changes_no_net(tmp_path: Path) -> None:
    folder = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "activations.py").read_text()
    moved = re.search(r"class AVR\(.*?\n\n\n", text, re.DOTALL)
    assert moved is not None
    (folder / "activations.py").write_text(text.replace(moved[0], "") + "\n\n" + moved[0])
    assert [name for name, net in NETS.items() if source_of(net, folder) != source_of(net)] == []


@pytest.mark.parametrize(
    ("threads", "small", "acts"), [(1, 1 << 20, KINDS), (2, 0, TWO_PHASES)], ids=["compiled", "in parts"]
)
def test_the_source_holds_every_function_that_a_training_step_calls(
    threads: int, small: int, acts: Iterable[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run steps of all kinds under a profiler, and look for each of our functions in the source of its net."""
    rows = S4.width(1 / 16).dropout(0.1, "input").dropout(0.2, "pool1")
    loops = {"_compiled", "write_crelu", "write_gradient"} if threads == 1 else {"_parts", "_gradient"}
    monkeypatch.setattr(activations, "SMALL", small)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kind in acts:
            net = rows.activation(kind, *range(1, 14))
            text = source_of(net)
            called = _functions_called(net)
            assert {"build", "layers", "forward", "seed_from", "_weights"} <= called
            assert loops <= called or kind not in TWO_PHASES
            missing = [name for name in called if f"def {name}(" not in text]
            assert missing == [], kind
    finally:
        torch.set_num_threads(before)


def _functions_called(net: Net) -> set[str]:
    """Return the names of the package's functions that building and two training steps of a net call."""
    called: set[str] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename in files and not code.co_name.startswith("<"):
            called.add(code.co_name)

    # __init__.py only passes names on.
    files = {str(path) for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    pictures = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sys.setprofile(profile)
    try:
        module = build(net, 10)
        initialise(module, net, "looks_linear", 0)
        for x in (pictures, pictures.contiguous(memory_format=torch.channels_last)):
            seed_dropout(module, 0, 1, 2, 0, 32)
            module(x).sum().backward()
    finally:
        sys.setprofile(None)
    return called


def test_the_tables_have_one_entry_for_each_kind() -> None:
    assert list(KINDS) == list(ENERGY) == list(CHANNEL_FACTOR)


def test_a_table_that_cannot_be_read_by_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ENERGY must be a dictionary with one literal key per activation"):
        changed(tmp_path, "modules.py", "ENERGY = {", "ENERGY = {\n    **{},")


def test_sources_need_no_torch() -> None:
    code = (
        "import sys; from crelu_models.sources import source_of; from crelu_models.tables import S13\n"
        "assert 'class _CReLU' in source_of(S13); print({'torch', 'numpy', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
