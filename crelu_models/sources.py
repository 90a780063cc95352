"""Source code that a net or a trial runs, so that a changed function affects only the results that it computed.

Files are parsed and not imported, so this needs no torch. Definitions are followed by name from those that a training
calls. Of a table with one entry per kind of activation only the net's own kinds are read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from crelu_models.model import Model
from crelu_models.spec import ALIASES, Conv, Linear, Net

# What a training calls.
ROOTS = (
    ("crelu_models.modules", "build"),
    ("crelu_models.modules", "initialise"),
    ("crelu_models.dropout", "seed_dropout"),
)
# Dictionaries with one entry per kind of activation.
TABLES = ("KINDS", "ENERGY", "CHANNEL_FACTOR", "ALIASES")
_VALUE_CLASSES = ("NamedTuple", "dataclass")

# A definition: the dotted name of its module, and its own, "Class.method" for a method of a value class.
Definition = tuple[str, str]


class Code(NamedTuple):
    """Piece of source: its normalised text, the names in it, "a.b" for an attribute of a name, and all attributes."""

    text: str
    names: frozenset[str]
    attributes: frozenset[str]


class _Module(NamedTuple):
    """Parsed file: code by the name that it defines, table entries by kind, imports by local name, other statements.

    A method of a value class is a definition of its own, "Class.method".
    """

    definitions: dict[str, list[Code]]
    tables: dict[str, dict[str, Code]]
    imports: dict[str, tuple[str, str]]
    statements: list[Code]


class Rooms(NamedTuple):
    """Folders that hold our packages, by dotted name; code elsewhere in these packages is not followed.

    Nor are definitions whose dotted name begins with one of `ends`.
    """

    folders: tuple[tuple[str, Path], ...]
    ends: tuple[str, ...] = ()

    def definitions(self, package: str) -> Iterator[Definition]:
        """Yield the definitions in the files of a package."""
        for path in dict(self.folders)[package].glob("*.py"):
            yield from ((f"{package}.{path.stem}", name) for name in _parse_file(path).definitions)


def source_of(net: Net, folder: Path = Path(__file__).parent) -> str:
    """Return the normalised source in `folder` that decides what `net` computes.

    Comments, docstrings, annotations and error messages are removed; the order depends neither on the names of files
    nor on the order of definitions. The net's rows, their checks, and printing and counting of nets are left out.
    """
    return reached_source(Rooms((("crelu_models", folder), ("crelu_models.gpu", folder / "gpu"))), ROOTS, kinds_of(net))


def kinds_of(net: Net | Model) -> frozenset[str]:
    """Return the kinds of activation in a net, or of those placed in a model."""
    if isinstance(net, Model):
        return frozenset(ALIASES.get(placement.kind, placement.kind) for placement in net.placements)
    return frozenset(row.act for row in net.rows if isinstance(row, Conv | Linear))


@cache
def reached_source(rooms: Rooms, roots: tuple[Definition, ...], kinds: frozenset[str]) -> str:
    """Return the normalised source of these definitions and of all that they use, for these kinds of activation."""
    reached: dict[Definition, list[Code]] = {}
    external: set[str] = set()
    pending = list(roots)
    while pending:
        # Functions, classes and constants, from name to name.
        while pending:
            module, name = pending.pop()
            if (module, name) in reached or f"{module}.{name}".startswith(rooms.ends):
                continue
            reached[module, name] = _select(_module(rooms, module), name, kinds)
            for used in frozenset[str]().union(*(code.names for code in reached[module, name])):
                definitions, imported = _follow(rooms, module, used)
                pending += definitions
                external.add(imported)
        # Methods of the value classes reached, where any code reached has an attribute of that name.
        attributes = frozenset[str]().union(*(code.attributes for codes in reached.values() for code in codes))
        for module, owner in list(reached):
            parsed = _module(rooms, module)
            for name in parsed.definitions if parsed is not None else ():
                same, _, method = name.partition(".")
                if same == owner and method in attributes and (module, name) not in reached:
                    pending.append((module, name))
        pending = [item for item in pending if not ".".join(item).startswith(rooms.ends)]
    return "\n".join(sorted({code.text for codes in reached.values() for code in codes} | external))


def _select(module: _Module | None, name: str, kinds: Iterable[str]) -> list[Code]:
    """Return the code that defines a name, of a table the entries of these kinds; and the module's statements."""
    assert module is not None, name
    table = module.tables.get(name, {})
    entries = [table[kind] for kind in kinds if kind in table]
    return [*module.definitions.get(name, []), *entries, *module.statements]


@cache
def _follow(rooms: Rooms, module: str, used: str) -> tuple[tuple[Definition, ...], str]:
    """Return the definitions that a name stands for in a module; or the import, where it is not ours."""
    parsed = _module(rooms, module)
    local, _, attribute = used.partition(".")
    if parsed is None:
        return (), ""
    if local in parsed.definitions or local in parsed.tables:
        return ((module, local),), ""
    if local not in parsed.imports:
        return (), ""
    origin, original = parsed.imports[local]
    if origin.partition(".")[0] not in {package.partition(".")[0] for package, _ in rooms.folders}:
        return (), f"from {origin} import {original} as {local}"
    target = _module(rooms, f"{origin}.{original}")
    if target is None:
        return _follow(rooms, origin, original)
    # An imported module: one definition of it by attribute, or all where it is passed on as a value.
    return tuple((f"{origin}.{original}", name) for name in target.definitions if name == (attribute or name)), ""


@cache
def _module(rooms: Rooms, name: str) -> _Module | None:
    """Return the parsed module of this dotted name; None for one that is not followed."""
    package, _, stem = name.rpartition(".")
    folder = dict(rooms.folders).get(package)
    path = folder / f"{stem}.py" if folder is not None else None
    return _parse_file(path) if path is not None and path.is_file() else None


# Parsing


@cache
def _parse_file(path: Path) -> _Module:
    """Parse one file; ValueError where a table has no literal keys."""
    return _parse(path.read_text(encoding="utf-8"))


@cache
def _parse(text: str) -> _Module:
    """Parse the text of a file, once for all copies of it."""
    module = _Module({}, {}, {}, [])
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module.imports.update((alias.asname or alias.name, (node.module or "", alias.name)) for alias in node.names)
        elif isinstance(node, ast.Import):
            module.imports.update((alias.asname or alias.name.split(".")[0], (alias.name, "")) for alias in node.names)
    for node in tree.body:
        names = assigned_names(node)
        if isinstance(node, ast.ClassDef) and _is_value_class(node):
            for method in [item for item in node.body if isinstance(item, ast.FunctionDef)]:
                node.body.remove(method)
                module.definitions.setdefault(f"{node.name}.{method.name}", []).append(code_of(method))
            module.definitions[node.name] = [code_of(node)]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.definitions.setdefault(node.name, []).append(code_of(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and names and names[0] in TABLES:
            module.tables[names[0]] = _entries(names[0], node.value)
        elif names:
            for name in names:
                module.definitions.setdefault(name, []).append(code_of(node))
        elif not isinstance(node, ast.Import | ast.ImportFrom) and not is_constant(node) and not is_for_types(node):
            module.statements.append(code_of(node))
    return module


def code_of(node: ast.AST, before: str = "") -> Code:
    """Return a statement or expression as code; the text `before` precedes its own."""
    normaliser = _Normaliser()
    text = before + ast.unparse(normaliser.visit(node))
    return Code(text, frozenset(normaliser.names), frozenset(normaliser.attributes))


def _entries(name: str, table: ast.expr | None) -> dict[str, Code]:
    """Return the entries of a table by kind, each as an assignment."""
    entries: dict[str, Code] = {}
    for key, value in zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else [(None, None)]:
        if value is None or not isinstance(key, ast.Constant):
            raise ValueError(f"{name} must be a dictionary with one literal key per activation")
        entries[str(key.value)] = code_of(value, f"{name}[{key.value!r}] = ")
    return entries


def assigned_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement assigns; none where it also assigns something else, such as an item."""
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [item for target in targets for item in (target.elts if isinstance(target, ast.Tuple) else [target])]
    names = [item.id for item in flat if isinstance(item, ast.Name)]
    return names if len(names) == len(flat) else []


def _is_value_class(node: ast.ClassDef) -> bool:
    """Return whether a class is a NamedTuple or a dataclass, whose methods only our own code calls."""
    return any(kind in ast.unparse(part) for part in (*node.bases, *node.decorator_list) for kind in _VALUE_CLASSES)


def is_constant(node: ast.AST) -> bool:
    """Return whether a statement is a docstring or another bare constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_for_types(node: ast.AST) -> bool:
    """Return whether a statement is read by type checkers alone."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


class _Normaliser(ast.NodeTransformer):
    """Remover of what computes nothing: docstrings, annotations but those of fields, imports, messages of errors.

    It notes the names and attributes that it meets, in annotations too: these name the classes whose methods are
    called.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.in_class = False

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Note a name."""
        self.names.add(node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Note an attribute, with the name that it belongs to."""
        self.attributes.add(node.attr)
        if isinstance(node.value, ast.Name):
            self.names.add(f"{node.value.id}.{node.attr}")
            return node
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Drop the docstring and the annotations of a function."""
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg) and argument.annotation is not None:
                self.visit(argument.annotation)
                argument.annotation = None
        if node.returns is not None:
            self.visit(node.returns)
            node.returns = None
        return self._without_docstring(node, in_class=False)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Drop the docstring of a class."""
        return self._without_docstring(node, in_class=True)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Drop the annotation of a variable; the annotated names of a class are its fields."""
        self.generic_visit(node)
        if self.in_class:
            return node
        if node.value is None:
            return ast.Pass()
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Import(self, _: ast.Import) -> ast.AST:
        """Drop an import: what is used of it is followed by name."""
        return ast.Pass()

    def visit_ImportFrom(self, _: ast.ImportFrom) -> ast.AST:
        """Drop an import, as above."""
        return ast.Pass()

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Drop the message of an exception."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """Drop the message of an assertion."""
        node.msg = None
        return self.generic_visit(node)

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef, in_class: bool) -> ast.AST:
        node.body = [item for item in node.body if not is_constant(item)] or [ast.Pass()]
        outer = self.in_class
        self.in_class = in_class
        self.generic_visit(node)
        self.in_class = outer
        return node
