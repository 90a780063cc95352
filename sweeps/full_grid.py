# PYTHON_ARGCOMPLETE_OK
"""What does each choice do on its own? Architecture x placement x activation x width, each with its dropout searched.

Beyond the paper: every prefix of CReLU layers at full and half width, the places it says did not help (VGG's conv2 and
conv4, before pooling), AVR in the same places, and the concatenated leaky form it suggests. A table says what each
factor does on its own. Hundreds of trainings: look at --dry-run, and take parts by --only.

    python -m sweeps.full_grid --dry-run --only 'allconv*'
"""

from functools import partial

from crelu_models.tables import S2, S4, S8
from sweeps import ALLCONV, IMAGENET_SGD, VGG, Cell, Protocol, RateStudy, Search, grid, main

# net, recipe, data sets, placements
ARCHITECTURES = {
    "allconv": (S2, ALLCONV, ("cifar10", "cifar100"), {
        "conv1": (1,), "conv2": (2,), "conv4": (4,), "conv1,2": (1, 2), "conv1-4": (1, 2, 3, 4),
        "conv1-7": tuple(range(1, 8)),
    }),
    "vgg": (S4, VGG, ("cifar10", "cifar100"), {
        "conv1": (1,), "conv2": (2,), "conv4": (4,), "conv1,3": (1, 3), "conv1,3,5": (1, 3, 5),
        "conv1,3,5,8": (1, 3, 5, 8),
    }),
    "allcnnb": (S8, IMAGENET_SGD, ("imagenet",), {
        "conv1-4": (1, 2, 3, 4), "conv1,4,7": (1, 4, 7), "conv1-7": tuple(range(1, 8)),
        "conv1-9": tuple(range(1, 10)),
    }),
}  # fmt: skip
ACTIVATIONS = ("crelu", "avr", "crelu_leaky")
WIDTHS = (1.0, 0.5)


def cell(name: str, data: str, placement: str, activation: str, width: float) -> Cell:
    """Return the cell of an architecture with the activation at some convs, their filters scaled by `width`."""
    net, recipe, _, placements = ARCHITECTURES[name]
    convs = placements[placement]
    label = f"{name} {data} {activation} conv{','.join(map(str, convs))} x{width:g}"
    return Cell(label, net.activation(activation, *convs).width(width, *convs), data, recipe)


def allowed(activation: str, width: float, **_: object) -> bool:
    """Return whether a combination is worth training: AVR at half width only makes the net smaller."""
    return activation != "avr" or width == 1.0


CELLS = (
    *(
        Cell(f"{name} {data} ReLU", net, data, recipe)
        for name, (net, recipe, sets, _) in ARCHITECTURES.items()
        for data in sets
    ),
    *(
        member
        for name, (_, _, sets, placements) in ARCHITECTURES.items()
        for data in sets
        for member in grid(
            partial(cell, name, data), where=allowed, placement=placements, activation=ACTIVATIONS, width=WIDTHS
        )
    ),
)
PROTOCOL = Protocol(seeds=3, search=Search(20), rates=RateStudy("allconv * ReLU"))

if __name__ == "__main__":
    main("full_grid", __doc__, CELLS, PROTOCOL, of_paper=True)
