"""Checkpoints of running trials on the ledger: one safetensors file each, verified by a hash; the last two remain.

Nothing is unpickled: tensors are safetensors, all else is JSON in the header of the same file. A damaged or foreign
file can be wrong but cannot run code. How often and how states are saved decides no number.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import safetensors.torch
import torch

from sweeps.store.checkpoint_header import header
from sweeps.store.ledger import Ledger

KEEP = 2
# The end of an epoch is saved at this many times the duration of a save since the last one. Where epochs are shorter
# than that, some are not: a kill then costs seconds, and saving costs about a hundredth of a trial.
SAVING_INTERVAL = 100


class Checkpoint(NamedTuple):
    """State of a trial: tensors by name, and plain values such as position, history and restarts."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class Cadence:
    """Clock that says when a running trial saves its state: after an epoch, or every `minutes` within one."""

    def __init__(self, minutes: float) -> None:
        """Start the clock, as after a save."""
        self.minutes = minutes
        self.saved_at = time.monotonic()
        self.duration = 0.0

    def saved(self, began: float) -> None:
        """Note a save that began at this time of `time.monotonic()` and has ended now."""
        self.saved_at = time.monotonic()
        self.duration = self.saved_at - began

    def epoch_is_due(self) -> bool:
        """Return whether the end of an epoch is saved: only where saving is cheap beside it."""
        return time.monotonic() - self.saved_at >= SAVING_INTERVAL * self.duration

    def step_is_due(self) -> bool:
        """Return whether the last save is `minutes` ago."""
        return time.monotonic() - self.saved_at > 60 * self.minutes


def digest(tensors: Mapping[str, torch.Tensor], state: str = "") -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `tensors`, and over `state`."""
    total = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors on the CPU, each contiguous and in memory of its own, as a file needs them: tied weights are two.

    A file of them holds each; a model that ties its weights reads the same values twice.
    """
    stored: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        stored[name] = value.clone() if address in storages else value
        storages.add(address)
    return stored


def save(ledger: Ledger, key: str, epoch: int, step: int, checkpoint: Checkpoint) -> None:
    """Write the state of trial `key` at (`epoch`, `step`), then delete all but the last two; OSError on a full disk."""
    state = json.dumps(checkpoint.state, sort_keys=True)
    tensors = separate(checkpoint.tensors)
    content = safetensors.torch.save(tensors, {"state": state, "sha256": digest(tensors, state)})
    ledger.write(f"checkpoints/{key}/{epoch:05d}-{step:08d}.safetensors", content)
    for name in ledger.names(f"checkpoints/{key}")[:-KEEP]:
        ledger.delete(f"checkpoints/{key}/{name}")


def load(ledger: Ledger, key: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint of trial `key`, and the names of newer ones that are damaged."""
    damaged: list[str] = []
    for name in reversed(ledger.names(f"checkpoints/{key}")):
        content = ledger.read(f"checkpoints/{key}/{name}")
        try:
            return _decode(content or b""), damaged
        except ValueError:
            damaged.append(name)
    return None, damaged


def resume(ledger: Ledger, key: str, code: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint that trial `key` continues from, and what became of the others, which are deleted."""
    saved, damaged = load(ledger, key)
    events = [f"checkpoint {name} was damaged; the one before it was taken" for name in damaged]
    for name in damaged:
        ledger.delete(f"checkpoints/{key}/{name}")
    if saved is not None and saved.state.get("code") != code:
        # A training half by other code would be a result of neither.
        ledger.delete(f"checkpoints/{key}")
        events.append(f"the code has changed since epoch {saved.state['epoch']}; begun anew")
        saved = None
    return saved, events


def _decode(content: bytes) -> Checkpoint:
    """Return the checkpoint in `content`; ValueError where a single bit of it is wrong."""
    notes = header(content)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not a checkpoint: {error}") from None
    if digest(tensors, notes["state"]) != notes["sha256"]:
        raise ValueError("not a checkpoint: its checksum differs from its content")
    state = json.loads(notes["state"])
    if not isinstance(state, dict):
        raise ValueError("not a checkpoint: its state is no JSON object")
    return Checkpoint(tensors, state)
