"""Types of command-line options that commands of several rooms share."""

from __future__ import annotations

import argparse


def nonnegative_int(word: str) -> int:
    """Return a whole number of at least 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number of at least 0, not {word!r}")
    return int(word)
