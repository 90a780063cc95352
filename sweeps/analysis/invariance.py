"""Do filters respond alike when the picture moves? The invariance score of Figure 4 (Goodfellow et al. 2009).

A filter fires where its response is among its largest 1 % over all pictures and places. The score says how often it
still fires there when the picture is mirrored, turned or shifted: 1 by chance, 100 where nothing changes. The paper
finds CReLU above ReLU at every layer.

Writes a curve over the layers, a Parquet row a filter, and how many filters are dead or fire too rarely.

    python -m sweeps.analysis.invariance --sweep cifar_width
"""

import argparse

from sweeps.analysis.job import Job, main, parser

JOB = Job("invariance", "sweeps.analysis.invariance_scores:findings", pictures=True)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of this job."""
    options = parser(JOB, __doc__)
    options.add_argument_group("invariance").add_argument(
        "--fill", choices=("reflect", "zero"), default="reflect",
        help="what turns and shifts bring in from beyond the picture (default: its reflection)",
    )  # fmt: skip
    return options


if __name__ == "__main__":
    main(JOB, arguments())
