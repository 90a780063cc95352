# PYTHON_ARGCOMPLETE_OK
"""Does CReLU help a VGG with batch norm and dropout, and at how many layers? (Tables 2 and 3).

Expected: with half as many filters at conv1, at conv1 and conv3, or at conv1, conv3 and conv5, errors fall on both
data sets (CIFAR-100 average 30.27 to 27.67 %). On CIFAR-10 the three placements print the same average, 6.45 %: the
paper's numbers do not order them. Every net is compared with the VGG, and with the one of a CReLU layer fewer.
96 trainings and 160 of search, about 65 GPU-hours at 20 TFLOP/s.

    python -m sweeps.cifar_vgg              both data sets; without them, a demo on embedded pictures
    python -m sweeps.cifar_vgg --dry-run    what it would do, and what is already done
    python -m sweeps.cifar_vgg --until-decided 10    as many of the ten folds as its questions need
"""

from crelu_models.tables import S4, S5, S6, S7
from sweeps import VGG, Cell, Protocol, Question, Search, main
from sweeps.cifar_width import MARGINS

NETS = {"VGG": S4, "CReLU (1)": S5, "CReLU (1,3)": S6, "CReLU (1,3,5)": S7}
VERSUS = {"CReLU (1,3)": "CReLU (1) {}", "CReLU (1,3,5)": "CReLU (1,3) {}"}
CELLS = tuple(
    Cell(f"{label} {data}", net, data, VGG, "2", label, versus=VERSUS.get(label, "").format(data))
    for data in ("cifar10", "cifar100")
    for label, net in NETS.items()
)
PROTOCOL = Protocol(ablation=False, single=True, folds=10, search=Search(20))
# What --until-decided asks: the paper's comparisons in Table 2, with the differences that one would act on.
QUESTIONS = tuple(
    Question(f"{cell} beats VGG on {data}", f"{cell} {data}", f"VGG {data}", "lower", margin)
    for data, margin in MARGINS.items()
    for cell in ("CReLU (1)", "CReLU (1,3)", "CReLU (1,3,5)")
)

if __name__ == "__main__":
    main("cifar_vgg", __doc__, CELLS, PROTOCOL, questions=QUESTIONS)
