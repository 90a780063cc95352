"""Commands that the program prints: each, wherever the source has it, is read by the parser that it is for."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from crelu_data.__main__ import _files
from crelu_data.__main__ import _parser as data_parser
from crelu_data.availability import missing_message
from crelu_data.changes import check_whole
from crelu_data.datasets import IMAGENET, beton_path, data_dir, dataset, read_sidecar
from crelu_data.transfer import pull, push
from crelu_data.write import prepare
from crelu_models.__main__ import parser as models_parser
from crelu_models.model import Model
from sweeps.__main__ import main
from sweeps.__main__ import parser as verb_parser
from sweeps.analysis.weights import LoadedNet, open_sample
from sweeps.cli.options import parser as page_parser
from sweeps.cli.verbs import show_pages
from sweeps.experiment.metrics import TOP1
from sweeps.experiment.model_facts import seen_by
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.experiment.trial import Trial
from sweeps.ops.machine_check import Request, pictures
from sweeps.store.ledger import Ledger
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.splits import open_splits
from tests.support.commands import environment
from tests.support.sweeps import CRELU, Made, make

ROOT = Path(__file__).parents[2]
ROOMS = ("sweeps", "data", "crelu_models")
SIGNS = ("python -m ", '"-m"', ".verb(", ".again(", "_command(")  # a file that prints a command contains one
VALUE = "‹3›"  # stands for what is filled in when a command is printed
FILLED = {"option": f" --source {VALUE}"}  # a part of a command that is an option already
COMMAND = re.compile(r"python -m ((?:sweeps|crelu_data|crelu_models)\b[\w.‹›]*)(.*)", re.DOTALL)
# What may follow a verb: an option, what is filled in, and a word that stands for the reader's own.
PART = re.compile(r"--[\w-]+(=\S+)?|\S*‹3›\S*|[A-Z][A-Z_.]*")
# Functions that make a command of their arguments, and the words before those.
MAKERS: dict[str, tuple[str, ...]] = {"python_command": (), "prepare_command": ("crelu_data", "prepare")}
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
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
        words = [rendered(word) or VALUE for word in node.args if not isinstance(word, ast.Starred)]
        module, *rest = [*MAKERS[node.func.id], *words]
        if rest:
            yield module, tuple(rest if node.func.id == "python_command" else rest[:2])
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


def typed(text: str) -> list[str]:
    """Return the words of the command in a sentence as a shell has them; the words of the sentence end it."""
    start = text.index(f"{shlex.quote(sys.orig_argv[0])} -m ")
    return shlex.split(re.split(r"; |   \(| (?:writes|adds|replaces|copies|prepares) ", text[start:])[0])


def refusal(work: Callable[[], object]) -> str:
    """Return the sentence of what raises ValueError."""
    with pytest.raises(ValueError, match=r".") as caught:
        work()
    return str(caught.value)


FOLDER = "folder:/my pictures/a & b"
TINY = "synthetic:train=20,test=10"


def half(where: Path) -> None:
    """Prepare a set and take a split of it away."""
    prepare(TINY, where, writer="native", workers=1)
    for suffix in (".beton", ".json"):
        beton_path(TINY, "test", where).with_suffix(suffix).unlink()


def unlike(where: Path) -> str:
    """Return the sentence where storage and folder have other pictures."""
    shared = where / "shared"
    prepare(TINY, where, writer="native", workers=1)
    push(where, str(shared))
    sidecar = beton_path(TINY, "test", shared).with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace(read_sidecar(sidecar).fingerprint, "0" * 64))
    return refusal(lambda: pull(str(shared), where, [TINY], pictures=False))


def lacking(where: Path) -> str:
    half(where)
    return refusal(lambda: push(where, f"{where}/shared"))


def without_a_split(where: Path) -> str:
    half(where)
    return refusal(lambda: check_whole(TINY, where))


# What prints a command about a folder of pictures: a function of the folder that returns the sentence.
SENTENCES: dict[str, Callable[[Path], str]] = {
    "not prepared": lambda where: missing_message("cifar10", [where / "x"], where),
    "imagenet": lambda where: missing_message("imagenet", [where / "x"], where),
    "folder": lambda where: refusal(lambda: dataset(FOLDER, where)),
    "no sidecar": lambda where: refusal(lambda: read_sidecar(where / "x.json")),
    "verify": lambda where: refusal(lambda: _files(data_parser().parse_args(
        ["verify", "cifar10", "--data-dir", str(where)]))),
    "nothing to push": lambda where: refusal(lambda: push(where, f"{where}/shared", [FOLDER])),
    "half to push": lacking,
    "half": without_a_split,
    "other pictures": unlike,
    "doctor": lambda where: next(pictures(Request(where, str(where)))).sentence,
    "side": lambda where: refusal(lambda: seen_by(
        Model("a:b", size=9), dataclasses.replace(IMAGENET, name=FOLDER), where)),
    "weights": lambda where: refusal(lambda: open_sample(
        LoadedNet("w", "none", None, "cifar10", {}), RuntimeConfig("", str(where)), 0, 0)),
    "trial": lambda where: refusal(lambda: open_splits(Trial(CRELU), RuntimeConfig("", str(where)))),
}  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_command_about_pictures_is_one_that_a_shell_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path / "my images"))
    where = tmp_path / "my data"
    where.mkdir()
    words = typed(SENTENCES[name](where))
    assert words[:3] == [sys.orig_argv[0], "-m", "crelu_data"]
    asked = data_parser().parse_args(words[3:])
    assert data_dir(asked.data_dir) == where
    if name in ("folder", "nothing to push", "side"):
        assert asked.name == FOLDER
    if name == "imagenet":
        assert asked.source == str(tmp_path / "my images")


def test_storage_without_pictures_is_named_in_the_command_that_fills_it(tmp_path: Path) -> None:
    shared = tmp_path / "my shared"
    shared.mkdir()
    asked = data_parser().parse_args(typed(refusal(lambda: pull(str(shared), tmp_path, [FOLDER])))[3:])
    assert (asked.target, asked.names) == (str(shared), [FOLDER])


def test_list_names_the_command_of_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    show_pages(verb_parser().parse_args(["list"]))
    assert typed(capsys.readouterr().out) == [sys.orig_argv[0], "-m", "sweeps.NAME"]


PAGE = """from crelu_models import S2
from sweeps import ALLCONV, Cell, main

main("mine", "Is it so?", [Cell("a", S2, "synthetic", ALLCONV)])
"""


@pytest.mark.parametrize(
    "words",
    [["my pages/mine.py"], ["-m", "elsewhere.mine"], ["-m", "sweeps"], ["-m", "sweeps", "status"], ["-m", "crelu_data"],
     ["-m", "crelu_models", "places"], ["-m", "sweeps.analysis.theory"], ["-m", "sweeps.cifar_width"]],
    ids=" ".join,
)  # fmt: skip
def test_command_for_all_options_runs_where_it_is_printed(words: list[str], tmp_path: Path) -> None:
    for folder in ("my pages", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PAGE)
    (tmp_path / "my python").symlink_to(sys.executable)
    command = ["./my python", *words]
    user = environment(tmp_path, PYTHONPATH=":".join([str(ROOT), *filter(None, sys.path)]))
    ended = subprocess.run([*command, "--sedes", "3"], cwd=tmp_path, env=user, capture_output=True, text=True)
    assert ended.returncode == 2
    printed_command = ended.stderr.strip().rpartition("all options: ")[2]
    # Of a verb they are those of the program, which lists the verbs.
    program = command[:3] if "-m" in words else command
    assert shlex.split(printed_command) == [*program, "--help"]
    shown = subprocess.run(printed_command, shell=True, cwd=tmp_path, env=user, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("usage: './my python' ")
