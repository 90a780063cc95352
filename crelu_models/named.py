"""Objects by name, "module:function": how data name code, and what is said where that code does not load."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
PACKAGES = Path(__file__).resolve().parents[1]  # holds our packages
OURS = ("crelu_models", "crelu_data", "sweeps")
FOLDERS = (*OURS, "data")  # in a checkout the pictures' package lies in data


def split_name(name: str) -> tuple[str, str]:
    """Return module and attribute of a name; ValueError where it is not of the form "module:function"."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f'code is named as "module:function", such as "torchvision.models:resnet18", not {name!r}')
    module, _, attribute = name.partition(":")
    return module, attribute


def load_named(name: str) -> Callable[..., Any]:
    """Import a module and return the function or class of this name; ValueError with the cause where that fails."""
    module, attribute = split_name(name)
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name}: {module} does not import: {error_text(error)}") from error
    if not hasattr(imported, attribute):
        near = difflib.get_close_matches(attribute, vars(imported), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: {module} has no {attribute!r}{hint}")
    value = getattr(imported, attribute)
    if not callable(value):
        raise ValueError(f"{name} is of type {type(value).__name__}, and cannot be called")
    function: Callable[..., Any] = value
    return function


def error_text(error: BaseException) -> str:
    """Return type and message of an error, and the innermost line of the user's code that led to it, if any."""
    message = (str(error).strip().splitlines() or [""])[0]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    where = user_line(error)
    return f"{text} ({where})" if where else text


def user_line(error: BaseException) -> str:
    """Return the innermost line of an error's trace that is neither ours, nor Python's, nor installed; else ""."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{Path(error.filename).name}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if is_users(frame.filename)]
    if not users:
        return ""
    inside = f" in {users[-1].name}" if users[-1].name != "<module>" else ""
    return f"{Path(users[-1].filename).name}, line {users[-1].lineno}{inside}"


def is_users(file: str) -> bool:
    """Return whether a file of Python code is the user's: neither ours, nor Python's, nor installed."""
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    ours = path.is_relative_to(PACKAGES) and path.relative_to(PACKAGES).parts[0] in FOLDERS
    return not ours and not any(path.is_relative_to(folder) for folder in installed_folders())


def installed_folders() -> set[Path]:
    """Return the folders of Python's own modules and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {Path(sysconfig.get_path(name)).resolve() for name in names}
    return folders | {Path(entry).resolve() for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
