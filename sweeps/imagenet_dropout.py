# PYTHON_ARGCOMPLETE_OK
"""How much dropout does each placement want? The search of the nine ImageNet rows, alone (Tables 4 and 5).

The paper drops nothing in the baseline, AVR conv1-4 and CReLU conv1-4, and a quarter after conv9 elsewhere, so its
rows differ in dropout as well as in placement. Here every placement gets the same three rates, {0, .25, .5}, chosen
between on a hold-out of the training pictures; the validation set is not opened.

    python -m sweeps.imagenet_dropout              27 trainings, about 180 GPU-hours at 20 TFLOP/s
    python -m sweeps.imagenet_dropout --dry-run    what it would do, and what is already done
"""

from sweeps import Protocol, Search, main
from sweeps.imagenet_placement import CELLS

PROTOCOL = Protocol(ablation=False, search=Search(3, sampler="grid", wave=3))

if __name__ == "__main__":
    main("imagenet_dropout", __doc__, CELLS, PROTOCOL)
