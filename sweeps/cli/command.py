"""Command of a sweep as it was typed, and the commands that may follow it: each runs as it is printed."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Flags that ask for something once: repeated, they would undo what was done.
ONCE = ("--fresh", "--retry-failed", "--resume", "--yes")
SECRET = "--notify"  # no printed command has its address: readers could post there


@dataclass(frozen=True)
class Command:
    """Command line of a sweep: the words that call its page, and the arguments behind them."""

    program: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @classmethod
    def typed(cls, module: str) -> Command:
        """Return the command of this process, whose page is `module`."""
        arguments = tuple(sys.argv[1:])
        return cls(program(module, sys.orig_argv, arguments), without(arguments, SECRET, 1))

    def again(self, *more: str, drop: str = "") -> str:
        """Return the command that goes on from here, with a further flag in place of the same one, without `drop`."""
        arguments = self.arguments
        for flag in (*ONCE, drop):
            arguments = without(arguments, flag, 0)
        if more:
            arguments = without(arguments, more[0], len(more) - 1)
        if "retrain" in _values(arguments, "--stale"):
            arguments = without(arguments, "--stale", 1)
        return shlex.join([*self.program, *arguments, *more])

    @property
    def page(self) -> str:
        """Return the words that call the page, as they are typed."""
        return shlex.join(self.program)

    def verb(self, *words: str) -> str:
        """Return a command of `python -m sweeps`, by the same interpreter."""
        return shlex.join([*self.program[:1], "-m", "sweeps", *words])


def program(module: str, called: Sequence[str], arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the words that call a page: those before the arguments, -m NAME or FILE.py, else python -m MODULE."""
    before = tuple(called[: len(called) - len(arguments)])
    is_page = before[-2:-1] == ("-m",) or "".join(before[-1:]).endswith(".py")
    if is_page and tuple(called[len(before) :]) == tuple(arguments):
        return before
    return (*called[:1], "-m", module)


def without(arguments: Sequence[str], flag: str, count: int) -> tuple[str, ...]:
    """Return arguments without a flag and the `count` words behind it, also where it is written FLAG=WORD."""
    remaining: list[str] = []
    skip = 0
    for word in arguments:
        if skip:
            skip -= 1
        elif word == flag:
            skip = count
        elif not (count and word.startswith(f"{flag}=")):
            remaining.append(word)
    return tuple(remaining)


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """Return the words that stand behind a flag, each time it is given."""
    behind = [after for word, after in itertools.pairwise(arguments) if word == flag]
    return behind + [word.removeprefix(f"{flag}=") for word in arguments if word.startswith(f"{flag}=")]
