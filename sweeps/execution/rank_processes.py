"""Processes of a trial that several ranks train: started, given the trial, watched, and ended with it.

The process that calls `run_trial` trains nothing itself. It reads the messages of the ranks from pipes, so that an
error, a signal or a lack of memory in one rank ends all of them and is raised here, and no rank is left waiting in a
collective. A rank whose pipe has closed ends itself, so that none outlives a worker that was killed.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Final, Literal, NamedTuple, NoReturn

import torch
from torch import distributed

from crelu_data.availability import fetch_dataset
from crelu_models.named import user_line
from sweeps.execution.failures import FAULTS, PassingRankError, may_pass
from sweeps.experiment.trial import Trial, trial_from_json
from sweeps.store.ledger import Json
from sweeps.store.scratch import make_scratch, remove_scratch
from sweeps.training.distributed import Ranks
from sweeps.training.run_trial import out_of_memory, trial_steps
from sweeps.training.runtime import RuntimeConfig
from sweeps.training.shared_batches import PackContext, drain
from sweeps.training.trainer import Report

RANK_COMMAND = """
import sys
from sweeps.execution.worker import collector_off
with collector_off():
    from sweeps.execution.rank_processes import rank_main
rank_main(*map(int, sys.argv[1:4]), *sys.argv[4:])
"""

# A rank waits for others as long as these wait for room on a disk; the worker's watchdog ends those that hang.
COLLECTIVE_TIMEOUT = timedelta(days=7)
GRACE = 2.0  # seconds in which another rank's death is looked for as the cause of an error


class _RankOutOfMemoryError(Exception):
    """Memory of a rank has run out."""


def run_trial(
    trial: Trial, runtime: RuntimeConfig, report: Report, stop: Callable[[], bool] = lambda: False
) -> Json | None:
    """Train a trial as sweeps.training.run_trial does, by `runtime.ranks` processes of this host.

    A rank that dies or raises ends the others. Its error is raised here, with the rank's trace as a note: as ValueError
    for a fault of the program, as PassingRankError for a death and for what may pass, else as RuntimeError. After a
    lack of memory the ranks go on with smaller micro-batches.
    """
    if not fetch_dataset(trial.cell.dataset, runtime.data_dir, runtime.data_source, stop, runtime.fingerprint):
        return None
    memory_error = ""
    while True:
        group = rank_group(runtime.ranks, runtime.device)
        try:
            return group.run(_Job(trial.to_json(), runtime, memory_error), report, stop)
        except _RankOutOfMemoryError as error:
            memory_error = str(error)
            shutdown_ranks()
        except BaseException:
            shutdown_ranks()
            raise


def shutdown_ranks() -> None:
    """End the ranks that wait for this process's next trial, if there are any."""
    while _groups():
        _groups().pop().kill()


def rank_group(size: int, device: str) -> RankGroup:
    """Return the ranks of the trial before, so that a worker starts them once, or new ones."""
    if not any(group.size == size and group.device == device and group.all_alive() for group in _groups()):
        shutdown_ranks()
        _groups().append(RankGroup(size, device))
    return _groups()[0]


@cache
def _groups() -> list[RankGroup]:
    """Return the list of this process's groups of ranks: one, or none."""
    return []


class _Job(NamedTuple):
    """A trial for the ranks; `memory_error` is the error of the attempt before, where memory ran out."""

    trial: Json
    runtime: RuntimeConfig
    memory_error: str


class _Epoch(NamedTuple):
    """Message of rank 0 after an epoch; it waits until the epoch is reported."""

    epoch: int
    row: dict[str, float]


class _Done(NamedTuple):
    """Message of a rank that has done its job."""

    result: Json | None


Kind = Literal["memory", "final", "passing", "other"]
# What the worker raises; after a lack of memory the ranks go on.
ERRORS: Final[Mapping[Kind, type[Exception]]] = {
    "final": ValueError,
    "passing": PassingRankError,
    "other": RuntimeError,
}


class _Failed(NamedTuple):
    """Message of a rank that has raised an error."""

    rank: int
    kind: Kind
    text: str
    trace: str


# A rank also says "step" after each step; the worker sends a job, "reported" after an epoch, and "stop".


class RankGroup:
    """Processes of the ranks, with a pipe to each."""

    def __init__(self, size: int, device: str) -> None:
        """Start `size` ranks on this host, each on its own GPU where `device` is cuda."""
        self.size = size
        self.device = device
        self.folder = make_scratch("ranks")
        self.pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # Ranks talk over loopback: no other machine can listen, and no host name must be known.
        environment = {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        for rank in range(size):
            worker_end, rank_end = Pipe()
            words = [str(rank_end.fileno()), str(rank), str(size), device, self.folder]
            self.processes.append(subprocess.Popen(
                [sys.executable, "-c", RANK_COMMAND, *words], pass_fds=(rank_end.fileno(),),
                env=os.environ | environment,
            ))  # fmt: skip
            rank_end.close()
            self.pipes.append(worker_end)

    def all_alive(self) -> bool:
        """Return whether every rank is alive."""
        return all(process.poll() is None for process in self.processes)

    def run(self, job: _Job, report: Report, stop: Callable[[], bool]) -> Json | None:
        """Let the ranks do a job and return rank 0's result; raise the error of the first that fails or dies."""
        busy = set(self.pipes)
        result = None
        for pipe in self.pipes:
            self._send(pipe, job)
        while busy:
            for pipe in [pipe for pipe in self.pipes if pipe in wait(busy)]:
                match self._receive(pipe):
                    case "step":
                        if stop():
                            self._send(pipe, "stop")
                    case _Epoch(epoch, row):
                        report(epoch, row)
                        self._send(pipe, "reported")
                    case _Done(value):
                        busy.remove(pipe)
                        result = value if pipe is self.pipes[0] else result
                    case _Failed() as failure:
                        self._raise(failure)
        return result

    def _send(self, pipe: Connection, command: _Job | str) -> None:
        try:
            pipe.send(command)
        except ConnectionError as error:
            raise PassingRankError(self._death_message() or f"a rank cannot be reached: {error!r}") from None

    def _receive(self, pipe: Connection) -> object:
        try:
            return pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise PassingRankError(self._death_message() or f"a rank cannot be reached: {error!r}") from None

    def _death_message(self) -> str:
        """Return which ranks have died and how, as a sentence; empty where all are alive."""
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and self.all_alive():
            time.sleep(0.02)
        dead = [(rank, process.returncode) for rank, process in enumerate(self.processes) if process.poll() is not None]
        return "; ".join(
            f"rank {rank} of {self.size} died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
            for rank, code in dead
        )

    def _raise(self, failure: _Failed) -> NoReturn:
        """Raise the error of a rank; where another rank's death has caused it, that death."""
        if failure.kind == "memory":
            raise _RankOutOfMemoryError(failure.text)
        death = self._death_message()
        error = PassingRankError(death) if death else ERRORS[failure.kind](failure.text)
        error.add_note(f"In rank {failure.rank} of {self.size}:\n{failure.trace}")
        raise error

    def kill(self) -> None:
        """Kill the ranks; a trial goes on from its checkpoint."""
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.wait()
            pipe.close()
        remove_scratch(self.folder)


# In a rank ----------------------------------------------------------------------------------------------------------


class CommandChannel:
    """A rank's end of its pipe, read by a thread; when it closes, this process ends at once."""

    def __init__(self, pipe: Connection, folder: str) -> None:
        self.pipe = pipe
        self.folder = folder
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.reported: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.stopping = threading.Event()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                command: _Job | str = self.pipe.recv()
                if isinstance(command, _Job):
                    self.stopping.clear()
                    self.jobs.put(command)
                elif command == "reported":
                    self.reported.put(None)
                else:
                    self.stopping.set()
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(1)

    def report(self, epoch: int, row: dict[str, float]) -> None:
        """Report an epoch, and wait until the worker has passed it on."""
        self.pipe.send(_Epoch(epoch, row))
        self.reported.get()

    def stop(self) -> bool:
        """Send a sign of life; return whether the trial is to save its state and leave."""
        self.pipe.send("step")
        return self.stopping.is_set()


def rank_main(handle: int, rank: int, size: int, device: str, folder: str) -> None:
    """Run a rank: do the jobs that come through the pipe, until it closes."""
    # Ctrl-C on a terminal reaches every process there; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = CommandChannel(Connection(handle), folder)
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
        job = channel.jobs.get()
        try:
            channel.pipe.send(_Done(_run_rank(job, ranks, channel)))
        except Exception as error:
            channel.pipe.send(_failed(rank, error))


def _failed(rank: int, error: Exception) -> _Failed:
    """Return the message on an error of a rank's job."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, RuntimeError) and out_of_memory(error):  # as where one process takes a step in parts
        return _Failed(rank, "memory", f"{error}", trace)
    kind: Kind = "final" if isinstance(error, FAULTS) else "passing" if may_pass(error) else "other"
    text = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    where = user_line(error)
    return _Failed(rank, kind, f"{text} ({where})" if where else text, trace)


def _run_rank(job: _Job, ranks: Ranks, channel: CommandChannel) -> Json | None:
    """Do one rank's part of a trial; rank 0 reports, and returns the result."""
    runtime = replace(job.runtime, device=f"cuda:{ranks.rank}") if job.runtime.device == "cuda" else job.runtime
    context = PackContext()
    report: Report = channel.report if ranks.is_rank0 else lambda *_: None
    trial = trial_from_json(job.trial)
    try:
        result = drain(trial_steps(trial, runtime, report, channel.stop, context, ranks, job.memory_error))
    finally:
        context.stream.close()
    return result if ranks.is_rank0 else None
