"""Registration of a page's questions: what a sweep until decided sets out to decide, written before its first training.

questions/TITLE.json on the ledger has the questions, the rule and the largest number of seeds or folds. What differs in
a later run takes its place, and is noted with the number of trainings that were there by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from sweeps.experiment.questions.question import Question, asked_cells
from sweeps.experiment.questions.rule import LEVEL, NAME
from sweeps.experiment.questions.waves import Design
from sweeps.experiment.trial import Cell
from sweeps.experiment.wording import count
from sweeps.store.ledger import Json, Ledger


class Change(NamedTuple):
    """Change of a registration: what is other, and how many trainings of its cells there were by then."""

    what: str
    after: int

    @property
    def sentence(self) -> str:
        """Return the change as a sentence for table, report and grade."""
        return f"{self.what} after {count(self.after, 'training')}"


def contents(questions: Sequence[Question], cells: Sequence[Cell], design: Design) -> Json:
    """Return what is registered of a sweep until decided, as JSON."""
    asked = asked_cells(questions)
    return {
        "questions": [dataclasses.asdict(question) for question in questions],
        "cells": {cell.label: cell.key for cell in cells if cell.label in asked},
        "rule": f"{NAME}; level {LEVEL:g}",
        "first": design.first,
        "largest": design.most,
        "unit": design.unit,
    }


WORDS = {
    "questions": "the questions were changed",
    "cells": "the cells were changed",
    "rule": "the rule was changed",
    "first": "the first wave was changed",
    "largest": "the largest number was changed from {} to {}",
    "unit": "the kind of training was changed from {} to {}",
}


def register(ledger: Ledger, title: str, now: Json, trained: int) -> None:
    """Write the registration of a sweep where there is none, or another; `trained` trainings of its cells are there."""
    before = ledger.read_json(f"questions/{title}.json")
    if before is None:
        changes = [{"what": "the questions were registered", "after": trained}] if trained else []
        ledger.write_note(f"questions/{title}.json", now | {"changes": changes})
        return
    # Cells that a question brings or takes along are no change of their own.
    common = {label: now["cells"].get(label, key) for label, key in before.get("cells", {}).items()}
    same_cells = common == before.get("cells", {})
    others = [name for name in now if now[name] != before.get(name)]
    named = [name for name in others if name != "cells" or not same_cells]
    if not others:
        return
    changes = list(before.get("changes", []))
    if trained:
        changes += [
            {"what": WORDS[name].format(before.get(name), now[name]), "after": trained} for name in named
        ]  # fmt: skip
    ledger.write_note(f"questions/{title}.json", now | {"changes": changes})


def changes_of(ledger: Ledger, title: str) -> tuple[Change, ...]:
    """Return the changes of a sweep's registration after its first training."""
    value = ledger.read_json(f"questions/{title}.json") or {}
    return tuple(Change(str(change["what"]), int(change["after"])) for change in value.get("changes", ()))
