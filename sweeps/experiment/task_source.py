"""Training functions of the user's: whether one is there before anything starts, and what is said where it fails."""

from __future__ import annotations

import ast

from crelu_models.named import split_name
from sweeps.experiment.user_code import find_module


class TaskFailedError(Exception):
    """A training function has raised an error: its cause, and whether to leave the trial, as a retry would not help."""

    def __init__(self, cause: BaseException, final: bool) -> None:
        """Take the error."""
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause
        self.final = final


def check_task(task: str) -> None:
    """Raise ValueError where a task "module:function" is not there, or a worker's import of it would run a sweep."""
    module, function = split_name(task)
    try:
        location = find_module(module)
    except LookupError as error:
        raise ValueError(f"task {task!r}: {error}") from None
    if location is None:  # installed, or a package without a file: the worker says so where it does not load
        return
    _, file = location
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"task {task!r}: {file.name} is no Python code: {error}") from None
    names = {name for statement in tree.body for name in _defined(statement)}
    if function not in names and "*" not in names:
        raise ValueError(f"task {task!r}: {file.name} has no {function!r}")
    for statement in tree.body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("main", "sweeps.main"):
            raise ValueError(
                f"task {task!r}: a worker imports {file.name}, which calls main in line {statement.lineno}; put that "
                f"under if __name__ == '__main__':"
            )


def _defined(statement: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines, those in its branches included."""
    names: list[str] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
    return names
