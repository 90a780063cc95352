"""Do filters answer alike when the picture moves? The invariance score of Figure 4 (Goodfellow et al. 2009).

A filter fires where its response is among its largest 1 % over all pictures and places; the score says how often it
still fires there when the picture is mirrored, turned or shifted: from 1 by chance to 100 where nothing changes. The
paper finds CReLU above ReLU at every layer.

Leaves a curve over the layers, a Parquet row a filter, and how many filters are dead or fire too rarely.

    python -m sweeps.analysis.invariance --sweep cifar_width
"""

import argparse

from sweeps.analysis.job import Job, main, parser

JOB = Job("invariance", "sweeps.analysis.invariance_scores:findings", pictures=True)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of this job."""
    found = parser(JOB, __doc__)
    own = found.add_argument_group("invariance")
    shown = "what turns and shifts bring in from beyond the picture (default: its reflection)"
    own.add_argument("--fill", choices=("reflect", "zero"), default="reflect", help=shown)
    return found


if __name__ == "__main__":
    main(JOB, arguments())
