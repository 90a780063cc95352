"""Signals while a library starts: held back, and not lost."""

import os
import signal
import subprocess
import sys

import pytest

from sweeps.cli.interrupts import hold_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("starts", [True, False])
def test_signal_comes_when_the_library_has_started_or_failed(number: signal.Signals, starts: bool) -> None:
    before = signal.getsignal(number)
    steps: list[str] = []

    def start() -> None:
        with hold_signals():
            os.kill(os.getpid(), number)
            steps.append("tried")
            if not starts:
                raise OSError("no room")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert steps == ["tried"]
    assert signal.getsignal(number) == before


def test_error_of_the_library_is_its_own() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def start() -> None:
        with hold_signals():
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        start()
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal\nfrom sweeps.cli.interrupts import hold_signals\n"
        "with hold_signals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    os.kill(os.getpid(), signal.SIGINT)\n    print('lives')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (130, "")
