"""Commands that the program prints: the parser of its program reads each command that stands in the source.

tests/cli/test_printed_commands_run.py runs them.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import environment
from tests.support.printed_commands import PARSERS, ROOT, Printed, in_text, of_file, parse, printed

# Commands of a page or of a program of ours with words that are known.
PARSED = [command for command in printed() if command.words and command.module.partition(".")[0] in PARSERS]


@pytest.mark.parametrize("command", PARSED, ids=lambda command: command.place)
def test_printed_command_is_one_that_its_parser_reads(command: Printed) -> None:
    parse(command.module, command.words)


SOURCE = '''
def told(command, where, words, options):
    """Run `python -m sweeps list`."""
    print(f"next {command.again()}, {command.verb(*words)} or {python_command('sweeps', *words)}")
    print(prepare_command("cifar10", where), shlex.join(["rm", where]))
    print(f"or: {python} -m sweeps status X; or ray up --restart-only FILE")
    return options.verb(options), python_command("sweeps")
'''


def test_commands_of_each_kind_are_found(tmp_path: Path) -> None:
    file = tmp_path / "source.py"
    file.write_text(SOURCE)
    found = [(command.place.removeprefix(f"{file} told "), command.first) for command in of_file(file)]
    assert sorted(found, key=lambda pair: pair[1]) == [
        ("again", 4), ("sweeps", 4), ("sweeps", 4), ("crelu_data prepare cifar10", 5), ("rm", 5),
        ("sweeps status X", 6), ("ray up --restart-only FILE", 6),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["python -m crelu_data prepare writes it", "python -m sweeps reconcile sends them", "python -m sweeps stauts X",
     "python -m sweeps report --of X", "python -m crelu_data push"],
)  # fmt: skip
def test_command_that_would_not_run_is_noticed(text: str) -> None:
    ((module, words),) = in_text(text)
    with pytest.raises(SystemExit):
        parse(module, words)


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
