"""Wording of sentences for people: numbers of things, and how times compare."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """Return a number of things: 1 cell, 2 cells, 3 studies."""
    return f"{n:,} {plural(n, noun)}"


def plural(n: int, noun: str) -> str:
    """Return a noun as it stands behind a number: cell behind 1, cells behind 2, studies behind 3."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return noun if n == 1 else many


def against_forecast(actual: float, forecast: float) -> str:
    """Return how a time compares with its forecast: in percent, above twice as long as a factor."""
    times = actual / forecast
    if times <= 2:
        return f"{times - 1:+.0%}"
    return f"{times:.{1 if times < 10 else 0}f} times as long"
