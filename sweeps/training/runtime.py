"""Where a trial runs: its ledger, its data, its device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and with what a trial runs. Nothing here changes the science, and nothing of it is in the key.

    `ledger` and `data_dir` are absolute; `workers` decode pictures, `threads` compute on a CPU; `fingerprint` is
    that of the data the sweep was planned with (empty: any). A worker that takes no step for `hang_seconds` ends. A
    file whose decoded pictures take no more than `resident_bytes` is decoded once and kept on the device. A data set
    that is not in `data_dir` is pulled from `data_source`, where one is given. A trial is trained by so many `ranks`,
    processes of one host that share each batch; each has `workers` and `threads` of its own, and a GPU where `device`
    is cuda. There, without `deterministic`, cuDNN takes its fastest kernels: a step done again may differ in a bit.
    """

    ledger: str
    data_dir: str
    device: str = "cpu"
    reader: str = "ffcv"
    workers: int = 1
    threads: int = 1
    checkpoint_minutes: float = 5.0
    fingerprint: str = ""
    deterministic: bool = True
    hang_seconds: float = 1800.0
    resident_bytes: int = 2 << 30
    data_source: str = ""
    ranks: int = 1
