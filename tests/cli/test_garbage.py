"""Garbage collection of a command: seldom, and of a worker's imports: never."""

import gc
import sys
from collections.abc import Iterator

import pytest

from sweeps.__main__ import main
from sweeps.cifar_width import CELLS, PROTOCOL
from sweeps.execution.worker import collector_off
from sweeps.launch import main as page


@pytest.fixture(autouse=True)
def _thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_a_page_and_a_verb_collect_rarely(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for run, words in ((lambda: page("p", "", CELLS, PROTOCOL), ["--list"]), (lambda: sys.exit(main()), ["list"])):
        gc.set_threshold(700, 10, 10)
        monkeypatch.setattr("sys.argv", ["page", *words])
        with pytest.raises(SystemExit) as end:
            run()
        assert end.value.code == 0
        assert gc.get_threshold()[0] == 100_000
    assert "CReLU" in capsys.readouterr().out


@pytest.mark.parametrize("enabled", [True, False])
def test_objects_made_while_the_collector_is_off_are_frozen_and_it_is_as_before(enabled: bool) -> None:
    frozen = gc.get_freeze_count()
    if not enabled:
        gc.disable()
    try:
        with collector_off():
            assert not gc.isenabled()
            objects = [[number] for number in range(10_000)]
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > frozen + len(objects)
    finally:
        gc.enable()
