"""Commands that the program prints: where in its source each is made, and which of them are made while a test runs."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest

from crelu_data.__main__ import _parser as data_parser
from crelu_models.__main__ import parser as models_parser
from sweeps.__main__ import parser as verb_parser
from sweeps.cli.options import parser as page_parser

ROOT = Path(__file__).parents[2]
ROOMS = ("sweeps", "data", "crelu_models")
VALUE = "‹3›"  # stands for what is filled in when a command is printed
FILLED = {"option": f" --source {VALUE}"}  # a part of a command that is an option already
COMMAND = re.compile(r"(?:python|‹3›) -m ((?:sweeps|crelu_data|crelu_models)\b[\w.‹›]*)(.*)", re.DOTALL)
# What may follow a verb: an option, what is filled in, and a word that stands for the reader's own.
PART = re.compile(r"--[\w-]+(=\S+)?|\S*‹3›\S*|[A-Z][A-Z_.]*")
# Commands of other programs that stand in a text as they are printed.
OTHER = re.compile(
    r"\b(?:apt-get install|pip install|ray (?:up|down|start|exec)|mlflow (?:db|gc|ui)|chmod|ssh)"
    r"(?: (?:-[\w-]+|[A-Z]+|'[^']+'|[a-z][\w-]*))+"
)
# Functions that make a command of their arguments, and the words before those.
MAKERS: dict[str, tuple[str, ...]] = {
    "python_command": (),
    "prepare_command": ("crelu_data", "prepare"),
    "fresh_command": ("crelu_data", "prepare", VALUE, "--fresh"),
    "reconcile_command": ("sweeps", "reconcile", VALUE),
    "report_command": ("sweeps", "report", VALUE),
    "setup_command": ("", "make", "-B", "setup"),
}
METHODS = {"verb": "sweeps", "again": "sweeps.cifar_width"}  # of the class Command
PARSERS = {"sweeps": verb_parser, "crelu_data": data_parser, "crelu_models": models_parser}


class Printed(NamedTuple):
    """One command in the source: its place and lines, its module (empty for another program) and its known words.

    A place is a file, a function there, and the words of the command that stand in the source. `text` is a command that
    stands there whole.
    """

    place: str
    file: str
    first: int
    last: int
    module: str
    words: tuple[str, ...]
    text: str = ""


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
    for part in re.split(r"(?=python -m |‹3› -m )", text):
        if match := COMMAND.match(part):
            words = re.sub(r"[;)`'\"]", " ", match[2]).split()
            if not words:  # the name of a program
                continue
            verb = words[:1] if match[1] in PARSERS else []
            follow = words[len(verb) :]
            end = next((i for i, word in enumerate(follow) if not PART.fullmatch(word)), len(follow))
            yield match[1], (*verb, *follow[:end])


def in_call(node: ast.Call) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the command that a call makes: its module, and those of its words that are known."""
    function = node.func
    known = [word for word in node.args if not isinstance(word, ast.Starred)]
    words = [rendered(word) or VALUE for word in known]
    if isinstance(function, ast.Name) and function.id == "python_command":
        if len(node.args) > 1 or words[0] == "sweeps.NAME":  # else the name of a program
            yield words[0], tuple(words[1:])
    elif isinstance(function, ast.Name) and function.id in MAKERS:
        module, *rest = MAKERS[function.id]
        yield module, (*rest, *words[:1]) if function.id == "prepare_command" else tuple(rest)
    elif isinstance(function, ast.Attribute) and function.attr in METHODS and "options" not in ast.unparse(function):
        yield METHODS[function.attr], tuple(words)
    elif ast.unparse(function) == "shlex.join" and isinstance(node.args[0], ast.List):
        listed = [word for word in node.args[0].elts if not isinstance(word, ast.Starred)]
        yield "", tuple(rendered(word) or VALUE for word in listed)


def place_of(file: str, function: str, node: ast.AST, module: str, words: tuple[str, ...]) -> str:
    """Return what a command is called in the tests: its file, its function, and its words in the source."""
    said = [word for word in words if word != VALUE]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "again":
        dropped = [f"without {rendered(keyword.value)}" for keyword in node.keywords]
        return " ".join([file, function, "again", *said, *dropped])
    return " ".join(filter(None, [file, function, module, *said]))


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield each node with the name of the function it stands in; functions that only make commands are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in (*MAKERS, "Command"):
            continue
        inner = node.name if isinstance(node, ast.FunctionDef) else name
        yield inner, node
        yield from functions(node, inner)


def of_file(path: Path) -> Iterator[Printed]:
    """Yield the commands of a file, those of docstrings and of a parser's own name left out."""
    source = path.read_text()
    file = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    nodes = list(functions(ast.parse(source)))
    left_out = {id(node.value) for _, node in nodes if isinstance(node, ast.Expr)}
    left_out |= {id(part) for _, node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    left_out |= {id(each.value) for _, node in nodes if isinstance(node, ast.Call) for each in node.keywords
                 if each.arg == "prog"}  # fmt: skip
    left_out |= {id(node.args.defaults[0]) for _, node in nodes if isinstance(node, ast.FunctionDef)
                 if node.args.defaults}  # fmt: skip
    for function, node in nodes:
        if id(node) in left_out or not isinstance(node, ast.expr):
            continue
        text = rendered(node)
        found = in_text(text) if text is not None else in_call(node) if isinstance(node, ast.Call) else iter(())
        last = node.end_lineno or node.lineno
        for module, words in found:
            yield Printed(place_of(file, function, node, module, words), file, node.lineno, last, module, words)
        for whole in OTHER.findall(text or ""):
            yield Printed(" ".join(filter(None, [file, function, whole])), file, node.lineno, last, "", (), whole)


@cache
def printed() -> tuple[Printed, ...]:
    """Return the commands of all source files; several of one place are numbered."""
    files = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    found = [command for path in files for command in of_file(path)]
    found.sort(key=lambda command: (command.file, command.first))
    seen: Counter[str] = Counter()
    numbered = []
    for command in found:
        seen[command.place] += 1
        number = f" ({seen[command.place]})" if seen[command.place] > 1 else ""
        numbered.append(command._replace(place=command.place + number))
    return tuple(numbered)


def parse(module: str, words: tuple[str, ...]) -> None:
    """Let the parser of a module read the words; SystemExit where it refuses them."""
    filled = [re.sub(rf"{VALUE}|^[A-Z]$", "3", word) for word in words]
    if module in PARSERS:
        PARSERS[module]().parse_args(filled)
    else:
        page_parser(module.removeprefix("sweeps."), "").parse_args(filled)


class Made(NamedTuple):
    """A command that was made while a test ran, and its place."""

    place: str
    command: str


@contextmanager
def recorded() -> Iterator[list[Made]]:
    """Note each command that is made meanwhile: all are made by shlex.join."""
    made: list[Made] = []
    join = shlex.join

    def noting(words: list[str]) -> str:
        command = join(words)
        made.extend(Made(place, command) for place in _places(sys._getframe(1)))
        return command

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shlex, "join", noting)
        yield made


def _places(frame: FrameType | None) -> Iterator[str]:
    """Yield the places of the source through which a frame was called, the innermost first."""
    while frame is not None:
        for command in printed():
            if command.first <= frame.f_lineno <= command.last and frame.f_code.co_filename.endswith(_tail(command)):
                yield command.place
        frame = frame.f_back


def _tail(command: Printed) -> str:
    """Return how the name of a loaded file ends: the package of the folder `data` is crelu_data."""
    return f"/{command.file}".replace("/data/", "/crelu_data/") if command.file.startswith("data/") else command.file
