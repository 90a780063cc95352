"""A page whose questions the demo's pictures answer: the nets of `sweeps.cifar_width`, each against AVR.

    python -m benchmarks.decided --profile demo --search-trials 0 --folds 6 --until-decided 6

Of the paper's own questions a demo decides few: its nets differ by less than its noise. AVR is worse by far. With
`benchmarks.chaos --sweep benchmarks.decided` a sweep until decided is killed on its way.
"""

from sweeps import Question, main
from sweeps.cifar_width import CELLS, PROTOCOL

NETS = [cell for cell in CELLS if cell.dataset == "cifar10" and cell.row != "CReLU half"]
QUESTIONS = tuple(
    Question(f"{name} beats AVR on cifar10", f"{name} cifar10", "AVR cifar10", "lower", 1.0)
    for name in ("Baseline", "Double", "CReLU")
)

if __name__ == "__main__":
    main("decided", __doc__, NETS, PROTOCOL, questions=QUESTIONS)
