"""How much of a picture do CReLU features preserve? Algorithms 1 and 2, Figures 5 and G, Table S1.

Algorithm 1 goes back from features without pooling: undo CReLU, subtract the bias, invert the conv by least squares,
layer by layer to the picture. Algorithm 2 goes back from one max-pooling window to the patch it sees. The control is
the same net with every weight from N(0, 1) and no bias (footnote 9 of the paper). The paper finds patches of the half
net to lose .92 and .96 of their norm, and .99 with random weights.

Writes the reconstructed pictures, or histograms of the loss, and a Parquet row a picture or patch.

    python -m sweeps.analysis.reconstruction --sweep imagenet_placement --layers conv1 conv2 conv3 conv4
    python -m sweeps.analysis.reconstruction --sweep cifar_width --algorithm 2
"""

import argparse

from crelu_models.command_line import nonnegative_int
from sweeps.analysis.job import Job, main, parser

JOB = Job("reconstruction", "sweeps.analysis.reconstruct:findings", pictures=True)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of this job."""
    options = parser(JOB, __doc__)
    group = options.add_argument_group("reconstruction")
    group.add_argument("--algorithm", type=int, choices=(1, 2), default=0, help="1: convs alone; 2: behind max-pooling")
    group.add_argument(
        "--iterations", type=nonnegative_int, nargs="+", default=[5, 20, 200], help="limits of CGLS, for 1"
    )
    group.add_argument("--control", choices=("random_all", "random_layer"), default="random_all", help="for 2")
    return options


if __name__ == "__main__":
    main(JOB, arguments())
