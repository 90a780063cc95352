"""Tensors of a module: all that a training may change, by name, and their layout for convolutions on pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BUFFERS = "buffers/"  # in front of the name of a buffer that a module's state leaves out


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state by name, and its buffers that are registered as not persistent.

    A training may change those too.
    """
    state: dict[str, Tensor] = dict(module.state_dict())
    others = {
        f"{BUFFERS}{name}": value.detach()
        for name, value in module.named_buffers(remove_duplicate=False)
        if name not in state and value.layout == torch.strided  # a file holds no others
    }
    return state | others


@torch.no_grad()
def load_full_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module the tensors that `full_state` returns; RuntimeError where they are of another net.

    A buffer that is not persistent may be missing among them: it keeps its value.
    """
    module.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(BUFFERS)})
    parts = dict(module.named_modules(remove_duplicate=False))
    home = next((value.device for value in module.parameters()), torch.device("cpu"))
    for name, value in tensors.items():
        path, _, last = name.removeprefix(BUFFERS).rpartition(".")
        if name.startswith(BUFFERS) and path in parts:
            _set_buffer(parts[path], last, value, home)


def to_channels_last(module: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Return `module`, moved to a device where one is given, its tensors of four dimensions with their channels last.

    `Module.to` asks that of tensors of five dimensions too, for which there is no such layout.
    """
    if device is not None:
        module = module.to(device)
    for value in (*module.parameters(), *module.buffers()):
        if value.dim() == 4:
            value.data = value.data.to(memory_format=torch.channels_last)
    return module


def _set_buffer(part: nn.Module, name: str, value: Tensor, home: torch.device) -> None:
    """Give a part of a module the value of a buffer that is not persistent; one that a forward pass makes is made."""
    current = part._buffers.get(name)
    if current is not None and _takes(current, value):
        current.copy_(value)
    elif name in part._buffers or not hasattr(part, name):
        device = home if current is None else current.device
        part.register_buffer(name, value.to(device, copy=True), persistent=False)


def _takes(current: Tensor, value: Tensor) -> bool:
    """Return whether a value can be copied into a tensor: one of its shape and type, whose elements are all its own."""
    is_alike = (current.shape, current.dtype) == (value.shape, value.dtype)
    return is_alike and 0 not in current.stride() and not current.is_inference()
