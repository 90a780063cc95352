"""Titles of sweeps: what a sweep changes of its page, and which data it trains on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import suppress

from sweeps.experiment.profiles import file_name
from sweeps.experiment.sweep import Sweep, sweep_from_json
from sweeps.experiment.trial import Cell
from sweeps.store.ledger import Ledger

LONGEST = 60  # letters of a variant's name; a longer one is cut and ends with a hash
LONGEST_TITLE = 180  # bytes of a sweep's title: names of files, with what stands around it, have 255 at most


def fields_name(cells: Sequence[Cell], changed: Sequence[Cell], assignments: Sequence[str]) -> str:
    """Return the fields of --set that have changed a cell as a part of a title, as recipe.epochs=10; empty for none."""
    values: dict[str, str] = {}
    for name, word in {name: word for name, _, word in (text.partition("=") for text in assignments)}.items():
        if name == "net.final_activation":
            if any(after.net != before.net for after, before in zip(changed, cells, strict=True)):
                values[name] = word
        elif name not in ("dataset", "recipe.name"):  # a recipe's name is no part of what a trial is
            field = name.removeprefix("recipe.")
            pairs = [(getattr(a.recipe, field), getattr(b.recipe, field)) for a, b in zip(changed, cells, strict=True)]
            if any(after != before for after, before in pairs):
                value = pairs[0][0]
                values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    words = file_name(",".join(f"{name}={values[name]}" for name in sorted(values)))
    if len(words) <= LONGEST:
        return words
    return f"{words[: LONGEST - 7]}-{hashlib.sha256(words.encode()).hexdigest()[:6]}"


def titled(sweep: Sweep, parts: Sequence[str], other: str, ledger: Ledger) -> Sweep:
    """Return the sweep with these parts of a title, the name of its data first, and a hash where the title is taken.

    `other` is the data set that it trains on in place of the page's, empty for none.
    """
    named = dataclasses.replace(sweep, variant="-".join(filter(None, parts)))
    if not other:
        return named
    digest = hashlib.sha256(other.encode()).hexdigest()[:6]
    hashed = dataclasses.replace(sweep, variant="-".join(filter(None, (parts[0], digest, *parts[1:]))))
    return hashed if _is_taken(named, hashed, ledger) else named


def _is_taken(sweep: Sweep, hashed: Sweep, ledger: Ledger) -> bool:
    """Return whether a sweep of other data has this title, or this sweep has run under its `hashed` one before."""
    with suppress(ValueError):  # what is no plan holds no title
        if ledger.read_json(f"plans/{hashed.title}.json") is not None:
            return True
        declared = ledger.read_json(f"plans/{sweep.title}.json")
        return declared is not None and sweep_from_json(declared).datasets != sweep.datasets
    return False


def has_run_with_folds(sweep: Sweep, ledger: Ledger) -> bool:
    """Return whether a sweep of this title has run with as many folds: an earlier version named none in the title.

    Else they are named: the trainings of so many folds are others than of the page's.
    """
    with suppress(ValueError):  # what is no plan holds no title
        declared = ledger.read_json(f"plans/{sweep.title}.json")
        return declared is not None and sweep_from_json(declared).protocol.folds == sweep.protocol.folds
    return False


def check_length(sweep: Sweep) -> None:
    """Raise ValueError where a sweep's title is too long for names of files."""
    if len(sweep.title.encode()) > LONGEST_TITLE:
        raise ValueError(
            f"the sweep would be called {sweep.title}, too long for names of files: {LONGEST_TITLE} bytes at most"
        )
