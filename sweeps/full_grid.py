# PYTHON_ARGCOMPLETE_OK
"""What does each choice do on its own? Architecture x placement x activation x width, each with its dropout searched.

Beyond the paper: every prefix of CReLU layers at full and half width, the places it says did not help (VGG's conv2 and
conv4, before pooling), AVR in the same places, and the concatenated leaky form it suggests. Constraints are plain
Python. Hundreds of trainings: look at --dry-run, and take parts by --only.

    python -m sweeps.full_grid --dry-run --only 'allconv*'
"""

from crelu_models.spec import Net
from crelu_models.tables import S2, S4, S8
from sweeps import ALLCONV, IMAGENET_SGD, VGG, Cell, Protocol, RateStudy, Search, main

ARCHITECTURES = {
    "allconv": (S2, ALLCONV, ("cifar10", "cifar100"), ((1,), (2,), (4,), (1, 2), (1, 2, 3, 4), tuple(range(1, 8)))),
    "vgg": (S4, VGG, ("cifar10", "cifar100"), ((1,), (2,), (4,), (1, 3), (1, 3, 5), (1, 3, 5, 8))),
    "allcnnb": (S8, IMAGENET_SGD, ("imagenet",), ((1, 2, 3, 4), (1, 4, 7), tuple(range(1, 8)), tuple(range(1, 10)))),
}
ACTIVATIONS = ("crelu", "avr", "crelu_leaky")
WIDTHS = (1.0, 0.5)


def placed(net: Net, activation: str, convs: tuple[int, ...], width: float) -> Net:
    """Return `net` with the activation at `convs`, their filters scaled by `width`."""
    return net.activation(activation, *convs).width(width, *convs)


def allowed(activation: str, width: float) -> bool:
    """Return whether a combination is worth training: AVR at half width only makes the net smaller."""
    return activation != "avr" or width == 1.0


CELLS = (
    *(
        Cell(f"{name} {data} ReLU", net, data, recipe)
        for name, (net, recipe, sets, _) in ARCHITECTURES.items()
        for data in sets
    ),
    *(
        Cell(
            f"{name} {data} {act} conv{','.join(map(str, convs))} x{width:g}",
            placed(net, act, convs, width),
            data,
            recipe,
        )
        for name, (net, recipe, sets, places) in ARCHITECTURES.items()
        for data in sets
        for convs in places
        for act in ACTIVATIONS
        for width in WIDTHS
        if allowed(act, width)
    ),
)
PROTOCOL = Protocol(seeds=3, search=Search(20), rates=RateStudy("allconv * ReLU"))

if __name__ == "__main__":
    main("full_grid", __doc__, CELLS, PROTOCOL, of_paper=True)
