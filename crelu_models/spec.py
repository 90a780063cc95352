"""What a net is: the rows of its table, and the verbs that make one net from another. No torch here."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_type_hints

# Channels an activation gives for each filter it reads. "none" leaves a row linear; leaky_N is x/N below zero.
CHANNEL_FACTOR = {
    **dict.fromkeys(("relu", "avr", "none", "leaky_100", "leaky_3", "leaky_5.5", "prelu", "elu", "gelu", "silu"), 1),
    **dict.fromkeys(("crelu", "crelu_leaky", "concat_elu", "antirectifier"), 2),
}
# Other papers' names of CReLU (Blot et al. 2016, Kim et al. 2015). A net says crelu, so that none is trained twice.
ALIASES = {"maxmin": "crelu", "on_off": "crelu"}
PRINTED = {"relu": "ReLU", "crelu": "CReLU", "avr": "AVR"}


LARGEST = 4096  # pixels of a side up to which the least one that works is looked for


class Conv(NamedTuple):
    """One convolution with its bias, batch norm if any, and activation; `filters` None is one per class."""

    name: str
    filters: int | None
    kernel: int
    stride: int = 1
    pad: int = 0
    bn: bool = False
    act: str = "relu"


class Pool(NamedTuple):
    """One pooling, "max" or "avg"; `kernel` 0 is over all positions, `ceil` keeps a last, partial window."""

    name: str
    kind: str
    kernel: int
    stride: int = 1
    pad: int = 0
    ceil: bool = False


class Linear(NamedTuple):
    """One fully connected layer with its bias; the first one flattens its map. `units` None is one per class."""

    name: str
    units: int | None
    bn: bool = False
    act: str = "relu"


class Drop(NamedTuple):
    """Elementwise dropout right behind the row named `after`, or on the picture where that is "input"."""

    after: str
    rate: float


Row = Conv | Pool | Linear | Drop
KINDS: dict[str, type[Row]] = {"conv": Conv, "pool": Pool, "linear": Linear, "drop": Drop}


class Layer(NamedTuple):
    """A row in its place: channels (or features) it reads, filters, channels it gives, side of its map."""

    row: Conv | Pool | Linear
    inputs: int
    filters: int
    channels: int
    side: int

    @property
    def weights(self) -> int:
        """Return the number of weights, biases apart."""
        return self.filters * self.inputs * (self.row.kernel**2 if isinstance(self.row, Conv) else 1)


@dataclass(frozen=True)
class Net:
    """An architecture: its rows, and the side of the pictures the paper gives it. The name is only for people.

    Every verb returns a new net; convs go by number, 1 for conv1. ValueError names what would be right.
    """

    name: str = field(compare=False)
    rows: tuple[Row, ...]
    size: int

    def __post_init__(self) -> None:
        """Raise ValueError where the rows make no net."""
        for rule, kept in _rules(self):
            if not kept:
                raise ValueError(f"{self.name} breaks a rule of every net, that {rule}: {list(self.rows)}")
        self.layers(1)

    def activation(self, name: str, *convs: int) -> Net:
        """Put the activation `name` behind these convs."""
        act, chosen = ALIASES.get(name, name), self._chosen(convs)
        if act not in CHANNEL_FACTOR:
            raise ValueError(f"no activation {name!r}; there are {', '.join([*CHANNEL_FACTOR, *ALIASES])}")
        if not convs:
            raise ValueError(f"{name} behind no conv of {self.name}: name one or more, by number")
        return self._edited(
            f"{act}({', '.join(map(str, convs))})",
            lambda row: row._replace(act=act) if isinstance(row, Conv) and row.name in chosen else row,
        )

    def crelu(self, *convs: int, width: float | None = None) -> Net:
        """Put CReLU behind these convs; `width` scales their filters, 0.5 keeps what the next layer sees."""
        changed = self.activation("crelu", *convs)
        return changed if width is None else changed.width(width, *convs)

    def avr(self, *convs: int) -> Net:
        """Put absolute value rectification behind these convs."""
        return self.activation("avr", *convs)

    def width(self, factor: float, *convs: int) -> Net:
        """Scale the filters of these convs; where none is named, of every conv and linear row but the classifier."""
        chosen = self._chosen(convs) or {row.name for row in self._layers()}
        if not 0 < factor < float("inf"):
            raise ValueError(f"a width is a finite factor above 0, such as 0.5, not {factor!r}")
        return self._edited(
            f"width({', '.join(map(str, [factor, *convs]))})",
            lambda row: _scaled(row, factor) if row[0] in chosen else row,
        )

    def without_bn(self, *convs: int) -> Net:
        """Take batch norm away from these convs."""
        chosen = self._chosen(convs)
        return self._edited(
            f"without_bn({', '.join(map(str, convs))})",
            lambda row: row._replace(bn=False) if isinstance(row, Conv) and row.name in chosen else row,
        )

    def dropout(self, rate: float, after: int | str) -> Net:
        """Drop this share behind a conv (its number), any layer (its name) or on the "input"; 0 for none."""
        place = after if isinstance(after, str) else f"conv{after}"
        layers = self._layers()
        places = ["input", *(row.name for row in layers)]
        if place not in places:
            raise ValueError(f"no dropout after {place!r}; the places are {', '.join(places)}")
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate is at least 0 and below 1, not {rate!r}")
        rows = _interleaved(layers, self.dropouts() | {place: float(rate)})
        return Net(f"{self.name}.dropout({rate}, {after})", rows, self.size)

    def dropouts(self) -> dict[str, float]:
        """Return the dropout rate behind each layer that has one, by the layer's name."""
        return {row.after: row.rate for row in self.rows if isinstance(row, Drop)}

    def final_activation(self, name: str) -> Net:
        """Put "none", "relu" or "avr" on the scores. The supplement prints one; here none is the default.

        A ReLU on the scores can die for good: every score 0, and so every gradient.
        """
        if name not in ("none", "relu", "avr"):
            raise ValueError(f"the final activation is none, relu or avr, not {name!r}")
        return self._edited(
            f"final_activation({name})",
            lambda row: row._replace(act=name) if isinstance(row, Conv | Linear) and row[1] is None else row,
        )

    def layers(self, classes: int, size: int | None = None) -> list[Layer]:
        """Return each conv, pool and linear row in its place, for pictures (3, size, size); the paper's by default."""
        size = self.size if size is None else size
        if classes < 1:
            raise ValueError(f"a net has at least 1 class, not {classes}")
        channels, before, rows = 3, size, self._layers()
        placed: list[Layer] = []
        for row, side in zip(rows, _sides(rows, size), strict=True):
            if side < 1:
                least = next((least for least in range(1, LARGEST) if min(_sides(rows, least)) > 0), None)
                need = f"{least} is the least" if least else f"not even {LARGEST} would do"
                raise ValueError(f"pictures of side {size} leave nothing at {row.name}: {need}")
            inputs = channels * before**2 if isinstance(row, Linear) else channels
            filters = 0 if isinstance(row, Pool) else row[1] or classes
            channels = channels if isinstance(row, Pool) else filters * CHANNEL_FACTOR[row.act]
            placed.append(Layer(row, inputs, filters, channels, side))
            before = side
        return placed

    def shapes(self, classes: int, size: int | None = None) -> list[tuple[str, int, int]]:
        """Return (layer, channels the next layer sees, side of the map) for each conv, pool and linear row."""
        return [(layer.row.name, layer.channels, layer.side) for layer in self.layers(classes, size)]

    def parameters(self, classes: int, size: int | None = None) -> int:
        """Count what is learned: weights, biases, batch norm's two and PReLU's one per filter."""
        return sum(
            layer.weights + layer.filters * (1 + 2 * layer.row.bn + (layer.row.act == "prelu"))
            for layer in self.layers(classes, size)
            if not isinstance(layer.row, Pool)
        )

    def macs(self, classes: int, size: int | None = None) -> int:
        """Count the multiply-accumulates of the convs and linear rows for one picture, forward."""
        return sum(layer.weights * layer.side**2 for layer in self.layers(classes, size))

    def to_json(self) -> dict[str, Any]:
        """Return the net as a JSON value; equal nets give equal values, whatever they are called."""
        tags = {kind: tag for tag, kind in KINDS.items()}
        return {"rows": [[tags[type(row)], *row] for row in self.rows], "size": self.size}

    @staticmethod
    def from_json(value: Any, name: str = "net") -> Net:
        """Return the net that `to_json` wrote; ValueError where `value` is none."""
        if not isinstance(value, dict) or set(value) != {"rows", "size"} or not isinstance(value["rows"], list):
            raise ValueError(f"a net in JSON is an object of a list `rows` and a `size`, not {value!r}")
        return Net(name, tuple(_row(row) for row in value["rows"]), value["size"])

    def __str__(self) -> str:
        """Return the supplement's rows: layer, kernel x kernel x inputs x filters, stride, padding, activation."""
        lines, placed, side = [], {layer.row.name: layer for layer in self.layers(1)}, self.size
        for row in self.rows:
            if isinstance(row, Drop):
                lines.append(f"{'dropout':9}{row.rate}")
            elif isinstance(row, Pool):
                kernel, steps = row.kernel or side, f"{row.stride:<3}{row.pad:<3}" if row.kernel else ""
                lines.append(f"{row.name:9}{f'{kernel}x{kernel}':18}{steps}{row.kind}")
            else:
                window = f"{placed[row.name].inputs}x{row[1] or 'classes'}"
                act = "BN+" * row.bn + PRINTED.get(row.act, row.act)
                if isinstance(row, Conv):
                    window, act = f"{row.kernel}x{row.kernel}x{window}", f"{row.stride:<3}{row.pad:<3}{act}"
                lines.append(f"{row.name:9}{window:18}{act}")
            side = side if isinstance(row, Drop) else placed[row.name].side
        return "\n".join(lines)

    def _edited(self, call: str, edit: Callable[[Row], Row]) -> Net:
        """Return this net with each row edited, named after the call that did it."""
        return Net(f"{self.name}.{call}", tuple(map(edit, self.rows)), self.size)

    def _layers(self) -> list[Conv | Pool | Linear]:
        """Return the rows that are not dropout."""
        return [row for row in self.rows if not isinstance(row, Drop)]

    def _chosen(self, convs: tuple[int, ...]) -> set[str]:
        """Return the names of these convs; ValueError where one is missing or gives the scores."""
        hidden = [row.name for row in self.rows if isinstance(row, Conv) and row.filters is not None]
        if wrong := [f"conv{number}" for number in convs if f"conv{number}" not in hidden]:
            raise ValueError(
                f"{self.name} cannot change {', '.join(wrong)}: its convs are {', '.join(hidden)}; the layer behind "
                "them gives one score per class, and final_activation is its verb"
            )
        return {f"conv{number}" for number in convs}


def seed_from(*parts: int | str) -> int:
    """Return a 63-bit number that depends on every part and their order: the seed of one stream of draws."""
    content = json.dumps([part if isinstance(part, str) else operator.index(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") >> 1


def _scaled(row: Row, factor: float) -> Row:
    """Return a conv or linear row with its filters times `factor`, rounded half up; other rows as they are."""
    if isinstance(row, Pool | Drop) or row[1] is None:
        return row
    scaled = int(row[1] * factor + 0.5)
    if scaled < 1:
        raise ValueError(f"width {factor} leaves no filter of the {row[1]} at {row.name}: {0.5 / row[1]} leaves one")
    return row._replace(filters=scaled) if isinstance(row, Conv) else row._replace(units=scaled)


def _interleaved(layers: Iterable[Conv | Pool | Linear], rates: dict[str, float]) -> tuple[Row, ...]:
    """Return the layers with a dropout row right behind each that has a rate above 0, and before the first."""
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
            room, partial = side + 2 * row.pad - row.kernel, isinstance(row, Pool) and row.ceil
            windows = (-(-room // row.stride) if partial else room // row.stride) + 1
            # A partial last window counts only where it begins on the picture or its first padding (Caffe's rule).
            late = partial and (windows - 1) * row.stride >= side + row.pad
            side = max(windows - late, 0)
        sides.append(side)
    return sides


def _row(value: Any) -> Row:
    """Return the row that `to_json` wrote, a list of its kind and its fields."""
    if not isinstance(value, list) or not value or value[0] not in list(KINDS):
        raise ValueError(f"a row in JSON is a list that begins with {', '.join(KINDS)}, not {value!r}")
    kind, fields = KINDS[value[0]], value[1:]
    hints = list(get_type_hints(kind).values())
    # To Python a bool is an int; in a table it is not.
    fits = [
        isinstance(each, hint) and (hint is bool) == isinstance(each, bool)
        for each, hint in zip(fields, hints, strict=False)
    ]
    if len(fields) != len(hints) or not all(fits):
        raise ValueError(f"a {value[0]} row in JSON is {', '.join(kind._fields)}, not {fields!r}")
    return kind(*fields)


def _rules(net: Net) -> Iterator[tuple[str, bool]]:
    """Yield what every net keeps and whether this one does; a rule relies on those before it."""
    layers = net._layers()
    heads = [row for row in layers if isinstance(row, Conv | Linear)]
    yield "it takes pictures of a whole side", type(net.size) is int
    names = {"input", *(row.name for row in layers if row.name.isidentifier())}
    yield "its layers have plain names of their own", len(names) == len(layers) + 1
    yield "filters, kernels and strides count from 1, padding from 0 to half a pool", all(map(_sound, layers))
    yield "its activations are known", all(row.act in CHANNEL_FACTOR for row in heads)
    yield "one conv or linear row has None for its filters, the last", [row[1] for row in heads].count(None) == 1
    yield "the scores are one per class", heads[-1][1] is None and CHANNEL_FACTOR[heads[-1].act] == 1
    yield "only linear rows follow a linear row", layers == sorted(layers, key=lambda row: isinstance(row, Linear))
    tail = layers[-1]
    yield "it ends in a linear row or a pool over all positions", isinstance(tail, Linear) or not tail.kernel
    yield "each dropout row stands right behind its layer", net.rows == _interleaved(layers, net.dropouts())
    yield "dropout rates lie between 0 and 1", all(0 < rate < 1 for rate in net.dropouts().values())


def _sound(row: Conv | Pool | Linear) -> bool:
    """Return whether the numbers and the kind of a row can be."""
    if isinstance(row, Linear):
        return row.units is None or row.units > 0
    if isinstance(row, Conv):
        return (row.filters is None or row.filters > 0) and min(row.kernel, row.stride) > 0 and row.pad >= 0
    window = row.kernel > 0 or row.kind == "avg"
    return window and row.kind in ("max", "avg") and row.stride > 0 and 0 <= row.pad <= row.kernel / 2
