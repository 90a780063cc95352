# PYTHON_ARGCOMPLETE_OK
"""Does CReLU beat a net of twice the width? The all-convolutional CIFAR nets (Table 1).

Expected: CReLU lowers the ten-fold average against ReLU (9.39 against 10.20 % on CIFAR-10, 33.76 against 38.52 % on
CIFAR-100) and against a double-width ReLU net of twice its parameters; half the width still does, with half the
parameters of the baseline; AVR does not on CIFAR-10. Every net is compared with the baseline, CReLU with Double as
well. A cell's dropout is searched on the hold-out, then the net is trained by the Single protocol and on ten folds:
120 trainings and 200 of search, about 160 GPU-hours at 20 TFLOP/s.

    python -m sweeps.cifar_width              both data sets; without them, a demo on embedded pictures
    python -m sweeps.cifar_width --dry-run    what it would do, and what is already done
    python -m sweeps.cifar_width --until-decided 10    as many of the ten folds as its questions need
"""

from crelu_models.tables import S2
from sweeps import ALLCONV, Cell, Protocol, Question, RateStudy, Search, main

# Springenberg's dropout, which the search replaces.
S2_DROP = S2.dropout(0.2, "input").dropout(0.5, "pool1").dropout(0.5, "pool2")
EVERY = tuple(range(1, 8))
NETS = {
    "Baseline": S2_DROP,
    "Double": S2_DROP.width(2),
    "AVR": S2_DROP.avr(*EVERY),
    "CReLU": S2_DROP.crelu(*EVERY),
    "CReLU half": S2_DROP.crelu(*EVERY, width=0.5),
}
VERSUS = {"CReLU": "Double {}"}
CELLS = tuple(
    Cell(f"{label} {data}", net, data, ALLCONV, "1", label, versus=VERSUS.get(label, "").format(data))
    for data in ("cifar10", "cifar100")
    for label, net in NETS.items()
)
PROTOCOL = Protocol(ablation=False, single=True, folds=10, search=Search(20), rates=RateStudy("Baseline *"))
# What --until-decided asks: the paper's comparisons in Table 1, with the differences that one would act on.
COMPARED = (("CReLU", "Baseline"), ("CReLU", "Double"), ("CReLU half", "Baseline"), ("AVR", "Baseline"))
MARGINS = {"cifar10": 0.2, "cifar100": 0.5}
QUESTIONS = tuple(
    Question(f"{cell} beats {rival} on {data}", f"{cell} {data}", f"{rival} {data}", "lower", margin)
    for data, margin in MARGINS.items()
    for cell, rival in COMPARED
)

if __name__ == "__main__":
    main("cifar_width", __doc__, CELLS, PROTOCOL, questions=QUESTIONS)
