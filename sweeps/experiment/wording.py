"""Wording of sentences for people: numbers of things, names that do not exist, and how times compare."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


# Names that other libraries have for fields of a cell.
SYNONYMS = {
    "learning_rate": "recipe.lr",
    "batch_size": "recipe.batch",
    "optimizer": "recipe.optimiser",
    "l2": "recipe.weight_decay",
    "num_epochs": "recipe.epochs",
    "max_epochs": "recipe.epochs",
    "grad_clip": "recipe.clip_norm",
    "data": "dataset",
}


def unknown_name(kind: str, name: str, known: Iterable[str], where: str) -> str:
    """Return the sentence for a name that does not exist, with the nearest one that does."""
    names = {known_name.lower(): known_name for known_name in known}
    if not names:
        return f"{where} has no {kind} {name!r}: it has none yet"
    meant = SYNONYMS.get(name.lower().rpartition(".")[2], "")
    near = [meant] if meant in names else difflib.get_close_matches(name.lower(), names, 1, 0.4)
    hint = f"did you mean {names[near[0]]!r}?" if near else f"there are: {', '.join(names.values())}"
    return f"{where} has no {kind} {name!r}; {hint}"


def against_forecast(actual: float, forecast: float) -> str:
    """Return how a time compares with its forecast: in percent, above twice as long as a factor."""
    times = actual / forecast
    if times <= 2:
        return f"{times - 1:+.0%}"
    return f"{times:.{1 if times < 10 else 0}f} times as long"
