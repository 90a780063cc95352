"""Wording for people: numbers of things, names that do not exist, how times compare, and labels that fit."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final

ELLIPSIS: Final = "…"


def count(n: int, noun: str) -> str:
    """Return a number of things: 1 cell, 2 cells, 3 studies."""
    return f"{n:,} {plural(n, noun)}"


def is_line(text: object) -> bool:
    """Return whether this is a line of text with a letter that is seen, and without control characters."""
    if not isinstance(text, str) or not text.strip():
        return False
    return text.splitlines() == [text] and all(unicodedata.category(sign) != "Cc" for sign in text)


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


def question_of(docstring: str | None) -> str:
    """Return a page's question: the first line of its docstring, and where a sentence goes on, that to its end."""
    paragraph = (docstring or "").strip().partition("\n\n")[0]
    first = paragraph.partition("\n")[0].rstrip()
    words = " ".join(paragraph.split())
    end = re.compile(r"[.?!](?=\s|$)").search(words, max(0, len(" ".join(first.split())) - 1))
    return words[: end.end()] if end else words


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


def shortened(text: str, width: int, width_of: Callable[[str], int] = len) -> str:
    """Return a text of at most this width: whole words from its beginning, then an ellipsis."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) >= width:
        head, space, _ = text.rpartition(" ")
        text = head if space else text[: max(0, len(text) - 1)]
    return f"{text.rstrip(' ,;:')}{ELLIPSIS}"


def short_labels(labels: Sequence[str], width: int, width_of: Callable[[str], int] = len) -> dict[str, str]:
    """Return labels of at most this width: without the words that all have, then without words in the middle."""
    if all(width_of(label) <= width for label in labels):
        return {label: label for label in labels}
    shared = set.intersection(*(set(label.split()) for label in labels)) if len(labels) > 1 else set()
    bare = {label: " ".join(word for word in label.split() if word not in shared) for label in labels}
    if len(set(bare.values())) < len(set(labels)) or not all(bare.values()):
        bare = {label: label for label in labels}
    return {label: _without_middle(text, width, width_of) for label, text in bare.items()}


def _without_middle(label: str, width: int, width_of: Callable[[str], int]) -> str:
    """Return a label of at most this width: its last words, and of its first ones what has room."""
    if width_of(label) <= width:
        return label
    words = label.split()
    for tail in range(len(words) - 1, 0, -1):
        for head in range(len(words) - tail - 1, -1, -1):
            text = " ".join([*words[:head], ELLIPSIS, *words[-tail:]])
            if width_of(text) <= width:
                return text
    return shortened(label, width, width_of)
