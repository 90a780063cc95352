# PYTHON_ARGCOMPLETE_OK
"""Where does CReLU help? Nine placements in the all-convolutional ImageNet net (Tables 4 and 5).

Expected: CReLU in conv1-4 has the lowest centre-crop error (39.82 against 41.81 % for ReLU), AVR does not help at
depth, and the nets of half width, (1,4,7) and all, still beat the baseline with 8.6 and 4.7 of its 9.4 million
parameters. Seven rows train by SGD for 45 epochs, the two halved ones by Adam for 100, as in the paper: about
60 GPU-hours at 20 TFLOP/s. Optimiser and dropout differ between the paper's rows; the crossed cells tell them from
the placement.

    python -m sweeps.imagenet_placement            the paper's rows; without ImageNet and a cluster, a demo of minutes
    python -m sweeps.imagenet_placement --dry-run  what it would do, and what is already done
    python -m sweeps.imagenet_placement --also crossed
    python -m sweeps.imagenet_placement --until-decided 6    as many seeds, up to six, as its questions need
"""

from crelu_models.tables import PAPER, S8, S9, S10, S11, S12, S13
from sweeps import IMAGENET_ADAM, IMAGENET_SGD, Cell, Question, main

# fmt: off
CELLS = (
    Cell("Baseline",        S8,                  "imagenet", IMAGENET_SGD,  "4", "Baseline"),
    Cell("AVR conv1-4",     PAPER["S8_avr_1_4"], "imagenet", IMAGENET_SGD,  "4", "AVR conv1-4"),
    Cell("AVR conv1-7",     PAPER["S8_avr_1_7"], "imagenet", IMAGENET_SGD,  "4", "AVR conv1-7"),
    Cell("AVR conv1-9",     PAPER["S8_avr_1_9"], "imagenet", IMAGENET_SGD,  "4", "AVR conv1-9"),
    Cell("CReLU conv1,4,7", S13,                 "imagenet", IMAGENET_ADAM, "4", "CReLU conv1,4,7"),
    Cell("CReLU conv1-4",   S9,                  "imagenet", IMAGENET_SGD,  "4", "CReLU conv1-4"),
    Cell("CReLU conv1-7",   S10,                 "imagenet", IMAGENET_SGD,  "4", "CReLU conv1-7"),
    Cell("CReLU conv1-9",   S11,                 "imagenet", IMAGENET_SGD,  "4", "CReLU conv1-9"),
    Cell("CReLU all",       S12,                 "imagenet", IMAGENET_ADAM, "4", "CReLU all"),
)
# Adam or dropout where the paper had neither, SGD where it had Adam; each compared with the paper's row.
CROSSED = (
    Cell("Baseline, Adam",        S8,                  "imagenet", IMAGENET_ADAM, versus="Baseline"),
    Cell("Baseline, dropout .25", S8.dropout(0.25, 9), "imagenet", IMAGENET_SGD,  versus="Baseline"),
    Cell("CReLU conv1-4, Adam",   S9,                  "imagenet", IMAGENET_ADAM, versus="CReLU conv1-4"),
    Cell("CReLU conv1,4,7, SGD",  S13,                 "imagenet", IMAGENET_SGD,  versus="CReLU conv1,4,7"),
)
# fmt: on
# What --until-decided asks: comparisons of Tables 4 and 5, with the difference that one would act on.
QUESTIONS = tuple(
    Question(f"{cell} beats the baseline", cell, "Baseline", "lower", 0.5)
    for cell in ("CReLU conv1-4", "CReLU conv1,4,7", "CReLU all", "AVR conv1-4")
)

if __name__ == "__main__":
    main("imagenet_placement", __doc__, CELLS, also={"crossed": CROSSED}, questions=QUESTIONS)
