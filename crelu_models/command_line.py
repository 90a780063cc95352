"""Parser of command lines whose errors are one sentence, with the nearest word that exists; shells complete them."""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import metadata
from typing import NoReturn

FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk, or a user's part of it, that has no room
_CHOICE = re.compile(
    r"argument (?P<name>.*): invalid choice: '?(?P<word>[^']*)'? \(choose from (?P<known>.*)\)", re.DOTALL
)


class Parser(argparse.ArgumentParser):
    """ArgumentParser that knows --version, and that ends with 2 and one sentence where it cannot read a line."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse a command line, or answer a shell that asks how it may go on, and leave."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_empty(words)
        return super().parse_args(words, namespace)

    def _refuse_empty(self, words: Sequence[str]) -> None:
        """End with 2 where a word is empty: a shell gives such a one for a variable that it does not know."""
        for before, word in itertools.pairwise([self.prog, *words]):
            option, equals, value = word.partition("=")
            if not word or (word.startswith("--") and equals and not value):
                empty = option or f"the word behind {before}"
                self.error(f"{empty} is empty: leave it out, or look whether the shell knows its variable")

    def error(self, message: str) -> NoReturn:
        """Print the sentence, with the nearest option or word, and how to see all of them."""
        command = re.sub(r" \[-h\].*", "", self.prog)
        print(f"error: {_plain(message, self._known())}; all options: {command} --help", file=sys.stderr)
        raise SystemExit(2)

    def _known(self) -> list[str]:
        """Return the options of this command and of its verbs."""
        names = [name for name in self._option_string_actions if name.startswith("--")]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += [name for verb in action.choices.values() for name in verb._option_string_actions]
        return sorted({name for name in names if name.startswith("--")})


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version, which prints the version that is installed."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")


class _Version(argparse.Action):
    """Action that prints the version; it is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and leave."""
        print(f"crelu-sweeps {version()}")
        parser.exit()


def version() -> str:
    """Return the version of the project that is installed here, "not installed" where none is."""
    try:
        return metadata.version("crelu-sweeps")
    except metadata.PackageNotFoundError:
        return "not installed"


def _plain(message: str, options: Sequence[str]) -> str:
    """Return argparse's message as a sentence with the nearest word that exists."""
    if message.startswith("unrecognized arguments: "):
        words = message.removeprefix("unrecognized arguments: ")
        word = words.split()[0]
        if not word.startswith("-"):
            return f"{words} is one word too many"
        near = get_close_matches(word.partition("=")[0], options, 1, 0.5)
        return f"there is no option {word.partition('=')[0]}" + (f"; did you mean {near[0]}?" if near else "")
    match = _CHOICE.fullmatch(message)
    if match is None:
        return message
    known = [word.strip(" '") for word in match["known"].split(",")]
    near = get_close_matches(match["word"], known, 1, 0.5)
    every = ", ".join(filter(None, known))
    hint = f"did you mean {near[0]}?" if near else f"there are: {every}" if every else "there are none here"
    return f"{match['name']}: there is no {match['word']!r}; {hint}"


def python_command(module: str, *words: str) -> str:
    """Return the command that runs a module, for a shell: with the interpreter as it was typed, each word quoted."""
    return shlex.join([sys.orig_argv[0], "-m", module, *words])


def sentence(error: Exception) -> str:
    """Return an error as a sentence: of a file its name and what is wrong, without the system's number.

    Of a full disk it says what to do.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        mend = "; make room there, then the same command goes on" if error.errno in FULL else ""
        return f"{os.fsdecode(error.filename)}: {error.strerror}{mend}"
    return str(error)


def positive_int(word: str) -> int:
    """Return a whole number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {word!r}")
    return int(word)


def nonnegative_int(word: str) -> int:
    """Return a whole number of at least 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number of at least 0, not {word!r}")
    return int(word)
