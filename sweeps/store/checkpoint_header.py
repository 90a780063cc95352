"""Headers of checkpoints: the state of a running trial without its tensors, readable without torch."""

from __future__ import annotations

import json
import struct

from sweeps.store.ledger import Json, Ledger


def header(content: bytes) -> dict[str, str]:
    """Return the notes in the header of a checkpoint; ValueError where `content` does not hold a whole header."""
    try:
        (size,) = struct.unpack("<Q", content[:8])
        notes = json.loads(content[8 : 8 + size])["__metadata__"]
        if not (isinstance(notes["state"], str) and isinstance(notes["sha256"], str)):
            raise ValueError("notes are strings")
        return {"state": notes["state"], "sha256": notes["sha256"]}
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a checkpoint: {error}") from None


def progress(ledger: Ledger, key: str) -> Json | None:
    """Return the plain state in the newest readable checkpoint of trial `key`."""
    for name in reversed(ledger.names(f"checkpoints/{key}")):
        path = f"checkpoints/{key}/{name}"
        try:
            (size,) = struct.unpack("<Q", ledger.head(path, 8))
            state = json.loads(header(ledger.head(path, 8 + min(size, 1 << 28)))["state"])
        except (ValueError, struct.error, OSError):
            continue
        return state if isinstance(state, dict) else None
    return None
