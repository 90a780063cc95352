"""Process that builds models and measures them: sizes, and whether they give scores of classes.

It reads requests as JSON from standard input, and writes an answer after each to the file of its argument: sizes, or a
sentence that says what is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crelu_models.from_factory import build_model
from crelu_models.model import Model
from crelu_models.named import error_text, load_named

PICTURES = 2  # of a pass: batch norm needs two


def measure(model: Model, classes: int, size: int) -> tuple[int, int, int]:
    """Return parameters, multiply-adds and elements of all maps of a model, for one picture of this side.

    ValueError where it cannot be built, or gives no scores (n, classes) for pictures (n, 3, size, size).
    """
    module = build_model(model, classes, 0)
    parameters = _learned(model, module)
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{model.factory} keeps a {type(value).__name__} in its state as {name}, not a tensor")
    try:
        operations, maps = _pass(module.to("meta"), classes, size, torch.device("meta"))
    except Exception:  # not every model runs without memory: what is wrong shows with it
        module = build_model(model, classes, 0)
        try:
            operations, maps = _pass(module, classes, size, torch.device("cpu"))
        except _WrongScoresError as error:
            raise ValueError(f"{model.factory} {error}") from None
        except Exception as error:
            shape = f"({PICTURES}, 3, {size}, {size})"
            raise ValueError(f"{model.factory} fails on pictures {shape}: {error_text(error)}") from error
    return parameters, operations // 2 // PICTURES, maps // PICTURES


def count(model: Model, classes: int) -> int:
    """Return the parameters of a model, without memory for them where it can be built so.

    ValueError where it cannot be built.
    """
    for name in model.user_names:  # tensors that the user's modules make on import have values
        load_named(name)
    try:
        with torch.device("meta"):
            module = build_model(model, classes, 0)
    except ValueError:
        module = build_model(model, classes, 0)
    return _learned(model, module)


def _learned(model: Model, module: nn.Module) -> int:
    """Return how many parameters of a module learn; ValueError for none."""
    parameters = sum(value.numel() for value in module.parameters() if value.requires_grad)
    if not parameters:
        raise ValueError(f"{model.factory} has no parameter that learns")
    return parameters


class _WrongScoresError(Exception):
    """Error of a model whose output is not scores of classes."""


def _pass(module: nn.Module, classes: int, size: int, device: torch.device) -> tuple[int, int]:
    """Run a module in training and in evaluation; return its floating-point operations and the elements of its maps."""
    elements: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        elements.append(output.numel() if isinstance(output, Tensor) else 0)

    hooks = [part.register_forward_hook(note) for part in module.modules() if not list(part.children())]
    pictures = torch.zeros((PICTURES, 3, size, size), device=device)
    module.train()  # one of the user's may return nothing
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _check(module(pictures), classes, "in training")
    for hook in hooks:
        hook.remove()
    module.eval()
    with torch.no_grad():
        _check(module(pictures), classes, "in evaluation")
    return counter.get_total_flops(), sum(elements)


def _check(scores: object, classes: int, when: str) -> None:
    wanted = (PICTURES, classes)
    if not isinstance(scores, Tensor):
        raise _WrongScoresError(f"gives a {type(scores).__name__} {when}, not scores of shape (n, {classes})")
    if tuple(scores.shape) != wanted or not scores.is_floating_point():
        kind = f"{scores.dtype}".removeprefix("torch.")
        raise _WrongScoresError(f"gives {tuple(scores.shape)} of {kind} {when}, not scores of shape {wanted}")


def _answer(request: dict[str, Any]) -> tuple[int, int, int] | str:
    try:
        model, classes, size = Model.from_json(request["model"]), request["classes"], request["size"]
        return measure(model, classes, size) if size else (count(model, classes), 0, 0)
    except ValueError as error:
        return str(error)


def main(path: Path) -> None:
    """Answer the requests of standard input, one after the other."""
    torch.set_num_threads(1)
    answers: list[Any] = []
    _write(path, answers)  # what ends the process from here on is a model
    for request in json.load(sys.stdin):
        answers.append(_answer(request))
        _write(path, answers)


def _write(path: Path, answers: list[Any]) -> None:
    """Write the answers whole: the process may be ended at any time."""
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps(answers))
    whole.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
