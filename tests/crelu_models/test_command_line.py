"""Command lines that cannot be read end with 2 and one sentence, with the nearest word that exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_data.__main__ import main as data_main
from crelu_models.__main__ import parser as models_parser
from sweeps.__main__ import parser as verb_parser
from sweeps.analysis.theory import arguments as theory_parser
from sweeps.cli.options import parser as page_parser
from sweeps.cli.verbs import pages

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sead", "3"], "there is no option --sead; did you mean --seeds?"),
        (["--sead=3,4,5,6,7,8,9"], "there is no option --sead; did you mean --seeds?"),
        (["--zzzzzz"], "there is no option --zzzzzz"),
        (["extra", "words"], "extra words is one word too many"),
        (["--profile", "mni"], "--profile: there is no 'mni'; did you mean mini?"),
        (["--profile", "x"], "--profile: there is no 'x'; there are: paper, mini, demo"),
        (["--seeds", "x"], "argument --seeds: a whole number of at least 1, not 'x'"),
        (["--seeds"], "argument --seeds: expected one argument"),
    ],
)
def test_an_odd_word_is_one_sentence_with_the_nearest(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        page_parser("cifar_width", "").parse_args(words)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"error: {sentence}; all options: python -m sweeps.cifar_width --help\n"


def test_verbs_and_their_options_have_the_nearest_too(capsys: pytest.CaptureFixture[str]) -> None:
    for parse, words, sentence in (
        (verb_parser().parse_args, ["statsu"], "VERB: there is no 'statsu'; did you mean status?"),
        (models_parser().parse_args, ["place"], "VERB: there is no 'place'; did you mean places?"),
        (verb_parser().parse_args, ["status", "--wacth"], "there is no option --wacth; did you mean --watch?"),
        (data_main, ["prepare", "cifar10", "--qality", "3"], "there is no option --qality; did you mean --quality?"),
        (theory_parser().parse_args, ["--ouput", "x"], "there is no option --ouput; did you mean --output?"),
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            parse(words)
        said = capsys.readouterr().err
        assert said.startswith(f"error: {sentence}; all options: ")
        assert re.search(r"python\S* -m \S+ --help$", said)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (verb_parser().parse_args, page_parser("cifar_width", "").parse_args, data_main):
        with pytest.raises(SystemExit, match=r"^0$"):
            parse(["--version"])
        assert capsys.readouterr().out.startswith("crelu-sweeps 0.")


@pytest.mark.parametrize(
    ("module", "line", "words"),
    [
        ("sweeps", "crelu-sweeps re", ["reconcile", "report"]),
        ("sweeps", "crelu-sweeps report --wa", ["--watch "]),
        ("sweeps.cifar_width", "page --profile ", ["paper", "mini", "demo"]),
        ("crelu_data", "data prep", ["prepare "]),
    ],
)
def test_shell_completes_verbs_options_and_their_values(
    module: str, line: str, words: list[str], tmp_path: Path
) -> None:
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"),
    }  # fmt: skip
    environment = os.environ | asked
    subprocess.run([sys.executable, "-m", module], env=environment, stdin=subprocess.DEVNULL, timeout=60, check=True)
    assert (tmp_path / "words").read_text().split("\n") == words


def test_commands_and_pages_have_the_mark_that_a_shell_looks_for_before_it_asks_python() -> None:
    files = [ROOT / "sweeps" / f"{page}.py" for page in pages()]
    for path in (*files, *(ROOT / name / "__main__.py" for name in ("sweeps", "data", "crelu_models"))):
        assert "PYTHON_ARGCOMPLETE_OK" in path.read_text()[:1024]
