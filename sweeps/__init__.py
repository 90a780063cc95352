"""Sweeps over the paper's networks: declared as cells, trained as trials, kept in a ledger, shown as tables.

    from sweeps import ALLCONV, Cell, Protocol, Search, main

Each name is loaded when it is first asked for: a page imports nothing heavy.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.argv and sys.argv[0].rpartition("/")[2] in ("-m", "crelu-sweeps"):  # a command, and this its first import
    import_module("crelu_data.interrupts").end_quietly()

if TYPE_CHECKING:
    from crelu_models.model import Model
    from sweeps.experiment.grid import grid
    from sweeps.experiment.metrics import Metric
    from sweeps.experiment.questions.question import Question
    from sweeps.experiment.rates import RateStudy
    from sweeps.experiment.recipe import ALLCONV, IMAGENET_ADAM, IMAGENET_SGD, VGG, Recipe
    from sweeps.experiment.search import Search
    from sweeps.experiment.space import Choice, Float, Int
    from sweeps.experiment.sweep import Protocol, Sweep
    from sweeps.experiment.trial import Cell
    from sweeps.launch import main, run
    from sweeps.report.loaded import load

__all__ = [
    "ALLCONV",
    "IMAGENET_ADAM",
    "IMAGENET_SGD",
    "VGG",
    "Cell",
    "Choice",
    "Float",
    "Int",
    "Metric",
    "Model",
    "Protocol",
    "Question",
    "RateStudy",
    "Recipe",
    "Search",
    "Sweep",
    "grid",
    "load",
    "main",
    "run",
]

_MODULES = {
    "Model": "crelu_models.model",
    "Cell": "sweeps.experiment.trial",
    "Choice": "sweeps.experiment.space",
    "Float": "sweeps.experiment.space",
    "Int": "sweeps.experiment.space",
    "Metric": "sweeps.experiment.metrics",
    "Protocol": "sweeps.experiment.sweep",
    "Question": "sweeps.experiment.questions.question",
    "RateStudy": "sweeps.experiment.rates",
    "Search": "sweeps.experiment.search",
    "Sweep": "sweeps.experiment.sweep",
    "grid": "sweeps.experiment.grid",
    "load": "sweeps.report.loaded",
    "main": "sweeps.launch",
    "run": "sweeps.launch",
}


def __getattr__(name: str) -> object:
    """Return an exported name from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "main":  # a page's first line has it: what follows may be wrong
        import_module("sweeps.cli.page_errors").explain_page_errors()
    return getattr(import_module(_MODULES.get(name, "sweeps.experiment.recipe")), name)
