"""Printed numbers and sentences of the paper as data.

Source: Shang, Sohn, Almeida, Lee, "Understanding and Improving Convolutional Neural Networks via Concatenated
Rectified Linear Units", ICML 2016: Tables 1 to 6, and Table S1 of the supplement. Errors are in percent.
"""

import itertools
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from sweeps.experiment.metrics import AVERAGE, PARAMETERS, TOP1, TOP1_TEN, TOP5, TOP5_TEN, TRAIN, VOTE

PAIR: Final = "outgoing/pair"  # correlation of the outgoing weights of one filter's two phases
NON_PAIR: Final = "outgoing/non_pair"  # and of phases of two different filters
LEARNED: Final = "reconstruction/learned"  # ||x - x'|| / ||x|| after max-pooling, trained weights
RANDOM: Final = "reconstruction/random"  # the same, weights drawn from N(0, 1)

GAP: Final = "single/train_test_gap"  # test less train error of Single; the text speaks of it, no table prints it
CHANNELS: Final = "net/channels/"  # and the layer's name: what it hands to the next one
INVARIANCE: Final = "invariance/score/"
MU: Final = "pairing/mu/"

FOLDS: Final = 10  # networks behind each average and each vote of Tables 1 and 2

NOT_STATED: Final = "not stated"
# By table, the fields of a recipe that the paper leaves open, and its words on each.
LEFT_OPEN: Final = {
    "1": {"lr": NOT_STATED, "init": NOT_STATED, "warmup_epochs": NOT_STATED, "clip_norm": NOT_STATED},
    "2": {"shift": NOT_STATED},
    "4": {"init": NOT_STATED, "clip_norm": NOT_STATED, "lighting": "as Krizhevsky et al. (2012)"},
}
# By table, what the paper and its sources say or do not have where our recipes differ: a training by it is the paper's.
BY_THE_LETTER: Final[Mapping[str, Mapping[str, float]]] = {
    "1": {"warmup_epochs": 0.0, "clip_norm": 0.0},
    "4": {"clip_norm": 0.0, "lighting": 0.1},
}
# Readings of nets whose print in the supplement is open or cannot be built: of what, as printed, as trained here.
ROUNDED: Final = ("rounding of the max pools", NOT_STATED, "up, so that 10x10 are left to average")
NORMED: Final = ("batch norm before CReLU", "not printed", "kept")
READINGS: Final[dict[str, tuple[tuple[str, str, str], ...]]] = {
    **dict.fromkeys(("S2", "S2_avr", "S3_double", "S3_crelu"), (ROUNDED,)),
    "S3_half": (ROUNDED, ("filters of conv3", "48", "96, half of 192")),
    **dict.fromkeys(("S5", "S6", "S7"), (NORMED,)),
    "S12": (("CReLU at conv11 and conv12", "printed, and cannot be", "ReLU at conv11"),),
}

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "1": (TRAIN, TOP1, AVERAGE, VOTE, PARAMETERS),
    "2": (TOP1, AVERAGE, VOTE),
    "3": (TOP1, VOTE),
    "4": (TOP1, TOP5, TOP1_TEN, TOP5_TEN),
    "5": (TOP1, TOP5, TOP1_TEN, TOP5_TEN, PARAMETERS),
    "6": (PAIR, NON_PAIR),
    "S1": (LEARNED, RANDOM),
}


class Printed(NamedTuple):
    """Number as the paper prints it, with what stands after its ± (Table 6: sd, elsewhere: se)."""

    text: str
    se_text: str = ""
    sd_text: str = ""

    @property
    def value(self) -> float:
        """Return the number."""
        return float(self.text)

    @property
    def se(self) -> float | None:
        """Return the printed standard error, None where there is none."""
        return float(self.se_text) if self.se_text else None

    @property
    def sd(self) -> float | None:
        """Return the printed standard deviation, None where there is none."""
        return float(self.sd_text) if self.sd_text else None

    @property
    def digits(self) -> int:
        """Count the printed decimals."""
        return len(self.text.partition(".")[2])

    @property
    def rounding(self) -> float:
        """Return the largest error that rounding to the printed digits can have made."""
        return 0.5 * 10.0**-self.digits

    def __str__(self) -> str:
        return "±".join(filter(None, (self.text, self.se_text, self.sd_text)))


class Row(NamedTuple):
    """Row of a table and data set: numbers in the order of COLUMNS[table], None = not printed."""

    table: str
    dataset: str
    label: str
    numbers: tuple[Printed | None, ...]


def _number(table: str, word: str) -> Printed | None:
    text, _, spread = word.partition("±")
    if text == "-":
        return None
    return Printed(text, sd_text=spread) if table == "6" else Printed(text, se_text=spread)


def _row(table: str, dataset: str, label: str, line: str) -> Row:
    return Row(table, dataset, label, tuple(_number(table, word) for word in line.split()))


# fmt: off
ROWS: Final[tuple[Row, ...]] = (
    # Table 1, all-convolutional net: train and test of "Single", average of ten folds, vote, parameters.
    # The parameter counts are those of a net with one more 3x3x96 layer than Table S2 prints.
    _row("1", "cifar10",  "Baseline",    " 1.09   9.17  10.20±.09   7.55  1.4"),
    _row("1", "cifar10",  "Double",      " 0.47   8.65   9.87±.09   7.28  5.6"),
    _row("1", "cifar10",  "AVR",         " 4.10   8.32  10.26±.10   7.76  1.4"),
    _row("1", "cifar10",  "CReLU",       " 4.23   8.43   9.39±.11   7.09  2.8"),
    _row("1", "cifar10",  "CReLU half",  " 4.73   8.37   9.44±.09   7.09  0.7"),
    _row("1", "cifar100", "Baseline",    "13.68  36.30  38.52±.12  31.26  1.4"),
    _row("1", "cifar100", "Double",      " 6.03  34.77  36.73±.15  28.34  5.6"),
    _row("1", "cifar100", "AVR",         "19.35  35.00  37.24±.20  29.77  1.4"),
    _row("1", "cifar100", "CReLU",       "14.25  31.48  33.76±.12  27.60  2.8"),
    _row("1", "cifar100", "CReLU half",  "21.01  33.68  36.20±.18  29.93  0.7"),
    # Table 2, VGG: single, average of ten folds, vote.
    _row("2", "cifar10",  "VGG",           " 6.35   6.90±.03   5.43"),
    _row("2", "cifar10",  "CReLU (1)",     " 6.18   6.45±.05   5.22"),
    _row("2", "cifar10",  "CReLU (1,3)",   " 5.94   6.45±.02   5.09"),
    _row("2", "cifar10",  "CReLU (1,3,5)", " 6.06   6.45±.07   5.16"),
    _row("2", "cifar100", "VGG",           "28.99  30.27±.09  26.85"),
    _row("2", "cifar100", "CReLU (1)",     "27.29  28.43±.11  24.67"),
    _row("2", "cifar100", "CReLU (1,3)",   "26.52  27.79±.08  23.93"),
    _row("2", "cifar100", "CReLU (1,3,5)", "26.16  27.67±.07  23.66"),
    # Table 3: single networks of the literature | votes of ten networks, "VGG + CReLU" being Table 2's best
    # row by test error, a different one in each set. It sets an ensemble beside single networks.
    _row("3", "cifar10",  "Rippel et al., 2015",     " 8.60      -"),
    _row("3", "cifar10",  "Snoek et al., 2015",      " 6.37      -"),
    _row("3", "cifar10",  "Liang and Hu, 2015",      " 7.09      -"),
    _row("3", "cifar10",  "Lee et al., 2016",        " 6.05      -"),
    _row("3", "cifar10",  "Srivastava et al., 2015", " 7.60      -"),
    _row("3", "cifar10",  "VGG",                     "    -   5.43"),
    _row("3", "cifar10",  "VGG + CReLU",             "    -   5.09"),
    _row("3", "cifar100", "Rippel et al., 2015",     "31.60      -"),
    _row("3", "cifar100", "Snoek et al., 2015",      "27.40      -"),
    _row("3", "cifar100", "Liang and Hu, 2015",      "31.75      -"),
    _row("3", "cifar100", "Lee et al., 2016",        "32.37      -"),
    _row("3", "cifar100", "Srivastava et al., 2015", "32.24      -"),
    _row("3", "cifar100", "VGG",                     "    -  26.85"),
    _row("3", "cifar100", "VGG + CReLU",             "    -  23.66"),
    # Table 4, ImageNet validation pictures: top-1, top-5 with the centre crop, then both with ten crops.
    _row("4", "imagenet", "Baseline",      "41.81  19.74  38.03  17.17"),
    _row("4", "imagenet", "AVR conv1-4",   "41.12  19.25  37.32  16.49"),
    _row("4", "imagenet", "AVR conv1-7",   "42.36  20.05  38.21  17.42"),
    _row("4", "imagenet", "AVR conv1-9",   "43.33  21.05  39.70  18.39"),
    _row("4", "imagenet", "CReLU conv1,4,7", "40.45  18.58  35.70  15.32"),
    _row("4", "imagenet", "CReLU conv1-4", "39.82  18.28  36.20  15.72"),
    _row("4", "imagenet", "CReLU conv1-7", "39.97  18.33  36.53  16.01"),
    _row("4", "imagenet", "CReLU conv1-9", "40.15  18.58  36.50  16.14"),
    _row("4", "imagenet", "CReLU all",     "40.93  19.39  37.28  16.72"),
    # Table 5: as Table 4, and millions of parameters.
    _row("5", "imagenet", "AlexNet",         "42.6   19.6   40.7   18.2   61"),
    _row("5", "imagenet", "FriedNet",        "41.93      -      -      -  32.8"),
    _row("5", "imagenet", "PrunedNet",       "42.77  19.67      -      -   6.7"),
    _row("5", "imagenet", "Baseline",        "41.81  19.74  38.03  17.17   9.4"),
    _row("5", "imagenet", "CReLU all",       "40.93  19.39  37.28  16.72   4.7"),  # the text truncates to 4.6
    _row("5", "imagenet", "CReLU conv1,4,7", "40.45  18.58  35.70  15.32   8.6"),
    _row("5", "imagenet", "CReLU conv1-4",   "39.82  18.28  36.20  15.72  10.1"),
    # Table 6, the CReLU conv1-7 net: mean ± sd of the correlation, all positive with sd near the mean, so
    # most likely of absolute values. conv1's sd repeats its mean.
    _row("6", "imagenet", "conv1", ".372±.372  .165±.154"),
    _row("6", "imagenet", "conv2", ".180±.149  .157±.137"),
    _row("6", "imagenet", "conv3", ".462±.249  .120±.120"),
    _row("6", "imagenet", "conv4", ".175±.146  .119±.100"),
    _row("6", "imagenet", "conv5", ".206±.136  .105±.093"),
    _row("6", "imagenet", "conv6", ".256±.124  .086±.080"),
    _row("6", "imagenet", "conv7", ".131±.122  .080±.070"),
    # Table S1, CReLU half: mean reconstruction ratio after max-pooling, ± standard error. Of the standard errors the
    # two of CIFAR-10 are known; the others lie between 5e-5 and 3e-4 and are left out here.
    _row("S1", "cifar10",  "conv2", ".92±.0002  .99"),
    _row("S1", "cifar10",  "conv5", ".96±.0003  .99"),
    _row("S1", "cifar100", "conv2", ".93        .99"),
    _row("S1", "cifar100", "conv5", ".96        .99"),
)
# fmt: on


def rows(table: str, dataset: str) -> tuple[Row, ...]:
    """Return a table's rows of one data set in printed order, () where nothing is printed."""
    return tuple(row for row in ROWS if (row.table, row.dataset) == (table, dataset))


def printed(table: str, dataset: str, row: str, metric: str) -> Printed | None:
    """Look up one printed number, or the gap of two; None where the paper prints none."""
    if metric == GAP:
        train, test = printed(table, dataset, row, TRAIN), printed(table, dataset, row, TOP1)
        return Printed(f"{test.value - train.value:.2f}") if train is not None and test is not None else None
    for candidate in rows(table, dataset):
        if candidate.label == row and metric in COLUMNS[table]:
            return candidate.numbers[COLUMNS[table].index(metric)]
    return None


Relation = Literal["lower", "lowest", "higher", "not lower", "within"]


class Comparison(NamedTuple):
    """Compare `row`'s `metric` with each row of `against`, times `scale`.

    "lowest" is "lower" than every other row of the table (against = ()); "within" is a difference of at most
    `margin`. `against_metric` is another metric of the rows of `against`, "" = the same one. `bound` is a number to
    compare with in place of those rows, which `against` then has a name for.
    """

    dataset: str
    row: str
    metric: str
    relation: Relation
    against: tuple[str, ...] = ()
    against_metric: str = ""
    scale: float = 1.0
    margin: float = 0.0
    bound: float | None = None


class Claim(NamedTuple):
    """Sentence of the paper, in our words, and the comparisons that all have to hold."""

    id: str
    table: str
    sentence: str
    comparisons: tuple[Comparison, ...]


def _lower(dataset: str, row: str, against: tuple[str, ...], metrics: tuple[str, ...]) -> tuple[Comparison, ...]:
    return tuple(Comparison(dataset, row, metric, "lower", against) for metric in metrics)


def _half(dataset: str, row: str) -> tuple[Comparison, ...]:
    """Claim half of the baseline's parameters, to the 0.1 million that the paper prints."""
    return (Comparison(dataset, row, PARAMETERS, "within", ("Baseline",), scale=0.5, margin=0.05),)


_CIFAR = ("cifar10", "cifar100")
_CIFAR_METRICS = (TOP1, AVERAGE, VOTE)
_IMAGENET_METRICS = COLUMNS["4"]
_CRELU_VGG = ("CReLU (1)", "CReLU (1,3)", "CReLU (1,3,5)")


def _no_more(dataset: str, rows: tuple[str, ...], metrics: tuple[str, ...]) -> tuple[Comparison, ...]:
    return tuple(Comparison(dataset, row, metric, "not lower", ("Baseline",)) for row in rows for metric in metrics)


def _rises(dataset: str, row: str, metric: str, *steps: tuple[int, int]) -> tuple[Comparison, ...]:
    """Claim of one network that a metric is higher at the first conv of each pair than at the second."""
    return tuple(
        Comparison(dataset, row, f"{metric}conv{high}", "higher", (row,), f"{metric}conv{low}") for high, low in steps
    )


def _placement_order(dataset: str) -> tuple[Comparison, ...]:
    return tuple(
        comparison
        for fewer, more in itertools.pairwise(_CRELU_VGG)
        for comparison in _lower(dataset, more, (fewer,), _CIFAR_METRICS)
    )


CLAIMS: Final[tuple[Claim, ...]] = (
    Claim(
        "crelu-below-baseline-and-double",
        "1",
        "On CIFAR-10 and CIFAR-100 CReLU errs less than the ReLU baseline and than twice its filters.",
        tuple(c for d in _CIFAR for c in _lower(d, "CReLU", ("Baseline", "Double"), _CIFAR_METRICS)),
    ),
    Claim(
        "half-below-baseline",
        "1",
        "CReLU with half of the filters errs less than the baseline with half of its parameters.",
        tuple(
            c for d in _CIFAR for c in _lower(d, "CReLU half", ("Baseline",), _CIFAR_METRICS) + _half(d, "CReLU half")
        ),
    ),
    Claim(
        "half-has-the-baseline-s-neurons",
        "S3",
        "CReLU with half of the filters has as many neurons in each layer as the baseline.",
        tuple(Comparison("cifar10", "CReLU half", f"{CHANNELS}conv{i}", "within", ("Baseline",)) for i in range(1, 8)),
    ),
    Claim(
        "smaller-train-test-gap",
        "1",
        "The test error of AVR and CReLU lies nearer to their training error than the baseline's does.",
        tuple(
            Comparison(d, row, GAP, "lower", ("Baseline",)) for d in _CIFAR for row in ("AVR", "CReLU", "CReLU half")
        ),
    ),
    Claim(
        "avr-no-better-over-folds-on-cifar10",
        "1",
        "On CIFAR-10 AVR does not improve on the baseline's average over ten folds.",
        _no_more("cifar10", ("AVR",), (AVERAGE,)),
    ),
    Claim(
        "avr-below-baseline-elsewhere",
        "1",
        "AVR errs less than the baseline as a single network on CIFAR-10, and by every number on CIFAR-100.",
        _lower("cifar10", "AVR", ("Baseline",), (TOP1,)) + _lower("cifar100", "AVR", ("Baseline",), _CIFAR_METRICS),
    ),
    Claim(
        "vgg-crelu-below-vgg",
        "2",
        "VGG with CReLU at any of the three placements errs less than VGG on both sets.",
        tuple(c for d in _CIFAR for row in _CRELU_VGG for c in _lower(d, row, ("VGG",), _CIFAR_METRICS)),
    ),
    Claim(
        "vgg-before-pooling-does-not-help",
        "Footnote 5",
        "VGG does not improve with CReLU at conv2 or conv4, in front of the pooling.",
        tuple(Comparison(d, row, TOP1, "not lower", ("VGG",)) for d in _CIFAR for row in ("CReLU (2)", "CReLU (4)")),
    ),
    # The next two read the order of Table 2's rows as a claim. On CIFAR-10 the printed numbers deny it.
    Claim(
        "vgg-placement-order-cifar10",
        "2",
        "On CIFAR-10 each further CReLU layer, (1) to (1,3) to (1,3,5), lowers VGG's error.",
        _placement_order("cifar10"),
    ),
    Claim(
        "vgg-placement-order-cifar100",
        "2",
        "On CIFAR-100 each further CReLU layer, (1) to (1,3) to (1,3,5), lowers VGG's error.",
        _placement_order("cifar100"),
    ),
    Claim(
        "conv1-4-lowest-centre-crop",
        "4",
        "CReLU at conv1-4 has the lowest error of all networks with one centre crop.",
        tuple(Comparison("imagenet", "CReLU conv1-4", metric, "lowest") for metric in (TOP1, TOP5)),
    ),
    Claim(
        "conv1,4,7-lowest-ten-crops",
        "4",
        "CReLU at conv1, conv4 and conv7 has the lowest error of all networks with ten crops.",
        tuple(Comparison("imagenet", "CReLU conv1,4,7", metric, "lowest") for metric in (TOP1_TEN, TOP5_TEN)),
    ),
    Claim(
        "avr-1-4-below-baseline",
        "4",
        "AVR in the first four layers errs less than the baseline.",
        _lower("imagenet", "AVR conv1-4", ("Baseline",), _IMAGENET_METRICS),
    ),
    Claim(
        "avr-deeper-no-better-than-baseline",
        "4",
        "AVR in more layers, conv1-7 or conv1-9, does not improve on the baseline.",
        _no_more("imagenet", ("AVR conv1-7", "AVR conv1-9"), _IMAGENET_METRICS),
    ),
    Claim(
        "all-below-baseline-with-half",
        "5",
        "CReLU at every layer errs less than the baseline with half of its parameters.",
        _lower("imagenet", "CReLU all", ("Baseline",), _IMAGENET_METRICS) + _half("imagenet", "CReLU all"),
    ),
    Claim(
        "all-below-friednet-and-prunednet",
        "5",
        "CReLU at every layer errs less than FriedNet and PrunedNet, with fewer parameters.",
        (
            *_lower("imagenet", "CReLU all", ("FriedNet", "PrunedNet"), (TOP1,)),
            *_lower("imagenet", "CReLU all", ("PrunedNet",), (TOP5,)),
            *_lower("imagenet", "CReLU all", ("FriedNet", "PrunedNet"), (PARAMETERS,)),
        ),
    ),
    # Figures 2 to 4 print no numbers: mu is the mean over filters of the least cosine with another filter.
    Claim(
        "relu-pairs-at-conv1",
        "Figure 2",
        "Under ReLU the filters of conv1 form pairs of opposite phase, more so than random filters.",
        _lower("imagenet", "Baseline", ("Random",), ("pairing/mu/conv1",)),
    ),
    Claim(
        "relu-pairing-fades-with-depth",
        "Figure 2",
        "Under ReLU the filters of deeper layers are less opposite to one another than those of conv1.",
        # Each with conv1 alone: random filters of these layers differ too, by the number of their weights.
        _rises("imagenet", "Baseline", MU, (2, 1), (3, 1), (4, 1), (5, 1)),
    ),
    Claim(
        "crelu-pairing-vanishes",
        "Figure 3",
        "Under CReLU the filters pair no more than random filters do, at each of conv1-4.",
        tuple(
            # The paper shows two histograms that coincide; the margin is ours: sd of mu over random conv1.
            Comparison("imagenet", "CReLU conv1-4", f"pairing/mu/conv{i}", "within", ("Random",), margin=0.022)
            for i in range(1, 5)
        ),
    ),
    Claim(
        "crelu-more-invariant",
        "Figure 4",
        "The invariance score is higher under CReLU than under ReLU at every layer.",
        tuple(
            Comparison(dataset, row, f"invariance/score/conv{i}", "higher", ("Baseline",))
            for dataset, row in (("cifar10", "CReLU"), ("cifar100", "CReLU"), ("imagenet", "CReLU conv1-7"))
            for i in range(1, 8)
        ),
    ),
    Claim(
        "invariance-jumps-on-cifar",
        "Figure 4",
        "On both CIFAR sets the invariance score jumps from conv2 to conv3 and from conv4 to conv6.",
        tuple(c for d in _CIFAR for row in ("Baseline", "CReLU") for c in _rises(d, row, INVARIANCE, (3, 2), (6, 4))),
    ),
    Claim(
        "invariance-peaks-on-imagenet",
        "Figure 4",
        "Under ReLU the invariance score on ImageNet has local maxima at conv1, conv4 and conv7.",
        _rises("imagenet", "Baseline", INVARIANCE, (1, 2), (4, 3), (4, 5), (7, 6)),
    ),
    Claim(
        "pair-above-non-pair",
        "6",
        "The outgoing weights of a filter's two phases correlate more than those of two different filters.",
        tuple(
            Comparison("imagenet", f"conv{i}", PAIR, "higher", (f"conv{i}",), against_metric=NON_PAIR)
            for i in range(1, 8)
        ),
    ),
    Claim(
        "pair-far-from-one",
        "6",
        "CReLU does not discard the phase as AVR does, whose pairs would correlate by 1: less than half at each layer.",
        # The paper says far below 1; the half is ours.
        tuple(Comparison("imagenet", f"conv{i}", PAIR, "lower", ("one half",), bound=0.5) for i in range(1, 8)),
    ),
    Claim(
        "learned-reconstructs-better",
        "S1",
        "After max-pooling, learned filters lose less of their input than random ones.",
        tuple(
            Comparison(dataset, layer, LEARNED, "lower", (layer,), against_metric=RANDOM)
            for dataset in _CIFAR
            for layer in ("conv2", "conv5")
        ),
    ),
)


def rivals(table: str, comparison: Comparison) -> tuple[str, ...]:
    """Return the rows that a comparison names, for "lowest" every other row of the table."""
    if comparison.relation != "lowest":
        return comparison.against
    return tuple(row.label for row in rows(table, comparison.dataset) if row.label != comparison.row)


def holds(comparison: Comparison, value: float, rival: float) -> bool:
    """Tell whether a comparison holds between two numbers taken at face value."""
    difference = value - comparison.scale * rival
    match comparison.relation:
        case "lower" | "lowest":
            return difference < 0
        case "higher":
            return difference > 0
        case "not lower":
            return difference >= 0
        case "within":
            return abs(difference) <= comparison.margin


def holds_in_print(claim: Claim) -> bool | None:
    """Tell whether the printed numbers themselves bear out a claim, None where the paper prints none."""
    answers = []
    for c in claim.comparisons:
        ours = printed(claim.table, c.dataset, c.row, c.metric)
        for row in rivals(claim.table, c):
            theirs = printed(claim.table, c.dataset, row, c.against_metric or c.metric)
            rival = theirs.value if theirs is not None else c.bound
            if ours is None or rival is None:
                return None
            answers.append(holds(c, ours.value, rival))
    return all(answers)
