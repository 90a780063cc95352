"""Source of a training function in the user's own files: where it lies, whether it is there, what it consists of.

Nothing is imported here: the driver reads the file, and the worker alone runs it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path


class TaskFailedError(Exception):
    """A training function has raised an error: its cause, where in the user's files, and whether it stays."""

    def __init__(self, cause: BaseException, where: str, final: bool) -> None:
        """Take the error, the place "file.py, line 3, in train", and whether to leave the trial."""
        super().__init__(f"{type(cause).__name__}: {cause}" + (f" ({where})" if where else ""))
        self.cause = cause
        self.where = where
        self.final = final


def task_file(task: str) -> Path | None:
    """Return the file of a task "module:function", found as Python would import it; None where there is none."""
    *packages, name = task.partition(":")[0].split(".")
    places: list[str] | None = [place or "." for place in sys.path]
    for package in packages:
        spec = PathFinder.find_spec(package, places)
        if spec is None or spec.submodule_search_locations is None:
            return None
        places = list(spec.submodule_search_locations)
    spec = PathFinder.find_spec(name, places)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).resolve()


def check_task(task: str) -> None:
    """Raise ValueError where a task's file or function is not there, or its import would run a sweep."""
    module, _, function = task.partition(":")
    file = task_file(task)
    if file is None:
        raise ValueError(f"task {task!r}: there is no module {module!r} beside the page, and none is installed")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"task {task!r}: {file} is not Python: {error}") from None
    if function not in {name for statement in tree.body for name in _defined(statement)}:
        raise ValueError(f"task {task!r}: {file.name} defines no {function!r}")
    for statement in tree.body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("main", "sweeps.main"):
            raise ValueError(
                f"task {task!r}: a worker imports {file.name}, which calls main in line {statement.lineno}; put that "
                f"under if __name__ == '__main__':"
            )


def task_source(task: str) -> str:
    """Return the normalised source that a task runs of the user's own files; empty where its file is not here.

    It is the function and all that it uses of its file, by name, and the whole of files beside it that they import.
    """
    file = task_file(task)
    if file is None:
        return ""
    return _source(file, task.partition(":")[2])


def task_files(task: str) -> list[Path]:
    """Return the user's own files that a task runs: its module's, and those beside it that are imported."""
    file = task_file(task)
    return [] if file is None else [file, *_beside(file, _normalised(file).body, {file})]


def _source(file: Path, function: str) -> str:
    tree = _normalised(file)
    by_name: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in _defined(statement):
            by_name.setdefault(name, []).append(statement)
    # From name to name; statements that define nothing run at every import, but for the sweep's own call.
    reached = {id(statement): statement for statement in tree.body if not list(_defined(statement))}
    pending = [function, *(name for statement in reached.values() for name in _names(statement))]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for statement in by_name.get(name, ()):
            reached[id(statement)] = statement
            pending += _names(statement)
    statements = [statement for statement in tree.body if id(statement) in reached]
    texts = {f"{file.name}:{ast.unparse(statement)}" for statement in statements}
    for other in _beside(file, statements, {file}):
        texts.add(f"{other.name}:{ast.unparse(_normalised(other))}")
    return "\n".join(sorted(texts))


def _beside(file: Path, statements: list[ast.stmt], known: set[Path]) -> Iterator[Path]:
    """Yield the files in the same folder that these statements import, and those that they import in turn."""
    for module in sorted({name for statement in statements for name in _imported(statement)}):
        other = file.parent / f"{module.partition('.')[0]}.py"
        if other.is_file() and other not in known:
            known.add(other)
            yield other
            yield from _beside(other, _normalised(other).body, known)


def _normalised(file: Path) -> ast.Module:
    """Return the statements of a file without docstrings, and without what runs for a script alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body = [item for item in node.body if not _says_nothing(item)] or [ast.Pass()]
    return tree


def _says_nothing(node: ast.stmt) -> bool:
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_docstring or (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")


def _defined(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement defines: of a function, a class, an assignment, an import."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for node in (node for target in targets for node in ast.walk(target)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _names(statement: ast.stmt) -> list[str]:
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]


def _imported(statement: ast.stmt) -> Iterator[str]:
    """Yield the modules that a statement imports, also within functions."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or (node.names[0].name if node.names else "")
