"""The README tells the truth: its commands parse, its paths and targets exist, its page is a sweep."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from data.__main__ import _parser as data_parser
from sweeps.__main__ import parser as verb_parser
from sweeps.cli.options import parser
from sweeps.cli.verbs import pages

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LINES = [line.strip().removeprefix("$ ") for kind, block in BLOCKS if not kind for line in block.splitlines()]
INLINE = [
    code for code in re.findall(r"`([^`\n]+)`", README) if re.match(r"(\.venv/bin/)?(python -m|make|mlflow) ", code)
]
# What is run on a cluster's head stands in quotes.
REMOTE = [
    re.sub(r"^ray job submit [-\w ]*-- ", "", line.split("'")[1]) for line in LINES if line.startswith("ray exec ")
]
COMMANDS = sorted({line.partition(" #")[0].strip() for line in [*LINES, *INLINE, *REMOTE]
                   if re.match(r"(\.venv/bin/)?(python -m|make|mlflow) ?", line)})  # fmt: skip
SECTIONS = ("What you get", "`make demo`", "`make test`", "Your GPU", "On a cluster", "Your pictures", "Words",
            "The tree", "Deviations from the paper", "Troubleshooting")  # fmt: skip


def test_readme_has_commands_to_check() -> None:
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command: str) -> None:
    words = shlex.split(command)
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= targets
    elif program == "mlflow":
        assert words[1:3] == ["ui", "--backend-store-uri"]
    else:
        module, arguments = words[2], words[3:]
        if module == "data":
            data_parser().parse_args(arguments)
        elif module.startswith("sweeps.analysis."):
            import_module(module).arguments().parse_args(arguments)
        elif module == "sweeps":
            verb_parser().parse_args(arguments)
        else:
            name = module.removeprefix("sweeps.")
            assert name in pages()
            groups = re.findall(r"also=\{\"(\w+)\"", (ROOT / "sweeps" / f"{name}.py").read_text())
            parser(name, "", groups).parse_args(arguments)


def test_sections_come_in_their_order() -> None:
    found = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert [section for section in found if section in SECTIONS] == list(SECTIONS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))))
def test_picture_exists(path: str) -> None:
    assert (ROOT / path).is_file()


def test_tree_names_what_is_there() -> None:
    (tree,) = (block for kind, block in BLOCKS if not kind and block.startswith("crelu_models/"))
    for name in re.findall(r"^ *(\S+/)", tree, re.MULTILINE):
        assert (ROOT / name).is_dir() or (ROOT / "sweeps" / name).is_dir(), name


def test_page_of_ones_own_is_a_sweep() -> None:
    (page,) = (block for kind, block in BLOCKS if kind == "python")
    found: dict[str, object] = {"__name__": "sweeps.leaky"}
    exec(compile(page, "README", "exec"), found)
    cells = found["CELLS"]
    assert isinstance(cells, tuple)
    assert len({cell.key for cell in cells}) == 4
