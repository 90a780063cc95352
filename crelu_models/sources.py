"""Source code that a net runs, so that a changed activation affects only the nets that use it.

The package's files are parsed and not imported, so this needs no torch. Definitions are followed by name from the
functions that a training calls. Of a table with one entry per kind of activation only the net's own kinds are read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from crelu_models.spec import Conv, Linear, Net

# What a training calls, in modules.py.
ROOTS = ("build", "initialise", "seed_dropout")
# Dictionaries with one entry per kind of activation.
TABLES = ("KINDS", "ENERGY", "CHANNEL_FACTOR", "ALIASES")
_PACKAGE = "crelu_models"
_VALUE_CLASSES = ("NamedTuple", "dataclass")


class _Code(NamedTuple):
    """Piece of source: its normalised text, and all names and attributes in it."""

    text: str
    names: frozenset[str]
    attributes: frozenset[str]


class _Module(NamedTuple):
    """Parsed file: code by the name that it defines, table entries by kind, imports by local name, other statements.

    A method of a value class is a definition of its own, "Class.method".
    """

    definitions: dict[str, list[_Code]]
    tables: dict[str, dict[str, _Code]]
    imports: dict[str, tuple[str, str]]
    statements: list[_Code]


def source_of(net: Net, folder: Path = Path(__file__).parent) -> str:
    """Return the normalised source in `folder` that decides what `net` computes.

    Comments, docstrings, annotations and error messages are removed; the order depends neither on the names of files
    nor on the order of definitions. The net's rows, their checks, and printing and counting of nets are left out.
    """
    return _source(frozenset(row.act for row in net.rows if isinstance(row, Conv | Linear)), folder)


@cache
def _source(kinds: frozenset[str], folder: Path) -> str:
    """Return the normalised source of nets with these kinds of activation."""
    modules = _parse(folder)
    reached: dict[tuple[str, str], list[_Code]] = {}
    external: set[str] = set()
    pending = [("modules", name) for name in ROOTS]
    while pending:
        # Functions, classes and constants, from name to name.
        while pending:
            stem, name = pending.pop()
            if (stem, name) not in reached:
                reached[stem, name] = _select(modules[stem], name, kinds)
                for used in frozenset[str]().union(*(code.names for code in reached[stem, name])):
                    if used in modules[stem].definitions or used in modules[stem].tables:
                        pending.append((stem, used))
                    elif used in modules[stem].imports:
                        origin, original = modules[stem].imports[used]
                        if origin.partition(".")[0] == _PACKAGE:
                            pending += _exports(modules, origin, original)
                        else:
                            external.add(f"from {origin} import {original} as {used}")
        # Methods of the value classes reached, where any code reached has an attribute of that name.
        attributes = frozenset[str]().union(*(code.attributes for codes in reached.values() for code in codes))
        for stem, module in modules.items():
            for name in module.definitions:
                owner, _, method = name.partition(".")
                if (stem, owner) in reached and method in attributes and (stem, name) not in reached:
                    pending.append((stem, name))
    return "\n".join(sorted({code.text for codes in reached.values() for code in codes} | external))


def _select(module: _Module, name: str, kinds: Iterable[str]) -> list[_Code]:
    """Return the code that defines a name, of a table the entries of these kinds; and the module's statements."""
    table = module.tables.get(name, {})
    entries = [table[kind] for kind in kinds if kind in table]
    return [*module.definitions.get(name, []), *entries, *module.statements]


def _exports(modules: Mapping[str, _Module], origin: str, name: str) -> list[tuple[str, str]]:
    """Return what an import from the package names: one definition, or all definitions of a module."""
    _, _, stem = origin.partition(".")
    return [(stem, name)] if stem else [(name, definition) for definition in modules[name].definitions]


# Parsing


@cache
def _parse(folder: Path) -> dict[str, _Module]:
    """Parse the files of a package, by their names without suffix."""
    return {path.stem: _parse_file(path) for path in sorted(folder.glob("*.py"))}


def _parse_file(path: Path) -> _Module:
    """Parse one file; ValueError where a table has no literal keys."""
    module = _Module({}, {}, {}, [])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module.imports.update((alias.asname or alias.name, (node.module or "", alias.name)) for alias in node.names)
        elif isinstance(node, ast.Import):
            module.imports.update((alias.asname or alias.name.split(".")[0], (alias.name, "")) for alias in node.names)
    for node in tree.body:
        names = _assigned_names(node)
        if isinstance(node, ast.ClassDef) and _is_value_class(node):
            for method in [item for item in node.body if isinstance(item, ast.FunctionDef)]:
                node.body.remove(method)
                module.definitions.setdefault(f"{node.name}.{method.name}", []).append(_code(method))
            module.definitions[node.name] = [_code(node)]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.definitions.setdefault(node.name, []).append(_code(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and names and names[0] in TABLES:
            module.tables[names[0]] = _entries(names[0], node.value)
        elif names:
            for name in names:
                module.definitions.setdefault(name, []).append(_code(node))
        elif not isinstance(node, ast.Import | ast.ImportFrom) and not _is_constant(node):
            module.statements.append(_code(node))
    return module


def _code(node: ast.AST, before: str = "") -> _Code:
    """Return a statement or expression as code; the text `before` precedes its own."""
    nodes = list(ast.walk(node))
    names = frozenset(item.id for item in nodes if isinstance(item, ast.Name))
    attributes = frozenset(item.attr for item in nodes if isinstance(item, ast.Attribute))
    return _Code(before + ast.unparse(_Normaliser().visit(node)), names, attributes)


def _entries(name: str, table: ast.expr | None) -> dict[str, _Code]:
    """Return the entries of a table by kind, each as an assignment."""
    entries: dict[str, _Code] = {}
    for key, value in zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else [(None, None)]:
        if value is None or not isinstance(key, ast.Constant):
            raise ValueError(f"{name} must be a dictionary with one literal key per activation")
        entries[str(key.value)] = _code(value, f"{name}[{key.value!r}] = ")
    return entries


def _assigned_names(node: ast.stmt) -> list[str]:
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


def _is_constant(node: ast.AST) -> bool:
    """Return whether a statement is a docstring or another bare constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class _Normaliser(ast.NodeTransformer):
    """Remover of what computes nothing: docstrings, annotations of functions, messages of errors."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Drop the docstring and the annotations of a function."""
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        node.returns = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Drop the docstring of a class."""
        return self._without_docstring(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Drop the message of an exception."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """Drop the message of an assertion."""
        node.msg = None
        return node

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        node.body = [item for item in node.body if not _is_constant(item)] or [ast.Pass()]
        return self.generic_visit(node)
