"""Runtime of a trial: where and with what it runs. Nothing here decides a number: no change makes results stale."""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import psutil
    import torch

MIB: Final = 1 << 20
GPU_SIZE: Final = "sys/gpu_size_mib"  # of a row of the history
# Kernels of a GPU: ours and cuDNN's where a step always has the same bits, cuDNN's fastest, or none of ours.
Kernels = Literal["exact", "fastest", "torch"]
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class RuntimeConfig:
    """Runtime of a trial: ledger, data, device and the resources there. None of it is part of a trial's key.

    `ledger` and `data_dir` are absolute. `workers` decode pictures, `threads` compute on a CPU. `fingerprint` is that
    of the data the sweep was planned with ("": any). A worker that takes no step for `hang_seconds` ends. A file whose
    decoded pictures take at most `resident_bytes` is decoded once and kept on the device. A data set that is not in
    `data_dir` is pulled from `data_source`, unless that is "". `ranks` processes of one host share each batch, each
    with `workers` and `threads` of its own and, where `device` is cuda, with its own GPU. The one process of a training
    function has `gpus` of them. With the `kernels` "fastest", cuDNN uses its fastest there, and a net may be compiled:
    a repeated step may differ in a bit. With "torch", none of ours are taken, with the bits of "exact". With `graphs`,
    steps on one GPU are replayed from CUDA graphs where that pays, with the same bits. `gpu_share` is the part of a GPU
    that a trial has; other trials have the rest. A trial of a search pauses after epoch `pause_at`, unless that is 0.
    Python searches `code_folder` first for the modules of the user.
    """

    ledger: str
    data_dir: str
    device: str = "cpu"
    reader: str = "ffcv"
    workers: int = 1
    threads: int = 1
    checkpoint_minutes: float = 5.0
    fingerprint: str = ""
    kernels: Kernels = "exact"
    hang_seconds: float = 1800.0
    resident_bytes: int = 2 << 30
    data_source: str = ""
    ranks: int = 1
    pause_at: int = 0
    code_folder: str = ""
    graphs: bool = True
    gpu_share: float = 1.0
    gpus: int = 1

    def in_one_process(self) -> RuntimeConfig:
        """Return the runtime of one process that has the GPUs, workers and threads of all ranks."""
        gpus = self.ranks if self.device == "cuda" else 1
        return replace(self, ranks=1, gpus=gpus, workers=self.workers * self.ranks, threads=self.threads * self.ranks)


def available_device() -> str:
    """Return the kind of the fastest device of this machine."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def visible_gpus() -> int:
    """Return how many GPUs of this machine a process may use, without a look at CUDA."""
    devices = len(glob.glob("/dev/nvidia[0-9]*"))
    chosen = os.environ.get(VISIBLE)
    return devices if chosen is None else min(devices, len(named_gpus(chosen)))


def named_gpus(chosen: str) -> list[str]:
    """Return the GPUs that CUDA takes of a list: those before the first name that is none, such as -1."""
    names = (name.strip() for name in chosen.split(","))
    return list(takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names))


def hardware(
    device: torch.device, config: RuntimeConfig, decoder: str = "", steps: str = "", before: Sequence[str] = ()
) -> dict[str, str]:
    """Return what a trial ran on, for its record.

    `decoder` is that of its pictures where they are JPEG, of a resumed training those in turn; `steps` says how a GPU
    took its steps. `before` names the devices on which a resumed training ran earlier.
    """
    import torch

    numbers = {"ranks": config.ranks, "gpus": config.gpus}
    notable = {name: str(number) for name, number in numbers.items() if number > 1}
    if before:
        notable["before"] = "; ".join(dict.fromkeys(before))
    if decoder:
        notable["decoder"] = decoder
    if device.type == "cuda":
        notable["memory"] = str(torch.cuda.get_device_properties(device).total_memory)
        notable["steps"] = steps
        if config.kernels != "exact":
            notable["kernels"] = config.kernels
        if config.gpu_share < 1:
            notable["gpu_share"] = f"{config.gpu_share:g}"
    elif config.threads > 1:
        notable["threads"] = str(config.threads)
    return notable | {
        "host": platform.node(),
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """Return the model of a device: another of the same model computes the same bits."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def device_in_words(device: torch.device, config: RuntimeConfig) -> str:
    """Return a device in words, with its kernels and the numbers of ranks and GPUs: other ones give other bits.

    A GPU is named by its model; all CPUs are "a CPU".
    """
    numbers = {"ranks": config.ranks, "GPUs": config.gpus}
    notable = [f"{number} {name}" for name, number in numbers.items() if number > 1]
    if device.type == "cuda" and config.kernels == "fastest":
        notable.append("fastest kernels")
    name = device_name(device) if device.type == "cuda" else "a CPU"
    return f"{name} ({', '.join(notable)})" if notable else name


class SystemUse:
    """Use of the machine by this process, which a pack shares: cores, memory, memory of its GPU."""

    def __init__(self, device: torch.device) -> None:
        """Begin to count the processor time; the memory of `device` is counted where it is a GPU."""
        self.device = device
        self.process: psutil.Process | None = None
        with suppress(ImportError):  # a bare machine may lack it
            import psutil

            self.process = psutil.Process()
        self.counted_to = time.monotonic(), time.process_time()

    def row(self) -> dict[str, float]:
        """Return the cores that were busy since the last row, and the memory in MiB: now, of a GPU at most so far.

        The size of the GPU stands beside it: by that packs are formed.
        """
        (began, used), self.counted_to = self.counted_to, (time.monotonic(), time.process_time())
        seconds = max(self.counted_to[0] - began, 1e-9)
        row = {"sys/cpu_cores": (self.counted_to[1] - used) / seconds}
        if self.process is not None:
            row["sys/memory_mib"] = self.process.memory_info().rss / MIB
        if self.device.type == "cuda":
            import torch

            row["sys/gpu_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / MIB
            row[GPU_SIZE] = torch.cuda.get_device_properties(self.device).total_memory / MIB
        return row


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones, where its C library can.

    glibc maps each tensor of more than 32 MiB anew, and the system clears its pages one by one at the first touch: on a
    CPU that is a tenth of a training step, and several times the cost of an activation.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_MAX, 0)
        set_option(_TRIM_THRESHOLD, (1 << 31) - 1)
