"""The networks of "Understanding and Improving Convolutional Neural Networks via CReLU" (Shang et al., ICML 2016).

    from crelu_models import PAPER, S8
    from crelu_models.build import build, initialise

    net = S8.crelu(1, 4, 7, width=0.5).dropout(0.25, 9)
    print(net, net.parameters(classes=1000))
    model = build(net, classes=1000)

Nets need no torch; the modules below load it when first asked for. The function `build` stays in the module of its
name, which would hide it here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crelu_models.spec import Conv, Drop, Linear, Net, Pool
from crelu_models.tables import PAPER, S2, S4, S5, S6, S7, S8, S9, S10, S11, S12, S13

if TYPE_CHECKING:
    from crelu_models.activations import AVR, CReLU, activation, crelu
    from crelu_models.build import Dropout, initialise, seed_dropout

__all__ = [
    "AVR",
    "PAPER",
    "S2",
    "S4",
    "S5",
    "S6",
    "S7",
    "S8",
    "S9",
    "S10",
    "S11",
    "S12",
    "S13",
    "CReLU",
    "Conv",
    "Drop",
    "Dropout",
    "Linear",
    "Net",
    "Pool",
    "activation",
    "crelu",
    "initialise",
    "seed_dropout",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first asked for."""
    if name in ("AVR", "CReLU", "activation", "crelu"):
        return getattr(import_module("crelu_models.activations"), name)
    if name in ("Dropout", "initialise", "seed_dropout"):
        return getattr(import_module("crelu_models.build"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
