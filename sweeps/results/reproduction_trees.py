"""Papers as weighted trees: what a reproduction of each consists of, leaf by leaf. A tree is data.

Another paper's tree is another value of `Branch`, in a module of one's own. Weights count among siblings alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sweeps.results.paper import CLAIMS


class Numbers(NamedTuple):
    """Leaf: the printed numbers of a table of one data set, each against ours."""

    title: str
    weight: float
    table: str
    dataset: str


class Sentence(NamedTuple):
    """Leaf: a claim of the paper by its id, each of its comparisons decided in our trainings."""

    title: str
    weight: float
    claim: str


class Analysed(NamedTuple):
    """Leaf: an analysis of networks, each the cell of a table, a data set and a row."""

    title: str
    weight: float
    job: str
    networks: tuple[tuple[str, str, str], ...]


class Proved(NamedTuple):
    """Leaf: a theorem, whose analysis found no counter-example: a metric of it that has to be 0."""

    title: str
    weight: float
    job: str
    metric: str


class Chosen(NamedTuple):
    """Leaf: a sentence on the protocol, that the dropout of the cells of a table was chosen on held-out pictures."""

    title: str
    weight: float
    table: str
    dataset: str


class Trained(NamedTuple):
    """Leaf: the cells of a sweep, each trained and none at chance."""

    title: str
    weight: float
    sweep: str


class Branch(NamedTuple):
    """Part of a paper: its title, its weight among its siblings, and its parts."""

    title: str
    weight: float
    parts: tuple[Branch | Leaf, ...]


Leaf = Numbers | Sentence | Analysed | Proved | Chosen | Trained

# Claims that read the order of rows as a sentence, and that the paper's own numbers deny.
UNSAID: Final = frozenset({"vgg-placement-order-cifar10"})


def _claims(*tables: str) -> tuple[Sentence, ...]:
    """Return a leaf for each claim about these tables."""
    chosen = [claim for claim in CLAIMS if claim.table in tables and claim.id not in UNSAID]
    return tuple(Sentence(claim.sentence.removesuffix("."), 1, claim.id) for claim in chosen)


CRELU: Final = Branch("CReLU (Shang et al., ICML 2016)", 1, (
    Branch("Tables 1 and S2 to S3: the all-convolutional CIFAR nets", 3, (
        Branch("printed numbers", 3, (
            Numbers("CIFAR-10", 1, "1", "cifar10"),
            Numbers("CIFAR-100", 1, "1", "cifar100"),
        )),
        Branch("sentences", 2, _claims("1", "S3")),
        Chosen("dropout chosen on held-out pictures", 0.5, "1", "cifar10"),
    )),
    Branch("Tables 2 and 3: VGG", 2, (
        Branch("printed numbers", 3, (
            Numbers("CIFAR-10", 1, "2", "cifar10"),
            Numbers("CIFAR-100", 1, "2", "cifar100"),
        )),
        Branch("sentences", 2, _claims("2", "Footnote 5")),
    )),
    Branch("Tables 4 and 5: placements on ImageNet", 3, (
        Numbers("printed numbers", 3, "4", "imagenet"),
        Branch("sentences", 2, _claims("4", "5")),
        Chosen("dropout chosen on held-out pictures", 0.5, "4", "imagenet"),
    )),
    Branch("Figures and Tables 6 and S1: what the nets have learned", 2, (
        Branch("Figures 2 and 3: pairing", 1, (
            Analysed("both nets analysed", 1, "pairing",
                     (("4", "imagenet", "Baseline"), ("4", "imagenet", "CReLU conv1-4"))),
            *_claims("Figure 2", "Figure 3"),
        )),
        Branch("Figure 4: invariance", 1, (
            Analysed("all six nets analysed", 1, "invariance", (
                ("1", "cifar10", "Baseline"), ("1", "cifar10", "CReLU"),
                ("1", "cifar100", "Baseline"), ("1", "cifar100", "CReLU"),
                ("4", "imagenet", "Baseline"), ("4", "imagenet", "CReLU conv1-7"),
            )),
            *_claims("Figure 4"),
        )),
        Branch("Table 6: outgoing weights", 1, (
            Analysed("the net analysed", 1, "outgoing", (("4", "imagenet", "CReLU conv1-7"),)),
            *_claims("6"),
        )),
        Branch("Figure 5 and Table S1: reconstruction", 1, (
            Analysed("both nets analysed", 1, "reconstruction",
                     (("1", "cifar10", "CReLU half"), ("1", "cifar100", "CReLU half"))),
            *_claims("S1"),
        )),
    )),
    Branch("Theory", 1, (
        Proved("the bound on the reconstruction ratio holds on every net analysed", 1, "theory",
               "theory/bound_violations"),
    )),
))  # fmt: skip

DEMO: Final = Branch("the demo: nine placements on embedded pictures", 1, (
    Trained("all nine cells are trained, none at chance", 1, "imagenet_placement-demo"),
    Branch("what was learned is looked at", 1, (
        Analysed("pairing of the baseline's filters", 1, "pairing", (("4", "imagenet", "Baseline"),)),
        Proved("no counter-example to the theorems", 1, "theory", "theory/bound_violations"),
    )),
))  # fmt: skip

TREES: Final[Mapping[str, Branch]] = {"crelu": CRELU, "demo": DEMO}
