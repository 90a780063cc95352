"""Stand-in for CUDA graphs on a CPU: it records the operations of a call on their very tensors, and repeats these.

As with a graph, what is no tensor is held fast at the recording, recording computes nothing, and a look at a number
ends it.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_ATEN = torch.ops.aten
# In inference mode a look comes by its own name, else by the operation that it consists of.
LOOKS = (_ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.item.default, _ATEN.is_nonzero.default)


class Operations(TorchDispatchMode):
    """Operations of a call with their arguments and results, and what the tensors held before that it changed."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LOOKS:
            raise RuntimeError("operation not permitted when stream is capturing")
        # Batch norm's schema hides that it writes its statistics, so all tensors from outside are kept.
        for tensor in tree_flatten((args, kwargs))[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.before:
                saved = tensor.untyped_storage().clone()
                self.before[tensor.untyped_storage().data_ptr()] = (tensor, saved)
        result = func(*args, **kwargs)
        self.made.append((func, args, kwargs, [r for r in tree_flatten(result)[0] if isinstance(r, Tensor)]))
        return result

    def undo(self) -> None:
        for tensor, saved in self.before.values():
            tensor.untyped_storage().copy_(saved)

    def repeat(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, results in self.made:
                again = [r for r in tree_flatten(func(*args, **kwargs))[0] if isinstance(r, Tensor)]
                for held, value in zip(results, again, strict=True):
                    if held.data_ptr() != value.data_ptr():
                        held.copy_(value)


class OpRecorder:
    """Recorder of a test; each look at its clock is a second later than the last."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.clock = count(0.0, seconds)
        self.recorded = 0

    def now(self) -> float:
        return next(self.clock)

    def warm_up(self, call: Callable[[], Any]) -> Any:
        return call()

    def record(
        self, call: Callable[[], Tensor | None], generators: Sequence[torch.Generator]
    ) -> tuple[Callable[[], None], Tensor | None]:
        states = [generator.get_state() for generator in generators]
        operations = Operations()
        try:
            with operations:
                result = call()
        finally:
            operations.undo()
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
        self.recorded += 1
        return operations.repeat, result


class Waits(TorchDispatchMode):
    """Count of the operations for which a GPU makes the host wait.

    They are looks at a number, histograms, which look at their range, and tensors that are made of the host's numbers.
    """

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (*LOOKS, _ATEN.bincount.default, _ATEN.lift_fresh.default)
        return func(*args, **(kwargs or {}))
