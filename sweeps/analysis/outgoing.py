"""Does the next layer use both phases of a filter alike? Correlations of outgoing weights, Table 6 of the paper.

For each conv with CReLU: the cosines of the weights with which the next conv reads the two phases of one filter (pair)
and of different ones (non-pair). A pair at -1 is a linear unit, at +1 absolute value rectification. The paper prints
.13 to .46 for pairs and .08 to .17 for others; the value of random weights stands beside it.

Writes histograms, a Parquet row a filter, and the counts of non-pairs.

    python -m sweeps.analysis.outgoing --sweep imagenet_placement
"""

import argparse

from sweeps.analysis.job import Job, main, parser

JOB = Job("outgoing", "sweeps.analysis.outgoing_correlations:findings")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of this job."""
    return parser(JOB, __doc__)


if __name__ == "__main__":
    main(JOB, arguments())
