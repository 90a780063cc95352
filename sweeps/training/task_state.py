"""State that a training function keeps in a checkpoint, as tensors and JSON: nothing of it is pickled.

It may hold tensors, arrays, numbers, words, None, and dictionaries, lists and tuples of these: what the `state_dict()`
of a net, an optimiser or a schedule returns, and the state of a generator.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweeps.store.ledger import Json


def pack(state: object) -> tuple[Json, dict[str, Tensor]]:
    """Return a state as JSON and the tensors that it names; ValueError for a value that cannot be kept."""
    tensors: dict[str, Tensor] = {}
    return {"state": _packed(state, "state", tensors)}, tensors


def unpack(packed: Json, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that `pack` took; its tensors are on the CPU."""
    return _unpacked(packed["state"], tensors)


def _packed(value: object, place: str, tensors: dict[str, Tensor]) -> object:
    """Return a value as JSON: plain ones as they are, all others as an object with one key, their kind."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Tensor):
        name = f"state/{len(tensors)}"
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": _packed(torch.from_numpy(np.ascontiguousarray(value)), place, tensors)}
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return _packed(value.item(), place, tensors)
    if isinstance(value, Mapping):
        items = [
            [_packed(name, place, tensors), _packed(item, f"{place}[{name!r}]", tensors)]
            for name, item in value.items()
        ]
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(item, f"{place}[{number}]", tensors) for number, item in enumerate(value)]}
    raise ValueError(
        f"run.checkpoint keeps tensors, arrays, numbers, words, None, and dictionaries, lists and tuples of them, not "
        f"the {type(value).__name__} at {place}: hand it what its state_dict() returns"
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float.fromhex(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return _unpacked(content, tensors).numpy()
    if kind == "dict":
        return {_unpacked(name, tensors): _unpacked(item, tensors) for name, item in content}
    items = [_unpacked(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def seed_generators(seed: int) -> None:
    """Seed the process's own generators: Python's, NumPy's and torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators(device: torch.device) -> Json:
    """Return the states of the process's own generators, to be kept in a checkpoint."""
    name, keys, *rest = np.random.get_state(legacy=True)
    states: Json = {"python": random.getstate(), "numpy": (name, keys, *rest), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_generators(states: Json, device: torch.device) -> None:
    """Set the process's own generators to the states that `generators` returned; those of a CPU serve a GPU too."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
