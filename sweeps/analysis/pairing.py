"""Do filters come in pairs of opposite phase? Figures 1, 2 and 3 of the paper, with a random control.

The paper's observation behind CReLU: in the first ReLU layers most filters have a pair that is nearly their negative.
For each filter of a conv: mu, its least cosine with another one. A perfect pair has -1. Filters without a pair are a
little below 0, as random filters of the same shape are. The paper finds conv1 clearly negative, deeper layers less so,
and CReLU no more than chance. Each conv is ranked among whole random layers of its shape: 999, or 199 where it has more
than 256 filters; --samples sets their number.

Writes a picture of filters beside their pairing filters, histograms of mu, and a Parquet row a filter.

    python -m sweeps.analysis.pairing --sweep imagenet_placement --layers conv1 conv2 conv3 conv4
    python -m sweeps.analysis.pairing --weights torchvision:alexnet
    python -m sweeps.analysis.pairing --weights anybodys.safetensors
"""

import argparse

from sweeps.analysis.job import Job, main, parser

JOB = Job("pairing", "sweeps.analysis.pairing_scores:findings", any_net=True)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of this job."""
    options = parser(JOB, __doc__)
    options.add_argument_group("pairing").add_argument(
        "--groups", nargs="+", default=[], metavar="CONV=N",
        help="grouped convs, e.g. conv2=2: filters have their pair in their own group (default: among all)",
    )  # fmt: skip
    return options


if __name__ == "__main__":
    main(JOB, arguments())
