"""Nets that train side by side: in one process on streams, and in as many processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.gpu.bench import PACKED, ROOT, TINY, Bench, free, section_line
from sweeps.training.gpu.graphs import open_streams


def pack(bench: Bench) -> None:
    """Measure nets on CIFAR that train side by side: in a process on streams, and in as many processes."""
    names = [name for name in PACKED if name in bench.families]
    streams = open_streams(bench.device)
    members = []
    for number in range(max(bench.packs)):
        context = streams.member()
        with context:
            members.append((context, *bench.learner(names[number % len(names)], True)))
    bench.wait()
    rates = dict.fromkeys(bench.packs, float("nan"))
    for count in bench.packs:

        def turn(count: int = count) -> None:
            for context, learner, images, labels in members[:count]:
                with context:
                    learner.step(images, labels)

        pictures = sum(len(labels) for _, _, _, labels in members[:count])
        with section_line(bench, "pack", f"{count} in a process"):
            rates[count] = pictures / bench.seconds(turn)
    members.clear()
    free(bench)
    for count in bench.packs:
        beside = 0.0
        with section_line(bench, "pack", f"{count} processes"):
            beside = processes_rate(bench, [names[number % len(names)] for number in range(count)])
        bench.say("pack", f"{count} side by side", pictures_s=rates[count], processes_s=beside,
                  over_processes=rates[count] / beside if beside else float("nan"),
                  over_one=rates[count] / rates[bench.packs[0]])  # fmt: skip


def processes_rate(bench: Bench, names: Sequence[str]) -> float:
    """Return the pictures a second of processes that each train one net at the same time."""
    words = ["--device", bench.device.type, *(["--tiny"] if bench.families is TINY else [])]
    command = [sys.executable, "-m", "benchmarks.gpu", *words, "--serve"]
    pipe = subprocess.PIPE
    sides = [subprocess.Popen([*command, name], cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
             for name in names]  # fmt: skip
    total = 0.0
    try:
        for word in ("ready", "go"):
            if word == "go":
                for side in sides:
                    assert side.stdin is not None
                    print("go", file=side.stdin, flush=True)
            for side in sides:
                assert side.stdout is not None
                line = side.stdout.readline()
                assert line, side.communicate()[1].strip().splitlines()[-1]
                total += float(line) if word == "go" else 0.0
    finally:
        for side in sides:
            side.kill()
            side.communicate()
    return total


def serve(bench: Bench, name: str) -> None:
    """Be one of several processes: warm up, wait for a line, answer with pictures a second over two windows."""
    learner, images, labels = bench.learner(name, True)
    bench.seconds(lambda: learner.step(images, labels))
    print("ready", flush=True)
    sys.stdin.readline()
    count = 0
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < 2 * bench.window:
        for _ in range(10):
            learner.step(images, labels)
        bench.wait()
        count += 10
    print(count * len(labels) / took, flush=True)
