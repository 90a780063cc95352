"""The table of a terminal shows what others wrote as text: no link, no colour, no picture."""

import dataclasses
from pathlib import Path

import pytest

from sweeps.experiment.plan import plan
from sweeps.experiment.sweep import Protocol, Sweep
from sweeps.report import terminal
from sweeps.store.ledger import Ledger
from tests.support.sweeps import BASELINE, unsearched


@pytest.mark.parametrize("label", ["[link=https://evil]Baseline[/link]", "[/bold]", "[red]x", ":skull:"])
@pytest.mark.parametrize("colour", [True, False])
def test_label_is_text_in_the_table(tmp_path: Path, label: str, colour: bool) -> None:
    sweep: Sweep = unsearched("x", (dataclasses.replace(BASELINE, label=label),), Protocol())
    ledger = Ledger(str(tmp_path))
    today = plan(sweep, ledger, {})
    text = terminal.text(today, terminal.lines(today, {}, ledger), 200, colour)
    assert label in text
    assert "\x1b]8" not in text
