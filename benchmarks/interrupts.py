"""What does Ctrl-C do at any moment of a sweep: how soon is there a word, how soon an end, and does it resume?

    python -m benchmarks.interrupts 20 --seed 0

A small sweep (the smoke test of Table 4) runs once undisturbed on a terminal of 80x24, then again and again: at a
moment that is drawn, Ctrl-C is typed, as a person would. The next moment is drawn for the same command on the same
output, so each start resumes what the one before it has left. When a sweep is done its trials are compared with the
undisturbed ones, weights and scores by their hashes, and a fresh one begins.

A row a moment: what the sweep was doing, seconds to the first word and to the exit, the exit code. The exit code of
this command is the number of moments that broke a promise: a word or an end in one second, an end in fifteen, 130 or
0, the same results.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import random
import re
import select
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

from sweeps.store.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "sweeps.imagenet_placement", "--smoke-test", "--set", "recipe.epochs=6"]
WORD, END = 1.0, 15.0  # seconds, at most
PATIENCE = 900.0  # seconds after which a sweep counts as stuck
INTERRUPT = b"\x03"
ANSWER = re.compile(rb"stopping|interrupted|ended at once")
# What the sweep is doing, by the latest of these in its output; the first stands for the time before any of them.
STAGES = {
    "start": b"", "data": b"preparing synthetic", "Ray": b"starting Ray", "training": b": training",
    "ending": b"s0: done", "table": b"imagenet_placement-smoke\r\n", "end": b"results   ",
}  # fmt: skip
ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


class Ending(NamedTuple):
    """How one run of the command ended: stage at the interrupt, seconds to a word and to the end, exit code, output."""

    stage: str
    word: float
    seconds: float
    code: int
    text: bytes


def stage_of(text: bytes) -> str:
    """Return what the sweep was doing when it had printed this."""
    places = {name: text.rfind(sign) for name, sign in STAGES.items() if sign}
    seen = [name for name in places if places[name] >= 0]
    return seen[-1] if seen else "start"


def run(command: list[str], moment: float) -> Ending:
    """Run a command on a terminal of its own and type Ctrl-C after `moment` seconds (infinite: never)."""
    began = time.monotonic()
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background of a script ignores it
        os.chdir(ROOT)
        os.execvpe(command[0], command, os.environ | {"TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    text = b""
    typed = 0.0
    word = float("nan")
    stage = ""
    while True:
        now = time.monotonic()
        if not typed and now - began >= moment:
            stage = stage_of(ESCAPE.sub(b"", text))
            typed = now
            before = len(text)
            os.write(terminal, INTERRUPT)
        if now - (typed or began) > PATIENCE:
            os.kill(process, signal.SIGKILL)
        if select.select([terminal], [], [], 0.02)[0]:
            try:
                text += os.read(terminal, 1 << 16)
            except OSError:  # all ends of the terminal are closed
                break
        if typed and word != word and ANSWER.search(ESCAPE.sub(b"", text[before:])):
            word = time.monotonic() - typed
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(status)
    # Python ends itself by the signal where that met an exec() within a library's import; a shell shows 130 then too.
    return Ending(stage, word, time.monotonic() - (typed or began), 128 - code if code < 0 else code, text)


def fruit(folder: Path) -> dict[str, object]:
    """Return what the trials of an output have come to: numbers and hashes of weights and scores, by key."""
    results = Ledger.in_output(str(folder)).results()
    timed = {"history.json": ""}  # has the time of each epoch
    return {key: (result["metrics"], result["curve"], result["files"] | timed) for key, result in results.items()}


def main() -> int:
    """Interrupt the sweep at each moment, print what came of it, and return how many broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("moments", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print the output of what broke a promise")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    endings: list[Ending] = []
    broken = 0
    with tempfile.TemporaryDirectory(prefix="interrupts-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)

        def command(output: str) -> list[str]:
            return [*COMMAND, "--output", str(folder / output), "--data-dir", str(folder / output / "data")]

        undisturbed = run(command("alone"), float("inf"))
        expected = fruit(folder / "alone")
        print(f"undisturbed: {undisturbed.seconds:.0f} s, exit {undisturbed.code}, {len(expected)} trials", flush=True)
        if undisturbed.code or not expected:
            print(undisturbed.text.decode(errors="replace"))
            return 1
        print(f"{'moment':>8}  {'doing':<9} {'word':>6} {'exit':>6}  code", flush=True)
        while len(endings) < options.moments:
            # One moment of each stretch of the sweep, so that short stages are met too.
            at = undisturbed.seconds * (len(endings) * 7 % 20 + draw.random()) / 20
            ending = run(command("out"), at)
            is_over = ending.code == 0
            same = not is_over or fruit(folder / "out") == expected
            answered = ending.word <= WORD or ending.seconds <= WORD
            slow = bool(ending.stage) and (ending.seconds > END or not (is_over or answered))
            wrong = not same or slow or ending.code not in (0, 130)
            broken += wrong
            note = ("" if same else "  OTHER RESULTS") + ("  <-" if wrong else "")
            row = (
                f"{at:7.1f}s  {ending.stage or 'over':<9} {ending.word:6.2f} {ending.seconds:6.1f}  {ending.code}{note}"
            )
            if ending.stage:
                endings.append(ending)
            print(row if ending.stage else f"{at:7.1f}s  was over before, exit {ending.code}{note}", flush=True)
            if wrong and options.show:
                print(ESCAPE.sub(b"", ending.text)[-3000:].decode(errors="replace"), flush=True)
            if is_over:
                shutil.rmtree(folder / "out")
        last = run(command("out"), float("inf"))
        same = last.code == 0 and fruit(folder / "out") == expected
        broken += not same
        print(f"the same command once more: exit {last.code}, {'the same results' if same else 'OTHER RESULTS'}")
    words = [ending.word for ending in endings if ending.word == ending.word]
    ends = [ending.seconds for ending in endings]
    print(f"word: median {statistics.median(words):.2f} s, at most {max(words):.2f} s; "
          f"exit: median {statistics.median(ends):.1f} s, at most {max(ends):.1f} s; {broken} broken")  # fmt: skip
    return broken


if __name__ == "__main__":
    sys.exit(main())
