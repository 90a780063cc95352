"""An interrupt ends work in pools of threads, in whatever line it meets them."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.interrupts import deferred_interrupts

# Thousands of submissions: where an interrupt meets the pool's own lock, a plain pool waits for ever.
POOL = """
import os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from data.interrupts import deferred_interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)
for delay in map(float, sys.argv[1:]):
    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with deferred_interrupts() as check, ThreadPoolExecutor(2) as pool:
            while True:
                check()
                list(pool.map(int, range(100)))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_interrupt_waits_until_it_is_asked_for(number: int) -> None:
    steps = []

    def work() -> None:
        with deferred_interrupts() as check:
            check()
            os.kill(os.getpid(), number)
            steps.append("not yet")
            check()
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["not yet"]
    assert signal.getsignal(number) is signal.default_int_handler


def test_work_that_never_asks_is_followed_by_the_interrupt(number: int) -> None:
    steps = []

    def work() -> None:
        with deferred_interrupts():
            os.kill(os.getpid(), number)
            steps.append("done")
        steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["done"]


def test_in_another_thread_nothing_is_held(number: int) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with deferred_interrupts() as check:
                check()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert errors == []
    assert signal.getsignal(number) is signal.default_int_handler


def test_forty_interrupts_of_a_busy_pool_end_it_forty_times() -> None:
    draw = random.Random(1)
    delays = [f"{draw.uniform(0.01, 0.06):.4f}" for _ in range(40)]
    done = subprocess.run(
        [sys.executable, "-c", POOL, *delays], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interrupted"] * 40
