"""The processes of a trial that is trained by several ranks: started, given the trial, watched, and ended with it.

The process that calls `perform` trains nothing itself. It hears of the ranks through pipes, so that whatever becomes
of one (an error, a signal, memory that runs out) ends all of them and is raised here, where nobody waits in a
collective; and a rank whose pipe has closed ends itself, so that none outlives a worker that was killed.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import distributed

from data.availability import fetch_dataset
from sweeps.experiment.trial import Trial, trial_from_json
from sweeps.training import run_trial as alone
from sweeps.training.distributed import Ranks
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import PackContext, drain
from sweeps.training.trainer import Report

RANK_COMMAND = (
    "import sys; from sweeps.execution.rank_processes import rank_main; "
    "rank_main(*map(int, sys.argv[1:4]), *sys.argv[4:])"
)

# A rank may wait for another as long as that waits for room on a disk; who hangs is ended by the worker's watch.
COLLECTIVE_TIMEOUT = timedelta(days=7)
GRACE = 0.5  # seconds in which the cause of a broken connection is looked for among the other ranks


class _OutOfMemory(Exception):
    """A rank's memory has run out."""


def run_trial(
    trial: Trial, place: RuntimeConfig, report: Report, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
    """Do what sweeps.training.run_trial does, by `place.ranks` processes of this host; `stop` is asked after each step.

    A rank that dies, or raises, ends the others and is raised here, as ValueError where it was one, else RuntimeError
    with the rank's trace as a note. Where memory has run out, ranks go on from the checkpoint in smaller parts.
    """
    if place.ranks == 1:
        return alone.run_trial(trial, place, report, stop)
    if not fetch_dataset(trial.cell.dataset, place.data_dir, place.data_source, stop):
        return None
    short = ""
    while True:
        crew = rank_group(place.ranks, place.device)
        try:
            return crew.run(_Job(trial.to_json(), place, short), report, stop)
        except _OutOfMemory as error:
            short = str(error)
            shutdown_ranks()
        except BaseException:
            shutdown_ranks()
            raise


def shutdown_ranks() -> None:
    """End the ranks that wait for this process's next trial, if there are some."""
    while _groups():
        _groups().pop().kill()


def rank_group(size: int, device: str) -> RankGroup:
    """Return so many ranks: those of the trial before, so that they start once a worker, or new ones."""
    if not any(crew.size == size and crew.device == device and crew.all_alive() for crew in _groups()):
        shutdown_ranks()
        _groups().append(RankGroup(size, device))
    return _groups()[0]


@cache
def _groups() -> list[RankGroup]:
    """Return the ranks that this process has: those of one crew, or none."""
    return []


@dataclass(frozen=True)
class _Job:
    """What the ranks are to do; `short` says that memory ran out in the try before."""

    trial: dict[str, Any]
    place: RuntimeConfig
    short: str


class RankGroup:
    """The ranks as processes, and a pipe to each."""

    def __init__(self, size: int, device: str) -> None:
        """Start `size` ranks on this host, each on its own GPU where `device` is cuda."""
        self.size, self.device = size, device
        self.folder = tempfile.mkdtemp(prefix="ranks-")
        self.pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # Ranks speak over loopback: nobody else is to listen, and no host name has to be known.
        own = {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        for rank in range(size):
            here, there = Pipe()
            words = [str(there.fileno()), str(rank), str(size), device, self.folder]
            self.processes.append(subprocess.Popen(
                [sys.executable, "-c", RANK_COMMAND, *words], pass_fds=(there.fileno(),), env=os.environ | own
            ))  # fmt: skip
            there.close()
            self.pipes.append(here)

    def all_alive(self) -> bool:
        """Return whether every rank is there."""
        return all(process.poll() is None for process in self.processes)

    def run(self, job: _Job, report: Report, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Let the ranks do a job and return what rank 0 returns; raise what the first of them raises or dies of."""
        busy, result = set(self.pipes), None
        for pipe in self.pipes:
            self._send(pipe, ("job", job))
        while busy:
            for pipe in [pipe for pipe in self.pipes if pipe in wait(busy)]:
                word, *news = self._receive(pipe)
                if word == "step":
                    if stop():
                        self._send(pipe, ("stop",))
                elif word == "epoch":
                    report(*news)
                    self._send(pipe, ("heard",))
                elif word == "done":
                    busy.remove(pipe)
                    result = news[0] if pipe is self.pipes[0] else result
                elif word == "short":
                    raise _OutOfMemory(*news)
                else:
                    self._raise(*news)
        return result

    def _send(self, pipe: Connection, words: tuple[Any, ...]) -> None:
        """Tell a rank something."""
        try:
            pipe.send(words)
        except ConnectionError as error:
            raise RuntimeError(self._death_message() or f"a rank cannot be reached: {error!r}") from None

    def _receive(self, pipe: Connection) -> tuple[Any, ...]:
        """Return what a rank says."""
        try:
            words: tuple[Any, ...] = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(self._death_message() or f"a rank cannot be reached: {error!r}") from None
        return words

    def _death_message(self) -> str:
        """Return which rank has died and how, as a sentence; nothing where all live on."""
        ends = time.monotonic() + GRACE
        while time.monotonic() < ends and self.all_alive():
            time.sleep(0.02)
        dead = [(rank, process.returncode) for rank, process in enumerate(self.processes) if process.poll() is not None]
        return "; ".join(
            f"rank {rank} of {self.size} died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
            for rank, code in dead
        )

    def _raise(self, rank: int, kind: str, text: str, final: bool, trace: str) -> None:
        """Raise what a rank has raised, unless it did so because another one has died."""
        death = self._death_message()
        error: Exception = (
            RuntimeError(death) if death else ValueError(text) if final else RuntimeError(f"{kind}: {text}")
        )
        error.add_note(f"In rank {rank} of {self.size}:\n{trace}")
        raise error

    def kill(self) -> None:
        """Kill the ranks, whatever they do; what is worth keeping is in their checkpoints."""
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.wait()
            pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


# In a rank ----------------------------------------------------------------------------------------------------------


class CommandChannel:
    """What comes through the pipe of a rank, read by a thread; when it closes, this process ends at once."""

    def __init__(self, pipe: Connection, folder: str) -> None:
        self.pipe, self.folder = pipe, folder
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.acknowledged: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.stopping = threading.Event()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                word, *news = self.pipe.recv()
                if word == "job":
                    self.stopping.clear()
                    self.jobs.put(news[0])
                elif word == "heard":
                    self.acknowledged.put(None)
                else:
                    self.stopping.set()
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(1)

    def report(self, epoch: int, row: dict[str, float]) -> None:
        """Report an epoch and wait until it was heard."""
        self.pipe.send(("epoch", epoch, row))
        self.acknowledged.get()

    def stop(self) -> bool:
        """Give a sign of life, and return whether the trial is to save its state and leave."""
        self.pipe.send(("step",))
        return self.stopping.is_set()


def rank_main(handle: int, rank: int, size: int, device: str, folder: str) -> None:
    """Be a rank: do the jobs that come through the pipe, until it closes."""
    # Ctrl-C on a terminal reaches every process there; what it means is the driver's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = CommandChannel(Connection(handle), folder)
    if device == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    ranks = Ranks(rank, size)
    while True:
        job = orders.jobs.get()
        try:
            orders.pipe.send(("done", _run_rank(job, ranks, orders)))
        except Exception as error:
            if alone.out_of_memory(error):
                orders.pipe.send(("short", f"{error}"))
            else:
                what = type(error).__name__, f"{error}", isinstance(error, ValueError), traceback.format_exc()
                orders.pipe.send(("failed", rank, *what))


def _run_rank(job: _Job, ranks: Ranks, orders: CommandChannel) -> dict[str, Any] | None:
    """Do one rank's part of a trial; rank 0 reports, and asks whether to stop."""
    place = replace(job.place, device=f"cuda:{ranks.rank}") if job.place.device == "cuda" else job.place
    company = PackContext()
    report: Report = orders.report if ranks.is_rank0 else lambda epoch, row: None
    trial = trial_from_json(job.trial)
    try:
        result = drain(alone.trial_steps(trial, place, report, orders.stop, company, ranks, job.short))
    finally:
        company.stream.close()
    return result if ranks.is_rank0 else None
