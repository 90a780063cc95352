"""Code of the user that trials name as "module:function": its source, which makes results stale, and its files.

Files are parsed and not imported, so this needs no torch. Definitions are followed by name through the user's modules,
those beside the page or elsewhere on Python's path. Of an installed package the version counts. Workers of other hosts
get the files, and `use_folder` puts them on Python's path; `crelu_models.named.load_named` then imports them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from crelu_models.named import OURS, installed_folders, is_users, split_name
from crelu_models.sources import Code, assigned_names, code_of, is_constant, is_for_types

# Names by which code may reach what no reader of it sees: then the whole module counts.
DYNAMIC = frozenset(("globals", "locals", "vars", "getattr", "eval", "exec", "import_module", "__import__"))
# Decorators that keep a definition to its name; another one may put it into a register.
PLAIN = frozenset(
    ("dataclass", "property", "staticmethod", "classmethod", "cache", "lru_cache", "cached_property", "wraps",
     "no_grad", "inference_mode", "contextmanager", "overload", "final", "override")
)  # fmt: skip
# Packages whose version makes no result stale: a result says which torch it was trained by.
WITHOUT_VERSION = ("torch", "numpy")
WHOLE = "*"


class Source(NamedTuple):
    """Source of named code: its fingerprint, the user's files by their path on Python's path, what of ours it uses."""

    fingerprint: str
    files: dict[str, Path]
    uses_ours: bool


def source_of(names: Iterable[str]) -> Source:
    """Return the source of code named as "module:function"; LookupError where a module of it is not on this machine."""
    reached = _Reached()
    for name in names:
        reached.visit(*split_name(name))
    text = "\n".join(sorted(reached.texts))
    return Source(
        hashlib.sha256(text.encode()).hexdigest()[:16], dict(sorted(reached.files.items())), reached.uses_ours
    )


def shipped_files(names: Iterable[str]) -> dict[str, str]:
    """Return the user's files that workers import for these names as text, by their path on Python's path."""
    return {name: path.read_text(encoding="utf-8") for name, path in imported_files(names).items()}


def imported_files(names: Iterable[str]) -> dict[str, Path]:
    """Return the user's files behind these names and all that these files import, by their path on Python's path.

    An import runs a whole module, so these are more than the files of `source_of`: a page may import a module for its
    cells alone. Imports that are not on this machine or are not Python are skipped: a file may do without them.
    """
    files = dict(source_of(names).files)
    pending = [place.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for place in files]
    visited = {""}
    while pending:
        module = pending.pop()
        if module in visited:
            continue
        visited.add(module)
        pending.append(module.rpartition(".")[0])  # the packages above it are imported first
        with suppress(LookupError, ValueError):
            location = find_module(module)
            if location is not None:
                place, path = location
                file = _parsed(path, path.stat().st_mtime_ns, module, place.endswith("__init__.py"))
                files[place] = path
                pending += file.modules
    return dict(sorted(files.items()))


def drop_edited(names: Iterable[str]) -> None:
    """Drop the user's modules from this process where a file behind these names has changed since its import.

    The next import runs the present files. All modules of the user are dropped, since each may hold objects of another.
    """
    try:
        files = imported_files(names)
    except LookupError:  # the import says what is not on this machine
        return
    now = {path.resolve(): path.read_bytes() for path in files.values()}
    before = _imported_as()
    if any(before.get(path, content) != content for path, content in now.items()):
        users = before.keys() | now.keys()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name != "__main__" and isinstance(file, str) and Path(file).resolve() in users:
                del sys.modules[name]
                package, _, child = name.rpartition(".")
                if package in sys.modules:  # a package that is a mere folder stays, and would still hold the module
                    vars(sys.modules[package]).pop(child, None)
        importlib.invalidate_caches()
        before.clear()
    before.update(now)


@cache
def _imported_as() -> dict[Path, bytes]:
    """Return the contents with which this process has imported the user's files, by their resolved paths."""
    return {}


def unpacked(files: Mapping[str, str]) -> str:
    """Write shipped files into a folder of this host, each content once, and return the folder."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"crelu-code-{os.getuid()}-{digest}"
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_text(text, encoding="utf-8")
            part.replace(path)  # another worker of this host may write the same
    return str(folder)


def page_folder() -> str:
    """Return the folder beside the program that runs, which Python searches first."""
    return os.path.abspath(sys.path[0] or os.getcwd())


def use_folder(folder: str) -> None:
    """Let Python search a folder first for modules; "" changes nothing."""
    if folder and (not sys.path or sys.path[0] != folder):
        sys.path.insert(0, folder)


def find_module(module: str) -> tuple[str, Path] | None:
    """Return a user's module as its path below an entry of Python's path, and its file; None where it is not his.

    LookupError where no module of this name is on this machine. Nothing is imported.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in OURS:
        return None
    below = Path(*module.split("."))
    installed = installed_folders()
    for entry in sys.path:
        root = Path(entry or os.getcwd()).resolve()
        if root in installed:
            continue
        for name in (below / "__init__.py", below.with_suffix(".py")):
            if (root / name).is_file():
                return name.as_posix(), root / name
        if (root / below).is_dir() and any((root / below).rglob("*.py")):
            return None  # a package without a file of its own
    spec = _spec(top)
    if spec is None:
        raise LookupError(f"there is no module {top!r} beside the page, and none is installed")
    if spec.origin is None or not is_users(spec.origin):
        return None
    # Installed by a link to the user's own folder, as `pip install -e` does.
    root = Path(spec.origin).resolve().parent
    root = root.parent if spec.submodule_search_locations else root
    for name in (below / "__init__.py", below.with_suffix(".py")):
        if (root / name).is_file():
            return name.as_posix(), root / name
    return None


def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


class _File(NamedTuple):
    """Parsed file: code by the name that it defines, statements that run at its import, what it imports.

    `imports` has module and name ("" for the module itself) by local name, `stars` the modules of `import *`, and
    `modules` all that any import in it may stand for.
    """

    definitions: dict[str, list[Code]]
    statements: list[Code]
    imports: dict[str, tuple[str, str]]
    stars: tuple[str, ...]
    modules: frozenset[str]


@dataclass
class _Reached:
    """Code reached so far, by definition, with the files and the versions behind it."""

    texts: set[str] = field(default_factory=set)
    files: dict[str, Path] = field(default_factory=dict)
    uses_ours: bool = False
    visited: set[tuple[str, str]] = field(default_factory=set)

    def visit(self, module: str, name: str) -> None:
        """Take in a definition of a module, or all of it, with all that it uses."""
        pending = [(module, name)]
        while pending:
            definition = pending.pop()
            if definition not in self.visited:
                self.visited.add(definition)
                pending += self._step(*definition)

    def _step(self, module: str, name: str) -> list[tuple[str, str]]:
        """Take in one definition and return what it uses, by module and name."""
        top = module.partition(".")[0]
        if top in OURS:
            self.uses_ours = True
            return []
        location = find_module(module)
        if location is None:
            if top not in sys.stdlib_module_names and top not in WITHOUT_VERSION:
                self.texts.add(f"{top} {_version(top)}")
            return []
        place, path = location
        self.files[place] = path
        file = _parsed(path, path.stat().st_mtime_ns, module, place.endswith("__init__.py"))
        # The packages above it are imported first.
        used = [(module.rpartition(".")[0], "")] if "." in module else []
        if not name:
            return [*used, *self._take(module, file, file.statements)]
        used.append((module, ""))
        if name in file.definitions:
            return used + self._take(module, file, file.definitions[name])
        if name in file.imports:
            return used + self._target(*file.imports[name], "")
        if name != WHOLE and _is_module(f"{module}.{name}"):
            return [*used, (f"{module}.{name}", WHOLE)]
        if name != WHOLE and file.stars:
            return used + [(star, name) for star in file.stars]
        everything = [code for codes in file.definitions.values() for code in codes]
        used += [target for local in file.imports for target in self._target(*file.imports[local], WHOLE)]
        return used + [(star, WHOLE) for star in file.stars] + self._take(module, file, everything)

    def _take(self, module: str, file: _File, codes: list[Code]) -> list[tuple[str, str]]:
        """Take in pieces of a file and return what they use."""
        used: list[tuple[str, str]] = []
        for code in codes:
            self.texts.add(code.text)
            if (code.names | code.attributes) & DYNAMIC:
                used.append((module, WHOLE))
            for name in code.names:
                local, _, attribute = name.partition(".")
                if local in file.definitions:
                    used.append((module, local))
                elif local in file.imports:
                    used += self._target(*file.imports[local], attribute)
                elif not attribute:
                    used += [(star, local) for star in file.stars if _defines(star, local)]
        return used

    def _target(self, module: str, name: str, attribute: str) -> list[tuple[str, str]]:
        """Return what an imported name stands for: a definition, or a module, of which `attribute` is used."""
        if not name:
            return [(module, attribute or WHOLE)]
        submodule = f"{module}.{name}"
        return [(submodule, attribute or WHOLE), (module, "")] if _is_module(submodule) else [(module, name)]


def _is_module(name: str) -> bool:
    try:
        return find_module(name) is not None
    except LookupError:
        return False


def _defines(module: str, name: str) -> bool:
    """Return whether a user's module defines a name, or imports all of another one."""
    location = find_module(module)
    if location is None:
        return False
    place, path = location
    file = _parsed(path, path.stat().st_mtime_ns, module, place.endswith("__init__.py"))
    return name in file.definitions or name in file.imports or bool(file.stars)


@cache
def _version(package: str) -> str:
    """Return the version of an installed package by the name of its module; "" where it has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, ())
        return " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(names))


@cache
def _parsed(path: Path, _changed_ns: int, module: str, is_package: bool) -> _File:
    """Return a parsed file; ValueError where it is no Python."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(f"{path.name} is no Python code: {error.args[0]}{line}") from None
    stars = tuple(star for node in ast.walk(tree) for star in _stars(node, module, is_package))
    modules = frozenset(name for node in ast.walk(tree) for name in _modules(node, module, is_package))
    file = _File({}, [], {}, stars, modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                file.imports[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, module, is_package)
            file.imports.update({alias.asname or alias.name: (origin, alias.name) for alias in node.names
                                 if alias.name != "*"})  # fmt: skip
    for node in tree.body:
        names = assigned_names(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            code = code_of(node)
            file.definitions.setdefault(node.name, []).append(code)
            if not all(_is_plain(decorator) for decorator in node.decorator_list):
                file.statements.append(code)
        elif names:
            for name in names:
                file.definitions.setdefault(name, []).append(code_of(node))
        elif not isinstance(node, ast.Import | ast.ImportFrom) and not _says_nothing(node):
            file.statements.append(code_of(node))
    # A module that is imported and never named is imported for what it does.
    named = {name.partition(".")[0] for codes in (*file.definitions.values(), file.statements)
             for code in codes for name in code.names}  # fmt: skip
    for node in tree.body:
        for alias in node.names if isinstance(node, ast.Import) else ():
            local = alias.asname or alias.name.partition(".")[0]
            if local not in named:
                file.statements.append(Code("", frozenset([local]), frozenset()))
    return file


def _stars(node: ast.AST, module: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
        return [_origin(node, module, is_package)]
    return []


def _modules(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Return the modules that an import may stand for: of `from a import b` both a and a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    origin = _origin(node, module, is_package)
    return [origin, *(f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")]


def _origin(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """Return the dotted name of the module from which a statement imports, relative ones made absolute."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


def _is_plain(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in PLAIN


def _says_nothing(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, is for type checkers, or runs only as a program."""
    main = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "'__main__' == __name__")
    return main or is_constant(node) or is_for_types(node)
