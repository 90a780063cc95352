"""The state of a running trial on the ledger: one safetensors file, checked by a hash, the last two kept.

Nothing is unpickled: tensors are safetensors, the rest is JSON in the same file's header, so a checkpoint of
a stranger can be wrong but cannot run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import safetensors.torch
import torch

from sweeps.store.checkpoint_header import header
from sweeps.store.ledger import Ledger

KEPT = 2


class Checkpoint(NamedTuple):
    """Tensors by name, and the plain state: position, history, restarts."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def digest(tensors: Mapping[str, torch.Tensor], state: str = "") -> str:
    """Return the SHA-256 over names, types, shapes and bytes of `tensors`, and over `state`."""
    total = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save(ledger: Ledger, key: str, epoch: int, step: int, checkpoint: Checkpoint) -> None:
    """Write the state of trial `key` at (`epoch`, `step`) and drop all but the last two; OSError on a full disk."""
    state = json.dumps(checkpoint.state, sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    content = safetensors.torch.save(tensors, {"state": state, "sha256": digest(tensors, state)})
    ledger.write(f"checkpoints/{key}/{epoch:05d}-{step:08d}.safetensors", content)
    for name in ledger.names(f"checkpoints/{key}")[:-KEPT]:
        ledger.delete(f"checkpoints/{key}/{name}")


def load(ledger: Ledger, key: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint of trial `key`, and the names of the damaged ones that were passed over."""
    damaged: list[str] = []
    for name in reversed(ledger.names(f"checkpoints/{key}")):
        content = ledger.read(f"checkpoints/{key}/{name}")
        try:
            return _decode(content or b""), damaged
        except ValueError:
            damaged.append(name)
    return None, damaged


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
