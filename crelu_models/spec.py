"""Nets as values: the rows of a table, and verbs that derive one net from another. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_type_hints

# Output channels of an activation for each filter. "none" leaves a row linear; leaky_N is x/N below zero.
CHANNEL_FACTOR = {
    "relu": 1,
    "crelu": 2,
    "avr": 1,
    "none": 1,
    "leaky_100": 1,
    "leaky_3": 1,
    "leaky_5.5": 1,
    "prelu": 1,
    "elu": 1,
    "gelu": 1,
    "silu": 1,
    "crelu_leaky": 2,
    "concat_elu": 2,
    "antirectifier": 2,
}
# Other papers' names of CReLU (Blot et al. 2016, Kim et al. 2015). A net stores "crelu", so that none is trained twice.
ALIASES = {"maxmin": "crelu", "on_off": "crelu"}
PRINTED = {"relu": "ReLU", "crelu": "CReLU", "avr": "AVR"}
LARGEST = 4096  # pixels; an error names the least side that works up to this one


class Conv(NamedTuple):
    """Convolution with bias, optional batch norm and activation; `filters` None means one per class."""

    name: str
    filters: int | None
    kernel: int
    stride: int = 1
    pad: int = 0
    bn: bool = False
    act: str = "relu"


class Pool(NamedTuple):
    """Pooling, "max" or "avg"; `kernel` 0 means all positions, `ceil` includes a last, partial window."""

    name: str
    kind: str
    kernel: int
    stride: int = 1
    pad: int = 0
    ceil: bool = False


class Linear(NamedTuple):
    """Fully connected layer with bias; the first one flattens its map. `units` None means one per class."""

    name: str
    units: int | None
    bn: bool = False
    act: str = "relu"


class Drop(NamedTuple):
    """Elementwise dropout directly behind the row named `after`; "input" means on the picture."""

    after: str
    rate: float


Row = Conv | Pool | Linear | Drop
ROW_TYPES: dict[str, type[Row]] = {"conv": Conv, "pool": Pool, "linear": Linear, "drop": Drop}


class Layer(NamedTuple):
    """Row of a net with its shape: input channels (or features), filters, output channels, side of its map."""

    row: Conv | Pool | Linear
    inputs: int
    filters: int
    channels: int
    side: int

    @property
    def weights(self) -> int:
        """Return the number of weights without biases."""
        return self.filters * self.inputs * (self.row.kernel**2 if isinstance(self.row, Conv) else 1)


@dataclass(frozen=True)
class Net:
    """Architecture as rows and the paper's picture side. The name is a label and no part of equality.

    Every verb returns a new net and names convs by number, 1 for conv1. ValueError names the allowed values.
    """

    name: str = field(compare=False)
    rows: tuple[Row, ...]
    size: int

    def __post_init__(self) -> None:
        """Raise ValueError where the rows break a rule of every net."""
        for rule, holds in _rules(self):
            if not holds:
                raise ValueError(f"{self.name} breaks a rule of every net, that {rule}: {list(self.rows)}")
        self.layers(1)

    def activation(self, name: str, *convs: int) -> Net:
        """Put the activation `name` behind these convs."""
        act = ALIASES.get(name, name)
        names = self._conv_names(convs)
        if act not in CHANNEL_FACTOR:
            raise ValueError(f"unknown activation {name!r}; use one of {', '.join([*CHANNEL_FACTOR, *ALIASES])}")
        if not convs:
            raise ValueError(f"{name} behind no conv of {self.name}: give the number of one conv or more")
        return self._edited(
            f"{act}({', '.join(map(str, convs))})",
            lambda row: row._replace(act=act) if isinstance(row, Conv) and row.name in names else row,
        )

    def crelu(self, *convs: int, width: float | None = None) -> Net:
        """Put CReLU behind these convs; `width` scales their filters, and 0.5 preserves the next layer's input."""
        changed = self.activation("crelu", *convs)
        return changed if width is None else changed.width(width, *convs)

    def avr(self, *convs: int) -> Net:
        """Put absolute value rectification behind these convs."""
        return self.activation("avr", *convs)

    def width(self, factor: float, *convs: int) -> Net:
        """Scale the filters of these convs; without arguments, of every conv and linear row but the classifier."""
        names = self._conv_names(convs) or {row.name for row in self._layers()}
        if not 0 < factor < float("inf"):
            raise ValueError(f"a width is a finite factor above 0, such as 0.5, not {factor!r}")
        return self._edited(
            f"width({', '.join(map(str, [factor, *convs]))})",
            lambda row: _scaled(row, factor) if row[0] in names else row,
        )

    def without_bn(self, *convs: int) -> Net:
        """Remove batch norm from these convs."""
        names = self._conv_names(convs)
        return self._edited(
            f"without_bn({', '.join(map(str, convs))})",
            lambda row: row._replace(bn=False) if isinstance(row, Conv) and row.name in names else row,
        )

    def dropout(self, rate: float, after: int | str) -> Net:
        """Drop this share behind a conv (by number), a layer (by name) or on the "input"; 0 removes dropout."""
        name = after if isinstance(after, str) else f"conv{after}"
        layers = self._layers()
        names = ["input", *(row.name for row in layers)]
        if name not in names:
            raise ValueError(f"no dropout after {name!r}; use one of {', '.join(names)}")
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate is at least 0 and below 1, not {rate!r}")
        rows = _interleaved(layers, self.dropouts() | {name: float(rate)})
        return Net(f"{self.name}.dropout({rate}, {after})", rows, self.size)

    def dropouts(self) -> dict[str, float]:
        """Return the dropout rate behind each layer that has one, by the layer's name."""
        return {row.after: row.rate for row in self.rows if isinstance(row, Drop)}

    def final_activation(self, name: str) -> Net:
        """Put "none", "relu" or "avr" on the scores. The supplement prints one; the default here is none.

        A ReLU on the scores can die for good: all scores are 0, and then so are all gradients.
        """
        if name not in ("none", "relu", "avr"):
            raise ValueError(f"the final activation is none, relu or avr, not {name!r}")
        return self._edited(
            f"final_activation({name})",
            lambda row: row._replace(act=name) if isinstance(row, Conv | Linear) and row[1] is None else row,
        )

    def layers(self, classes: int, size: int | None = None) -> list[Layer]:
        """Return the shape of each conv, pool and linear row for pictures (3, size, size), by default the paper's."""
        size = self.size if size is None else size
        if classes < 1:
            raise ValueError(f"a net has at least 1 class, not {classes}")
        rows = self._layers()
        channels = 3
        before = size
        layers: list[Layer] = []
        for row, side in zip(rows, _sides(rows, size), strict=True):
            if side < 1:
                least = next((least for least in range(1, LARGEST) if min(_sides(rows, least)) > 0), None)
                need = f"{least} is the least" if least else f"not even {LARGEST} would do"
                raise ValueError(f"pictures of side {size} leave nothing at {row.name}: {need}")
            inputs = channels * before**2 if isinstance(row, Linear) else channels
            filters = 0 if isinstance(row, Pool) else row[1] or classes
            channels = channels if isinstance(row, Pool) else filters * CHANNEL_FACTOR[row.act]
            layers.append(Layer(row, inputs, filters, channels, side))
            before = side
        return layers

    def shapes(self, classes: int, size: int | None = None) -> list[tuple[str, int, int]]:
        """Return (layer, output channels, side of the map) for each conv, pool and linear row."""
        return [(layer.row.name, layer.channels, layer.side) for layer in self.layers(classes, size)]

    def parameters(self, classes: int, size: int | None = None) -> int:
        """Count learned parameters: weights, biases, two per filter for batch norm and one for PReLU."""
        return sum(
            layer.weights + layer.filters * (1 + 2 * layer.row.bn + (layer.row.act == "prelu"))
            for layer in self.layers(classes, size)
            if not isinstance(layer.row, Pool)
        )

    def macs(self, classes: int, size: int | None = None) -> int:
        """Count multiply-accumulates of convs and linear rows in the forward pass of one picture."""
        return sum(layer.weights * layer.side**2 for layer in self.layers(classes, size))

    def to_json(self) -> dict[str, Any]:
        """Return the net as a JSON value without its name; equal nets give equal values."""
        tags = {kind: tag for tag, kind in ROW_TYPES.items()}
        return {"rows": [[tags[type(row)], *row] for row in self.rows], "size": self.size}

    @staticmethod
    def from_json(value: Any, name: str = "net") -> Net:
        """Return the net that `to_json` wrote; ValueError where `value` is no net."""
        if not isinstance(value, dict) or set(value) != {"rows", "size"} or not isinstance(value["rows"], list):
            raise ValueError(f"a net in JSON is an object of a list `rows` and a `size`, not {value!r}")
        return Net(name, tuple(_row(row) for row in value["rows"]), value["size"])

    def __str__(self) -> str:
        """Return the supplement's rows: layer, kernel x kernel x inputs x filters, stride, padding, activation."""
        lines = []
        layers = {layer.row.name: layer for layer in self.layers(1)}
        side = self.size
        for row in self.rows:
            if isinstance(row, Drop):
                lines.append(f"{'dropout':9}{row.rate}")
            elif isinstance(row, Pool):
                kernel = row.kernel or side
                steps = f"{row.stride:<3}{row.pad:<3}" if row.kernel else ""
                lines.append(f"{row.name:9}{f'{kernel}x{kernel}':18}{steps}{row.kind}")
            else:
                window = f"{layers[row.name].inputs}x{row[1] or 'classes'}"
                act = "BN+" * row.bn + PRINTED.get(row.act, row.act)
                if isinstance(row, Conv):
                    window = f"{row.kernel}x{row.kernel}x{window}"
                    act = f"{row.stride:<3}{row.pad:<3}{act}"
                lines.append(f"{row.name:9}{window:18}{act}")
            side = side if isinstance(row, Drop) else layers[row.name].side
        return "\n".join(lines)

    def _edited(self, call: str, edit: Callable[[Row], Row]) -> Net:
        """Return the net with each row edited; its name records the call."""
        return Net(f"{self.name}.{call}", tuple(map(edit, self.rows)), self.size)

    def _layers(self) -> list[Conv | Pool | Linear]:
        """Return the rows that are not dropout."""
        return [row for row in self.rows if not isinstance(row, Drop)]

    def _conv_names(self, convs: tuple[int, ...]) -> set[str]:
        """Return the names of these convs; ValueError where one is missing or is the layer of the scores."""
        hidden = [row.name for row in self.rows if isinstance(row, Conv) and row.filters is not None]
        if wrong := [f"conv{number}" for number in convs if f"conv{number}" not in hidden]:
            raise ValueError(
                f"{self.name} cannot change {', '.join(wrong)}: its convs are {', '.join(hidden)}; use "
                "final_activation for the last layer, which gives one score per class"
            )
        return {f"conv{number}" for number in convs}


def seed_from(*parts: int | str) -> int:
    """Return a 63-bit seed of one random stream, which depends on every part and their order."""
    content = json.dumps([part if isinstance(part, str) else operator.index(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") >> 1


def _scaled(row: Row, factor: float) -> Row:
    """Return a conv or linear row with its filters times `factor`, rounded half up; other rows unchanged."""
    if isinstance(row, Pool | Drop) or row[1] is None:
        return row
    scaled = int(row[1] * factor + 0.5)
    if scaled < 1:
        raise ValueError(f"width {factor} leaves no filter of the {row[1]} at {row.name}: {0.5 / row[1]} leaves one")
    return row._replace(filters=scaled) if isinstance(row, Conv) else row._replace(units=scaled)


def _interleaved(layers: Iterable[Conv | Pool | Linear], rates: dict[str, float]) -> tuple[Row, ...]:
    """Return the layers with a dropout row behind each one that has a rate above 0, and one for "input" in front."""
    rows: list[Row] = [Drop("input", rates["input"])] if rates.get("input") else []
    for layer in layers:
        rows += [layer, Drop(layer.name, rates[layer.name])] if rates.get(layer.name) else [layer]
    return tuple(rows)


def _sides(rows: Sequence[Conv | Pool | Linear], side: int) -> list[int]:
    """Return the side of the map behind each row, 0 where it is empty."""
    sides = []
    for row in rows:
        if isinstance(row, Linear) or not row.kernel:
            side = min(side, 1)
        elif side > 0:
            span = side + 2 * row.pad - row.kernel
            partial = isinstance(row, Pool) and row.ceil
            windows = (-(-span // row.stride) if partial else span // row.stride) + 1
            # A partial last window counts only where it begins on the picture or its first padding (Caffe's rule).
            late = partial and (windows - 1) * row.stride >= side + row.pad
            side = max(windows - late, 0)
        sides.append(side)
    return sides


def _row(value: Any) -> Row:
    """Return the row that `to_json` wrote as a list of its type and fields."""
    if not isinstance(value, list) or not value or value[0] not in list(ROW_TYPES):
        raise ValueError(f"a row in JSON is a list that begins with {', '.join(ROW_TYPES)}, not {value!r}")
    kind = ROW_TYPES[value[0]]
    fields = value[1:]
    hints = list(get_type_hints(kind).values())
    # For isinstance a bool is an int; in a table it is not.
    fits = [
        isinstance(item, hint) and (hint is bool) == isinstance(item, bool)
        for item, hint in zip(fields, hints, strict=False)
    ]
    if len(fields) != len(hints) or not all(fits):
        raise ValueError(f"a {value[0]} row in JSON is {', '.join(kind._fields)}, not {fields!r}")
    return kind(*fields)


def _rules(net: Net) -> Iterator[tuple[str, bool]]:
    """Yield each rule of nets and whether it holds for this one; a rule relies on those before it."""
    layers = net._layers()
    heads = [row for row in layers if isinstance(row, Conv | Linear)]
    yield "the side of its pictures is an integer", type(net.size) is int
    names = {"input", *(row.name for row in layers if row.name.isidentifier())}
    yield "its layers have distinct names that are identifiers", len(names) == len(layers) + 1
    yield (
        "filters, kernels and strides are at least 1, padding is 0 to half a pool",
        all(map(_sound, layers)),
    )
    yield "its activations are known", all(row.act in CHANNEL_FACTOR for row in heads)
    yield (
        "one conv or linear row, the last, has None for its filters",
        [row[1] for row in heads].count(None) == 1,
    )
    yield "the last layer gives one score per class", heads[-1][1] is None and CHANNEL_FACTOR[heads[-1].act] == 1
    yield "only linear rows follow a linear row", layers == sorted(layers, key=lambda row: isinstance(row, Linear))
    tail = layers[-1]
    yield "it ends in a linear row or a pool over all positions", isinstance(tail, Linear) or not tail.kernel
    yield "each dropout row stands right behind its layer", net.rows == _interleaved(layers, net.dropouts())
    yield "dropout rates lie between 0 and 1", all(0 < rate < 1 for rate in net.dropouts().values())


def _sound(row: Conv | Pool | Linear) -> bool:
    """Return whether the numbers and the kind of a row are possible."""
    if isinstance(row, Linear):
        return row.units is None or row.units > 0
    if isinstance(row, Conv):
        return (row.filters is None or row.filters > 0) and min(row.kernel, row.stride) > 0 and row.pad >= 0
    window = row.kernel > 0 or row.kind == "avg"
    return window and row.kind in ("max", "avg") and row.stride > 0 and 0 <= row.pad <= row.kernel / 2
