"""The networks of "Understanding and Improving Convolutional Neural Networks via CReLU" (Shang et al., ICML 2016).

    from crelu_models import S8, build, initialise

    net = S8.crelu(1, 4, 7, width=0.5).dropout(0.25, 9)
    print(net, net.parameters(classes=1000))
    model = build(net, classes=1000)
    initialise(model, net, "he_fan_in", seed=0)

Nets need no torch; the first use of `build`, `CReLU` and the like loads it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from crelu_models.model import Model, Placement
from crelu_models.spec import Conv, Drop, Linear, Net, Pool
from crelu_models.tables import PAPER, S2, S4, S5, S6, S7, S8, S9, S10, S11, S12, S13

if TYPE_CHECKING:
    from crelu_models.activations import AVR, CReLU, activation, crelu
    from crelu_models.dropout import Dropout, seed_dropout
    from crelu_models.modules import build, initialise
    from crelu_models.placement import PlacementOption, place, places

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
    "Model",
    "Net",
    "Placement",
    "PlacementOption",
    "Pool",
    "activation",
    "build",
    "crelu",
    "initialise",
    "place",
    "places",
    "seed_dropout",
]


# Names that need torch, by their module.
_LAZY = {
    **dict.fromkeys(("AVR", "CReLU", "activation", "crelu"), "crelu_models.activations"),
    **dict.fromkeys(("Dropout", "seed_dropout"), "crelu_models.dropout"),
    **dict.fromkeys(("build", "initialise"), "crelu_models.modules"),
    **dict.fromkeys(("PlacementOption", "place", "places"), "crelu_models.placement"),
}


def __getattr__(name: str) -> object:
    """Load a name that needs torch at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
