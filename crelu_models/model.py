"""Models of a library or of the user's own as values: data like a net, built where torch is. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crelu_models.named import split_name
from crelu_models.spec import LARGEST


class Placement(NamedTuple):
    """Activation put behind the modules that these globs name; `width` scales the channels in front of it."""

    kind: str
    globs: tuple[str, ...]
    width: float = 1.0


@dataclass(frozen=True, init=False)
class Model:
    """Model that `factory`, "module:function", returns for pictures of side `size`; 0 takes the side that data offer.

    The function is called with `num_classes` and these arguments, which are JSON values: a tuple arrives as a list.
    Its module lies beside the page or is installed. The name is a label and no part of equality.

        Model("torchvision.models:resnet18", size=64, zero_init_residual=True)
    """

    name: str = field(compare=False)
    factory: str
    size: int
    arguments_text: str  # canonical JSON
    placements: tuple[Placement, ...]
    at_globs: tuple[str, ...] = field(compare=False)

    def __init__(self, factory: str, /, size: int = 0, **arguments: Any) -> None:
        """Describe a model; ValueError for what cannot be one."""
        _, function = split_name(factory)
        if type(size) is not int or not 0 <= size <= LARGEST:
            raise ValueError(f"size of {factory} is the side of its pictures in pixels, 1 to {LARGEST}, not {size!r}")
        if "num_classes" in arguments:
            raise ValueError(f"{factory} is given num_classes by the data set, not by the page")
        text = _canonical(factory, arguments)
        words = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        self._set(f"{function}({words})" if words else function, factory, size, text, (), ())

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments besides `num_classes`, as the factory gets them."""
        arguments: dict[str, Any] = json.loads(self.arguments_text)
        return arguments

    def with_arguments(self, **changes: Any) -> Model:
        """Return the model with some arguments changed."""
        text = _canonical(self.factory, self.arguments | changes)
        words = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        return self._changed(f"{self.name}.with_arguments({words})", arguments_text=text)

    def at(self, *globs: str) -> Model:
        """Return the model with these globs of module names as the place of the next activation that names none."""
        _check_globs(self.name, globs)
        return self._changed(self.name, at_globs=globs)

    def activation(self, kind: str, *globs: str, width: float = 1.0) -> Model:
        """Put an activation in place of the modules that match a glob, or those of `at`.

        `kind` is one of this package, such as "crelu", one of torch.nn, such as "gelu", or "module:Class" of the user.
        """
        where = globs or self.at_globs
        _check_globs(f"{kind} in {self.name}", where)
        if not isinstance(kind, str) or not kind:
            raise ValueError(f'an activation is a name or "module:Class", not {kind!r}')
        if ":" in kind:
            split_name(kind)
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
            raise ValueError(f"a width is a finite factor above 0, such as 0.5, not {width!r}")
        placed = (*self.placements, Placement(kind, where, float(width)))
        scaled = f", width={width:g}" if width != 1 else ""
        return self._changed(f"{self.name}.{kind}({', '.join(where)}{scaled})", placements=placed)

    def avr(self, *globs: str) -> Model:
        """Put absolute value rectification there."""
        return self.activation("avr", *globs)

    def dropout(self, rate: float, after: int | str) -> Model:
        """Raise ValueError: a model's dropout is an argument of its factory."""
        raise ValueError(
            f"no dropout of {rate:g} after {after!r} in {self.name}: a model has its own dropout layers, so give its "
            "rate as an argument, Model(..., dropout=0.1), and search over it by Search(space=...)"
        )

    def dropouts(self) -> dict[str, float]:
        """Return no rate: a model's dropout is its own."""
        return {}

    @property
    def user_names(self) -> tuple[str, ...]:
        """Return the names, "module:name", whose code the model runs besides ours."""
        return (self.factory, *(placement.kind for placement in self.placements if ":" in placement.kind))

    def to_json(self) -> dict[str, Any]:
        """Return the model as a JSON value without its name; equal models give equal values."""
        return {
            "kind": "model",
            "factory": self.factory,
            "size": self.size,
            "arguments": self.arguments,
            "placements": [[kind, list(globs), width] for kind, globs, width in self.placements],
        }

    @staticmethod
    def from_json(value: Any, name: str = "") -> Model:
        """Return the model that `to_json` wrote; ValueError where `value` is none."""
        fields = {"kind": str, "factory": str, "size": int, "arguments": dict, "placements": list}
        if not isinstance(value, dict) or {key: type(item) for key, item in value.items()} != fields:
            raise ValueError(f"a model in JSON is an object of {', '.join(fields)}, not {value!r}")
        try:
            model = Model(value["factory"], value["size"], **value["arguments"])
            for kind, globs, width in value["placements"]:
                model = model.activation(kind, *globs, width=width)
        except TypeError as error:
            raise ValueError(f"not a model in JSON: {error}") from None
        return model.named(name or model.name)

    def __str__(self) -> str:
        """Return its factory, its arguments and where activations are placed."""
        size = f"size={self.size}, " if self.size else ""
        words = size + ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        lines = [f"{self.factory}({words.removesuffix(', ')})"]
        lines += [f"{kind:9}{' '.join(globs)}  x{width:g}" for kind, globs, width in self.placements]
        return "\n".join(lines)

    def named(self, name: str) -> Model:
        """Return the model under another name."""
        return self._changed(name)

    def _changed(self, name: str, **changes: Any) -> Model:
        """Return the model with another name and these fields."""
        fields = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)} | changes | {"name": name}
        other = object.__new__(Model)
        other._set(*fields.values())
        return other

    def _set(self, *values: Any) -> None:
        """Set the fields, in their order, of a new model."""
        for part, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, part.name, value)


def _canonical(factory: str, arguments: dict[str, Any]) -> str:
    """Return arguments as JSON in its one form; ValueError for a value that JSON has not."""
    for name, value in arguments.items():
        if not _is_json(value):
            raise ValueError(
                f"{name} of {factory} is a number, a word, true, None, or a list or an object of such, not {value!r}; "
                "what is made of others belongs into a function of your own"
            )
    return json.dumps(arguments, sort_keys=True, separators=(",", ":"))


def _is_json(value: Any) -> bool:
    """Return whether JSON has a value, a tuple as a list."""
    if isinstance(value, dict):
        return all(type(name) is str and _is_json(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def _check_globs(what: str, globs: tuple[str, ...]) -> None:
    if not globs or not all(isinstance(glob, str) and glob for glob in globs):
        raise ValueError(f'{what}: give the modules\' names or globs of them, such as "layer1.*.relu", not {globs!r}')
