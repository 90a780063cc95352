# PYTHON_ARGCOMPLETE_OK
"""Places of activations in a net of any library: python -m crelu_models places torchvision.models:resnet18."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crelu_models.command_line import Parser, add_version, python_command

if TYPE_CHECKING:
    from crelu_models.placement import PlacementOption


def main() -> int:
    """Do what the command line says and return the exit code: 0, or 2 where it cannot be done."""
    options = parser(python_command("crelu_models")).parse_args()
    try:
        print(table(options.net, options.size, dict(map(argument, options.arguments))))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser(program: str = "python -m crelu_models") -> argparse.ArgumentParser:
    """Return the parser of the verbs."""
    parser = Parser(prog=program, description=__doc__, allow_abbrev=False)
    add_version(parser)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    text = "the activations of a net, where CReLU can stand, and which layer a width thins there"
    verb = verbs.add_parser("places", help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    verb.add_argument("net", metavar="MODULE:NAME", help="a function or class that makes the net, or the net itself")
    verb.add_argument("arguments", metavar="NAME=VALUE", nargs="*", help="arguments of that function, as JSON or words")
    verb.add_argument("--size", type=int, metavar="N",
                      help="side of its pictures: shows the size of each map")  # fmt: skip
    return parser


def argument(word: str) -> tuple[str, Any]:
    """Return the name and the value of a word NAME=VALUE; what is no JSON is text."""
    name, is_pair, value = word.partition("=")
    if not is_pair or not name.isidentifier():
        raise ValueError(f"{word!r} is no argument: write NAME=VALUE, such as image_size=64")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def table(name: str, size: int | None, arguments: Mapping[str, Any]) -> str:
    """Return the places of a net as a table; ValueError where it cannot be made, traced or run at this size."""
    from crelu_models.placement import places
    from crelu_models.tracing import net_by_name

    net = net_by_name(name, arguments)
    rows = places(net, size)
    heads = ["place", "now", "channels", *(["map"] if size else []), "CReLU", "a width thins"]
    cells = [_cells(row, size) for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in (heads, *cells)]
    doubling = sum(not row.doubles for row in rows)
    thinned = sum(bool(row.thins and not row.doubles) for row in rows)
    lines.append(f"\n{name}: CReLU can stand at {doubling} of {len(rows)} places, at {thinned} of them with a width.")
    lines += _reasons(rows)
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: PlacementOption, size: int | None) -> Sequence[str]:
    shape = ["x".join(map(str, row.shape)) or "1"] if size else []
    return [
        row.name,
        row.activation,
        str(row.channels or "?"),
        *shape,
        "no" if row.doubles else "yes",
        row.thins or "-",
    ]


def _reasons(rows: Sequence[PlacementOption]) -> list[str]:
    """Return why CReLU cannot stand at a place, or can but with no width, as sentences."""
    lines = [f"{row.name}: no CReLU, because {row.doubles}." for row in rows if row.doubles]
    lines += [f"{row.name}: no width, because {row.keeps}." for row in rows if row.keeps and not row.doubles]
    return ["", *lines] if lines else []


if __name__ == "__main__":
    sys.exit(main())
