"""Wording of sentences for people: numbers of things, and how times compare."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """Return a number of things: 1 cell, 2 cells, 3 studies."""
    return f"{n:,} {plural(n, noun)}"


def plural(n: int, noun: str) -> str:
    """Return a noun as it stands behind a number: cell behind 1, cells behind 2, studies and classes behind 3."""
    if n == 1:
        return noun
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{noun[:-1]}ies"
    hisses = noun.endswith(("s", "ch", "sh", "x")) and noun != "epoch"
    return f"{noun}es" if hisses else f"{noun}s"


def against_forecast(actual: float, forecast: float) -> str:
    """Return how a time compares with its forecast: in percent, above twice as long as a factor."""
    times = actual / forecast
    if times <= 2:
        return f"{times - 1:+.0%}"
    return f"{times:.{1 if times < 10 else 0}f} times as long"
