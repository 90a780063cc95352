"""Commands that the program prints: each, wherever the source has it, is read by the parser that it is for."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from crelu_data.__main__ import _parser as data_parser
from crelu_models.__main__ import parser as models_parser
from sweeps.__main__ import main
from sweeps.__main__ import parser as verb_parser
from sweeps.cli.options import parser as page_parser
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.store.ledger import Ledger
from tests.support.sweeps import CRELU, Made, make

ROOT = Path(__file__).parents[2]
ROOMS = ("sweeps", "data", "crelu_models")
SIGNS = ("python -m ", '"-m"', ".verb(", ".again(")  # a file that prints a command contains one
VALUE = "‹3›"  # stands for what is filled in when a command is printed
FILLED = {"option": f" --source {VALUE}"}  # a part of a command that is an option already
COMMAND = re.compile(r"python -m ((?:sweeps|crelu_data|crelu_models)\b[\w.‹›]*)(.*)", re.DOTALL)
# What may follow a verb: an option, what is filled in, and a word that stands for the reader's own.
PART = re.compile(r"--[\w-]+(=\S+)?|\S*‹3›\S*|[A-Z][A-Z_.]*")
PARSERS = {"sweeps": verb_parser, "crelu_data": data_parser, "crelu_models": models_parser}


class Printed(NamedTuple):
    """One command in the source: where, its module and its words."""

    place: str
    module: str
    words: tuple[str, ...]


def rendered(node: ast.expr) -> str | None:
    """Return a text of the source with a stand-in for each value in it; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (rendered(part) if isinstance(part, ast.Constant) else FILLED.get(ast.unparse(part.value), VALUE)
                 for part in node.values if isinstance(part, ast.Constant | ast.FormattedValue))  # fmt: skip
        return "".join(part or "" for part in parts)
    return None


def in_text(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the commands in a text: the program, its verb, and what may follow one, up to a word of the sentence."""
    for part in re.split(r"(?=python -m )", text):
        if match := COMMAND.match(part):
            words = re.sub(r"[;)`'\"]", " ", match[2]).split()
            if not words:  # the name of a program
                continue
            verb = words[:1] if match[1] in PARSERS else []
            follow = words[len(verb) :]
            end = next((i for i, word in enumerate(follow) if not PART.fullmatch(word)), len(follow))
            yield match[1], (*verb, *follow[:end])


def in_node(node: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the commands of a text, of a list of words, and of a call that makes one."""
    if isinstance(node, ast.expr) and (text := rendered(node)) is not None:
        yield from in_text(text)
    if isinstance(node, ast.List):  # words that stand behind a star are options, or unknown
        words = [rendered(word) or VALUE for word in node.elts if not isinstance(word, ast.Starred)]
        module, *rest = words[words.index("-m") + 1 :] if "-m" in words else [""]
        if module in PARSERS and rest:
            yield module, tuple(rest)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        module = {"verb": "sweeps", "again": "sweeps.cifar_width"}.get(node.func.attr, "")
        if module and rendered(node.args[0]) is not None:
            yield module, tuple(rendered(argument) or VALUE for argument in node.args)


@cache
def printed() -> tuple[Printed, ...]:
    """Return the commands of all source files, those of docstrings and of a parser's own name left out."""
    commands = []
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        source = path.read_text()
        if not any(sign in source for sign in SIGNS):
            continue
        nodes = list(ast.walk(ast.parse(source)))
        left_out = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        left_out |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if id(node) not in left_out:
                for module, words in in_node(node):
                    place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                    commands.append(Printed(place, module, words))
    return tuple(commands)


def parse(module: str, words: tuple[str, ...]) -> None:
    """Let the parser of a module read the words; SystemExit where it refuses them."""
    filled = [re.sub(rf"{VALUE}|^[A-Z]$", "3", word) for word in words]
    if module in PARSERS:
        PARSERS[module]().parse_args(filled)
    else:
        page_parser(module.removeprefix("sweeps."), "").parse_args(filled)


@pytest.mark.parametrize("command", printed(), ids=lambda command: f"{command.place} {' '.join(command.words)}")
def test_printed_command_is_one_that_its_parser_reads(command: Printed) -> None:
    parse(command.module, command.words)


def test_commands_are_gathered_from_all_that_print_some() -> None:
    files = {command.place.partition(":")[0] for command in printed()}
    assert len(printed()) >= 20
    assert files >= {"data/availability.py", "data/transfer.py", "sweeps/cli/summary.py", "sweeps/report/build.py",
                     "sweeps/ops/machine_check.py", "sweeps/cli/dry_run.py"}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["python -m crelu_data prepare writes it", "python -m sweeps reconcile sends them", "python -m sweeps stauts X",
     "python -m sweeps report --of X", "python -m crelu_data push"],
)  # fmt: skip
def test_command_that_would_not_run_is_noticed(text: str) -> None:
    ((module, words),) = in_text(text)
    with pytest.raises(SystemExit):
        parse(module, words)


def test_make_is_asked_for_what_it_makes() -> None:
    source = "".join(path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    asked = set(re.findall(r": make ([a-z-]+)", source))
    assert asked
    assert asked <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_command_for_a_capsule_runs_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(Ledger.in_output(str(tmp_path)), Sweep("s", "paper", (CRELU,), Protocol()), lambda _: Made({TOP1: 9.0}))
    words = ["export", "s", str(tmp_path / "a capsule.zip"), "--output", str(tmp_path)]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["sweeps", *words])
        assert main() == 0
        lines = capsys.readouterr().out.splitlines()
        words = shlex.split(lines[-1].partition(": ")[2])[3:] or words
    assert (tmp_path / "reports" / "s" / "report.html").exists()
