"""Source of the user's code: what of it makes results stale, and what workers get."""

import sys
from pathlib import Path

import pytest

from crelu_models.named import load_named, split_name
from sweeps.experiment.user_code import drop_edited, find_module, shipped_files, source_of, unpacked

NETS = """
import math
from layers import Block
import tables as sizes

def small(num_classes, depth=3):
    '''Return a small net.'''
    return Block(num_classes, sizes.WIDTH, depth)

def large(num_classes):
    return small(num_classes, depth=LARGE)

LARGE = 9
"""
LAYERS = "class Block:\n    def __init__(self, *numbers):\n        self.numbers = numbers\n\nclass Other: pass\n"
TABLES = "WIDTH = 16\nHEIGHT = 3\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("nets_a", NETS), ("layers", LAYERS), ("tables", TABLES)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def fingerprint(name: str = "nets_a:small") -> str:
    return source_of([name]).fingerprint


def edited(path: Path, before: str, after: str) -> bool:
    """Return whether an edit changes the source of `nets_a:small`; undo it."""
    text = path.read_text()
    first = fingerprint()
    assert before in text
    path.write_text(text.replace(before, after))
    changed = fingerprint() != first
    path.write_text(text)
    return changed


@pytest.mark.parametrize(
    ("file", "before", "after", "stale"),
    [
        ("nets_a", "depth=3", "depth=4", True),
        ("layers", "self.numbers = numbers", "self.numbers = numbers[1:]", True),
        ("tables", "WIDTH = 16", "WIDTH = 17", True),
        ("nets_a", "Return a small net", "Return a tiny net", False),
        ("nets_a", "LARGE = 9", "LARGE = 10", False),  # of another function
        ("layers", "class Other: pass", "class Other: x = 1", False),
        ("tables", "HEIGHT = 3", "HEIGHT = 4  # pixels", False),
    ],
)
def test_what_a_function_reaches_makes_it_stale(files: Path, file: str, before: str, after: str, stale: bool) -> None:
    assert edited(files / f"{file}.py", before, after) == stale


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("from helpers import *\ndef small(n): return make(n)", "def make(n): return {}"),
        ("from helpers import make\ndef small(n): return globals()['ma' + 'ke'](n)", "def make(n): return {}"),
        ("import helpers\ndef small(n): return getattr(helpers, 'ma' + 'ke')(n)", "def make(n): return {}"),
        ("def small(n):\n    from helpers import make as m\n    return m(n)", "def make(n): return {}"),
        ("import helpers\ndef small(n): return TABLE['a'](n)\nTABLE = {}", "import nets_b\nnets_b.TABLE['a'] = {}"),
        ("from helpers import build\ndef small(n): return build(n)",
         "KINDS = {{}}\ndef register(f):\n    KINDS[f.__name__] = f\ndef build(n): return KINDS['a'](n)\n"
         "@register\ndef a(n): return {}"),
    ],
)  # fmt: skip
def test_no_way_to_code_is_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, other: str) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nets_b.py").write_text(source)
    prints = []
    for value in ("1", "22"):
        (tmp_path / "helpers.py").write_text(other.format(value))
        prints.append(fingerprint("nets_b:small"))
    assert prints[0] != prints[1]


def test_a_page_that_holds_the_function_changes_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    page = "def train(x): return x\nCELLS = [1]\nif __name__ == '__main__':\n    main(CELLS)\n"
    (tmp_path / "page_c.py").write_text(page)
    first = fingerprint("page_c:train")
    (tmp_path / "page_c.py").write_text(page.replace("[1]", "[1, 2]").replace("main(CELLS)", "main(CELLS, 2)"))
    assert fingerprint("page_c:train") == first


def test_a_package_counts_with_its_init_and_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("print('imported')\n")
    (tmp_path / "pack" / "deep" / "__init__.py").write_text("from .net import small\n")
    (tmp_path / "pack" / "deep" / "net.py").write_text("from .. import sizes\ndef small(n): return sizes.WIDTH\n")
    (tmp_path / "pack" / "sizes.py").write_text("WIDTH = 1\n")
    source = source_of(["pack.deep:small"])
    assert set(source.files) == {"pack/__init__.py", "pack/deep/__init__.py", "pack/deep/net.py", "pack/sizes.py"}
    (tmp_path / "pack" / "__init__.py").write_text("print('imported again')\n")
    assert source_of(["pack.deep:small"]).fingerprint != source.fingerprint


def test_an_installed_package_counts_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(["torchvision.models:resnet18"])
    assert source.files == {}
    monkeypatch.setattr("sweeps.experiment.user_code._version", lambda _: "99")
    assert source_of(["torchvision.models:resnet18"]).fingerprint != source.fingerprint


def test_a_module_that_is_not_here_is_no_source() -> None:
    with pytest.raises(LookupError, match="no module 'nowhere'"):
        source_of(["nowhere:small"])
    assert find_module("types") is None
    assert find_module("sweeps.launch") is None


def test_files_reach_another_folder(files: Path) -> None:
    shipped = shipped_files(["nets_a:small"])
    assert set(shipped) == {"nets_a.py", "layers.py", "tables.py"}
    folder = Path(unpacked(shipped))
    assert folder == Path(unpacked(shipped))
    assert (folder / "layers.py").read_text() == (files / "layers.py").read_text()
    assert unpacked({"nets_a.py": "pass"}) != str(folder)


def test_what_a_page_imports_for_its_cells_reaches_another_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "birds_e").mkdir()
    texts = {
        "page_e.py": "from birds_e import NETS\nCELLS = [*NETS]\ndef train(x): return x\ndef plot(): import broken_e\n",
        "birds_e/__init__.py": "from .nets import NETS\n",
        "birds_e/nets.py": "try:\n    import not_there_at_all\nexcept ImportError:\n    from widths_e import *\n",
        "widths_e.py": "import json, page_e\nNETS = [1]\n",
        "broken_e.py": "def (",
        "another_e.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert set(source_of(["page_e:train"]).files) == {"page_e.py"}
    imported = {name: text for name, text in texts.items() if name not in ("broken_e.py", "another_e.py")}
    assert shipped_files(["page_e:train"]) == imported


def test_module_that_was_edited_is_imported_anew_whoever_asks_for_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.experiment.user_code._version", lambda _: "")
    folder = tmp_path / "folder"
    (folder / "nets_f").mkdir(parents=True)  # a package that is a mere folder
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.syspath_prepend(str(tmp_path / "link"))
    text = "from nets_f import net_f\ndef train(): return 1\ndef baseline(): return 10 * net_f.small()\n"
    (folder / "page_f.py").write_text(text)
    (folder / "nets_f" / "net_f.py").write_text("def small(): return 2\n")

    def answer(name: str) -> object:
        drop_edited([name])
        return load_named(name)()

    assert answer("page_f:train") == 1
    (folder / "nets_f" / "net_f.py").write_text("def small(): return 33\n")
    assert answer("page_f:baseline") == 330
    (folder / "page_f.py").write_text(text.replace("10 *", "100 *"))
    assert answer("page_f:baseline") == 3300
    module = sys.modules["page_f"]
    assert answer("page_f:train") == 1
    assert sys.modules["page_f"] is module


def test_a_name_is_a_module_and_what_it_holds() -> None:
    assert split_name("a.b:c") == ("a.b", "c")
    for wrong in ("a", "a:", ":c", "a:b.c", "a b:c", "a/b:c", ""):
        with pytest.raises(ValueError, match='code is named as "module:function"'):
            split_name(wrong)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import not_there_at_all", r"does not import: ModuleNotFoundError: .*\(bad_d.py, line 1\)"),
        ("def small(", r"does not import: SyntaxError: .*\(bad_d.py, line 1\)"),
        ("raise SystemExit(3)", r"does not import: SystemExit: 3 \(bad_d.py, line 1\)"),
        ("def smal(n): pass", r"bad_d has no 'small'; did you mean 'smal'\?"),
        ("small = 3", "is of type int, and cannot be called"),
    ],
)
def test_code_that_does_not_load_names_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str
) -> None:
    (tmp_path / "bad_d.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bad_d", raising=False)
    with pytest.raises(ValueError, match=f"bad_d:small: .*{sentence}|bad_d:small {sentence}"):
        load_named("bad_d:small")
