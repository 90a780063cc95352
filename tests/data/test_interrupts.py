"""An interrupt ends work in pools of threads, in whatever line it meets them."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from crelu_data.interrupts import SignalListener, deferred_interrupts
from tests.support.waiting import until

# Thousands of submissions: where an interrupt meets the pool's own lock, a plain pool waits for ever.
POOL = """
import os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from crelu_data.interrupts import deferred_interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)
for delay in map(float, sys.argv[1:]):
    try:
        with deferred_interrupts() as check, ThreadPoolExecutor(2) as pool:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
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


@pytest.mark.parametrize("error", [None, OSError("no room")])
def test_handler_of_a_driver_gets_the_signal_after_the_work(number: int, error: OSError | None) -> None:
    steps: list[object] = []

    def stop_in_good_order(received: int, _: object) -> None:
        steps.append(received)

    signal.signal(number, stop_in_good_order)
    with suppress(OSError), deferred_interrupts() as check:
        os.kill(os.getpid(), number)
        try:
            check()
            steps.append("done")
        except KeyboardInterrupt:
            steps.append("broken off")
        if error:
            raise error
    assert steps == ["done", number]


def test_interrupt_replaces_the_error_of_the_work(number: int) -> None:
    def work() -> None:
        with deferred_interrupts():
            os.kill(os.getpid(), number)
            raise OSError("no room")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(number) is signal.default_int_handler


def test_error_of_the_work_is_its_own(number: int) -> None:
    def work() -> None:
        with deferred_interrupts():
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        work()
    assert signal.getsignal(number) is signal.default_int_handler


@pytest.mark.parametrize(
    ("handler", "signals", "code"),
    [
        (signal.SIG_DFL, (signal.SIGTERM,), -signal.SIGTERM),
        (signal.SIG_DFL, (signal.SIGTERM, signal.SIGINT), 130),
        (signal.SIG_IGN, (signal.SIGTERM, signal.SIGTERM), 0),
    ],
)
def test_signals_that_python_does_not_handle_do_what_they_did(
    handler: signal.Handlers, signals: tuple[int, ...], code: int
) -> None:
    script = (
        "import os, signal\nfrom crelu_data.interrupts import deferred_interrupts\n"
        f"signal.signal(signal.SIGTERM, signal.Handlers({int(handler)}))\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background ignores it
        "with deferred_interrupts():\n"
        f"    for number in {[int(number) for number in signals]}:\n        os.kill(os.getpid(), number)\n"
        "    print('done', flush=True)\n"
        "print('and on')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.split("\n")[0]) == (code, "" if code == 130 else "done")
    assert ended.stdout.endswith("and on\n") == (code == 0)


def test_both_interrupts_of_a_command_are_answered_at_once() -> None:
    script = (
        "import os, signal\nfrom crelu_data.interrupts import deferred_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with deferred_interrupts('a long start', print):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('never')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 130
    assert ended.stdout.splitlines() == [
        "stopping, after a long start (once more to end at once); the same command resumes",
        "goes on",
    ]
    assert ended.stderr.strip() == "ended at once, as asked; the same command resumes"


def test_second_interrupt_of_a_hosted_process_raises_and_ends_it_no_more() -> None:
    script = (
        "import os, signal\nfrom crelu_data.interrupts import deferred_interrupts, hosted\n"
        "said = []\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, lambda *_: said.append('handed on'))\n"
        "for number, tell in ((signal.SIGINT, said.append), (signal.SIGINT, None), (signal.SIGTERM, None)):\n"
        "    try:\n"
        "        with hosted(True), deferred_interrupts('a long start', tell):\n"
        "            os.kill(os.getpid(), number)\n"
        "            said.append('goes on')\n"
        "            os.kill(os.getpid(), number)\n"
        "            said.append('never')\n"
        "    except KeyboardInterrupt as error:\n"
        "        said.append(f'raised, after {error.__context__}')\n"
        "try:\n"
        "    with hosted(True), deferred_interrupts():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        except KeyboardInterrupt:\n"
        "            said.append('caught by a library')\n"
        "except KeyboardInterrupt:\n"
        "    said.append('raised all the same')\n"
        "print(*sorted(said), sep='\\n', flush=True)\n"
        "with hosted(False), deferred_interrupts():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines() == [
        "caught by a library",
        *["goes on"] * 3,
        *["handed on"] * 2,
        "raised all the same",
        *["raised, after None"] * 3,
        "stopping, after a long start (once more to end at once); the same call resumes",
    ]
    assert (ended.returncode, ended.stderr) == (130, "")


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
    thread.join()
    assert errors == []
    assert signal.getsignal(number) is signal.default_int_handler


def test_forty_interrupts_of_a_busy_pool_end_it_forty_times() -> None:
    draw = random.Random(1)
    delays = [f"{draw.uniform(0.01, 0.06):.4f}" for _ in range(40)]
    done = subprocess.run(
        [sys.executable, "-c", POOL, *delays],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interrupted"] * 40


def test_interrupt_is_answered_while_the_main_thread_waits_in_a_library() -> None:
    script = (
        "import ctypes, os, signal\nfrom crelu_data.interrupts import deferred_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock\n"
        "with deferred_interrupts('a long start', print):\n    os.write(1, b'waits\\n')\n"
        "    lock(mutex)\n    lock(mutex)\n"  # for ever, through any signal
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waits\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("stopping, after a long start")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().strip() == "ended at once, as asked; the same command resumes"


def test_signals_of_a_forked_process_are_not_heard() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with SignalListener(heard.append):
            child = os.fork()
            if child == 0:
                signal.raise_signal(signal.SIGINT)
                os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == []


def test_ear_counts_the_signals_and_gives_way_to_an_inner_one() -> None:
    outer: list[int] = []
    inner: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with SignalListener(outer.append):
            signal.raise_signal(signal.SIGINT)
            until(lambda: outer, "the first signal", 60, poll=0.01)
            with SignalListener(inner.append):
                signal.raise_signal(signal.SIGINT)
                until(lambda: inner, "the signal within", 60, poll=0.01)
            signal.raise_signal(signal.SIGINT)
            until(lambda: len(outer) == 2, "the second signal", 60, poll=0.01)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outer, inner, signal.set_wakeup_fd(-1)) == ([1, 2], [1], -1)
